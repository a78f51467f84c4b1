"""Orthogonal null space of the forgotten texts (arXiv 2512.14137), relative to what must stay."""

from __future__ import annotations

import warnings

from torch import Tensor

from clipproj.methods.contrast import contrasted, row_basis
from clipproj.methods.inputs import forget_and_keep, provenance, rank_and_tol
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal


def nullspace(
    forget: Embeddings | Tensor,
    keep: Embeddings | Tensor | None = None,
    contrast: str = "auto",
    strength: float = 1.0,
    rank: int | None = None,
    tol: float = 1e-4,
    side: str = "image",
) -> Projector:
    """Project out the directions of the forgotten texts: `P = I - s U^T U`, symmetric.

    All CLIP texts share one large direction, so their plain null space (the paper's) leaves about
    half of a class in place and costs every class the shared part. `contrast` takes out what sets
    the class apart instead:

    - "span": forget minus its projection on span(keep), so that kept texts do not move at all. For
      a closed list of candidates. A long list spans the class too (ViT-B/32: with 39 keeps 0.41 of
      its accuracy survives, with 209 0.81).
    - "hull": forget minus the nearest mixture (weights >= 0 of sum 1) of kept texts. For a closed
      list of any length. At strength 1 and at full rank an edited picture scores for each forgotten
      text what it scores for its mixture, and an average is never above the highest: some kept text
      scores at least as high, so no picture is answered by a forgotten class. Where the mixture is
      one text alone (the only keep, or a near-synonym) both score the same, and rounding decides.
      At other strengths, or where `rank` or a large `tol` drops directions, it need not be so; nor
      where edited texts (side "text") are divided by their length again. Every mixture has that
      property; the nearest moves kept texts less than their mean or the best single one of them
      would in 25 of 36 random lists of 10 to 200 of ViT-B/32's texts.
    - "mean": forget minus mean(keep), the mixture of equal weights. For generic lists, which do not
      hold the names that compete, with strength 1.5 for one direction.
    - "none": the texts themselves.
    - "auto": none without keep (with a warning), span up to 16 keeps, else mean.

    Args:
        forget: [m, d], texts to forget; any row lengths.
        keep: [m, d], texts to keep.
        strength: 0 leaves rows alone, 1 projects, 2 reflects. Above 1 with several directions
            warns: reflections cross, and other classes pay (10 names of ViT-B/32 at 1.5 cost the
            rest half of its accuracy, at 1 a tenth).
        rank: at most so many directions, the strongest first; None for all.
        tol: directions with a singular value below tol times the largest are dropped; a forget row
            with less than this length of its own lies in the span, hull or mean of keep.
        side: "image" or "text", whose features the projector edits.

    Returns:
        A symmetric Projector of rank <= m; its provenance tells contrast, rank, the singular values
        and how many directions were dropped.

    Raises:
        ValueError: for NaN, inf or zero rows, for texts on both lists, for a forget row inside
            span(keep) or hull(keep) or equal to mean(keep), for rows that span everything, for
            options out of range.
    """
    f, k = forget_and_keep("nullspace", forget, keep)
    rank, tol = rank_and_tol("nullspace", rank, tol)
    if contrast == "hull" and rank is None and len(f) >= f.shape[1]:  # before minutes of mixtures
        raise Refusal(
            "nullspace",
            "forget",
            f"must be fewer than the {f.shape[1]} dimensions with contrast hull, "
            f"got {len(f)} rows; give rank",
        )
    rows, contrast = contrasted(
        "nullspace", f, k, contrast, tol, forget,
        "the direction that all texts share is erased too, and half of a real class survives",
    )  # fmt: skip
    basis, singular, found = row_basis(rows, tol)
    basis = basis[:rank]
    if len(basis) == f.shape[1]:
        raise Refusal(
            "nullspace",
            "forget",
            f"must leave something of the {f.shape[1]} dimensions, got rows that "
            "span all of them; give rank",
        )
    if 2 * len(basis) > f.shape[1]:
        warnings.warn(
            f"nullspace: {len(basis)} directions are most of the {f.shape[1]} dimensions: little "
            "is left to tell other classes apart by; give fewer texts, or rank",
            stacklevel=2,
        )
    if len(basis) > 1 and float(strength) > 1:
        warnings.warn(
            f"nullspace: strength {float(strength):g} above 1 with {len(basis)} directions lets "
            "reflections cross, which other classes pay for",
            stacklevel=2,
        )
    parameters = {
        "contrast": contrast,
        "tol": tol,
        "rank": rank,
        "kept_directions": len(basis),
        "dropped_by_tol": len(f) - found,
        "dropped_by_rank": found - len(basis),
        "singular_values": [round(value, 6) for value in singular.tolist()],
    }
    history = provenance("nullspace", parameters, forget, keep)
    return Projector(basis, strength=strength, side=side, provenance=history)
