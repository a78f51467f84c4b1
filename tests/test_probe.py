"""The linear probe: what is there to find, and what is not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clipproj.audit.probe import probe_recall
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


def test_probe_sees_through_a_projection_of_one_direction() -> None:
    labels = torch.arange(5).repeat_interleave(20)
    texts = F.normalize(torch.randn(5, 64), dim=1)
    features = 3 * texts[labels] + 0.3 * torch.randn(100, 64) + torch.randn(64)
    projector = Projector(texts[:1])
    assert probe_recall(projector(features), labels, torch.tensor([0])) > 0.8


@pytest.mark.parametrize("labels", [[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
def test_probe_is_nan_where_it_cannot_be_measured(labels: list[int]) -> None:
    assert math.isnan(probe_recall(torch.randn(4, 3), torch.tensor(labels), torch.tensor([0])))


def test_probe_takes_constant_features() -> None:
    labels = torch.tensor([0] * 5 + [1] * 10)
    assert probe_recall(torch.zeros(15, 3), labels, torch.tensor([0])) == 0
