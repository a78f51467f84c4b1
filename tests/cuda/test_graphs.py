"""CUDA graphs: a replay reads everything anew, and computes what an eager call would."""

from __future__ import annotations

from dataclasses import fields

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


def captured(name: str, given: Inputs) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The graph of one call, and its result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        OPERATORS[name](given)  # loads kernels, which a capture cannot
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = OPERATORS[name](given)
    return graph, out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "d", "k"), [(1, 512, 8), (64, 768, 20), (3000, 512, 64)])
@pytest.mark.parametrize("name", OPERATORS)
def test_replay_is_the_eager_call(name: str, n: int, d: int, k: int, dtype: torch.dtype) -> None:
    given = inputs(n, d, k, dtype)
    graph, out = captured(name, given)
    for _ in range(3):
        given.renew()
        want = OPERATORS[name](given)
        out.fill_(torch.nan)
        graph.replay()
        assert_bits(out, want)


@pytest.mark.parametrize("field", [field.name for field in fields(Inputs)])
@pytest.mark.parametrize("name", OPERATORS)
def test_replay_reads_each_argument(name: str, field: str) -> None:
    """Of a factor, a strength or an index alone, in the same storage."""
    given = inputs(64, 512, 20)
    graph, out = captured(name, given)
    given.renew(field)
    want = OPERATORS[name](given)
    graph.replay()
    assert_bits(out, want)


def test_a_replay_with_a_bad_index_says_so() -> None:
    given = inputs(64, 512, 20)
    given.index.fill_(0)
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")

    def call() -> Tensor:
        return ops.project_rows(
            given.x, given.read, given.write, None, given.spans, given.index, flag=flag
        )

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    graph.replay()
    assert flag.item() == 0
    want = out.clone()
    given.index[7] = len(given.spans)
    graph.replay()
    assert flag.item() == 1
    others = torch.arange(64, device="cuda") != 7
    assert out[7].isnan().all()
    assert_bits(out[others], want[others])
