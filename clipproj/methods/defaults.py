"""The projector of the command line and of the service: a method with the defaults that suit it."""

from __future__ import annotations

from clipproj.methods.ccup import ccup
from clipproj.methods.contrast import SPAN_UP_TO
from clipproj.methods.nullspace import nullspace
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

MEAN_STRENGTH = 1.5  # of one direction less a mean of many names; 1 leaves up to a third of a class


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
        contrast, rank: of `nullspace`. The contrast against a closed list is span where it leaves
            nothing of the class, which of long lists it does not, else hull; against others mean.
            Of a mean the strength is 1.5 for one direction, where less leaves some of the class; of
            several 1, for reflections cross.
        forget_weight, keep_weight: of `ccup`, 10 and 100; above as many names the latter is 1, for
            more would protect the class with them.
        strength: None for the method's own; above 1 for one direction alone.
        closed: keep holds all names that compete with the forgotten ones, not names in general.

    Raises:
        TypeError, ValueError: as the methods do; for another method, an option that it has not, or
            a strength above 1 for several directions.
    """
    options = {"contrast": contrast, "rank": rank}
    others = {"forget_weight": forget_weight, "keep_weight": keep_weight}
    if method == "ccup":
        options, others = others, options
    elif method not in (None, "nullspace"):
        raise Refusal("make", "method", f'must be "nullspace" or "ccup", got {method!r}')
    for name, value in others.items():
        if value is not None:
            known = " or ".join(options)
            raise Refusal(
                "make", None, f'options of "{method or "nullspace"}" must be {known}, got {name}'
            )
    if method == "ccup":
        lam = 10.0 if forget_weight is None else forget_weight
        mu = 100.0 if len(keep) <= SPAN_UP_TO else 1.0
        made = ccup(forget, keep, lam, mu if keep_weight is None else keep_weight, side=side)
    elif closed and contrast in (None, "auto"):
        made = _against_closed_list(forget, keep, rank, side)
    else:
        made = nullspace(forget, keep, contrast or "auto", rank=rank, side=side)
        if made.provenance["parameters"]["contrast"] == "mean" and made.rank == 1:
            made = made.scaled(MEAN_STRENGTH)
    if strength is None:
        return made
    return scaled("make", made, strength)


def scaled(op: str, projector: Projector, strength: float) -> Projector:
    """At another strength. ValueError, in the name of `op`, above 1 for several directions."""
    if strength > 1 and projector.rank > 1:
        raise Refusal(
            op,
            "strength",
            f"must be at most 1 for the {projector.rank} directions of several "
            f"names, where reflections cross and ruin the rest, got {strength:g}",
        )
    return projector.scaled(strength)


def _against_closed_list(
    forget: Embeddings, keep: Embeddings, rank: int | None, side: str
) -> Projector:
    """Span where nothing of the class is left, for it moves no kept text; else hull.

    Hull leaves nothing by construction, but for a tie where the nearest mixture is one kept text.
    """
    from clipproj.audit.evaluate import compare
    from clipproj.audit.gate import Limits
    from clipproj.audit.standins import stand_ins

    hull = nullspace(forget, keep, "hull", rank=rank, side=side)
    if len(keep) > SPAN_UP_TO:
        return hull
    try:
        span = nullspace(forget, keep, "span", rank=rank, side=side)
    except ValueError:  # the kept names span the forgotten one
        return hull
    samples = stand_ins(forget, keep)
    of_span, of_hull = (
        compare(samples, samples.edited(edit), forget.names, probe=False).after.found
        for edit in (span, hull)
    )
    return span if of_span <= max(Limits().max_found, of_hull) else hull
