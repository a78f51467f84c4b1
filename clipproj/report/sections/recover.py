"""What the audit "recover" says: its lead, tables and charts."""

from __future__ import annotations

from clipproj.audit.probe import FOLDS
from clipproj.audit.recover import AUDIT, RecoverResult
from clipproj.report.formatting import count, either, listed, percent
from clipproj.report.page import Page, Table

_TITLES = {
    "ridge": "linear probe (ridge)",
    "ranpac": "RanPAC probe (random features)",
    "mean": "nearest class mean",
}


def page(result: RecoverResult) -> Page:
    """The numbers as a page of a report."""
    if result.reason:
        return Page(AUDIT.key, AUDIT.title, lead(result))
    tables = [
        Table(
            (
                "probe", "before %", "after, fitted anew %", "after, fitted before %",
                "false alarms before %", "false alarms after %",
            ),
            tuple(
                (
                    _TITLES[one.probe], one.before, one.after, one.old, one.alarms_before,
                    one.alarms_after,
                )
                for one in result.probes
            ),
            f"Share of the forgotten images that a probe names rightly ({FOLDS} folds, never "
            "fitted on the image it is asked about), and share of all other images that it "
            f"takes for a forgotten class. Chance is {percent(result.chance)}.",
        )
    ]  # fmt: skip
    if result.removal is not None:
        removal = result.removal
        tables.append(
            Table(
                ("accuracy on all other images", "with the class %", "class taken out %"),
                (
                    ("unedited features", removal.before_with, removal.before_without),
                    ("edited features", removal.after_with, removal.after_without),
                ),
                "What the owner of a probe can do: RanPAC forgets a class exactly. It then "
                "answers as a head that never saw the class (scores differ by at most "
                f"{removal.difference:.1e}), and cannot name it. The features stay as they are.",
            )
        )
    return Page(AUDIT.key, AUDIT.title, lead(result), tuple(tables))


def lead(result: RecoverResult) -> str:
    """What came of it, in words."""
    names = listed(result.forget)
    if result.reason:
        return f"What a probe finds of {names} was not measured: {result.reason}."
    zero_shot = (
        f"By {either(result.forget, 'its text', 'their texts')} the model names "
        f"{percent(result.zero_shot_before)} of "
        f"{count(result.zero_shot_before.n, 'image')} of {names} before the edit, "
        f"{percent(result.zero_shot_after)} after it."
    )
    best = max(result.probes, key=lambda one: one.after.low - one.alarms_after.high)
    if result.side == "text":
        return (
            f"{zero_shot} The edit is of the texts: no image’s feature changes, and all the "
            f"information is where it was ({_TITLES[best.probe]}: {percent(best.after)})."
        )
    after = f"finds {percent(best.after)} (before the edit {percent(best.before)})"
    # a single image is no finding: three probes had a chance of it
    if best.after.low > best.alarms_after.high and best.after * best.after.n > 1.5:
        verdict = (
            f"The information is not gone: fitted anew on edited features, the "
            f"{_TITLES[best.probe]} {after}."
        )
    else:
        verdict = (
            f"Fitted anew on edited features, the best of these probes {after}. It takes "
            f"{percent(best.alarms_after)} of all others for them: "
            f"{count(best.after.n, 'image')} cannot tell one from the other. A stronger "
            "probe may find more, and more images may show it."
        )
    old = max(result.probes, key=lambda one: float(one.old))
    return (
        f"{zero_shot} {verdict} The best probe from before the edit finds {percent(old.old)} "
        "after it."
    )
