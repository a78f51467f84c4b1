"""No row leads by more than its certificate says, and a certificate does not say too much."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from half_spaces import cone, hard_rows, leads, one_sided

import clipproj

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
    texts = cone(names + kept, d)
    p = one_sided(texts[:names], texts[names:], margin(dtype), weight)
    found, worst = check(p, texts[names:], dtype)
    assert found.certified, found
    assert worst < 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.3, 2.0])
def test_beyond_strength_1_where_no_element_of_gram_is_negative(dtype, strength):
    texts = cone(43, 32, shared=0.5)
    alike = F.normalize(texts[:3] + 2 * texts[3:4], dim=1)  # contrasts that share a direction
    p = one_sided(alike, texts[4:], margin(dtype), 0.0, strength)
    assert p.gram.min() >= 0
    found, worst = check(p, texts[4:], dtype)
    assert found.certified == (strength >= 1)
    assert (worst < 0) == (strength >= 1)


def test_beyond_strength_1_with_negative_elements_it_is_not_certified():
    texts = cone(24, 16)
    p = one_sided(texts[:4], texts[4:], 1e-3, 0.0, 1.9)
    assert p.gram.min() < -0.1
    found, worst = check(p, texts[4:], torch.float32)
    assert not found.certified
    assert worst > 0  # and it is not so


def test_a_symmetric_hull_beyond_strength_1_is_exposed():
    texts = cone(21, 24)
    keep = texts[1:]
    p = clipproj.nullspace(texts[:1], keep, "hull", strength=1.5)
    p.forget = texts[:1].float()
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
    texts = cone(22, 16)
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
