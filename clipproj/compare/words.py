"""What a comparison of methods says: the leaderboard as tables, a chart, class by class."""

from __future__ import annotations

import math

from clipproj.compare.comparison import BASE, BASE_IN_HALVES
from clipproj.compare.leaderboard import Leaderboard, Row
from clipproj.report.charts import dots
from clipproj.report.formatting import count, percent
from clipproj.report.page import Page, Table

ENOUGH = 0.01  # accuracy on a class up to which it counts as forgotten


def pages(board: Leaderboard) -> tuple[Page, ...]:
    """What stands below the leaderboard: forgetting against its price, and class by class."""
    base = board.rows[0].numbers
    rest = [s for s in board.rows if s.name not in (BASE, BASE_IN_HALVES)]
    best = [s for s in rest if s.numbers["forget"] <= ENOUGH and not s.refused]
    cheap = min(best, key=lambda s: s.numbers["nearest_lost"], default=None)
    lead = (
        f"{count(len(rest), 'method')} on {count(len(board.forget), 'class')}, "
        f"{count(sum(board.images.values()), 'image')} of them. "
    )
    if cheap is None:
        lead += f"None leaves at most {percent(ENOUGH)} of these images answered as before."
    else:
        n = cheap.numbers
        lead += (
            f"After {len(best)} of them a class's name answers at most {percent(ENOUGH)} of "
            f"its images. Of these {cheap.name} costs the nearest classes least: "
            f"{percent(n['nearest'])} of their images are answered right "
            f"({percent(base['nearest'])} before), of all others {percent(n['keep'])} "
            f"({percent(base['keep'])}). Searched for, the class's text still brings up "
            f"{percent(n['retrieval'])} ({percent(base['retrieval'])}), and a linear probe "
            f"finds {percent(n['probe'])} of the images ({percent(base['probe'])})."
        )
    shown = [s for s in board.rows if not math.isnan(s.numbers["forget"])]
    chart = dots(
        [s.name for s in shown],
        {
            "still answered by the class": [s.numbers["forget"] for s in shown],
            "lost on the nearest": [s.numbers["nearest_lost"] for s in shown],
        },
        "share of images",
        alt="Every method: what is left of the class, and what the nearest classes lost",
        caption="Both should be at 0. Means over classes.",
    )
    first = Page("price", "Forgetting and its price", lead, (more(board),), (chart,))
    return (first, *_elsewhere(board), _per_class(board), _methods(board))


def main(board: Leaderboard) -> Table:
    """What always stands together: the class, the others, its search, what probes find."""
    columns = (
        "method", "still found %", "others %", "nearest %", "search %", "probe %", "RanPAC %",
        "cosine",
    )  # fmt: skip
    keys = ("forget", "keep", "nearest", "retrieval", "probe", "ranpac", "cosine")
    caption = (
        f"Means over {count(len(board.forget), 'class')}, each erased alone. Still found: "
        "images of the class that its name still answers; others, nearest: accuracy on all "
        "others and on the (up to five) nearest. Search: share of the class among the images "
        "that its text brings up first. Probe, RanPAC: how many of the class's images a "
        "classifier fitted to the edited features finds: the information, whatever the texts "
        "say. Where no class was named, they are those that the model answers half right on "
        "these very images, which flatters it before the edit."
    )
    if any(s.name == BASE_IN_HALVES for s in board.rows):
        caption += (
            " Methods that learn from images are made from one half and measured on the "
            f"other; their search, probe and RanPAC compare with {BASE_IN_HALVES}."
        )
    rows = tuple((_label(board, s), *(s.numbers[k] for k in keys)) for s in board.rows)
    return Table(columns, rows, caption)


def more(board: Leaderboard) -> Table:
    """The other measures."""
    columns = (
        "method", "others lost %", "nearest lost %", "rest lost %", "precision", "prompt %",
        "area", "rank", "distance", "seconds",
    )  # fmt: skip
    keys = (
        "keep_lost", "nearest_lost", "others_lost", "precision", "prompt",
        "area", "rank", "distance", "seconds",
    )  # fmt: skip
    caption = (
        "Lost: below the unedited model, class by class; rest are the others but the nearest. "
        "Search looks at as many images as the class has, at most 10. Precision: the average "
        "precision of that ranking. "
        "Prompt: accuracy of the class's images under the one prompt of its templates that "
        "finds most of them. Area: under keep over forgetting, strengths 0 to 1. Distance: "
        "Frobenius norm of the edit less the identity. Seconds: to make the edit."
    )
    rows = tuple((_label(board, s), *(s.numbers[k] for k in keys)) for s in board.rows)
    return Table(columns, rows, caption)


def _elsewhere(board: Leaderboard) -> tuple[Page, ...]:
    sets = tuple(board.rows[0].elsewhere)
    if not sets:
        return ()
    rows = tuple((s.name, *(s.elsewhere.get(one, math.nan) for one in sets)) for s in board.rows)
    columns = ("method", *(f"{one} %" for one in sets))
    lead = "Zero-shot accuracy on images of other data sets, with their own class names."
    return (Page("elsewhere", "Other data sets", lead, (Table(columns, rows),)),)


def _per_class(board: Leaderboard) -> Page:
    columns = ("class", "images", *(f"{s.name} %" for s in board.rows))
    rows = tuple(
        (
            forgotten,
            board.images[forgotten],
            *(s.per_class.get(forgotten, math.nan) for s in board.rows),
        )
        for forgotten in board.forget
    )
    lead = "How many images of each class are still answered by it."
    return Page("classes", "Class by class", lead, (Table(columns, rows),))


def _methods(board: Leaderboard) -> Page:
    columns: tuple[str, ...] = ("method", "what it is")
    rows: tuple[tuple[str, ...], ...] = tuple((s.name, s.about) for s in board.rows)
    if any(s.refused for s in board.rows):
        columns = (*columns, "classes refused, and why the first")
        why = (f"{s.refused}: {s.why}" if s.refused else "" for s in board.rows)
        rows = tuple((*row, one) for row, one in zip(rows, why, strict=True))
    return Page("methods", "The methods", "What was compared.", (Table(columns, rows),))


def _label(board: Leaderboard, row: Row) -> str:
    """The method; of how many classes its line is, where it is not of all."""
    done = len(board.forget) - row.refused
    return f"{row.name} ({done} of {len(board.forget)})" if row.refused else row.name
