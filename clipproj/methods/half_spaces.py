"""One-sided edits: the half-spaces that a row may not leave, in the metric of what is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj import ops
from clipproj.methods.contrast import ridge_less
from clipproj.methods.hull import nearest_mixture
from clipproj.methods.inputs import number
from clipproj.refusal import Refusal

MOST = 256  # half-spaces of one edit: what the operators solve for a row
ALIKE = 1 - 1e-4  # cosine from which two contrasts share a half-space
FLOOR = 1e-6  # smallest eigenvalue of a gram matrix that float32 still tells from a singular one
# Sums over some thousand products of unit rows in float32, with room for contrasts as short as near
# synonyms have; and what a bounded solve leaves, for each of k half-spaces. Of 1, 100 and 256 names
# of ViT-B/32 clipproj.certificate needs 7e-6, 1.1e-4 and 4.1e-4 of both.
_SUMS, _SOLVE = 1e-4, 1.3e-6
# How much longer rows become by thresholds below 0, times the root of k: in bfloat16, where these
# are lowest, 1.3 % of one name and 25 % of 256 are proven.
_BELOW = 0.016
_ROUNDOFF = {  # half a unit in the last place of a number just above a power of two, relative
    torch.float64: 2.0**-24,  # factors are float32
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
_SIGMA = re.compile(r"\s*([^\s]+?)\s*sigma\s*")


@dataclass(frozen=True, eq=False)
class HalfSpaces:
    """Rows z with `z read^T <= offset`, and the least change that brings a row among them.

    `z' = z - a write` with `a = argmin_{a >= 0} 1/2 a gram a^T - a (z read^T - offset)`.

    Attributes:
        read, write: [k, d] float32; write is `read M`.
        gram: [k, k] float32, `read write^T` of what is stored: symmetric, its diagonal 1.
        offset: [k] float32.
        shared: the numbers of contrasts that one half-space stands for, of those that are several.
        lowered: by how much each of these lies below the lowest threshold of its contrasts.
        smallest: the smallest eigenvalue of gram.
        longest: the length up to which edited rows of length 1 are reckoned with.
        margin: by how much thresholds are lower than asked for, for rows as stored; 0 without.
    """

    read: Tensor
    write: Tensor
    gram: Tensor
    offset: Tensor
    shared: tuple[tuple[int, ...], ...]
    lowered: tuple[float, ...]
    smallest: float
    longest: float
    margin: float


def half_spaces(
    op: str,
    rows: Tensor,
    thresholds: Tensor,
    keep: Tensor | None,
    keep_weight: float,
    names: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> HalfSpaces:
    """The half-spaces `{z : z r_i <= tau_i}` of unit contrasts r_i, in the metric of what is kept.

    With `M = metric(keep, keep_weight)` and lengths `l_i = sqrt(r_i M r_i^T)`:

        read = r_i / l_i,    write = read M,    gram = read write^T,    offset = tau_i / l_i

    so the edit is the projection on all of them in the norm of M^-1, in which directions that tell
    kept texts apart are long. Contrasts that are nearly one (cosine above 1 - 1e-4) would make the
    gram matrix singular. They share a half-space, along their mean, whose threshold is low enough
    for each of them: what is left of r_i across it has at most the longest row's length of its own
    in a row.

    Args:
        rows: [m, d] float64, unit contrasts.
        thresholds: [m] float64, tau.
        keep: [n, d] float64, or None for M = I.
        keep_weight: mu >= 0; 0 for M = I.
        names: what the rows are called in errors.
        dtype: that edited rows are stored in, where they must not pass the thresholds then either;
            None for thresholds as they are.

    Raises:
        ValueError: in the name of `op`, for more than 256 half-spaces, for contrasts that
            contradict one another or are mixtures of one another.
    """
    groups = _groups(rows)
    if len(groups) > MOST:
        raise Refusal(
            op,
            "forget",
            f"must be at most {MOST} names one-sided, got {len(groups)}; leave one_sided out for "
            "the linear edit, which takes any number",
        )
    ways = torch.stack([_way(rows[list(group)]) for group in groups])
    along = (rows * ways[_place(groups)]).sum(1)
    across = torch.linalg.vector_norm(rows - along[:, None] * ways[_place(groups)], dim=1)
    across[[group[0] for group in groups if len(group) == 1]] = 0.0
    written = metric_rows(ways, keep, keep_weight)
    lengths = (ways * written).sum(1).sqrt()
    read, write = (ways / lengths[:, None]).float(), (written / lengths[:, None]).float()
    gram = read.double() @ write.double().T
    gram = ((gram + gram.T) / 2).float().fill_diagonal_(1.0)
    smallest = float(torch.linalg.eigvalsh(gram.double())[0])
    if smallest < FLOOR:
        _refuse_dependent(op, ways, [group[0] for group in groups], names, keep_weight)
    longest = bend(read.double(), write.double(), gram.double())
    longest *= 1 + _BELOW * len(gram) ** 0.5
    below = 0.0 if dtype is None else longest * _ROUNDOFF[dtype] + _SUMS + _SOLVE * len(gram)
    needed = (thresholds - below - longest * across) / along
    tau = torch.stack([needed[list(group)].min() for group in groups])
    offset = (tau / lengths).float()
    _check_solved(op, read, write, offset, gram)
    several = [i for i, group in enumerate(groups) if len(group) > 1]
    return HalfSpaces(
        read,
        write,
        gram,
        offset,
        tuple(groups[i] for i in several),
        tuple(float(thresholds[list(groups[i])].min() - below - tau[i]) for i in several),
        smallest,
        longest,
        below,
    )


def metric_rows(rows: Tensor, keep: Tensor | None, keep_weight: float) -> Tensor:
    """`rows M` with `M = (I + mu Kc^T Kc)^-1`, Kc being keep less its mean; all float64.

    M is short along what tells kept texts apart: writing there is expensive.
    """
    if keep is None or keep_weight == 0:
        return rows
    return ridge_less(rows, keep - keep.mean(0), keep_weight)


def oblique(basis: Tensor, keep: Tensor | None, keep_weight: float) -> Tensor:
    """What is written so that rows read 0 along `basis`, by the least change in the metric of keep.

    `(R M R^T)^-1 R M` for orthonormal rows R [k, d] float64: the half-spaces' bounds as equations.
    """
    written = metric_rows(basis, keep, keep_weight)
    return torch.linalg.solve(basis @ written.T, written)


def bend(read: Tensor, write: Tensor, gram: Tensor) -> float:
    """How long unit rows can become that are brought onto the borders of half-spaces through 0.

    Such an edit, a = argmin 1/2 a G a^T - a e of any of them, is an oblique projection along a W
    that reads a R, as long as the largest `|a R| |a W| / a G a^T`: at most that of x + y over 2 for
    the root of x y, at the weight of the two that suits best.

    Args:
        read, write: [k, d] float64. gram: [k, k], positive definite.

    Returns:
        A number, 1 or more.
    """
    root = torch.linalg.cholesky(gram)
    reads, writes = read @ read.T, write @ write.T
    least = (widest(reads, root) / widest(writes, root)) ** 0.5
    weights = least * torch.logspace(-1, 1, 41, dtype=torch.float64, device=root.device)
    return max(1.0, min(widest(w * writes + reads / w, root) / 2 for w in weights))


def widest(form: Tensor, root: Tensor) -> float:
    """The largest `a form a^T / a G a^T` of a symmetric form [k, k], G by its Cholesky root."""
    half = torch.linalg.solve_triangular(root, form, upper=False)
    both = torch.linalg.solve_triangular(root, half.T, upper=False)
    return float(torch.linalg.eigvalsh((both + both.T) / 2)[-1])


def storage_dtype(op: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype, if it is one of rows that a margin is known for. ValueError for another."""
    if dtype not in _ROUNDOFF:
        told = ", ".join(str(one) for one in _ROUNDOFF)
        raise Refusal(op, "dtype", f"must be one of {told}, got {dtype}")
    return dtype


