"""LEACE (Belrose et al., arXiv 2306.03819): import the eraser of the concept-erasure package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipproj.methods.inputs import provenance
from clipproj.methods.method import Method, Task
from clipproj.projector import Projector
from clipproj.refusal import Refusal


def from_leace(eraser: Any, side: str = "image") -> Projector:
    """The Projector that does what a fitted `concept_erasure.LeaceEraser` does.

    Its call is `x - (x - bias) proj_right^T proj_left^T`, hence read = proj_right, write =
    proj_left^T, offset = read . bias. Directions that its fit truncated, which it keeps as zeros,
    are dropped. The package itself is not needed.

    Args:
        eraser: has `proj_left` [d, k], `proj_right` [k, d] and `bias` [d] or None.

    Raises:
        TypeError: when `eraser` has no such attributes; ValueError: when their shapes do not fit.
    """
    left, right = getattr(eraser, "proj_left", None), getattr(eraser, "proj_right", None)
    bias = getattr(eraser, "bias", None)
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        raise TypeError(
            "from_leace: eraser must have tensors proj_left and proj_right, got "
            f"{type(eraser).__name__}"
        )
    if left.ndim != 2 or left.shape != right.T.shape:
        raise Refusal(
            "from_leace",
            "eraser",
            "must have proj_left [d, k] and proj_right [k, d], got "
            f"{list(left.shape)} and {list(right.shape)}",
        )
    if bias is not None and getattr(bias, "shape", None) != right.shape[1:]:
        got = list(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
        raise Refusal("from_leace", "eraser", f"must have a bias [{right.shape[1]}], got {got}")
    read, write = right.detach().double(), left.detach().double().T
    live = read.any(1) & write.any(1)
    read, write = read[live], write[live]
    offset = None if bias is None else read @ bias.detach().double()
    history = provenance("leace", {"rank": len(read), "affine": bias is not None})
    return Projector(read, write, offset, side=side, provenance=history)


def make(task: Task) -> Projector:
    """The eraser that the authors' package fits to which images show what is forgotten.

    Raises ValueError without images of the forgotten or of kept names; ImportError without
    concept-erasure.
    """
    fit = task.fit
    assert fit is not None
    rows = [fit.names.index(name) for name in task.forget.names if name in fit.names]
    concept = fit.labels[:, None] == torch.tensor(rows, dtype=torch.int64, device=fit.labels.device)
    shown = concept.any(1)
    for whose, there in (("forgotten", shown), ("kept", ~shown)):
        if not there.any():
            raise Refusal("leace", "task.fit", f"must have images of {whose} names, got none")
    try:
        from concept_erasure import LeaceFitter
    except ImportError as error:
        raise ImportError(
            "leace: its fit comes from concept-erasure: pip install concept-erasure"
        ) from error
    made = from_leace(LeaceFitter.fit(fit.features.double(), concept.double()).eraser)
    made.provenance |= provenance("leace", made.provenance["parameters"], task.forget, task.keep)
    return made


METHOD = Method(
    "leace",
    "takes out what a linear probe finds of the names in labelled images",
    make,
    needs=frozenset({"fit"}),
    foldable=False,
    promise="no linear probe finds the label that it was fitted to",
    paper="arXiv 2306.03819",
    settings=(),  # of a package that is not needed elsewhere
)
