"""Scores against answers known by construction, and images as they come."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipproj
from clipproj.audit import Images, Samples, evaluate
from clipproj.methods import nullspace
from clipproj.models.text import Embeddings
from clipproj.projector import Projector

NAMES = ("ant", "bee", "cat", "dog")


def embed(rows: Tensor, names: tuple[str, ...] = NAMES) -> Embeddings:
    return Embeddings(F.normalize(rows.float(), dim=1), names, ("{}",), "made up")


def images_of(labels: list[int], names: tuple[str, ...] = NAMES) -> Images:
    paths = tuple(Path(f"{i}.png") for i in range(len(labels)))
    return Images(paths, torch.tensor(labels), names)


def samples_of(features: Tensor, labels: list[int], classes: Embeddings) -> Samples:
    return Samples(features, torch.tensor(labels), classes)


@pytest.fixture
def classes() -> Embeddings:
    return embed(torch.eye(4))


def test_score_counts_right_answers(classes: Embeddings) -> None:
    # two ants right, one of two bees, no cat, one dog right and one dog that answers nothing
    features = torch.tensor([0, 0, 1, 0, 0, 1, 3, 0])
    rows = 3.0 * torch.eye(4)[features]
    rows[7] = 0
    scores = evaluate.score(samples_of(rows, [0, 0, 1, 1, 2, 2, 3, 3], classes), ["cat"])
    assert scores.predictions.tolist() == [0, 0, 1, 0, 0, 1, 3, -1]
    assert scores.forget == 0
    assert scores.keep == pytest.approx(4 / 6)
    assert scores.per_class == {"ant": 1.0, "bee": 0.5, "cat": 0.0, "dog": 0.5}


def test_the_nearest_are_classes_that_have_images() -> None:
    names = ("cat", "lion", "tiger", "car", "bus", "van", "tram", "ship")
    rows = torch.eye(8)
    rows[1, 0], rows[2, 0], rows[3:, 0] = 3, 2, torch.linspace(0.5, 0.1, 5)
    texts = embed(rows, names)
    assert evaluate.nearest(texts, ["cat"]) == ("lion", "tiger", "car", "bus", "van")
    assert evaluate.nearest(texts, ["cat"], count=2) == ("lion", "tiger")
    images = images_of([0, 0, 1, 1], ("cat", "tiger"))
    features = texts.tensor[[0, 0, 2, 1]]
    samples = Samples.of_images(features, images, texts)
    comparison = evaluate.compare(samples, samples, ["cat"])
    assert comparison.nearest == ("tiger",)
    assert comparison.before.nearest == 0.5
    assert math.isnan(comparison.before.others)
    assert comparison.before.nearest.n == 2
    assert 0 < comparison.before.nearest.low < 0.5 < comparison.before.nearest.high < 1


def test_labels_are_matched_to_texts_by_name() -> None:
    texts = embed(torch.eye(5), ("emu", *reversed(NAMES)))
    images = images_of([0, 1, 2, 3])
    features = torch.eye(5)[[4, 3, 2, 1]]
    samples = Samples.of_images(features, images, texts)
    comparison = evaluate.compare(samples, samples, ["dog"])
    assert comparison.before.forget == comparison.before.keep == 1
    assert (comparison.images_forget, comparison.images_keep) == (1, 3)


def test_labels_are_matched_to_another_spelling_of_the_same_name() -> None:
    texts = embed(torch.eye(4), ("Cafe\u0301", "Cat", "cat", "tall_tree"))
    images = images_of([0, 1, 2], ("café", "cat", "tall tree"))
    samples = Samples.of_images(torch.eye(4)[[0, 2, 3]], images, texts)
    assert samples.labels.tolist() == [0, 2, 3]


def test_compare_lists_changed_answers_and_measures_cosines(classes: Embeddings) -> None:
    before = torch.eye(4)
    after = before.clone()
    after[2] = torch.tensor([1.0, 0, 0, 0])
    after[3] *= 7
    samples = samples_of(before, [0, 1, 2, 3], classes)
    comparison = evaluate.compare(samples, replace(samples, features=after), ["cat"])
    assert comparison.changed.tolist() == [2]
    assert comparison.cosine == pytest.approx(1)
    assert comparison.cosine_forget == pytest.approx(0)
    assert (comparison.before.forget, comparison.after.forget) == (1, 0)


def test_compare_of_an_edit_of_the_texts(classes: Embeddings) -> None:
    samples = samples_of(torch.eye(4) + 0.1, [0, 1, 2, 3], classes)
    moved = replace(samples, texts=torch.eye(4)[[0, 1, 0, 3]])
    comparison = evaluate.compare(samples, moved, ["cat"])
    assert (comparison.before.forget, comparison.after.forget) == (1, 0)
    assert comparison.cosine == pytest.approx(1)


def test_a_group_without_images_is_nan_and_null_in_json(classes: Embeddings) -> None:
    samples = samples_of(torch.eye(4)[[0, 1]], [0, 1], classes)
    comparison = evaluate.compare(samples, samples, ["cat"])
    assert math.isnan(comparison.before.forget)
    assert math.isnan(comparison.before.probe)
    parsed = json.loads(json.dumps(evaluate.as_dict(comparison), allow_nan=False))
    assert parsed["before"]["forget"] is None
    assert parsed["before"]["keep"] == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"features": torch.zeros(4, 3)}, r"features must be \[n, 4\]"),
        ({"features": torch.full((4, 4), math.nan)}, "NaN or inf in row 0"),
        ({"labels": torch.tensor([0, 1, 2, 4])}, "rows of the 4 classes"),
        ({"labels": torch.tensor([0, 1, 2])}, r"labels must be int64 \[4\], got"),
        ({"labels": torch.arange(4.0)}, "int64"),
        ({"forget": ["cta"]}, "close: 'cat'"),
        ({"forget": []}, "some of the 4 classes, got 0"),
    ],
)
def test_score_refuses(change: dict, text: str, classes: Embeddings) -> None:
    good = {"features": torch.eye(4), "labels": torch.arange(4), "forget": ["cat"]} | change
    forget = good.pop("forget")
    with pytest.raises(ValueError, match=text):
        evaluate.score(Samples(**good, classes=classes), forget)


def test_nearest_refuses_to_forget_everything(classes: Embeddings) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        evaluate.nearest(classes, NAMES)


def test_compare_refuses_images_of_a_class_without_a_text(classes: Embeddings) -> None:
    with pytest.raises(ValueError, match="got none for 'yak'"):
        Samples.of_images(torch.eye(4)[:2], images_of([0, 1], ("ant", "yak")), classes)


def test_compare_refuses_other_images(classes: Embeddings) -> None:
    one, other = (samples_of(torch.eye(4), labels, classes) for labels in ([0, 1, 2, 3], [0] * 4))
    with pytest.raises(ValueError, match="after must have the classes and labels of before"):
        evaluate.compare(one, other, ["cat"])


def test_samples_come_back_from_a_file(classes: Embeddings, tmp_path: Path) -> None:
    made = Samples(
        torch.eye(4), torch.arange(4), classes, 2 * torch.eye(4), ("a", "b", "a", "b"),
        tuple(Path(f"{i}.png") for i in range(4)), 7.0,
    )  # fmt: skip
    made.save(tmp_path / "f.safetensors")
    back = Samples.load(tmp_path / "f.safetensors")
    assert (back.domains, back.paths, back.scale) == (made.domains, made.paths, made.scale)
    assert back.names == made.names
    for name in ("features", "labels", "texts"):
        assert torch.equal(getattr(back, name), getattr(made, name))
    with pytest.raises(ValueError, match="kind 'projector'"):
        clipproj.load(tmp_path / "f.safetensors")


@pytest.fixture
def clip_like() -> tuple[Samples, Embeddings, Projector]:
    """Features in a cone around their texts, as CLIP's are."""
    texts = embed(torch.randn(4, 32) + 3)
    labels = torch.arange(4).repeat_interleave(40)
    features = 5 * (texts.tensor[labels] + 0.05 * torch.randn(160, 32))
    projector = nullspace(texts.select(["cat"]), texts.drop(["cat"]))
    return Samples(features, labels, texts), texts, projector


