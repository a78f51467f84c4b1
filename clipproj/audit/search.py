"""Recall and precision at k, of texts that search images and of images that search texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipproj.audit.stats import Measured, mean, share

# Scores are float32 after a product in float64: equal rows score equal wherever they stand.
_CHUNK = 8192  # images that search at once
_QUERIES = 64  # texts that search at once

PerK = dict[int, Measured]


@dataclass(frozen=True)
class Search:
    """Recall and precision at k by group of classes: "forgotten", "nearest", "others".

    Equal scores count as in random order, by their expectation. Each has a number for each k, cut
    to the size of what is searched.

    Args:
        images_recall: a class text searches all images: share of the class's images among
            the first k. Mean over classes; of a single class over its images.
        images_precision: the same search: share of the first k that are of the class.
        texts_recall: an image searches all class texts: share of images whose class is among
            the first k. An image of length zero finds nothing.
    """

    images_recall: dict[str, PerK]
    images_precision: dict[str, PerK]
    texts_recall: dict[str, PerK]


def search(
    images: Tensor, texts: Tensor, labels: Tensor, groups: dict[str, Tensor], ks: Sequence[int]
) -> Search:
    """What class texts find among the images, and images among the class texts.

    Args:
        images: [n, d] float64, at the lengths that they count with.
        texts: [C, d] float64, likewise.
        labels: [n] int64, rows of texts.
        groups: rows of texts by name; "forgotten" is told even when it has no image.
        ks: how many results count, each at least 1.
    """
    recalls: dict[str, PerK] = {}
    precisions: dict[str, PerK] = {}
    found: dict[str, PerK] = {}
    of_texts = _ranks_of_texts(images, texts, labels)
    for group, rows in groups.items():
        if not len(rows) and group != "forgotten":
            continue
        mine = torch.isin(labels, rows)
        found[group] = {
            k: _cases(_chance(*(one[mine] for one in of_texts), k)) for k in _within(ks, len(texts))
        }
        rows = rows[torch.isin(rows, labels)]
        ranks = []
        for some in rows.split(_QUERIES):
            scores = (images @ texts[some].T).float().T.contiguous()
            ranks += [
                _ranks_of_images(of_one, labels == c)
                for of_one, c in zip(scores, some.tolist(), strict=True)
            ]
        recalls[group], precisions[group] = {}, {}
        for k in _within(ks, len(images)):
            chances = [_chance(*one, k) for one in ranks]
            if len(chances) == 1:  # one query is no sample of queries, its images are one
                recalls[group][k] = _cases(chances[0])
                precisions[group][k] = _of_answers(float(chances[0].sum()), k)
            else:
                recalls[group][k] = mean([float(one.mean()) for one in chances], (0, 1))
                precisions[group][k] = mean([float(one.sum()) / k for one in chances], (0, 1))
    return Search(recalls, precisions, found)


def _within(ks: Sequence[int], size: int) -> list[int]:
    return sorted({min(k, size) for k in ks}) if size else list(ks)


def _ranks_of_images(scores: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
    """For each hit how many images score above it, and how many as it does, itself among them."""
    ordered, own = scores.sort().values, scores[hits]
    upto = torch.searchsorted(ordered, own, right=True)
    return len(ordered) - upto, upto - torch.searchsorted(ordered, own)


def _ranks_of_texts(images: Tensor, texts: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same for each image's class text among the texts; a zero row ranks it below all."""
    above, tied = [], []
    for rows, label in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
        scores = (rows @ texts.T).float()
        own = scores.gather(1, label[:, None])
        nothing = (rows == 0).all(dim=1)
        above.append((scores > own).sum(1).masked_fill(nothing, len(texts)))
        tied.append((scores == own).sum(1))
    return torch.cat(above), torch.cat(tied)


def _chance(above: Tensor, tied: Tensor, k: int) -> Tensor:
    """[m] float64: how likely each is among the first k, with equal scores in random order."""
    return ((k - above).double() / tied.double()).clamp(0, 1)


def _cases(chances: Tensor) -> Measured:
    """Their mean: a share, unless ties leave some of them open."""
    certain = (chances == 0) | (chances == 1)
    return share(chances == 1) if certain.all() else mean(chances, (0, 1))


def _of_answers(hits: float, k: int) -> Measured:
    """A share of k answers, with an interval unless ties leave it open."""
    if hits != int(hits):
        return Measured(hits / k, k)
    return share(torch.arange(k, device="cpu") < hits)
