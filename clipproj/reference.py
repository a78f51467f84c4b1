"""The operators in plain torch: what they must compute, and how close they must come.

Tests, benchmarks and users hold the kernels against this. Everything but `plain` runs in float64,
whatever comes in, and keeps to torch's own functions. For float64 features the kernels and this
reference have the same precision, which the second part of `tolerance` covers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipproj.refusal import Refusal

MOSTLY_ERASED = 1e-3  # of a row's length: the direction of what is left is noise below this


def _wide(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.detach().double() for t in tensors]


def _per_row(strength: Tensor | None, x: Tensor) -> Tensor | float:
    """Strength so that it multiplies x [..., d] row by row."""
    if strength is None:
        return 1.0
    return strength if strength.dim() == 0 else strength.reshape(*x.shape[:-1], 1)


def _update(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    gram: Tensor | None,
) -> Tensor:
    dots = x @ read.T
    excess = dots if offset is None else dots - offset
    taken = excess if gram is None else solve(excess.double(), gram.double()).to(x.dtype)
    return x - _per_row(strength, x) * (taken @ write)


def solve(excess: Tensor, gram: Tensor) -> Tensor:
    """The a >= 0 with the least `a gram a / 2 - a excess`, row by row: what a one-sided update
    takes out.

    Coordinate ascent, as csrc/cpu/solve.inl does it but for its end: until nothing moves in
    float64, or the coefficients that are not 0 are those of the solution, as equations then tell.

    Args:
        excess: [..., k] float64. gram: [k, k] float64, symmetric, positive definite, with a
            diagonal of 1.

    Raises RuntimeError should it not end in 100 000 sweeps: gram is nearly singular.
    """
    rest, a = excess.clone(), torch.zeros_like(excess)
    finite = excess[excess.isfinite()]
    least = 1e-15 * float(finite.abs().max()) if len(finite) else 0.0
    for sweep in range(100_000):
        if sweep % 8 == 7 and (found := _by_equations(excess, gram, a)) is not None:
            return found
        moved = 0.0
        for i in range(excess.shape[-1]):
            step = torch.maximum(rest[..., i], -a[..., i])
            a[..., i] += step
            rest -= step.unsqueeze(-1) * gram[i]
            moved = max(moved, float(step.abs().nan_to_num(0, 0).max()) if len(finite) else 0.0)
        if moved <= least:
            return a
    raise RuntimeError("solve: gram must be positive definite, got one that is nearly singular")


def _by_equations(excess: Tensor, gram: Tensor, a: Tensor) -> Tensor | None:
    """The solution whose coefficients above 0 are those of `a`; None where one row has none such.

    Rows with a NaN or inf stay as `a` has them.
    """
    k, flat, out = len(gram), excess.reshape(-1, len(gram)), a.reshape(-1, len(gram)).clone()
    eye = torch.eye(k, dtype=gram.dtype, device=gram.device)
    for first in range(0, len(flat), 256):  # k^2 numbers a row
        rows = slice(first, first + 256)
        own = flat[rows]
        active = out[rows] > 0
        both = active[:, :, None] & active[:, None, :]
        found = torch.linalg.solve(torch.where(both, gram, eye), torch.where(active, own, 0.0))
        least = 1e-14 * own.abs().amax(1, keepdim=True)
        solved = ((found >= 0) & (own - found @ gram <= least)).all(1)
        finite = own.isfinite().all(1)
        if not bool((solved | ~finite).all()):
            return None
        out[rows] = torch.where(finite[:, None], found, out[rows])
    return out.reshape(a.shape)


def project(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    gram: Tensor | None = None,
) -> Tensor:
    """`clipproj.ops.project` in float64."""
    out = _update(*_wide(x, read, write, offset, strength, gram))
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
    *,
    gram: Tensor | None = None,
) -> Tensor:
    """`clipproj.ops.projected_norm` in float64."""
    return torch.linalg.vector_norm(project(x, read, write, offset, strength, gram=gram), dim=-1)


def plain(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    gram: Tensor | None = None,
    clamps: bool = False,
) -> Tensor:
    """What one would write without this package: the update by torch's kernels, in x's dtype.

    Also in place of the operator where there are only those, such as in ONNX: with gram of one
    direction, or `clamps`, which says that gram is diagonal, a matrix product, a relu and another.

    Raises ValueError where a graph is made and gram is another, whose solution takes loops.
    """
    read, write = read.to(x.dtype), write.to(x.dtype)
    offset, strength = (None if t is None else t.to(x.dtype) for t in (offset, strength))
    if gram is not None and (clamps or len(gram) == 1):
        excess = x @ read.T if offset is None else x @ read.T - offset
        out = x - _per_row(strength, x) * (functional.relu(excess) @ write)
    elif gram is not None and type(x) is not Tensor:  # of a graph
        why = "must be diagonal (clamps=True) or of one direction in a graph"
        raise Refusal("plain", "gram", f"{why}, got {list(gram.shape)}")
    else:
        gram = None if gram is None else gram.to(x.dtype)
        out = _update(x, read, write, offset, strength, gram)
    return functional.normalize(out, dim=-1) if normalize else out


def tolerance(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    gram: Tensor | None = None,
) -> Tensor:
    """How far each element of `ops.project(...)` may lie from `project(...)`: `[..., d]` float64.

    Twice the largest error of `plain` in the row, plus
    `4 eps sqrt(d + k) (|x| + s (|x| |read^T| + |c|) |write|)`, divided by the row's length when
    normalising. eps is that of the type which accumulates, float32 for half types: their one
    rounding, at the store, is what `plain` does at least once. Rows that lose more than 99.9 % of
    their length have no bound when normalising (inf); check that they are finite and of length 1.
    With gram the second part also has what the kernels leave when they stop, and rounding goes
    through gram's inverse.
    """
    options: dict[str, Any] = {
        "offset": offset,
        "strength": strength,
        "normalize": normalize,
        "gram": gram,
    }
    reference = project(x, read, write, **options)
    bound = _rounding(x, read, write, **options)
    return _torch_error(plain(x, read, write, **options), reference) + bound


def _torch_error(out: Tensor, reference: Tensor) -> Tensor:
    """Twice the largest error of torch's own result in the row."""
    error = (out.double() - reference).abs().nan_to_num(0, 0)  # no excuse for NaN or inf
    return 2 * error.amax(-1, keepdim=True) if error.shape[-1] else 0 * error


