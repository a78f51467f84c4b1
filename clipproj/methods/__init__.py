"""Closed-form constructors of a `Projector`, one file a method of the literature."""

from clipproj.methods.ccup import ccup
from clipproj.methods.leace import from_leace
from clipproj.methods.nullspace import nullspace

__all__ = ["ccup", "from_leace", "nullspace"]
