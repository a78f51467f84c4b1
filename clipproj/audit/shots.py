"""The two ways in which a few labelled images bring a class back: a prototype, an adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.samples import Samples
from clipproj.audit.stats import Measured, mean, share

STEP = 0.02  # length of a step of the adapter, in the Frobenius norm
BACK = 0.9  # share of the original accuracy that counts as back
PRICE = 0.01  # share of all other images that a prototype may take
_MOST_OTHERS = 5000  # images of other classes that an adapter is asked about, at most
_MOST_HELD = 1000  # held-out images that it is asked about at every step, at most


@dataclass(frozen=True)
class Prototype:
    """A class vector made of labelled images, on images that it was not made of.

    Args:
        alone: share of the held-out forgotten images named rightly with the prototype in the
            text's place.
        with_text: the same with the mean of prototype and text.
        others: share of all other images named rightly with the prototype in the text's place.
    """

    alone: Measured
    with_text: Measured
    others: Measured

    @property
    def best(self) -> float:
        """The better of `alone` and `with_text`, NaN where neither was measured."""
        return self.alone if not self.with_text > self.alone else self.with_text


@dataclass(frozen=True)
class Training:
    """A linear adapter trained on the labelled images alone.

    Args:
        reached: share of the repeats that came back to 90 % of the original accuracy in time.
        steps: how many steps that took, of the repeats that did.
        others: share of all other images named rightly by the adapter at that step.
    """

    reached: Measured
    steps: Measured
    others: Measured


class View:
    """Unit features and texts, and what the texts of the kept classes say of each image.

    Images are nearer to images than to texts, so cosines with a prototype are scaled to the
    spread of those with texts that do not win, and shifted until the class takes 1 % of the
    images of kept classes: what whoever has images without labels can do, at a fixed price. It
    takes two kept classes.
    """

    def __init__(self, samples: Samples, wanted: Tensor) -> None:
        self.features = F.normalize(samples.features, dim=1)
        self.texts = F.normalize(samples.texts, dim=1)
        self.labels, self.wanted, self.scale = samples.labels, wanted, samples.scale
        self.others = ~torch.isin(self.labels, wanted)
        kept = torch.ones(len(self.texts), dtype=torch.bool, device="cpu")
        kept[wanted] = False
        rows = kept.nonzero().flatten()
        cosines = self.features @ self.texts[rows].T
        best, answer = cosines.max(dim=1)
        self.best, self.answer = best, rows[answer]
        lost = cosines.double().scatter(1, answer[:, None], math.nan)[self.others]
        self.spread = (lost - lost.nanmean(dim=0)).square().nanmean(dim=0).sqrt().nanmean()

    def prototype(self, rows: dict[int, Tensor], text: float) -> Tensor:
        """[n] bool: images named rightly with prototypes of these rows, mixed with the texts."""
        columns = self.features @ self.texts[self.wanted].T
        for i, label in enumerate(self.wanted.tolist()):
            if label in rows:
                raw = self.features @ self.features[rows[label]].mean(dim=0)
                scale = self.spread / raw[self.others].double().std(correction=0).clamp_min(1e-12)
                mixed = text * columns[:, i] + (1 - text) * scale.float() * raw
                columns[:, i] = mixed - (mixed - self.best)[self.others].quantile(1 - PRICE)
        best, answer = columns.max(dim=1)
        return torch.where(best > self.best, self.wanted[answer], self.answer) == self.labels


def prototype(view: View, drawn: Sequence[dict[int, Tensor]], held: Sequence[Tensor]) -> Prototype:
    """Prototypes of the drawn images, a draw each, on the images held out of it."""
    rates = []
    for text in (0.0, 0.5):
        hits = torch.full(
            (len(drawn), len(view.labels)), math.nan, dtype=torch.float64, device="cpu"
        )
        for r, (rows, out) in enumerate(zip(drawn, held, strict=True)):
            right = view.prototype(rows, text).double()
            for asked in (out, view.others):
                hits[r, asked] = right[asked]
        rates.append(hits.nanmean(dim=0))
    forget = ~view.others
    return Prototype(
        mean(rates[0][forget], (0, 1)),
        mean(rates[1][forget], (0, 1)),
        mean(rates[0][view.others], (0, 1)),
    )


def train(
    view: View,
    drawn: Sequence[dict[int, Tensor]],
    held: Sequence[Tensor],
    known: Tensor,
    steps: int,
) -> Training:
    """An adapter A, the identity at first, on the drawn images: full-batch gradient descent.

    All draws go at once. Gradients of A are outer products with the labelled rows X [m, d], so
    A = I + C^T X, and C [m, d] is all that moves: nothing here is d x d.

    Args:
        view: what the adapter starts from.
        drawn, held: labelled images of each forgotten class, and those held out, of each draw.
        known: [n] bool, named rightly before the edit: what 90 % are of.
        steps: at most.
    """
    none = torch.arange(0, device="cpu")
    asked = _some(torch.cat(list(held)).unique(), _MOST_HELD) if held else none
    # held out in that repeat
    mask = torch.zeros(len(held), len(asked), dtype=torch.bool, device="cpu")
    for r, out in enumerate(held):
        mask[r] = torch.isin(asked, out)
    original = (known[asked] & mask).sum(dim=1) / mask.sum(dim=1)
    possible = original > 0
    if not possible.any():
        return Training(share([]), mean([]), mean([]))
    z, t = view.features.double(), view.texts.double()
    rows = torch.stack([torch.cat(list(one.values())) for one in drawn])  # [r, m]
    wanted, shots = F.one_hot(view.labels[rows], len(t)).double(), z[rows]
    gram = shots @ shots.mT
    moved = torch.zeros_like(shots)
    others = _some(view.others.nonzero().flatten(), _MOST_OTHERS)

    def right(of: Tensor, shots: Tensor, moved: Tensor) -> Tensor:
        adapted = z[of] + z[of] @ shots.mT @ moved
        return (adapted @ t.T).argmax(dim=-1) == view.labels[of]

    taken = torch.full((len(drawn),), -1, device="cpu")
    then = torch.full((len(drawn), len(others)), math.nan, dtype=torch.float64, device="cpu")
    for step in range(steps + 1):
        hits = (right(asked, shots, moved) & mask).sum(dim=1) / mask.sum(dim=1)
        back = possible & (taken < 0) & (hits >= BACK * original)
        taken[back] = step
        for r in back.nonzero().flatten().tolist():
            then[r] = right(others, shots[r], moved[r]).double()
        active = possible & (taken < 0)
        if not active.any():
            break
        adapted = shots + gram @ moved
        size = torch.linalg.vector_norm(adapted, dim=-1, keepdim=True).clamp_min(1e-12)
        unit = adapted / size
        error = torch.softmax(view.scale * unit @ t.T, dim=-1) - wanted
        slope = error @ t
        slope = (slope - (slope * unit).sum(dim=-1, keepdim=True) * unit) / size  # through unit()
        length = (gram * (slope @ slope.mT)).sum(dim=(1, 2)).clamp_min(1e-60).sqrt()
        moved = moved - STEP * active[:, None, None] * slope / length[:, None, None]
    reached = taken >= 0
    return Training(
        share(reached[possible]),
        mean(taken[reached], (0, steps)),
        mean(then.nanmean(dim=0), (0, 1)),
    )


def _some(rows: Tensor, most: int) -> Tensor:
    """The rows, or so many of them, the same each time."""
    if len(rows) <= most:
        return rows
    generator = torch.Generator().manual_seed(0)
    return rows[torch.randperm(len(rows), generator=generator, device="cpu")[:most]]


def renamed(samples: Samples, wanted: Tensor, generator: torch.Generator) -> Samples:
    """The forgotten classes under random texts, as far from the others' mean as texts are."""
    texts = F.normalize(samples.texts, dim=1)
    kept = torch.ones(len(texts), dtype=torch.bool, device="cpu")
    kept[wanted] = False
    centre = texts[kept].mean(dim=0)
    length = (texts[kept] - centre).norm(dim=1).mean()
    random = torch.randn(
        len(wanted), texts.shape[1], generator=generator, dtype=torch.float32, device="cpu"
    )
    texts[wanted] = F.normalize(centre + length * F.normalize(random, dim=1), dim=1)
    return replace(samples, texts=texts)
