"""Recover: whether a class can be found in edited features by whoever does not use the texts."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clipproj.audit.groups import forgotten_classes
from clipproj.audit.probe import mean_answers, ridge_answers, unmeasurable
from clipproj.audit.ranpac import RanPAC, ranpac_answers
from clipproj.audit.registry import Audit
from clipproj.audit.samples import RowEdit, Samples
from clipproj.audit.stats import Measured, share
from clipproj.refusal import Refusal

PROBES = ("ridge", "ranpac", "mean")


@dataclass(frozen=True)
class ProbeResult:
    """What one probe finds of the forgotten classes; no image was seen in the fit it is asked of.

    Args:
        probe: of `PROBES`.
        before: share of the forgotten images named rightly; fitted and asked before the edit.
        after: fitted anew and asked on edited features.
        old: fitted before the edit, asked about edited features.
        alarms_before, alarms_after: share of all other images named a forgotten class.
        others_before, others_after: share of all other images named rightly.
    """

    probe: str
    before: Measured
    after: Measured
    old: Measured
    alarms_before: Measured
    alarms_after: Measured
    others_before: Measured
    others_after: Measured


@dataclass(frozen=True)
class Removal:
    """A RanPAC head whose owner takes the class out exactly.

    Args:
        before_with, before_without: accuracy on all other images, unedited features, with the
            class in the head and after it was taken out.
        after_with, after_without: the same on edited features.
        difference: largest absolute difference between the scores of the head that forgot and of
            one fitted without the class, on all images.
    """

    before_with: Measured
    before_without: Measured
    after_with: Measured
    after_without: Measured
    difference: float


@dataclass(frozen=True)
class RecoverResult:
    """What probes find before and after the edit.

    Args:
        forget: the forgotten classes.
        side: which tower the edit is of; an edit of the text tower changes no image's feature.
        zero_shot_before, zero_shot_after: accuracy by the texts on the forgotten images.
        chance: one over the number of classes with images.
        probes: one each.
        removal: None without RanPAC among the probes.
        reason: why nothing could be measured, or "".
    """

    forget: tuple[str, ...]
    side: str
    zero_shot_before: Measured
    zero_shot_after: Measured
    chance: float
    probes: tuple[ProbeResult, ...]
    removal: Removal | None
    reason: str


def recover(
    samples: Samples,
    edit: RowEdit,
    forget: Sequence[str],
    *,
    seed: int = 0,
    probes: Sequence[str] = PROBES,
    width: int = 1000,
) -> RecoverResult:
    """Look for a class in edited features with probes that no text can deceive.

    Three probes, each cross-validated over 5 stratified folds, are fitted before the edit, fitted
    anew after it (who has labelled images and the edited model), and fitted before and asked
    after (who holds an old probe). RanPAC (arXiv 2307.02251) also shows the other direction: what
    the owner of a probe can do to forget exactly. Old probes that fail prove little: at any
    strength but 1 a symmetric edit is a change of coordinates, which whoever knows it undoes.

    Cost: RanPAC takes about 6 n width^2 + 6 width^3 operations in float64 for each of two sets of
    features, which is nearly all of it: 1 to 3 seconds for 679 images of 128 numbers on one core.
    With `probes=("ridge", "mean")` it is 4 n d^2, some hundredths of a second.

    Args:
        samples: images before the edit.
        edit: of either tower; one of the texts leaves features, and so all answers, as they are.
        forget: the forgotten classes, of `samples`.
        seed: of RanPAC's random features.
        probes: which of "ridge", "ranpac" and "mean".
        width: RanPAC's random features.

    Raises ValueError for a name that is no class, none or all of them, an unknown probe or no
    probe, a width below 1, or an edit that gives other shapes.
    """
    forget, wanted = forgotten_classes("recover", samples, forget)
    if not probes or not set(probes) <= set(PROBES):
        raise Refusal("recover", "probes", f"must be some of {', '.join(PROBES)}, got {probes!r}")
    width = operator.index(width)
    if width < 1:
        raise Refusal("recover", "width", f"must be at least 1, got {width}")
    after, forgotten = samples.edited(edit), samples.of(forget)
    side = getattr(edit, "side", "image")
    labels, features = samples.labels, after.features
    reason = unmeasurable(labels, wanted)
    present = labels.unique()
    found, removal = [], None
    for name in () if reason else probes:
        answer = {
            "ridge": ridge_answers,
            "mean": mean_answers,
            "ranpac": partial(ranpac_answers, width=width, seed=seed, without=wanted),
        }[name]
        same = side == "text"  # nothing to fit anew
        earlier = answer(samples.features, labels, *(() if same else (features,)))
        later = earlier if same else answer(features, labels)
        if name == "ranpac":
            (earlier, pruned), (later, pruned_later) = earlier, later
            removal = _removal(samples, forget, forgotten, seed, width, (
                earlier[0], pruned[0], later[0], pruned_later[0],
            ))  # fmt: skip
        found.append(_found(name, earlier[0], earlier[-1], later[0], labels, forgotten, wanted))
    return RecoverResult(
        forget=forget,
        side=side,
        zero_shot_before=share(samples.correct()[forgotten]),
        zero_shot_after=share(after.correct()[forgotten]),
        chance=1 / len(present) if len(present) else math.nan,
        probes=tuple(found),
        removal=removal,
        reason=reason,
    )


def _found(
    probe: str,
    before: Tensor,
    old: Tensor,
    after: Tensor,
    labels: Tensor,
    forgotten: Tensor,
    wanted: Tensor,
) -> ProbeResult:
    right = [answers == labels for answers in (before, after, old)]
    alarm = [torch.isin(answers, wanted)[~forgotten] for answers in (before, after)]
    return ProbeResult(
        probe,
        *(share(hits[forgotten]) for hits in right),
        *(share(hits) for hits in alarm),
        *(share(hits[~forgotten]) for hits in right[:2]),
    )


def _removal(
    samples: Samples,
    forget: Sequence[str],
    forgotten: Tensor,
    seed: int,
    width: int,
    answers: Sequence[Tensor],
) -> Removal:
    head = RanPAC.fit(samples.features, samples.labels, samples.names, width=width, seed=seed)
    for name in forget:
        head.forget(name, samples.features[samples.of([name])])
    row = {name: i for i, name in enumerate(head.classes)}
    rows = torch.tensor([row.get(name, -1) for name in samples.names], device="cpu")
    labels = rows[samples.labels]
    fresh = RanPAC.fit(
        samples.features[~forgotten], labels[~forgotten], head.classes,
        width=width, seed=seed, ridge=head.ridge,
    )  # fmt: skip
    difference = (head.scores(samples.features) - fresh.scores(samples.features)).abs().max()
    hits = (share((told == samples.labels)[~forgotten]) for told in answers)
    return Removal(*hits, difference=float(difference))


AUDIT = Audit(
    key="recover",
    title="Can the class be found without the texts?",
    place=60,
    run=lambda given: recover(*given.edit, seed=given.seed),
)
