"""Forgetting against utility in one number: the area under a trade-off curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from clipproj.refusal import Refusal


def area(forget: Sequence[float], keep: Sequence[float]) -> float:
    """The area under keep over forgetting, as UPCORE (arXiv 2502.15082) compares edits.

    A point is an edit of one strength: x = 1 - forget, y = keep. Of points with one x the
    highest y counts. Points are sorted by x and joined by straight lines (trapezoid rule) over
    [0, 1], and the curve goes on where there are none:

    - left of the first point at that point's y: who wants to forget less can have its utility;
    - right of the last point at 0: forgetting that no edit reached earns nothing.

    So 1 means: everything forgotten at no cost. UPCORE itself takes the area between its first and
    last point alone, which grows with how far apart they are.

    Args:
        forget: accuracies on what is forgotten, each in [0, 1], one a point; 0 is all forgotten.
        keep: accuracies on what stays, each in [0, 1], in the same order.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: for no points, other counts, or numbers out of [0, 1], NaN among them.
    """
    if len(forget) != len(keep) or len(forget) == 0:
        raise Refusal(
            "area",
            None,
            f"forget and keep must be of one length, at least 1, got {len(forget)} and {len(keep)}",
        )
    for name, values in (("forget", forget), ("keep", keep)):
        for i, value in enumerate(values):
            if not 0 <= value <= 1:
                raise Refusal("area", name, f"must be in [0, 1], got {value} at index {i}")
    best: dict[float, float] = {}
    for lost, kept in zip(forget, keep, strict=True):
        x = 1 - float(lost)
        best[x] = max(best.get(x, 0.0), float(kept))
    points = sorted(best.items())
    points.insert(0, (0.0, points[0][1]))
    strips = pairwise(points)
    return math.fsum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in strips)
