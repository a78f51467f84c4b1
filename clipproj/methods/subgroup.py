"""Forget a subgroup and keep its parent: arXiv 2506.03117's three stages in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipproj.methods.inputs import (
    above_zero,
    apart,
    at_least_zero,
    one_model,
    provenance,
    unit_rows,
)
from clipproj.methods.method import Method, Option, Task
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

_TOL = 1e-4  # directions with a singular value below it, relative, are rounding
_RATIO = 2.0  # prompts in 80 templates: the subgroup's directions have 3 to 10, others below 2
_EPS = 1e-12  # energy of a direction that nothing kept has


def subgroup(
    forget: Embeddings | Tensor,
    parent: Embeddings | Tensor,
    *,
    features_forget: Tensor | None = None,
    features_keep: Tensor | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    ratio: float | None = None,
    ridge: float = 1.0,
    strength: float = 1.0,
    side: str = "image",
) -> Projector:
    """Forget one kind (marmoset) of a class (monkey) whose other kinds stay.

    1. *Forgetting.* Candidate directions are the right singular vectors u_i of forget minus the
       mean of parent. Those stay whose relative energy, the linear layer's relative Fisher,

           rho_i = mean_f (z . u_i)^2 / mean_k (z . u_i)^2

       exceeds `ratio`; z are features of both kinds when both are given, else the texts of forget
       and of parent. Their rows are U [k, d], and P = I - U^T U.
    2. *Reminding*, with features_keep Z. The edit P W has

           W = argmin |Z P W - Z|^2 + |F P W - F P|^2 + nu |W - I|^2
             = I + C U,   C = (Y^T Y + nu I)^-1 Y^T [Z U^T; 0],   Y = [Z P; F P]:

       kept rows return to where they were, forgotten ones F (features_forget, or the texts without
       them; weighted to count as much as Z does) stay where P put them. What Z has lost is
       Z U^T U, so W - I writes along U alone, and P C = C because Y U^T = 0: with
       read = U - C^T and write = U the whole edit, found without a d x d unknown, has the rank k
       of step 1 and is an oblique projector, read write^T = I.
    3. *Restoring.* The soup of edited and original weights, s P W + (1 - s) I, is strength s.

    Texts alone give steps 1 and 3, a symmetric projector; for one row it is that of `nullspace`
    with contrast "mean".

    Args:
        forget: [m, d] texts of the subgroup: names, synonyms or prompts; any row lengths.
        parent: [p, d] texts of the siblings, of the parent, or of both; their mean stands for the
            parent. With siblings the mean leaves less of the subgroup than one word does. One row
            is enough only with features of both: a text's energy relative to it is always about 1.
        features_forget: [n_f, d] features of the tower that `side` names, of the subgroup; only
            together with features_keep.
        features_keep: [n_k, d] the same of what must stay, siblings above all.
        statistics: (mean [d], std [d]) of unit features of a larger kept set: features_keep, a
            sample of few kinds, are shifted and scaled to them per dimension before step 2.
        ratio: relative energy that a direction must exceed, at least 0; 1 is as much in kept rows.
            None: 2, which leaves out what templates add, or, when none has that, 1 for the best
            direction alone.
        ridge: above 0, nu in units of the kept rows' mean energy per dimension, n_k / d. Smaller
            brings kept rows closer and, with few features_forget, some of the subgroup back.
        strength: in [0, 1]; up to 2 without features_keep.
        side: "image" or "text", whose features the projector edits.

    Returns:
        A Projector of rank k <= m; its provenance tells the relative energies, strongest singular
        value first.

    Raises:
        TypeError, ValueError: for NaN, inf or zero rows, other widths, embeddings of another
            model, a forget row equal to a parent row or to their mean, options out of range,
            features_forget or statistics without features_keep, one parent row without features.
        ValueError: when no direction exceeds `ratio`, or those that do span everything.
    """
    op = "subgroup"
    f = unit_rows(op, "forget", forget)
    q = _like(op, "parent", parent, f)
    _check_texts(op, forget, parent, f, q)
    ratio = None if ratio is None else at_least_zero(op, "ratio", ratio)
    ridge = above_zero(op, "ridge", ridge)
    for name, value in (("features_forget", features_forget), ("statistics", statistics)):
        if value is not None and features_keep is None:
            raise Refusal(op, "features_keep", f"must be given with {name}, got None")
    zf = None if features_forget is None else _like(op, "features_forget", features_forget, f)
    zk = None if features_keep is None else _like(op, "features_keep", features_keep, f)
    if zf is None and len(q) == 1:
        raise Refusal(
            op,
            "parent",
            "must have at least 2 rows, such as the siblings', without features of both, got 1",
        )
    if statistics is not None and zk is not None:
        zk = _aligned(op, zk, statistics)

    rows = f - q.mean(0)
    _, singular, candidates = torch.linalg.svd(rows, full_matrices=False)
    candidates = candidates[singular > _TOL * singular[0]]
    gone, kept = (f, q) if zf is None or zk is None else (zf, zk)
    energy = _energy(gone, candidates) / (_energy(kept, candidates) + _EPS)
    best, least = float(energy.max()), ratio
    if least is None:
        least = _RATIO if best > _RATIO else 1.0
    chosen = energy > least
    if ratio is None and best <= _RATIO:
        chosen &= energy == best
    u = candidates[chosen]
    if not len(u):
        raise Refusal(
            op,
            "ratio",
            f"must be below the largest relative energy of a direction, {best:.3g}, "
            f"got {least:g}; the texts of forget do not tell it from what is kept",
        )
    if len(u) == f.shape[1]:
        raise Refusal(
            op,
            "ratio",
            f"must leave something of the {len(u)} dimensions, got {least:g}, which "
            "every one exceeds",
        )
    parameters = {
        "ratio": least,
        "kept_directions": len(u),
        "energies": [round(value, 6) for value in energy.tolist()],
        "energies_of": "texts" if zf is None else "features",
    }
    read = None
    if zk is not None:
        read = u - _reminder(zk, f if zf is None else zf, u, ridge).T
        parameters |= {"ridge": ridge, "features_keep": len(zk), "aligned": statistics is not None}
        parameters["features_forget"] = 0 if zf is None else len(zf)
    history = provenance(op, parameters, forget, parent)
    read, write = (u, None) if read is None else (read, u)
    return Projector(read, write, strength=strength, side=side, provenance=history, forget=f)


def _reminder(kept: Tensor, gone: Tensor, u: Tensor, ridge: float) -> Tensor:
    """C [d, k]: what rows without their part along u tell of that part, were they kept ones."""
    weight = math.sqrt(len(kept) / len(gone))
    x = torch.cat([kept, weight * gone])
    x = x - x @ u.T @ u
    part = torch.cat([kept @ u.T, gone.new_zeros(len(gone), len(u))])
    nu = ridge * float(kept.square().sum()) / kept.shape[1]
    c = _ridge(x, part, nu)
    return c - u.T @ (u @ c)  # 0 but for rounding


def _ridge(x: Tensor, y: Tensor, nu: float) -> Tensor:
    """argmin_c |x c - y|^2 + nu |c|^2, by the smaller of two equal systems."""
    eye = torch.eye(min(x.shape), dtype=x.dtype, device=x.device)
    if len(x) <= x.shape[1]:
        return x.T @ torch.linalg.solve(x @ x.T + nu * eye, y)
    return torch.linalg.solve(x.T @ x + nu * eye, x.T @ y)


def _energy(rows: Tensor, directions: Tensor) -> Tensor:
    return (rows @ directions.T).square().mean(0)


def _aligned(op: str, rows: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
    """Rows with the given mean and standard deviation in each dimension."""
    if not isinstance(statistics, tuple) or len(statistics) != 2:
        got = type(statistics).__name__
        raise TypeError(f"{op}: statistics must be a tuple (mean, std), got {got}")
    for name, value in zip(("mean", "std"), statistics, strict=True):
        if not isinstance(value, Tensor) or value.shape != rows.shape[1:]:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise Refusal(op, "statistics", f"must have a {name} [{rows.shape[1]}], got {got}")
        if not value.isfinite().all() or (name == "std" and (value < 0).any()):
            kind = "finite" if name == "mean" else "finite and at least 0"
            raise Refusal(op, "statistics", f"must have a {name} that is {kind}, got another")
    if len(rows) < 2:
        raise Refusal(op, "features_keep", "must have at least 2 rows with statistics, got 1")
    mean, std = (value.to(rows) for value in statistics)
    own = rows.std(0)
    scale = torch.where(own > _TOL * own.max(), std / own, 1)  # a constant has nothing to scale
    return (rows - rows.mean(0)) * scale + mean


def _like(op: str, name: str, value: Embeddings | Tensor, f: Tensor) -> Tensor:
    """Unit rows of `value`, of the width and on the device of those to forget."""
    rows = unit_rows(op, name, value).to(f.device)
    if rows.shape[1] != f.shape[1]:
        raise Refusal(op, name, f"must be [n, {f.shape[1]}] as forget is, got {list(rows.shape)}")
    return rows


def _check_texts(
    op: str, forget: Embeddings | Tensor, parent: Embeddings | Tensor, f: Tensor, q: Tensor
) -> None:
    one_model(op, "parent", parent, forget)
    apart(op, "parent", q, f)
    inside = (torch.linalg.vector_norm(f - q.mean(0), dim=1) < _TOL).nonzero()
    if len(inside):
        row = int(inside[0])
        raise Refusal(op, "forget", f"must differ from the mean of parent, got row {row} there")


def make(task: Task, ratio: float | None = None) -> Projector:
    """`subgroup` of names alone: the kept ones are the siblings."""
    return subgroup(task.forget, task.keep, ratio=ratio, side=task.side)


METHOD = Method(
    "subgroup",
    "forgets one kind of a class whose other kinds, the kept names, stay",
    make,
    options=(
        Option(
            "ratio", float, "energy that a direction must have, relative to the kept names",
            "2, or the best direction alone", low=0,
        ),
    ),
    symmetric=True,
    paper="arXiv 2506.03117",
    settings=(),  # of one name it is "nullspace, mean"
)  # fmt: skip
