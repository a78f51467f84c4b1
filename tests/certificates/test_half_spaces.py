"""What is bounded of the solver, of lengths and of rounding, beside what is seen of them."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from documents import ROOT
from embeddings import cone
from half_spaces import hard_rows, one_sided

from clipproj import ops
from clipproj.certificates.half_spaces import DOUBLE, SINGLE, HalfSpaceBounds, Solver
from clipproj.certificates.rounding import Rounding

EDITS = [(1, 8, 3.0), (3, 12, 0.0), (8, 24, 3.0), (30, 40, 3.0), (60, 64, 30.0)]


def bounds(k, d, weight, strength=1.0, dtype=torch.float32):
    texts = cone(2 * k + 12, d=d)
    p = one_sided(texts[:k], texts[k:], 1e-3, weight, strength)
    f = p.factors(torch.float64)
    own = HalfSpaceBounds(
        f["read"], f["write"], f["gram"], f["offset"], strength,
        1 + torch.finfo(dtype).eps, Rounding(dtype),
    )  # fmt: skip
    return p, hard_rows(p, texts[k:], steps=5), own


def ascent(excess, gram, solver: Solver):
    """Coordinate ascent in float64 that ends where `solver` does; then the raises."""
    a, left = torch.zeros_like(excess), excess.clone()
    largest = excess.amax(1).clamp_min(0)
    for raises in (False, True):
        on = torch.ones_like(largest, dtype=torch.bool)
        for _ in range(1000 if raises else solver.sweeps):
            moved = torch.zeros_like(largest)
            for i in range(len(gram)):
                step = torch.maximum(left[:, i], torch.zeros_like(largest) if raises else -a[:, i])
                step = step * on
                a[:, i] += step
                left -= step[:, None] * gram[i]
                moved = torch.maximum(moved, step.abs())
            on = moved > (solver.left if raises else solver.move) * largest
            if not on.any():
                break
        else:
            assert not raises
    return a, left


@pytest.mark.parametrize("solver", [SINGLE, Solver(2, 1e-9, 1e-2)], ids=["kernels", "early"])
@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_the_solver_leaves_no_more_than_it_says(monkeypatch, edit, solver):
    _, rows, own = bounds(*edit)
    monkeypatch.setattr(HalfSpaceBounds, "solver", solver)
    excess = rows @ own.read.T - own.offset
    a, left = ascent(excess, own.gram, solver)
    best, _ = ascent(excess, own.gram, DOUBLE)
    assert (left <= own.left + 1e-12).all()
    assert (a <= own._each + 1e-12).all()
    for size, most in ((a, own._size), (a - best, own._gap), (best, own._size_at_minimum)):
        assert ((size @ own.gram) * size).sum(1).amax() ** 0.5 <= most + 1e-9
    for weights in (own._negative, torch.ones_like(own.gram[:, :1])):
        assert (a @ weights <= own._reach(weights) + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.6, 2.0])
@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_edited_rows_read_and_measure_no_more(edit, strength, dtype):
    p, rows, own = bounds(*edit, strength, dtype)
    exact = p(rows)
    assert (exact @ own.read.T - own.above).amax() <= 0
    longest = torch.linalg.vector_norm(exact, dim=1).amax()
    assert longest <= own.length
    computed = p(rows.float()).double()
    assert (computed @ own.read.T - own.above - own.rounded).amax() <= 0


def test_lengths_are_those_that_are_reached():
    """Of one direction the longest row is known: that of an oblique projection."""
    p, _, own = bounds(1, 16, 30.0)
    read, write = own.read[0], own.write[0]
    row = F.normalize(read - (read @ write) / (write @ write) * write, dim=0)
    reached = torch.linalg.vector_norm(p(row[None])).item()
    assert reached > 1.03
    assert own.length == pytest.approx(reached, abs=2e-3)


@pytest.mark.parametrize("length", [1.0, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_stored_rows_move_by_no_more(dtype, length):
    """Down to numbers that float16 has no exponent for."""
    rows = length * F.normalize(torch.randn(4000, 8, dtype=torch.float64), dim=1)
    moved = torch.linalg.vector_norm(rows.to(dtype).double() - rows, dim=1).amax()
    most = Rounding(dtype).stored(length, 8)
    assert 0.4 * most < moved <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_of_the_kernels_are_rounded_by_no_more(dtype):
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(500, 700, generator=g, dtype=torch.float64), dim=1).to(dtype)
    read = F.normalize(torch.randn(9, 700, generator=g, dtype=torch.float64), dim=1).to(dtype)
    none = torch.zeros_like(read)
    eye = torch.eye(9, dtype=dtype)
    # rows of which only what is read is left: the sums themselves
    wide = torch.cat([torch.zeros(500, 9, dtype=dtype), x], 1)
    by = {"read": torch.cat([none[:, :9], read], 1), "write": torch.cat([eye, none], 1)}
    sums = -ops.project(wide, **by)[:, :9].double()
    exact = x.double() @ read.double().T if dtype == torch.float32 else sums
    assert (sums - exact).abs().amax() <= Rounding(dtype).sums(700)


def test_limits_are_those_of_the_kernels():
    text = (ROOT / "csrc/solve.h").read_text("utf-8")
    power = r"(?:A\(1\) / )?\(?1 << (\d+)"
    single, double = text.split("template <>")
    (sweeps,) = re.findall(r"kSweeps = (\d+)", single)
    (move,), (left,) = (re.findall(rf"{name} = {power}", single) for name in ("kMove", "kLeft"))
    assert Solver(int(sweeps), 2.0 ** -int(move), 2.0 ** -int(left)) == SINGLE
    (sweeps,) = re.findall(rf"kSweeps = {power}", double)
    (move,), (left,) = (re.findall(rf"{name} = (1e-\d+)", double) for name in ("kMove", "kLeft"))
    assert Solver(1 << int(sweeps), float(move), float(left)) == DOUBLE
