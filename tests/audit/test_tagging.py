"""Average precision against sklearn, thresholds by hand, and what old thresholds let through."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit import stats
from clipproj.audit.groups import class_groups
from clipproj.audit.samples import Samples
from clipproj.audit.tagging import best_threshold, precisions, tagging
from clipproj.methods import nullspace
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.report.sections import tagging as section

NAMES = ("ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen")


def samples_of(
    features: Tensor, labels: list[int] | Tensor, texts: Tensor | None = None
) -> Samples:
    texts = torch.eye(8, features.shape[1]) if texts is None else F.normalize(texts, dim=1)
    classes = Embeddings(texts, NAMES[: len(texts)], ("{}",), "made up")
    return Samples(features, torch.as_tensor(labels, dtype=torch.int64), classes)


def noisy(per_class: int = 12, spread: float = 0.6) -> Samples:
    texts = F.normalize(torch.randn(8, 32) + 0.7 * torch.randn(32), dim=1)
    labels = torch.arange(8).repeat_interleave(per_class)
    return samples_of(5 * texts[labels] + spread * torch.randn(len(labels), 32), labels, texts)


@pytest.mark.parametrize("levels", [3, 10, 100_000])  # many ties, some, none
def test_average_precision_is_sklearns(levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for _ in range(20):
        scores = torch.randint(levels, (60,)).double()
        hits = torch.rand(60) < 0.3
        want = metrics.average_precision_score(hits.numpy(), scores.numpy())
        assert float(precisions(scores, hits).mean()) == pytest.approx(want, abs=1e-12)
        _, f1 = best_threshold(scores, hits)
        precision, recall, _ = metrics.precision_recall_curve(hits.numpy(), scores.numpy())
        both = (precision + recall).clip(1e-12)
        assert f1 == pytest.approx((2 * precision * recall / both).max(), abs=1e-12)


def test_best_threshold_by_hand() -> None:
    scores = torch.tensor([0.9, 0.8, 0.5, 0.5, 0.1], dtype=torch.float64)
    hits = torch.tensor([True, True, False, True, False])
    # at 0.8: 4/5; at 0.5: 6/7, the best; halfway to what lies below
    assert best_threshold(scores, hits) == pytest.approx((0.3, 6 / 7))
    # 2/3 at 0.9 as at 0.7: the higher one
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], dtype=torch.float64)
    hits = torch.tensor([True, False, False, True, False])
    assert best_threshold(scores, hits) == pytest.approx((0.85, 2 / 3))
    one = torch.tensor([0.4], dtype=torch.float64)
    assert best_threshold(one, torch.tensor([True])) == pytest.approx((-0.3, 1.0))
    assert all(math.isnan(x) for x in best_threshold(one, torch.tensor([False])))


def test_an_edit_that_takes_the_tag_away_shows_at_the_old_threshold() -> None:
    samples = noisy()
    texts = samples.classes
    edit = nullspace(texts.select(["cat"]), texts.drop(["cat"]), "mean", strength=1.5)
    result = tagging(samples, edit, ["cat"])
    before, after = result.before["forgotten"], result.after["forgotten"]
    assert before.average_precision > 0.95
    assert after.average_precision < 0.5
    assert before.average_precision.n == before.recall.n == 12
    assert before.recall > 0.9
    assert after.recall == after.flag_rate == 0
    assert after.flag_rate.n == 96
    assert set(result.nearest).isdisjoint({"cat"})
    assert len(result.nearest) == 5
    assert result.after["others"].recall.n == 2  # tags
    assert result.curve_before[-1] == pytest.approx(min(result.curve_before))


def test_a_score_shift_leaves_ranks_but_moves_what_old_thresholds_let_through() -> None:
    samples = samples_of(torch.eye(8) + 0.05, list(range(8)))
    toward_bee = 2 * torch.eye(8)[1]
    result = tagging(samples, lambda rows: rows + toward_bee, ["cat"])
    bee = next(tag for tag in result.tags if tag.name == "bee")
    assert (bee.before.false_positives, bee.after.false_positives) == (0.0, 1.0)
    assert (bee.after.flag_rate, bee.after.precision) == (1.0, 1 / 8)
    assert (bee.after.average_precision, bee.after.best_f1) == (1.0, 1.0)  # ranks are as they were
    assert bee.after.level > bee.before.level + 0.5
    assert result.change["nearest"] == pytest.approx(1 / 5)  # one of five tags


def test_identity_changes_nothing_and_every_tag_has_its_numbers() -> None:
    result = tagging(noisy(), Projector(torch.eye(32)[:1], strength=0.0), ["cat", "dog"])
    assert result.before == result.after
    assert result.change["others"] == 0
    assert [tag.name for tag in result.tags[:2]] == ["cat", "dog"]
    each = [float(tag.before.average_precision) for tag in result.tags[:2]]
    assert result.before["forgotten"].average_precision == pytest.approx(sum(each) / 2)


def test_an_old_threshold_can_find_nothing_while_the_order_is_as_good_as_before() -> None:
    samples = noisy()
    texts = samples.classes
    edit = nullspace(texts.select(["cat"]), texts.drop(["cat"]), "span")
    result = tagging(samples, edit, ["cat"])
    after = result.after["forgotten"]
    assert after.recall == 0
    assert after.average_precision > 0.8  # what says that erasing is not forgetting to rank
    assert after.best_f1 > 0.7
    assert "a new threshold brings most of the tag back" in section.page(result).lead


def test_text_side_without_its_length_and_with_it() -> None:
    samples = samples_of(torch.eye(8) + 0.05, list(range(8)))
    half = Projector(torch.eye(8)[2:3], strength=0.8, side="text")  # shortens the text of cat
    kept = tagging(samples, half, ["cat"])
    short = tagging(samples, half, ["cat"], renormalize=False)
    assert (kept.after["forgotten"].recall, short.after["forgotten"].recall) == (1.0, 0.0)


def test_classes_without_images_one_image_and_zero_rows() -> None:
    features = torch.eye(8)[[0, 0, 2, 3]]
    features[1] = 0  # scores 0 with everything
    result = tagging(samples_of(features, [0, 0, 2, 3]), lambda rows: rows, ["cat", "hen"])
    assert [tag.name for tag in result.tags] == ["cat", "ant", "dog"]
    assert result.nearest == ("ant", "dog")
    assert result.before["forgotten"].average_precision == 1
    assert result.before["forgotten"].recall.n == 1
    ant = result.tags[1].before
    assert ant.average_precision == pytest.approx((1 + 2 / 4) / 2)  # two tie with the zero row
    nobody = tagging(samples_of(features, [0, 0, 2, 3]), lambda rows: rows, ["hen"])
    assert math.isnan(nobody.before["forgotten"].average_precision)
    assert "not measured" in section.page(nobody).lead
    assert not section.page(nobody).figures


def test_groups_refuse_what_they_cannot_divide() -> None:
    samples = samples_of(torch.eye(8), list(range(8)))
    groups = class_groups("tagging", samples, ["cat"])
    assert sum(len(rows) for rows in groups.values()) == 8
    with pytest.raises(ValueError, match="tagging: forget must be some of the 8 classes, got 8"):
        tagging(samples, lambda rows: rows, NAMES)
    with pytest.raises(ValueError, match="got 'cow'"):
        tagging(samples, lambda rows: rows, ["cow"])
    with pytest.raises(TypeError, match="list of strings"):
        tagging(samples, lambda rows: rows, "cat")
    with pytest.raises(ValueError, match="NaN or inf in row 0"):
        tagging(samples, lambda rows: rows * math.nan, ["cat"])


def test_result_is_json_and_a_page() -> None:
    samples = noisy()
    result = tagging(samples, Projector(samples.texts[2:3]), ["cat"])
    told = json.loads(json.dumps(stats.plain(result), allow_nan=False))
    assert told["before"]["forgotten"]["recall"]["n"] == 12
    page = section.page(result)
    assert page.key == "tagging"
    assert page.figures[0].svg.startswith('<div class="chart">')
    assert "“cat”" in page.lead


def test_no_tag_comes_back_because_half_of_all_images_are_its_own() -> None:
    """Tagging everything has an F1 of 2/3 there: that is no order kept."""
    features = torch.eye(8)[[2] * 12 + [3] * 12] + 0.02 * torch.randn(24, 8)
    samples = samples_of(features, [2] * 12 + [3] * 12)
    result = tagging(samples, lambda rows: rows - 2 * rows[:, 2:3] * torch.eye(8)[2], ["cat"])
    before, after = (one["forgotten"] for one in (result.before, result.after))
    assert after.recall < before.recall / 2
    assert after.best_f1 > before.best_f1 / 2
    assert "brings most of the tag back" not in section.lead(result)


def test_images_of_forgotten_classes_alone_are_told_from_nothing() -> None:
    result = tagging(samples_of(torch.eye(8)[[2, 2]], [2, 2]), lambda rows: rows, ["cat"])
    assert section.lead(result) == (
        "There are only images of “cat”: there is nothing to tell the tag “cat” from."
    )
