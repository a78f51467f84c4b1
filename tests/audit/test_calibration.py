"""Calibration error, Brier score and log loss with answers known by hand and from sklearn."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from clipproj.audit import stats
from clipproj.audit.calibration import (
    Calibration,
    calibration,
    log_probabilities,
    reliability,
)
from clipproj.audit.samples import Samples
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.report.sections import calibration as section

NAMES = ("ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen")


def same(rows: Tensor) -> Tensor:
    return rows


def samples_of(features: Tensor, labels: list[int], scale: float = 5.0) -> Samples:
    classes = Embeddings(torch.eye(8, features.shape[1]), NAMES, ("{}",), "made up")
    return Samples(features, torch.tensor(labels, dtype=torch.int64), classes, scale=scale)


def calibrated(n: int, temperature: float = 1.0, without: int | None = None) -> Samples:
    """Images whose label is drawn from the model's probabilities, of a scale then multiplied."""
    features = torch.randn(n, 8)
    if without is not None:
        features[:, without] = -20
    samples = samples_of(features, [0] * n, scale=20.0)
    labels = torch.multinomial(log_probabilities(samples).exp(), 1).flatten().tolist()
    return samples_of(features, labels, scale=20.0 * temperature)


def test_bins_by_hand_and_equal_confidences_share_their_accuracy() -> None:
    confidence = torch.tensor([0.9, 0.6, 0.6, 0.6, 0.6, 0.1], dtype=torch.float64)
    correct = torch.tensor([True, True, True, False, False, False])
    for order in (range(6), [5, 3, 1, 4, 0, 2]):  # whatever order ties come in
        rows = torch.tensor(list(order))
        low, middle, high = reliability(confidence[rows], correct[rows], 3)
        assert (low.n, low.confidence, low.accuracy) == (2, pytest.approx(0.35), 0.25)
        assert (middle.confidence, middle.accuracy) == (pytest.approx(0.6), 0.5)
        assert (high.confidence, high.accuracy) == (pytest.approx(0.75), 0.75)
    assert len(reliability(confidence[:2], correct[:2], 15)) == 2  # none is empty
    assert reliability(confidence[:0], correct[:0], 15) == ()


def test_scores_are_those_of_sklearn_and_by_hand() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    samples = calibrated(300)
    before = calibration(samples, same, ["cat"]).before
    kept = samples.take(~samples.of(["cat"]))
    chances = log_probabilities(kept).exp().numpy()
    want = metrics.log_loss(kept.labels.numpy(), chances, labels=list(range(8)))
    assert float(before.log_loss) == pytest.approx(want, rel=1e-9)
    hot = torch.eye(8, dtype=torch.float64)[kept.labels].numpy()
    assert float(before.brier) == pytest.approx(((chances - hot) ** 2).sum(1).mean(), rel=1e-9)
    assert float(before.accuracy) == (chances.argmax(1) == kept.labels.numpy()).mean()
    assert float(before.confidence) == pytest.approx(chances.max(1).mean())
    gaps = [b.n * abs(b.accuracy - b.confidence) for b in before.bins]
    assert float(before.error) == pytest.approx(sum(gaps) / len(kept))
    assert (len(before.bins), before.error.n) == (15, len(kept))


def test_a_calibrated_model_has_the_error_that_chance_gives_and_a_sharpened_one_more() -> None:
    def kept(temperature: float) -> Calibration:
        # images of "hen" are left out, so no image may be likely to be one
        samples = calibrated(4000, temperature, without=7)
        return calibration(samples, same, ["hen"]).before

    fair, sharp = kept(1), kept(5)
    assert fair.expected_error.low <= fair.error <= fair.expected_error.high
    assert sharp.error > 5 * sharp.expected_error.high
    assert fair.error.n == fair.expected_error.n == 4000


def test_the_error_of_chance_is_of_images_in_bins_by_confidence() -> None:
    # every other image knows nothing (1/8), the rest are sure: their bin cannot err
    features = torch.zeros(800, 8)
    features[::2, 0] = 1
    chance = calibration(samples_of(features, [0] * 800, 100.0), same, ["cat"], bins=2).before
    sigma = math.sqrt(1 / 8 * 7 / 8 / 400)
    want = math.sqrt(2 / math.pi) * sigma / 2  # mean of |normal|, of half of the images
    assert float(chance.expected_error) == pytest.approx(want, rel=0.15)


