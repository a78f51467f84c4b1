"""What a contest came to: a line a method, means over classes, as tables, pictures and words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipproj.audit.stats import Measured, mean
from clipproj.compare.comparison import BASE, BASE_IN_HALVES
from clipproj.report.formatting import count, percent
from clipproj.report.page import Page, Table, dots

ENOUGH = 0.01  # accuracy on a class up to which it counts as forgotten
_SHARES = (
    "forget", "retain", "neighbours", "others", "probe", "ranpac", "cosine", "retrieval",
    "precision", "prompt", "area", "rank", "distance", "seconds",
)  # fmt: skip
_WITHIN = {  # what is no share in [0, 1]
    "cosine": (-1, 1), "rank": (0, math.inf), "distance": (0, math.inf), "seconds": (0, math.inf),
}  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """One method, over the classes it did not refuse.

    Args:
        about: what it is.
        refused: how many classes it refused, and why the first of them.
        numbers: by measure of `contest.measure`, the mean over classes with its interval; besides
            retain_lost, neighbours_lost and others_lost, how far below the unedited model, class
            by class. NaN where there is none.
        elsewhere: the same of each other data set.
        per_class: by class the share of its pictures still answered by it.
    """

    name: str
    about: str
    refused: int
    why: str
    numbers: dict[str, Measured]
    elsewhere: dict[str, Measured]
    per_class: dict[str, float]


@dataclass(frozen=True)
class Standings:
    """All methods, in the order of the contest, the unedited model first.

    Args:
        forget: the classes, each forgotten alone, each a case of every mean.
        pictures: how many pictures each class was measured with, by name.
        standings: one each.
        results: every number of every cell, as `contest.run` gave them.
    """

    forget: tuple[str, ...]
    pictures: dict[str, int]
    standings: tuple[Standing, ...]
    results: dict[str, dict[str, Any]] = field(repr=False)

    @classmethod
    def of(cls, results: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]) -> Standings:
        """From what `contest.run` gave; `about` has a word on each method."""
        base = results[BASE]
        rows = []
        for name, cells in results.items():
            there = {gone: cell for gone, cell in cells.items() if "refused" not in cell}
            why = next((cell["refused"] for cell in cells.values() if "refused" in cell), "")
            numbers = {
                key: mean([_value(c.get(key)) for c in there.values()], _WITHIN.get(key, (0, 1)))
                for key in _SHARES
            }
            for key in ("rank", "seconds"):  # the mean of what differs little says enough
                numbers[key] = Measured(numbers[key], numbers[key].n)
            for key in ("retain", "neighbours", "others"):
                lost = [_value(base[g][key]) - _value(c[key]) for g, c in there.items()]
                numbers[f"{key}_lost"] = mean(lost, (-1, 1))
            sets = next(iter(there.values()), {}).get("elsewhere", {})
            rows.append(
                Standing(
                    name=name,
                    about=about[name],
                    refused=len(cells) - len(there),
                    why=why,
                    numbers=numbers,
                    elsewhere={
                        one: mean([_value(c["elsewhere"][one]) for c in there.values()], (0, 1))
                        for one in sets
                    },
                    per_class={gone: _value(cell["forget"]) for gone, cell in there.items()},
                )
            )
        pictures = {gone: cell["forget"]["n"] for gone, cell in base.items()}
        return cls(tuple(base), pictures, tuple(rows), {k: dict(v) for k, v in results.items()})

    def main(self) -> Table:
        """What always stands together: the class, the others, its search, what probes find."""
        columns = (
            "method", "still found %", "others %", "nearest %", "search %", "probe %", "RanPAC %",
            "cosine",
        )  # fmt: skip
        keys = ("forget", "retain", "neighbours", "retrieval", "probe", "ranpac", "cosine")
        caption = (
            f"Means over {count(len(self.forget), 'class')}, each erased alone. Still found: "
            "pictures of the class that its name still answers; others, nearest: accuracy on all "
            "others and on the (up to five) nearest. Search: share of the class among the pictures "
            "that its text brings up first. Probe, RanPAC: how many of the class's pictures a "
            "classifier fitted to the edited features finds: the information, whatever the texts "
            "say. Where no class was named, they are those that the model answers half right on "
            "these very pictures, which flatters it before the edit."
        )
        if any(s.name == BASE_IN_HALVES for s in self.standings):
            caption += (
                " Methods that learn from pictures are made from one half and measured on the "
                f"other; their search, probe and RanPAC compare with {BASE_IN_HALVES}."
            )
        rows = tuple((self._label(s), *(s.numbers[k] for k in keys)) for s in self.standings)
        return Table(columns, rows, caption)

    def _label(self, standing: Standing) -> str:
        """The method; of how many classes its line is, where it is not of all."""
        done = len(self.forget) - standing.refused
        return (
            f"{standing.name} ({done} of {len(self.forget)})" if standing.refused else standing.name
        )

    def more(self) -> Table:
        """The other measures."""
        columns = (
            "method", "others lost %", "nearest lost %", "rest lost %", "precision", "prompt %",
            "area", "rank", "distance", "seconds",
        )  # fmt: skip
        keys = (
            "retain_lost", "neighbours_lost", "others_lost", "precision", "prompt",
            "area", "rank", "distance", "seconds",
        )  # fmt: skip
        caption = (
            "Lost: below the unedited model, class by class; rest are the others but the nearest. "
            "Search looks at as many pictures as the class has, at most 10. Precision: the average "
            "precision of that ranking. "
            "Prompt: accuracy of the class's pictures under the one prompt of its templates that "
            "finds most of them. Area: under retain over forgetting, strengths 0 to 1. Distance: "
            "Frobenius norm of the edit less the identity. Seconds: to make the edit."
        )
        rows = tuple((self._label(s), *(s.numbers[k] for k in keys)) for s in self.standings)
        return Table(columns, rows, caption)

    def pages(self) -> tuple[Page, ...]:
        """The tables, a picture of forgetting against its price, and class by class."""
        base = self.standings[0].numbers
        rest = [s for s in self.standings if s.name not in (BASE, BASE_IN_HALVES)]
        best = [s for s in rest if s.numbers["forget"] <= ENOUGH and not s.refused]
        cheap = min(best, key=lambda s: s.numbers["neighbours_lost"], default=None)
        lead = (
            f"{count(len(rest), 'method')} on {count(len(self.forget), 'class')}, "
            f"{count(sum(self.pictures.values()), 'picture')} of them. "
        )
        if cheap is None:
            lead += f"None leaves at most {percent(ENOUGH)} of these pictures answered as before."
        else:
            n = cheap.numbers
            lead += (
                f"After {len(best)} of them a class's name answers at most {percent(ENOUGH)} of "
                f"its pictures. Of these {cheap.name} costs the nearest classes least: "
                f"{percent(n['neighbours'])} of their pictures are answered right "
                f"({percent(base['neighbours'])} before), of all others {percent(n['retain'])} "
                f"({percent(base['retain'])}). Searched for, the class's text still brings up "
                f"{percent(n['retrieval'])} ({percent(base['retrieval'])}), and a linear probe "
                f"finds {percent(n['probe'])} of the pictures ({percent(base['probe'])})."
            )
        shown = [s for s in self.standings if not math.isnan(s.numbers["forget"])]
        chart = dots(
            [s.name for s in shown],
            {
                "still answered by the class": [s.numbers["forget"] for s in shown],
                "lost on the nearest": [s.numbers["neighbours_lost"] for s in shown],
            },
            "share of pictures",
            alt="Every method: what is left of the class, and what the nearest classes lost",
            caption="Both should be at 0. Means over classes.",
        )
        first = Page("compare", "Methods compared", lead, (self.main(), self.more()), (chart,))
        return (first, *self._elsewhere(), self._per_class(), self._methods())

    def _elsewhere(self) -> tuple[Page, ...]:
        sets = tuple(self.standings[0].elsewhere)
        if not sets:
            return ()
        rows = tuple(
            (s.name, *(s.elsewhere.get(one, math.nan) for one in sets)) for s in self.standings
        )
        columns = ("method", *(f"{one} %" for one in sets))
        lead = "Zero-shot accuracy on pictures of other data sets, with their own class names."
        return (Page("elsewhere", "Other data sets", lead, (Table(columns, rows),)),)

    def _per_class(self) -> Page:
        columns = ("class", "pictures", *(f"{s.name} %" for s in self.standings))
        rows = tuple(
            (gone, self.pictures[gone], *(s.per_class.get(gone, math.nan) for s in self.standings))
            for gone in self.forget
        )
        lead = "How many pictures of each class are still answered by it."
        return Page("classes", "Class by class", lead, (Table(columns, rows),))

    def _methods(self) -> Page:
        rows = tuple(
            (s.name, s.about, f"{s.refused}: {s.why}" if s.refused else "") for s in self.standings
        )
        columns = ("method", "what it is", "classes refused, and why the first")
        return Page("methods", "The methods", "What was compared.", (Table(columns, rows),))


def _value(number: Any) -> float:
    """A number of a cell as JSON has it: a dict, a number, or None where there is none."""
    if isinstance(number, Mapping):
        number = number["value"]
    return math.nan if number is None else float(number)
