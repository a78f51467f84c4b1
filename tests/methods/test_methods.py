"""The methods' closed forms against their own optimality, on synthetic and on real texts."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from embeddings import CIFAR, D, cone, texts, vitb32

import clipproj
from clipproj import Embeddings, ccup, from_leace, nullspace


def test_plain_null_space_removes_the_texts_and_nothing_orthogonal():
    f = cone(3)
    p = nullspace(f, contrast="none")
    assert p.rank == 3
    assert p.symmetric
    assert p(f).abs().max() < 1e-6
    torch.testing.assert_close(p.read @ p.read.T, torch.eye(3), atol=1e-6, rtol=0)
    other = cone(20, seed=1)
    gone = other - p(other)
    assert torch.linalg.matrix_rank(torch.cat([f, gone]), atol=1e-5) == 3


def test_auto_contrast_is_none_span_or_mean_by_the_length_of_keep():
    f = cone(1)
    with pytest.warns(UserWarning, match="without keep"):
        assert nullspace(f).provenance["parameters"]["contrast"] == "none"
    for m, want in ((1, "span"), (16, "span"), (17, "mean"), (40, "mean")):
        p = nullspace(f, cone(m, seed=2, d=D))
        assert p.provenance["parameters"]["contrast"] == want


def test_span_contrast_leaves_kept_texts_where_they_are():
    f, k = cone(2), cone(9, seed=5)
    p = nullspace(f, k)
    torch.testing.assert_close(p(k), k, atol=1e-6, rtol=0)
    assert (p(f) - f).norm(dim=1).min() > 0.1


def test_mean_contrast_is_the_direction_away_from_the_mean():
    f, k = cone(1), cone(40, seed=5)
    p = nullspace(f, k, strength=1.5)
    want = F.normalize(f - k.mean(0))
    torch.testing.assert_close((p.read.double() @ want.T).abs(), torch.ones(1, 1).double())
    assert float(p.strength) == 1.5


def test_rows_of_any_length_count_the_same():
    f, k = cone(3), cone(9, seed=5)
    scales = torch.tensor([[0.1], [7], [1e4]])
    p, q = nullspace(f, k), nullspace(f * scales, 3 * k)
    torch.testing.assert_close(p.dense(), q.dense(), atol=1e-6, rtol=0)


def test_rank_and_tol_drop_directions_and_say_so():
    f = cone(3)
    doubled = torch.cat([f, F.normalize(f[:1] + 1e-7 * f[1:2])])
    p = nullspace(doubled, contrast="none")
    assert p.rank == 3
    assert p.provenance["parameters"]["dropped_by_tol"] == 1
    q = nullspace(doubled, contrast="none", rank=1)
    assert (q.rank, q.provenance["parameters"]["dropped_by_rank"]) == (1, 2)
    assert len(q.provenance["parameters"]["singular_values"]) == 4
    strongest = torch.linalg.svd(f.float())[2][:1]
    assert (q.read @ strongest.T).abs().item() > 0.99


def ccup_objective(m, f, k, lam, mu):
    eye = torch.eye(len(m), dtype=m.dtype)
    loss = (m - eye).square().sum() + lam * (m @ f.T).square().sum()
    return loss + mu * (m @ k.T - k.T).square().sum()


@pytest.mark.parametrize("keeps", [9, 3 * D])
@pytest.mark.parametrize(("lam", "mu"), [(10.0, 100.0), (0.3, 0.0), (1e4, 1e4), (1e12, 1e12)])
@pytest.mark.parametrize("m", [1, 4])
def test_ccup_is_the_stationary_point_of_its_objective(lam, mu, m, keeps):
    f, k = cone(m), cone(keeps, seed=5)
    p = ccup(f, k, lam, mu, side="text")
    r, w = p.factors(torch.float64)["read"], p.factors(torch.float64)["write"]
    matrix = (torch.eye(D, dtype=torch.float64) - r.T @ w).T.requires_grad_()  # acts on columns
    gradient = torch.autograd.grad(ccup_objective(matrix, f, k, lam, mu), matrix)[0]
    zero = torch.zeros(D, D, dtype=torch.float64, requires_grad=True)
    start = torch.autograd.grad(ccup_objective(zero, f, k, lam, mu), zero)[0]
    assert gradient.norm() < 1e-5 * start.norm()  # factors are float32
    assert p.rank == m


def test_ccup_without_keep_weight_is_partial_projection():
    f, lam = cone(1), 3.0
    p = ccup(f, cone(5, seed=5), lam, 0.0)
    q = nullspace(f, contrast="none", strength=lam / (1 + lam))
    torch.testing.assert_close(p.dense(), q.dense(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("lam", [0.3, 10.0])
def test_ccup_without_keep_weight_projects_each_singular_direction_in_part(lam):
    f = cone(4)
    p = ccup(f, cone(5, seed=5), lam, 0.0)
    _, s, right = torch.linalg.svd(f, full_matrices=False)
    alpha = lam * s.square() / (1 + lam * s.square())
    want = torch.eye(D).double() - right.T @ torch.diag(alpha) @ right
    torch.testing.assert_close(p.dense().double(), want, atol=1e-6, rtol=0)


def test_ccup_is_what_an_optimiser_finds():
    f, k, lam, mu = cone(2, d=6).T, cone(3, seed=5, d=6).T, 10.0, 100.0
    m = torch.eye(6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([m], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def loss():
        optimiser.zero_grad()
        missed = (m - torch.eye(6)).square().sum() + lam * (m @ f).square().sum()
        total = missed + mu * (m @ k - k).square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    # M acts on texts as columns; the projector of the image side on rows: z M
    found = ccup(f.T, k.T, lam, mu).dense().double()
    torch.testing.assert_close(found, m.detach(), atol=1e-5, rtol=0)


def test_ccup_limit_forgets_and_keeps_on_the_right_side_and_not_on_the_wrong_one():
    f, k, z = cone(1), cone(9, seed=5), cone(30, seed=8, spread=2.0)
    image = ccup(f, k, 1e7, 1e7)
    assert image.side == "image"
    assert (image(z) @ f.T).abs().max() < 1e-3  # similarity to the forgotten text is gone
    torch.testing.assert_close(image(z) @ k.T, z @ k.T, atol=1e-3, rtol=0)  # to the kept ones stays
    assert (image.T(z) @ f.T).abs().max() > 0.1  # the text-side edit on images leaves the class
    text = ccup(f, k, 1e7, 1e7, side="text")
    assert text.content_hash() == image.T.content_hash()
    assert text(f).abs().max() < 1e-3
    torch.testing.assert_close(text(k), k, atol=1e-3, rtol=0)


def test_provenance_tells_where_a_projector_comes_from(tmp_path):
    f, k = texts(2), texts(9, offset=2)
    for p in (nullspace(f, k, rank=1), ccup(f, k)):
        p.save(tmp_path / "p")
        story = clipproj.load(tmp_path / "p").provenance
        assert story["forget"] == {"names": list(f.names), "templates": ["a {}"]}
        assert story["keep"]["names"] == list(k.names)
        assert (story["model"], story["head_hash"]) == ("model", "0" * 64)
        assert {"method", "parameters", "clipproj", "torch", "created"} <= story.keys()


@pytest.mark.parametrize("method", [nullspace, ccup])
def test_bad_texts_are_refused(method):
    op = method.__name__
    good, nan, zero = cone(3), cone(3), cone(3)
    nan[1, 4], zero[2] = torch.nan, 0
    keep = cone(4, seed=1)
    cases = [
        (ValueError, "forget must be .* finite rows, got a NaN or inf in row 1", nan, keep),
        (ValueError, "keep must be .* nonzero rows, got a zero vector in row 2", good, zero),
        (ValueError, r"keep must be \[m, 32\] as forget is, got \[4, 7\]", good, keep[:, :7]),
        (ValueError, r"forget must be \[m, d\] with m >= 1, got \[0, 32\]", good[:0], keep),
        (ValueError, r"forget must be \[m, d\] with m >= 1, got \[32\]", good[0], keep),
        (TypeError, "forget must be Embeddings or a floating point tensor, got str", "cat", keep),
        (ValueError, "forget must differ from keep, got row 1 equal to keep row 0", good, good[1:]),
        (ValueError, "keep must not name what forget names", texts(2), texts(3)),
    ]
    for error, text, forget, kept in cases:
        with pytest.raises(error, match=f"{op}: {text}"):
            method(forget, kept)
    forget, kept = (
        Embeddings(F.normalize(rows).float(), names, ("{}",), "m")
        for rows, names in ((good, ("café", "b", "c")), (keep, ("cafe\u0301", "d", "e", "f")))
    )
    with pytest.raises(ValueError, match=f"{op}: keep must not name what forget names"):
        method(forget, kept)
    other = Embeddings(keep.float(), tuple("abcd"), ("{}",), "another", "1" * 64)
    with pytest.raises(ValueError, match=f"{op}: keep must come from the model"):
        method(texts(2), other)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"contrast": "both"}, "contrast must be"),
        ({"contrast": "span", "keep": None}, 'contrast must be "none" without keep'),
        ({"rank": 0}, "rank must be at least 1"),
        ({"tol": 0.0}, r"tol must be in \(0, 1\)"),
        ({"strength": 2.5}, r"strength must be in \[0, 2\]"),
        ({"forget": torch.eye(D), "keep": None, "contrast": "none"}, "span all of them; give rank"),
        ({"side": "both"}, "side must be"),
    ],
)
def test_bad_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        nullspace(**({"forget": cone(1), "keep": cone(4, seed=1)} | options))


def test_a_class_inside_the_span_of_keep_is_refused_by_name():
    k = cone(4, seed=1)
    f = Embeddings(F.normalize(k.sum(0, keepdim=True)).float(), ("cat",), ("{}",), "m", None)
    with pytest.raises(ValueError, match=r"must not lie inside span\(keep\), got row 0 \(cat\)"):
        nullspace(f, k)


@pytest.mark.parametrize(("lam", "mu"), [(0.0, 1.0), (math.inf, 1.0), (1.0, -1.0), (1.0, math.nan)])
def test_ccup_weights_out_of_range_are_refused(lam, mu):
    with pytest.raises(ValueError, match="_weight must be finite"):
        ccup(cone(1), cone(3, seed=1), lam, mu)


@pytest.mark.parametrize("affine", [True, False])
def test_leace_eraser_is_taken_over(affine):
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randn(D, 4, generator=g) / D for _ in range(2))
    left[:, 2] = 0  # a direction that the fit truncated
    bias = torch.randn(D, generator=g) if affine else None
    eraser = SimpleNamespace(proj_left=left, proj_right=right.T, bias=bias)
    x = torch.randn(6, D, generator=g)
    delta = x if bias is None else x - bias
    p = from_leace(eraser)
    assert p.rank == 3
    torch.testing.assert_close(p(x), x - (delta @ right) @ left.T, atol=1e-6, rtol=1e-6)


def test_numpy_numbers_are_saved_as_numbers(tmp_path):
    nullspace(cone(3), cone(9, seed=5), rank=np.int64(2)).save(tmp_path / "p")
    ccup(cone(1), cone(9, seed=5), np.float32(10), torch.tensor(100.0)).save(tmp_path / "q")
    with pytest.raises(ValueError, match=r"ccup: forget must be \[m, d\] with m <= d"):
        ccup(cone(D + 1), cone(9, seed=5))


def test_embeddings_of_an_unknown_head_are_not_refused():
    unknown = Embeddings(cone(9, seed=5).float(), tuple("abcdefghi"), ("a {}",), "m", None)
    assert nullspace(texts(1), unknown).provenance["head_hash"] == "0" * 64


def test_what_is_no_leace_eraser_is_refused():
    with pytest.raises(TypeError, match="from_leace: eraser must have tensors proj_left"):
        from_leace(object())
    wrong = SimpleNamespace(proj_left=torch.ones(3, 2), proj_right=torch.ones(3, 2), bias=None)
    with pytest.raises(ValueError, match=r"proj_left \[d, k\]"):
        from_leace(wrong)
    wrong = SimpleNamespace(
        proj_left=torch.ones(3, 2), proj_right=torch.ones(2, 3), bias=torch.ones(2)
    )
    with pytest.raises(ValueError, match=r"a bias \[3\], got \[2\]"):
        from_leace(wrong)


def test_on_real_clip_texts_span_keeps_every_kept_text_and_takes_the_class():
    rows = vitb32(CIFAR)
    cat = CIFAR.index("Cat")
    keep = torch.cat([rows[:cat], rows[cat + 1 :]])
    p = nullspace(rows[cat : cat + 1], keep)
    assert F.cosine_similarity(p(keep), keep).min() > 1 - 1e-6
    assert p.residual(p(rows[cat : cat + 1])).item() < 1e-5
    plain = nullspace(rows[cat : cat + 1], keep, contrast="none")
    assert F.cosine_similarity(plain(keep), keep).max() < 0.7  # what the shared direction costs