def test_scale_is_that_of_the_samples() -> None:
    features = torch.eye(8)[[0, 1, 2]]
    for scale in (1.0, 100.0):
        result = calibration(samples_of(features, [0, 1, 2], scale), same, ["cat"])
        want = math.exp(scale) / (math.exp(scale) + 7)
        assert result.scale == scale
        assert float(result.before.confidence) == pytest.approx(want)
        assert float(result.before.log_loss) == pytest.approx(-math.log(want), abs=1e-9)
        assert float(result.forgotten_before.own) == pytest.approx(want)


def test_what_forgotten_images_are_answered_as_and_how_surely() -> None:
    # cats with a little of dog (3 images), of ant (2), of bee and of emu (1 each), and no more
    second = [3, 3, 3, 0, 0, 1, 4]
    features = torch.eye(8)[[2] * 8 + [0]]
    features[range(7), second] += 0.5
    samples = samples_of(features, [2] * 8 + [0], scale=10.0)
    result = calibration(samples, Projector(torch.eye(8)[2:3]), ["cat"])
    before, after = result.forgotten_before, result.forgotten_after
    assert before.answers == (("cat", 8),)
    assert after.answers == (("dog", 3), ("ant", 2), ("no answer", 1))
    assert before.own > 0.9
    assert after.own < 0.02
    assert after.confidence.n == 8
    want = (7 * math.exp(10) / (math.exp(10) + 7) + 1 / 8) / 8  # the last one knows nothing
    assert float(after.confidence) == pytest.approx(want)
    assert "“dog” (3), “ant” (2)" in section.page(result).lead
    assert "hardly less surely" in section.page(result).lead


def test_texts_keep_the_length_that_an_edit_leaves_them_only_when_asked() -> None:
    features = torch.eye(8)[[2, 0]]
    features[1, 2] = 0.75  # an ant, by 0.8 and 0.6 of cat
    samples = samples_of(features, [2, 0], scale=10.0)
    edit = Projector(torch.eye(8)[2:3], strength=0.9, side="text")
    assert float(calibration(samples, edit, ["cat"]).forgotten_after.own) > 0.99
    short = calibration(samples, edit, ["cat"], renormalize=False)
    want = math.exp(1) / (math.exp(1) + 7)
    assert float(short.forgotten_after.own) == pytest.approx(want, abs=1e-6)
    ant = math.exp(8) / (math.exp(8) + math.exp(0.6) + 6)
    assert float(short.after.confidence) == pytest.approx(ant, abs=1e-6)


def test_one_image_no_image_and_bins_out_of_range() -> None:
    samples = samples_of(torch.eye(8)[[0]], [0])
    result = calibration(samples, same, ["cat"])
    assert (result.before.error.n, len(result.before.bins)) == (1, 1)
    assert math.isnan(result.forgotten_before.confidence)
    assert result.forgotten_before.answers == ()
    none = calibration(samples, same, ["ant"])
    assert math.isnan(none.before.error)
    assert math.isnan(none.before.expected_error)
    assert "not measured" in section.page(none).lead
    with pytest.raises(ValueError, match="calibration: bins must be at least 1, got 0"):
        calibration(samples, same, ["cat"], bins=0)
    with pytest.raises(ValueError, match="calibration: forget must be some of the 8 classes"):
        calibration(samples, same, NAMES)


def test_result_is_json_and_a_page() -> None:
    result = calibration(calibrated(60), Projector(torch.eye(8)[2:3]), ["cat"])
    told = json.loads(json.dumps(stats.plain(result), allow_nan=False))
    assert told["before"]["error"]["n"] == result.before.error.n
    page = section.page(result)
    assert page.key == "calibration"
    assert page.figures[0].svg.startswith('<div class="chart">')
    assert [table.rows[0][0] for table in page.tables] == ["calibration error", "mean confidence"]


def test_half_as_sure_is_less_sure() -> None:
    features = torch.eye(8)[[2] * 6 + [0]]
    features[:6, 3] = 0.3
    samples = samples_of(features, [2] * 6 + [0], scale=10.0)
    result = calibration(samples, Projector(torch.eye(8)[2:3]), ["cat"])
    dull = calibration(samples, lambda rows: rows * torch.ones(8).index_fill(
        0, torch.tensor([2]), 0.0) + 0.25, ["cat"])  # fmt: skip
    assert "hardly less surely" in section.page(result).lead
    was, now = dull.forgotten_before.confidence, dull.forgotten_after.confidence
    assert was / 2 < now < 0.85 * was
    assert "hardly less surely" not in section.page(dull).lead
