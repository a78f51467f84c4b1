"""Linear probes: whether a class can still be told from features, whatever the texts say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.stats import Measured, share

FOLDS = 5
_RIDGE = 0.5  # penalty in units of the mean variance per dimension: best from n = d/2 to n = 20 d


def folds(labels: Tensor) -> Tensor:
    """[n] int64, the stratified fold of each row, 0 to 4; it depends on the order alone.

    Dealing out the rows in order of class spreads every class evenly.
    """
    fold = torch.empty_like(labels)
    fold[labels.argsort(stable=True)] = torch.arange(len(labels), device="cpu") % FOLDS
    return fold


def unmeasurable(labels: Tensor, wanted: Tensor) -> str:
    """Why no cross-validated probe can look for the wanted classes; "" where one can.

    Args:
        labels: [n] int64. wanted: [m] int64, the classes looked for.
    """
    present, counts = labels.unique(return_counts=True)
    found = torch.isin(present, wanted)
    if not found.any():
        return "there is no image of a forgotten class"
    if counts[found].min() < 2:
        return "a forgotten class has a single image, which a probe is fitted on or tested on"
    if found.all():
        return "there is no other class to tell it from"
    return ""


def ridge_answers(features: Tensor, labels: Tensor, *applied: Tensor) -> Tensor:
    """What a ridge probe names each image, none of them seen in its fit.

    One-vs-rest ridge regression with a bias on unit features, in closed form and float64,
    cross-validated over 5 stratified folds.

    Args:
        features: [n, d], any length of rows: what the probe is fitted on.
        labels: [n] int64, class of each row, numbers >= 0.
        applied: more features of the same images, [n, d]: the probes fitted on `features` are
            asked about these too (what does a probe from before an edit say after it?).

    Returns:
        [1 + len(applied), n] int64 labels: answers on `features`, then on each of `applied`.
    """
    present, labels = labels.unique(return_inverse=True)  # classes 0..C-1 without gaps
    fold = folds(labels)
    rows = [(fold == i).nonzero().flatten() for i in range(FOLDS)]
    classes, dim = len(present), features.shape[1]
    unit, *asked = (F.normalize(x.float(), dim=1) for x in (features, *applied))
    gram = torch.zeros(FOLDS, dim, dim, dtype=torch.float64, device="cpu")
    # one-hot targets^T @ features
    sums = torch.zeros(FOLDS, classes, dim, dtype=torch.float64, device="cpu")
    sizes = torch.stack([torch.bincount(labels[i], minlength=classes) for i in rows]).double()
    for i, held_out in enumerate(rows):
        x = unit[held_out].double()
        gram[i] = x.T @ x
        sums[i].index_add_(0, labels[held_out], x)

    answers = torch.zeros(1 + len(asked), len(labels), dtype=torch.int64, device="cpu")
    for i, held_out in enumerate(rows):
        n_class = sizes.sum(0) - sizes[i]
        n = n_class.sum().clamp_min(1)  # a single image has nothing to be fitted on
        sum_class = sums.sum(0) - sums[i]
        mean, prior = sum_class.sum(0) / n, n_class / n
        centred = gram.sum(0) - gram[i] - n * torch.outer(mean, mean)
        penalty = (_RIDGE * centred.trace() / dim).clamp_min(1e-12)
        centred.diagonal().add_(penalty)
        cross = (sum_class - torch.outer(n_class, mean)).T  # [d, C]
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(centred))
        for j, x in enumerate((unit, *asked)):
            scores = (x[held_out].double() - mean) @ weight + prior
            answers[j, held_out] = present[scores.argmax(dim=1)]
    return answers


def mean_answers(features: Tensor, labels: Tensor, *applied: Tensor) -> Tensor:
    """What the nearest class mean, of unit rows and by cosine, says: as `ridge_answers`."""
    present, rows = labels.unique(return_inverse=True)
    fold = folds(rows)
    unit, *asked = (F.normalize(x.double(), dim=1) for x in (features, *applied))
    answers = torch.zeros(1 + len(asked), len(labels), dtype=torch.int64, device="cpu")
    for i in range(FOLDS):
        held_out = fold == i
        sums = torch.zeros(len(present), features.shape[1], dtype=torch.float64, device="cpu")
        means = F.normalize(sums.index_add_(0, rows[~held_out], unit[~held_out]), dim=1)
        for j, x in enumerate((unit, *asked)):
            answers[j, held_out] = present[(x[held_out] @ means.T).argmax(dim=1)]
    return answers


def probe_recall(features: Tensor, labels: Tensor, wanted: Tensor) -> Measured:
    """Share of the wanted classes' images that a ridge probe names; chance is 1 / classes.

    Args:
        features, labels: as `ridge_answers` takes them.
        wanted: [m] int64, the classes whose recall is asked for.

    Returns:
        A number in [0, 1]; NaN where it cannot be measured: no image of a wanted class, a wanted
        class with a single image, or no other class to tell it from.
    """
    if unmeasurable(labels, wanted):
        return share([])
    found = ridge_answers(features, labels)[0] == labels
    return share(found[torch.isin(labels, wanted)])
