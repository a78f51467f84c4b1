"""What the audit "calibration" says: its lead, tables and charts."""

from __future__ import annotations

from clipproj.audit.calibration import AUDIT, NONE, CalibrationResult, Forgotten
from clipproj.report.charts import lines
from clipproj.report.formatting import count, listed, percent
from clipproj.report.page import Page, Table

_SURE = 0.85  # of the confidence, from which a model is hardly less sure


def page(result: CalibrationResult) -> Page:
    """The audit in a report."""
    b, a, fb, fa = result.before, result.after, result.forgotten_before, result.forgotten_after
    tables = (
        Table(
            ("kept images", "before", "after"),
            (
                ("calibration error", b.error, a.error),
                ("of a calibrated model", b.expected_error, a.expected_error),
                ("Brier score", b.brier, a.brier),
                ("log loss, nats", b.log_loss, a.log_loss),
                ("mean confidence", b.confidence, a.confidence),
                ("accuracy", b.accuracy, a.accuracy),
            ),
            "Calibration error is the mean distance between confidence and accuracy. "
            f"Probabilities are softmax({result.scale:g} x cosine) over all classes, in "
            f"{count(len(a.bins), 'bin')} of as many images each. The second row is what "
            "chance alone makes of a model without any error.",
        ),
        Table(
            (f"images of {listed(result.forget)}", "before", "after"),
            (
                ("mean confidence", fb.confidence, fa.confidence),
                ("mean probability of their class", fb.own, fa.own),
                ("answered as", _answers(fb), _answers(fa)),
            ),
        ),
    )
    if not a.bins:
        return Page(AUDIT.key, AUDIT.title, lead(result), tables)
    curves = {
        name: ([bin.confidence for bin in one.bins], [bin.accuracy for bin in one.bins])
        for name, one in (("before", b), ("after", a))
    }
    figure = lines(
        {**curves, "calibrated": ([0.0, 1.0], [0.0, 1.0])},
        "confidence",
        "accuracy",
        alt="Accuracy over confidence of kept images before and after the edit.",
        caption="Kept images by confidence. On the diagonal confidence is accuracy.",
    )
    return Page(AUDIT.key, AUDIT.title, lead(result), tables, (figure,))


def lead(result: CalibrationResult) -> str:
    """What came of it, in words."""
    b, a, fb, fa = result.before, result.after, result.forgotten_before, result.forgotten_after
    kept = "There is no kept image: calibration was not measured."
    if b.error.n:
        chance = [percent(one.expected_error) for one in (a, b)]
        kept = (
            f"On {count(a.error.n, 'kept image')} confidence and accuracy are "
            f"{percent(a.error)} apart (before {percent(b.error)}; by chance alone a "
            f"calibrated model has {chance[0]}, before {chance[1]})."
        )
    forgotten = f"There is no image of {listed(result.forget)}."
    if fb.own.n:
        told = "is" if fa.own.n == 1 else "are"
        forgotten = (
            f"{count(fa.own.n, 'image')} of {listed(result.forget)} {told} answered with a "
            f"mean confidence of {percent(fa.confidence)} (before {percent(fb.confidence)}), "
            f"most often as {_answers(fa)} (before {_answers(fb)})."
        )
        was, now = fb.answers[0][0], fa.answers[0][0]
        lost = was in result.forget and now not in (*result.forget, NONE)
        if lost and fa.confidence > _SURE * fb.confidence:
            forgotten += " They are now taken for something else, hardly less surely."
    return f"{kept} {forgotten}"


def _answers(one: Forgotten) -> str:
    """In words; "no answer" is none that a class could give, so it has no quotes."""
    told = ((name if name == NONE else listed([name]), n) for name, n in one.answers)
    return ", ".join(f"{name} ({n})" for name, n in told)
