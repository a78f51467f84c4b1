"""What the audit "relearn" says: its lead, tables and charts."""

from __future__ import annotations

import math

from clipproj.audit.relearn import AUDIT, RelearnResult
from clipproj.audit.shots import (
    BACK,
    PRICE,
    STEP,
)
from clipproj.report.charts import lines
from clipproj.report.formatting import count, either, listed, percent
from clipproj.report.page import Page, Table


def page(result: RelearnResult) -> Page:
    """The numbers as a page of a report."""
    told = [s for s in result.shots if not math.isnan(s.after.alone)]
    if not told:
        return Page(AUDIT.key, AUDIT.title, lead(result))
    protos = Table(
        (
            "labelled images", "prototype, edited %", "prototype, unedited %",
            "with the text, edited %", "with the text, unedited %", "others, edited %",
            "others, unedited %",
        ),
        tuple(
            (
                str(s.shots), s.after.alone, s.before.alone, s.after.with_text,
                s.before.with_text, s.after.others, s.before.others,
            )
            for s in result.shots
        ),
        "Held-out images of the forgotten classes named rightly when the class is the mean "
        "of a few labelled images, alone or with its text, among the texts of all others; "
        f"the class may take {percent(PRICE)} of all other images. By the text alone, at "
        f"that price, {percent(result.lowered_before)} before the edit and "
        f"{percent(result.lowered_after)} after it are named rightly; at no price "
        f"{percent(result.zero_shot_before)} and {percent(result.zero_shot_after)} (others "
        f"{percent(result.others_before)} and {percent(result.others_after)}).",
    )  # fmt: skip
    trained = Table(
        (
            "labelled images", "back in time %", "steps", "others then %",
            "unknown name: back in time %", "unknown name: steps",
        ),
        tuple(
            (
                str(s.shots), s.trained.reached, s.trained.steps, s.trained.others,
                s.trained_new.reached, s.trained_new.steps,
            )
            for s in result.shots
        ),
        f"A linear adapter on the features, trained on the labelled images alone in steps of "
        f"length {STEP}, at most {result.steps}, until held-out accuracy is back at "
        f"{percent(BACK)} of the original. The control learns the same images, unedited, "
        "under a name that the model never knew.",
    )  # fmt: skip
    x = [float(s.shots) for s in told]
    figure = lines(
        {
            "edited": (x, [s.after.best for s in told]),
            "unedited": (x, [s.before.best for s in told]),
            "text alone, before the edit": (x, [float(result.zero_shot_before)] * len(x)),
        },
        "labelled images of the class",
        "held-out accuracy",
        alt=f"Accuracy on held-out images of {listed(result.forget)} over the number of "
        "labelled images, for edited and unedited features",
        caption="The better of prototype alone and prototype with text.",
    )
    return Page(AUDIT.key, AUDIT.title, lead(result), (protos, trained), (figure,))


def lead(result: RelearnResult) -> str:
    """What came of it, in words."""
    names, told = listed(result.forget), [s for s in result.shots if not math.isnan(s.after.alone)]
    if not told:
        return f"How soon {names} is learned again was not measured: {result.reason}."
    few, many = told[0], told[-1]
    each = either(result.forget, "", " of each")
    out = (
        f"Zero-shot accuracy on {count(result.zero_shot_before.n, 'image')} of {names} went "
        f"from {percent(result.zero_shot_before)} to {percent(result.zero_shot_after)}. A "
        f"prototype of {count(few.shots, 'labelled image')}{each} names "
        f"{percent(few.after.best)} of the held-out ones rightly "
        f"({percent(few.before.best)} without the edit)"
    )
    if many is not few:
        after, before = percent(many.after.best), percent(many.before.best)
        out += f", one of {many.shots} {after} of the {many.after.alone.n} then left ({before})"
    if result.lowered_after >= 0.5 * result.lowered_before > 0:
        out += (
            f". By {either(result.forget, 'its text', 'their texts')} alone, once "
            f"{either(result.forget, 'it', 'each')} may take {percent(PRICE)} of all other "
            f"images, {percent(result.lowered_after)} are named rightly"
        )
    back = [s for s in told if s.trained.reached >= 0.5]
    if back:
        one = back[0]
        out += (
            f". In {percent(one.trained.reached)} of {count(result.repeats, 'draw')} an adapter "
            f"trained on {count(one.shots, 'image')}{each} came back to {percent(BACK)} of "
            f"the original, after {count(round(one.trained.steps), 'step')} in the mean"
        )
        if one.trained_new.reached > 0:
            out += f" (under a name it never knew {round(one.trained_new.steps)})"
        out += (
            f", with {percent(one.trained.others)} of all other images right (before the "
            f"edit {percent(result.others_before)})"
        )
    elif not math.isnan(told[-1].trained.reached):
        out += (
            f". No adapter came back to {percent(BACK)} of the original within {result.steps} "
            "steps in half of the draws"
        )
    return f"{out}." + (f" Not all was measured: {result.reason}." if result.reason else "")
