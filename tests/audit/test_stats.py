"""Intervals that hold, and numbers that keep theirs through JSON, copies and pages."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import torch

from clipproj.audit.stats import Measured, mean, plain, share, wilson
from clipproj.report import page


def test_wilson_interval_of_a_textbook_case() -> None:
    # 15 of 25, 95 %: Newcombe, Statistics in Medicine 1998, and statsmodels' proportion_confint
    found = share([True] * 15 + [False] * 10)
    assert float(found) == 0.6
    assert (found.n, round(found.low, 4), round(found.high, 4)) == (25, 0.4074, 0.7660)


@pytest.mark.parametrize("hits", [0, 7])
def test_wilson_interval_at_the_ends_holds_the_share_and_is_not_empty(hits: int) -> None:
    found = share([i < hits for i in range(7)])
    assert 0 <= found.low <= found <= found.high <= 1
    assert found.high - found.low > 0.3


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    for make, truth in ((share, 0.1), (mean, 0.1)):
        inside = 0
        for _ in range(300):
            draw = torch.rand(60, generator=generator)
            found = make(draw < truth) if make is share else make(draw - 0.4)
            inside += found.low <= truth <= found.high
        assert 0.90 <= inside / 300 <= 0.99, make


def test_nothing_measured_is_nan_and_says_so() -> None:
    none, one, some = share([]), mean([0.5]), mean([0.25, math.nan, 0.75])
    assert math.isnan(none)
    assert none.n == 0
    assert (float(one), one.n, math.isnan(one.low)) == (0.5, 1, True)
    assert (float(some), some.n) == (0.5, 2)
    assert mean([0.1, 0.9, 0.4]).low == mean([0.1, 0.9, 0.4]).low  # seeded


def test_a_number_keeps_its_interval_in_copies_and_in_json() -> None:
    found = share([True, False, True])
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (again, again.n, again.low, again.high) == (found, 3, found.low, found.high)
    text = json.dumps(plain({"a": (found, math.nan, None, "x", 3)}), allow_nan=False)
    first, *rest = json.loads(text)["a"]
    assert first == {"value": 2 / 3, "n": 3, "low": found.low, "high": found.high}
    assert rest == [None, None, "x", 3]
    with pytest.raises(TypeError, match="got Tensor"):
        plain({"a": torch.ones(2)})


def test_a_page_comes_back_from_json() -> None:
    made = page.Page(
        "a", "A", "lead",
        (page.Table(("x", "y %", "z"), (("r", share([True, False]), math.nan), ("s", None, 7))),),
        (page.Figure("alt", "below", svg="<svg/>"),),
    )  # fmt: skip
    back = page.from_json(json.loads(json.dumps(page.as_json(made), allow_nan=False)))
    assert back.figures == made.figures
    (first, second), (row, other) = back.tables[0].rows, made.tables[0].rows
    assert row[1].n == 2 if isinstance(row[1], Measured) else True
    assert (first[1], first[1].n, first[1].low) == (0.5, 2, share([True, False]).low)
    assert math.isnan(first[2])
    assert second == other == ("s", None, 7)
    with pytest.raises(ValueError, match="rows must have 2 cells, got 1"):
        page.Table(("a", "b"), (("x",),))


def test_intervals_of_few_values_cover_and_stay_where_a_mean_can_be() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (2, 3, 5, 12):
        draws = torch.randn(600, n, generator=generator)
        inside = sum(one.low <= 0 <= one.high for one in map(mean, draws))
        assert 0.92 <= inside / 600 <= 0.98, n
    free, cut = mean([0.2, 0.99, 1.0]), mean([0.2, 0.99, 1.0], (0.0, 1.0))
    assert (cut.low, cut.high) == (0.0, 1.0)
    assert free.low < 0 < 1 < free.high
    assert math.isnan(mean([0.1] * 3, (0.0, 0.1)).high)  # equal values tell no spread
    near = mean([0.1, 0.1, 0.1 - 1e-17, 0.1 - 1e-16], (0.0, 0.1))
    assert near.low <= near <= near.high


def test_a_share_of_no_whole_number_of_cases_has_wilson_s_interval_too() -> None:
    assert wilson(0.5, 4) == (share([True, False] * 2).low, share([True, False] * 2).high)
    low, high = wilson(0.93, 7)  # an AUROC
    assert 0.5 < low < 0.93 < high < 1
    assert wilson(1.0, 3)[1] == 1
    assert wilson(0.0, 3)[0] == 0
