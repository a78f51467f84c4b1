"""What the methods that train a map of image features share: the rows, the answers, the stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.refusal import Refusal

if TYPE_CHECKING:
    from clipproj.methods.method import Task

COUNT = 64  # made-up features of a text: Lip's images of a class
# Lip accepts an image at 0.6 to 0.99, by class. Chosen here: features only just as sure as that
# lie nearer to the boundary than images do, and what forgets them leaves up to half of those.
SURE = 0.999
# Adam moves every element by its rate, and so a unit feature by up to rate x d. Chosen, of d = 128.
RATE = 0.25
_SPREAD = 2.0  # of the random start beside the mean image; chosen: 1 gives rows too much alike
_STEP = 0.02
_STEPS = 400  # together more than the way from anywhere to a text


@dataclass(frozen=True, eq=False)
class Classes:
    """Zero-shot answers of edited unit rows, as probabilities.

    Args:
        texts: [m + k, d] float32 unit rows, those to forget first.
        forgotten: m.
        scale: what cosines are multiplied by.
    """

    texts: Tensor
    forgotten: int
    scale: float

    @classmethod
    def of(cls, task: Task) -> Classes:
        texts = torch.cat([task.forget.tensor, task.keep.tensor]).float().cpu()
        return cls(texts, len(task.forget), float(task.scale))

    def logits(self, rows: Tensor, matrix: Tensor | None = None) -> Tensor:
        """[..., m + k], of rows [..., d] after `rows @ matrix`."""
        rows = rows if matrix is None else rows @ matrix
        return self.scale * F.normalize(rows, dim=-1) @ self.texts.T

    def probabilities(self, rows: Tensor, matrix: Tensor | None = None) -> Tensor:
        return self.logits(rows, matrix).softmax(-1)

    @torch.no_grad()
    def accuracy(self, rows: Tensor, matrix: Tensor | None = None) -> float:
        """The share of rows that are answered by a text to forget."""
        answers = self.logits(rows, matrix).argmax(-1)
        return float((answers < self.forgotten).double().mean())


def to_learn(op: str, task: Task, classes: Classes, synthetic: bool) -> Tensor:
    """[n, d] unit features of the class: of its images, or made up when asked or without any."""
    if synthetic or task.fit is None:
        return synthesise(task, classes)
    return F.normalize(task.fit.features[forgotten_images(op, task)], dim=1)


def forgotten_images(op: str, task: Task) -> Tensor:
    """[n] bool: which of the fit images are of a class to forget.

    Raises Refusal without images to learn from, or with none of these classes.
    """
    if task.fit is None:
        raise Refusal(op, "task.fit", "must be labelled images, got None")
    # Other forms of a name (plurals, synonyms) have a text of their own and no class.
    known = [name for name in task.forget.names if name in task.fit.names]
    shown = task.fit.of(known) if known else torch.zeros(len(task.fit), dtype=torch.bool)
    if not shown.any():
        names = ", ".join(map(repr, task.forget.names[:3]))
        raise Refusal(op, "task.fit", f"must have images of what is forgotten, got none of {names}")
    return shown


@torch.no_grad()
def synthesise(task: Task, classes: Classes) -> Tensor:
    """[64 m, d] unit features, of no image, that the model is sure show what is forgotten.

    Lip climbs from noise by the gradient of the class's logit in an image's pixels. Here a feature
    climbs the cosine with the text, from the mean image (of whatever class) plus noise, until the
    model is sure of it; without images it starts at the noise alone. One that never gets there,
    because another text is too near, ends at the text itself, which is Lip's lowered threshold.
    """
    generator = torch.Generator().manual_seed(task.seed)
    d = classes.texts.shape[1]
    target = classes.texts[: classes.forgotten].repeat_interleave(COUNT, dim=0)
    rows = F.normalize(torch.randn(len(target), d, generator=generator), dim=1)
    if task.fit is not None:
        middle = F.normalize(task.fit.features, dim=1).mean(0)
        rows = F.normalize(middle + _SPREAD * rows, dim=1)
    for _ in range(_STEPS):
        p = classes.probabilities(rows)[:, : classes.forgotten].sum(1)
        open_ = (p < SURE).nonzero().flatten()
        if not len(open_):
            break
        x, t = rows[open_], target[open_]
        uphill = t - (x * t).sum(1, keepdim=True) * x
        # no further than the text: a last step that is too long would circle it
        way = torch.minimum(torch.linalg.vector_norm(uphill, dim=1), torch.tensor(_STEP))
        rows[open_] = F.normalize(x + way[:, None] * F.normalize(uphill, dim=1), dim=1)
    return rows