def _eps(dtype: torch.dtype) -> float:
    """Of the type which accumulates."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def _least_eigenvalue(gram: Tensor | None) -> float:
    """By which the solution's error may exceed that of the excess; 1 where nothing is solved."""
    if gram is None or not gram.numel() or torch.equal(gram, gram.diag().diag()):
        return 1.0
    return float(torch.linalg.eigvalsh(gram.double())[0])


def _magnitude(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    gram: Tensor | None = None,
) -> Tensor:
    """`|x| + s (|x| |read^T| + |c|) |write|`, what the sums of the update may reach."""
    wide: list[Any] = [t if t is None else t.abs() for t in _wide(x, read, write, offset, strength)]
    dots = wide[0] @ wide[1].T if wide[3] is None else wide[0] @ wide[1].T + wide[3]
    least = _least_eigenvalue(gram)
    if least != 1:
        dots = torch.linalg.vector_norm(dots, dim=-1, keepdim=True).expand_as(dots) / least
    return wide[0] + _per_row(wide[4], wide[0]) * (dots @ wide[2])


STOP = 2.0**-10  # of the largest excess: kMove of csrc/solve.h


def _unsolved(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    gram: Tensor | None = None,
) -> Tensor:
    """How far the kernels' solution may move a row: each coefficient was the best one until others
    moved by at most `STOP`, and G is strongly convex.
    """
    if gram is None or x.dtype == torch.float64 or not gram.numel():
        return torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    wide = _wide(x, read, write, offset, strength, gram)
    dots = wide[0] @ wide[1].T if wide[3] is None else wide[0] @ wide[1].T - wide[3]
    largest = dots.nan_to_num(0, 0, 0).amax(-1, keepdim=True).clamp_min(0)
    beside = wide[5].abs().sum(1) - 1
    left = 2 * STOP * largest * torch.linalg.vector_norm(beside) / _least_eigenvalue(gram)
    return _per_row(wide[4], wide[0]) * left * torch.linalg.vector_norm(wide[2], dim=0)


