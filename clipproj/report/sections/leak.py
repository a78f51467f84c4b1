"""What the audit "leak" says: its lead, tables and charts."""

from __future__ import annotations

from clipproj.audit.leak import AUDIT, LeakResult
from clipproj.report.charts import lines
from clipproj.report.formatting import count, either, listed, percent
from clipproj.report.page import Page, Table


def page(result: LeakResult) -> Page:
    """The numbers as a page of a report."""
    rows = (
        ("before the edit, no memory", result.before),
        ("before the edit, memory", result.before_memory),
        ("after, no memory", result.none),
        ("after, memory unedited", result.unedited),
        ("after, memory edited", result.edited),
        ("after, memory purged of the class", result.purged),
    )
    memory = f"{count(result.entries, 'image')} with the texts of their classes"
    if result.left_out:
        memory += ", never the image that is asked about"
    table = Table(
        ("", "forgotten %", "all others %"),
        tuple((name, one.forget, one.keep) for name, one in rows),
        f"The memory: {memory}; of forgotten classes: {result.entries_forget}. The nearest "
        f"images, {result.k} at most, give their texts, which are added to the feature with "
        f"weight {result.gamma:g}.",
    )
    figures = ()
    if result.none.forget.n:
        x = [point.gamma for point in result.curve]
        series = {
            "before the edit": (x, [point.before for point in result.curve]),
            "memory unedited": (x, [point.unedited for point in result.curve]),
            "memory edited": (x, [point.edited for point in result.curve]),
            "memory purged": (x, [point.purged for point in result.curve]),
        }
        figures = (
            lines(
                series, "weight of the memory", "accuracy on the forgotten", marked=result.gamma,
                alt=f"Accuracy on {listed(result.forget)} over the weight of the memory, by what "
                "became of the memory",
            ),
        )  # fmt: skip
    return Page(AUDIT.key, AUDIT.title, lead(result), (table,),
                figures)  # fmt: skip


def lead(result: LeakResult) -> str:
    """What came of it, in words."""
    names, none, leak = listed(result.forget), result.none.forget, result.unedited.forget
    if none.n == 0:
        return f"No image of {names} was given: what a memory gives back was not measured."
    if result.entries_forget == 0:
        other = " other" if result.left_out else ""
        return (
            f"The memory holds {count(result.entries, 'image')} and no{other} one of {names}: "
            "whether one that does brings the class back was not measured."
        )
    found = (
        f"accuracy on {count(none.n, 'image')} goes from {percent(none)} without a memory to "
        f"{percent(leak)} with an unedited one"
    )
    if leak > none:
        verdict = f"An unedited retrieval memory leaks {names}: {found}"
    else:
        verdict = (
            f"At this weight no leak of {names} from an unedited retrieval memory was seen: {found}"
        )
        worst = max(result.curve, key=lambda point: point.unedited)
        if worst.unedited > none:
            verdict += f", but to {percent(worst.unedited)} at weight {worst.gamma:g}"
    return (
        f"{verdict} ({percent(result.before_memory.forget)} with it before the edit). Passing "
        f"the memory through the edit gives {percent(result.edited.forget)}, purging it of the "
        f"{either(result.forget, 'class', 'classes')} {percent(result.purged.forget)}."
    )
