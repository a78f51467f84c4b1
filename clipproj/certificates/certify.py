"""`certificate`: the largest lead of a forgotten name over kept ones that any row can give it."""

from __future__ import annotations

import torch
from torch import Tensor

from clipproj.certificates.certificate import Certificate
from clipproj.certificates.combination import combinations
from clipproj.certificates.half_spaces import HalfSpaceBounds
from clipproj.certificates.linear import LinearBounds
from clipproj.certificates.rounding import Rounding, rounding
from clipproj.methods.hull import nearest_mixture
from clipproj.methods.inputs import apart, unit_rows
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

Bounds = HalfSpaceBounds | LinearBounds
_TEXTS = 2.0**-22  # by how much two float32 texts of length 1 are not


def certificate(
    projector: Projector,
    keep: Embeddings | Tensor,
    dtype: torch.dtype = torch.float32,
) -> Certificate:
    """By how much a forgotten name can lead the kept ones, whatever the row.

    For any weights w >= 0 of sum 1 the highest of the kept scores is at least their mixture's, so

        lead(z) = z' t - max_j z' k_j  <=  z' (t - w K)

    of an edited row z' for a forgotten text t and kept texts K. One-sided, every edited row reads
    at most h_i along R_i: its threshold, and what the solver leaves. So for any b >= 0

        z' (t - w K)  <=  b h + |z'| |t - w K - b R|

    and with hull contrast t - w K is along one R_i: the lead is at most the threshold times the
    contrast's length. For a linear edit z' = z M + v it is at most `|M (t - w K)| + v (t - w K)`;
    the least of these over w is the largest lead itself where v is 0 (Sion's minimax theorem), and
    the nearest point of a polytope finds it.

    The bound `eps` on what rounding adds has the sums of the kernels, at seven standard deviations
    of independent rounding errors (Higham and Mary 2019), and one rounding of the stored row, as
    long as oblique writes can make it.

    Args:
        projector: on the image side, with the texts that it forgets (`projector.forget`).
        keep: [m, d], texts that compete with them, such as the other names of a closed list; any
            row lengths. Names of `Embeddings` are the witnesses' names.
        dtype: that edited rows are computed for and stored in: float64, float32, float16, bfloat16.

    Returns:
        A Certificate: `str()` of it is a paragraph, `to_json()` what a receipt keeps.

    Raises:
        TypeError: for a projector that is none, texts that are no floating point tensor.
        ValueError: for a projector of the text side, or that knows no forgotten texts; for texts of
            another width or model, NaN, inf or zero ones, or that are forgotten; for another dtype.

    Example:
        >>> forget, keep = texts.select(["cat"]), texts.drop(["cat"])
        >>> p = clipproj.nullspace(forget, keep, "hull", strength=1.5)
        >>> clipproj.certificate(p, keep).certified
        False
    """
    op = "certificate"
    if not isinstance(projector, Projector):
        raise TypeError(f"{op}: projector must be a Projector, got {type(projector).__name__}")
    if projector.side != "image":
        raise Refusal(op, "projector", f'must be of side "image", got "{projector.side}"')
    if projector.forget is None:
        raise Refusal(
            op, "projector", "must know the texts that it forgets, got one made without forget"
        )
    rounded = rounding(op, dtype)
    texts = unit_rows(op, "forget", projector.forget).cpu()
    kept = unit_rows(op, "keep", keep).cpu()
    if kept.shape[1] != projector.dim:
        raise Refusal(op, "keep", f"must be [m, {projector.dim}], got {list(kept.shape)}")
    if isinstance(keep, Embeddings):
        projector.require_model(op, keep.head_hash, model=keep.model)
    apart(op, "keep", kept, texts)
    bounds = _bounds(projector, rounded)
    of_each = [_lead(bounds, text, kept) for text in texts]
    names = projector.provenance.get("forget", {}).get("names")
    if names is None or len(names) != len(texts):
        names = [f"row {i}" for i in range(len(texts))]
    known = keep.names if isinstance(keep, Embeddings) else [f"row {i}" for i in range(len(kept))]
    return Certificate(
        leads={name: lead for name, (lead, _, _) in zip(names, of_each, strict=True)},
        eps={name: eps for name, (_, eps, _) in zip(names, of_each, strict=True)},
        witnesses={
            name: _witnesses(weights, known)
            for name, (_, _, weights) in zip(names, of_each, strict=True)
        },
        kept=len(kept),
        form=projector.form,
        strength=float(projector.strength),
        length=bounds.length,
        dtype=str(dtype).removeprefix("torch."),
        projector=projector.content_hash(),
    )


def _bounds(projector: Projector, rounded: Rounding) -> Bounds:
    """What the edit does to rows of length 1, which rounding makes a little longer."""
    factors = projector.factors(torch.float64)
    read, write = factors["read"].cpu(), factors["write"].cpu()
    given, gram = factors["offset"], factors.get("gram")
    offset = read.new_zeros(len(read)) if given is None else given.cpu()
    strength, radius = float(factors["strength"]), 1 + torch.finfo(rounded.dtype).eps
    if gram is None or not len(read):
        return LinearBounds(read, write, offset, strength, radius, rounded)
    return HalfSpaceBounds(read, write, gram.cpu(), offset, strength, radius, rounded)


def _lead(bounds: Bounds, text: Tensor, keep: Tensor) -> tuple[float, float, Tensor]:
    """The largest lead of one name, by how much rounding adds to it, and the mixture's weights."""
    rounded, d = bounds.rounding, len(text)
    shifts = bounds.update + rounded.stored(bounds.length, d)
    texts = _TEXTS * bounds.length
    if isinstance(bounds, LinearBounds):
        weights = nearest_mixture(bounds.seen(text[None])[0], bounds.seen(keep))
        contrast = text - weights @ keep
        lead = bounds.radius * torch.linalg.vector_norm(bounds.seen(contrast[None]))
        lead = lead + bounds.shift @ contrast
        return float(lead), float(shifts * torch.linalg.vector_norm(contrast) + texts), weights
    found = []
    for weights, share in combinations(text, keep, bounds.read):
        contrast = text - weights @ keep
        rest = torch.linalg.vector_norm(contrast - share @ bounds.read)
        lead = share @ bounds.above + bounds.length * rest
        eps = share @ bounds.rounded + shifts * torch.linalg.vector_norm(contrast) + texts
        found.append((float(lead), float(eps), weights))
    return min(found, key=lambda one: one[0] + one[1])


def _witnesses(weights: Tensor, names: tuple[str, ...] | list[str]) -> list[tuple[str, float]]:
    """The kept names with a share in the mixture, the largest first."""
    order = weights.argsort(descending=True).tolist()
    return [(names[i], float(weights[i])) for i in order if weights[i] > 0]
