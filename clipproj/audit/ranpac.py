"""RanPAC: a closed-form classifier on random features that a class can be taken out of exactly."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.probe import FOLDS, folds
from clipproj.refusal import Refusal

_CHUNK = 4096  # rows of random features held at once
_DECADES = tuple(10.0**i for i in range(-8, 9))  # the paper's ridges
_FLOOR = 1e-6  # of the Gram's trace: below, rounding of a downdate would show in the answers
_SAME = 1e-9  # relative difference up to which two sums are of the same images


class RanPAC:
    """Ridge regression to one-hot labels on random ReLU features (arXiv 2307.02251).

        h = relu(unit(z) R),   G = sum h^T h,   Q = sum h^T y,   W = (G + lam I)^-1 Q

    G and Q are sums over images, so images can be added one batch after the other and a class
    can be taken out exactly: what is left is what a fit without the class gives, to rounding
    (`forget`). A companion to an edit: a classifier of one's own on the same features, which the
    edit of a tower does not reach, and a strong probe for what an edited feature still holds.

    Sums and solves are float64, on the CPU; the ridge is fixed once fitted. R is [d, width] of
    independent N(0, 1), the paper's; the Gram takes 8 width^2 bytes.

    Attributes:
        classes: the names, in the order of labels and scores.
        counts: [C] int64, the images of each class that are in the sums.
        ridge: lam.
        projection: R, [d, width] float64.
    """

    classes: tuple[str, ...]
    counts: Tensor
    ridge: float
    projection: Tensor

    def __init__(self, classes: Sequence[str], projection: Tensor, ridge: float) -> None:
        self.classes = _names("RanPAC", classes)
        if projection.ndim != 2 or 0 in projection.shape:
            raise Refusal(
                "RanPAC", "projection", f"must be [d, width], got {list(projection.shape)}"
            )
        if not (math.isfinite(ridge) and ridge > 0):
            raise Refusal("RanPAC", "ridge", f"must be finite and above 0, got {ridge}")
        self.projection, self.ridge = projection.detach().double().cpu(), float(ridge)
        width, count = projection.shape[1], len(self.classes)
        self.counts = torch.zeros(count, dtype=torch.int64, device="cpu")
        self._gram = torch.zeros(width, width, dtype=torch.float64, device="cpu")
        # Q, one class a row
        self._sums = torch.zeros(count, width, dtype=torch.float64, device="cpu")
        self._weights: Tensor | None = None

    @classmethod
    def fit(
        cls,
        features: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        *,
        width: int = 2000,
        seed: int = 0,
        ridge: float | None = None,
    ) -> RanPAC:
        """Fit on images.

        Args:
            features: [n, d], finite, any length of rows.
            labels: [n] int64, rows of `classes`.
            classes: distinct names; one may be without images.
            width: random features. The paper takes 10 000; 1000 to 4000 are for a CPU.
            seed: of R, and of the split that the ridge is picked on.
            ridge: None picks it as the paper's code does: of the decades 1e-8 to 1e8 the one of
                least squared error on 20 % of the images after a fit on the others. Only decades
                between 1e-6 and 1 of the Gram's trace are tried: smaller ones would make a later
                downdate inexact, larger ones answer nothing.

        Raises:
            TypeError, ValueError: for features or labels of another form, or options out of range;
                for one image or none without a ridge.
        """
        width = operator.index(width)
        if width < 1:
            raise Refusal("fit", "width", f"must be at least 1, got {width}")
        names = _names("fit", classes)
        _check("fit", features, labels, len(names))
        generator = torch.Generator().manual_seed(seed)
        shape = features.shape[1], width
        projection = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        if ridge is None:
            if len(features) < 2:
                raise Refusal("fit", "ridge", f"must be given to fit on {len(features)} images")
            order = torch.randperm(len(features), generator=generator, device="cpu")
            part = max(1, len(order) // 5)
            ridge = _picked(cls(names, projection, 1.0), features, labels, order, part)
        out = cls(names, projection, ridge)
        out._update(features, labels)
        return out

    def add(self, features: Tensor, labels: Tensor, new: Sequence[str] = ()) -> None:
        """Take in more images; the same as having fitted on all of them with this ridge.

        Args:
            features: [n, d]. labels: [n] int64, rows of `classes` with `new` at its end.
            new: names of classes that come in.

        Raises TypeError, ValueError as `fit`.
        """
        names = _names("add", (*self.classes, *new))
        _check("add", features, labels, len(names), len(self.projection))
        more = len(names) - len(self.classes)
        self.classes = names
        self.counts = F.pad(self.counts, (0, more))
        self._sums = F.pad(self._sums, (0, 0, 0, more))
        self._update(features, labels)

    def forget(self, name: str, features: Tensor) -> None:
        """Take a class out exactly: the state is that of a fit without it, to rounding.

        The images of the class shaped the answers to all classes through G, so dropping its
        column alone is not forgetting, and G cannot be put right without them. Whoever may have to
        forget keeps the class's features (d numbers an image, far less than a Gram per class);
        without them there is only a new fit on the rest. What is given is checked, by count and by
        sum, against what was taken in: anything else is refused and nothing changes.

        Args:
            name: a class, which moves the rows after it up by one.
            features: [n, d], all images of the class that were fitted or added, in any order.

        Raises:
            TypeError, ValueError: for a name that is no class or the last one; for features that
                are not those of the class.
        """
        if name not in self.classes or len(self.classes) == 1:
            raise Refusal(
                "forget",
                "name",
                f"must be one of {len(self.classes)} classes and not the last, got {name!r}",
            )
        row = self.classes.index(name)
        labels = torch.full((len(features),), row, device="cpu")
        _check("forget", features, labels, len(self.classes), len(self.projection))
        count = int(self.counts[row])
        if len(features) != count:
            raise Refusal(
                "forget",
                "features",
                f"must be the {count} images of {name!r} that were taken in, got {len(features)}",
            )
        given = torch.zeros_like(self._sums[row])
        for chunk in features.split(_CHUNK):
            given += self._hidden(chunk).sum(0)
        off = float((given - self._sums[row]).norm())
        if off > _SAME * float(given.norm() + self._sums[row].norm()):
            raise Refusal(
                "forget",
                "features",
                f"must be the images of {name!r} that were taken in, got others "
                f"(their sum differs by {off:.3g})",
            )
        self._update(features, labels, -1)
        kept = torch.arange(len(self.classes), device="cpu") != row
        self.classes = self.classes[:row] + self.classes[row + 1 :]
        self.counts, self._sums = self.counts[kept], self._sums[kept]

    @property
    def weights(self) -> Tensor:
        """W, [width, C] float64. RuntimeError for a ridge too small to solve with."""
        if self._weights is None:
            gram = self._gram.clone()
            gram.diagonal().add_(self.ridge)
            factor, failed = torch.linalg.cholesky_ex(gram)
            if failed:
                raise RuntimeError(
                    "RanPAC: ridge must be large enough to solve with, got "
                    f"{self.ridge:g} for a Gram of trace {float(self._gram.trace()):.3g}"
                )
            self._weights = torch.cholesky_solve(self._sums.T, factor)
        return self._weights

    def scores(self, features: Tensor) -> Tensor:
        """[n, C] float64 regression scores of features [n, d]; an image's add up to about 1."""
        none = torch.zeros(len(features), dtype=torch.int64, device="cpu")
        _check("scores", features, none, len(self.classes), len(self.projection))
        parts = [self._hidden(chunk) @ self.weights for chunk in features.split(_CHUNK)]
        return torch.cat(parts)

    def predict(self, features: Tensor) -> Tensor:
        """[n] int64 rows of `classes`."""
        return self.scores(features).argmax(dim=1)

    def _hidden(self, features: Tensor) -> Tensor:
        return (F.normalize(features.detach().cpu().double(), dim=1) @ self.projection).relu_()

    def _update(self, features: Tensor, labels: Tensor, sign: int = 1) -> None:
        for x, y in zip(features.split(_CHUNK), labels.cpu().split(_CHUNK), strict=True):
            hidden = self._hidden(x)
            self._gram.addmm_(hidden.T, hidden, alpha=sign)
            self._sums.index_add_(0, y, hidden, alpha=sign)
            self.counts += sign * torch.bincount(y, minlength=len(self.counts))
        self._weights = None


