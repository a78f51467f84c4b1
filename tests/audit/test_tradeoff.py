"""The area under curves whose area is known."""

import pytest

from clipproj.audit.stats import Measured, share
from clipproj.audit.tradeoff import area


@pytest.mark.parametrize(
    ("forget", "keep", "want"),
    [
        ([1.0, 0.0], [1.0, 1.0], 1.0),  # all forgotten at no cost
        ([1.0, 0.0], [1.0, 0.0], 0.5),  # each share forgotten costs as much
        ([0.0], [0.7], 0.7),  # one edit that forgets all: less of it costs no more
        ([1.0], [0.9], 0.0),  # nothing forgotten
        ([0.6], [0.8], 0.4 * 0.8),  # beyond what was reached counts nothing
        ([0.8, 0.3], [0.9, 0.5], 0.2 * 0.9 + 0.5 * 0.7),
        ([0.3, 0.8], [0.5, 0.9], 0.2 * 0.9 + 0.5 * 0.7),  # whatever the order
        ([0.8, 0.3, 0.3, 0.3], [0.9, 0.1, 0.5, 0.2], 0.2 * 0.9 + 0.5 * 0.7),  # the best of one x
        ([1.0, 0.5, 0.0], [0.8, 0.9, 0.1], 0.5 * 0.85 + 0.5 * 0.5),
    ],
)
def test_area_of_known_curves(forget, keep, want):
    assert area(forget, keep) == pytest.approx(want, abs=1e-12)


def test_a_fine_curve_has_its_integral():
    xs = [i / 1000 for i in range(1001)]
    assert area([1 - x for x in xs], [1 - x * x for x in xs]) == pytest.approx(2 / 3, abs=1e-6)


def test_takes_measured_numbers_and_gives_a_plain_one():
    got = area([share([True, True]), share([False, True])], [Measured(1.0, 3), Measured(0.5, 3)])
    assert got == pytest.approx(0.375)
    assert type(got) is float


@pytest.mark.parametrize(
    ("forget", "keep", "match"),
    [
        ([], [], "one length, at least 1, got 0 and 0"),
        ([0.1], [0.1, 0.2], "got 1 and 2"),
        ([0.1, 1.2], [0.1, 0.2], r"forget must be in \[0, 1\], got 1.2 at index 1"),
        ([0.1], [float("nan")], r"keep must be in \[0, 1\], got nan at index 0"),
    ],
)
def test_errors_say_what_came(forget, keep, match):
    with pytest.raises(ValueError, match=f"^area: .*{match}"):
        area(forget, keep)
