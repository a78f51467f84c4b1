"""LEACE (Belrose et al., arXiv 2306.03819) with labels: the oracle among the methods.

It is told of every image whether it shows the class, and takes out exactly what a linear probe
could find of that. No other method here sees labels of the kept classes' images. The fit is that
of the authors' package concept-erasure with its defaults, in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from clipproj import Projector, from_leace
from clipproj.refusal import Refusal

from .features import forgotten_images

if TYPE_CHECKING:
    from clipproj.methods.method import Task


def make(task: Task) -> Projector:
    """An affine Projector of rank at most m, for features as the model gives them.

    Raises Refusal without images, with none of the class or none of others; ImportError
    without concept-erasure.
    """
    try:
        from concept_erasure import LeaceFitter
    except ImportError as error:
        raise ImportError(
            "leace: its fit comes from concept-erasure: install clipproj[bench]"
        ) from error

    shown = forgotten_images("leace", task)
    if shown.all():
        raise Refusal("leace", "task.fit", "must have images of kept classes, got none")
    rows = [task.fit.names.index(n) for n in task.forget.names if n in task.fit.names]
    concept = (task.fit.labels[:, None] == torch.tensor(rows)).double()
    return from_leace(LeaceFitter.fit(task.fit.features.double(), concept).eraser)
