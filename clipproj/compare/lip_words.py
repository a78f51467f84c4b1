"""What Lip's protocol says: the published accuracies beside ours, and its score of every method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clipproj.compare.lip_protocol import BACKBONES, Accuracies, Dataset, score
from clipproj.report.page import Page, Table


def page(data: Dataset, results: Mapping[str, Mapping[str, Any]], base: str, full: float) -> Page:
    """The scores of a comparison on one data set, beside the accuracies published before it.

    Args:
        results: of `comparison.run`. base: the name of the unedited model among them.
        full: accuracy on all images before the edit.
    """

    def accuracies(trial: Mapping[str, Any]) -> Accuracies:
        def value(number: Any) -> float:
            return math.nan if number is None or number["value"] is None else number["value"]

        others = {name: value(number) for name, number in trial["elsewhere"].items()}
        return Accuracies(value(trial["forget"]), value(trial["keep"]), others)

    before = {forgotten: accuracies(trial) for forgotten, trial in results[base].items()}
    rows, reasons = [], {}
    for name, trials in results.items():
        scores = {
            forgotten: score(before[forgotten], accuracies(trial))
            for forgotten, trial in trials.items()
            if "refused" not in trial
        }
        reasons |= {one.reason: None for one in scores.values() if one.reason}
        values = [
            scores[forgotten].value if forgotten in scores else math.nan for forgotten in before
        ]
        rows.append((name, *values, math.fsum(values) / len(values)))
    columns = ("method", *before, "mean")
    caption = (
        "Lip's score, lower is better: what is left of the class and what the other classes and "
        "the three other data sets lost, each relative to before, over five. "
        + (f"Not a number where: {'; '.join(reasons)}." if reasons else "")
    )
    published = tuple(
        (f"{BACKBONES[name]}, published", *one.forget, one.keep, one.full)
        for name, one in data.reference.items()
    )
    here = tuple(before[forgotten].forget for forgotten in before)
    kept = math.fsum(one.keep for one in before.values()) / len(before)
    measured = ("this model, here", *here, kept, full)
    lead = (
        f"{data.title} under Lip's protocol (arXiv 2407.07485): accuracies before forgetting "
        "beside the published ones, and the protocol's score. No accuracy after forgetting is "
        "published for these classes, so the score stands by itself."
    )
    heads = ("before the edit", *(f"{forgotten} %" for forgotten in before), "kept %", "all %")
    return Page("lip", "Lip's protocol", lead, (
        Table(heads, (measured, *published)), Table(columns, tuple(rows), caption),
    ))  # fmt: skip
