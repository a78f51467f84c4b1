"""Closed-form constructors of a `Projector`, one file a method of the literature."""

from clipproj.methods.ccup import ccup
from clipproj.methods.coreset import Coreset, coreset, prompts
from clipproj.methods.domains import Cells
from clipproj.methods.leace import from_leace
from clipproj.methods.nullspace import nullspace
from clipproj.methods.prototypes import feature_prototypes, synthesize
from clipproj.methods.redirect import empty_text, redirect
from clipproj.methods.rotate import rotate, unrotate
from clipproj.methods.selective import selective, selective_rows
from clipproj.methods.subgroup import subgroup

__all__ = [
    "Cells",
    "Coreset",
    "ccup",
    "coreset",
    "empty_text",
    "feature_prototypes",
    "from_leace",
    "nullspace",
    "prompts",
    "redirect",
    "rotate",
    "selective",
    "selective_rows",
    "subgroup",
    "synthesize",
    "unrotate",
]
