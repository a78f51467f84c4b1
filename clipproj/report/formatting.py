"""The sentences that the printed table and the report share: one place where claims are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipproj.audit.stats import Measured

if TYPE_CHECKING:  # they take words from here
    from clipproj.audit.evaluate import Comparison

_FORGOTTEN = 0.05  # share of images up to which a class counts as not found
_FEW = 4  # images below which no answer at all leaves more than half open
_LONG = 60  # letters of a name in a sentence, at most


def percent(share: float) -> str:
    """`0.975` as "97.5 %"; "n/a" for NaN, where there was nothing to measure."""
    return "n/a" if math.isnan(share) else f"{100 * share:.1f}\u00a0%"


def cosine(value: float) -> str:
    """Four places; "n/a" for NaN."""
    return "n/a" if math.isnan(value) else f"{value:.4f}"


def cell(value: str | float | int | None, heading: str) -> str:
    """A cell of a `page.Table` as it is shown: percent where the heading ends in " %"."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "n/a"
    if heading.endswith(" %"):
        return f"{100 * value:.1f}".replace("-0.0", "0.0")
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u00a0")
    if "cosine" in heading:
        return cosine(value)
    if heading == "rank":
        return f"{value:g}"
    if "seconds" in heading:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def interval(value: str | float | int | None, heading: str) -> str:
    """The interval of such a cell, "" for one without."""
    if not isinstance(value, Measured) or math.isnan(value.low):
        return ""
    low, high = cell(value.low, heading), cell(value.high, heading)
    return f"{low} to {high}" if low.startswith("-") else f"{low}\u2013{high}"


def duration(seconds: float) -> str:
    """In the unit that leaves one to three digits before the point."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g}\u00a0{unit}"
    return f"{seconds / 1e-6:.3g}\u00a0µs"


def count(n: int, thing: str) -> str:
    """ "1 image", "40 images", "40 mixtures of texts"."""
    head, of, rest = thing.partition(" of ")
    plural = head + ("es" if head.endswith("s") else "s") + of + rest
    return f"{n:,} {thing if n == 1 else plural}".replace(",", "\u00a0")


def listed(names: Sequence[str], most: int = 3) -> str:
    """The names in quotes, as they read in a sentence."""
    shown = [f"“{short(name)}”" for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def short(name: str) -> str:
    """The name, or the beginning of one too long for a sentence."""
    return name if len(name) <= _LONG else f"{name[:_LONG]}…"


def either(names: Sequence[str], one: str, several: str) -> str:
    """The word for one name or the word for several: "its" or "their"."""
    return one if len(names) == 1 else several


def result(comparison: Comparison) -> str:
    """What happened to the accuracies, in at most three sentences; no word of what has none."""
    before, after = comparison.before, comparison.after
    of = count(comparison.images_forget, comparison.unit)
    near = len(comparison.nearest)
    told = [
        f"on {where} it went from {percent(old)} to {percent(new)}."
        for where, old, new in (
            (f"{of} of {listed(comparison.forget or comparison.names)}", before.found, after.found),
            ("all other classes", before.keep, after.keep),
            ("the nearest of them" if near == 1 else f"the {near} nearest of them",
             before.nearest, after.nearest),
        )
        if not math.isnan(old)
    ]  # fmt: skip
    if not told:
        return "There is no image: accuracy was not measured."
    first = told[0].replace(" it went", " went", 1)
    told = [f"Top-1 accuracy {first}", *(f"{one[0].upper()}{one[1:]}" for one in told[1:])]
    if comparison.unmeasured:
        told.append(f"There are no images of {listed(comparison.unmeasured)}.")
    return " ".join(told)


def caveat(comparison: Comparison) -> str:
    """What the numbers do not say: alignment with text is not information."""
    before, after = comparison.before, comparison.after
    if comparison.unit != "image":
        return (
            "Mixtures of two class texts stand in for images: they tell whether an edit ruins "
            "the rest, not what images lose. What a linear probe still finds is unknown: the "
            "edit erases alignment with text, not information."
        )
    if math.isnan(after.found):
        return (
            "No image of a forgotten class was given: what images and a linear probe still "
            "show of it was not measured."
        )
    if before.found <= _FORGOTTEN:
        known = f"{percent(before.found)} of {count(comparison.images_forget, 'image')}"
        return (
            f"The model did not know the class by its text before the edit ({known}): there was no "
            "alignment with it to erase."
        )
    if after.found <= _FORGOTTEN:
        alignment, information = "erased", "is not"
    elif after.found < before.found:
        alignment, information = "weakened, not erased", "is in place"
    else:
        alignment, information = "not weakened", "is in place"
    alignment = f"The alignment with the text is {alignment}."
    if comparison.images_forget < _FEW:
        number = count(comparison.images_forget, "image")
        alignment = f"{number} cannot say whether the alignment with the text is erased."
        information = "is in place"
    images = f"{percent(after.probe)} of the forgotten class{_es(comparison)} images"
    if math.isnan(after.probe):
        return (
            f"{alignment} What else the features hold of it is unknown: a linear probe needs two "
            "images of each forgotten class, and another class to tell it from."
        )
    chance = 1 / max(1, len(after.per_class))
    sure = getattr(after.probe, "low", after.probe) > chance
    if sure and after.probe >= max(0.5 * before.probe, _FORGOTTEN):
        return f"{alignment} The information {information}: a linear probe still finds {images}."
    return f"{alignment} A linear probe finds {images}; a stronger one may find more."


def _es(comparison: Comparison) -> str:
    return "’s" if len(comparison.forget) == 1 else "es’"
