"""What every report has in common: its summary, tables in boxes that scroll, one file."""

from __future__ import annotations

import re
from pathlib import Path

import browser
import pytest

from clipproj.audit.stats import Measured
from clipproj.refusal import Refusal
from clipproj.report import charts, html
from clipproj.report.page import Card, Figure, Page, Report, Table
from clipproj.report.summary import of_audits, of_comparison, suggestion

SHARE = Measured(0.5, 40, 0.35, 0.65)
LONG = "telecommunications " * 3
WIDE = Table(
    ("class", *(f"a measure of many words, number {i} %" for i in range(20))),
    tuple((name, *[SHARE] * 20) for name in ("cat", "hamburger stand", LONG)),
    "A caption of many words that is read whole, however little of the table is seen. " * 3,
)
WORDS = Table(("method", "what it is"), (("nullspace", "words " * 30), ("hull", "more")), "Words.")
CHART = charts.lines(
    {"forgotten": ([0, 1, 2], [0.9, 0.1, 0.0]), "all others": ([0, 1, 2], [0.8, 0.8, 0.7])},
    "strength", "accuracy", alt="Accuracy over strength", caption="Over strength.", marked=1,
)  # fmt: skip
DOTS = charts.dots(
    ["no edit", "a method of a long name, 0.85"], {"found": [0.8, 0.0], "lost": [0.0, 0.3]},
    "share of images", alt="Methods", caption="Both should be at 0.",
)  # fmt: skip


def made(report: Report, folder: Path) -> str:
    html.write(folder / "r.html", report)
    return (folder / "r.html").read_text(encoding="utf-8")


@pytest.fixture
def report() -> Report:
    """One of everything, wider than any screen."""
    pages = (
        Page("tune", "Strength", "Strength 0.6 meets the target.", (WIDE,), (CHART, DOTS)),
        Page("words", "In words", "A table of words.", (WORDS,), command="clipproj undo a b"),
    )
    card = Card("Forgotten", "0.0 %", "77.8 % before", "of 9 images of “cat”", "forget")
    return Report(
        "Erasing “cat”", "clipproj audit", pages, "It is erased.", {"model": "m", "rank": "1"},
        cards=(card,) * 6, caveat="The information is not.",
        tables=(Table(("audit", "found"), (("Strength", "0.6"), ("In words", LONG)),
                      links=("tune", "words")),),
    )  # fmt: skip


def test_every_table_scrolls_in_its_box_below_which_its_caption_stands(
    report: Report, tmp_path: Path
) -> None:
    text = made(report, tmp_path)
    boxes = re.findall(r'<div class="wide"([^>]*)>\s*<table.*?</table>\s*</div>', text, re.DOTALL)
    assert len(boxes) == text.count("<table") == 3
    assert all('tabindex="0" role="region" aria-label="' in box for box in boxes)
    assert "<caption" not in text  # it would be cut off with its table
    box = text.index('<div class="wide"', text.index("Over strength"))
    assert text.index("</div>", box) < text.index('<p class="caption">A caption of many words')


def test_phones_are_told_their_width_and_nothing_is_loaded(report: Report, tmp_path: Path) -> None:
    text = made(report, tmp_path)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="(?!#|data:image/)', text)


def test_the_summary_comes_first_and_its_links_lead_somewhere(
    report: Report, tmp_path: Path
) -> None:
    text = made(report, tmp_path)
    order = [text.index(part) for part in (
        "It is erased.", '<dl class="cards">', "The information is not.", 'href="#tune"',
        'id="tune"', 'id="words"',
    )]  # fmt: skip
    assert order == sorted(order)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(re.findall(r' id="([^"]+)"', text))


def test_links_are_listed_where_no_table_has_them(report: Report, tmp_path: Path) -> None:
    pages = report.pages
    text = made(Report("t", "e", pages, tables=(WORDS,)), tmp_path)
    assert [f'href="#{page.key}"' in text for page in pages] == [True, True]


