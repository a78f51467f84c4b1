"""What sets forgotten texts apart from kept ones: the rows that `nullspace` and `rotate` edit."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from clipproj.methods.hull import nearest_mixture
from clipproj.models.text import Embeddings
from clipproj.refusal import Refusal

CONTRASTS = ("none", "span", "hull", "mean", "neighbours")
NEIGHBOURS = 100  # kept names whose mean stands for a name's surroundings in a lexicon
SPAN_UP_TO = 16  # keeps: beyond it span(keep) holds most of the forgotten class too
_WHERE = {
    "span": "inside span(keep)",
    "hull": "inside hull(keep)",
    "mean": "equal to mean(keep)",
    "neighbours": "equal to the mean of its neighbours in keep",
}


def contrasted(
    op: str,
    f: Tensor,
    k: Tensor | None,
    contrast: str,
    tol: float,
    forget: Embeddings | Tensor,
    without: str,
) -> tuple[Tensor, str, Tensor | None]:
    """Forgotten rows less what kept ones have of them, the contrast that "auto" came to, and the
    weights [m, n] of kept rows where it is a hull's.

    Args:
        f, k: unit rows [m, d] float64; k may be None.
        contrast: one of `CONTRASTS`, or "auto": none without keep, with a warning, span up to 16
            keeps, else mean.
        tol: length below which a row is nothing of its own.
        forget: what f was made of, for names in errors.
        without: what happens without keep, for the warning.

    Raises ValueError, in the name of `op`, for another contrast, one without keep, or a row with
    nothing of its own.
    """
    if contrast not in ("auto", *CONTRASTS):
        options = '"auto", "none", "span", "hull", "mean" or "neighbours"'
        raise Refusal(op, "contrast", f"must be {options}, got {contrast!r}")
    if contrast == "auto":
        contrast = "none" if k is None else "span" if len(k) <= SPAN_UP_TO else "mean"
        if k is None:
            warnings.warn(
                f"{op}: without keep {without}; give keep, or clipproj.generic_keep()",
                stacklevel=3,
            )
    if contrast != "none" and k is None:
        raise Refusal(op, "contrast", f'must be "none" without keep, got {contrast!r}')
    rows, weights = _less(f, k, contrast)
    inside = torch.linalg.vector_norm(rows, dim=1) < tol
    if inside.any():
        row = int(inside.nonzero()[0])
        label = f" ({forget.names[row]})" if isinstance(forget, Embeddings) else ""
        where = _WHERE[contrast]
        raise Refusal(op, "forget", f"must not lie {where}, got row {row}{label} there")
    return rows, contrast, weights


def less_keep(f: Tensor, k: Tensor | None, contrast: str) -> Tensor:
    """Rows f [m, d] less what the contrast takes of k [m_k, d]."""
    return _less(f, k, contrast)[0]


def _less(f: Tensor, k: Tensor | None, contrast: str) -> tuple[Tensor, Tensor | None]:
    """What `less_keep` gives, and the weights [m, m_k] of a hull's nearest mixtures."""
    if contrast == "none" or k is None:
        return f, None
    if contrast == "mean":
        return f - k.mean(0), None
    if contrast == "neighbours":
        nearest = (f @ k.T).topk(min(NEIGHBOURS, len(k)), dim=1).indices
        return torch.stack(
            [row - k[near].mean(0) for row, near in zip(f, nearest, strict=True)]
        ), None
    if contrast == "hull":
        weights = torch.stack([nearest_mixture(row, k) for row in f])
        return torch.stack([row - of @ k for row, of in zip(f, weights, strict=True)]), weights
    basis, _, _ = row_basis(k, 1e-6)
    for _ in range(2):  # the second pass takes out the rounding of the first
        f = f - f @ basis.T @ basis
    return f, None


def ridge_less(f: Tensor, k: Tensor, weight: float) -> Tensor:
    """`f (I + weight k^T k)^-1`: rows f [m, d] less what k [m_k, d] has of them, softly.

    By the smaller of two equal systems. That is also the sound one: of more rows than dimensions
    the m_k x m_k system is nearly singular.
    """
    eye = torch.eye(min(k.shape), dtype=k.dtype, device=k.device)
    if len(k) <= k.shape[1]:
        return f - weight * torch.linalg.solve(eye + weight * k @ k.T, k @ f.T).T @ k
    return torch.linalg.solve(eye + weight * k.T @ k, f.T).T


def row_basis(rows: Tensor, tol: float) -> tuple[Tensor, Tensor, int]:
    """Orthonormal basis of `rows`, strongest first; all singular values; how many exceed tol."""
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    found = int((singular > tol * singular[0]).sum())
    return right[:found], singular, found
