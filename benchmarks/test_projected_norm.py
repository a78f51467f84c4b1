"""`projected_norm` beside its peers: the lengths of the projected rows, without the rows."""

from __future__ import annotations

import peers_projected_norm  # noqa: F401  registers the peers
import torch
from pairs import compare
from peers import NEW
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import Work
from shapes import ROWS, Shape, problem

from clipproj import ops

SHAPES = ROWS


def test_projected_norm(
    benchmark: BenchmarkFixture, shape: Shape, dtype: torch.dtype, device: str, only: list[str]
) -> None:
    given = problem(shape, dtype, device)
    x, read, write = given.x, given.read, given.write
    n, d, k = shape
    traffic = x.nbytes + read.nbytes + 4 * n
    compare(
        benchmark,
        lambda: ops.projected_norm(x, read, write),
        given,
        op="projected_norm",
        output=NEW,
        shape=shape,
        work=Work(flops=4 * n * d * k + 2 * n * d, bytes=traffic, touched=traffic),
        only=only,
    )
