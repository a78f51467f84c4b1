"""CUDA: what calls take of the device's memory, and rows beyond what 32 bits count."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import assert_bits, assert_reference, orthonormal
from every_op import OPERATORS, inputs
from torch import Tensor

from clipproj import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GRAIN = 4 << 20  # what the allocator may round up, over the few blocks of a call
D = 512
ROWS = 2**31 // D + 1001  # times D: more elements than an int32 counts


@pytest.mark.parametrize("name", OPERATORS)
def test_no_workspace_grows_with_the_rows(name: str) -> None:
    def extra(n: int) -> int:
        """Bytes that a call takes beside its result."""
        given = inputs(64, 512, 20).repeated(n // 64)
        OPERATORS[name](given)  # libraries take their workspace at the first call
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        out = OPERATORS[name](given)
        return torch.cuda.max_memory_allocated() - before - out.nbytes

    assert extra(262_144) <= extra(65_536) + GRAIN


@pytest.fixture(scope="module")
def large() -> Iterator[Tensor]:
    """[ROWS, D] bfloat16, 4.3 GB; read only."""
    free = torch.cuda.mem_get_info()[0]
    if free < 24 << 30:
        pytest.skip(f"needs 24 GB of free device memory, has {free >> 30}")
    x = torch.empty(ROWS, D, dtype=torch.bfloat16, device="cuda")
    for part in x.split(1 << 20):
        part.normal_()
    yield x
    del x
    torch.cuda.empty_cache()


@pytest.fixture
def probes() -> Tensor:
    """Rows on both sides of the 2^31st element and of the ends, and some between."""
    edge = 2**31 // D
    rows = [0, 1, 2, edge // 2, edge - 1, edge, edge + 1, ROWS - 2, ROWS - 1]
    return torch.cat([torch.tensor(rows), torch.randint(0, ROWS, (50,))]).cuda()


@pytest.fixture
def read() -> Tensor:
    return orthonormal(16, D, device="cuda")


@pytest.mark.parametrize("normalize", [False, True])
def test_project(large: Tensor, probes: Tensor, read: Tensor, normalize: bool) -> None:
    some = large[probes]
    want = ops.project(some, read, read, normalize=normalize)
    assert_reference(want, some, read=read, write=read, normalize=normalize)
    assert_bits(ops.project(large, read, read, normalize=normalize)[probes], want)
    x = large.clone()
    assert_bits(ops.project_(x, read, read, normalize=normalize)[probes], want)


def test_project_out_into_columns_of_a_wider_buffer(
    large: Tensor, probes: Tensor, read: Tensor
) -> None:
    buffer = torch.full((ROWS, D + 8), 7, dtype=large.dtype, device="cuda")
    ops.project_out(large, read, read, out=buffer[:, 4:-4])
    assert_bits(buffer[probes, 4:-4], ops.project(large[probes], read, read))
    assert (buffer[:, :4] == 7).all()
    assert (buffer[:, -4:] == 7).all()


def test_project_of_a_transposed_view(large: Tensor, probes: Tensor, read: Tensor) -> None:
    x = large.view(D, ROWS).T
    assert_bits(ops.project(x, read, read)[probes], ops.project(x[probes], read, read))


def test_projected_norm(large: Tensor, probes: Tensor, read: Tensor) -> None:
    want = ops.projected_norm(large[probes], read, read)
    assert_bits(ops.projected_norm(large, read, read)[probes], want)


def test_project_rows(large: Tensor, probes: Tensor, read: Tensor) -> None:
    spans = torch.tensor([[0, 8], [8, 8], [3, 0]], dtype=torch.int32, device="cuda")
    index = torch.randint(-1, len(spans), (ROWS,), dtype=torch.int32, device="cuda")
    strength = torch.rand(ROWS, device="cuda")
    out = ops.project_rows(large, read, read, None, spans, index, strength)[probes]
    want = ops.project_rows(large[probes], read, read, None, spans, index[probes], strength[probes])
    assert_bits(out, want)


def test_fold_of_a_weight_with_so_many_columns(large: Tensor, probes: Tensor, read: Tensor) -> None:
    weight = large.view(D, ROWS).clone()
    want = ops.fold_(weight[:, probes].contiguous(), read, read, dim=0)
    assert_bits(ops.fold_(weight, read, read, dim=0)[:, probes], want)
