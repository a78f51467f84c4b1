"""docs/methods.md: its table of methods is the registry. `python tests/docs/test_method_table.py`
writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # as a script

from documents import ROOT

from clipproj.methods.registry import METHODS, NEEDS, STRENGTH, Method, Option

PAGE = ROOT / "docs/methods.md"
BEGIN = "<!-- methods: written by tests/docs/test_method_table.py -->\n"
END = "<!-- end of methods -->\n"
HEAD = (
    "| `--method` | what it does | options (default) | needs | promises | paper |\n"
    "|---|---|---|---|---|---|\n"
)


def option(one: Option) -> str:
    """The cell of an option: its name, its values, its default."""
    values = f": {', '.join(one.choices)}" if one.choices else ""
    return f"`{one.name}`{values} ({one.default})"


def row(one: Method) -> str:
    """The row of a method."""
    needs = [NEEDS[need] for need in sorted(one.needs)]
    needs += [f"{value}: {NEEDS[need]}" for o in one.options for value, need in o.needs.items()]
    other = ", one-sided 2" if one.one_sided else ""
    form = [f"strength up to {2 if one.symmetric else 1}{other}"]
    form += [] if one.foldable else ["no head without a bias can hold it"]
    promises = "; ".join(filter(None, (one.promise, *form)))
    cells = (
        f"`{one.name}`", one.about, "<br>".join(map(option, one.options)) or "none",
        "; ".join(needs) or "names", promises, one.paper,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    """All of it, between the two marks."""
    told = f"Every method takes `strength`: {STRENGTH.help} (default {STRENGTH.default}).\n"
    return BEGIN + HEAD + "".join(map(row, METHODS.values())) + "\n" + told + END


def parts(text: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands after it."""
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:begin], text[begin:end], text[end:]


def test_the_table_of_methods_is_the_registry() -> None:
    assert parts(PAGE.read_text(encoding="utf-8"))[1] == table()


if __name__ == "__main__":
    before, _, after = parts(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(before + table() + after, encoding="utf-8")
