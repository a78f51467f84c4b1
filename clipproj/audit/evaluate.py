"""What an edit did, measured on pictures and on texts.

Four numbers belong together and are always given together: accuracy on the forgotten classes, on
the others, on the others' nearest five, and how many forgotten pictures a linear probe still finds.
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

from clipproj.audit.pictures import Pictures
from clipproj.audit.probe import probe_recall
from clipproj.projector import Projector
from clipproj.text import Embeddings

NO_ANSWER = -1
_CHUNK = 8192  # rows compared with the class texts at once
_PROBE_WORK = 2e9  # n * d * d up to which a probe takes about half a second on one core


@dataclass(frozen=True, eq=False)
class Scores:
    """Zero-shot answers on one set of features; shares in [0, 1], NaN where there is no picture.

    Args:
        forget: top-1 accuracy on pictures of the forgotten classes.
        retain: the same on all other pictures.
        neighbours: the same on pictures of the retained classes nearest to the forgotten ones.
        probe: share of the forgotten classes' pictures that a linear probe finds.
        per_class: accuracy of each class that has pictures.
        predictions: [n] int64 rows of the class texts; -1 for a feature of length zero, which is
            an answer to nothing and counts as wrong.
    """

    forget: float
    retain: float
    neighbours: float
    probe: float
    per_class: dict[str, float]
    predictions: Tensor


@dataclass(frozen=True, eq=False)
class Comparison:
    """The same pictures before and after an edit.

    Args:
        forget: the forgotten classes.
        nearest: the retained classes (with pictures) nearest to them, nearest first.
        cosine: mean cosine between a retained picture's feature before and after; 1 is untouched.
        cosine_forget: the same for pictures of the forgotten classes.
        changed: [c] int64 indices of the pictures whose answer changed.
        pictures_forget, pictures_retain: how many pictures the shares are of.
    """

    forget: tuple[str, ...]
    nearest: tuple[str, ...]
    before: Scores
    after: Scores
    cosine: float
    cosine_forget: float
    changed: Tensor
    pictures_forget: int
    pictures_retain: int


@dataclass(frozen=True)
class CurvePoint:
    """The four numbers at one strength, as in `Scores`; `probe` is NaN where it takes too long."""

    strength: float
    forget: float
    retain: float
    neighbours: float
    probe: float


def nearest(classes: Embeddings, forget: Sequence[str], count: int = 5) -> tuple[str, ...]:
    """The `count` classes with the highest text cosine to any forgotten one, nearest first.

    Raises ValueError for a forgotten name that is not among the classes.
    """
    target = classes.select(forget).tensor
    others = classes.drop(forget)
    similarity = (others.tensor @ target.T).amax(dim=1)
    order = similarity.argsort(descending=True, stable=True)[:count]
    return tuple(others.names[i] for i in order.tolist())


def score(features: Tensor, labels: Tensor, classes: Embeddings, forget: Sequence[str]) -> Scores:
    """Zero-shot accuracies and probe recall of pictures by their features.

    Args:
        features: [n, d], finite, normalised or not.
        labels: [n] int64, rows of `classes`.
        classes: the texts that compete for each picture.
        forget: forgotten names, among `classes`, which has others as well.

    Raises:
        ValueError: for features of another width or with a NaN, labels that are not one per row
            and rows of classes, or a forgotten name that is not a class.
    """
    return _score("score", features, _groups("score", labels, classes, forget), classes)


def compare(
    before_features: Tensor,
    after_features: Tensor,
    pictures: Pictures,
    classes: Embeddings,
    forget: Sequence[str],
    *,
    classes_after: Embeddings | None = None,
) -> Comparison:
    """The four numbers before and after, and which answers changed.

    Args:
        before_features, after_features: [n, d] features of `pictures`.
        classes: must have a text for every class of the pictures, in any order; may have more.
        classes_after: the same names with the texts after an edit of the text tower. Which classes
            are nearest is decided before.

    Raises ValueError as `score`, for a picture class that has no text, and for features or texts
    that do not correspond.
    """
    if before_features.shape != after_features.shape:
        raise ValueError(
            f"compare: after_features must be {list(before_features.shape)} as before_features "
            f"are, got {list(after_features.shape)}"
        )
    classes_after = classes if classes_after is None else classes_after
    if classes_after.names != classes.names:
        raise ValueError("compare: classes_after must have the names of classes, in their order")
    groups = _groups("compare", _labels_in("compare", pictures, classes), classes, forget)
    before = _score("compare", before_features, groups, classes)
    after = _score("compare", after_features, groups, classes_after)
    cosine = F.cosine_similarity(before_features.double(), after_features.double(), dim=1).cpu()
    return Comparison(
        forget=tuple(forget),
        nearest=groups.nearest,
        before=before,
        after=after,
        cosine=float(cosine[~groups.gone].mean()),
        cosine_forget=float(cosine[groups.gone].mean()),
        changed=(before.predictions != after.predictions).nonzero().flatten(),
        pictures_forget=int(groups.gone.sum()),
        pictures_retain=int((~groups.gone).sum()),
    )


def strength_curve(
    features: Tensor,
    pictures: Pictures,
    classes: Embeddings,
    forget: Sequence[str],
    projector: Projector,
    strengths: Sequence[float] | None = None,
) -> list[CurvePoint]:
    """The four numbers over the strength, from unedited features.

    The probe is fitted anew at each strength where n * d * d is at most 2e9; it is NaN for more.

    Args:
        features: [n, d] before the edit.
        projector: of the image side.
        strengths: None: 0 to 2 in steps of 0.1, and the projector's own.

    Raises ValueError as `compare`, and for a projector of the text side.
    """
    if projector.side != "image":
        raise ValueError("strength_curve: projector must be of the image side, got text; use .T")
    if strengths is None:
        own = round(float(projector.strength), 6)
        strengths = sorted({i / 10 for i in range(21)} | {own})
    groups = _groups(
        "strength_curve", _labels_in("strength_curve", pictures, classes), classes, forget
    )
    features = features.to(projector.read.device)
    probed = len(features) * features.shape[1] ** 2 <= _PROBE_WORK
    points = []
    for strength in strengths:
        # A tensor: looking at a strength that lengthens rows is no reason for a warning.
        edited = projector(features, torch.tensor(strength, device=features.device))
        correct = _predict("strength_curve", edited, classes) == groups.labels
        probe = groups.probe(edited) if probed else float("nan")
        points.append(CurvePoint(float(strength), *groups.shares(correct), probe))
    return points


def as_dict(comparison: Comparison, curve: Sequence[CurvePoint] = ()) -> dict[str, Any]:
    """Numbers for JSON: no tensors, None for what could not be measured."""

    def scores(one: Scores) -> dict[str, Any]:
        return {
            "forget": one.forget,
            "retain": one.retain,
            "neighbours": one.neighbours,
            "probe": one.probe,
            "per_class": one.per_class,
        }

    return _without_nan(
        {
            "forget": list(comparison.forget),
            "nearest": list(comparison.nearest),
            "before": scores(comparison.before),
            "after": scores(comparison.after),
            "cosine": comparison.cosine,
            "cosine_forget": comparison.cosine_forget,
            "changed": len(comparison.changed),
            "pictures": {
                "forget": comparison.pictures_forget,
                "retain": comparison.pictures_retain,
            },
            "curve": [asdict(point) for point in curve],
        }
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _predict(op: str, features: Tensor, classes: Embeddings) -> Tensor:
    """[n] int64 on the CPU: the nearest class text of each row, NO_ANSWER for a zero row."""
    if features.ndim != 2 or features.shape[1] != classes.dim:
        raise ValueError(f"{op}: features must be [n, {classes.dim}], got {list(features.shape)}")
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{op}: features must be finite, got a NaN or inf in row {bad[0]}")
    texts = classes.tensor.to(features.device).T
    answers = []
    for chunk in features.detach().float().split(_CHUNK):
        best = (chunk @ texts).argmax(dim=1)  # a row's length does not change what is nearest
        answers.append(best.masked_fill((chunk == 0).all(dim=1), NO_ANSWER).cpu())
    return torch.cat(answers)


@dataclass(frozen=True, eq=False)
class _Groups:
    """Which pictures are of forgotten classes and which of the nearest others: bool [n]."""

    labels: Tensor
    gone: Tensor
    near: Tensor
    nearest: tuple[str, ...]

    def shares(self, correct: Tensor) -> tuple[float, float, float]:
        """forget, retain, neighbours; NaN for a group without pictures."""
        forget, retain, neighbours = (
            float(correct[mask].double().mean()) for mask in (self.gone, ~self.gone, self.near)
        )
        return forget, retain, neighbours

    def probe(self, features: Tensor) -> float:
        """What a linear probe finds of the forgotten classes."""
        return probe_recall(features.detach().cpu(), self.labels, self.labels[self.gone].unique())


def _score(op: str, features: Tensor, groups: _Groups, classes: Embeddings) -> Scores:
    predictions, labels = _predict(op, features, classes), groups.labels
    if labels.shape != predictions.shape:
        raise ValueError(f"{op}: labels must be [{len(features)}], got {list(labels.shape)}")
    correct = predictions == labels
    per_class = {
        classes.names[c]: float(correct[labels == c].double().mean())
        for c in labels.unique().tolist()
    }
    return Scores(*groups.shares(correct), groups.probe(features), per_class, predictions)


def _groups(op: str, labels: Tensor, classes: Embeddings, forget: Sequence[str]) -> _Groups:
    labels = labels.cpu()
    if labels.dtype != torch.int64 or not ((labels >= 0) & (labels < len(classes))).all():
        raise ValueError(f"{op}: labels must be int64 rows of the {len(classes)} classes")
    row = {name: i for i, name in enumerate(classes.names)}
    others = {classes.names[i] for i in labels.unique().tolist()}.difference(forget)
    # Only classes that have pictures: of the others there is nothing to measure.
    near = nearest(classes.select([*forget, *sorted(others)]), forget) if others else ()
    masks = [
        torch.isin(labels, torch.tensor([row[name] for name in names], dtype=torch.int64))
        for names in (classes.select(forget).names, near)
    ]
    return _Groups(labels, *masks, near)


def _labels_in(op: str, pictures: Pictures, classes: Embeddings) -> Tensor:
    """The pictures' labels as rows of `classes`."""
    row = {name: i for i, name in enumerate(classes.names)}
    missing = [name for name in pictures.classes if name not in row]
    if missing:
        raise ValueError(
            f"{op}: classes must have a text for every class of the pictures, got none for "
            f"{', '.join(map(repr, missing[:3]))}"
        )
    return torch.tensor([row[name] for name in pictures.classes])[pictures.labels]
