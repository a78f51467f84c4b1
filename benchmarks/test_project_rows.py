"""`project_rows` beside its peers: rows by the directions of their own tenants, normalised."""

from __future__ import annotations

import peers_project_rows  # noqa: F401  registers the peers
import torch
from pairs import compare
from peers import NEW
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import Work
from shapes import BANKS, TENANTS, Shape, bank

from clipproj import ops

SHAPES = BANKS


def test_project_rows(
    benchmark: BenchmarkFixture, shape: Shape, dtype: torch.dtype, device: str, only: list[str]
) -> None:
    given = bank(shape, dtype, device)
    x, read, spans, index = given.x, given.read, given.spans, given.index
    n, d, k = shape
    # x and the result, and once the directions that some row wants.
    traffic = 2 * x.nbytes + read.nbytes * min(n, TENANTS) // TENANTS + index.nbytes
    compare(
        benchmark,
        lambda: ops.project_rows(x, read, read, None, spans, index, normalize=True),
        given,
        op="project_rows",
        output=NEW,
        shape=shape,
        work=Work(flops=4 * n * d * k, bytes=traffic, touched=traffic),
        only=only,
    )
