"""A linear probe: whether a class can still be told from features, whatever the texts say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5
_RIDGE = 0.5  # penalty in units of the mean variance per dimension: best from n = d/2 to n = 20 d


def probe_recall(features: Tensor, labels: Tensor, wanted: Tensor) -> float:
    """Share of the wanted classes' pictures that a ridge probe names, none of them seen in its fit.

    One-vs-rest ridge regression with a bias on unit features, in closed form and float64,
    cross-validated over 5 stratified folds that depend on the order alone. Chance is 1 / classes.

    Args:
        features: [n, d], any length of rows.
        labels: [n] int64, class of each row, numbers >= 0.
        wanted: [m] int64, the classes whose recall is asked for.

    Returns:
        A number in [0, 1]; NaN where it cannot be measured: no picture of a wanted class, a wanted
        class with a single picture, or no other class to tell it from.
    """
    present, labels = labels.unique(return_inverse=True)  # classes 0..C-1 without gaps
    of_wanted = torch.isin(present, wanted)
    counts = torch.bincount(labels)
    if not of_wanted.any() or counts[of_wanted].min() < 2 or len(present) < 2:
        return float("nan")
    # Dealing out the rows in order of class spreads every class evenly over the folds.
    fold = torch.empty_like(labels)
    fold[labels.argsort(stable=True)] = torch.arange(len(labels)) % FOLDS
    rows = [(fold == i).nonzero().flatten() for i in range(FOLDS)]

    classes, dim = len(present), features.shape[1]
    unit = F.normalize(features.float(), dim=1)
    gram = torch.zeros(FOLDS, dim, dim, dtype=torch.float64)
    sums = torch.zeros(FOLDS, classes, dim, dtype=torch.float64)  # one-hot targets^T @ features
    sizes = torch.stack([torch.bincount(labels[i], minlength=classes) for i in rows]).double()
    for i, held_out in enumerate(rows):
        x = unit[held_out].double()
        gram[i] = x.T @ x
        sums[i].index_add_(0, labels[held_out], x)

    found = torch.zeros(len(labels), dtype=torch.bool)
    for i, held_out in enumerate(rows):
        n_class = sizes.sum(0) - sizes[i]
        n = n_class.sum()
        sum_class = sums.sum(0) - sums[i]
        mean, prior = sum_class.sum(0) / n, n_class / n
        centred = gram.sum(0) - gram[i] - n * torch.outer(mean, mean)
        penalty = (_RIDGE * centred.trace() / dim).clamp_min(1e-12)
        centred.diagonal().add_(penalty)
        cross = (sum_class - torch.outer(n_class, mean)).T  # [d, C]
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(centred))
        answers = ((unit[held_out].double() - mean) @ weight + prior).argmax(dim=1)
        found[held_out] = answers == labels[held_out]
    return float(found[of_wanted[labels]].double().mean())
