"""`logits` beside its peers: class scores of projected, normalised rows."""

from __future__ import annotations

import peers_logits  # noqa: F401  registers the peers
import pytest
import torch
from pairs import compare
from peers import NEW
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import Work
from shapes import CLASSES, PRODUCTS, SCALE, Shape, logits_problem

from clipproj import ops

SHAPES = PRODUCTS


def test_logits(
    benchmark: BenchmarkFixture, shape: Shape, dtype: torch.dtype, device: str, only: list[str]
) -> None:
    if dtype is torch.float16 and device == "cpu":
        pytest.skip("torch multiplies float16 at 4 GFLOP/s on a CPU: seconds a call")
    given = logits_problem(shape, dtype, device)
    scale = torch.tensor(SCALE, device=device)
    n, d, k = shape
    flops = 2 * n * given.matrix.numel() + 4 * n * d * k
    traffic = given.x.nbytes + given.matrix.nbytes + n * CLASSES * given.x.itemsize
    compare(
        benchmark,
        lambda: ops.logits(given.x, given.matrix, given.read, given.write, None, None, scale),
        given,
        op="logits",
        output=NEW,
        shape=shape,
        work=Work(flops=flops, bytes=traffic, touched=traffic),
        only=only,
    )
