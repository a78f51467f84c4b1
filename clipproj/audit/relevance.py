"""Where in a picture a text is seen, before and after an edit (No Token Left Behind, 2204.04908).

The embedding-only form: every position of the image tower's last layer goes through the tower's own
last norm and projection, then through the edit, and its product with a class text is the heat there.
A map of a ViT is of its patch tokens. A ModifiedResNet has none: what its attention pool would give
if it looked at one position alone, `c_proj(v_proj(x_i + p_i))`, stands in (MaskCLIP, 2112.01071).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipproj.audit.evaluate import nearest
from clipproj.audit.page import Figure, Page, Table, image
from clipproj.audit.pictures import Pictures, image_features, open_picture
from clipproj.audit.samples import Edit, Samples, _applied
from clipproj.audit.stats import Measured, mean, share
from clipproj.heads import check_module, unwrap, which_class

_TRANSFORMERS = ("CLIPModel", "ChineseCLIPModel", "MetaClip2Model")
_SAME_FEATURE = 2e-2  # relative; half precision is off by 5e-3, the smallest useful edit by more
_CHUNK = 256  # pictures whose positions are held at once
_PANEL = 112  # pixels of one picture on the page
# CLIP's own normalisation, undone to draw; another model's pictures only look a little pale.
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


class Patches(NamedTuple):
    """One feature per position: grid [n, h, w, d]; pooled [n, d], what the tower gives; float32."""

    grid: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Heat:
    """How strongly a class's own text is seen in its own pictures.

    Args:
        name: the class.
        before, after: mean over its pictures of the mean heat per position, relu(z . t).
        kept: all heat after / all heat before.
        apart: the same share for the text less the mean of the other classes' texts, which is what
            tells the class from them: all texts of a CLIP share a direction that is hot everywhere.
        correlation: mean over its pictures of Pearson's r between both maps (of `apart`), over
            positions; NaN where one of them is flat, as those of a class erased whole are.
        seen_before, seen_after: share of its pictures answered by its name.
    """

    name: str
    before: Measured
    after: Measured
    kept: Measured
    apart: Measured
    correlation: Measured
    seen_before: Measured
    seen_after: Measured


@dataclass(frozen=True, eq=False)
class RelevanceResult:
    """Heat of the forgotten classes and of the others, before and after.

    Args:
        forget: the forgotten names.
        grid: positions of one map, h x w.
        pictures: how many pictures were looked at.
        forgotten: one Heat for each forgotten class.
        retained: all others together, each with its own text; its name is "the others".
        neighbours: one Heat for each of the retained classes nearest to the forgotten ones.
        drawn: names of the pictures in `picture`, by row.
        picture: [h, w, 3] uint8: a row per drawn picture: as the model sees it, then its heat
            before and after on one scale.
    """

    forget: tuple[str, ...]
    grid: tuple[int, int]
    pictures: int
    forgotten: tuple[Heat, ...]
    retained: Heat
    neighbours: tuple[Heat, ...]
    drawn: tuple[str, ...]
    picture: Tensor = field(repr=False)

    def page(self) -> Page:
        """The numbers, a table, and some pictures with their maps."""
        parts = []
        for heat in self.forgotten:
            parts.append(
                f"Of the heat that sets {heat.name!r} apart from the other texts, "
                f"{_percent(heat.apart)} is left in its {heat.before.n} pictures "
                f"({_percent(heat.kept)} of the heat of the bare text); it answered "
                f"{_percent(heat.seen_before)} of them before and {_percent(heat.seen_after)} after."
            )
        kept = self.retained
        parts.append(
            f"Maps of the other classes correlate with what they were at "
            f"{_number(kept.correlation)} ({kept.correlation.n} pictures with a map). The maps tell "
            "where a text is seen, not whether the pictures still differ: a probe does."
        )
        rows = [
            (h.name, h.before, h.after, h.kept, h.apart, h.correlation, h.seen_before, h.seen_after)
            for h in (*self.forgotten, *self.neighbours, kept)
        ]
        columns = (
            "Class", "Heat before", "Heat after", "Heat kept %", "Kept of what sets it apart %",
            "Correlation of the maps", "Answered before %", "Answered after %",
        )  # fmt: skip
        caption = (
            f"Each class in its own pictures, {self.grid[0]} x {self.grid[1]} positions each: the "
            "forgotten ones, those nearest to them, all others together."
        )
        shown = "Left to right: the picture as the model sees it, heat before, heat after. "
        figure = image(
            self.picture,
            alt=f"Heat maps of {', '.join(dict.fromkeys(self.drawn))} before and after the edit",
            caption=f"{shown}By row: {', '.join(self.drawn)}. Both maps of a row have one scale.",
        )
        figures: tuple[Figure, ...] = (figure,) if self.drawn else ()
        table = Table(columns, tuple(rows), caption)
        return Page("relevance", "Where the class is seen", " ".join(parts), (table,), figures)


def relevance(
    samples: Samples,
    edit: Edit,
    forget: Sequence[str],
    model: nn.Module,
    preprocess: Callable[..., Any],
    *,
    per_class: int = 32,
    drawn: int = 2,
    neighbours: int = 3,
    batch_size: int = 64,
) -> RelevanceResult:
    """Heat maps of class texts over pictures, before and after an edit.

    Features of positions are not normalised, so a heat is comparable before and after. An edit of
    the text tower edits the texts, whose lengths stay as it leaves them: <z, P t> = <P^T z, t>.

    Args:
        samples: with `paths`; features from `model`, before the edit.
        forget: names among the classes of `samples`, which has others as well.
        model: unedited: open_clip's CLIP or CustomTextCLIP with a VisionTransformer (pooled by
            class token or average) or ModifiedResNet, OpenAI's CLIP, or CLIPModel,
            ChineseCLIPModel, MetaClip2Model of transformers. Left as it was.
        preprocess: as `image_features` takes it.
        per_class: at most so many pictures of a class are looked at, evenly spaced.
        drawn: pictures drawn of each forgotten class, and of each of the neighbours one.
        neighbours: how many retained classes get a row of their own.

    Raises:
        TypeError: for a model that is no nn.Module.
        ValueError: for samples without paths or without pictures of a forgotten class, a name that
            is no class, counts out of range, a model of another kind, and one whose features are
            not those of `samples`.
        RuntimeError: when the tower, run by hand from its last layer on, does not give the feature
            that the model gives: the map would not be of the model.
    """
    for name, value, least in (
        ("per_class", per_class, 1), ("drawn", drawn, 0), ("neighbours", neighbours, 0),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"relevance: {name} must be at least {least}, got {value}")
    if samples.paths is None:
        raise ValueError("relevance: samples must have paths, got features without pictures")
    forget = samples.classes.select(forget).names
    present = {samples.names[i] for i in samples.labels.unique().tolist()}
    missing = [name for name in forget if name not in present]
    if missing:
        raise ValueError(f"relevance: samples must have pictures of {missing[0]!r}, got none")
    check_module("relevance", model)
    _tower(unwrap(model))  # refused before a picture is opened
    others = samples.classes.select([n for n in samples.names if n in present or n in forget])
    near = nearest(others, forget, neighbours) if len(others) > len(forget) else ()

    rows = _spread(samples.labels, per_class)
    looked = samples.take(rows)
    edited = looked.edited(edit)
    on_text = getattr(edit, "side", "image") == "text"
    own = [_own_text(one.texts.double(), looked.labels) for one in (looked, edited)]
    maps: list[list[Tensor]] = [[], [], [], []]  # heat before, after; apart before, after
    for chunk in torch.arange(len(looked)).split(_CHUNK):
        part = looked.take(chunk)
        pictures = Pictures(part.paths, part.labels, samples.names)
        found = patch_features(model, preprocess, pictures, batch_size=batch_size)
        off = (found.pooled - part.features).norm(dim=1) / part.features.norm(dim=1)
        if not (off < _SAME_FEATURE).all():
            raise ValueError(
                "relevance: model must be the one that the features of samples come from, got "
                f"others, off by {float(off.max()):.2g} of their length, for {part.paths[0].name}"
            )
        grid = found.grid
        after = grid if on_text else _applied(edit, grid.flatten(0, 2)).cpu().view_as(grid)
        for out, z, (bare, apart) in zip(
            (maps[::2], maps[1::2]), (grid, after), own, strict=True
        ):
            for which, text in zip(out, (bare, apart), strict=True):
                heat = torch.einsum("nhwd,nd->nhw", z.double(), text[chunk]).relu()
                which.append(heat)
    heats = [torch.cat(one) for one in maps]
    seen = [one.correct() for one in (looked, edited)]

    def of(name: str, mask: Tensor) -> Heat:
        before, after, *apart = (one[mask].flatten(1) for one in heats)
        return Heat(
            name, mean(before.mean(1)), mean(after.mean(1)), _kept(before, after), _kept(*apart),
            mean(_correlation(*apart)), share(seen[0][mask]), share(seen[1][mask]),
        )  # fmt: skip

    gone = looked.of(forget)
    picks = [i for n in forget for i in looked.of([n]).nonzero().flatten().tolist()[:drawn]]
    if drawn:
        picks += [int(looked.of([n]).nonzero()[0]) for n in near]
    panels = [
        torch.cat(_panels(preprocess, looked.paths[i], heats[2][i], heats[3][i]), dim=1)
        for i in picks
    ]
    return RelevanceResult(
        forget=forget,
        grid=tuple(heats[0].shape[1:]),
        pictures=len(looked),
        forgotten=tuple(of(name, looked.of([name])) for name in forget),
        retained=of("the others", ~gone),
        neighbours=tuple(of(name, looked.of([name])) for name in near),
        drawn=tuple(looked.names[looked.labels[i]] for i in picks),
        picture=torch.cat(panels) if panels else torch.empty(0, 0, 3, dtype=torch.uint8),
    )


def patch_features(
    model: nn.Module,
    preprocess: Callable[..., Any],
    pictures: Pictures,
    *,
    batch_size: int = 64,
) -> Patches:
    """A feature for every position of the image tower's last layer, in the space of its output.

    Takes and raises what `relevance` does of a model; the model's hooks and modes are as before.
    """
    check_module("relevance", model)
    model = unwrap(model)
    tower = _tower(model)
    grids: list[Tensor] = []
    pooled: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        positions, whole = tower.project(args[0] if tower.of_input else output)
        count = positions.shape[1]
        h, w = tower.grid or (math.isqrt(count), math.isqrt(count))
        if h * w != count:
            raise ValueError(f"relevance: model must have a square grid, got {count} positions")
        grids.append(positions.float().cpu().unflatten(1, (h, w)))
        pooled.append(whole.float().cpu())

    handle = tower.site.register_forward_hook(keep)
    try:
        features = image_features(model, preprocess, pictures, batch_size=batch_size)
    finally:
        handle.remove()
    by_hand = torch.cat(pooled) if pooled else torch.empty(0, features.shape[1])
    off = (by_hand - features).norm(dim=1) / features.norm(dim=1).clamp_min(1e-12)
    if len(by_hand) != len(features) or not (off < _SAME_FEATURE).all():
        raise RuntimeError(
            "relevance: model must give the feature that its last layer gives by hand, got "
            f"{float(off.max()):.2g} of its length between them: {type(model).__name__} does more"
        )
    return Patches(torch.cat(grids), features)


class _Tower(NamedTuple):
    site: nn.Module  # hooked, once per batch
    project: Callable[[Any], tuple[Tensor, Tensor]]  # tokens -> positions [n, p, d], pooled [n, d]
    of_input: bool = False  # of the hooked module's input, not its output
    grid: tuple[int, int] | None = None  # None: square


def _tower(model: nn.Module) -> _Tower:
    if name := which_class(model, "transformers", *_TRANSFORMERS):
        vision, head = model.vision_model, model.visual_projection
        return _Tower(vision.encoder, lambda out: _by_token(head(vision.post_layernorm(out[0]))))
    package = next(
        (p for p in ("open_clip", "clip") if which_class(model, p, "CLIP", "CustomTextCLIP")), None
    )
    visual = unwrap(model.visual) if package else model
    if package and which_class(visual, package, "ModifiedResNet"):
        return _Tower(visual.attnpool, lambda x: _attention_pool(visual.attnpool, x), True)
    if package and which_class(visual, package, "VisionTransformer"):
        if package == "clip":  # its tokens come first, the batch second
            return _Tower(
                visual.transformer,
                lambda x: _by_token(visual.ln_post(x.transpose(0, 1)) @ visual.proj),
            )
        if visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
            return _Tower(
                visual.transformer, lambda x: _open_clip(visual, x), grid=visual.grid_size
            )
        name = f"VisionTransformer with pool {visual.pool_type!r} or an attention pooler"
    raise ValueError(
        "relevance: model must be CLIP or CustomTextCLIP of open_clip or OpenAI's CLIP with a "
        "VisionTransformer pooled by token or average, or a ModifiedResNet, or "
        f"{', '.join(_TRANSFORMERS)} of transformers, got {type(model).__name__} with "
        f"{name or type(visual).__name__}"
    )


def _by_token(projected: Tensor) -> tuple[Tensor, Tensor]:
    return projected[:, 1:], projected[:, 0]


def _open_clip(visual: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    projected = visual.ln_post(tokens) @ visual.proj
    if visual.pool_type == "tok":
        return _by_token(projected)
    if visual.final_ln_after_pool:
        return projected[:, 1:], visual.ln_post(tokens[:, 1:].mean(dim=1)) @ visual.proj
    return projected[:, 1:], projected[:, 1:].mean(dim=1)


def _attention_pool(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Each position's value as the pool projects it, and what the pool makes of all."""
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    x = x + pool.positional_embedding.to(x.dtype)
    value = pool.v_proj(x)
    q, k, v = (
        one.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        for one in (pool.q_proj(x[:, :1]), pool.k_proj(x), value)
    )
    pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)
    return pool.c_proj(value[:, 1:]), pool.c_proj(pooled)


