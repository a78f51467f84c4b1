"""The linear probe: what is there to find, and what is not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clipproj.audit.probe import (
    FOLDS,
    folds,
    mean_answers,
    probe_recall,
    ridge_answers,
    unmeasurable,
)
from clipproj.projector import Projector


def test_probe_finds_what_is_separable_whatever_the_texts_say() -> None:
    labels = torch.arange(4).repeat_interleave(25)
    features = torch.randn(4, 32)[labels] + 0.1 * torch.randn(100, 32)
    assert probe_recall(features, labels, torch.tensor([2])) == 1
    assert probe_recall(features + 50, labels, torch.tensor([2, 3])) == 1  # the bias takes it


def test_probe_is_near_chance_on_noise_and_does_not_see_what_it_is_tested_on() -> None:
    labels = torch.arange(4).repeat(100)
    features = torch.randn(400, 300)  # wide enough to memorise
    assert probe_recall(features, labels, torch.tensor([1])) < 0.45
    assert (mean_answers(features, labels)[0] == labels).double().mean() < 0.45


def test_probe_sees_through_a_projection_of_one_direction() -> None:
    labels = torch.arange(5).repeat_interleave(20)
    texts = F.normalize(torch.randn(5, 64), dim=1)
    features = 3 * texts[labels] + 0.3 * torch.randn(100, 64) + torch.randn(64)
    projector = Projector(texts[:1])
    assert probe_recall(projector(features), labels, torch.tensor([0])) > 0.8


def test_a_probe_is_asked_about_other_features_than_it_was_fitted_on() -> None:
    labels = torch.tensor([7, 3, 9]).repeat(20)
    features = torch.eye(16)[:3].repeat(20, 1) + 0.05 * torch.randn(60, 16)
    turned = features.roll(1, dims=1)  # each class now lies where the next one was
    answers = ridge_answers(features, labels, features, turned)
    assert torch.equal(answers[0], labels)  # labels as they were given, gaps and all
    assert torch.equal(answers[1], answers[0])
    moved = turned[:, :3].argmax(dim=1) != 0
    told = torch.tensor([7, 3, 9])[turned[:, :3].argmax(dim=1)]
    assert torch.equal(answers[2][moved], told[moved])


def test_folds_spread_every_class_and_change_with_nothing_but_order() -> None:
    labels = torch.tensor([2, 0, 1]).repeat_interleave(torch.tensor([10, 13, 2]))
    counts = torch.stack([torch.bincount(labels[folds(labels) == i]) for i in range(FOLDS)])
    assert (counts.amax(0) - counts.amin(0) <= 1).all()
    assert torch.equal(folds(labels), folds(labels.clone()))


@pytest.mark.parametrize(
    ("labels", "why"),
    [([0, 1, 1, 1], "a single image"), ([1] * 4, "no image"), ([0] * 4, "no other class")],
)
def test_probe_is_nan_where_it_cannot_be_measured(labels: list[int], why: str) -> None:
    wanted = torch.tensor([0])
    assert math.isnan(probe_recall(torch.randn(4, 3), torch.tensor(labels), wanted))
    assert why in unmeasurable(torch.tensor(labels), wanted)


def test_probe_takes_constant_features() -> None:
    labels = torch.tensor([0] * 5 + [1] * 10)
    assert probe_recall(torch.zeros(15, 3), labels, torch.tensor([0])) == 0
