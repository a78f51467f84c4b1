"""What a comparison came to: a row a method, means over classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipproj.audit.stats import Measured, mean
from clipproj.compare.comparison import BASE

_SHARES = (
    "forget", "keep", "nearest", "others", "probe", "ranpac", "cosine", "retrieval",
    "precision", "prompt", "area", "rank", "distance", "seconds",
)  # fmt: skip
_WITHIN = {  # what is no share in [0, 1]
    "cosine": (-1, 1), "rank": (0, math.inf), "distance": (0, math.inf), "seconds": (0, math.inf),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One method, over the classes it did not refuse.

    Args:
        about: what it is.
        refused: how many classes it refused, and why the first of them.
        numbers: by measure of `trial.measure`, the mean over classes with its interval; besides
            keep_lost, nearest_lost and others_lost, how far below the unedited model, class
            by class. NaN where there is none.
        elsewhere: the same of each other data set.
        per_class: by class the share of its images still answered by it.
    """

    name: str
    about: str
    refused: int
    why: str
    numbers: dict[str, Measured]
    elsewhere: dict[str, Measured]
    per_class: dict[str, float]


@dataclass(frozen=True)
class Leaderboard:
    """All methods, in the order of the comparison, the unedited model first.

    Args:
        forget: the classes, each forgotten alone, each a case of every mean.
        images: how many images each class was measured with, by name.
        rows: one each.
        results: every number of every trial, as `comparison.run` gave them.
    """

    forget: tuple[str, ...]
    images: dict[str, int]
    rows: tuple[Row, ...]
    results: dict[str, dict[str, Any]] = field(repr=False)

    @classmethod
    def of(cls, results: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]) -> Leaderboard:
        """From what `comparison.run` gave; `about` has a word on each method."""
        base = results[BASE]
        rows = []
        for name, trials in results.items():
            there = {
                forgotten: trial for forgotten, trial in trials.items() if "refused" not in trial
            }
            why = next((trial["refused"] for trial in trials.values() if "refused" in trial), "")
            numbers = {
                key: mean([_value(c.get(key)) for c in there.values()], _WITHIN.get(key, (0, 1)))
                for key in _SHARES
            }
            for key in ("rank", "seconds"):  # the mean of what differs little says enough
                numbers[key] = Measured(numbers[key], numbers[key].n)
            for key in ("keep", "nearest", "others"):
                lost = [_value(base[g][key]) - _value(c[key]) for g, c in there.items()]
                numbers[f"{key}_lost"] = mean(lost, (-1, 1))
            sets = next(iter(there.values()), {}).get("elsewhere", {})
            rows.append(
                Row(
                    name=name,
                    about=about[name],
                    refused=len(trials) - len(there),
                    why=why,
                    numbers=numbers,
                    elsewhere={
                        one: mean([_value(c["elsewhere"][one]) for c in there.values()], (0, 1))
                        for one in sets
                    },
                    per_class={
                        forgotten: _value(trial["forget"]) for forgotten, trial in there.items()
                    },
                )
            )
        images = {forgotten: trial["forget"]["n"] for forgotten, trial in base.items()}
        return cls(tuple(base), images, tuple(rows), {k: dict(v) for k, v in results.items()})


def _value(number: Any) -> float:
    """A number of a trial as JSON has it: a dict, a number, or None where there is none."""
    if isinstance(number, Mapping):
        number = number["value"]
    return math.nan if number is None else float(number)
