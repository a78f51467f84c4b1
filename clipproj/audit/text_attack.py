"""A text in the place of a class's own: which images it wins, and the vector that wins most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.samples import RowEdit, Samples, applied
from clipproj.audit.stats import Measured, share, wilson

_AT_ONCE = 256  # texts scored at once
_TIE = 1e-6  # a cosine by which a text must win: the same words in another batch differ by less
_RIDGE = 0.5  # as the linear probe's
_CLOSE = 1e-2  # the same for a place near the images, where nothing is noise
_MIXES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of a direction, added to a text

ALL, HALVES = 2, (0, 1)  # which images: of one half, or all


@dataclass(frozen=True)
class AttackScore:
    """What a text finds.

    Args:
        answered: share of the class's images it wins against the texts of all other classes.
        taken: share of all other images it wins; a text that wins everything finds nothing.
        auroc: area under the ROC curve of its cosines, the class against the others; 0.5 is chance.
    """

    answered: Measured
    taken: Measured
    auroc: Measured


@dataclass(frozen=True)
class Text:
    """One text in the place of the class's own, before and after the edit."""

    text: str
    before: AttackScore
    after: AttackScore


class AttackScores(NamedTuple):
    """Of P texts, by which images (half 0, half 1, all): shares and AUROC, [3, P] float64."""

    answered: Tensor
    taken: Tensor
    auroc: Tensor

    @property
    def net(self) -> Tensor:
        """answered - taken; what is equal is ordered by AUROC."""
        return self.answered - self.taken + 1e-6 * self.auroc

    def best(self, of: int, allowed: Sequence[int]) -> tuple[int, int]:
        """The text of the highest net, and that of the highest AUROC, among those allowed."""
        rows = torch.as_tensor(allowed, device="cpu")
        return tuple(int(rows[one[of, rows].argmax()]) for one in (self.net, self.auroc))


class ModelState(NamedTuple):
    """Unit images and texts of one state of the model, and the best cosine of all rivals."""

    images: Tensor  # [n, d]
    texts: Tensor  # [C, d]
    rival: Tensor  # [n]
    edit: RowEdit | None  # of the texts

    def unit(self, texts: Tensor) -> Tensor:
        """[P, d]: texts of the unedited tower, as this model has them."""
        return F.normalize(texts if self.edit is None else applied(self.edit, texts).cpu())


