"""`fold_` beside its peers: real heads, both layouts, the weight written over."""

from __future__ import annotations

import peers_fold  # noqa: F401  registers the peers
import pytest
import torch
from pairs import compare
from peers import OUT
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import Work
from shapes import FOLDS, Shape, problem

from clipproj import ops

SHAPES = FOLDS


@pytest.mark.parametrize("dim", [-1, 0], ids=["matrix", "linear"])
def test_fold(
    benchmark: BenchmarkFixture,
    shape: Shape,
    dtype: torch.dtype,
    dim: int,
    device: str,
    only: list[str],
) -> None:
    """`matrix` is the `[n, d]` weight of an `x @ A` head, `linear` the `[d, n]` of `nn.Linear`."""
    given = problem(shape, dtype, device, dim)
    weight, read, write = given.x.clone(), given.read, given.write
    n, d, k = shape
    compare(
        benchmark,
        lambda: ops.fold_(weight, read, write, dim=dim),
        given,
        op="fold_",
        output=OUT,
        shape=shape,
        work=Work(
            flops=4 * n * d * k,
            bytes=2 * weight.nbytes + read.nbytes,
            touched=weight.nbytes + read.nbytes,
        ),
        only=only,
    )
