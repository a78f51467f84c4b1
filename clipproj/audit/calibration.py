"""Whether confidence still means what it says: calibration before and after an edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipproj.audit.groups import forgotten_classes
from clipproj.audit.registry import Audit
from clipproj.audit.samples import NO_ANSWER, RowEdit, Samples
from clipproj.audit.stats import Measured, mean, share
from clipproj.refusal import Refusal

NONE = "no answer"
_DRAWS = 200  # of answers as a calibrated model would give them


@dataclass(frozen=True)
class Bin:
    """Images of like confidence: how many, their mean confidence, their accuracy."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Kept images at one time.

    Args:
        error: expected calibration error, mean over images of |accuracy - confidence| of their
            bin. It has no interval; see `expected_error`.
        expected_error: what it would be for a model that is perfectly calibrated, on as many
            images with the same confidences: from 200 seeded draws of right and wrong answers.
        brier: mean of the squared distance of the probabilities from the right answer, in [0, 2].
        log_loss: mean negative log likelihood of the right class, in nats.
        confidence: mean probability of the answer.
        accuracy: share of images whose most likely class is theirs.
        bins: from the least to the most confident.
    """

    error: Measured
    expected_error: Measured
    brier: Measured
    log_loss: Measured
    confidence: Measured
    accuracy: Measured
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Forgotten:
    """Images of the forgotten classes at one time.

    Args:
        confidence: mean probability of the answer, whatever it is.
        own: mean probability of the image's own class.
        answers: the three most frequent answers, with how many images get them.
    """

    confidence: Measured
    own: Measured
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibration` measured, of images of all other classes and of the forgotten ones."""

    forget: tuple[str, ...]
    scale: float
    before: Calibration
    after: Calibration
    forgotten_before: Forgotten
    forgotten_after: Forgotten


def calibration(
    samples: Samples,
    edit: RowEdit,
    forget: Sequence[str],
    *,
    bins: int = 15,
    renormalize: bool = True,
) -> CalibrationResult:
    """Calibration of kept images, and how sure the model is of forgotten ones.

    Probabilities are softmax(scale * cosine) over all classes, with the scale of the samples. All
    classes compete before and after, the forgotten ones too.

    Args:
        samples: before the edit.
        edit: of either tower.
        forget: names of classes.
        bins: of equal numbers of images, at least 1; no more than there are images.
        renormalize: False leaves texts at the length that a text-side edit gave them.

    Raises TypeError, ValueError as `forgotten_classes`, `Samples.edited`; ValueError for bins < 1.
    """
    if bins < 1:
        raise Refusal("calibration", "bins", f"must be at least 1, got {bins}")
    names, _ = forgotten_classes("calibration", samples, forget)
    forgotten = samples.of(forget)
    pair = (samples, samples.edited(edit))
    kept = [_calibration(one.take(~forgotten), bins, renormalize) for one in pair]
    lost = [_forgotten(one.take(forgotten), renormalize) for one in pair]
    return CalibrationResult(names, samples.scale, *kept, *lost)


def log_probabilities(samples: Samples, renormalize: bool = True) -> Tensor:
    """[n, C] float64: of every class for every image, log softmax(scale * cosine).

    An image of length zero has a cosine of 0 with everything, so every class is as likely.
    """
    return (samples.scale * samples.cosines(renormalize).double()).log_softmax(dim=1)


def reliability(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Bin, ...]:
    """Images in bins of equal number, from the least to the most confident; none is empty.

    Images of one confidence share their accuracy, so that no order among them matters.

    Args:
        confidence: [n] float64. correct: [n] bool.
    """
    if not len(confidence):
        return ()
    values, which, counts = confidence.unique(return_inverse=True, return_counts=True)
    accuracy = torch.zeros_like(values).index_add_(0, which, correct.double()) / counts
    number = min(bins, len(confidence))
    parts = [v.repeat_interleave(counts).tensor_split(number) for v in (values, accuracy)]
    return tuple(Bin(len(c), float(c.mean()), float(h.mean())) for c, h in zip(*parts, strict=True))


def _error(bins: Sequence[Bin]) -> float:
    n = sum(one.n for one in bins)
    gaps = [one.n * abs(one.accuracy - one.confidence) for one in bins]
    return sum(gaps) / n if n else math.nan


def _expected_error(confidence: Tensor, bins: int) -> Measured:
    """The error of answers that are right as often as they are confident; its range is of draws."""
    n = len(confidence)
    if not n:
        return Measured(math.nan, 0)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(_DRAWS, dtype=torch.float64, device="cpu")
    for part in confidence.sort().values.tensor_split(min(bins, n)):
        right = (
            torch.rand(_DRAWS, len(part), generator=generator, dtype=torch.float64, device="cpu")
            < part
        )
        total += (right.double().mean(dim=1) - part.mean()).abs() * len(part) / n
    ends = torch.quantile(total, torch.tensor([0.025, 0.975], dtype=torch.float64, device="cpu"))
    return Measured(float(total.mean()), n, *ends.tolist())


def _calibration(samples: Samples, bins: int, renormalize: bool) -> Calibration:
    logs = log_probabilities(samples, renormalize)
    correct = samples.correct(renormalize)
    chances = logs.exp()
    confidence = chances.amax(dim=1)
    of_label = chances.gather(1, samples.labels[:, None]).flatten()
    split = reliability(confidence, correct, bins)
    return Calibration(
        Measured(_error(split), len(samples)),
        _expected_error(confidence, bins),
        mean(chances.square().sum(dim=1) - 2 * of_label + 1, (0, 2)),
        mean(-logs.gather(1, samples.labels[:, None]), (0, math.inf)),
        mean(confidence, (0, 1)),
        share(correct),
        split,
    )


def _forgotten(samples: Samples, renormalize: bool) -> Forgotten:
    chances = log_probabilities(samples, renormalize).exp()
    answers, counts = samples.answers(renormalize).unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:3].tolist()
    return Forgotten(
        mean(chances.amax(dim=1), (0, 1)),
        mean(chances.gather(1, samples.labels[:, None]), (0, 1)),
        tuple((_name(samples, int(answers[i])), int(counts[i])) for i in order),
    )


def _name(samples: Samples, answer: int) -> str:
    return NONE if answer == NO_ANSWER else samples.names[answer]


AUDIT = Audit(
    key="calibration",
    title="Calibration",
    place=120,
    run=lambda given: calibration(*given.edit),
)
