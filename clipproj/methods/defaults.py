"""The projector of the command line and of the service: a method with the defaults that suit it."""

from __future__ import annotations

from clipproj.methods.ccup import ccup
from clipproj.methods.contrast import SPAN_UP_TO
from clipproj.methods.nullspace import nullspace
from clipproj.projector import Projector
from clipproj.text import Embeddings


def make(
    forget: Embeddings,
    keep: Embeddings,
    method: str | None = None,
    *,
    contrast: str | None = None,
    rank: int | None = None,
    forget_weight: float | None = None,
    keep_weight: float | None = None,
    strength: float | None = None,
    closed: bool = False,
    side: str = "image",
) -> Projector:
    """What `nullspace` (the default) or `ccup` makes of names, each option None for its default.

    Args:
        contrast, rank: of `nullspace`. Against more names than span suits the contrast is hull
            where the list is closed, else mean, with strength 1.5: less leaves some of the class.
        forget_weight, keep_weight: of `ccup`, 10 and 100; above as many names the latter is 1, for
            more would protect the class with them.
        strength: None for the method's own.
        closed: keep holds all names that compete with the forgotten ones, not names in general.

    Raises:
        TypeError, ValueError: as the methods do; for another method, or an option that it has not.
    """
    options = {"contrast": contrast, "rank": rank}
    others = {"forget_weight": forget_weight, "keep_weight": keep_weight}
    if method == "ccup":
        options, others = others, options
    elif method not in (None, "nullspace"):
        raise ValueError(f'make: method must be "nullspace" or "ccup", got {method!r}')
    for name, value in others.items():
        if value is not None:
            known = " or ".join(options)
            raise ValueError(
                f'make: options of "{method or "nullspace"}" must be {known}, got {name}'
            )
    if method == "ccup":
        lam = 10.0 if forget_weight is None else forget_weight
        mu = 100.0 if len(keep) <= SPAN_UP_TO else 1.0
        made = ccup(forget, keep, lam, mu if keep_weight is None else keep_weight, side=side)
    else:
        if contrast is None:
            contrast = "hull" if closed and len(keep) > SPAN_UP_TO else "auto"
        made = nullspace(forget, keep, contrast, rank=rank, side=side)
        if made.provenance["parameters"]["contrast"] == "mean":
            made = made.scaled(1.5)
    return made if strength is None else made.scaled(strength)
