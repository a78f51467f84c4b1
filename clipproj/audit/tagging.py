"""CLIP as a tagger: a score and a threshold for every class, and what an edit does to both.

A service that tags images compares each cosine with a threshold that somebody set before the
edit. So two things are measured: whether a tag's own images still score highest (average
precision, which needs no threshold), and what the old threshold lets through afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from clipproj.audit.groups import class_groups
from clipproj.audit.registry import Audit
from clipproj.audit.samples import RowEdit, Samples
from clipproj.audit.stats import Measured, mean, share

RECALLS = [i / 20 for i in range(1, 21)]


@dataclass(frozen=True)
class Tagged:
    """One tag, or several, at one time.

    Of one tag, and of the forgotten ones together, shares are of images. Of the nearest others and
    the others they are means over tags, with intervals over tags.

    Args:
        average_precision: mean over the tag's own images of the precision at their score. Its
            interval takes that precision as given for each image.
        recall: share of the tag's images that get it at the old threshold.
        precision: share of the images that get it which are the tag's; NaN when none gets it.
        flag_rate: share of all images that get it.
        false_positives: share of the other classes' images that get it.
        level: mean score over all images, a cosine.
        best_f1: F1 at the threshold that is best at this time, not the old one.
    """

    average_precision: Measured
    recall: Measured
    precision: Measured
    flag_rate: Measured
    false_positives: Measured
    level: Measured
    best_f1: Measured


@dataclass(frozen=True)
class Tag:
    """One tag before and after; `threshold` is the cosine of best F1 before the edit."""

    name: str
    group: str
    images: int
    threshold: float
    before: Tagged
    after: Tagged


@dataclass(frozen=True)
class TaggingResult:
    """What `tagging` measured.

    Args:
        before, after: by group: "forgotten", and where there are such tags "nearest", "others".
        change: of the latter two, mean over tags of after less before of the false positives.
        tags: every tag that has images, forgotten first.
        curve_before, curve_after: mean precision of the forgotten tags at recall 0.05, 0.1 to 1.
    """

    forget: tuple[str, ...]
    nearest: tuple[str, ...]
    before: dict[str, Tagged]
    after: dict[str, Tagged]
    change: dict[str, Measured]
    tags: tuple[Tag, ...]
    curve_before: tuple[float, ...]
    curve_after: tuple[float, ...]


def precisions(scores: Tensor, hits: Tensor) -> Tensor:
    """[m] float64: for each of the m hits the share of hits among all that score as high.

    Hits come from the lowest score to the highest. Their mean is the average precision, sklearn's
    `average_precision_score` with its treatment of ties.

    Args:
        scores: [n], finite. hits: [n] bool.
    """
    _, true, flagged = _at_hits(scores, hits)
    return true / flagged


def best_threshold(scores: Tensor, hits: Tensor) -> tuple[float, float]:
    """The threshold of best F1, the highest of several, and that F1; NaN twice without a hit.

    It lies halfway to the next lower score, so that a change in the last digit moves nothing over
    it; below the lowest score it lies halfway to -1, the least that a cosine can be.
    """
    found, true, flagged = _at_hits(scores, hits)
    if not len(found):
        return math.nan, math.nan
    f1 = 2 * true / (flagged + len(found))
    best = int((f1 == f1.max()).nonzero().max())
    lower = scores[scores < found[best]]
    below = float(lower.max()) if len(lower) else -1.0
    return (float(found[best]) + below) / 2, float(f1[best])


def tagging(
    samples: Samples, edit: RowEdit, forget: Sequence[str], *, renormalize: bool = True
) -> TaggingResult:
    """Average precision of every tag, and what thresholds of before let through after the edit.

    Args:
        samples: before the edit.
        edit: of either tower.
        forget: names of classes.
        renormalize: False leaves texts at the length that a text-side edit gave them.

    Raises TypeError, ValueError as `class_groups`; ValueError as `Samples.edited`.
    """
    groups = class_groups("tagging", samples, forget)
    scores = [s.cosines(renormalize).double() for s in (samples, samples.edited(edit))]
    of: dict[str, list[Tag]] = {group: [] for group in groups}
    columns: tuple[list[_Column], list[_Column]] = ([], [])  # of the forgotten tags
    for group, rows in groups.items():
        for c in rows.tolist():
            hits = samples.labels == c
            if not hits.any():
                continue
            pair = [_Column(s[:, c], hits) for s in scores]
            threshold, _ = best_threshold(*pair[0])
            states = [_tagged([column], [threshold]) for column in pair]
            tag = Tag(samples.names[c], group, int(hits.sum()), threshold, *states)
            of[group].append(tag)
            if group == "forgotten":
                columns[0].append(pair[0])
                columns[1].append(pair[1])
    old = [tag.threshold for tag in of["forgotten"]]
    before, after = ({"forgotten": _tagged(column, old)} for column in columns)
    change = {}
    for group in ("nearest", "others"):
        if of[group]:
            before[group] = _averaged([tag.before for tag in of[group]])
            after[group] = _averaged([tag.after for tag in of[group]])
            change[group] = mean(
                [tag.after.false_positives - tag.before.false_positives for tag in of[group]]
            )
    names = [tuple(samples.names[c] for c in groups[g].tolist()) for g in list(groups)[:2]]
    tags = tuple(tag for group in of.values() for tag in group)
    return TaggingResult(*names, before, after, change, tags, *map(_curve, columns))


class _Column(NamedTuple):
    scores: Tensor  # [n] of one tag
    hits: Tensor  # [n] bool, the images that are its own


def _at_hits(scores: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the hits, ascending; how many hits, and how many at all, score as high."""
    ordered, found = scores.contiguous().sort().values, scores[hits].sort().values
    true = len(found) - torch.searchsorted(found, found)
    flagged = len(ordered) - torch.searchsorted(ordered, found)
    return found, true.double(), flagged.double()


