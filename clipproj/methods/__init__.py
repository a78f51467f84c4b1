"""Closed-form constructors of a `Projector`, one file a method of the literature."""

from clipproj.methods.ccup import ccup
from clipproj.methods.coreset import Coreset, coreset, prompts
from clipproj.methods.leace import from_leace
from clipproj.methods.nullspace import nullspace
from clipproj.methods.redirect import empty_text, redirect
from clipproj.methods.rotate import rotate, unrotate
from clipproj.methods.subgroup import subgroup

__all__ = [
    "Coreset",
    "ccup",
    "coreset",
    "empty_text",
    "from_leace",
    "nullspace",
    "prompts",
    "redirect",
    "rotate",
    "subgroup",
    "unrotate",
]
