"""What `make test` leaves to `make campaigns`, and what of it stays as a quick test beside.

Most faults need one value or two that meet: a dtype, a width with a rank, an option with a layout.
So `make test` runs, of a test marked `pairwise`, a subset in which every two values of two
parameters do meet, and `make campaigns` runs the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest


def covering(rows: Sequence[Sequence[Hashable]]) -> set[int]:
    """The indices of rows among which every pair of values in two columns of `rows` is found.

    Greedy, and the same for the same rows: always the row with most pairs that are still missing,
    of several the first.
    """
    pairs = [{(i, j, row[i], row[j]) for i, j in combinations(range(len(row)), 2)} for row in rows]
    missing = set().union(*pairs)
    chosen = set()
    while missing:
        best = max(range(len(rows)), key=lambda i: (len(pairs[i] & missing), -i))
        chosen.add(best)
        missing -= pairs[best]
    return chosen


def every(step: int, values: Iterable[Any]) -> list[Any]:
    """Each step-th value as it is, the others as campaigns."""
    return [value if i % step == 0 else _campaign(value) for i, value in enumerate(values)]


def one_of_each(values: Iterable[Any], kind: Callable[[Any], Hashable]) -> list[Any]:
    """The first value of each kind as it is, the others as campaigns."""
    seen: set[Hashable] = set()
    out = []
    for value in values:
        out.append(_campaign(value) if (key := kind(value)) in seen else value)
        seen.add(key)
    return out


def _campaign(value: Any) -> Any:
    given = value if isinstance(value, tuple) else (value,)
    return pytest.param(*given, marks=pytest.mark.campaign)


def mark_campaigns(items: Iterable[pytest.Item]) -> None:
    """Marks as `campaign` what a test that is marked `pairwise` has beside such a subset."""
    tests: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairwise"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for functions in tests.values():
        chosen = covering([_values(function) for function in functions])
        for i, function in enumerate(functions):
            if i not in chosen:
                function.add_marker("campaign")


def _values(function: pytest.Function) -> list[str]:
    """One for each of its parameters; those that one `parametrize` sets together are one."""
    given = {name: repr(value) for name, value in function.callspec.params.items()}
    together = [mark.args[0] for mark in function.iter_markers("parametrize")]
    values = [
        ", ".join(given.pop(name.strip()) for name in names)
        for names in (one.split(",") if isinstance(one, str) else one for one in together)
    ]
    return [*values, *given.values()]