def _tagged(columns: list[_Column], thresholds: list[float]) -> Tagged:
    """Tags at their thresholds, pooled: each image of each tag is a case."""
    flags = [scores >= at for (scores, _), at in zip(columns, thresholds, strict=True)]
    pairs = [(flag, hits) for flag, (_, hits) in zip(flags, columns, strict=True)]

    def pooled(parts: list[Tensor]) -> Tensor:
        dtype = parts[0].dtype if parts else torch.bool
        return torch.cat([torch.empty(0, dtype=dtype, device="cpu"), *parts])

    levels = torch.tensor(
        [float(scores.mean()) for scores, _ in columns], dtype=torch.float32, device="cpu"
    )
    f1 = torch.tensor(
        [best_threshold(*column)[1] for column in columns], dtype=torch.float32, device="cpu"
    )
    return Tagged(
        mean(pooled([precisions(*column) for column in columns]), (0, 1)),
        share(pooled([flag[hits] for flag, hits in pairs])),
        share(pooled([hits[flag] for flag, hits in pairs])),
        share(pooled(flags)),
        share(pooled([flag[~hits] for flag, hits in pairs])),
        Measured(float(levels.mean()), sum(len(flag) for flag in flags)),
        Measured(float(f1.mean()), len(columns)),
    )


def _within(field: str) -> tuple[float, float]:
    """What a mean of such numbers cannot pass."""
    return (-math.inf, math.inf) if field == "level" else (0.0, 1.0)


def _averaged(states: list[Tagged]) -> Tagged:
    return Tagged(
        *(mean([getattr(s, f.name) for s in states], _within(f.name)) for f in fields(Tagged))
    )


def _curve(columns: list[_Column]) -> tuple[float, ...]:
    """Mean precision at the recalls of the figure, each at the highest threshold that has it."""
    rows = []
    for scores, hits in columns:
        _, true, flagged = _at_hits(scores, hits)
        need = [math.ceil(r * len(true) - 1e-9) for r in RECALLS]
        rows.append([float((true / flagged)[(true >= m).nonzero().max()]) for m in need])
    return tuple(
        torch.tensor(rows, dtype=torch.float64, device="cpu")
        .reshape(-1, len(RECALLS))
        .mean(0)
        .tolist()
    )


AUDIT = Audit(
    key="tagging",
    title="As a tagger",
    place=30,
    run=lambda given: tagging(*given.edit),
)
