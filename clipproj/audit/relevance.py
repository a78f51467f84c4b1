"""Where in an image a text is seen, before and after an edit (No Token Left Behind, 2204.04908).

The heat of a text at a position is its product with what the image tower makes of that position, in
the space of its output and after the edit. On request also the paper's own map: gradient times
attention, rolled out over the layers. `patches` has how both are read off a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipproj.audit.groups import class_groups
from clipproj.audit.images import Images
from clipproj.audit.patches import attention_maps, find_tower, off_by, patch_features, pixels
from clipproj.audit.registry import Audit
from clipproj.audit.samples import RowEdit, Samples, applied
from clipproj.audit.stats import Measured, mean, share
from clipproj.models.heads import unwrap
from clipproj.refusal import Refusal

_SAME_MODEL = 2e-2  # relative, of an image's feature: the smallest useful edit does more
_CHUNK = 256  # images whose positions are held at once
_PANEL = 112  # pixels of one image on the page
# CLIP's own normalisation, undone to draw; another model's images only look a little pale.
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float32, device="cpu")[
    :, None, None
]
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float32, device="cpu")[
    :, None, None
]


@dataclass(frozen=True)
class Heat:
    """How strongly a class's own text is seen in its own images.

    Args:
        name: the class.
        before, after: mean over its images of the mean heat per position, relu(z . t).
        kept: all heat after / all heat before.
        turned: what relu(-z . t) has grown by / all heat before. An edit stronger than a projection
            leaves no heat and still shows the class, as what its text is pushed away from.
        apart: the same share for the text less the mean of the other classes' texts, which is what
            tells the class from them: all texts of a CLIP share a direction that is hot everywhere.
        correlation: mean over its images of Pearson's r between both maps (of `apart`), over
            positions; an image with a flat map, as those of a class erased whole are, is no case.
        attended, attended_correlation: kept and correlation of the attention maps of `apart`; NaN
            without attention.
        answered_before, answered_after: share of its images answered by its name.
    """

    name: str
    before: Measured
    after: Measured
    kept: Measured
    turned: Measured
    apart: Measured
    correlation: Measured
    attended: Measured
    attended_correlation: Measured
    answered_before: Measured
    answered_after: Measured


@dataclass(frozen=True, eq=False)
class RelevanceResult:
    """Heat of the forgotten classes and of the others, before and after.

    Args:
        forget: the forgotten names.
        grid: positions of one map, h x w.
        images: how many images were looked at.
        attention: whether attention maps were made.
        forgotten: one Heat for each forgotten class that has images.
        kept: all others together, each with its own text; its name is "the others".
        nearest: one Heat for each of the kept classes nearest to the forgotten ones.
        drawn: names of the images in `image`, by row.
        image: [h, w, 3] uint8: a row per drawn image: as the model sees it, then its heat
            before and after on one scale.
    """

    forget: tuple[str, ...]
    grid: tuple[int, int]
    images: int
    attention: bool
    forgotten: tuple[Heat, ...]
    kept: Heat
    nearest: tuple[Heat, ...]
    drawn: tuple[str, ...]
    image: Tensor = field(repr=False)


def relevance(
    samples: Samples,
    edit: RowEdit,
    forget: Sequence[str],
    model: nn.Module,
    preprocess: Callable[..., Any],
    *,
    per_class: int = 32,
    drawn: int = 2,
    nearest: int = 3,
    attention: bool = False,
    batch_size: int = 64,
) -> RelevanceResult:
    """Heat maps of class texts over images, before and after an edit.

    Features of positions are not normalised, so a heat is comparable before and after. An edit of
    the text tower edits the texts, whose lengths stay as it leaves them: <z, P t> = <P^T z, t>.

    Args:
        samples: with `paths`; features from `model`, before the edit.
        forget: names among the classes of `samples`, which has others as well.
        model: unedited: open_clip's CLIP or CustomTextCLIP, or OpenAI's CLIP, with a
            VisionTransformer (pooled by class token or average) or a ModifiedResNet, or CLIPModel,
            ChineseCLIPModel, MetaClip2Model of transformers. It is left as it was.
        preprocess: as `image_features` takes it.
        per_class: at most so many images of a class are looked at, evenly spaced.
        drawn: images drawn of each forgotten class, and of each of the nearest others one.
        nearest: how many kept classes get a row of their own.
        attention: also roll attention out, a backward pass before and one after. The score is the
            product with what sets an image's class apart; `edit` must be one that autograd can
            follow, as a Projector is.

    Raises:
        TypeError: for a model that is no nn.Module.
        ValueError: for samples without paths or images, a name that is no class, no class left,
            counts out of range, a model of another kind, and one whose
            features are not those of `samples`.
        RuntimeError: when the tower, run by hand from its last layer on, does not give the feature
            that the model gives: the map would not be of the model.
    """
    for name, value, least in (
        ("per_class", per_class, 1), ("drawn", drawn, 0), ("nearest", nearest, 0),
    ):  # fmt: skip
        if value < least:
            raise Refusal("relevance", name, f"must be at least {least}, got {value}")
    if samples.paths is None:
        raise Refusal("relevance", "samples", "must have paths, got features without images")
    if not len(samples):
        raise Refusal("relevance", "samples", "must have an image, got none")
    groups = class_groups("relevance", samples, forget, nearest)
    forget = tuple(samples.names[c] for c in groups["forgotten"].tolist())
    near = tuple(samples.names[c] for c in groups["nearest"].tolist())
    find_tower(model)  # refused before an image is opened

    looked = samples.take(_spread(samples.labels, per_class))
    edited = looked.edited(edit)
    on_text = getattr(edit, "side", "image") == "text"
    bare, apart = zip(*(_own_text(one) for one in (looked, edited)), strict=True)  # before, after
    heats: dict[str, list[list[Tensor]]] = {
        kind: [[], []] for kind in ("bare", "apart", "attention")
    }
    for rows in torch.arange(len(looked), device="cpu").split(_CHUNK):
        part = looked.take(rows)
        images = Images(part.paths, part.labels, samples.names)
        grid, pooled = patch_features(model, preprocess, images, batch_size=batch_size)
        off = off_by(pooled, part.features)
        if not off < _SAME_MODEL:
            raise Refusal(
                "relevance",
                "model",
                "must be the one that the features of samples come from, got one "
                f"whose features are off by {off:.2g} of their length",
            )
        after = grid if on_text else applied(edit, grid.flatten(0, 2)).cpu().view_as(grid)
        for state, z in enumerate((grid.double(), after.double())):
            for kind, texts in (("bare", bare), ("apart", apart)):
                heats[kind][state].append(torch.einsum("nhwd,nd->nhw", z, texts[state][rows]))
        if attention:
            logits = [
                _score(text[rows].float(), used)
                for text, used in zip(apart, (None, None if on_text else edit), strict=True)
            ]
            found = attention_maps(model, preprocess, images, logits, batch_size=batch_size)
            for state, one in enumerate(found):
                heats["attention"][state].append(one.double())
    maps = {kind: [torch.cat(one) for one in both] for kind, both in heats.items() if both[0]}
    correct = [one.correct() for one in (looked, edited)]

    seen = [name for name in forget if looked.of([name]).any()]

    def of(name: str, mask: Tensor) -> Heat:
        signed = [one[mask].flatten(1) for one in maps["bare"]]
        mine = {kind: [m[mask].flatten(1).relu() for m in both] for kind, both in maps.items()}
        attended = mine.get("attention")
        return Heat(
            name,
            *(mean(one.mean(dim=1), (0, math.inf)) for one in mine["bare"]),
            kept=_kept(*mine["bare"]),
            turned=_kept(mine["bare"][0], (-signed[1]).relu() - (-signed[0]).relu()),
            apart=_kept(*mine["apart"]),
            correlation=mean(_correlation(*mine["apart"]), (-1, 1)),
            attended=_kept(*attended) if attended else Measured(math.nan, 0),
            attended_correlation=mean(_correlation(*attended) if attended else [], (-1, 1)),
            answered_before=share(correct[0][mask]),
            answered_after=share(correct[1][mask]),
        )

    picks = [i for n in seen for i in looked.of([n]).nonzero().flatten().tolist()[:drawn]]
    picks += [int(looked.of([n]).nonzero()[0]) for n in near if drawn]
    rows_drawn = [
        _row(
            pixels(unwrap(model), preprocess, [looked.paths[i]])[0],
            *(one[i].relu() for one in maps["apart"]),
        )
        for i in picks
    ]
    none = torch.empty(0, 0, 3, dtype=torch.uint8, device="cpu")
    return RelevanceResult(
        forget=forget,
        grid=tuple(maps["bare"][0].shape[1:]),
        images=len(looked),
        attention=attention,
        forgotten=tuple(of(name, looked.of([name])) for name in seen),
        kept=of("the others", ~looked.of(forget)),
        nearest=tuple(of(name, looked.of([name])) for name in near),
        drawn=tuple(looked.names[looked.labels[i]] for i in picks),
        image=torch.cat(rows_drawn) if picks else none,
    )


def _spread(labels: Tensor, per_class: int) -> Tensor:
    """Rows of at most `per_class` images of each class, evenly spaced, in order."""
    rows = []
    for c in labels.unique():
        of_class = (labels == c).nonzero().flatten()
        count = min(per_class, len(of_class))
        rows.append(of_class[torch.arange(count, device="cpu") * len(of_class) // count])
    return torch.cat(rows).sort().values


def _own_text(samples: Samples) -> tuple[Tensor, Tensor]:
    """[n, d] float64 each: every image's class text, and that less the mean of the others."""
    texts = samples.texts.double()
    others = (texts.sum(dim=0) - texts) / (len(texts) - 1)
    return texts[samples.labels], (texts - others)[samples.labels]


