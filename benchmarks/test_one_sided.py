"""`project` with half-spaces beside its peers: unit rows brought among them and normalised."""

from __future__ import annotations

import peers_one_sided  # noqa: F401  registers the peers
import torch
from pairs import compare
from peers import NEW
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import Work
from shapes import HALF_SPACES, Shape, half_spaces

from clipproj import ops

SHAPES = HALF_SPACES


def test_one_sided(
    benchmark: BenchmarkFixture, shape: Shape, dtype: torch.dtype, device: str, only: list[str]
) -> None:
    given = half_spaces(shape, dtype, device)
    x, read, write, offset, gram = given.x, given.read, given.write, given.offset, given.gram
    n, d, k = shape
    traffic = 2 * x.nbytes + read.nbytes + write.nbytes + gram.nbytes
    compare(
        benchmark,
        lambda: ops.project(x, read, write, offset, gram=gram, normalize=True),
        given,
        op="one_sided",
        output=NEW,
        shape=shape,
        work=Work(flops=4 * n * d * k, bytes=traffic, touched=traffic),  # the products alone
        only=only,
    )
