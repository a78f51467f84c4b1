"""Half-spaces in the metric of what is kept: the least change, and what is certain after it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from embeddings import cone
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

import clipproj
from clipproj.methods import half_spaces as module
from clipproj.methods.half_spaces import (
    ALIKE,
    HalfSpaces,
    half_spaces,
    metric_rows,
    oblique,
    thresholds,
)
from clipproj.methods.hull import nearest_mixture


def contrasts(f, k):
    """f less the nearest mixtures of k: unit rows, and as they are."""
    d = torch.stack([row - nearest_mixture(row, k) @ k for row in f])
    return F.normalize(d, dim=1), d


def edited(h: HalfSpaces, x, strength=1.0):
    """The definition in float64, a row at a time by scipy: argmin_{a >= 0} 1/2 a G a - a c."""
    read, write, gram, offset = (t.double() for t in (h.read, h.write, h.gram, h.offset))
    lower = np.linalg.cholesky(gram.numpy())
    excess = (x @ read.T - offset).numpy()
    a = np.stack([nnls(lower.T, np.linalg.solve(lower, c))[0] for c in excess])
    return x - strength * torch.from_numpy(a) @ write


def rows_of(d, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1)


def test_the_metric_is_the_inverse_it_says_by_either_side():
    rows = rows_of(12, 5)
    for n in (4, 40):
        keep = cone(n, seed=2, d=12)
        centred = keep - keep.mean(0)
        eye = torch.eye(12, dtype=torch.float64)
        want = rows @ torch.linalg.inv(eye + 3 * centred.T @ centred)
        torch.testing.assert_close(metric_rows(rows, keep, 3.0), want)
    assert metric_rows(rows, keep, 0.0) is rows


@given(
    m=st.integers(1, 6), n=st.integers(7, 40), d=st.integers(12, 24), seed=st.integers(0, 2**31),
    mu=st.sampled_from([0.0, 0.3, 3.0, 100.0]), tau=st.sampled_from([-0.01, 0.0, 0.1]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_rows_come_to_the_nearest_point_that_is_harmless(m, n, d, seed, mu, tau):
    texts = cone(m + n, seed, d)
    f, k = texts[:m], texts[m:]
    r = F.normalize(f - k.mean(0), dim=1)
    h = half_spaces("op", r, torch.full((m,), tau, dtype=torch.float64), k, mu)
    x = torch.cat([rows_of(d, 10, seed), r, -r, f])
    z = edited(h, x)
    read_out = z @ r.T
    assert (read_out <= tau + 1e-5).all()
    inside = (x @ r.T < tau - 1e-5).all(dim=1)
    torch.testing.assert_close(z[inside], x[inside], atol=0, rtol=0)
    # nearest in the norm of M^-1: the change has an obtuse angle with every other harmless point
    centred = k - k.mean(0)
    bend = torch.eye(d, dtype=torch.float64) + mu * centred.T @ centred
    others = edited(h, rows_of(d, 10, seed + 1))
    obtuse = torch.einsum("nd,nmd->nm", (x - z) @ bend, others[None] - z[:, None])
    assert (obtuse <= 1e-5 * (1 + mu * n)).all()


def test_what_is_stored_is_one_gram_matrix():
    texts = cone(40, seed=3)
    r, _ = contrasts(texts[:5], texts[5:])
    h = half_spaces("op", r, torch.zeros(5).double(), texts[5:], 3.0)
    assert torch.equal(h.gram, h.gram.T)
    assert torch.equal(h.gram.diagonal(), torch.ones(5))
    product = h.read.double() @ h.write.double().T
    torch.testing.assert_close(h.gram.double(), product, atol=1.5e-7, rtol=0)
    assert h.smallest == pytest.approx(float(torch.linalg.eigvalsh(h.gram.double())[0]))
    lengths = 1 / torch.linalg.vector_norm(h.read, dim=1)
    torch.testing.assert_close(h.read.double() * lengths[:, None].double(), r, atol=1e-6, rtol=0)


def test_without_a_metric_read_is_write():
    texts = cone(30)
    r, _ = contrasts(texts[:3], texts[3:])
    h = half_spaces("op", r, torch.zeros(3).double(), None, 0.0)
    assert torch.equal(h.read, h.write)
    assert torch.equal(h.read, r.float())


@pytest.mark.parametrize("mu", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("m", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_row_scores_for_a_forgotten_text_what_it_scores_for_a_kept_one(mu, m, dtype):
    texts = cone(60, seed=m, d=48)
    f, k = texts[:m], texts[m:]
    r, d = contrasts(f, k)
    lengths = torch.linalg.vector_norm(d, dim=1)
    h = half_spaces("op", r, torch.zeros(m).double(), k, mu, dtype=dtype)
    x = torch.cat([rows_of(48, 200), f, k, r, -r, F.normalize(h.write.double(), dim=1)])
    # towards the worst lead of the first forgotten text
    worst = x[:20].clone().requires_grad_()
    for _ in range(20):
        read, write = h.read.double(), h.write.double()
        a = ((worst @ read.T - h.offset.double()) @ torch.linalg.inv(h.gram.double())).clamp_min(0)
        z = worst - a @ write
        (z @ f[0] - (z @ k.T).amax(1)).sum().backward()
        worst = F.normalize(worst + 0.3 * worst.grad, dim=1).detach().requires_grad_()
    x = torch.cat([x, worst.detach()])
    z = edited(h, x)
    assert torch.linalg.vector_norm(z, dim=1).max() < h.longest
    stored = z.to(dtype).double()
    lead = stored @ f.T - (stored @ k.T).amax(1, keepdim=True)
    assert (lead < 0).all()
    assert (z @ d.T <= -h.margin * lengths + 1e-6).all()
    # the margin is what makes it so: without one, and rounded, some lead
    level = half_spaces("op", d / lengths[:, None], torch.zeros(m).double(), k, mu)
    rounded = edited(level, x).to(dtype).double()
    mixtures = f - d
    assert (rounded @ f.T > rounded @ mixtures.T).any()


def test_margins_grow_with_what_they_are_for():
    texts = cone(80, d=48)
    f, k = texts[:20], texts[20:]
    r, _ = contrasts(f, k)
    none = torch.zeros(20).double()

    def made(m=1, mu=3.0, dtype=torch.bfloat16):
        return half_spaces("op", r[:m], none[:m], k, mu, dtype=dtype)

    dtypes = [made(dtype=dtype).margin for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    assert dtypes == sorted(dtypes)
    for few, many in ((made(), made(m=20)), (made(mu=0.0), made(mu=30.0))):
        assert few.margin < many.margin
        assert few.longest < many.longest
    assert half_spaces("op", r, none, k, 3.0).margin == 0


def test_near_copies_share_a_half_space_that_holds_for_each():
    texts = cone(30)
    f, k = texts[:2], texts[2:]
    twin = F.normalize(f[:1] + 0.004 * cone(1, seed=5))
    r, _ = contrasts(torch.cat([f, twin, f[:1]]), k)
    assert float(r[0] @ r[2]) > ALIKE
    tau = torch.tensor([-0.01, -0.01, 0.02, -0.01]).double()
    h = half_spaces("op", r, tau, k, 3.0)
    assert h.shared == ((0, 2, 3),)
    assert len(h.read) == 2
    assert 0 < h.lowered[0] < 0.02
    z = edited(h, torch.cat([rows_of(32, 300), r, f, twin]))
    assert torch.linalg.vector_norm(z, dim=1).max() < h.longest
    assert (z @ r.T <= tau + 1e-6).all()
    same = half_spaces("op", r[[0, 1, 0]], tau[[0, 1, 0]], k, 3.0)
    assert same.shared == ((0, 2),)
    assert same.lowered[0] == pytest.approx(0, abs=1e-12)
    assert half_spaces("op", r[:2], tau[:2], k, 3.0).shared == ()


def test_a_chain_of_near_copies_is_one_group():
    way, other = torch.eye(16).double()[:2]
    turned = [F.normalize(way + 0.01 * i * other, dim=0) for i in range(4)]
    r = torch.stack([turned[0], turned[2], turned[1], turned[3], -other])
    h = half_spaces("op", r, torch.zeros(5).double(), None, 0.0)
    assert h.shared == ((0, 1, 2, 3),)
    assert h.lowered[0] == pytest.approx(h.longest * 0.015, rel=0.01)


def test_contrasts_that_contradict_one_another_are_refused_by_name():
    r = rows_of(16, 3)
    against = torch.cat([r, -r[1:2]])
    tau = torch.full((4,), -1e-4).double()
    names = ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"must not contradict one another.*names \['b', 'd'\]"):
        half_spaces("op", against, tau, None, 0.0, names)
    mixture = F.normalize(r[0] + r[1], dim=0)
    with pytest.raises(ValueError, match=r"something of its own.*rows \[0, 1, 3\]"):
        half_spaces("op", torch.cat([r, mixture[None]]), tau, None, 0.0)
    with pytest.raises(ValueError, match=r"op: keep_weight must be smaller"):
        half_spaces("op", r[:2], tau[:2], torch.stack([r[0] - r[1], r[1] - r[0]]), 1e12)


@pytest.mark.parametrize("turned", [0.003, 0.02, 0.05])
def test_contrasts_that_nearly_contradict_one_another_are_refused(turned):
    way, other = torch.eye(16).double()[:2]
    against = -F.normalize(way + turned * other, dim=0)
    tau = torch.full((2,), -1e-4).double()
    with pytest.raises(ValueError, match=r"op: forget must not nearly contradict"):
        half_spaces("op", torch.stack([way, against]), tau, None, 0.0)
    away = -F.normalize(way + 0.4 * other, dim=0)
    h = half_spaces("op", torch.stack([way, away]), tau, None, 0.0)
    x = rows_of(16, 500).float()
    z = clipproj.ops.project(x, h.read, h.write, h.offset, gram=h.gram)
    assert (z @ h.read.T <= h.offset + 1e-5).all()


def test_more_than_the_operators_solve_is_refused():
    r = rows_of(400, 257)
    with pytest.raises(ValueError, match=r"must be at most 256 names one-sided, got 257; leave"):
        half_spaces("op", r, torch.zeros(257).double(), None, 0.0)
    assert len(half_spaces("op", r[:256], torch.zeros(256).double(), None, 0.0).read) == 256


def test_thresholds_are_numbers_or_so_many_sigmas():
    texts = cone(30)
    r, _ = contrasts(texts[:3], texts[3:])
    want = (texts[3:] @ r.T).var(0, correction=0).sqrt()
    tau, sigma = thresholds("op", "0.5 sigma", r, texts[3:])
    torch.testing.assert_close(sigma, want)
    torch.testing.assert_close(tau, want / 2)
    torch.testing.assert_close(thresholds("op", "-2sigma", r, texts[3:])[0], -2 * want)
    for value in (0.1, "0.1"):
        tau, sigma = thresholds("op", value, r, texts[3:])
        assert (sigma, tau.tolist()) == (None, [0.1] * 3)
    for value in ("sigma", "much", "0.5 sigmas", float("nan"), 1.5, "inf", "99 sigma"):
        with pytest.raises(ValueError, match=r"op: threshold must be a number in \[-1, 1\] or"):
            thresholds("op", value, r, texts[3:])
    with pytest.raises(ValueError, match="op: threshold must be a number without keep"):
        thresholds("op", "1 sigma", r, None)


def test_the_equality_form_reads_nothing_afterwards_and_moves_least():
    texts = cone(40, d=24)
    f, k = texts[:3], texts[3:]
    basis = torch.linalg.svd(f - k.mean(0), full_matrices=False)[2]
    write = oblique(basis, k, 5.0)
    x = rows_of(24, 50)
    z = x - x @ basis.T @ write
    assert (z @ basis.T).abs().max() < 1e-12
    centred = k - k.mean(0)
    bend = torch.eye(24, dtype=torch.float64) + 5 * centred.T @ centred
    along = torch.linalg.svd(basis)[2][3:]  # what may be added without being read
    assert ((x - z) @ bend @ along.T).abs().max() < 1e-10
    torch.testing.assert_close(oblique(basis, None, 0.0), basis)


def test_a_dtype_without_a_margin_is_refused():
    with pytest.raises(ValueError, match="op: dtype must be one of torch"):
        module.storage_dtype("op", torch.int8)
