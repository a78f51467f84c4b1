"""Charts: where the numbers are drawn, what is left out, what a reader without eyes gets."""

from __future__ import annotations

import math
import re

import pytest

from clipproj.report import charts

NAN = math.nan


def drawn(svg: str, kind: str) -> list[float]:
    """The points of a line, x and y in turn, from 0 to 1 in both directions."""
    points = re.search(rf'<polyline class="{kind}" points="([^"]+)"', svg)[1]
    pairs = [tuple(map(float, point.split(","))) for point in points.split()]
    return [at for x, y in pairs for at in (x / 1000, 1 - y / charts.HEIGHT)]


def ticks(svg: str, kind: str) -> list[str]:
    return re.findall(rf'<text class="{kind}"[^>]*>([^<]+)<', svg)


def test_lines_lie_where_their_numbers_are() -> None:
    svg = charts.lines(
        {"forgotten": ([0, 1, 2], [1.0, 0.25, 0.0]), "mine": ([0, 2], [0.5, 0.5])},
        "strength", "accuracy", alt="a", marked=0.5, mark="chosen",
    ).svg  # fmt: skip
    assert drawn(svg, "forget") == pytest.approx([0, 1, 0.5, 0.25, 1, 0])
    assert drawn(svg, "series-1") == pytest.approx([0, 0.5, 1, 0.5])
    assert ticks(svg, "x") == ["0", "0.5", "1", "1.5", "2", "strength"]
    assert ticks(svg, "y") == [
        "0", "20\u00a0%", "40\u00a0%", "60\u00a0%", "80\u00a0%", "100\u00a0%",
    ]  # fmt: skip
    assert '<text class="mark" x="25.00%" y="-12">0.5, chosen</text>' in svg


def test_a_chart_fits_any_width() -> None:
    svg = charts.lines({"a": ([0, 1], [0, 1])}, "x", "y", alt="a").svg
    outer = svg[svg.index("<svg") :]
    assert "viewBox" not in outer[: outer.index(">")]  # which would shrink the letters with it
    assert not re.search(r'<(?:text|circle|line)[^>]* (?:x|cx|x1|x2)="[\d.]+"', outer)


def test_what_was_not_measured_is_not_drawn() -> None:
    svg = charts.lines(
        {"gone": ([0, 1], [NAN, NAN]), "some": ([0, NAN, 1], [0.2, 0.4, 0.6])}, "x", "y", alt="a"
    ).svg
    assert svg.count("<polyline") == 1
    assert "gone" not in svg
    assert len(drawn(svg, "series-1")) == 2 * 2
    empty = charts.lines({"gone": ([0, 1], [NAN, NAN])}, "x", "y", alt="a").svg
    assert "<polyline" not in empty
    assert "nan" not in empty


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.9123, 0.9987], ["0.9", "0.92", "0.94", "0.96", "0.98", "1"]),
        ([-0.37, 0.81], ["-0.5", "-0.25", "0", "0.25", "0.5", "0.75", "1"]),
        ([3.0, 3.0], ["2.4", "2.6", "2.8", "3", "3.2", "3.4", "3.6"]),
        ([0.0, 12000.0], ["0", "2500", "5000", "7500", "1e+04", "1.25e+04"]),
    ],
)
def test_an_axis_without_a_range_ends_at_round_numbers(values: list, labels: list) -> None:
    svg = charts.lines({"a": ([0, 1], values)}, "x", "y", alt="a", y_range=None).svg
    assert len(ticks(svg, "y")) <= 8
    assert float(ticks(svg, "y")[0]) <= min(values)
    assert float(ticks(svg, "y")[-1]) >= max(values)
    if max(values) < 1000:
        assert ticks(svg, "y") == labels


def test_it_is_told_to_those_who_do_not_see_it() -> None:
    svg = charts.lines(
        {"<b> & $x$": ([0, 2], [0.5, 0.125])}, "x", "y", alt="It <falls> & falls"
    ).svg
    assert "<title>It &lt;falls&gt; &amp; falls</title>" in svg
    assert "<desc>&lt;b&gt; &amp; $x$: 50\u00a0% at 0, 12.5\u00a0% at 2</desc>" in svg
    assert "<b>" not in svg


def test_no_two_series_look_the_same() -> None:
    names = ("after", "calibrated", "before", "mine", "forgotten", "yours")
    svg = charts.lines({n: ([0, 1], [0, 1]) for n in names}, "x", "y", alt="a").svg
    looks = re.findall(r'<polyline class="([^"]+)"', svg)
    assert len(set(looks)) == len(names)
    assert re.findall(r'<li class="([^"]+)"', svg) == looks  # the key says which is which


def test_dots_lie_on_the_line_of_their_name() -> None:
    figure = charts.dots(
        ["none <i>", "best"], {"found": [0.8, 0.0], "lost": [NAN, -0.2]}, "share", alt="a"
    )
    svg = figure.svg
    assert "none &lt;i&gt;" in svg
    low, high = -0.2, 0.8
    first, second = 22, 22 + charts.ROW
    zero = 100 * (0 - low) / (high - low)
    spots = re.findall(r'<circle class="series-\d[^"]*" cx="([\d.]+)%" cy="(\d+)"', svg)
    assert [int(y) for _, y in spots] == [first, second, second]
    assert [float(x) for x, _ in spots] == pytest.approx([100, zero, 0])
    assert "best: found 0, lost -20\u00a0%" in svg


def test_the_same_numbers_give_the_same_bytes() -> None:
    def make() -> str:
        return charts.lines({"a": ([0, 1], [0.1, 1 / 3])}, "x", "y", alt="a").svg

    assert make() == make()
