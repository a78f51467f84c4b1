"""Leak: whether a retrieval memory that was not edited brings a forgotten class back."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.groups import forgotten_classes
from clipproj.audit.registry import Audit
from clipproj.audit.samples import RowEdit, Samples
from clipproj.audit.stats import Measured, share
from clipproj.refusal import Refusal

GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_CHUNK = 1024  # images compared with the memory at once


@dataclass(frozen=True)
class Answered:
    """Share of the forgotten classes' images, and of all others, that are named rightly."""

    forget: Measured
    keep: Measured


@dataclass(frozen=True)
class LeakPoint:
    """Accuracy at one weight of the memory: the first of the unedited model, others of the edited.

    Args:
        gamma: the weight; 0 is no memory.
        before: forgotten images, unedited model with its memory.
        unedited, edited, purged: forgotten images, by what became of the memory.
    """

    gamma: float
    before: float
    unedited: float
    edited: float
    purged: float


@dataclass(frozen=True)
class LeakResult:
    """What a memory gives back.

    Args:
        forget: the forgotten classes.
        before: the unedited model without a memory.
        before_memory: the unedited model with its memory.
        none: the edited model without a memory.
        unedited: with the memory as it was before the edit.
        edited: with a memory whose features and texts went through the edit as well.
        purged: with an unedited memory less all entries of the forgotten classes.
        entries: how many the memory has, and `entries_forget` how many are of forgotten classes;
            of an image left out with no other of its class there is none.
        left_out: the memory is the images themselves, each without its own entry.
        k, beta, gamma: as they were given.
        curve: the forgotten classes over gamma.
    """

    forget: tuple[str, ...]
    before: Answered
    before_memory: Answered
    none: Answered
    unedited: Answered
    edited: Answered
    purged: Answered
    entries: int
    entries_forget: int
    left_out: bool
    k: int
    beta: float
    gamma: float
    curve: tuple[LeakPoint, ...]


