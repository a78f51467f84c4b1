"""CCUP, Consistent Class Unlearning Projection: arXiv 2512.14137's objective, solved exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from clipproj.methods.contrast import SPAN_UP_TO, ridge_less
from clipproj.methods.inputs import above_zero, at_least_zero, forget_and_keep, provenance
from clipproj.methods.method import Method, Option, Setting, Task
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal


def ccup(
    forget: Embeddings | Tensor,
    keep: Embeddings | Tensor,
    forget_weight: float = 10.0,
    keep_weight: float = 100.0,
    strength: float = 1.0,
    side: str = "image",
) -> Projector:
    """The minimiser M of `|M - I|^2 + lam |M F|^2 + mu |M K - K|^2` (Frobenius norms).

    F and K hold the forgotten and kept texts as columns. The minimiser is `M = I - F V^T` with

        V = lam B (I + lam F^T B)^-1,   B = F - mu K (I + mu K^T K)^-1 K^T F,

    so only an m_f x m_f and an m_k x m_k system are solved (d x d where there are more keeps than
    dimensions). M acts on texts; the same change of similarity on image features is M^T, rows
    `z' = z - (z F) V^T`.

    Args:
        forget, keep: [m, d], any row lengths.
        forget_weight: lam > 0; larger forgets more.
        keep_weight: mu >= 0; larger moves kept texts less. With 0 and one text it is the partial
            projection of strength lam / (1 + lam).
        strength: in [0, 1]; above, rows get longer (2.2 times at 2).
        side: "image" or "text", whose features the projector edits.

    Returns:
        An oblique Projector of rank m_f.

    Raises:
        ValueError: for NaN, inf or zero rows, for texts on both lists, for weights out of range.

    Example:
        >>> forget, keep = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> p = clipproj.ccup(forget, keep)
        >>> p(keep)  # kept texts do not move
        tensor([[0., 1.]])
    """
    if keep is None:
        raise Refusal("ccup", "keep", "must be Embeddings or a tensor [m, d], got None")
    f, k = forget_and_keep("ccup", forget, keep)
    if len(f) > f.shape[1]:
        raise Refusal("ccup", "forget", f"must be [m, d] with m <= d, got {list(f.shape)}")
    forget_weight = above_zero("ccup", "forget_weight", forget_weight)
    keep_weight = at_least_zero("ccup", "keep_weight", keep_weight)

    v = pull(f, k, forget_weight, keep_weight)
    parameters = {"forget_weight": forget_weight, "keep_weight": keep_weight}
    history = provenance("ccup", parameters, forget, keep)
    read, write = (f, v) if side == "image" else (v, f)
    return Projector(read, write, strength=strength, side=side, provenance=history, forget=f)


def pull(f: Tensor, k: Tensor | None, lam: float, mu: float) -> Tensor:
    """V^T [m_f, d] of the formula, from rows f [m_f, d] and k [m_k, d].

    What a text has of the forgotten ones and not of the kept.
    """
    b = f if k is None else ridge_less(f, k, mu)
    eye = torch.eye(len(f), dtype=f.dtype, device=f.device)
    return torch.linalg.solve(eye + lam * f @ b.T, lam * b)


def make(task: Task, forget_weight: float = 10.0, keep_weight: float | None = None) -> Projector:
    """`ccup` of names; above 16 names a keep_weight of 100 would protect the class with them."""
    if keep_weight is None:
        keep_weight = 100.0 if len(task.keep) <= SPAN_UP_TO else 1.0
    return ccup(task.forget, task.keep, forget_weight, keep_weight, side=task.side)


METHOD = Method(
    "ccup",
    "moves forgotten texts to nothing and kept ones as little as their weights say",
    make,
    options=(
        Option("forget_weight", float, "lambda; larger forgets more", "10", above=0),
        Option(
            "keep_weight", float, "mu; larger moves kept texts less",
            "100, above 16 kept names 1", low=0,
        ),
    ),
    paper="arXiv 2512.14137",
    settings=(
        Setting(
            "ccup", "the full objective of 2512.14137, lambda 10, mu by the default rules"
        ),
    ),
)  # fmt: skip
