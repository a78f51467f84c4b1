"""Charts of a report: series of numbers drawn as inline SVG, without a plotting library.

A chart has no width of its own. Across, it is drawn in percent of the room there is; down, and in
its letters, in pixels. So it reads the same at 390 pixels, at 1200 and on paper, and takes its
colours, light or dark, from `templates/style.css`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from clipproj.report.page import Figure

HEIGHT = 240  # pixels of the plot of a line chart
ROW = 34  # of a name and its dots
DOTTED = 12  # points of a line up to which each is marked
_TICKS = 6  # on an axis, at most
_CLASSES = {  # series that mean the same everywhere look the same everywhere
    "forgotten": "forget", "all others": "keep", "nearest others": "nearest",
    "linear probe": "probe", "before": "before", "unedited": "before", "after": "series-1",
    "edited": "series-1",
}  # fmt: skip


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    alt: str,
    caption: str = "",
    y_range: tuple[float, float] | None = (0.0, 1.0),
    marked: float | None = None,
    mark: str = "",
) -> Figure:
    """A line chart.

    Args:
        series: name of a line to its x and y values, of one length. A point with a NaN is left out,
            and a line without points.
        x_label, y_label: what the axes measure.
        alt: what the chart shows, for those who do not see it; first and last values follow it.
        caption: the words below it.
        y_range: of the y axis; (0, 1) is shown as percent. None: as the values need it.
        marked: an x to point out; `mark` is a word about it.

    Example:
        >>> lines({"forgotten": ([0, 1, 2], [0.9, 0.1, 0.0])}, "strength", "accuracy",
        ...       alt="Accuracy over strength").svg[:19]
        '<div class="chart">'
    """
    spots = {name: _finite(x, y) for name, (x, y) in series.items()}
    spots = {name: points for name, points in spots.items() if points}
    x_all = [x for points in spots.values() for x, _ in points]
    y_all = [y for points in spots.values() for _, y in points]
    across = _Axis.of(x_all, outwards=False)
    down = _Axis.of(y_all if y_range is None else y_range, outwards=y_range is None)
    shown = _percent if y_range == (0.0, 1.0) else _number

    def at(y: float) -> str:
        return f"{HEIGHT * (1 - down.share(y)):.1f}"

    parts = []
    for tick in down.ticks:
        y, kind = at(tick), "axis" if tick == down.low else "grid"
        parts.append(f'<line class="{kind}" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="y" y="{y}">{shown(tick)}</text>')
    for tick in across.ticks:
        x = f"{100 * across.share(tick):.2f}%"
        parts.append(f'<text class="x" x="{x}" y="{HEIGHT + 20}">{_number(tick)}</text>')
    parts.append(f'<text class="x" x="50%" y="{HEIGHT + 40}">{escape(x_label)}</text>')
    if marked is not None:
        x = f"{100 * across.share(marked):.2f}%"
        word = f"{marked:g}, {mark}" if mark else f"{marked:g}"
        parts.append(f'<line class="marked" x1="{x}" x2="{x}" y1="-6" y2="{HEIGHT}"/>')
        parts.append(f'<text class="mark" x="{x}" y="-12">{escape(word)}</text>')
    classes = _classes(spots)
    drawn, told = [], []
    for name, points in spots.items():
        path = " ".join(f"{1000 * across.share(x):.1f},{at(y)}" for x, y in points)
        drawn.append(f'<polyline class="{classes[name]}" points="{path}"/>')
        (x0, y0), (x1, y1) = points[0], points[-1]
        told.append(f"{name}: {shown(y0)} at {x0:g}, {shown(y1)} at {x1:g}")
    # the lines alone are stretched to the width, the strokes are not (vector-effect)
    parts.append(
        f'<svg viewBox="0 0 1000 {HEIGHT}" width="100%" height="{HEIGHT}" '
        f'preserveAspectRatio="none">{"".join(drawn)}</svg>'
    )
    for name, points in spots.items():
        if len(points) <= DOTTED:
            parts += [
                f'<circle class="{classes[name]}" cx="{100 * across.share(x):.2f}%" '
                f'cy="{at(y)}" r="3"/>'
                for x, y in points
            ]
    key = _key(classes, '<line x2="22" y1="5" y2="5"/>')
    svg = _svg("plot", HEIGHT, alt, told, parts)
    return Figure(alt, caption, svg=_chart(key, y_label, svg))


def dots(
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    x_label: str,
    *,
    alt: str,
    caption: str = "",
) -> Figure:
    """A line for each name with a mark for each series on it, the first name on top.

    Args:
        names: what the lines are of.
        series: name of a mark to its values, shares of 1 as many as `names`; a NaN is no mark.
        x_label: what the marks measure.
        alt, caption: as for `lines`.
    """
    values = [v for column in series.values() for v in column if not math.isnan(v)]
    across = _Axis.of([0.0, *values], outwards=True)
    height = ROW * len(names)
    parts = []
    for tick in across.ticks:
        x, kind = f"{100 * across.share(tick):.2f}%", "grid" if tick else "axis"
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x}" y2="{height}"/>')
        parts.append(f'<text class="x" x="{x}" y="{height + 20}">{_percent(tick)}</text>')
    parts.append(f'<text class="x" x="50%" y="{height + 40}">{escape(x_label)}</text>')
    classes = _classes(series)
    told = []
    for i, name in enumerate(names):
        y = ROW * i + 22
        parts.append(f'<text class="name" y="{y}">{escape(name)}</text>')
        parts.append(f'<line class="track" x2="100%" y1="{y}" y2="{y}"/>')
        marks = []
        for one, column in series.items():
            if math.isnan(column[i]):
                continue
            x, radius = f"{100 * across.share(column[i]):.2f}%", 4 + 2 * len(marks)
            hollow = " ring" if marks else ""  # a ring around a dot shows both where they agree
            parts.append(f'<circle class="{classes[one]}{hollow}" cx="{x}" cy="{y}" r="{radius}"/>')
            marks.append(f"{one} {_percent(column[i])}")
        told.append(f"{name}: {', '.join(marks)}")
    key = _key(classes, '<circle cx="11" cy="5" r="4"/>')
    svg = _svg("plot names", height, alt, told, parts)
    return Figure(alt, caption, svg=_chart(key, "", svg))


class _Axis:
    """Where numbers lie on an axis, and its round numbers."""

    def __init__(self, low: float, high: float, step: float) -> None:
        self.low, self.high = low, high
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        self.ticks = [round(i * step, 10) for i in range(first, last + 1)]

    @classmethod
    def of(cls, values: Sequence[float], outwards: bool) -> _Axis:
        """From the least to the greatest value, `outwards`: to the next round ones."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        unit = 10.0 ** math.floor(math.log10((high - low) / (_TICKS - 1)))
        step = next(unit * m for m in (1, 2, 2.5, 5, 10) if (high - low) / (unit * m) <= _TICKS - 1)
        if outwards:
            low, high = (round(end(v / step) * step, 10)
                         for end, v in ((math.floor, low), (math.ceil, high)))  # fmt: skip
        return cls(low, high, step)

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def _finite(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    pairs = zip(map(float, x), map(float, y), strict=True)
    return [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]


def _classes(names: Mapping[str, object]) -> dict[str, str]:
    """What a series looks like: as its name means, else the next look that is free."""
    meant = {name: _CLASSES[name] for name in names if name in _CLASSES}
    looks = (f"series-{i}" for i in range(1, len(names) + 2))
    free = iter([look for look in looks if look not in meant.values()])
    return {name: meant.get(name) or next(free) for name in names}


def _percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%" if share else "0"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _key(classes: Mapping[str, str], mark: str) -> str:
    items = (
        f'<li class="{kind}"><svg width="22" height="10" aria-hidden="true">{mark}</svg>'
        f"{escape(name)}</li>"
        for name, kind in classes.items()
    )
    return f'<ul class="key">{"".join(items)}</ul>' if len(classes) > 1 else ""


def _svg(kind: str, height: int, alt: str, told: Sequence[str], parts: Sequence[str]) -> str:
    about = f"<title>{escape(alt)}</title><desc>{escape('; '.join(told))}</desc>"
    return f'<svg class="{kind}" height="{height}" role="img">{about}{"".join(parts)}</svg>'


def _chart(key: str, y_label: str, svg: str) -> str:
    label = f'<p class="y-label">{escape(y_label)}</p>' if y_label else ""
    return f'<div class="chart">{key}{label}{svg}</div>'