def thresholds(
    op: str, value: float | str, rows: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """tau of each unit contrast [m, d], and sigma [m] where the value is in units of it.

    Args:
        value: a number in [-1, 1], also as text, or "0.5 sigma": so many standard deviations of
            what kept texts read.
    """
    words = _SIGMA.fullmatch(value) if isinstance(value, str) else None
    try:
        said = number(op, "threshold", float(words[1] if words else value))
    except ValueError:
        said = float("nan")
    if words is not None and keep is None:
        raise Refusal(op, "threshold", f"must be a number without keep, got {value!r}")
    sigma = (rows @ keep.T).std(1, correction=0) if words and keep is not None else None
    tau = torch.full_like(rows[:, 0], said) if sigma is None else said * sigma
    if not (tau.abs() <= 1).all():  # NaN too
        why = 'must be a number in [-1, 1] or one of sigmas such as "0.5 sigma"'
        raise Refusal(op, "threshold", f"{why}, got {value!r:.80}")
    return tau, sigma


def _groups(rows: Tensor) -> list[tuple[int, ...]]:
    """Row numbers by what shares a half-space: rows that a chain of near copies joins."""
    near = rows @ rows.T > ALIKE
    near.fill_diagonal_(True)
    label = torch.arange(len(rows), device=rows.device)
    while True:
        least = torch.where(near, label, len(rows)).amin(1)
        if torch.equal(least, label):
            break
        label = least
    return [tuple((label == one).nonzero().flatten().tolist()) for one in label.unique()]


def _way(rows: Tensor) -> Tensor:
    """The unit row that stands for those of a group: itself, bit for bit, where it is alone."""
    return rows[0] if len(rows) == 1 else F.normalize(rows.mean(0), dim=0)


def _place(groups: list[tuple[int, ...]]) -> list[int]:
    """For each row the number of its group."""
    where = {row: i for i, group in enumerate(groups) for row in group}
    return [where[row] for row in range(len(where))]


def _check_solved(op: str, read: Tensor, write: Tensor, offset: Tensor, gram: Tensor) -> None:
    """Refusal of half-spaces so nearly opposed that the operators' solver comes to no end.

    Asked of the solver itself: rows along what is read and written, and mixtures of these at
    random, which between nearly opposed half-spaces it leaves as NaN by the dozen.
    """
    read, write, offset, gram = (one.cpu() for one in (read, write, offset, gram))
    generator = torch.Generator().manual_seed(0)
    mixtures = torch.randn(256, len(read), generator=generator, dtype=torch.float32, device="cpu")
    rows = F.normalize(torch.cat([read, -read, write, -write, mixtures @ read]), dim=1)
    if ops.project(rows, read, write, offset, gram=gram).isnan().any():
        why = "must not nearly contradict one another: no row is within reach of being harmless"
        raise Refusal(op, "forget", f"{why} to all {len(read)} of them")


def _refuse_dependent(
    op: str, ways: Tensor, rows: list[int], names: Sequence[str] | None, keep_weight: float
) -> NoReturn:
    """The error of half-spaces whose gram matrix is singular, by what makes it so."""
    values, vectors = torch.linalg.eigh(ways @ ways.T)
    if values[0] > 2 * FLOOR:
        why = "must be smaller: in its metric some names are told apart by the same"
        raise Refusal(op, "keep_weight", f"{why}, got {keep_weight:g}")
    weights = nearest_mixture(torch.zeros_like(ways[0]), ways)
    if torch.linalg.vector_norm(weights @ ways) < FLOOR**0.5:
        why = "must not contradict one another: what one is told apart by is what others lack"
    else:
        weights = vectors[:, 0].abs()
        why = "must each be told apart by something of its own"
    involved = [rows[i] for i in (weights > 0.1 * weights.max()).nonzero().flatten().tolist()]
    told = involved if names is None else [names[i] for i in involved]
    raise Refusal(op, "forget", f"{why}, got {'rows' if names is None else 'names'} {told}")
