"""JiT (Foster et al., arXiv 2402.01401, TMLR 2025), at the output of the image tower.

One pass over the forgotten images by SGD: for each, 25 noisy copies, and the loss is the mean of
|f(x) - f(x + xi)| / |xi|, with the noisy branch not followed by the gradient. So each answer is
pulled to those of the noisy copies, most of which are other classes; the loss itself need not fall,
for that branch moves too.

f must not be linear: for a bare projection W the ratio |xi W| / |xi| does not depend on x, so that
training would shrink W and know nothing of the class. f here is the vector of class probabilities.

From the authors' code: the loss, 25 copies, SGD. Simplified: one matrix is trained, noise is
relative to the length of a feature, and is not clamped (features have no range as pixels have).
Chosen on the embedded model: noise and rate below (the code's are 0.5 to 1.5, and 3e-4 to 1.5, by
model); a stop when at most a tenth of the images is still found, without which the pass goes on
into the other classes; and several passes where there are fewer than 64 images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .dense import Dense
from .features import COUNT, Classes, to_learn
from .lip import ratio

if TYPE_CHECKING:
    from clipproj.methods.method import Task

NOISE = 2.5
STOP = 0.1
_RATE = 0.2
_SAMPLES = 10 * COUNT  # seen at most


def make(task: Task, *, synthetic: bool = False) -> Dense:
    """The map that JiT trains, from images of the class or (without any, or if asked) made-up
    ones. Refusal for images among which none is of the class."""
    classes = Classes.of(task)
    rows = to_learn("jit", task, classes, synthetic)
    generator = torch.Generator().manual_seed(task.seed + 1)
    matrix = torch.eye(rows.shape[1], requires_grad=True)
    optimizer = torch.optim.SGD([matrix], lr=_RATE)
    passes = max(1, -(-_SAMPLES // len(rows)))
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(passes)])
    for done, i in enumerate(order.tolist()):
        if classes.accuracy(rows, matrix) <= STOP:
            break
        loss = ratio(classes, rows[i : i + 1], matrix, NOISE, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if task.progress is not None:
            task.progress(done + 1, len(order))
    return Dense(matrix)
