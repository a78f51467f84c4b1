"""The nearest mixture of kept texts, and what the hull contrast promises of it."""

import pytest
import torch
import torch.nn.functional as F
from embeddings import CIFAR, cone, vitb32
from hypothesis import given, settings
from hypothesis import strategies as st

from clipproj import nullspace
from clipproj.methods import hull
from clipproj.methods.hull import nearest_mixture


@given(
    m=st.integers(1, 30), d=st.integers(1, 12), seed=st.integers(0, 2**31), twice=st.booleans(),
    near=st.sampled_from([0.0, 0.1, 1.0]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_it_is_the_projection_on_the_hull(m, d, seed, twice, near):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, d, generator=g, dtype=torch.float64)
    if twice:  # rows that repeat, and more of them than dimensions
        rows = rows[torch.randint(m, (m,), generator=g)]
    point = near * torch.randn(d, generator=g, dtype=torch.float64)
    weights = nearest_mixture(point, rows)
    assert (weights >= 0).all()
    assert abs(float(weights.sum()) - 1) < 1e-12
    # the projection on a convex set is the one point with an obtuse angle to all others
    mixture = weights @ rows
    assert ((rows - mixture) @ (point - mixture)).max() < 1e-9 * (1 + rows.square().sum(1).max())


@pytest.mark.parametrize("keeps", [1, 17, 300])
def test_no_image_is_answered_by_a_class_erased_against_a_closed_list(keeps):
    texts = cone(keeps + 2)
    forget, keep = texts[:2], texts[2:]
    p = nullspace(forget, keep, contrast="hull")
    assert p.rank == 2
    images = torch.randn(4000, texts.shape[1], generator=torch.Generator().manual_seed(1)).double()
    scores = p(torch.cat([images, F.normalize(images) + 3 * forget[:1]])) @ texts.T
    assert (scores[:, :2].amax(1) <= scores[:, 2:].amax(1) + 1e-6).all()
    if keeps > 1:  # and it is not so at less strength: the bound is the projection's
        partly = p(images + 9 * forget[:1], 0.5) @ texts.T
        assert (partly[:, :2].amax(1) > partly[:, 2:].amax(1)).any()


def test_the_text_side_keeps_the_promise_until_texts_are_divided_by_their_length():
    texts = cone(22)
    p = nullspace(texts[:2], texts[2:], contrast="hull", side="text")
    g = torch.Generator().manual_seed(1)
    images = torch.randn(4000, texts.shape[1], generator=g).double()
    scores = images @ p(texts).T
    assert (scores[:, :2].amax(1) <= scores[:, 2:].amax(1) + 1e-6).all()
    again = images @ p(texts, normalize=True).T
    assert (again[:, :2].amax(1) > again[:, 2:].amax(1)).any()


def test_a_near_copy_of_a_kept_text_cannot_be_forgotten():
    keep = cone(20)
    copy = F.normalize(keep[:1] + 0.004 * cone(1, seed=9))
    assert nullspace(copy, keep, contrast="hull").rank == 1  # of unit texts only copies are inside
    with pytest.raises(ValueError, match=r"must not lie inside hull\(keep\), got row 0 there"):
        nullspace(copy, keep, contrast="hull", tol=0.01)


def test_on_real_clip_texts_the_hull_leaves_a_direction_where_the_span_leaves_none():
    rows = F.normalize(vitb32(None), dim=1)
    cat, others = rows[:1], rows[1:]
    left = {}
    for n in (39, 209, len(others)):
        basis = torch.linalg.svd(others[:n], full_matrices=False)[2]
        span = cat - cat @ basis.T @ basis
        hull = cat - nearest_mixture(cat[0], others[:n]) @ others[:n]
        left[n] = (float(span.norm()), float(hull.norm()))
    assert all(hull > 0.25 for _, hull in left.values()), left
    assert left[209][0] < left[209][1]


def test_cifar_names_of_real_clip_keep_their_answers():
    rows = F.normalize(vitb32(CIFAR), dim=1)
    i = CIFAR.index("Cat")
    keep = torch.cat([rows[:i], rows[i + 1 :]])
    p = nullspace(rows[i : i + 1], keep, contrast="hull")
    edited = p(keep)
    assert torch.equal((edited @ rows.T).argmax(1), (keep @ rows.T).argmax(1))
    assert F.cosine_similarity(edited, keep).min() > 0.99


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_weights_do_not_hang_on_the_scale(scale):
    texts = cone(60)
    want = nearest_mixture(texts[0], texts[1:])
    torch.testing.assert_close(nearest_mixture(scale * texts[0], scale * texts[1:]), want)


def test_it_ends_with_rows_that_rounding_alone_tells_apart():
    g = torch.Generator().manual_seed(0)
    texts = cone(41)
    for noise in (1e-5, 1e-7, 1e-9, 1e-12, 0.0):
        rows = texts[1:].repeat(5, 1)
        rows = rows + noise * torch.randn(rows.shape, generator=g, dtype=torch.float64)
        apart = nearest_mixture(texts[0], rows) @ rows - texts[0]
        once = nearest_mixture(texts[0], texts[1:]) @ texts[1:] - texts[0]
        assert abs(float(apart.norm() - once.norm())) < 1e-9 + 10 * noise


def test_what_does_not_end_at_the_nearest_mixture_is_an_error(monkeypatch):
    texts = cone(60)
    # a solver that always answers with the entering row alone never gets there
    monkeypatch.setattr(hull, "_affine_minimum", lambda gram: torch.eye(len(gram)).double()[-1])
    with pytest.raises(RuntimeError, match="nearest_mixture: rows must have a nearest mixture"):
        nearest_mixture(texts[0], texts[1:])
