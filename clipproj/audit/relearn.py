"""Relearn: how few images, and how few steps, bring a forgotten class back."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipproj.audit.groups import forgotten_classes
from clipproj.audit.registry import Audit
from clipproj.audit.samples import RowEdit, Samples
from clipproj.audit.shots import (
    Prototype,
    Training,
    View,
    prototype,
    renamed,
    train,
)
from clipproj.audit.stats import Measured, share
from clipproj.refusal import Refusal

_LEAST = 3  # images of a class: to learn from, to hold out, and one more


@dataclass(frozen=True)
class Shots:
    """What so many labelled images of each forgotten class bring back.

    Args:
        shots: labelled images a class.
        classes: forgotten classes that have an image more than that, at least 3.
        before, after: prototypes of unedited (the control) and of edited features.
        recovered: the better of the two kinds of prototype after the edit, over the original
            zero-shot accuracy on the same classes; 1 is all of it.
        trained: an adapter on edited features.
        trained_new: the control: the same shots, unedited, under a name that the model never knew
            (a random text among the texts).
    """

    shots: int
    classes: int
    before: Prototype
    after: Prototype
    recovered: float
    trained: Training
    trained_new: Training


@dataclass(frozen=True)
class RelearnResult:
    """The curve from shots to what they bring back.

    Args:
        forget: the forgotten classes.
        zero_shot_before, zero_shot_after: accuracy on their images without any shot.
        others_before, others_after: on all other images.
        lowered_before, lowered_after: accuracy on the forgotten images without any shot, when the
            class may take as many other images by its text as it may by a prototype.
        shots: one each.
        repeats: draws of the labelled images; all numbers are means over them.
        steps: the most steps of the adapter.
        reason: why a number is missing, or "".
    """

    forget: tuple[str, ...]
    zero_shot_before: Measured
    zero_shot_after: Measured
    others_before: Measured
    others_after: Measured
    lowered_before: Measured
    lowered_after: Measured
    shots: tuple[Shots, ...]
    repeats: int
    steps: int
    reason: str


def relearn(
    samples: Samples,
    edit: RowEdit,
    forget: Sequence[str],
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seed: int = 0,
    repeats: int = 10,
    steps: int = 200,
) -> RelearnResult:
    """Bring a forgotten class back with a few labelled images of it, in two ways.

    A prototype is the mean of the labelled images' unit features (as Tip-Adapter, arXiv
    2111.03930, without its training), its cosines scaled as those with texts are and shifted until
    the class takes 1 % of the images of other classes: a price that is the same before and after
    the edit. The text alone at that price is told beside it, for an edit may only have lowered it.

    An adapter is a matrix A, the identity at first, on the features: full-batch gradient descent on
    the cross entropy of the labelled images, each step 0.02 long in the Frobenius norm of A, so
    that steps mean the same for every width. It starts where the edit left it; the control says
    what teaching an unknown name takes.

    About 1 to 3 seconds for 679 images of 128 numbers and one class, on one core.

    Args:
        samples: images before the edit.
        edit: of either tower.
        forget: the forgotten classes, of `samples`. Those with fewer than 3 images are left out.
        shots: labelled images a class; a class takes part where it has at least one more.
        seed: of the draws; those of more shots contain those of fewer, and before and after the
            edit they are the same.
        repeats: draws. steps: the most steps of the adapter.

    Raises ValueError for a name that is no class, none or all of them, shots, repeats or steps
    below 1, or an edit that gives other shapes.
    """
    forget, wanted = forgotten_classes("relearn", samples, forget)
    shots = tuple(operator.index(n) for n in shots)
    for name, values in (("shots", shots), ("repeats", (repeats,)), ("steps", (steps,))):
        if not values or min(values) < 1:
            raise Refusal("relearn", name, f"must be at least 1, got {values}")
    edited, forgotten = samples.edited(edit), samples.of(forget)
    generator = torch.Generator().manual_seed(seed)
    # for each class, in each repeat, its images in the order in which they are labelled
    rows = {c: (samples.labels == c).nonzero().flatten() for c in wanted.tolist()}
    scaled = len(samples.names) - len(forget) > 1 and not forgotten.all()
    usable = {c: r for c, r in rows.items() if len(r) >= _LEAST and scaled}
    draws = {
        c: [r[torch.randperm(len(r), generator=generator, device="cpu")] for _ in range(repeats)]
        for c, r in usable.items()
    }
    views = [View(one, wanted) for one in (samples, edited)]
    unknown = View(renamed(samples, wanted, generator), wanted)
    known = samples.correct()
    found = tuple(_shots(n, draws, *views, unknown, known, steps) for n in shots)
    right, right_after = known, edited.correct()
    lowered = [share(view.prototype(usable, 1.0)[forgotten] if usable else []) for view in views]
    return RelearnResult(
        forget=forget,
        zero_shot_before=share(right[forgotten]),
        zero_shot_after=share(right_after[forgotten]),
        others_before=share(right[~forgotten]),
        others_after=share(right_after[~forgotten]),
        lowered_before=lowered[0],
        lowered_after=lowered[1],
        shots=found,
        repeats=repeats,
        steps=steps,
        reason=_reason(shots, rows, scaled, known[forgotten]),
    )


def _shots(
    n: int,
    draws: dict[int, list[Tensor]],
    before: View,
    after: View,
    unknown: View,
    known: Tensor,
    steps: int,
) -> Shots:
    part = {c: d for c, d in draws.items() if len(d[0]) > n}
    repeats = range(len(next(iter(part.values()), ())))
    drawn = [{c: d[r][:n] for c, d in part.items()} for r in repeats]
    held = [torch.cat([d[r][n:] for d in part.values()]) for r in repeats]
    original = share(known[torch.cat([d[0] for d in part.values()])]) if part else math.nan
    first, second = (prototype(view, drawn, held) for view in (before, after))
    return Shots(
        shots=n,
        classes=len(part),
        before=first,
        after=second,
        recovered=second.best / original if original > 0 else math.nan,
        trained=train(after, drawn, held, known, steps),
        trained_new=train(unknown, drawn, held, known, steps),
    )


def _reason(shots: Sequence[int], rows: dict[int, Tensor], scaled: bool, known: Tensor) -> str:
    if not scaled:
        return "a prototype is scaled by two other classes at least, and by their images"
    told, few = [], sum(len(r) < _LEAST for r in rows.values())
    if few:
        classes = "a forgotten class has" if few == 1 else f"{few} forgotten classes have"
        told.append(f"{classes} fewer than {_LEAST} images")
    most = max(len(r) for r in rows.values())
    if most >= _LEAST and max(shots) >= most:
        told.append(
            f"{max(shots)} labelled images take a class of more, and the largest forgotten one "
            f"has {most}"
        )
    if most >= _LEAST and not known.any():
        told.append("the model did not know the class before the edit: there is nothing to reach")
    return "; ".join(told)


AUDIT = Audit(
    key="relearn",
    title="How soon is the class learned again?",
    place=70,
    run=lambda given: relearn(*given.edit, seed=given.seed),
)