def _score(texts: Tensor, edit: RowEdit | None) -> Callable[[Tensor, Tensor], Tensor]:
    """From features [b, d] and their rows of `texts` to the products of both, after the edit."""

    def score(z: Tensor, rows: Tensor) -> Tensor:
        z = (z if edit is None else edit(z)).float()
        return (z * texts[rows].to(z.device)).sum(dim=1)

    return score


def _kept(before: Tensor, after: Tensor) -> Measured:
    """All heat after over all heat before; the interval is of the linearised ratio."""
    a, b = after.mean(dim=1), before.mean(dim=1)
    if not b.sum() > 0:
        return Measured(math.nan, len(b))
    ratio = a.sum() / b.sum()
    found = mean(ratio + (a - ratio * b) / b.mean())
    low = max(found.low, min(0.0, float(ratio)))  # a share of heat that is left is never below 0
    return Measured(float(ratio), found.n, low, found.high)


def _correlation(before: Tensor, after: Tensor) -> Tensor:
    """[n] Pearson's r of rows; NaN where a row is flat up to rounding."""
    a, b = (one - one.mean(dim=1, keepdim=True) for one in (before, after))
    flat = (a.norm(dim=1) <= 1e-6 * before.norm(dim=1)) | (
        b.norm(dim=1) <= 1e-6 * torch.maximum(before.norm(dim=1), after.norm(dim=1))
    )
    return F.cosine_similarity(a, b, dim=1, eps=0).masked_fill(flat, math.nan)


