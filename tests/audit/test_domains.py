"""The matrix of classes and domains, on images whose answers are known."""

from __future__ import annotations

import json
import math

import pytest
import torch

from clipproj import Embeddings, Projector
from clipproj.audit import Samples, domains
from clipproj.audit.stats import plain
from clipproj.report.sections import domains as section


def samples() -> Samples:
    classes = Embeddings(torch.eye(4), ("ant", "bee", "cat", "dog"), ("{}",), "made up")
    labels = torch.tensor([2, 2, 2, 0, 1, 3])
    features = torch.eye(4)[labels]
    features[1] += 0.9 * torch.eye(4)[3]  # a cat that is nearly a dog
    return Samples(features, labels, classes, domains=("b", "a", "a", "a", "b", "b"))


def test_each_domain_has_its_own_numbers() -> None:
    edit = Projector(torch.eye(4)[2:3], strength=0.2)  # moves the doubtful cat alone
    result = domains(samples(), edit, ["cat"])
    a, b = result.domains
    assert (a.name, b.name) == ("a", "b")
    assert (a.forget_before, a.forget_after, a.forget_after.n) == (1.0, 0.5, 2)
    assert (b.forget_before, b.forget_after, b.forget_after.n) == (1.0, 1.0, 1)
    assert (a.keep_after, b.keep_after, b.keep_after.n) == (1.0, 1.0, 2)
    page = section.page(result)
    assert "most first: a, 100.0\u00a0% to 50.0\u00a0% of 2 images; b, 100.0" in page.lead
    json.dumps(plain(result), allow_nan=False)


def test_a_domain_without_the_class_says_nothing_of_it() -> None:
    one = samples()
    kept = one.take(torch.tensor([1, 2, 3, 4, 5]))
    result = domains(kept, Projector(torch.eye(4)[2:3]), ["cat"])
    assert math.isnan(result.domains[1].forget_before)
    assert "b," not in section.page(result).lead
    none = domains(one.take(torch.tensor([3, 4])), Projector(torch.eye(4)[2:3]), ["cat"])
    assert "was not measured" in section.page(none).lead


def test_samples_without_domains_are_refused() -> None:
    one = samples()
    bare = Samples(one.features, one.labels, one.classes)
    with pytest.raises(ValueError, match="samples must have domains"):
        domains(bare, Projector(torch.eye(4)[2:3]), ["cat"])
