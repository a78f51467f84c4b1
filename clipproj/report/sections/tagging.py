"""What the audit "tagging" says: its lead, tables and charts."""

from __future__ import annotations

import math

from clipproj.audit.stats import Measured
from clipproj.audit.tagging import AUDIT, RECALLS, Tagged, TaggingResult
from clipproj.report.charts import lines
from clipproj.report.formatting import count, either, listed, percent
from clipproj.report.page import Page, Table

_RANKED = 0.9  # of the average precision, from which the order counts as kept


def page(result: TaggingResult) -> Page:
    """The audit in a report."""
    columns = (
        "AP before %", "AP after %", "recall before %", "recall after %", "tagged before %",
        "tagged after %", "false positives before %", "false positives after %",
        "best F1 before", "best F1 after", "mean cosine before", "mean cosine after",
    )  # fmt: skip

    def cells(b: Tagged, a: Tagged) -> tuple[Measured, ...]:
        return (
            b.average_precision, a.average_precision, b.recall, a.recall, b.flag_rate,
            a.flag_rate, b.false_positives, a.false_positives, b.best_f1, a.best_f1, b.level,
            a.level,
        )  # fmt: skip

    lost = sorted(
        (tag for tag in result.tags if tag.group == "others"),
        key=lambda tag: tag.after.average_precision - tag.before.average_precision,
    )
    shown = [tag for tag in result.tags if tag.group != "others"] + lost[:8]
    tables = (
        Table(
            ("tags", *columns),
            tuple((g, *cells(b, result.after[g])) for g, b in result.before.items()),
            "AP is average precision. Recall, tagged and false positives are at the thresholds "
            "of best F1 before the edit; the best F1 after has a threshold set anew. Both "
            "thresholds are set on the very images they are measured on, which flatters F1.",
        ),
        Table(
            ("tag", "threshold", *columns),
            tuple((t.name, f"{t.threshold:.3f}", *cells(t.before, t.after)) for t in shown),
            "The forgotten tags, the nearest to them, and the others whose average precision "
            "lost most.",
        ),
    )
    if math.isnan(result.curve_before[0]):
        return Page(AUDIT.key, AUDIT.title, lead(result), tables)
    figure = lines(
        {"before": (RECALLS, result.curve_before), "after": (RECALLS, result.curve_after)},
        "recall",
        "precision",
        alt=f"Precision over recall of {listed(result.forget)} before and after the edit.",
        caption=f"Precision over recall of {listed(result.forget)}, over all thresholds.",
    )
    return Page(AUDIT.key, AUDIT.title, lead(result), tables, (figure,))


def lead(result: TaggingResult) -> str:
    """What came of it, in words."""
    b, a = result.before["forgotten"], result.after["forgotten"]
    names = listed(result.forget)
    tag = either(result.forget, f"the tag {names}", f"the tags {names}")
    if not b.recall.n:
        told = [f"There is no image of {names}: {tag} was not measured."]
    elif not b.false_positives.n:
        told = [f"There are only images of {names}: there is nothing to tell {tag} from."]
    else:
        at = either(result.forget, "threshold that was", "thresholds that were")
        own = either(result.forget, "its images get it", "their images get theirs")
        told = [
            f"The average precision of {tag} went from {percent(b.average_precision)} to "
            f"{percent(a.average_precision)}, on {count(b.recall.n, 'image')}. At the {at} "
            f"best before, {percent(a.recall)} of {own} (before {percent(b.recall)})."
        ]
        # F1 alone would do: tagging everything has a high one where images are few
        ranked = a.average_precision > _RANKED * b.average_precision
        if a.recall < b.recall / 2 and ranked and a.best_f1 > b.best_f1 / 2:
            told.append(
                "The scores fell, their order hardly did: a new threshold brings most of the "
                f"tag back (F1 {a.best_f1:.2f}, before {b.best_f1:.2f})."
            )
    for group in ("nearest", "others"):
        if group in result.before:
            b, a = result.before[group], result.after[group]
            told.append(
                f"The {group} at their old thresholds: recall {percent(b.recall)} before and "
                f"{percent(a.recall)} after, false positives {percent(b.false_positives)} and "
                f"{percent(a.false_positives)}."
            )
    return " ".join(told)
