"""Lip (Kravets and Namboodiri, arXiv 2407.07485, WACV 2025), at the output of the image tower.

Smooth the model around the class: make up images of it, and pull the answer to each towards the
answers to noisy copies of it, with more and more noise, until the made-up ones are forgotten.

From the authors' code: 64 made-up samples, 25 noisy copies of each whose branch is not followed by
the gradient, the ratio |f(x) - f(x + xi)| / 2|xi|, the noise schedule, an epoch without a fall of
the accuracy on the made-up samples is undone and the noise grows, at most 30 epochs, stop at 0.1.

Simplified: samples are features, not pixels (`features.synthesise`), and noise is relative to their
length. One matrix is trained, so there is no choice of layers. f is the vector of class
probabilities: the code compares embeddings, but those of a linear map change by the noise alone,
whose mean is zero, so that nothing is learned from them but drift. The term that moves the text
tower, and weight decay, which normalised features do not see, are left out.

Chosen on the embedded model: learning rate 0.25 / d (the code's 5e-5 is for whole towers), ten
steps an epoch instead of one: fewer do not reach the boundary, and all of them are undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .dense import Dense
from .features import RATE, Classes, synthesise

if TYPE_CHECKING:
    from clipproj.methods.method import Task

NOISE = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
COPIES = 25
EPOCHS = 30
STOP = 0.1
_STEPS = 10


def make(task: Task) -> Dense:
    """The map that Lip trains. It needs no images; with some it starts at their mean."""
    classes = Classes.of(task)
    rows = synthesise(task, classes)
    generator = torch.Generator().manual_seed(task.seed + 1)
    matrix = torch.eye(rows.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([matrix], lr=RATE / rows.shape[1], betas=(0.9, 0.98), eps=1e-6)
    best, level = classes.accuracy(rows), 0
    for epoch in range(EPOCHS):
        if best <= STOP or level == len(NOISE):
            break
        before = matrix.detach().clone()
        for _ in range(_STEPS):
            loss = 0.5 * ratio(classes, rows, matrix, NOISE[level], generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if classes.accuracy(rows, matrix) <= STOP:
                break
        reached = classes.accuracy(rows, matrix)
        if reached < best:
            best = reached
        else:
            level += 1
            with torch.no_grad():
                matrix.copy_(before)
        if task.progress is not None:
            task.progress(epoch + 1, EPOCHS)
    return Dense(matrix)


def ratio(
    classes: Classes, rows: Tensor, matrix: Tensor, noise: float, generator: torch.Generator
) -> Tensor:
    """The mean of |f(x) - f(x + xi)| / |xi| over rows and copies, a scalar to descend."""
    shape = (COPIES, *rows.shape)
    xi = torch.randn(shape, generator=generator) * (noise / rows.shape[-1] ** 0.5)
    with torch.no_grad():
        there = classes.probabilities(rows + xi, matrix)
    here = classes.probabilities(rows, matrix)
    moved = torch.linalg.vector_norm(here - there, dim=-1)
    return (moved / torch.linalg.vector_norm(xi, dim=-1)).mean()
