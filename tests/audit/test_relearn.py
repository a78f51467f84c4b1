"""Relearn: the curve rises where images agree, and stays down where nothing is left."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj import Embeddings, Projector
from clipproj.audit import stats
from clipproj.audit.relearn import relearn
from clipproj.audit.samples import Samples
from clipproj.audit.shots import BACK, STEP
from clipproj.report.sections import relearn as section

NAMES = ("cat", "dog", "car", "key")


def _samples(per_class: int = 40, noise: float = 0.1, seed: int = 0) -> Samples:
    """Axis i is the text of class i, axis 4 + i what else its images share.

    They are a little like the next class too, which takes them over once the text is gone.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(per_class)
    eye = torch.eye(16)
    random = torch.randn(len(labels), 16, generator=generator)
    features = eye[labels] + eye[labels + 4] + 0.4 * eye[(labels + 1) % 4] + noise * random
    return Samples(features, labels, Embeddings(eye[:4], NAMES, ("{}",), "planted"))


CAT = Projector(torch.eye(16)[:1])


def test_one_image_is_enough_where_all_are_alike() -> None:
    result = relearn(_samples(), CAT, ["cat"], shots=(1, 4))
    assert result.zero_shot_before == 1
    assert result.zero_shot_after == 0
    assert [s.shots for s in result.shots] == [1, 4]
    for one in result.shots:
        assert one.after.alone == one.before.alone == 1
        assert one.recovered == 1
        assert one.after.others.n == 120
        assert one.after.others > 0.98  # the price is 1 % of them
        assert one.trained.reached == 1
        assert one.trained.reached.n == 10
        assert 0 < one.trained.steps < 200
    assert result.reason == ""
    page = section.page(result)
    assert page.figures[0].svg.startswith('<div class="chart">')
    assert len(page.tables) == 2
    assert "100.0" in page.lead
    json.dumps(stats.plain(result), allow_nan=False)


def test_more_images_bring_more_back() -> None:
    result = relearn(_samples(80, noise=0.5), CAT, ["cat"], shots=(1, 4, 16), repeats=12, steps=1)
    curve = [float(one.after.alone) for one in result.shots]
    assert curve[0] + 0.05 < curve[1] < curve[2]
    assert curve[0] > result.zero_shot_after + 0.1
    assert all(one.before.alone > one.after.alone for one in result.shots)


class _Erased:
    """Every image becomes noise: there is nothing to learn from."""

    side = "image"

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.randn(rows.shape, generator=torch.Generator().manual_seed(5))


def test_nothing_comes_back_where_nothing_is_left() -> None:
    result = relearn(_samples(), _Erased(), ["cat"], shots=(1, 8), steps=20)
    for one in result.shots:
        assert one.before.alone == 1
        assert one.after.alone < 0.5
        assert one.recovered < 0.6
        assert one.trained.reached == 0
        assert math.isnan(one.trained.steps)
        assert one.trained.steps.n == 0
    assert "No adapter came back" in section.lead(result)


def test_the_adapter_is_plain_gradient_descent_on_a_matrix() -> None:
    samples, shots, steps, repeats = _samples(noise=0.4), 3, 200, 3
    result = relearn(samples, CAT, ["cat"], shots=(shots,), seed=11, repeats=repeats, steps=steps)
    generator = torch.Generator().manual_seed(11)
    z = F.normalize(CAT(samples.features), dim=1).double()
    texts, taken, right = samples.texts.double(), [], []
    for _ in range(repeats):
        order = torch.randperm(40, generator=generator)  # cats come first
        learned, held = z[order[:shots]], z[order[shots:]]
        original = samples.correct()[order[shots:]].double().mean()
        adapter, count = torch.eye(16, dtype=torch.float64), 0
        while ((held @ adapter.T @ texts.T).argmax(1) == 0).double().mean() < BACK * original:
            adapter.requires_grad_()
            logits = 100 * F.normalize(learned @ adapter.T, dim=1) @ texts.T
            loss = F.cross_entropy(logits, torch.zeros(shots, dtype=torch.int64))
            (slope,) = torch.autograd.grad(loss, adapter)
            adapter = (adapter - STEP * slope / slope.norm()).detach()
            count += 1
            assert count <= steps
        others = (z[40:] @ adapter.T @ texts.T).argmax(1) == samples.labels[40:]
        taken.append(count)
        right.append(float(others.double().mean()))
    assert len(set(taken)) > 1
    assert result.shots[0].trained.steps == pytest.approx(sum(taken) / repeats)
    assert result.shots[0].trained.others == pytest.approx(sum(right) / repeats)


def test_no_image_is_asked_about_that_was_learned_from() -> None:
    # Images of nothing: a prototype knows those it is made of and no more.
    labels = torch.arange(3).repeat_interleave(20)
    texts = Embeddings(torch.eye(64)[:3], NAMES[:3], ("{}",), "planted")
    samples = Samples(torch.randn(60, 64), labels, texts)
    one = relearn(samples, lambda rows: rows, ["cat"], shots=(8,), steps=1).shots[0]
    assert one.after.alone < 0.1
    assert one.after.alone.n == 20


