"""PBU, partially blinded unlearning (Panda et al., arXiv 2403.16246, AAAI-25), on a projection.

Forgotten images alone: climb the cross-entropy of the class, held near the start by a quadratic
that is stiffer where the class's own Fisher information is high,

    L(D) = -a CE(I + D) + b <F, D * D> + g <D, D>,   F = mean of squared gradients at the start.

From the authors' notebook: the loss, a = 670 (631 to 721), b = 95 (90 to 100), Adam, batches of 64.
There the other classes collapse after two epochs, so stopping early is part of the method.

Simplified: one matrix is trained. Chosen on the embedded model: g = 100 (the notebook's 4001 holds
features of which the model is sure where they are, for those have almost no gradient), rate
0.25 / d (1e-4 there), and the stop, when none of the images is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .dense import Dense
from .features import RATE, Classes, to_learn

if TYPE_CHECKING:
    from clipproj.methods.method import Task

CLIMB, FISHER, STAY = 670.0, 95.0, 100.0  # a, b, g
STOP = 0.0
_EPOCHS = 100
_BATCH = 64


def make(task: Task, *, synthetic: bool = False) -> Dense:
    """The map that PBU trains, from images of the class or (without any, or if asked) made-up
    ones. Refusal for images among which none is of the class."""
    classes = Classes.of(task)
    rows = to_learn("pbu", task, classes, synthetic)
    _, fisher = gradient_and_fisher(classes, rows)
    generator = torch.Generator().manual_seed(task.seed + 1)
    change = torch.zeros_like(fisher, requires_grad=True)
    identity = torch.eye(len(fisher))
    optimizer = torch.optim.Adam([change], lr=RATE / len(fisher))
    for epoch in range(_EPOCHS):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(_BATCH):
            if classes.accuracy(rows, identity + change) <= STOP:
                return Dense(identity + change)
            loss = objective(classes, batch, change, fisher)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if task.progress is not None:
            task.progress(epoch + 1, _EPOCHS)
    return Dense(identity + change)


def cross_entropy(classes: Classes, rows: Tensor, matrix: Tensor) -> Tensor:
    """The mean of -log of the probability of what is forgotten."""
    logits = classes.logits(rows, matrix)
    own = logits[..., : classes.forgotten].logsumexp(-1)
    return (logits.logsumexp(-1) - own).mean()


def objective(classes: Classes, rows: Tensor, change: Tensor, fisher: Tensor) -> Tensor:
    """L above, for the map I + change."""
    climbed = cross_entropy(classes, rows, torch.eye(len(change)) + change)
    return -CLIMB * climbed + ((FISHER * fisher + STAY) * change**2).sum()


def gradient_and_fisher(classes: Classes, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy's gradient at the identity, and the mean of its squares: [d, d] each.

    The gradient of one row z is z^T e, with e the gradient in the row's image, so that no
    gradient has to be kept for each row.
    """
    image = rows.clone().requires_grad_()
    logits = classes.logits(image)
    loss = logits.logsumexp(-1) - logits[:, : classes.forgotten].logsumexp(-1)
    (e,) = torch.autograd.grad(loss.sum(), image)
    return rows.T @ e / len(rows), (rows**2).T @ e**2 / len(rows)


def one_step(gradient: Tensor, fisher: Tensor) -> Tensor:
    """The change that minimises L with the cross-entropy replaced by its tangent at the start:
    `a G / (2 (b F + g))`, element by element."""
    return 0.5 * CLIMB * gradient / (FISHER * fisher + STAY)