def leak(
    samples: Samples,
    edit: RowEdit,
    forget: Sequence[str],
    *,
    memory: Samples | None = None,
    k: int = 10,
    beta: float = 100.0,
    gamma: float = 1.0,
) -> LeakResult:
    """Add what a retrieval memory knows to each edited feature, and see whether the class is back.

    RECO (arXiv 2306.07196) finds the nearest images of a memory and takes their texts; here
    without its trained fusion, on unit rows z (the image), V (the memory's images), T (their
    classes' texts), with the k largest of z V^T:

        c = softmax(beta z V^T) T,   zbar = unit(unit(z) + gamma unit(c))

    The memory is taken as it was before the edit, passed through the edit (images for an edit of
    images, and texts for either, since they are added to features), and purged: unedited, but
    without the entries of forgotten classes. The unedited one stands for every store that an edit
    of a model does not reach.

    Args:
        samples: images before the edit.
        edit: of either tower.
        forget: the forgotten classes, of `samples`.
        memory: images before the edit, of the same width, with their own classes; None takes
            `samples`, each image without its own entry.
        k: entries to look up, fewer where the memory has fewer.
        beta: sharpness of the lookup. 100 is CLIP's logit scale; 0 takes all k alike.
        gamma: weight of the memory against the image, above 0. About 0.2 helps an unedited model
            most (embedded model); with much more the memory alone decides.

    Raises ValueError for a name that is no class, none or all of them, a memory of another width or
    without entries, options out of range, or an edit that gives other shapes.
    """
    forget, _ = forgotten_classes("leak", samples, forget)
    store = samples if memory is None else memory
    left_out, k = store is samples, operator.index(k)
    if store.features.shape[1] != samples.features.shape[1] or not (left_out or len(store)):
        raise Refusal(
            "leak",
            "memory",
            f"must be [m, {samples.features.shape[1]}] with m >= 1, got "
            f"{list(store.features.shape)}",
        )
    if k < 1:
        raise Refusal("leak", "k", f"must be at least 1, got {k}")
    for name, value, least in (("beta", beta, beta >= 0), ("gamma", gamma, gamma > 0)):
        if not (math.isfinite(value) and least):
            above = "at least 0" if name == "beta" else "above 0"
            raise Refusal("leak", name, f"must be finite and {above}, got {value}")

    after, forgotten = samples.edited(edit), samples.of(forget)
    # A forgotten class may have other images in the memory, or none.
    held = [name for name in forget if name in store.names]
    old = store.of(held) if held else torch.zeros(len(store), dtype=torch.bool, device="cpu")
    own = [int(store.of([name]).sum()) for name in held]
    values = _through(edit, store)[store.labels]
    texts = store.texts[store.labels]
    none = torch.zeros_like(old)
    unedited = store.features, texts, left_out, k, beta
    (before,) = _looked_up(samples.features, *unedited, (none,))
    (edited,) = _looked_up(
        after.features, store.edited(edit).features, values, left_out, k, beta, (none,)
    )
    found, purged = _looked_up(after.features, *unedited, (none, old))
    looked_up = {"before": before, "unedited": found, "edited": edited, "purged": purged}

    def right(name: str, weight: float, rows: Tensor) -> Tensor:
        asked = samples if name == "before" else after
        fused = F.normalize(asked.features[rows], dim=1) + weight * looked_up[name][rows]
        return replace(samples.take(rows), features=fused, texts=asked.texts).correct()

    every = torch.ones_like(forgotten)

    def answered(hits: Tensor) -> Answered:
        return Answered(share(hits[forgotten]), share(hits[~forgotten]))

    return LeakResult(
        forget=forget,
        before=answered(samples.correct()),
        before_memory=answered(right("before", gamma, every)),
        none=answered(after.correct()),
        **{name: answered(right(name, gamma, every)) for name in ("unedited", "edited", "purged")},
        entries=max(len(store) - left_out, 0),
        entries_forget=sum(n for n in own if n > left_out),
        left_out=left_out,
        k=k,
        beta=float(beta),
        gamma=float(gamma),
        curve=tuple(
            LeakPoint(weight, *(float(share(right(name, weight, forgotten))) for name in looked_up))
            for weight in GAMMAS
        ),
    )


def _through(edit: RowEdit, store: Samples) -> Tensor:
    """The memory's texts after the edit, whichever tower it is of: [C, d] float32."""
    if getattr(edit, "side", "image") == "text":
        return store.edited(edit).texts
    as_rows = Samples(store.texts, torch.arange(len(store.texts), device="cpu"), store.classes)
    return as_rows.edited(edit).features


def _looked_up(
    features: Tensor,
    keys: Tensor,
    values: Tensor,
    left_out: bool,
    k: int,
    beta: float,
    purges: Sequence[Tensor],
) -> list[Tensor]:
    """For each purge, [m] bool entries that are gone: unit(c) of each image, [n, d].

    Zeros where no entry is left for an image. One comparison with the memory serves all.
    """
    z, keys, values = (F.normalize(x, dim=1) for x in (features, keys, values))
    parts = [[torch.zeros(0, features.shape[1], dtype=torch.float32, device="cpu")] for _ in purges]
    for start in range(0, len(z), _CHUNK):
        cosines = z[start : start + _CHUNK] @ keys.T
        if left_out:
            cosines[:, start:].fill_diagonal_(-math.inf)
        for found, purge in zip(parts, purges, strict=True):
            left = cosines.masked_fill(purge, -math.inf) if purge.any() else cosines
            near, at = left.topk(min(k, len(keys)), dim=1)
            logits = (beta * near).masked_fill(near == -math.inf, -math.inf)  # 0 * inf is NaN
            weights = torch.softmax(logits, dim=1).nan_to_num(0.0)
            found.append(torch.einsum("nk,nkd->nd", weights, values[at]))
    return [F.normalize(torch.cat(found), dim=1) for found in parts]


AUDIT = Audit(
    key="leak",
    title="Does a retrieval memory bring the class back?",
    place=80,
    run=lambda given: leak(*given.edit),
)
