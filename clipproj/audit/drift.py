"""How far an edit moves what it should leave alone: directions, lengths, similarities, answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.calibration import log_probabilities
from clipproj.audit.groups import class_groups
from clipproj.audit.registry import Audit
from clipproj.audit.samples import RowEdit, Samples
from clipproj.audit.stats import Measured, mean, share
from clipproj.refusal import Refusal

_ROUNDING = 1e-40  # of rows that do not differ, relative to (sum |x|^2)^2
SHARES = [i / 20 for i in range(21)]


@dataclass(frozen=True)
class Moved:
    """What became of some rows.

    Args:
        cosine: mean between a row before and after; 0 for one that the edit made zero. Rows that
            were zero before are no case, here and in the lengths.
        length: mean of |z'| / |z|.
        shortest, longest: the least and the greatest |z'| / |z|.
        cka: linear CKA between unit rows before and after, see `linear_cka`; it has no interval.
        agreement: share of rows whose nearest class text is the one of before.
        divergence: mean KL(before || after) of softmax(scale * cosine) over all classes, nats.
        cosines: quantiles of the cosines, from the lowest in steps of a twentieth.
    """

    cosine: Measured
    length: Measured
    shortest: float
    longest: float
    cka: Measured
    agreement: Measured
    divergence: Measured
    cosines: tuple[float, ...]


@dataclass(frozen=True)
class DriftResult:
    """What `drift` measured.

    Args:
        side: of the edit. An edit of the texts moves no image: then only answers of images
            change, and the rows that move are the texts.
        moved: by rows: "kept images" (all but the forgotten), "nearest", "forgotten
            images", and class texts taken for images: "kept texts", "forgotten texts".
    """

    forget: tuple[str, ...]
    nearest: tuple[str, ...]
    side: str
    moved: dict[str, Moved]


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment between rows of two representations, without its bias.

    From HSIC_1 of Song et al. 2012 as in Nguyen et al. (arXiv 2010.15327): the plain one (Kornblith
    et al., arXiv 1905.00414) is near 1 for anything when there are fewer rows than dimensions. 1 is
    the same up to rotation, scale and shift; about 0, also below, is unrelated. Computed in d x d
    or n x n, whichever is smaller.

    Args:
        x: [n, d]. y: [n, e]. Any floating point, computed in float64.

    Returns:
        NaN for fewer than 4 rows, or where the rows of one do not differ.
    """
    if len(x) != len(y):
        raise Refusal("linear_cka", "y", f"must be [{len(x)}, e] as x is, got {list(y.shape)}")
    if len(x) < 4:
        return math.nan
    x, y = x.double(), y.double()
    least = [_ROUNDING * float(rows.square().sum()) ** 2 for rows in (x, y)]
    x, y = x - x.mean(0), y - y.mean(0)  # changes nothing but how much cancels
    xx, yy, xy = _hsic(x, x), _hsic(y, y), _hsic(x, y)
    return xy / math.sqrt(xx * yy) if xx > least[0] and yy > least[1] else math.nan


def drift(
    samples: Samples, edit: RowEdit, forget: Sequence[str], *, renormalize: bool = True
) -> DriftResult:
    """Cosines, lengths, CKA, answers and predictions after the edit against before.

    Args:
        samples: before the edit.
        edit: of either tower.
        forget: names of classes.
        renormalize: False leaves texts at the length that a text-side edit gave them, for answers
            and predictions.

    Raises TypeError, ValueError as `class_groups` and `Samples.edited`.
    """
    groups = class_groups("drift", samples, forget)
    after = samples.edited(edit)
    forgotten = samples.of(forget)
    near = torch.isin(samples.labels, groups["nearest"])
    side = getattr(edit, "side", "image")
    moved = {}
    for name, rows in (
        ("kept images", ~forgotten), ("nearest", near), ("forgotten images", forgotten),
    ):  # fmt: skip
        pair = samples.take(rows), after.take(rows)
        moved[name] = _moved(pair[0].features, pair[1].features, *pair, renormalize)

    # Perfect images, which are their class texts.
    perfect = Samples(
        samples.texts, torch.arange(len(samples.texts), device="cpu"), samples.classes,
        samples.texts, scale=samples.scale,
    )  # fmt: skip
    seen = perfect.edited(edit)
    for name, rows in (
        ("kept texts", ~perfect.of(forget)),
        ("forgotten texts", perfect.of(forget)),
    ):
        pair = perfect.take(rows), seen.take(rows)
        new = seen.texts[rows] if side == "text" else pair[1].features
        moved[name] = _moved(pair[0].features, new, *pair, renormalize)
    names = [tuple(samples.names[c] for c in groups[g].tolist()) for g in list(groups)[:2]]
    return DriftResult(*names, side, moved)


def _moved(old: Tensor, new: Tensor, before: Samples, after: Samples, renormalize: bool) -> Moved:
    """Rows before and after, and the samples whose answers are compared."""
    old, new = old.double(), new.double()
    lengths = old.norm(dim=1)
    live = lengths > 0
    cosines = (F.normalize(old[live], dim=1) * F.normalize(new[live], dim=1)).sum(dim=1)
    ratio = new[live].norm(dim=1) / lengths[live]
    logs = [log_probabilities(one, renormalize) for one in (before, after)]
    divergence = (logs[0].exp() * (logs[0] - logs[1])).sum(dim=1).clamp_min(0)  # rounding
    at = torch.tensor(SHARES, dtype=torch.float64, device="cpu")
    quantiles = torch.quantile(cosines, at).tolist() if live.any() else [math.nan] * len(SHARES)
    ends = (float(ratio.min()), float(ratio.max())) if live.any() else (math.nan, math.nan)
    return Moved(
        mean(cosines, (-1, 1)),
        mean(ratio, (0, math.inf)),
        *ends,
        Measured(linear_cka(F.normalize(old, dim=1), F.normalize(new, dim=1)), len(old)),
        share(before.answers(renormalize) == after.answers(renormalize)),
        mean(divergence, (0, math.inf)),
        tuple(quantiles),
    )


def _hsic(x: Tensor, y: Tensor) -> float:
    """HSIC_1 of linear kernels times n (n - 3), which cancels: the diagonals of both are left out.

    tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 / (n-2) 1'KL1, with K and L without their diagonals.
    """
    n = len(x)
    square = [(rows * rows).sum(1) for rows in (x, y)]
    sums = [rows @ rows.sum(0) - own for rows, own in zip((x, y), square, strict=True)]  # K 1, L 1
    small = x.shape[1] * y.shape[1] <= n * n
    both = (x.T @ y).square().sum() if small else ((x @ x.T) * (y @ y.T)).sum()
    trace = both - square[0] @ square[1]
    total = sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2))
    return float(trace + total - 2 / (n - 2) * (sums[0] @ sums[1]))


AUDIT = Audit(
    key="drift",
    title="Drift",
    place=110,
    run=lambda given: drift(*given.edit),
)