def _rounding(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    gram: Tensor | None = None,
) -> Tensor:
    """The second part of `tolerance`."""
    k, d = read.shape
    factors = read, write, offset, strength, gram
    bound = 4 * _eps(x.dtype) * (d + k) ** 0.5 * _magnitude(x, *factors) + _unsolved(x, *factors)
    return _over_length(bound, x, read, write, offset, strength, gram) if normalize else bound


def _over_length(
    bound: Tensor,
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    gram: Tensor | None = None,
) -> Tensor:
    """A bound of projected rows as one of normalised rows."""
    before = torch.linalg.vector_norm(x.detach().double(), dim=-1, keepdim=True)
    after = projected_norm(x, read, write, offset, strength, gram=gram).unsqueeze(-1)
    bound = bound / after.clamp_min(1e-12)
    return bound.masked_fill(after < MOSTLY_ERASED * before, torch.inf)


def _by_projector(
    function: Callable[..., Tensor],
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    spans: Tensor,
    index: Tensor,
    strength: Tensor | None,
    gram: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """function of the rows of each projector, with its own slice of the bank."""
    flat = x.reshape(index.shape[0], x.shape[-1])
    out = flat.new_zeros(flat.shape, dtype=torch.float64)
    for j in index.unique().tolist():
        rows = index == j
        start, rank = (0, 0) if j < 0 else spans[j].tolist()
        own = slice(start, start + abs(rank))
        one_sided = {} if rank >= 0 or gram is None else {"gram": gram[own, : abs(rank)]}
        out[rows] = function(
            flat[rows],
            read[own],
            write[own],
            None if offset is None else offset[own],
            strength if strength is None or strength.dim() == 0 else strength[rows],
            **options,
            **one_sided,
        ).double()
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
    gram: Tensor | None = None,
) -> Tensor:
    """`clipproj.ops.project_rows` in float64."""
    bank = read, write, offset, spans, index, strength, gram
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
    gram: Tensor | None = None,
) -> Tensor:
    """`tolerance` for `ops.project_rows(...)`: of each row, with its own projector's rank."""
    bank = read, write, offset, spans, index, strength, gram
    return _by_projector(tolerance, x, *bank, normalize=normalize)


def _each(
    function: Callable[..., Tensor],
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    spans: Tensor | None,
    index: Tensor | None,
    gram: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """function of all rows, or with spans of the rows of each projector."""
    if spans is None or index is None:
        options |= {} if gram is None else {"gram": gram}
        return function(x, read, write, offset, strength, **options)
    bank = read, write, offset, spans, index, strength, gram
    return _by_projector(function, x, *bank, **options)


def _spread(
    y: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    gram: Tensor | None = None,
) -> Tensor:
    """How far rounding each element of y by one part may move the projected rows: roundings are
    independent, so their squares add up.
    """
    square = y.double().square()
    through = square @ (read.double().T @ write.double()).square()
    if gram is not None:  # of some directions alone, and through gram's inverse
        dots = square @ read.double().T.square() / _least_eigenvalue(gram) ** 2
        through = dots.sum(-1, keepdim=True) * write.double().square().sum(0)
    return (square + _per_row(strength, y) ** 2 * through).sqrt()


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    spans: Tensor | None = None,
    index: Tensor | None = None,
    gram: Tensor | None = None,
) -> Tensor:
    """`clipproj.ops.linear` in float64."""
    factors = read, write, offset, strength, spans, index, gram
    y = functional.linear(*_wide(x, weight, bias))
    return _each(project, y, *factors, normalize=normalize)