def test_curve_runs_from_before_to_after(clip_like: tuple) -> None:
    samples, _, projector = clip_like
    projector = projector.scaled(1.25)
    comparison = evaluate.compare(samples, samples.edited(projector), ["cat"])
    curve = evaluate.strength_curve(samples, ["cat"], projector)
    assert [p.strength for p in curve][::11] == [0, 1.1]
    assert len(curve) == 22  # its own strength too
    for point, scores in (
        (curve[0], comparison.before),
        (next(p for p in curve if p.strength == 1.25), comparison.after),
    ):
        for number in ("forget", "keep", "nearest", "probe"):
            assert getattr(point, number) == getattr(scores, number)
    assert comparison.before.forget == 1
    assert comparison.after.forget == 0
    assert comparison.after.keep == 1
    assert comparison.after.probe > 0.9


def test_curve_takes_oblique_projectors_to_2_without_a_warning(
    clip_like: tuple, recwarn: pytest.WarningsRecorder
) -> None:
    samples, _, projector = clip_like
    oblique = Projector(projector.read, 1.1 * projector.read)
    assert len(evaluate.strength_curve(samples, ["cat"], oblique)) == 21
    assert not recwarn.list


def test_curve_leaves_the_probe_out_where_it_takes_long(
    clip_like: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, _, projector = clip_like
    monkeypatch.setattr(evaluate, "_PROBE_WORK", samples.features.numel())
    curve = evaluate.strength_curve(samples, ["cat"], projector, [0.0, 1.0])
    assert [math.isnan(point.probe) for point in curve] == [True, True]
    comparison = evaluate.compare(samples, samples, ["cat"])
    assert [p["probe"] for p in evaluate.as_dict(comparison, curve)["curve"]] == [None, None]


def test_curve_of_the_text_side_edits_the_texts(clip_like: tuple) -> None:
    samples, _, projector = clip_like
    (point,) = evaluate.strength_curve(samples, ["cat"], projector.T, [1.0])
    edited = evaluate.score(samples.edited(projector.T), ["cat"])
    assert (point.forget, point.keep) == (edited.forget, edited.keep)
    assert point.probe == evaluate.score(samples, ["cat"]).probe  # features are what they were


def test_names_that_are_no_class_say_only_what_is_nearest(classes: Embeddings) -> None:
    samples = Samples(torch.eye(4), torch.arange(4), classes)
    foreign = Embeddings(F.normalize(torch.tensor([[1.0, 0, 0, 2]])), ("eel",), ("a {}",), "m")
    seen = evaluate.compare(samples, samples, foreign)
    assert (seen.forget, seen.unmeasured) == ((), ("eel",))
    assert seen.nearest[0] == classes.names[3]
    assert (seen.images_forget, seen.images_keep) == (0, 4)
    assert math.isnan(seen.after.forget)
    assert seen.after.keep == 1
    with pytest.raises(ValueError, match="got 'eel'"):
        evaluate.compare(samples, samples, ["eel"])


def test_agreement_counts_wrong_answers_that_stay(classes: Embeddings) -> None:
    samples = Samples(torch.eye(4), torch.tensor([1, 0, 2, 3]), classes)
    moved = Samples(torch.eye(4)[[0, 1, 2, 1]], samples.labels, classes)
    seen = evaluate.compare(samples, moved, [classes.names[2]])
    assert seen.agreement == pytest.approx(2 / 3)
    assert evaluate.as_dict(seen)["agreement"] == pytest.approx(2 / 3)


def test_the_probe_has_an_interval_and_stays_a_number_in_json(classes: Embeddings) -> None:
    features, labels = torch.eye(4).repeat(6, 1), torch.arange(4).repeat(6)
    samples = Samples(features, labels, classes)
    found = evaluate.compare(samples, samples, ["cat"])
    assert (found.after.probe, found.after.probe.n) == (1.0, 6)
    assert 0.5 < found.after.probe.low < 1
    assert evaluate.as_dict(found)["after"]["probe"] == 1.0
