"""What an edit did, measured on images or on what stands in for them.

Four numbers belong together and are always given together: accuracy on the forgotten classes, on
the others, on the others' nearest five, and how many forgotten images a linear probe still finds.
The first says that the alignment with the texts is gone, the last that the information is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.groups import class_groups, nearest
from clipproj.audit.probe import probe_recall
from clipproj.audit.registry import Audit
from clipproj.audit.samples import NO_ANSWER, Samples
from clipproj.audit.stats import Measured, mean, plain, share
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

__all__ = ["NO_ANSWER", "Comparison", "CurvePoint", "Scores", "compare", "nearest", "score"]

_PROBE_WORK = 2e9  # n * d * d up to which a probe takes about half a second on one core


@dataclass(frozen=True, eq=False)
class Scores:
    """Zero-shot answers on one set of features; shares in [0, 1], NaN where there is no image.

    Args:
        forget: top-1 accuracy on images of the forgotten classes.
        found: share of them answered by a forgotten class, their own or another; found_of: the
            same of each forgotten class that has images.
        keep: the same on all other images.
        nearest: the same on images of the kept classes nearest to the forgotten ones.
        others: the same on images of the kept classes that are not among these.
        probe: share of the forgotten classes' images that a linear probe finds.
        per_class: accuracy of each class that has images.
        predictions: [n] int64 rows of the class texts; -1 for a feature of length zero, which is
            an answer to nothing and counts as wrong.
    """

    forget: Measured
    found: Measured
    keep: Measured
    nearest: Measured
    others: Measured
    probe: Measured
    per_class: dict[str, Measured]
    found_of: dict[str, Measured]
    predictions: Tensor

    def found_among(self, names: Sequence[str]) -> Measured:
        """`found` of some of the forgotten classes, NaN for classes without images."""
        some = [self.found_of[name] for name in names if name in self.found_of]
        hits, n = sum(round(one * one.n) for one in some), sum(one.n for one in some)
        return share([True] * hits + [False] * (n - hits))


@dataclass(frozen=True, eq=False)
class Comparison:
    """The same images before and after an edit.

    Args:
        forget: the forgotten classes that the images have.
        unmeasured: forgotten names that no image is of.
        nearest: the kept classes (with images) nearest to them, nearest first.
        cosine: mean cosine between a kept image's feature before and after; 1 is untouched.
        cosine_forget: the same for images of the forgotten classes.
        agreement: share of the kept images whose answer is the same, right or wrong.
        changed: [c] int64 indices of the images whose answer changed.
        images_forget, images_keep: how many images the shares are of.
        unit: what is counted: "image", or "mixture of texts" for `stand_ins`.
    """

    forget: tuple[str, ...]
    unmeasured: tuple[str, ...]
    nearest: tuple[str, ...]
    before: Scores
    after: Scores
    cosine: Measured
    cosine_forget: Measured
    agreement: Measured
    changed: Tensor
    images_forget: int
    images_keep: int
    unit: str = "image"

    @property
    def names(self) -> tuple[str, ...]:
        """All forgotten names, with samples or without."""
        return (*self.forget, *self.unmeasured)


@dataclass(frozen=True)
class CurvePoint:
    """The numbers at one strength, as in `Scores`; `probe` is NaN where it takes too long."""

    strength: float
    forget: Measured
    keep: Measured
    nearest: Measured
    others: Measured
    probe: float


def score(samples: Samples, forget: Sequence[str] | Embeddings) -> Scores:
    """Zero-shot accuracies and probe recall of images by their features.

    Args:
        samples: images and the texts that compete for each of them.
        forget: forgotten names, among the classes, which have others as well; as Embeddings names
            that are no class as well, which then count for what is nearest to them alone.

    Raises ValueError for a forgotten name that is not a class.
    """
    return _score(samples, Groups.of(samples, forget))


def compare(
    before: Samples,
    after: Samples,
    forget: Sequence[str] | Embeddings,
    *,
    probe: bool = True,
    unit: str = "image",
) -> Comparison:
    """The numbers before and after an edit, and which answers changed.

    Args:
        before, after: the same images; `before.edited(edit)` is one way to get the second, the
            features of an edited model another. Which classes are nearest is decided before.
        forget: as in `score`.
        probe: whether to fit the linear probe, else it is NaN.
        unit: what one sample is called.

    Raises ValueError as `score`, and for samples that do not correspond.
    """
    if after.names != before.names or not torch.equal(after.labels, before.labels):
        raise Refusal(
            "compare", "after", "must have the classes and labels of before, in their order"
        )
    groups = Groups.of(before, forget)
    scores = _score(before, groups, probe), _score(after, groups, probe)
    same = scores[0].predictions == scores[1].predictions
    names = tuple(forget.names if isinstance(forget, Embeddings) else forget)
    seen = scores[0].per_class
    cosine = F.cosine_similarity(before.features.double(), after.features.double(), dim=1)
    return Comparison(
        forget=tuple(name for name in names if name in seen),
        unmeasured=tuple(name for name in names if name not in seen),
        nearest=groups.nearest,
        before=scores[0],
        after=scores[1],
        cosine=mean(cosine[~groups.forgotten], (-1, 1)),
        cosine_forget=mean(cosine[groups.forgotten], (-1, 1)),
        agreement=share(same[~groups.forgotten]),
        changed=(~same).nonzero().flatten(),
        images_forget=int(groups.forgotten.sum()),
        images_keep=int((~groups.forgotten).sum()),
        unit=unit,
    )


def strength_curve(
    samples: Samples,
    forget: Sequence[str] | Embeddings,
    projector: Projector,
    strengths: Sequence[float] | None = None,
    *,
    probe: bool | None = None,
) -> list[CurvePoint]:
    """The numbers over the strength, from unedited samples.

    Args:
        samples: before the edit.
        projector: of either side; of the text side texts are edited, and normalised again.
        strengths: None: 0 to 2 in steps of 0.1, and the projector's own.
        probe: whether to fit the probe anew at each strength, else it is NaN. None: where n * d * d
            is at most 2e9.

    Raises ValueError as `score`.
    """
    if strengths is None:
        own = round(float(projector.strength), 6)
        strengths = sorted({i / 10 for i in range(21)} | {own})
    groups = Groups.of(samples, forget)
    probe = (
        samples.features.numel() * samples.classes.dim <= _PROBE_WORK if probe is None else probe
    )
    points = []
    for strength in strengths:
        # A tensor: looking at a strength that lengthens rows is no reason for a warning.
        at = torch.tensor(strength, dtype=torch.float32, device=projector.read.device)
        edited = samples.edited(_At(projector, at))
        found = groups.probe(edited.features) if probe else math.nan
        points.append(CurvePoint(float(strength), *groups.shares(edited.correct()), found))
    return points


def as_dict(
    comparison: Comparison, curve: Sequence[CurvePoint] = (), *, every: bool = True
) -> dict[str, Any]:
    """Numbers for JSON: no tensors, None for what could not be measured.

    Args:
        every: all classes one by one; False: the forgotten and the nearest ones.
    """
    shown = {*comparison.forget, *comparison.nearest}

    def scores(one: Scores) -> dict[str, Any]:
        groups = ("forget", "found", "keep", "nearest", "others")
        numbers = {name: float(getattr(one, name)) for name in groups}
        low_high = {name: [getattr(one, name).low, getattr(one, name).high] for name in groups}
        per_class = {n: float(v) for n, v in one.per_class.items() if every or n in shown}
        return numbers | {"probe": float(one.probe), "intervals": low_high, "per_class": per_class}

    return plain(
        {
            "forget": comparison.forget,
            "unmeasured": comparison.unmeasured,
            "nearest": comparison.nearest,
            "before": scores(comparison.before),
            "after": scores(comparison.after),
            "cosine": float(comparison.cosine),
            "cosine_forget": float(comparison.cosine_forget),
            "agreement": float(comparison.agreement),
            "changed": len(comparison.changed),
            "of": comparison.unit,
            "images": {
                "forget": comparison.images_forget,
                "keep": comparison.images_keep,
            },
            "curve": [{k: float(v) for k, v in asdict(point).items()} for point in curve],
        }
    )


@dataclass(frozen=True, eq=False)
class _At:
    """A projector at a strength that may lengthen rows."""

    projector: Projector
    strength: Tensor

    @property
    def side(self) -> str:
        return self.projector.side

    def __call__(self, rows: Tensor) -> Tensor:
        return self.projector(rows.to(self.strength.device), self.strength)


@dataclass(frozen=True, eq=False)
class Groups:
    """Which images are of forgotten classes and which of the nearest others.

    Args:
        labels: [n] int64.
        rows: [m] int64, rows of the forgotten classes.
        forgotten, near: [n] bool, of forgotten classes and of their nearest others.
        nearest: the names of the latter, nearest first.
    """

    labels: Tensor
    rows: Tensor
    forgotten: Tensor
    near: Tensor
    nearest: tuple[str, ...]

    @classmethod
    def of(cls, samples: Samples, forget: Sequence[str] | Embeddings) -> Groups:
        """Raises TypeError, ValueError as `class_groups`."""
        rows = class_groups("score", samples, forget)
        forgotten, near = (torch.isin(samples.labels, rows[g]) for g in ("forgotten", "nearest"))
        names = tuple(samples.names[c] for c in rows["nearest"].tolist())
        return cls(samples.labels, rows["forgotten"], forgotten, near, names)

    def shares(self, correct: Tensor) -> tuple[Measured, Measured, Measured, Measured]:
        """forget, keep, nearest, others; NaN for a group without images."""
        groups = (self.forgotten, ~self.forgotten, self.near, ~(self.forgotten | self.near))
        forget, keep, near, others = (share(correct[mask]) for mask in groups)
        return forget, keep, near, others

    def probe(self, features: Tensor) -> Measured:
        """What a linear probe finds of the forgotten classes."""
        return probe_recall(features, self.labels, self.labels[self.forgotten].unique())


def _score(samples: Samples, groups: Groups, probe: bool = True) -> Scores:
    predictions = samples.answers()
    correct = predictions == groups.labels
    per_class = {
        samples.names[c]: share(correct[groups.labels == c])
        for c in groups.labels.unique().tolist()
    }
    forget, *rest = groups.shares(correct)
    found = torch.isin(predictions, groups.rows)
    found_of = {
        samples.names[c]: share(found[groups.labels == c])
        for c in groups.rows.tolist()
        if samples.names[c] in per_class
    }
    recall = groups.probe(samples.features) if probe else share([])
    total = share(found[groups.forgotten])
    return Scores(forget, total, *rest, recall, per_class, found_of, predictions)


AUDIT = Audit(
    key="accuracy",
    title="Zero-shot accuracy",
    place=10,
    run=lambda given: compare(given.samples, given.samples.edited(given.projector), given.forget),
)
