"""Tables and numbers as text, for whoever prints them."""

from __future__ import annotations

import math
from collections.abc import Iterable


def grid(head: list[str], rows: list[list[str]], *, markdown: bool = False) -> str:
    """Columns as wide as they must be, numbers to the right; or a Markdown table."""
    if markdown:
        lines = [head, ["---:"] * len(head), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]

    def line(texts: list[str]) -> str:
        return "  ".join(text.rjust(width) for text, width in zip(texts, widths, strict=True))

    return "\n".join(map(line, [head, *rows]))


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits without an exponent, where a person would write none."""
    if value is None or math.isnan(value):
        return "-"
    if value == 0 or not 1e-3 <= abs(value) < 1e7:
        return f"{value:.1e}" if value else "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
