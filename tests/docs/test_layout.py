"""Tests share through tests/helpers and conftest.py alone, and what is quick covers enough."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

from campaigns import covering

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("test_*.py"))


def imported(path: Path) -> Iterator[str]:
    """The names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_no_test_file_imports_another() -> None:
    names = {path.stem for path in FILES} | {"conftest"}
    found = {
        f"{path.relative_to(TESTS)} imports {module}"
        for path in [*FILES, *(TESTS / "helpers").rglob("*.py"), *TESTS.rglob("conftest.py")]
        for module in imported(path)
        if names & {*module.split(".")}
    }
    assert found == set()


def test_a_file_does_not_repeat_its_folder() -> None:
    found = [
        str(path.relative_to(TESTS))
        for path in FILES
        if path.stem.startswith(f"test_{path.parent.name}_")
    ]
    assert found == []


def test_every_two_values_of_a_pairwise_test_meet_in_few_of_its_cases() -> None:
    rows = [row for row in product("abcd", range(5), "xyz", (True, False)) if row[:2] != ("a", 0)]
    chosen = [rows[i] for i in covering(rows)]

    def pairs(of: list[tuple[object, ...]]) -> set[object]:
        return {(i, j, row[i], row[j]) for row in of for i, j in combinations(range(4), 2)}

    assert pairs(chosen) == pairs(rows)
    assert len(chosen) <= 25 < len(rows)  # 19 pairs of the two longest are the least
