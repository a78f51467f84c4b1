"""What the solver of one-sided updates leaves: proven little, or NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipproj import ops


def half_spaces(k: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit rows in all directions, whose gram matrix has elements of either sign, and that."""
    generator = torch.Generator().manual_seed(k)
    read = torch.randn(k, d, dtype=torch.float64, generator=generator)
    read = functional.normalize(read, dim=1).to(dtype)
    return read, (read.double() @ read.double().T).to(dtype).fill_diagonal_(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [2, 16, 100])
def test_no_half_space_is_left_violated(cpu_isa: str, dtype: torch.dtype, k: int) -> None:
    read, gram = half_spaces(k, 2 * k, dtype)
    assert gram.min() < 0
    mixtures = torch.rand(64, k, dtype=dtype) @ read
    x = functional.normalize(torch.cat([read, mixtures, torch.randn(64, 2 * k, dtype=dtype)]))
    out = ops.project(x, read, read, torch.full((k,), -1e-3, dtype=dtype), gram=gram)
    excess = (out.double() @ read.double().T + 1e-3).amax()
    left = {torch.float32: 2**-16, torch.float64: 1e-14}[dtype]  # kLeft of csrc/solve.h
    most = gram.clamp_max(0).sum(1).abs().max() * left * ((x @ read.T).max() + 1e-3)
    assert excess < most + 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_row_that_is_not_solved_is_nan(cpu_isa: str, dtype: torch.dtype) -> None:
    """The gram matrix is singular: no row is in both half-spaces."""
    read = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=dtype)
    offset = torch.tensor([-0.1, -0.1], dtype=dtype)
    gram = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=dtype)
    x = torch.tensor([[0.5, 0.0], [0.0, 1.0]], dtype=dtype)
    assert ops.project(x, read, read, offset, gram=gram).isnan().all()
    harmless = ops.project(x, read, read, offset.neg(), gram=gram)
    assert torch.equal(harmless[1], x[1])
    assert harmless[0].isfinite().all()


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("k", [1, 3])
def test_a_row_of_an_odd_strength_is_the_same_beside_any_other(
    cpu_isa: str, k: int, odd: float
) -> None:
    read, gram = half_spaces(k, 24, torch.float32)
    harmless, harmful = -read.sum(0), read.sum(0)
    strength = torch.full((40,), odd)
    strength[1:] = 1.0
    offset = torch.zeros(k)
    alone = ops.project(harmless[None], read, read, offset, strength[:1], gram=gram)
    for others in (harmless, harmful):
        rows = torch.cat([harmless[None], others.expand(39, -1)])
        out = ops.project(rows, read, read, offset, strength, gram=gram)
        torch.testing.assert_close(out[:1], alone, rtol=0, atol=0, equal_nan=True)
