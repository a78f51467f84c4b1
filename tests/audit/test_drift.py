"""Rows that move by a known amount, and CKA against its n x n definition."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit import stats
from clipproj.audit.drift import drift, linear_cka
from clipproj.audit.samples import Samples
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.report.sections import drift as section

NAMES = ("ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen")


def samples_of(features: Tensor, labels: list[int], scale: float = 10.0) -> Samples:
    texts = torch.eye(8, features.shape[1])
    classes = Embeddings(texts, NAMES, ("{}",), "made up")
    return Samples(features, torch.tensor(labels, dtype=torch.int64), classes, scale=scale)


def direct_cka(x: Tensor, y: Tensor) -> float:
    """HSIC_1 as a mean over all ordered quadruples of different rows, literally."""
    n = len(x)
    kernels = [rows @ rows.T for rows in (x, y)]

    def hsic(k: Tensor, m: Tensor) -> float:
        total = 0.0
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
        return total

    kk, mm, km = (hsic(a, b) for a, b in ((kernels[0],) * 2, (kernels[1],) * 2, kernels))
    return km / math.sqrt(kk * mm)


@pytest.mark.parametrize(("n", "d", "e"), [(7, 3, 3), (7, 20, 11), (8, 2, 40)])
def test_cka_is_its_definition_in_either_size(n: int, d: int, e: int) -> None:
    x = torch.randn(n, d, dtype=torch.float64) + 5  # far from centred
    y = x @ torch.randn(d, e, dtype=torch.float64) + 0.5 * torch.randn(n, e, dtype=torch.float64)
    assert linear_cka(x, y) == pytest.approx(direct_cka(x, y), abs=1e-9)


def test_cka_does_not_see_rotation_scale_and_shift_and_is_unbiased() -> None:
    x = torch.randn(50, 200, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64)).Q
    assert linear_cka(x, 3 * x @ turn + 7) == pytest.approx(1, abs=1e-9)
    assert linear_cka(x, 3 * x @ turn + 1e7) == pytest.approx(1, abs=1e-6)
    unrelated = torch.randn(50, 200, dtype=torch.float64)
    assert abs(linear_cka(x, unrelated)) < 0.1  # the plain one says 0.8 of these


def test_cka_is_nan_where_there_is_nothing_to_compare() -> None:
    x = torch.randn(20, 5)
    assert math.isnan(linear_cka(x[:3], x[:3]))
    assert math.isnan(linear_cka(x, torch.full((20, 5), 0.1)))
    with pytest.raises(ValueError, match=r"linear_cka: y must be \[20, e\]"):
        linear_cka(x, x[:5])


def test_identity_moves_nothing() -> None:
    samples = samples_of(torch.randn(24, 16), list(range(8)) * 3)
    result = drift(samples, Projector(torch.eye(16)[:1], strength=0.0), ["cat"])
    assert list(result.moved) == [
        "kept images", "nearest", "forgotten images", "kept texts", "forgotten texts",
    ]  # fmt: skip
    for one in result.moved.values():
        assert float(one.cosine) == pytest.approx(1)
        assert (float(one.length), one.shortest, one.longest) == pytest.approx((1, 1, 1))
        assert (one.agreement, float(one.divergence)) == (1.0, pytest.approx(0, abs=1e-12))
        assert math.isnan(one.cka) or one.cka == pytest.approx(1)
    assert result.moved["kept images"].cosine.n == 21
    assert result.moved["nearest"].cosine.n == 15


def test_known_moves() -> None:
    # a cat at 60 degrees from its text, a dog beside the erased direction, an ant half in it
    features = torch.zeros(3, 8)
    features[0, 2], features[0, 0] = 2.0, 2 * 3**0.5
    features[1, 3] = 5.0
    features[2, 0], features[2, 2] = 1.0, 1.0
    samples = samples_of(features, [2, 3, 0], scale=1.0)
    result = drift(samples, Projector(torch.eye(8)[2:3]), ["cat"])
    cat, kept = result.moved["forgotten images"], result.moved["kept images"]
    assert float(cat.cosine) == pytest.approx(3**0.5 / 2)
    assert float(cat.length) == pytest.approx(3**0.5 / 2)
    assert float(kept.cosine) == pytest.approx((1 + 0.5**0.5) / 2)
    assert (kept.shortest, kept.longest) == pytest.approx((0.5**0.5, 1.0))
    assert kept.cosines[0] == pytest.approx(0.5**0.5)
    assert kept.cosines[-1] == pytest.approx(1)
    # by hand: the dog's prediction stays, the ant's cosines go from (r, r, 0...) to (1, 0, 0...)
    r = 0.5**0.5
    before = torch.tensor([r, r] + [0.0] * 6, dtype=torch.float64).softmax(0)
    after = torch.tensor([1.0] + [0.0] * 7, dtype=torch.float64).softmax(0)
    want = float((before * (before / after).log()).sum()) / 2
    assert float(kept.divergence) == pytest.approx(want, abs=1e-6)
    assert math.isnan(kept.cka)
    forgotten = result.moved["forgotten texts"]
    assert (float(forgotten.cosine), float(forgotten.length)) == pytest.approx((0, 0), abs=1e-6)
    assert float(forgotten.agreement) == 0  # it answers nothing now
    assert "aligned with its text or not" in section.page(result).lead


def test_an_edit_of_texts_moves_texts_and_answers_but_no_image() -> None:
    features = torch.eye(8) + 0.1
    edit = Projector(torch.eye(8)[2:3], strength=2.0, side="text")  # the text of cat is reflected
    result = drift(samples_of(features, list(range(8))), edit, ["cat"])
    assert float(result.moved["forgotten images"].cosine) == pytest.approx(1)
    assert result.moved["forgotten images"].agreement == 0
    assert result.moved["kept images"].agreement == 1
    assert result.moved["kept images"].divergence > 0
    assert float(result.moved["forgotten texts"].cosine) == pytest.approx(-1)
    assert float(result.moved["kept texts"].cosine) == pytest.approx(1)
    assert "No image moves" in section.page(result).lead


def test_zero_rows_and_groups_without_images() -> None:
    features = torch.eye(8)[[0, 0, 3]]
    features[1] = 0
    result = drift(samples_of(features, [0, 0, 3]), Projector(torch.eye(8)[2:3]), ["cat"])
    kept = result.moved["kept images"]
    assert (kept.cosine.n, kept.agreement.n, kept.agreement) == (2, 3, 1.0)
    assert math.isnan(result.moved["forgotten images"].cosine)
    assert math.isnan(result.moved["forgotten images"].shortest)
    section.page(result)
    empty = samples_of(features[:0], [])
    assert "not measured" in section.page(drift(empty, lambda rows: rows, ["cat"])).lead
    with pytest.raises(ValueError, match="drift: forget must be some of the 8 classes, got 8"):
        drift(empty, lambda rows: rows, NAMES)


def test_result_is_json_and_a_page() -> None:
    samples = samples_of(F.normalize(torch.randn(24, 16), dim=1), list(range(8)) * 3)
    result = drift(samples, Projector(torch.eye(16)[2:3]), ["cat"])
    told = json.loads(json.dumps(stats.plain(result), allow_nan=False))
    assert told["moved"]["forgotten images"]["cosine"]["n"] == 3
    page = section.page(result)
    assert page.key == "drift"
    assert len(page.tables[0].rows) == 5
    assert page.figures[0].svg.startswith('<div class="chart">')


def test_an_edit_of_texts_without_kept_images_moves_no_image() -> None:
    texts = Embeddings(torch.eye(8)[:3], ("ant", "cat", "dog"), ("{}",), "planted")
    samples = Samples(torch.eye(8)[[1, 1]], torch.tensor([1, 1]), texts)
    result = drift(samples, Projector(torch.eye(8)[1:2], side="text"), ["cat"])
    assert "no image moves" in section.lead(result)
    assert "n/a" not in section.lead(result)
