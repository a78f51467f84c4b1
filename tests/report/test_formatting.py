"""Sentences: no claim of what was not measured, none that the numbers do not bear."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from clipproj import Embeddings
from clipproj.audit.evaluate import Comparison, compare
from clipproj.audit.samples import Samples
from clipproj.report import formatting
from clipproj.report.sections import accuracy as section

NAMES = ("cat", "dog", "cow", "hen")


def compared(labels: Sequence[int], lost: Sequence[int] = (0,), noise: float = 0.0) -> Comparison:
    """Images that are the texts of their classes, before and after all of some lose theirs."""
    generator = torch.Generator().manual_seed(0)
    before = Samples(
        torch.eye(8)[list(labels)] + noise * torch.randn(len(labels), 8, generator=generator),
        torch.tensor(labels, dtype=torch.int64),
        Embeddings(torch.eye(8)[:4], NAMES, ("{}",), "planted"),
    )
    kept = torch.ones(8).index_fill(0, torch.tensor(lost), 0.0)
    after = Samples(before.features * kept + 0.1 * torch.eye(8)[3], before.labels, before.classes)
    return compare(before, after, ["cat"])


def test_what_has_no_image_has_no_sentence() -> None:
    both = compared([0] * 9 + [1] * 9)
    assert formatting.result(both) == (
        "Top-1 accuracy on 9 images of “cat” went from 100.0\u00a0% to 0.0\u00a0%. On all other "
        "classes it went from 100.0\u00a0% to 100.0\u00a0%. On the nearest of them it went from "
        "100.0\u00a0% to 100.0\u00a0%."
    )
    assert formatting.result(compared([1, 2])).startswith(
        "Top-1 accuracy on all other classes went"
    )
    assert formatting.result(compared([])) == "There is no image: accuracy was not measured."
    for labels in ([0, 0], [1, 2], []):
        lead = section.page(compared(labels)).lead
        assert "n/a" not in lead
        assert "nan" not in lead


@pytest.mark.parametrize("labels", [[0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2]])
def test_an_image_or_three_erase_nothing(labels: list[int]) -> None:
    told = formatting.caveat(compared(labels))
    assert "cannot say whether" in told
    assert "The alignment with the text is erased" not in told


def test_a_probe_at_chance_is_no_information() -> None:
    found = compared([0] * 12 + [1] * 12, lost=range(8), noise=0.3)  # nothing is left of any
    assert math.isfinite(found.after.probe)
    assert found.after.probe.low <= 0.5
    assert "The information is not" not in formatting.caveat(found)
    assert "The information is not" in formatting.caveat(compared([0] * 12 + [1] * 12 + [2] * 12))


def test_names_too_long_for_a_sentence_are_cut_and_words_follow_their_number() -> None:
    assert formatting.listed(["n" * 300]) == f"“{'n' * 60}…”"
    assert formatting.listed(["n" * 60]) == f"“{'n' * 60}”"
    assert [formatting.either(names, "its", "their") for names in (["a"], ["a", "b"])] == [
        "its", "their",
    ]  # fmt: skip
