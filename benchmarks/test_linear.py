"""`linear` beside its peers: a head's product whose rows are projected and normalised."""

from __future__ import annotations

import peers_linear  # noqa: F401  registers the peers
import pytest
import torch
from pairs import compare
from peers import NEW
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import Work
from shapes import PRODUCTS, Shape, linear_problem

from clipproj import ops

SHAPES = PRODUCTS


def test_linear(
    benchmark: BenchmarkFixture, shape: Shape, dtype: torch.dtype, device: str, only: list[str]
) -> None:
    if dtype is torch.float16 and device == "cpu":
        pytest.skip("torch multiplies float16 at 4 GFLOP/s on a CPU: seconds a call")
    given = linear_problem(shape, dtype, device)
    n, d, k = shape
    flops = 2 * n * given.matrix.numel() + 4 * n * d * k
    traffic = given.x.nbytes + given.matrix.nbytes + n * d * given.x.itemsize
    compare(
        benchmark,
        lambda: ops.linear(given.x, given.matrix, None, given.read, given.write, normalize=True),
        given,
        op="linear",
        output=NEW,
        shape=shape,
        work=Work(flops=flops, bytes=traffic, touched=traffic),
        only=only,
    )
