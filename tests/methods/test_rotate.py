"""Rotations against the Cayley transform: lengths, the way back, and what images then score."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from embeddings import CIFAR, D, cone, texts, vitb32

import clipproj
from clipproj import ccup, compose, nullspace
from clipproj.methods.contrast import row_basis
from clipproj.methods.rotate import plane_rotation, rotate, unrotate

EYE = torch.eye(D, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("degrees", [1.0, 90.0, 150.0])
def test_factors_are_the_cayley_transform_of_a_skew_matrix(count, degrees):
    a, b = torch.linalg.qr(cone(2 * count).T)[0].T.split(count)
    angle = math.radians(degrees)
    read, write = plane_rotation(a, b, angle)
    matrix = EYE - read.T @ write
    skew = math.tan(angle / 2) * (b.T @ a - a.T @ b)
    torch.testing.assert_close(
        matrix, torch.linalg.solve(EYE - skew, EYE + skew), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(matrix.T @ matrix, EYE, atol=1e-12, rtol=0)
    turned = math.cos(angle) * a + math.sin(angle) * b
    torch.testing.assert_close(a @ matrix.T, turned, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("m", "keeps"), [(1, 9), (3, 40)])
@pytest.mark.parametrize("angle", [60.0, 120.0, 180.0])
def test_lengths_stay_and_the_inverse_is_exact(m, keeps, angle):
    p = rotate(cone(m, seed=3), keep=cone(keeps, seed=5), angle=angle)
    z = torch.randn(200, D)
    assert p.rank == 2 * m
    assert (p(z) - z).norm(dim=1).min() > 0.01
    torch.testing.assert_close(p(z).norm(dim=1), z.norm(dim=1), atol=0, rtol=1e-6)
    back = unrotate(p)
    assert back.side == p.side
    torch.testing.assert_close(back(p(z)), z, atol=3e-6, rtol=0)
    for both in (compose(p, back), compose(back, p)):
        torch.testing.assert_close(both.dense(), torch.eye(D), atol=1e-6, rtol=0)
    assert unrotate(back).content_hash() == p.content_hash()
    assert back.provenance["undoes"] == p.content_hash()


def test_every_class_turns_by_the_angle_however_alike_the_classes_are():
    f, k = cone(3, seed=3, spread=0.2), cone(40, seed=5)  # cosines of their contrasts are about 0.9
    p = rotate(f, keep=k, angle=75)
    apart = F.normalize(f - k.mean(0))
    turned = p.T(apart)  # what texts become
    cosine = torch.full((3,), math.cos(math.radians(75)), dtype=torch.float64)
    torch.testing.assert_close((turned * apart).sum(1), cosine, atol=1e-6, rtol=0)


def test_span_contrast_leaves_kept_texts_and_all_scores_for_them():
    f, k, z = cone(2, seed=3), cone(9, seed=5), cone(30, seed=8, spread=2.0)
    p = rotate(f, keep=k)
    assert p.provenance["parameters"]["contrast"] == "span"
    torch.testing.assert_close(p(z) @ k.T, z @ k.T, atol=1e-6, rtol=0)
    assert (p(z) @ f.T - z @ f.T).abs().max() > 0.1


@pytest.mark.parametrize("angle", [40.0, 90.0, 120.0, 180.0])
def test_texts_see_a_null_space_of_strength_one_less_the_cosine(angle):
    f, k, z = cone(2, seed=3), cone(9, seed=5), cone(30, seed=8, spread=2.0)
    p = rotate(f, keep=k, angle=angle)
    a, b = p.read.double().split(2)
    z = z - z @ b.T @ b  # images with nothing in the neutral directions
    q = nullspace(f, k, strength=1 - math.cos(math.radians(angle)))
    seen = torch.cat([f, k])
    torch.testing.assert_close(p(z) @ seen.T, q(z) @ seen.T, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        q.dense(), nullspace(a, contrast="none", strength=q.strength).dense()
    )


def test_neutral_directions_avoid_what_is_kept_and_follow_their_seed():
    f, k = cone(1, seed=3), cone(200, seed=5)  # many more texts than dimensions
    hashes = set()
    for seed in range(5):
        p = rotate(f, keep=k, seed=seed)
        hashes.add(p.content_hash())
        assert p.content_hash() == rotate(f, keep=k, seed=seed).content_hash()
        spread = torch.linalg.svdvals(k)
        assert (k @ p.read[1].double()).norm() < spread.median()
    assert len(hashes) == 5


def test_signs_that_a_library_gives_singular_vectors_do_not_matter(monkeypatch):
    f, k, x = cone(3, seed=3), cone(40, seed=5), cone(9, seed=7)
    want = rotate(f, keep=k)(x)

    def flipped(rows, tol):
        found = row_basis(rows, tol)
        return -found[0], *found[1:]

    monkeypatch.setattr(sys.modules[rotate.__module__], "row_basis", flipped)
    torch.testing.assert_close(rotate(f, keep=k)(x), want, atol=1e-6, rtol=0)


def test_one_tower_changes_scores_both_do_not():
    f, k = cone(2, seed=3), cone(40, seed=5)
    p = rotate(f, keep=k)
    z, t = cone(30, seed=8, spread=2.0), torch.cat([f, k])
    torch.testing.assert_close(p(z) @ p(t).T, z @ t.T, atol=1e-6, rtol=0)
    assert (p(z) @ t.T - z @ t.T).abs().max() > 0.1
    assert rotate(f, keep=k, side="text").content_hash() == p.T.content_hash()
    torch.testing.assert_close(p(z) @ t.T, z @ p.T(t).T, atol=1e-6, rtol=0)


def orthonormal(rows):
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    return left @ right


def test_texts_turn_into_their_targets_in_order():
    f, t, k = cone(3, seed=3), cone(3, seed=7), cone(40, seed=5)
    for contrast, own, neutral in (("none", f, t), ("mean", f - k.mean(0), t - k.mean(0))):
        p = rotate(f, t, k, angle=90, contrast=contrast)
        a = orthonormal(own)
        b = orthonormal(neutral - neutral @ a.T @ a)
        torch.testing.assert_close(p.T(a), b, atol=1e-6, rtol=0)
        assert p.provenance["parameters"]["target"] == {"kind": "given", "rows": 3}
    one = rotate(f[:1], t[:1], k, angle=90, contrast="none").T(f[:1])
    want = F.normalize(t[:1] - (t[:1] @ f[:1].T) * f[:1])
    torch.testing.assert_close(one, want, atol=1e-6, rtol=0)


def test_doubles_turn_once(tmp_path):
    f, k = cone(2, seed=3), cone(40, seed=5)
    doubled = torch.cat([f, F.normalize(f[:1] + 1e-7 * f[1:])])
    p = rotate(doubled, keep=k)
    assert p.rank == 4
    assert p.provenance["parameters"]["directions"] == 2
    p.save(tmp_path / "p.safetensors")
    again = clipproj.load(tmp_path / "p.safetensors")
    assert again.provenance == p.provenance
    torch.testing.assert_close(
        compose(again, unrotate(again)).dense(), torch.eye(D), atol=1e-6, rtol=0
    )


def test_without_keep_it_warns():
    with pytest.warns(UserWarning, match="rotate: without keep"):
        p = rotate(texts(1), texts(1, offset=3))
    assert p.provenance["parameters"]["target"] == {"kind": "given", "names": ["class 3"]}
    assert p.provenance["forget"]["names"] == ["class 0"]


def test_what_does_not_keep_lengths_has_no_inverse():
    f, k = cone(1, seed=3), cone(9, seed=5)
    mirror = nullspace(f, k, strength=2)
    assert unrotate(mirror).content_hash() == mirror.content_hash()
    for p in (ccup(f, k), nullspace(f, k), rotate(f, keep=k).scaled(0.5)):
        with pytest.raises(ValueError, match="unrotate: projector must keep every length"):
            unrotate(p)
    affine = clipproj.Projector(mirror.read, offset=torch.ones(1), strength=0.0)
    with pytest.raises(ValueError, match="and has an offset"):
        unrotate(affine)
    with pytest.raises(TypeError, match="unrotate: projector must be a Projector, got Tensor"):
        unrotate(f)


NAN = torch.full((1, D), math.nan)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"forget": NAN}, ValueError, "rotate: forget must be .* finite rows, got a NaN"),
        ({"keep": NAN}, ValueError, "rotate: keep must be .* finite rows"),
        ({"keep": None}, ValueError, "target or keep must be given, got None for both"),
        ({"keep": cone(2, seed=3)}, ValueError, "forget must differ from keep"),
        ({"target": cone(1, seed=7)}, ValueError, r"target must be \[2, 32\] .* got \[1, 32\]"),
        ({"target": cone(2, seed=7, d=16)}, ValueError, r"target must be .* got \[2, 16\]"),
        ({"target": cone(2, seed=3)}, ValueError, "target, got a target inside them"),
        ({"target": "self"}, TypeError, "target must be Embeddings or a floating point tensor"),
        ({"forget": cone(17)}, ValueError, "must leave 17 of the 32 dimensions to neutral"),
        ({"keep": cone(31, seed=5), "contrast": "span", "forget": cone(1)}, ValueError, "leave 1"),
        ({"angle": 0}, ValueError, r"angle must be in \(0, 180\] degrees, got 0"),
        ({"angle": 181}, ValueError, "angle must be"),
        ({"angle": math.nan}, ValueError, "angle must be"),
        ({"contrast": "best"}, ValueError, "contrast must be .* got 'best'"),
        (
            {"keep": None, "target": cone(2, seed=7), "contrast": "mean"},
            ValueError,
            '"none" without',
        ),
        ({"side": "audio"}, ValueError, "side must be"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, text):
    arguments = {"forget": cone(2, seed=3), "keep": cone(40, seed=5)} | changes
    with pytest.raises(error, match=text):
        rotate(**arguments)


def test_a_class_without_a_direction_of_its_own_is_refused_by_name():
    k = texts(4, offset=1)
    inside = F.normalize(k.tensor[:2].mean(0, keepdim=True))
    f = clipproj.Embeddings(inside, ("between",), ("a {}",), "model", "0" * 64)
    with pytest.raises(ValueError, match=r"rotate: forget must not lie inside .* \(between\)"):
        rotate(f, keep=k)


def test_on_real_clip_texts_a_class_goes_and_the_others_stay():
    every = F.normalize(vitb32(CIFAR))
    for i in range(len(CIFAR)):
        keep = torch.cat([every[:i], every[i + 1 :]])
        for contrast in ("span", "mean"):
            scores = rotate(every[i : i + 1], keep=keep, contrast=contrast)(every) @ every.T
            best = scores.argmax(1)
            assert best[i] != i
            assert (best == torch.arange(len(CIFAR))).sum() == len(CIFAR) - 1
