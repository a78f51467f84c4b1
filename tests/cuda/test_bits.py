"""CUDA: the bits of a result depend on its row alone, not on the run, the batch or the bank."""

from __future__ import annotations

import pytest
import torch
from cases import assert_bits
from every_op import OPERATORS, Inputs, inputs
from torch import Tensor

from clipproj import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [(512, 8), (768, 64), (1152, 16), (100, 7)]
BATCHES = (2, 17, 33, 129, 1000, 4096, 8193, 100_000)
N = 64

each_problem = pytest.mark.parametrize(("d", "k"), WIDTHS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
both = pytest.mark.parametrize("normalize", [False, True])


def project(given: Inputs, rows: slice, normalize: bool) -> Tensor:
    factors = (given.read, given.write, given.offset, given.strength[rows])
    return ops.project(given.x[rows], *factors, normalize=normalize)


def project_rows(given: Inputs, rows: slice, normalize: bool) -> Tensor:
    bank = (given.read, given.write, given.offset, given.spans)
    each = (given.index[rows], given.strength[rows])
    return ops.project_rows(given.x[rows], *bank, *each, normalize=normalize)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_run(name: str) -> None:
    given = inputs(300, 512, 20)
    want = OPERATORS[name](given)
    streams = [torch.cuda.Stream() for _ in range(4)]
    noise = torch.randn(1024, 1024, device="cuda")
    torch.cuda.synchronize()
    for _ in range(20):
        for stream in streams:  # others' work, so that blocks run in other orders
            with torch.cuda.stream(stream):
                noise @ noise
        assert_bits(OPERATORS[name](given), want)


@both
@each_dtype
@each_problem
@pytest.mark.parametrize("call", [project, project_rows])
def test_every_batch(call, d: int, k: int, dtype: torch.dtype, normalize: bool) -> None:
    given = inputs(N, d, k, dtype)
    many = given.repeated(max(BATCHES) // N + 1)
    want = torch.cat([call(given, slice(i, i + 1), normalize) for i in range(N)])
    for n in BATCHES:
        rows = torch.arange(n, device="cuda") % N
        assert_bits(call(many, slice(n), normalize), want[rows])


@both
@each_dtype
@each_problem
@pytest.mark.parametrize("order", ["sorted", "unsorted"])
@pytest.mark.parametrize("n", [N, 50 * N])
def test_a_row_of_a_bank_is_that_of_its_projector_alone(
    n: int, order: str, d: int, k: int, dtype: torch.dtype, normalize: bool
) -> None:
    given = inputs(N, d, k, dtype).repeated(n // N)
    if order == "sorted":
        given.index = given.index.sort().values
    out = project_rows(given, slice(None), normalize)
    for tenant, (first, rank) in [(-1, (0, 0)), *enumerate(given.spans.tolist())]:
        rows = given.index == tenant
        own = slice(first, first + rank)
        want = ops.project(
            given.x[rows],
            given.read[own],
            given.write[own],
            given.offset[own],
            given.strength[rows],
            normalize=normalize,
        )
        assert_bits(out[rows], want)