class AttackedClass:
    """One forgotten class against all others, before (models[0]) and after (models[1]) an edit."""

    def __init__(self, samples: Samples, edit: RowEdit, name: str) -> None:
        self.name = name
        self.row = samples.names.index(name)
        self.mine = samples.labels == self.row
        # Every class is dealt out evenly over the halves.
        order = samples.labels.argsort(stable=True)
        first = torch.searchsorted(samples.labels[order], samples.labels[order])
        self.half = torch.empty(len(samples), dtype=torch.int64, device="cpu")
        self.half[order] = (torch.arange(len(samples), device="cpu") - first) % 2
        on_text = getattr(edit, "side", "image") == "text"
        self.models = tuple(
            self._model(one, used)
            for one, used in ((samples, None), (samples.edited(edit), edit if on_text else None))
        )

    def _model(self, samples: Samples, edit: RowEdit | None) -> ModelState:
        cosines = samples.cosines()
        cosines[:, self.row] = -math.inf
        images = F.normalize(samples.features)
        return ModelState(images, F.normalize(samples.texts), cosines.amax(dim=1), edit)

    def of(self, which: int) -> Tensor:
        """[n] bool: the images of a half, or all."""
        return torch.ones_like(self.mine) if which == ALL else self.half == which

    @property
    def crossed(self) -> bool:
        """Whether both halves have two images of the class and of others."""
        counts = [int((self.of(h) & m).sum()) for h in HALVES for m in (self.mine, ~self.mine)]
        return min(counts) >= 2

    def scores(self, model: ModelState, texts: Tensor) -> AttackScores:
        """Of texts [P, d] of the unedited tower."""
        out = []
        for rows in texts.split(_AT_ONCE):
            cosines = model.images @ model.unit(rows).T
            wins = cosines > model.rival[:, None] + _TIE
            part = torch.empty(3, 3, len(rows), dtype=torch.float64, device="cpu")
            for which in (*HALVES, ALL):
                mask = self.of(which)
                mine, rest = mask & self.mine, mask & ~self.mine
                part[0, which] = wins[mine].double().mean(dim=0)
                part[1, which] = wins[rest].double().mean(dim=0)
                part[2, which] = _aurocs(cosines[mask], self.mine[mask])
            out.append(part)
        none = torch.empty(3, 3, 0, dtype=torch.float64, device="cpu")
        return AttackScores(*torch.cat([none, *out], dim=2))

    def text(self, words: str, row: Tensor) -> Text:
        """What one text [d] of the unedited tower finds, of all images."""
        before, after = (
            self._measure(model, [(ALL, unit, unit)])
            for model in self.models
            for unit in model.unit(row[None])
        )
        return Text(words, before, after)

    def chosen(
        self,
        model: ModelState,
        scores: AttackScores,
        texts: Tensor,
        allowed: Sequence[Sequence[int]],
    ) -> AttackScore:
        """The best text by one half, measured on the other, both ways.

        Args:
            texts: [P, d] that the scores are of.
            allowed: for each half, the rows of texts that may be chosen by it.
        """
        if not self.crossed or not all(len(rows) for rows in allowed):
            return _NOTHING
        picks = [scores.best(half, rows) for half, rows in zip(HALVES, allowed, strict=True)]
        tests = [
            (1 - h, *model.unit(texts[list(pick)])) for h, pick in zip(HALVES, picks, strict=True)
        ]
        return self._measure(model, tests)

    def fitted(self, model: ModelState, span: Tensor | None) -> AttackScore:
        """The vector that wins most, fitted on one half and measured on the other, both ways.

        Among S (S C S + l I)^-1 S g, with a ridge l, the direction w separates the class's images
        from the others (g: the difference of their means, C: the covariance about these), and the
        place p is nearest to the class's mean image (g: that mean, C: I). S is the square root of
        V^T V for texts V: then both are mixes of texts, and the ridge is one on their weights;
        S = I leaves them free. Images are ranked by w and won by the class's text, or p, plus as
        much of w as wins most on the half of the fit.

        Args:
            span: V [m, d] of the unedited tower, or None.
        """
        if not self.crossed:
            return _NOTHING
        root = torch.eye(model.texts.shape[1], dtype=torch.float64, device="cpu")
        if span is not None:
            root = _root(model.unit(span).double())
        tests = []
        for half in HALVES:
            mask = self.of(half)
            z, mine = model.images[mask].double(), self.mine[mask]
            centre, rest = z[mine].mean(dim=0), z[~mine].mean(dim=0)
            about = z - torch.where(mine[:, None], centre, rest)
            w = _goal(root, about.T @ about / len(z), centre - rest)
            p = _goal(root, torch.eye(len(w), dtype=torch.float64, device="cpu"), centre, _CLOSE)
            text = model.texts[self.row].double()
            mixes = F.normalize(torch.stack([b + a * w for b in (text, p) for a in _MIXES] + [w]))
            wins = z @ mixes.T > model.rival[mask, None] + _TIE
            net = wins[mine].double().mean(dim=0) - wins[~mine].double().mean(dim=0)
            tests.append((1 - half, mixes[net.argmax()].float(), w.float()))
        return self._measure(model, tests)

    def _measure(
        self, model: ModelState, tests: Sequence[tuple[int, Tensor, Tensor]]
    ) -> AttackScore:
        """Of each part of the images: what one vector wins there, and how another ranks them."""
        wins, mine, aurocs = [], [], []
        for which, wins_by, ranks_by in tests:
            mask = self.of(which)
            images = model.images[mask]
            wins.append(images @ wins_by > model.rival[mask] + _TIE)
            mine.append(self.mine[mask])
            aurocs.append(_aurocs((images @ ranks_by)[:, None], mine[-1]))
        won, own = torch.cat(wins), torch.cat(mine)
        count = min(int(own.sum()), int((~own).sum()))
        auroc = _bounded(float(torch.cat(aurocs).mean()), count)
        return AttackScore(share(won[own]), share(won[~own]), auroc)


_NOTHING = AttackScore(*[Measured(math.nan, 0)] * 3)


def _aurocs(scores: Tensor, mine: Tensor) -> Tensor:
    """[P] float64: how often an image of the class scores above another, of [n, P]; ties half."""
    own, rest = scores[mine].T.contiguous(), scores[~mine].T.sort(dim=1).values.contiguous()
    below = torch.searchsorted(rest, own).double()
    upto = torch.searchsorted(rest, own, right=True).double()
    return (below + upto).mean(dim=1) / (2 * rest.shape[1])


def _bounded(value: float, n: int) -> Measured:
    """An AUROC with Wilson's interval for n, the smaller of both groups.

    Its variance is at most p (1 - p) / n whatever the scores are (Birnbaum and Klose, 1957), so
    the interval is wide rather than wrong, at 1 too.
    """
    if not n:
        return Measured(math.nan, 0)
    return Measured(value, n, *wilson(value, n))


def _root(texts: Tensor) -> Tensor:
    """[d, d] symmetric square root of V^T V / m, whose columns span the texts."""
    values, vectors = torch.linalg.eigh(texts.T @ texts / len(texts))
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _goal(root: Tensor, c: Tensor, g: Tensor, ridge: float = _RIDGE) -> Tensor:
    """[d] unit float64: S (S C S + l I)^-1 S g, with l in units of the mean of S C S's diagonal."""
    inner = root @ c @ root
    inner.diagonal().add_((ridge * inner.diagonal().mean()).clamp_min(1e-12))
    return F.normalize(root @ torch.linalg.solve(inner, root @ g), dim=0)
