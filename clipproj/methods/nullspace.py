"""Orthogonal null space of the forgotten texts (arXiv 2512.14137), relative to what must stay."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.methods.contrast import contrasted, row_basis
from clipproj.methods.half_spaces import (
    HalfSpaces,
    half_spaces,
    margin,
    oblique,
    storage_dtype,
    thresholds,
)
from clipproj.methods.inputs import at_least_zero, forget_and_keep, provenance, rank_and_tol
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
    *,
    keep_weight: float = 0.0,
    one_sided: bool = False,
    threshold: float | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Projector:
    """Project out the directions of the forgotten texts: `P = I - s U^T U`, symmetric.

    All CLIP texts share one large direction, so their plain null space (the paper's) leaves about
    half of a class in place and costs every class the shared part. `contrast` takes out what sets
    the class apart instead:

    - "span": forget minus its projection on span(keep), so that kept texts do not move at all. For
      a closed list of candidates. A long list spans the class too (ViT-B/32: with 39 keeps 0.41 of
      its accuracy survives, with 209 0.81).
    - "hull": forget minus the nearest mixture (weights >= 0 of sum 1) of kept texts. For a closed
      list of any length. At strength 1 and at full rank an edited image scores for each forgotten
      text what it scores for its mixture, and an average is never above the highest: some kept text
      scores at least as high, so no image is answered by a forgotten class. Where the mixture is
      one text alone (the only keep, or a near-synonym) both score the same, and rounding decides.
      At other strengths, or where `rank` or a large `tol` drops directions, it need not be so; nor
      where edited texts (side "text") are divided by their length again. Every mixture has that
      property; the nearest moves kept texts less than their mean or the best single one of them
      would in 25 of 36 random lists of 10 to 200 of ViT-B/32's texts.
    - "neighbours": forget minus the mean of the 100 nearest kept texts. For a lexicon, names in
      general of which many surround the class though none competes. Of keep, forgotten names and
      texts with a cosine of 0.95 or more to one are left out, not refused.
    - "mean": forget minus mean(keep), the mixture of equal weights. For generic lists, which do not
      hold the names that compete, with strength 1.5 for one direction.
    - "none": the texts themselves.
    - "auto": none without keep (with a warning), span up to 16 keeps, else mean; one-sided hull.

    `keep_weight` measures distance in what is kept: with Kc, keep less its mean, and
    `M = (I + mu Kc^T Kc)^-1`, directions that tell kept texts apart are expensive to write along.
    The same contrasts, R, read 0 afterwards, but the least change in that metric is made:
    `z' = z - s (z R^T) (R M R^T)^-1 R M`, an oblique projector, which folds as any other.

    `one_sided` changes only rows on the wrong side, z with `z r_i > tau_i` for some contrast r_i of
    length 1. Each comes to the nearest point on the harmless side of all, in that metric; others
    keep their bits. Against a hull at strength 1 every image scores for a forgotten name at least
    `|d_i| eps` less than for some kept name, `tau_i = -eps` and d_i the contrast: strictly less, of
    rows as stored, however many names are forgotten. It is no linear edit, so no weight can hold
    it: it is applied on the fly.

    Args:
        forget: [m, d], texts to forget; any row lengths. One-sided at most 256 of them.
        keep: [m, d], texts to keep.
        strength: 0 leaves rows alone, 1 projects, 2 reflects. Above 1 with several directions
            warns: reflections cross, and other classes pay (10 names of ViT-B/32 at 1.5 cost the
            rest half of its accuracy, at 1 a tenth).
        rank: at most so many directions, the strongest first; None for all. Not one-sided, where
            each name has a half-space of its own.
        tol: directions with a singular value below tol times the largest are dropped; a forget row
            with less than this length of its own lies in the span, hull or mean of keep.
        side: "image" or "text", whose features the projector edits.
        keep_weight: mu >= 0; larger moves what is kept less, and everything else more.
        one_sided: whether rows on the harmless side are left alone.
        threshold: tau, a number in [-1, 1], or "0.5 sigma": so many standard deviations of what
            kept texts read along each contrast. None: 0, and below it by the margin of `dtype` for
            mixtures of kept texts, hull and mean. One-sided alone; it must be given for contrast
            none and on the text side, where 0 means nothing.
        dtype: what edited rows are stored in: float32, float16, bfloat16 or float64. The margin is
            twice its rounding, for rows up to length 2, and 5e-4 for float32 sums: 5.0e-4, 1.5e-3,
            8.3e-3, 5.0e-4. One-sided alone.

    Returns:
        A symmetric Projector of rank <= m; oblique with keep_weight; one-sided with a half-space
        for each name. Names with nearly the same contrast (cosine above 1 - 1e-4) share one, low
        enough for all of them, with a warning. The provenance tells contrast, rank, the singular
        values and how many directions were dropped, or thresholds, sigma, which names share a
        half-space and the smallest eigenvalue of the gram matrix; of a hull also the witnesses, the
        kept names that each nearest mixture is made of.

    Raises:
        ValueError: for NaN, inf or zero rows, for texts on both lists, for a forget row inside
            span(keep) or hull(keep) or equal to mean(keep), for rows that span everything, for
            options out of range or of the other form; for half-spaces that contradict one another,
            such as those of two names that are each other's only alternative.

    Example:
        >>> forget, keep = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]])
        >>> p = nullspace(forget, keep, "span")
        >>> p.rank, p(torch.tensor([[3.0, 4.0]]))
        (1, tensor([[0., 4.]]))
    """
    op = "nullspace"
    f, k = forget_and_keep(op, forget, keep, lexicon=contrast == "neighbours")
    rank, tol = rank_and_tol(op, rank, tol)
    keep_weight = at_least_zero(op, "keep_weight", keep_weight)
    dtype = storage_dtype(op, dtype)
    _check_form(op, one_sided, rank, threshold, dtype)
    if keep_weight and k is None:
        raise Refusal(op, "keep_weight", f"must be 0 without keep, got {keep_weight:g}")
    if one_sided and contrast == "auto" and k is not None:
        contrast = "hull"
    if contrast == "hull" and rank is None and len(f) >= f.shape[1]:  # before minutes of mixtures
        raise Refusal(
            op,
            "forget",
            f"must be fewer than the {f.shape[1]} dimensions with contrast hull, "
            f"got {len(f)} rows; give rank",
        )
    rows, contrast, weights = contrasted(
        op, f, k, contrast, tol, forget,
        "the direction that all texts share is erased too, and half of a real class survives",
    )  # fmt: skip
    told: dict[str, Any] = {"contrast": contrast, "tol": tol}
    if keep_weight:
        told["keep_weight"] = keep_weight
    if keep is not None and k is not None and len(k) < len(keep):
        told["left_out_of_keep"] = len(keep) - len(k)
    if one_sided:
        unit = F.normalize(rows, dim=1)
        if threshold is None:
            threshold = _default_threshold(op, contrast, side, dtype)
        tau, sigma = thresholds(op, threshold, unit, k)
        h = half_spaces(op, unit, tau, k, keep_weight, _names(forget))
        read, write, offset, gram = h.read, h.write, h.offset, h.gram
        told |= _told(h, threshold, sigma, dtype, forget)
    else:
        read, found, singular = _basis(op, rows, rank, tol, float(strength))
        write, offset, gram = None, None, None
        if keep_weight:
            write = oblique(read, k, keep_weight)
        told |= {
            "rank": rank,
            "kept_directions": len(read),
            "dropped_by_tol": len(f) - found,
            "dropped_by_rank": found - len(read),
            "singular_values": [round(value, 6) for value in singular.tolist()],
        }
        if write is not None and side == "text":  # the same change of similarity, transposed
            read, write = write, read
    if keep is not None and weights is not None:
        told["witnesses"] = [_rows_of(keep, of.nonzero().flatten().tolist()) for of in weights]
    history = provenance(op, told, forget, keep)
    return Projector(
        read, write, offset, strength, gram=gram, side=side, provenance=history, forget=f
    )


def _check_form(
    op: str, one_sided: bool, rank: int | None, threshold: object, dtype: torch.dtype
) -> None:
    """Refusal of an option that the form, one-sided or linear, does not have."""
    if one_sided and rank is not None:
        why = "must be None one-sided, where each name has a half-space of its own"
        raise Refusal(op, "rank", f"{why}, got {rank}")
    if not one_sided and threshold is not None:
        raise Refusal(op, "threshold", f"must be None unless one_sided, got {threshold!r:.80}")
    if not one_sided and dtype != torch.float32:
        why = "must be float32 unless one_sided, for a linear edit has no margin for rounding"
        raise Refusal(op, "dtype", f"{why}, got {dtype}")


def _default_threshold(op: str, contrast: str, side: str, dtype: torch.dtype) -> float:
    """tau where none is given: 0, with a margin where a mixture of kept texts is the bound."""
    if side == "text" or contrast == "none":
        where = "on the text side" if side == "text" else "with contrast none"
        raise Refusal(op, "threshold", f"must be given {where}, got None")
    return -margin(dtype) if contrast in ("hull", "mean") else 0.0


def _basis(
    op: str, rows: Tensor, rank: int | None, tol: float, strength: float
) -> tuple[Tensor, int, Tensor]:
    """Orthonormal directions of contrasts, how many there were, and all singular values."""
    basis, singular, found = row_basis(rows, tol)
    basis = basis[:rank]
    d = rows.shape[1]
    if len(basis) == d:
        raise Refusal(
            op,
            "forget",
            f"must leave something of the {d} dimensions, got rows that "
            "span all of them; give rank",
        )
    if 2 * len(basis) > d:
        warnings.warn(
            f"{op}: {len(basis)} directions are most of the {d} dimensions: little "
            "is left to tell other classes apart by; give fewer texts, or rank",
            stacklevel=3,
        )
    if len(basis) > 1 and strength > 1:
        warnings.warn(
            f"{op}: strength {strength:g} above 1 with {len(basis)} directions lets "
            "reflections cross, which other classes pay for",
            stacklevel=3,
        )
    return basis, found, singular


def _told(
    h: HalfSpaces,
    threshold: float | str,
    sigma: Tensor | None,
    dtype: torch.dtype,
    forget: Embeddings | Tensor,
) -> dict[str, Any]:
    """What the provenance says of half-spaces, and the warning where names share one."""
    shared = [
        {"forget": _rows_of(forget, group), "lowered": lowered}
        for group, lowered in zip(h.shared, h.lowered, strict=True)
    ]
    for one in shared:
        warnings.warn(
            f"nullspace: {one['forget']} are told apart from keep by nearly the same: they share a "
            f"half-space, {one['lowered']:.2g} lower than for one of them",
            stacklevel=3,
        )
    out: dict[str, Any] = {
        "one_sided": True,
        "threshold": threshold,
        "dtype": str(dtype).removeprefix("torch."),
        "half_spaces": len(h.read),
        "shared": shared,
        "smallest_eigenvalue": h.smallest,
    }
    return out | ({} if sigma is None else {"sigma": [round(one, 6) for one in sigma.tolist()]})


def _names(value: Embeddings | Tensor) -> tuple[str, ...] | None:
    return value.names if isinstance(value, Embeddings) else None


def _rows_of(value: Embeddings | Tensor, rows: Sequence[int]) -> list[Any]:
    """Rows as a provenance tells them: by their names where they have some."""
    names = _names(value)
    return list(rows) if names is None else [names[row] for row in rows]
