"""CONTRIBUTING.md: its table is what CI runs, and its recipes number their places as they say."""

import re

import documents
from documents import ROOT

PAGE = ROOT / "CONTRIBUTING.md"
COUNTS = {"Five": 5, "Six": 6, "Ten": 10}


def test_the_table_is_what_ci_runs() -> None:
    steps = re.search(r"^for step in (.+); do$", (ROOT / ".ci/run").read_text(), re.MULTILINE)[1]
    rows = documents.table(PAGE, "step |")
    assert [row[0] for row in rows] == [f"`make {step}`" for step in steps.split()]
    assert sum(int(row[2]) for row in rows) == 30


def test_recipes_have_as_many_places_as_they_say() -> None:
    recipes = re.split(r"^## Add an? ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert [text.partition("\n")[0] for text in recipes] == [
        "operator", "method", "model family", "audit",
    ]  # fmt: skip
    for text in recipes:
        (said,) = re.findall(r"\b(Five|Six|Ten) places\b", text)
        places = re.findall(r"^(\d+)\. `", text, flags=re.MULTILINE)
        assert places == [str(i + 1) for i in range(COUNTS[said])]
