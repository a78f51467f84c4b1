"""`project` and `project_out` beside their peers: unit rows projected and normalised.

Usage: the docstring of conftest.py. `make bench` runs all suites and prints their tables.
"""

from __future__ import annotations

import peers_project  # noqa: F401  registers the peers
import pytest
import torch
from pairs import compare
from peers import NEW, OUT
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import Work
from shapes import ROWS, Shape, problem

from clipproj import ops

SHAPES = ROWS


@pytest.mark.parametrize("output", [NEW, OUT])
def test_project(
    benchmark: BenchmarkFixture,
    shape: Shape,
    dtype: torch.dtype,
    output: str,
    device: str,
    only: list[str],
) -> None:
    given = problem(shape, dtype, device)
    x, read, write = given.x, given.read, given.write
    n, d, k = shape
    out = torch.empty_like(x)
    calls = {
        NEW: lambda: ops.project(x, read, write, normalize=True),
        OUT: lambda: ops.project_out(x, read, write, normalize=True, out=out),
    }
    traffic = 2 * x.nbytes + read.nbytes  # x and the result, and the directions once
    work = Work(flops=4 * n * d * k, bytes=traffic, touched=traffic)
    compare(
        benchmark,
        calls[output],
        given,
        op="project",
        output=output,
        shape=shape,
        work=work,
        only=only,
    )
