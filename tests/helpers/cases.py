"""Inputs for the operator tests, and how a result is held against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipproj import reference

HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALF, torch.float64]

# (n, d, k): around every vector width, ranks around every block of directions, real CLIP widths.
SHAPES = [
    (0, 512, 16),
    (1, 1, 0),
    (5, 1, 1),
    (2, 7, 2),
    (5, 8, 8),
    (33, 15, 3),
    (33, 16, 7),
    (5, 17, 1),
    (257, 17, 17),
    (1, 100, 50),
    (33, 100, 16),
    (5, 512, 0),
    (257, 512, 7),
    (33, 512, 16),
    (2, 768, 50),
    (2, 256, 256),
    (1, 768, 1),
]
OPTIONS = ["symmetric", "oblique", "offset", "strength", "per-row", "clamps", "one-sided"]


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def features(n: int, d: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(n, d, dtype=torch.float64).to(device, dtype)


def orthonormal(k: int, d: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    basis = torch.linalg.qr(torch.randn(d, k, dtype=torch.float64))[0]
    return basis.T.contiguous().to(device, factor_dtype(dtype))


def factors(
    option: str, n: int, d: int, k: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, Tensor]:
    """The keyword arguments of an operator beside x, of one kind out of OPTIONS."""
    if option in ("clamps", "one-sided"):
        return one_sided(n, d, k, dtype, device, diagonal=option == "clamps")
    like: dict[str, Any] = {"device": device, "dtype": factor_dtype(dtype)}
    read = orthonormal(k, d, dtype, device)
    if option == "symmetric":
        return {"read": read, "write": read}
    out = {"read": read, "write": torch.randn(k, d, **like) / d**0.5}
    if option == "offset":
        out["offset"] = torch.randn(k, **like)
    if option == "strength":
        out["strength"] = torch.tensor(0.7, **like)
    if option == "per-row":
        out["offset"] = torch.randn(k, **like)
        out["strength"] = torch.rand(n, **like) * 2
    return out


def one_sided(
    n: int,
    d: int,
    k: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    diagonal: bool = False,
) -> dict[str, Tensor]:
    """Read rows at angles of about 70 degrees, some beyond 90, in a metric that is not the plain
    one; `diagonal`: at right angles in the metric.
    """
    like: dict[str, Any] = {"device": device, "dtype": factor_dtype(dtype)}
    metric = torch.rand(d, dtype=torch.float64) + 0.5
    read = orthonormal(k, d, torch.float64) / metric.sqrt()
    if not diagonal and k:
        turned = read + 0.7 * read.mean(0) * k**0.5
        turned[::5] *= -1
        length = (turned.square() @ metric).sqrt()[:, None]
        read = turned / length
    write = read * metric
    gram = torch.eye(k, dtype=torch.float64) if diagonal else read @ write.T
    gram = ((gram + gram.T) / 2).fill_diagonal_(1)
    return {
        "read": read.to(**like),
        "write": write.to(**like),
        "offset": (torch.randn(k) / 4).to(**like),
        "strength": (torch.rand(n) * 2).to(**like),
        "gram": gram.to(**like),
    }


# Ranks of a bank's projectors: ragged, none at all, more than a block of directions.
RANKS = [7, 0, 16, 1, 33, 0, 3]


def bank(
    option: str,
    n: int,
    d: int,
    ranks: Sequence[int] = RANKS,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """The keyword arguments of `project_rows` beside x: projectors of one kind out of OPTIONS, the
    last one first in the bank, and rows of each and of none in no order.
    """
    parts = [factors(option, n, d, min(rank, d), dtype, device) for rank in reversed(ranks)]
    parts = parts or [factors(option, n, d, 0, dtype, device)]
    alone = {"strength", "gram"}
    out = {name: torch.cat([part[name] for part in parts]) for name in parts[0].keys() - alone}
    one_sided = "gram" in parts[0]
    if one_sided:
        width = max(len(part["gram"]) for part in parts)
        # what lies beside a projector's own columns is nobody's business
        out["gram"] = torch.cat(
            [
                functional.pad(part["gram"], (0, width - len(part["gram"])), value=7)
                for part in parts
            ]
        )
    if option == "symmetric":
        out["write"] = out["read"]
    if "strength" in parts[0]:
        out["strength"] = parts[0]["strength"]
    spans = [(0, 0)]
    for rank in reversed(ranks):
        start, before = spans[-1]
        spans.append((start + abs(before), min(rank, d) * (-1 if one_sided else 1)))
    out["spans"] = torch.tensor(spans[:0:-1], dtype=torch.int32).reshape(-1, 2).to(device)
    out["index"] = torch.randint(-1, len(ranks), (n,), dtype=torch.int32).to(device)
    return {"offset": None} | out


def alone(given: dict[str, Tensor], projector: int, rows: Tensor) -> dict[str, Tensor]:
    """The keyword arguments of `project` that make of these rows what the bank's projector does."""
    start, rank = (0, 0) if projector < 0 else given["spans"][projector].tolist()
    own = slice(start, start + abs(rank))
    out = {name: given[name] for name in ("read", "write", "offset") if given[name] is not None}
    out = {name: factor[own] for name, factor in out.items()}
    if given["read"] is given["write"]:
        out["write"] = out["read"]
    if rank < 0:
        out["gram"] = given["gram"][own, : abs(rank)]
    strength = given.get("strength")
    if strength is not None:
        out["strength"] = strength[rows] if strength.dim() else strength
    return out


def assert_reference(out: Tensor, x: Tensor, *, normalize: bool = False, **given: Tensor) -> None:
    """`out` is what the operator makes of x, within the bound of the design; with a bank, rows."""
    rows = "index" in given
    project = reference.project_rows if rows else reference.project
    tolerance = reference.tolerance_rows if rows else reference.tolerance
    assert out.dtype == x.dtype
    assert out.shape == x.shape
    assert out.isfinite().all()
    bound = tolerance(x, **given, normalize=normalize)
    error = (out.double() - project(x, **given, normalize=normalize)).abs()
    assert (error <= bound).all(), f"error {error.max():.3g}, {(error / bound).max():.3g} x bound"
    erased = bound.isinf().any(-1)
    length = out[erased].double().norm(dim=-1)
    # What rounding leaves of a row may be nothing, or shorter than the least divisor.
    clamped = project(x, **given)[erased].norm(dim=-1) < 1e-6
    assert ((length - 1).abs() <= 4 * torch.finfo(x.dtype).eps).logical_or(clamped).all()
    assert (length <= 1.01).all()


def assert_bits(a: Tensor, b: Tensor) -> None:
    """Equal to the bit, NaN payloads and signs of zeros too."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
