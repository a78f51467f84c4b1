"""Inputs for the operator tests, and how a result is held against the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
OPTIONS = ["symmetric", "oblique", "offset", "strength", "per-row"]


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


def assert_reference(out: Tensor, x: Tensor, *, normalize: bool = False, **given: Tensor) -> None:
    """`out` is what the operator makes of x, within the bound of the design."""
    assert out.dtype == x.dtype
    assert out.shape == x.shape
    assert out.isfinite().all()
    bound = reference.tolerance(x, **given, normalize=normalize)
    error = (out.double() - reference.project(x, **given, normalize=normalize)).abs()
    assert (error <= bound).all(), f"error {error.max():.3g}, {(error / bound).max():.3g} x bound"
    erased = bound.isinf().any(-1)
    length = out[erased].double().norm(dim=-1)
    # What rounding leaves of a row may be nothing, or shorter than the least divisor.
    clamped = reference.projected_norm(x, **given)[erased] < 1e-6
    assert ((length - 1).abs() <= 4 * torch.finfo(x.dtype).eps).logical_or(clamped).all()
    assert (length <= 1.01).all()


def assert_bits(a: Tensor, b: Tensor) -> None:
    """Equal to the bit, NaN payloads and signs of zeros too."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
