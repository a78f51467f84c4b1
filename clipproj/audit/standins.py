"""Stand-ins for images where there are none: mixtures of two class texts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from clipproj.audit.samples import Samples
from clipproj.models.text import Embeddings
from clipproj.models.words import on_both
from clipproj.refusal import Refusal

FORGOTTEN, KEPT = 0.75, 0.6  # share of the class's own text; the rest is another kept text
MOST = 5000  # mixtures of each kind: shares to within half a point, in a second


def stand_ins(forget: Embeddings, keep: Embeddings, most: int = MOST) -> Samples:
    """Mixtures of class texts in the place of images, with all names as the classes.

    An image is never its class's text alone, and an edit that ruins images may leave every text
    its own nearest: of ViT-B/32's ImageNet names 0.5 % miss themselves after an edit under which
    images lose 20 points. Mixtures lie between the classes, as images do:

    - 0.6 of a kept text and 0.4 of another kept one, right when the larger answers;
    - 0.75 of a forgotten text and 0.25 of a kept one, found when a forgotten name answers.

    They tell an edit that ruins the rest from one that does not, not what images lose: where all
    images are near what is forgotten, as breeds are, a long list of names of which few are near
    dilutes it (one breed: 0.01 of the mixtures, 0.08 of the images, 0.53 of the mixtures of the
    nearest five). Measure on images where there are some.

    Args:
        forget, keep: of one model, [m, d] and [m_k, d]. Kept names that are forgotten as well count
            as forgotten.
        most: mixtures of each kind; of more pairs every text gets as many partners, evenly.

    Returns:
        Samples whose classes are the forgotten names, then the kept ones.

    Raises ValueError for embeddings of another width, or no name to keep.
    """
    forgotten = set(on_both(forget.names, keep.names))
    kept = [name for name in keep.names if name not in forgotten]
    if not kept or keep.dim != forget.dim:
        got = f"{len(kept)} other names of width {keep.dim}"
        raise Refusal(
            "stand_ins", "keep", f"must hold other names of width {forget.dim}, got {got}"
        )
    f, k = forget.tensor.cpu(), keep.select(kept).tensor.cpu()
    first, partner = _pairs(len(f), len(k), most, itself=True)
    found = FORGOTTEN * f[first] + (1 - FORGOTTEN) * k[partner]
    large, small = _pairs(len(k), len(k), most, itself=len(k) == 1)
    others = KEPT * k[large] + (1 - KEPT) * k[small]
    classes = replace(forget, tensor=torch.cat([f, k]), names=(*forget.names, *kept))
    return Samples(torch.cat([found, others]), torch.cat([first, large + len(f)]), classes)


def _pairs(m: int, count: int, most: int, itself: bool) -> tuple[Tensor, Tensor]:
    """Each of m rows with as many of `count` others, evenly spread from its own number on.

    Args:
        itself: whether a row may be paired with the other of its own number.
    """
    steps = torch.arange(0 if itself else 1, count, device="cpu")
    room = max(1, most // m)
    if len(steps) > room:
        steps = steps[
            torch.linspace(0, len(steps) - 1, room, dtype=torch.float32, device="cpu")
            .round()
            .long()
        ]
    own = torch.arange(m, device="cpu").repeat_interleave(len(steps))
    return own, (own + steps.repeat(m)) % count
