"""Choose the strength of an edit: the least that forgets enough, at a price that is stated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from clipproj.audit.evaluate import CurvePoint, strength_curve
from clipproj.audit.registry import Audit
from clipproj.audit.samples import Samples, logit_scale
from clipproj.audit.tradeoff import area
from clipproj.models.text import Embeddings, embed_classes
from clipproj.models.words import Template, openai_templates, template_strings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

STEP = 0.05
_ROUNDING = 1e-9  # 0.8 - 0.79 is above 0.01 in floats


@dataclass(frozen=True)
class Tuned:
    """The strength that was chosen and the curve it was chosen from; true when the target was met.

    Args:
        strength: the least that meets both targets; where none does, the one of least keep loss
            among those that forget enough, else the one that forgets most.
        met: whether both targets are met there.
        forget_at_most, keep_loss_at_most: the targets.
        base: the curve at strength 0.
        chosen: the curve at `strength`.
        points: the whole curve; shares of the samples, with counts and intervals.
        area: UPCORE's area under keep over forgetting (`tradeoff.area`), of all strengths.
        projector: at that strength.
    """

    strength: float
    met: bool
    forget_at_most: float
    keep_loss_at_most: float
    base: CurvePoint
    chosen: CurvePoint
    points: tuple[CurvePoint, ...]
    area: float
    projector: Projector = field(repr=False)

    def __bool__(self) -> bool:
        return self.met


def tune(
    projector: Projector,
    samples: Samples,
    forget: Sequence[str] | None = None,
    *,
    forget_at_most: float = 0.01,
    keep_loss_at_most: float = 0.01,
    strengths: Sequence[float] | None = None,
    probe: bool | None = None,
) -> Tuned:
    """Search the strengths for the least edit that forgets enough and costs little enough.

    A soup of the edited and the unedited head, w M + (1 - w) I, is the edit at strength w s, so
    this is the weight search of model soups (Targeted Forgetting of Image Subgroups, arXiv
    2506.03117, third step) without any soup; the area is UPCORE's (arXiv 2502.15082).

    Args:
        projector: of either side.
        samples: a calibration set of images, or `text_proxies` where there are none.
        forget: the forgotten classes, among the samples' classes; None: those that the projector's
            provenance names.
        forget_at_most: accuracy on the forgotten classes.
        keep_loss_at_most: by how much accuracy on all others may fall.
        strengths: to try. None: 0 to 2 in steps of 0.05, to 1 for a projector that is not
            symmetric, whose rows get longer beyond.
        probe: as `strength_curve`.

    Returns:
        A Tuned, false when no strength meets the target: `if not tuned` is for the caller to ask.

    Raises:
        ValueError: for a target outside [0, 1], no image of a forgotten class or of another, a
            name that is no class, strengths out of [0, 2].
    """
    for name, value in (
        ("forget_at_most", forget_at_most), ("keep_loss_at_most", keep_loss_at_most),
    ):  # fmt: skip
        if not 0 <= value <= 1:
            raise Refusal("tune", name, f"must be a share in [0, 1], got {value}")
    if forget is None:
        forget = projector.provenance.get("forget", {}).get("names")
        if not forget:
            raise Refusal(
                "tune", "forget", "must name classes, got None and a projector without any"
            )
    if strengths is None:
        shrinks = projector.form in ("symmetric", "one-sided")
        strengths = [round(i * STEP, 2) for i in range(round((2 if shrinks else 1) / STEP) + 1)]
    strengths = sorted({0.0, *map(float, strengths)})
    if not all(0 <= s <= 2 for s in strengths):
        raise Refusal("tune", "strengths", f"must be in [0, 2], got {strengths}")
    forgotten = samples.of(forget)
    for name, count in (("a forgotten", forgotten.sum()), ("another", (~forgotten).sum())):
        if not count:
            raise Refusal("tune", "samples", f"must hold an image of {name} class, got none")

    points = strength_curve(samples, forget, projector, strengths, probe=probe)
    base = points[0]
    enough = [p for p in points if p.forget <= forget_at_most]
    meeting = [p for p in enough if base.keep - p.keep <= keep_loss_at_most + _ROUNDING]
    if meeting:
        chosen = meeting[0]
    elif enough:
        chosen = max(enough, key=lambda p: (p.keep, -p.strength))
    else:
        chosen = min(points, key=lambda p: (p.forget, p.strength))
    return Tuned(
        strength=chosen.strength,
        met=bool(meeting),
        forget_at_most=forget_at_most,
        keep_loss_at_most=keep_loss_at_most,
        base=base,
        chosen=chosen,
        points=tuple(points),
        area=area([p.forget for p in points], [p.keep for p in points]),
        projector=projector.scaled(
            torch.tensor(chosen.strength, dtype=torch.float32, device="cpu")
        ),
    )


def text_proxies(
    model: nn.Module,
    tokenizer: Callable[..., Any],
    classes: Embeddings,
    templates: Iterable[Template] | None = None,
    **options: Any,
) -> Samples:
    """Prompts that stand in for images where there are none: one sample a class and template.

    A prompt's text answers like an image of its class would if images lay where texts do. They
    do not quite: in CLIP a gap lies between the two, so what is tuned on texts is a first guess,
    to be checked on images.

    Args:
        classes: the texts that compete, from the same model.
        templates: of the proxies. None: OpenAI's 80. Best others than `classes` was made with.
        options: batch_size and progress, as `embed_classes` takes them.

    Raises as `embed_classes`; ValueError for classes of another model.
    """
    given = openai_templates() if templates is None else templates
    texts = template_strings("text_proxies", given, classes.names)
    listed = [text.replace("{}", name) for name in classes.names for text in texts]
    rows = embed_classes(model, tokenizer, dict.fromkeys(listed), ["{}"], **options)
    place = {text: row for row, text in enumerate(rows.names)}
    known = {rows.head_hash, classes.head_hash} - {None}
    if len(known) > 1:
        raise Refusal(
            "text_proxies",
            "classes",
            "must be embedded by this model, got embeddings of "
            f"{classes.model!r}, whose text head differs",
        )
    labels = torch.arange(len(classes), device="cpu").repeat_interleave(len(texts))
    return Samples(
        rows.tensor[[place[text] for text in listed]], labels, classes, scale=logit_scale(model)
    )


AUDIT = Audit(
    key="tune",
    title="Strength",
    place=20,
    run=lambda given: tune(given.projector, given.samples, given.forget),
)