def _row(seen: Tensor, *heats: Tensor) -> Tensor:
    """[h, w, 3] uint8: what the model sees, and beside it each map over it, on one scale."""
    seen = (seen.float().cpu() * _STD + _MEAN).clamp(0, 1)
    seen = F.interpolate(seen[None], (_PANEL, _PANEL), mode="bilinear", antialias=True)[0]
    faded = 0.45 * seen.mean(dim=0) + 0.55
    top = max(float(heats[0].max()), 1e-12)
    red, yellow = (
        torch.tensor(c, device="cpu")[:, None, None] for c in ((0.75, 0.0, 0.1), (1.0, 0.85, 0.2))
    )
    panels = [seen]
    for heat in heats:
        h = F.interpolate(heat[None, None].float(), (_PANEL, _PANEL), mode="bilinear")[0]
        h = (h / top).clamp(0, 1)
        panels.append((1 - 0.85 * h) * faded + 0.85 * h * (h * red + (1 - h) * yellow))
    padded = [F.pad(255 * one.clamp(0, 1), (2, 2, 2, 2), value=255) for one in panels]
    return torch.cat(padded, dim=2).permute(1, 2, 0).byte()


AUDIT = Audit(
    key="relevance",
    title="Where the class is seen",
    place=90,
    run=lambda given: relevance(*given.edit, given.model, given.preprocess),
    needs=dict.fromkeys(
        ("model", "paths"), "needs the model and the images, features alone show no map"
    ),
)