def _spread(labels: Tensor, per_class: int) -> Tensor:
    """Rows of at most `per_class` pictures of each class, evenly spaced, in order."""
    rows = []
    for c in labels.unique():
        of_class = (labels == c).nonzero().flatten()
        count = min(per_class, len(of_class))
        rows.append(of_class[torch.arange(count) * len(of_class) // count])
    return torch.cat(rows).sort().values


def _own_text(texts: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """[n, d] each: every picture's class text, and that less the mean of the other texts."""
    others = (texts.sum(dim=0) - texts) / max(1, len(texts) - 1)
    return texts[labels], (texts - others)[labels]


def _kept(before: Tensor, after: Tensor) -> Measured:
    """All heat after over all heat before; the interval is of the linearised ratio."""
    a, b = after.mean(dim=1), before.mean(dim=1)
    if not b.sum() > 0:
        return Measured(math.nan, len(b))
    ratio = a.sum() / b.sum()
    found = mean(ratio + (a - ratio * b) / b.mean())
    return Measured(float(ratio), found.n, max(0.0, found.low), found.high)


def _correlation(before: Tensor, after: Tensor) -> Tensor:
    """[n] Pearson's r of rows; NaN where a row is flat up to rounding."""
    a, b = (one - one.mean(dim=1, keepdim=True) for one in (before, after))
    flat = (a.norm(dim=1) <= 1e-6 * before.norm(dim=1)) | (
        b.norm(dim=1) <= 1e-6 * torch.maximum(before.norm(dim=1), after.norm(dim=1))
    )
    return F.cosine_similarity(a, b, dim=1, eps=0).masked_fill(flat, math.nan)


def _panels(preprocess: Callable[..., Any], path: Any, *heats: Tensor) -> list[Tensor]:
    """[side, side, 3] uint8 each: what the model sees, and each map over it on one scale."""
    opened = open_picture(path)
    if hasattr(preprocess, "image_processor") or hasattr(preprocess, "preprocess"):
        seen = preprocess(images=[opened], return_tensors="pt")["pixel_values"][0]
    else:
        seen = preprocess(opened)
    seen = (seen.float().cpu() * _STD + _MEAN).clamp(0, 1)
    seen = F.interpolate(seen[None], (_PANEL, _PANEL), mode="bilinear", antialias=True)[0]
    faded = 0.45 * seen.mean(dim=0) + 0.55
    top = max(float(heats[0].max()), 1e-12)
    red, yellow = (torch.tensor(c)[:, None, None] for c in ((0.75, 0.0, 0.1), (1.0, 0.85, 0.2)))
    panels = [seen]
    for heat in heats:
        h = F.interpolate(heat[None, None].float(), (_PANEL, _PANEL), mode="bilinear")[0]
        h = (h / top).clamp(0, 1)
        panels.append((1 - 0.85 * h) * faded + 0.85 * h * (h * red + (1 - h) * yellow))
    return [
        F.pad(255 * one.clamp(0, 1), (2, 2, 2, 2), value=255).permute(1, 2, 0).byte()
        for one in panels
    ]


def _percent(value: float) -> str:
    return "an unmeasured share" if math.isnan(value) else f"{100 * value:.0f} %"


def _number(value: float) -> str:
    return "no measurable value" if math.isnan(value) else f"{value:.2f}"
