"""The summaries that reports begin with: the numbers that are only read together, and audit.html's
account of all audits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from clipproj.report.formatting import count, listed, percent
from clipproj.report.page import Card, Page, Report, Table


def cards(measured: Mapping[str, Any], texts: Mapping[str, Any] | None = None) -> tuple[Card, ...]:
    """Forgotten, kept, nearest, same answers and what a probe still finds: always together.

    Args:
        measured: the numbers of an edit, as `evaluate.as_dict` gives them.
        texts: the same of the edit on mixtures of texts, for what no image was measured of.
    """
    of_forgotten = measured if texts is None or measured["images"]["forget"] else texts
    unit = measured["of"]

    def card(label: str, of: Mapping[str, Any], key: str, about: str, role: str) -> Card:
        was, now = (_shown(of[when][key]) for when in ("before", "after"))
        return Card(label, now, f"{was} before", about, role)

    forgotten = count(of_forgotten["images"]["forget"], of_forgotten["of"])
    others = count(measured["images"]["keep"], unit)
    nearest = ", ".join(measured["nearest"]) or "no class"
    agreement = f"of {others} answered as before, at a mean cosine of {_cosine(measured)}"
    return (
        card("Forgotten", of_forgotten, "found",
             f"of {forgotten} of {_names(of_forgotten)} answered by a forgotten name", "forget"),
        card("All others", measured, "keep", f"accuracy on {others} of other classes", "keep"),
        card("Nearest others", measured, "nearest", f"accuracy on {nearest}", "nearest"),
        Card("Same answers", _shown(measured["agreement"]), "", agreement, "keep"),
        card("Linear probe", measured, "probe",
             "of the forgotten images found by a probe fitted to the features", "probe"),
    )  # fmt: skip


def of_audits(
    title: str,
    facts: Mapping[str, str],
    pages: Sequence[Page],
    numbers: Mapping[str, Mapping[str, Any] | None],
    strength: float,
) -> Report:
    """The report of all audits: the numbers, what each audit found, and a better strength.

    Args:
        title, facts: of the report.
        pages: one an audit.
        numbers: what each audit measured, by key; None where it was not made.
        strength: of the edit that was audited.
    """
    found = Table(
        ("audit", "what it found"),
        tuple((page.title, page.lead) for page in pages),
        title="All audits",
        links=tuple(page.key for page in pages),
    )
    accuracy, tuned = numbers.get("accuracy"), numbers.get("tune")
    shown = () if accuracy is None else cards(accuracy)
    if tuned is not None:
        shown = (*shown, suggestion(tuned, strength))
    lead = next((page.lead for page in pages if page.key == "accuracy"), "")
    return Report(
        title=title, eyebrow="clipproj audit", pages=tuple(pages), lead=lead, facts=facts,
        cards=shown, tables=(found,),
    )  # fmt: skip


def of_comparison(
    facts: Mapping[str, str], boards: Mapping[str, tuple[Table, Sequence[Page]]]
) -> Report:
    """The report of a comparison of methods, the leaderboard first.

    Args:
        facts: of the report.
        boards: by the title of a data set its leaderboard and pages, the first with its lead.
    """
    title, eyebrow = "Methods of forgetting, compared", "clipproj compare"
    if len(boards) == 1:
        ((board, (first, *pages)),) = boards.values()
        pages = (replace(first, lead=""), *pages)
        return Report(title, eyebrow, pages, first.lead, facts, tables=(board,))
    tables = tuple(replace(board, title=name) for name, (board, _) in boards.items())
    pages = tuple(  # a key is an anchor, of which a file has one
        replace(page, key=f"{i}-{page.key}", title=f"{name}: {page.title}")
        for i, (name, (_, own)) in enumerate(boards.items())
        for page in own
    )
    return Report(title, eyebrow, pages, facts=facts, tables=tables)


def suggestion(tuned: Mapping[str, Any], strength: float) -> Card:
    """The strength that the audit "tune" found, where it is a better one.

    Args:
        tuned: the audit's numbers.
        strength: of the edit.
    """
    best = tuned["strength"]
    target = (
        f"at most {percent(tuned['forget_at_most'])} still found, at most "
        f"{percent(tuned['keep_loss_at_most'])} of others lost"
    )
    if math.isclose(best, strength, abs_tol=1e-6):
        judged = "the least that meets the target" if tuned["met"] else "none meets the target"
        return Card("Strength", f"{strength:g}", "no better one", f"{judged}: {target}")
    chosen = tuned["chosen"]
    left = (
        f"leaves {_shown(chosen['forget'])} of the forgotten, {_shown(chosen['keep'])} of all "
        f"others, {_shown(chosen['nearest'])} of the nearest"
    )
    judged = "the least that meets the target" if tuned["met"] else "nearest to the target"
    about = f"{judged} ({target}); it {left}"
    return Card("Suggested strength", f"{best:g}", f"{strength:g} was audited", about)


def _names(measured: Mapping[str, Any]) -> str:
    return listed(measured["forget"] or measured["unmeasured"])


def _shown(share: Mapping[str, Any] | float | None) -> str:
    """A share of JSON, where None is NaN."""
    value = share["value"] if isinstance(share, Mapping) else share
    return percent(math.nan if value is None else value)


def _cosine(measured: Mapping[str, Any]) -> str:
    return "n/a" if measured["cosine"] is None else f"{measured['cosine']:.4f}"
