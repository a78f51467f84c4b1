"""Which of a test's many combinations of parameters are enough to see every two values together.

Most faults need one value or two that meet: a dtype, a width with a rank, an option with a layout.
So `make test` runs, of a test marked `pairwise`, a subset in which every two values of two
parameters do meet, and `make campaigns` runs the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations

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


def mark_campaigns(items: Iterable[pytest.Item]) -> None:
    """Marks as `campaign` what a test that is marked `pairwise` has beside such a subset.

    GPU cases are a set of their own: where there is no GPU they are skipped, and cover nothing.
    """
    tests: dict[tuple[str, bool], list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairwise"):
            name = item.nodeid.partition("[")[0]
            tests[name, item.get_closest_marker("gpu") is not None].append(item)
    for functions in tests.values():
        rows = [tuple(one.callspec.indices.items()) for one in functions]
        chosen = covering(rows)
        for i, function in enumerate(functions):
            if i not in chosen:
                function.add_marker("campaign")