def linear_tolerance(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    spans: Tensor | None = None,
    index: Tensor | None = None,
    gram: Tensor | None = None,
) -> Tensor:
    """How far each element of `ops.linear(...)` may lie from `linear(...)`: `[..., d]` float64.

    As `tolerance`: twice the largest error in the row of torch's linear and `plain`, plus
    `4 eps sqrt(in + d + k)` of the magnitude of the chain, that of the update at
    `|x| |weight^T| + |bias|`; and for half types what one rounding of the product may do, which is
    all that the operator rounds before its store; with gram also what the kernels leave when they
    stop. Divided by the row's length when normalising.
    """
    factors = read, write, offset, strength, spans, index, gram
    product = functional.linear(x, weight, bias)
    torch_result = _each(plain, product, *factors, normalize=normalize).to(x.dtype)
    reference = linear(
        x, weight, bias, *factors[:4], normalize=normalize, spans=spans, index=index, gram=gram
    )

    y = functional.linear(*_wide(x, weight, bias))
    magnitudes: list[Any] = [t if t is None else t.abs() for t in _wide(x, weight, bias)]
    sums = functional.linear(*magnitudes)
    terms = x.shape[-1] + sum(read.shape)
    bound = 4 * _eps(x.dtype) * terms**0.5 * _each(_magnitude, sums, *factors)
    bound = bound + _each(_unsolved, product, *factors)
    if x.dtype.itemsize == 2:
        bound = bound + torch.finfo(x.dtype).eps * _each(_spread, y, *factors)
    if normalize:
        bound = bound * _each(_one_over_length, y, *factors)
    return _torch_error(torch_result, reference) + bound


def _one_over_length(
    y: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    gram: Tensor | None = None,
) -> Tensor:
    one = torch.ones_like(y, dtype=torch.float64)
    return _over_length(one, y, read, write, offset, strength, gram)


def logits(
    x: Tensor,
    classes: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    spans: Tensor | None = None,
    index: Tensor | None = None,
    gram: Tensor | None = None,
) -> Tensor:
    """`clipproj.ops.logits` in float64."""
    z = _each(project, x, read, write, offset, strength, spans, index, gram, normalize=True)
    out = scale.double() * (z @ classes.double().T)
    return out if bias is None else out + bias.double()


def logits_tolerance(
    x: Tensor,
    classes: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    spans: Tensor | None = None,
    index: Tensor | None = None,
    dtype: torch.dtype | None = None,
    gram: Tensor | None = None,
) -> Tensor:
    """How far each element of `ops.logits(...)` may lie from `logits(...)`: `[..., C]` float64.

    Twice the largest error in the row of `plain` and torch's product, plus the rounding of the
    chain: that of the normalised row, as in `tolerance`, through the classes, the product's own and
    the bias's; for half types also one rounding of the row and, unless it is float32, one of bias
    and result. Rows that lose more than 99.9 % of their length have no bound (inf).
    """
    factors = read, write, offset, strength, spans, index, gram
    dtype = dtype or x.dtype
    row = _each(plain, x, *factors, normalize=True).to(x.dtype)
    torch_result = scale.to(dtype) * (row @ classes.T).to(dtype)
    if bias is not None:
        torch_result = torch_result + bias.to(dtype)
    reference = logits(x, classes, *factors[:4], scale, bias, spans=spans, index=index, gram=gram)

    z = _each(project, x, *factors, normalize=True)
    of_row = _each(_rounding, x, *factors, normalize=True)
    erased = of_row.isinf().any(-1, keepdim=True)
    c, by, eps = classes.double(), scale.double().abs(), _eps(x.dtype)
    shift = 0.0 if bias is None else bias.double().abs()
    sums = 4 * eps * x.shape[-1] ** 0.5 * (z.abs() @ c.abs().T)
    bound = by * (of_row.masked_fill(erased, 0) @ c.abs().T + sums) + eps * shift
    if x.dtype.itemsize == 2:
        half = torch.finfo(x.dtype).eps
        bound = bound + half * by * (z.square() @ c.square().T).sqrt()
        if dtype == x.dtype:
            bound = bound + half / 2 * (reference.abs() + shift)
    return (_torch_error(torch_result, reference) + bound).masked_fill(erased, torch.inf)
