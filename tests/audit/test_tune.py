"""The strength that a target asks for, and the soup that a strength is."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

import clipproj
from clipproj import Embeddings, Projector, nullspace
from clipproj.audit import Samples, evaluate
from clipproj.audit.tune import text_proxies, tune
from clipproj.checkpoints.checkpoint import load_model
from clipproj.report.sections import tune as section

NAMES = tuple(f"class {i}" for i in range(6))


@pytest.fixture
def case() -> tuple[Samples, Projector]:
    """Images in a cone around their texts: what one strength forgets grows with it."""
    g = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(6, 32, generator=g) + 1.5, dim=1)
    classes = Embeddings(rows, NAMES, ("{}",), "made up")
    labels = torch.arange(6).repeat_interleave(60)
    features = 4 * (rows[labels] + 0.12 * torch.randn(360, 32, generator=g))
    p = nullspace(classes.select(NAMES[:1]), classes.drop(NAMES[:1]), "mean")
    return Samples(features, labels, classes), p


def test_the_least_strength_that_meets_the_target_is_chosen(case: tuple) -> None:
    samples, p = case
    tuned = tune(p, samples, forget_at_most=0.05, keep_loss_at_most=0.02, probe=False)
    assert tuned
    assert 0 < tuned.strength < 1
    assert float(tuned.projector.strength) == pytest.approx(tuned.strength)
    assert tuned.projector.read is not None
    for point in tuned.points:
        meets = point.forget <= 0.05 and tuned.base.keep - point.keep <= 0.02
        assert meets <= (point.strength >= tuned.strength)  # no weaker one meets it
    measured = evaluate.score(samples.edited(tuned.projector), NAMES[:1])
    assert (measured.forget, measured.keep) == (tuned.chosen.forget, tuned.chosen.keep)
    assert [p.strength for p in tuned.points] == [round(0.05 * i, 2) for i in range(41)]
    assert 0 < tuned.area <= 1


def test_a_target_out_of_reach_is_not_met_and_said_so(case: tuple) -> None:
    samples, p = case
    weak = tune(p, samples, forget_at_most=0.0, strengths=[0.1, 0.4], probe=False)
    assert not weak
    assert weak.strength == 0.4  # what forgets most
    assert 0 < weak.chosen.forget < weak.base.forget
    assert "does not meet" in section.page(weak).lead
    # enough is forgotten from some strength on, but never for free: the cheapest of those
    dear = Projector(samples.classes.tensor[1:2], provenance=p.provenance)
    union = clipproj.union(p, dear)
    strict = tune(union, samples, forget_at_most=0.05, keep_loss_at_most=0.0, probe=False)
    assert not strict
    assert strict.chosen.forget <= 0.05
    enough = [q.keep for q in strict.points if q.forget <= 0.05]
    assert strict.chosen.keep == max(enough)


def test_a_loss_of_just_the_target_meets_it() -> None:
    classes = Embeddings(torch.eye(4)[:3], NAMES[:3], ("{}",), "made up")
    # 79 of 100 kept images stay whatever the strength, 20 are wrong, 1 is lost with the class
    kept = [[0, 1, 0, 0.0]] * 79 + [[0, 0, 1, 0.0]] * 20 + [[2.0, 2.1, 2.05, 0]]
    features = torch.tensor([[1.0, 0.5, 0, 0]] * 10 + kept)
    labels = torch.tensor([0] * 10 + [1] * 100)
    p = Projector(F.normalize(torch.tensor([[1.0, 0.2, 0, 0]])))
    tuned = tune(
        p, Samples(features, labels, classes), NAMES[:1], forget_at_most=0.0,
        keep_loss_at_most=0.01, strengths=[1.0], probe=False,
    )  # fmt: skip
    assert (tuned.base.keep, tuned.points[1].keep) == (0.8, 0.79)
    assert tuned


def test_an_oblique_projector_is_not_tuned_beyond_1(case: tuple) -> None:
    samples, p = case
    oblique = Projector(p.read, 1.1 * p.read, provenance=p.provenance)
    assert max(point.strength for point in tune(oblique, samples, probe=False).points) == 1.0


def test_texts_are_edited_where_the_projector_is_of_the_text_side(case: tuple) -> None:
    samples, p = case
    tuned = tune(p.T, samples, NAMES[:1], probe=False)
    again = samples.edited(p.T.scaled(tuned.strength))
    assert torch.equal(again.features, samples.features)
    assert tuned.chosen.forget == evaluate.score(again, NAMES[:1]).forget


def test_a_soup_of_edit_and_identity_is_partial_strength(case: tuple) -> None:
    _, p = case
    for one in (p, Projector(p.read, 0.7 * p.read.roll(3, 1)), p.scaled(1.6)):
        for weight in (0.0, 0.3, 0.8, 1.0):
            soup = weight * one.dense().double() + (1 - weight) * torch.eye(32).double()
            partial = one.scaled(weight * float(one.strength)).dense().double()
            torch.testing.assert_close(soup, partial, atol=1e-6, rtol=0)


def test_what_cannot_be_tuned_is_refused(case: tuple) -> None:
    samples, p = case
    bare = Projector(p.read)
    kept = samples.take(samples.labels != 0)
    for change, text in (
        ({"forget_at_most": 1.5}, "forget_at_most must be a share"),
        ({"keep_loss_at_most": math.nan}, "keep_loss_at_most must be a share"),
        ({"forget": ["cta"]}, "names must be among"),
        ({"projector": bare}, "forget must name classes"),
        ({"samples": kept}, "a forgotten class"),
        ({"strengths": [0.5, 3.0]}, r"strengths must be in \[0, 2\]"),
    ):
        with pytest.raises(ValueError, match=text):
            tune(**({"projector": p, "samples": samples} | change))


def test_prompts_stand_in_for_images(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tiny")
    loaded = load_model(str(tiny.model(folder / "m", tiny.images(folder / "p"))))
    names = ["cat", "dog", "owl"]
    classes = clipproj.embed_classes(loaded.model, loaded.tokenizer, names, ["a {}"])
    samples = text_proxies(loaded.model, loaded.tokenizer, classes, ["a {}", "the {}", "{}"])
    assert samples.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    own: Tensor = samples.features[::3]
    torch.testing.assert_close(own, classes.tensor, atol=1e-5, rtol=0)
    twice = text_proxies(loaded.model, loaded.tokenizer, classes, ["{}", "{}"])
    assert torch.equal(twice.features[0], twice.features[1])  # a prompt that comes twice
    assert samples.scale == pytest.approx(float(loaded.model.logit_scale.detach().exp()))
    p = nullspace(classes.select(["cat"]), classes.drop(["cat"]))
    assert tune(p, samples, forget_at_most=0.0, keep_loss_at_most=1.0).met
    other = Embeddings(classes.tensor, classes.names, classes.templates, "other", "f" * 64)
    with pytest.raises(ValueError, match="must be embedded by this model"):
        text_proxies(loaded.model, loaded.tokenizer, other, ["a {}"])
