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


def project_one_sided(given: Inputs, rows: slice, normalize: bool) -> Tensor:
    factors = (given.read, given.write, given.offset, given.strength[rows])
    return ops.project(given.x[rows], *factors, normalize=normalize, gram=given.gram)


def project_clamped(given: Inputs, rows: slice, normalize: bool) -> Tensor:
    factors = (given.read[:1], given.write[:1], given.offset[:1], given.strength[rows])
    return ops.project(given.x[rows], *factors, normalize=normalize, gram=given.gram[:1, :1])


def project_rows_of_both(given: Inputs, rows: slice, normalize: bool) -> Tensor:
    bank = (given.read, given.write, given.offset, given.sided)
    each = (given.index[rows], given.strength[rows])
    return ops.project_rows(given.x[rows], *bank, *each, normalize=normalize, gram=given.gram)


CALLS = [project, project_rows, project_one_sided, project_clamped, project_rows_of_both]


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
@pytest.mark.parametrize("call", CALLS)
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


@both
@each_problem
def test_a_float32_row_of_a_mixed_bank_is_that_of_its_projector_alone(
    d: int, k: int, normalize: bool
) -> None:
    """Rows of half types go through another kernel in such a bank, which rounds otherwise."""
    given = inputs(N, d, k, torch.float32).repeated(5)
    out = project_rows_of_both(given, slice(None), normalize)
    for tenant, (first, rank) in [(-1, (0, 0)), *enumerate(given.sided.tolist())]:
        rows = given.index == tenant
        own = slice(first, first + abs(rank))
        want = ops.project(
            given.x[rows],
            given.read[own],
            given.write[own],
            given.offset[own],
            given.strength[rows],
            normalize=normalize,
            gram=given.gram[own, :-rank] if rank < 0 else None,
        )
        assert_bits(out[rows], want)


@each_dtype
@pytest.mark.parametrize(("d", "k"), [(512, 1), (512, 16), (768, 100)])
def test_one_sided_rows_are_those_of_the_cpu(d: int, k: int, dtype: torch.dtype) -> None:
    """Within what a solution leaves, and to the bit where there is no excess."""
    given = inputs(4 * N, d, k, dtype)
    factors = (given.read, given.write, given.offset, given.strength)
    cpu = [one.cpu() for one in (given.x, *factors)]
    out = ops.project(given.x, *factors, gram=given.gram).cpu()
    want = ops.project(*cpu, gram=given.gram.cpu())
    error = (out.double() - want.double()).abs().amax(-1)
    assert (error <= (2e-3 + torch.finfo(dtype).eps) * cpu[0].double().norm(dim=-1)).all()
    excess = cpu[0].double() @ cpu[1].double().T - cpu[3].double()
    harmless = (excess < -1e-3).all(-1)
    assert_bits(out[harmless], cpu[0][harmless])
