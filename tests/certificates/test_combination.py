"""Texts as mixtures of kept ones plus directions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from clipproj.certificates.combination import combinations, nonnegative


@given(m=st.integers(1, 20), d=st.integers(1, 12), seed=st.integers(0, 2**31), twice=st.booleans())
@settings(max_examples=150, deadline=None)
def test_nonnegative_least_squares_are_scipys(m, d, seed, twice):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, d, generator=g, dtype=torch.float64)
    if twice:
        rows = rows[torch.randint(m, (m,), generator=g)]
    target = torch.randn(d, generator=g, dtype=torch.float64)
    weights = nonnegative(rows, target)
    assert (weights >= 0).all()
    _, best = nnls(rows.T.numpy(), target.numpy())
    assert float((target - weights @ rows).norm()) == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize("rays", [1, 3, 30])
def test_what_can_be_put_together_is(rays):
    g = torch.Generator().manual_seed(rays)
    keep = torch.randn(40, 16, generator=g, dtype=torch.float64)
    ways = torch.randn(rays, 16, generator=g, dtype=torch.float64)
    weights = torch.rand(40, generator=g, dtype=torch.float64) ** 8
    weights, share = weights / weights.sum(), torch.arange(rays) / 4
    text = weights @ keep + 3 * share.double() @ ways
    rests = []
    for w, b in combinations(text, keep, ways):
        assert (w >= 0).all()
        assert (b >= 0).all()
        assert float(w.sum()) == pytest.approx(1)
        rests.append(float((text - w @ keep - b @ ways).norm()))
    assert min(rests) < 1e-7


def test_what_cannot_is_by_the_nearest_mixture():
    keep = torch.eye(3, dtype=torch.float64)[:2]
    text = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)
    (w, b), *more = combinations(text, keep, -torch.eye(3, dtype=torch.float64)[2:])
    np.testing.assert_allclose(w, [0.5, 0.5])
    assert float(b) == 0
    assert all(float((text - w @ keep).norm()) >= 1 - 1e-9 for w, _ in more)