def test_a_lowered_bar_is_told_apart_from_what_images_bring() -> None:
    turned = Projector(torch.eye(16)[:1], strength=2.0)  # cats are now what is least a cat
    result = relearn(_samples(), turned, ["cat"], shots=(1,), steps=1)
    assert result.lowered_before == 1
    assert result.lowered_after == 0
    assert result.shots[0].after.alone > 0.9
    weak = Projector(torch.eye(16)[:1], strength=0.9)
    half = relearn(_samples(), weak, ["cat"], shots=(1,), steps=1)
    assert half.zero_shot_after < 0.1
    assert half.lowered_after > 0.9  # the text lost the race and still knows its class
    assert "By its text alone" in section.lead(half)
    assert "By its text alone" not in section.lead(result)


def test_an_edit_that_does_nothing_needs_no_step_and_an_unknown_name_some() -> None:
    one = relearn(_samples(), lambda rows: rows, ["cat"], shots=(2,)).shots[0]
    assert one.trained.steps == 0
    assert one.trained.reached == 1
    assert one.before == one.after
    assert one.trained_new.steps > 0


def test_an_edit_of_texts_leaves_the_prototype() -> None:
    text = Projector(torch.eye(16)[:1], side="text", strength=2.0)
    one = relearn(_samples(), text, ["cat"], shots=(2,)).shots[0]
    assert one.after.alone == one.before.alone == 1
    assert one.after.with_text <= one.before.with_text


def test_few_images_are_told_and_not_guessed() -> None:
    samples = _samples(6)
    few = samples.take(torch.tensor([0, 1, *range(6, 24)]))
    result = relearn(few, CAT, ["cat"], shots=(1,))
    assert math.isnan(result.shots[0].after.alone)
    assert result.shots[0].classes == 0
    assert "fewer than 3 images" in section.page(result).lead
    assert section.page(result).figures == ()
    both = relearn(few, CAT, ["cat", "dog"], shots=(1, 5, 6))
    assert [one.classes for one in both.shots] == [1, 1, 0]
    assert both.shots[1].after.alone.n <= 6
    assert math.isnan(both.shots[2].recovered)
    assert "largest forgotten one has 6" in both.reason
    json.dumps(stats.plain(both), allow_nan=False)
    alone = relearn(samples.take(samples.labels == 0), CAT, ["cat"])
    assert "two other classes" in section.lead(alone)


def test_a_class_that_was_never_known_has_no_original_to_come_back_to() -> None:
    samples = _samples(6)
    wrong = Samples(samples.features, samples.labels.roll(6), samples.classes)
    result = relearn(wrong, CAT, ["cat"], shots=(2,))
    assert math.isnan(result.shots[0].recovered)
    assert math.isnan(result.shots[0].trained.reached)
    assert result.shots[0].trained.reached.n == 0
    assert "did not know the class" in section.lead(result)


def test_seeds_repeat() -> None:
    samples = _samples(20, noise=0.5)
    one, same, other = (
        stats.plain(relearn(samples, CAT, ["cat"], shots=(2,), seed=s, steps=30)) for s in (1, 1, 2)
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("forget", "options", "why"),
    [
        (["cow"], {}, "got 'cow'"),
        ([], {}, "relearn: forget must be some of the 4 classes, got 0"),
        (["cat"], {"shots": (0, 1)}, r"relearn: shots must be at least 1, got \(0, 1\)"),
        (["cat"], {"shots": ()}, r"relearn: shots must be at least 1, got \(\)"),
        (["cat"], {"repeats": 0}, "relearn: repeats must be at least 1"),
        (["cat"], {"steps": 0}, "relearn: steps must be at least 1"),
    ],
)
def test_bad_calls_say_what_they_wanted(forget: list[str], options: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        relearn(_samples(4), CAT, forget, **options)


def test_what_was_not_measured_has_no_numbers_on_its_page() -> None:
    samples = _samples(6)
    page = section.page(relearn(samples.take(samples.labels > 0), CAT, ["cat"]))
    assert (page.tables, page.figures) == ((), ())
    assert "n/a" not in page.lead


def test_a_large_class_is_asked_in_part_with_like_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = _samples(300, noise=0.3)
    whole = relearn(samples, CAT, ["cat"], shots=(2,), repeats=4).shots[0].trained
    monkeypatch.setattr("clipproj.audit.shots._MOST_HELD", 100)
    part = relearn(samples, CAT, ["cat"], shots=(2,), repeats=4).shots[0].trained
    assert part.reached == whole.reached == 1
    assert part.steps == pytest.approx(whole.steps, abs=4)
    assert part != whole  # fewer images were asked