@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_browser_no_word_is_cut_or_broken(report: Report, tmp_path: Path, width: int) -> None:
    told = browser.measured(made(report, tmp_path), width, tmp_path)
    assert told["width"] == told["scroll"] == width
    assert told["broken"] == []
    assert told["outside"] == []
    assert told["small"] == []


def test_a_name_longer_than_a_line_is_broken_rather_than_cut(tmp_path: Path) -> None:
    name = "n" * 400
    report = Report(f"Erasing {name}", "e", (Page("a", name, name, (Table(("c",), ((name,),)),)),))
    told = browser.measured(made(report, tmp_path), 390, tmp_path)
    assert told["scroll"] == 390
    assert told["outside"] == []


def test_a_table_refuses_links_for_some_rows_only() -> None:
    with pytest.raises(Refusal, match="Table: links must be 2, got 1"):
        Table(("a",), (("x",), ("y",)), links=("k",))


def test_columns_of_numbers_are_told_from_words() -> None:
    table = Table(("a", "b %", "c", "d"), (("x", SHARE, "w", None), ("y", 0.5, 1, 2)))
    assert table.numeric == (False, True, False, True)


# ---- summaries ----

POINT = {"forget": {"value": 0.0}, "keep": {"value": 0.794}, "nearest": {"value": None}}
TUNED = {
    "strength": 0.6, "met": True, "forget_at_most": 0.01, "keep_loss_at_most": 0.02,
    "chosen": POINT,
}  # fmt: skip


def test_a_better_strength_is_suggested_and_the_same_is_not() -> None:
    better = suggestion(TUNED, 1.0)
    assert (better.label, better.value) == ("Suggested strength", "0.6")
    assert better.before == "1 was audited"
    assert "the least that meets the target (at most 1.0\u00a0% still found" in better.about
    assert "0.0\u00a0% of the forgotten, 79.4\u00a0% of all others, n/a" in better.about
    assert suggestion(TUNED, 0.6000000238).label == "Strength"  # a float32
    near = suggestion(TUNED | {"met": False}, 1.0)
    assert near.about.startswith("nearest to the target")
    assert "none meets the target" in suggestion(TUNED | {"met": False}, 0.6).about


def test_audits_begin_with_what_each_found() -> None:
    pages = [Page("accuracy", "Accuracy", "It fell."), Page("domains", "Domains", "Not made.")]
    report = of_audits("t", {"model": "m"}, pages, {"accuracy": None, "tune": None}, 1.0)
    (table,) = report.tables
    assert table.rows == (("Accuracy", "It fell."), ("Domains", "Not made."))
    assert table.links == ("accuracy", "domains")
    assert report.lead == "It fell."
    assert report.cards == ()


def test_a_comparison_begins_with_its_leaderboard() -> None:
    board, page = Table(("method",), (("ccup",),)), Page("price", "Price", "11 methods.")
    one = of_comparison({}, {"here": (board, (page, page))})
    assert (one.lead, one.tables, one.pages[0].lead) == ("11 methods.", (board,), "")
    two = of_comparison({}, {"A": (board, (page,)), "B": (board, (page,))})
    assert [table.title for table in two.tables] == ["A", "B"]
    assert [(p.key, p.title) for p in two.pages] == [
        ("0-price", "A: Price"),
        ("1-price", "B: Price"),
    ]
    assert two.pages[0].lead == "11 methods."


def test_an_image_in_a_figure_scrolls_and_is_described(tmp_path: Path) -> None:
    figure = Figure("Heat <maps>", "By row.", source="data:image/png;base64,AA==")
    text = made(Report("t", "e", (Page("a", "A", "", figures=(figure,)),)), tmp_path)
    assert '<img src="data:image/png;base64,AA==" alt="Heat &lt;maps&gt;">' in text
    assert "<figcaption>By row.</figcaption>" in text
