"""The operators in plain torch: what they must compute, and how close they must come.

Tests, benchmarks and users hold the kernels against this. Everything but `plain` runs in float64,
whatever comes in, and keeps to torch's own functions. For float64 features the kernels and this
reference have the same precision, which the second part of `tolerance` covers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

MOSTLY_ERASED = 1e-3  # of a row's length: the direction of what is left is noise below this


def _wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().double() for t in tensors]


def _per_row(strength: Tensor | None, x: Tensor) -> Tensor | float:
    """Strength so that it multiplies x [..., d] row by row."""
    if strength is None:
        return 1.0
    return strength if strength.dim() == 0 else strength.reshape(*x.shape[:-1], 1)


def _update(
    x: Tensor, read: Tensor, write: Tensor, offset: Tensor | None, strength: Tensor | None
) -> Tensor:
    dots = x @ read.T
    return x - _per_row(strength, x) * ((dots if offset is None else dots - offset) @ write)


def project(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Tensor:
    """`clipproj.ops.project` in float64."""
    out = _update(*_wide(x, read, write, offset, strength))
    return functional.normalize(out, dim=-1) if normalize else out


def fold(
    weight: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    dim: int,
) -> Tensor:
    """What `clipproj.ops.fold_` leaves in the weight, in float64."""
    return project(weight.movedim(dim, -1), read, write, offset, strength).movedim(-1, dim)


def projected_norm(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
) -> Tensor:
    """`clipproj.ops.projected_norm` in float64."""
    return torch.linalg.vector_norm(project(x, read, write, offset, strength), dim=-1)


def plain(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Tensor:
    """What one would write without this package: the update by torch's kernels, in x's dtype."""
    factors = [None if t is None else t.to(x.dtype) for t in (read, write, offset, strength)]
    out = _update(x, *factors)
    return functional.normalize(out, dim=-1) if normalize else out


def tolerance(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Tensor:
    """How far each element of `ops.project(...)` may lie from `project(...)`: `[..., d]` float64.

    Twice the largest error of `plain` in the row, plus
    `4 eps sqrt(d + k) (|x| + s (|x| |read^T| + |c|) |write|)`, divided by the row's length when
    normalising. eps is that of the type which accumulates, float32 for half types: their one
    rounding, at the store, is what `plain` does at least once. Rows that lose more than 99.9 % of
    their length have no bound when normalising (inf); check that they are finite and of length 1.
    """
    options = {"offset": offset, "strength": strength, "normalize": normalize}
    reference = project(x, read, write, **options)
    torch_error = (plain(x, read, write, **options).double() - reference).abs()
    torch_error = torch_error.nan_to_num(0, 0)  # float16's zero rows: no excuse for NaN or inf
    eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    wide_x, wide_read, wide_write, wide_offset, wide_strength = _wide(
        x, read, write, offset, strength
    )
    dots = wide_x.abs() @ wide_read.abs().T
    if wide_offset is not None:
        dots = dots + wide_offset.abs()
    scale = _per_row(wide_strength, wide_x)
    magnitude = wide_x.abs() + (scale if isinstance(scale, float) else scale.abs()) * (
        dots @ wide_write.abs()
    )
    k, d = read.shape
    bound = 4 * eps * (d + k) ** 0.5 * magnitude
    if normalize:
        before = torch.linalg.vector_norm(wide_x, dim=-1, keepdim=True)
        after = projected_norm(x, read, write, offset, strength).unsqueeze(-1)
        bound = bound / after.clamp_min(1e-12)
        bound = bound.masked_fill(after < MOSTLY_ERASED * before, torch.inf)
    return 2 * torch_error.amax(-1, keepdim=True) + bound


def _by_projector(
    function: Callable[..., Tensor],
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    spans: Tensor,
    index: Tensor,
    strength: Tensor | None,
    **options: bool,
) -> Tensor:
    """function of the rows of each projector, with its own slice of the bank."""
    flat = x.reshape(index.shape[0], x.shape[-1])
    out = flat.new_zeros(flat.shape, dtype=torch.float64)
    for j in index.unique().tolist():
        rows = index == j
        start, rank = (0, 0) if j < 0 else spans[j].tolist()
        own = slice(start, start + rank)
        out[rows] = function(
            flat[rows],
            read[own],
            write[own],
            None if offset is None else offset[own],
            strength if strength is None or strength.dim() == 0 else strength[rows],
            **options,
        )
    return out.view(x.shape)


def project_rows(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    spans: Tensor,
    index: Tensor,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Tensor:
    """`clipproj.ops.project_rows` in float64."""
    bank = read, write, offset, spans, index, strength
    return _by_projector(project, x, *bank, normalize=normalize)


def tolerance_rows(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    spans: Tensor,
    index: Tensor,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Tensor:
    """`tolerance` for `ops.project_rows(...)`: of each row, with its own projector's rank."""
    bank = read, write, offset, spans, index, strength
    return _by_projector(tolerance, x, *bank, normalize=normalize)