def ranpac_answers(
    features: Tensor,
    labels: Tensor,
    *applied: Tensor,
    width: int = 1000,
    seed: int = 0,
    without: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What RanPAC names each image, none of them seen in its fit, with and without some classes.

    The folds are those of `probe.ridge_answers`, and each costs a downdate and one solve instead of
    a fit. The ridge, one number, is picked once, on a split of all images.

    Args:
        features, labels, applied: as `probe.ridge_answers` takes them.
        without: [m] int64, labels that a second head forgets exactly; None for no such head.

    Returns:
        Two [1 + len(applied), n] int64 of labels: of the head with all classes, and of the one that
        has forgotten some (without: -1 throughout).
    """
    present, rows = labels.unique(return_inverse=True)
    names = [str(label) for label in present.tolist()]
    whole = RanPAC.fit(features, rows, names, width=width, seed=seed)
    forgotten = [] if without is None else [i for i in without.tolist() if str(i) in names]
    answers = torch.full((2, 1 + len(applied), len(labels)), -1, device="cpu")
    fold = folds(rows)
    for i in range(FOLDS):
        held_out = fold == i
        head = copy.deepcopy(whole)
        head._update(features[held_out], rows[held_out], -1)
        heads = [head]
        if forgotten:
            heads.append(copy.deepcopy(head))
            for label in forgotten:
                heads[1].forget(str(label), features[~held_out & (labels == label)])
        for k, one in enumerate(heads):
            told = torch.tensor([int(name) for name in one.classes], device="cpu")
            for j, x in enumerate((features, *applied)):
                answers[k, j, held_out] = told[one.predict(x[held_out])]
    return answers[0], answers[1]


def _picked(head: RanPAC, features: Tensor, labels: Tensor, order: Tensor, part: int) -> float:
    """The ridge of least squared error on the first `part` rows of `order`, fitted on the rest."""
    held_out, fitted = order[:part], order[part:]
    head._update(features[fitted], labels[fitted])
    trace = float(head._gram.trace())
    targets = F.one_hot(labels[held_out].cpu(), len(head.classes)).double()
    best, least = _DECADES[-1], math.inf
    for ridge in _DECADES:
        if _FLOOR * trace <= ridge <= max(trace, _DECADES[0]):
            head.ridge, head._weights = ridge, None
            error = float((head.scores(features[held_out]) - targets).square().mean())
            if error < least:
                best, least = ridge, error
    return best


def _names(op: str, classes: Sequence[str]) -> tuple[str, ...]:
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{op}: classes must be names, at least one, got {classes!r}")
    if len(set(names)) != len(names):
        raise Refusal(op, "classes", f"must be distinct, got {list(names)}")
    return names


def _check(op: str, features: Tensor, labels: Tensor, classes: int, dim: int | None = None) -> None:
    if not isinstance(features, Tensor) or not features.is_floating_point():
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{op}: features must be a floating point tensor, got {got}")
    if features.ndim != 2 or features.shape[1] != (dim or max(1, features.shape[1])):
        raise Refusal(op, "features", f"must be [n, {dim or 'd'}], got {list(features.shape)}")
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise Refusal(op, "features", f"must be finite, got a NaN or inf in row {bad[0]}")
    labels = torch.as_tensor(labels, device="cpu")
    if labels.dtype != torch.int64 or labels.shape != (len(features),):
        got = f"{labels.dtype} {list(labels.shape)}"
        raise Refusal(op, "labels", f"must be int64 [{len(features)}], got {got}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise Refusal(
            op,
            "labels",
            f"must be rows of the {classes} classes, got {int(labels.min())} to "
            f"{int(labels.max())}",
        )
