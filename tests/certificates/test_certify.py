"""No row leads by more than its certificate says, and a certificate does not say too much."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from embeddings import CIFAR, VITB32, cone, vitb32
from half_spaces import ascended, hard_rows, leads, one_sided

import clipproj
from clipproj import Embeddings, Projector

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def margin(dtype):
    """A threshold that leaves room for rounding: 2 for the length of edited rows."""
    return 2e-4 + torch.finfo(dtype).eps


def check(p, keep, dtype, rows=None):
    """The certificate, after no row has led by more; edited, stored and scored as it says."""
    found = clipproj.certificate(p, keep, dtype)
    rows = hard_rows(p, keep) if rows is None else rows
    edited = p(rows.to(dtype))
    assert edited.isfinite().all()
    assert torch.linalg.vector_norm(edited.double(), dim=1).max() <= found.length
    bound = torch.tensor([found.leads[name] + found.eps[name] for name in found.leads])
    assert (leads(edited, p.forget, keep) <= bound).all()
    again = leads(p(rows.to(dtype), normalize=True), p.forget, keep)
    if found.certified:
        assert (again < 0).all()
    return found, float(again.max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", [0.0, 3.0])
@pytest.mark.parametrize(
    ("names", "kept", "d"), [(1, 1, 8), (1, 30, 32), (4, 40, 32), (20, 60, 96)]
)
def test_half_spaces_are_certified(dtype, weight, names, kept, d):
    texts = cone(names + kept, d=d)
    p = one_sided(texts[:names], texts[names:], margin(dtype), weight)
    found, worst = check(p, texts[names:], dtype)
    assert found.certified, found
    assert worst < 0


def both_lists(names, real):
    """Texts to forget and to keep; real ones are of OpenAI's ViT-B/32."""
    texts = F.normalize(vitb32(None), dim=1) if real else cone(names + 120, d=256)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(names))
    return texts[order[:names]], texts[order[names:]]


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("real", [False, True], ids=["cone", "real"])
@pytest.mark.parametrize("names", [1, 2, 10, 100])
def test_what_nullspace_makes_is_certified(names, real, dtype):
    """And no row of a dozen kinds leads, as it is stored."""
    forget, keep = both_lists(names, real)
    p = clipproj.nullspace(forget, keep, "hull", keep_weight=3.0, one_sided=True, dtype=dtype)
    known = torch.cat([p.read, p.write, p.forget]).double()[:200]
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(200, p.dim, generator=g, dtype=torch.float64)
    rows = F.normalize(torch.cat([rows, known, -known, known + 0.3 * rows[: len(known)]]), dim=1)
    rows = torch.cat([rows, ascended(p, keep, rows[:: max(1, names // 4)], 24)])
    found, worst = check(p, keep, dtype, rows)
    assert found.certified, found
    assert worst < 0


def test_a_margin_of_another_dtype_does_not_do():
    forget, keep = both_lists(10, real=False)
    p = clipproj.nullspace(forget, keep, "hull", keep_weight=3.0, one_sided=True)
    assert clipproj.certificate(p, keep, torch.float32).certified
    assert not clipproj.certificate(p, keep, torch.bfloat16).certified


def test_a_weaker_edit_is_not_certified():
    forget, keep = both_lists(10, real=False)
    options = {"keep_weight": 3.0, "one_sided": True}
    level = clipproj.nullspace(forget, keep, "hull", threshold=0.0, **options)
    tie = clipproj.certificate(level, keep)
    assert not tie.certified
    assert "rounding may decide" in str(tie)
    assert not clipproj.certificate(level.scaled(0.9), keep).certified
    above = clipproj.nullspace(forget, keep, "hull", threshold=0.02, **options)
    found, worst = check(above, keep, torch.bfloat16)
    assert not found.certified
    assert worst > 0  # and it is not so


@pytest.mark.parametrize("real", [False, True], ids=["cone", "real"])
@pytest.mark.parametrize("names", [1, 20])
def test_the_folded_sibling_ties(names, real):
    forget, keep = both_lists(names, real)
    p = clipproj.nullspace(forget, keep, "hull", keep_weight=10.0)
    found, _ = check(p, keep, torch.float32, hard_rows(p, keep, 20, steps=3))
    assert abs(found.lead) < 1e-6
    assert not found.certified
    assert "rounding may decide" in str(found)
    half = clipproj.nullspace(forget, keep, "hull", keep_weight=3.0, one_sided=True).linear()
    assert abs(clipproj.certificate(half, keep).lead) < 1e-6


def test_methods_tell_what_they_forget():
    forget, keep = both_lists(2, real=False)
    made = [
        clipproj.ccup(forget, keep),
        clipproj.redirect(forget, "self", keep),
        clipproj.rotate(forget, keep=keep),
        clipproj.subgroup(forget, keep),
        clipproj.nullspace(forget, keep, "mean"),
    ]
    for p in made:
        torch.testing.assert_close(p.forget, forget.float())
        assert clipproj.certificate(p, keep).lead > -1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.3, 2.0])
def test_beyond_strength_1_where_no_element_of_gram_is_negative(dtype, strength):
    texts = cone(43, d=32)
    alike = F.normalize(texts[:3] + 2 * texts[3:4], dim=1)  # contrasts that share a direction
    p = one_sided(alike, texts[4:], margin(dtype), 0.0, strength)
    assert p.gram.min() >= 0
    found, worst = check(p, texts[4:], dtype)
    assert found.certified == (strength >= 1)
    assert (worst < 0) == (strength >= 1)


def test_beyond_strength_1_with_negative_elements_it_is_not_certified():
    texts = cone(24, d=16)
    p = one_sided(texts[:4], texts[4:], 1e-3, 0.0, 1.9)
    assert p.gram.min() < -0.1
    found, worst = check(p, texts[4:], torch.float32)
    assert not found.certified
    assert worst > 0  # and it is not so


def test_a_symmetric_hull_beyond_strength_1_is_exposed():
    texts = cone(21, d=24)
    keep = texts[1:]
    p = clipproj.nullspace(texts[:1], keep, "hull", strength=1.5)

    found = clipproj.certificate(p, keep)
    row = -p.read.double() * (p.read.double() @ texts[0]).sign()
    left = leads(p(row), texts[:1], keep).item()
    assert left > 0.1  # half of the contrast's length
    assert found.lead >= left
    assert not found.certified
    assert str(found).startswith("Not certified: on some row 'row 0' may lead")


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0, 1.5])
@pytest.mark.parametrize("method", ["hull", "mean", "ccup"])
def test_the_bound_of_a_linear_edit_is_the_largest_lead(method, strength):
    texts = cone(22, d=16)
    forget, keep = texts[:2], texts[2:]
    if method == "ccup":
        p = clipproj.ccup(forget, keep).scaled(strength)
    else:
        p = clipproj.nullspace(forget, keep, method).scaled(strength)
    p.forget = forget.float()
    found, _ = check(p, keep, torch.float64)
    largest = leads(p(hard_rows(p, keep, steps=200)), forget, keep).amax(0)
    for lead, name in zip(largest.tolist(), found.leads, strict=True):
        assert lead == pytest.approx(found.leads[name], abs=0.02)


def test_the_bound_of_one_half_space_is_reached():
    """But for the witnesses, which would all have to score the same."""
    texts = cone(3, d=16)
    p = one_sided(texts[:1], texts[1:], 0.05, 3.0)
    found, _ = check(p, texts[1:], torch.float64)
    reached = leads(p(hard_rows(p, texts[1:], steps=300)), texts[:1], texts[1:]).max()
    assert found.lead == pytest.approx(float(reached), abs=2e-3)


@pytest.mark.parametrize("apart", [0.05, 0.01])
def test_a_near_synonym_as_the_only_kept_name(apart):
    texts = cone(2, d=64)
    forget = texts[:1]
    keep = F.normalize(forget + apart * texts[1:], dim=1)
    found, _ = check(one_sided(forget, keep, 2e-4), keep, torch.float32)
    assert found.certified
    assert [name for name, _ in found.witnesses["row 0"]] == ["row 0"]
    linear = clipproj.nullspace(forget, keep, "hull")

    tie = clipproj.certificate(linear, keep)
    assert not tie.certified  # both score the same
    assert tie.lead < tie.eps["row 0"] < 1e-5
    assert "rounding may decide" in str(tie)


def test_a_list_without_the_witnesses_is_not_certified():
    texts = cone(31, d=16)
    p = one_sided(texts[:1], texts[1:], 1e-3)
    whole = clipproj.certificate(p, texts[1:])
    assert whole.certified
    held = [int(name[4:]) for name, weight in whole.witnesses["row 0"] if weight > 1e-6]
    few, rest = texts[1:][held], [i for i in range(30) if i not in held]
    again = clipproj.certificate(p, few)
    assert again.certified
    assert again.lead == pytest.approx(whole.lead, abs=1e-7)
    assert not clipproj.certificate(p, texts[1:][rest]).certified


def test_a_mixture_that_is_not_the_nearest_is_found():
    """As for half-spaces that were made of some of the kept texts, or of their mean."""
    texts = cone(31, d=24)
    p = one_sided(texts[:1], texts[1:9], 1e-3)
    assert clipproj.certificate(p, texts[1:]).certified
    mean = one_sided(texts[:1], texts[1:].mean(0, keepdim=True), 1e-3)
    assert clipproj.certificate(mean, texts[1:]).certified


def test_names_come_from_the_projector_and_from_the_list():
    texts = cone(5, d=12).float()
    all_names = ("cat", "dog", "fox", "owl", "hen")
    named = Embeddings(texts, all_names, ("{}",), "a model")
    p = clipproj.nullspace(named.select(["cat", "dog"]), named.drop(["cat", "dog"]), "hull")

    found = clipproj.certificate(p, named.drop(["cat", "dog"]))
    assert list(found.leads) == ["cat", "dog"]
    assert {name for name, _ in found.witnesses["cat"]} <= {"fox", "owl", "hen"}
    assert sum(weight for _, weight in found.witnesses["cat"]) == pytest.approx(1)


def test_what_is_refused():
    texts = cone(5, d=12).float()
    p = one_sided(texts[:1].double(), texts[1:].double())
    keep = texts[1:]
    with pytest.raises(TypeError, match="certificate: projector must be a Projector, got dict"):
        clipproj.certificate({}, keep)
    with pytest.raises(ValueError, match="certificate: projector must know the texts"):
        clipproj.certificate(Projector(torch.eye(12)[:1]), keep)
    with pytest.raises(ValueError, match='certificate: projector must be of side "image"'):
        clipproj.certificate(Projector(torch.eye(12)[:1], side="text"), keep)
    with pytest.raises(ValueError, match=r"certificate: keep must be \[m, 12\], got \[4, 11\]"):
        clipproj.certificate(p, keep[:, 1:])
    with pytest.raises(ValueError, match=r"certificate: keep must be .* got a NaN or inf in row 0"):
        clipproj.certificate(p, keep * torch.nan)
    with pytest.raises(ValueError, match="certificate: forget must differ from keep"):
        clipproj.certificate(p, texts)
    with pytest.raises(TypeError, match="certificate: keep must be Embeddings or a floating"):
        clipproj.certificate(p, keep.long())
    with pytest.raises(ValueError, match=r"certificate: dtype must be one of .* got torch.int8"):
        clipproj.certificate(p, keep, torch.int8)
    theirs = Embeddings(keep, list("abcd"), ["{}"], "theirs", "2" * 64)
    p.provenance["head_hash"] = "1" * 64
    with pytest.raises(ValueError, match="certificate: projector must come from theirs"):
        clipproj.certificate(p, theirs)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("names", [1, 5])
def test_real_texts(dtype, names):
    texts = F.normalize(vitb32(CIFAR), dim=1)
    p = one_sided(texts[:names], texts[names:], margin(dtype))
    found, _ = check(p, texts[names:], dtype)
    assert found.certified


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("names", [1, 10])
def test_real_images(dtype, names):
    path = VITB32.with_name("oxford_pets_test_vitb32.npz")
    if not path.exists():
        pytest.skip(f"needs shared/data/{path.name}, features of real images")
    with np.load(path) as data:
        rows, texts = (torch.from_numpy(data[name]).double() for name in ("image", "text"))
    rows, texts = F.normalize(rows, dim=1), F.normalize(texts, dim=1)
    before = leads(rows, texts[:names], texts[names:])
    assert (before.amax(1) > 0).double().mean() > 0.02 * names
    p = one_sided(texts[:names], texts[names:], margin(dtype))
    found, worst = check(p, texts[names:], dtype, rows)
    assert found.certified
    assert worst < 0
