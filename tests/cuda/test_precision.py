"""CUDA: what is left of an erased direction when most of the signal lay in it.

Half types multiply factors that were split into a high and a low part. A scheme that rounds them
to 8 or 11 bits passes where the erased span holds little, and leaves 10 to 100 times as much of it
where it holds ten times what the rest does.
"""

from __future__ import annotations

import pytest
import torch
from cases import HALF, orthonormal
from torch import Tensor

from clipproj import ops, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIGNAL = 10  # length inside the erased span, of rows of length 1 outside


def rows(n: int, read: Tensor, dtype: torch.dtype) -> Tensor:
    k, d = read.shape
    outside = torch.randn(n, d, dtype=torch.float64, device=read.device)
    outside -= outside @ read.double().T @ read.double()
    inside = torch.randn(n, k, dtype=torch.float64, device=read.device) @ read.double()
    unit = torch.nn.functional.normalize
    return (unit(outside, dim=-1) + SIGNAL * unit(inside, dim=-1)).to(dtype)


def leak(out: Tensor, read: Tensor) -> float:
    """The largest erased coordinate of a row, of the row's length."""
    wide = out.double()
    return ((wide @ read.double().T).abs().amax(-1) / wide.norm(dim=-1)).max().item()


def error(out: Tensor, want: Tensor) -> float:
    """Root mean square, of the result's."""
    return ((out.double() - want).square().mean() / want.square().mean()).sqrt().item()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("d", "k"), [(512, 1), (768, 8), (768, 32), (1024, 64), (1152, 256)])
@pytest.mark.parametrize("n", [64, 4096])
def test_leaks_what_one_rounding_leaks(
    n: int, d: int, k: int, dtype: torch.dtype, normalize: bool
) -> None:
    read = orthonormal(k, d, device="cuda")
    x = rows(n, read, dtype)
    want = reference.project(x, read, read, normalize=normalize)
    rounded = want.to(dtype)
    out = ops.project(x, read, read, normalize=normalize)
    assert error(out, want) <= 1.05 * error(rounded, want)
    assert leak(out, read) <= 1.25 * leak(rounded, read)
    spans = torch.tensor([[0, k]], dtype=torch.int32, device="cuda")
    index = torch.zeros(n, dtype=torch.int32, device="cuda")
    each = ops.project_rows(x, read, read, None, spans, index, normalize=normalize)
    assert leak(each, read) <= 1.25 * leak(rounded, read)
