"""What an image tower makes of each position of an image: features, and how far it is attended to.

Both are read off the real forward pass by hooks that are gone afterwards. What is done by hand from
the last layer on is checked against the feature that the model itself gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipproj.audit.images import Images, image_features, open_image
from clipproj.models.encoder import evaluating, image_inputs, tower_features
from clipproj.models.heads import check_module, unwrap, which_class
from clipproj.refusal import Refusal

_TRANSFORMERS = ("CLIPModel", "ChineseCLIPModel", "MetaClip2Model")
_SAME_FEATURE = 2e-2  # relative: half precision is off by 5e-3, another head by far more


class Patches(NamedTuple):
    """One feature per position: grid [n, h, w, d]; pooled [n, d], what the tower gives; float32."""

    grid: Tensor
    pooled: Tensor


class Tower(NamedTuple):
    """An image tower with one token per position.

    Attributes:
        site: the module to hook, which runs once per batch.
        project: what the hook sees to (positions [n, p, d], pooled [n, d]).
        attentions: its attention modules, first to last.
        of_input: whether project takes the hooked module's input, not its output.
        tokens_first: whether tokens come before the batch in it.
        averaged: whether the mean of the positions is pooled, not the class token.
        grid: (h, w), or None for a square.
    """

    site: nn.Module
    project: Callable[[Any], tuple[Tensor, Tensor]]
    attentions: tuple[nn.Module, ...]
    of_input: bool = False
    tokens_first: bool = False
    averaged: bool = False
    grid: tuple[int, int] | None = None

    def over_grid(self, values: Tensor) -> Tensor:
        """[n, p, ...] as [n, h, w, ...]. ValueError for a count that is no such grid."""
        count = values.shape[1]
        h, w = self.grid or (math.isqrt(count), math.isqrt(count))
        if h * w != count:
            raise Refusal("relevance", "model", f"must have a square grid, got {count} positions")
        return values.unflatten(1, (h, w))


def patch_features(
    model: nn.Module,
    preprocess: Callable[..., Any],
    images: Images,
    *,
    batch_size: int = 64,
) -> Patches:
    """A feature for every position of the image tower's last layer, in the space of its output.

    A ViT's tokens go through its last norm and projection. A ModifiedResNet has no tokens: what its
    attention pool would give if it looked at one position alone stands in, `c_proj(v_proj(x + p))`
    (MaskCLIP, arXiv 2112.01071).

    Takes what `image_features` takes; the model is left as it was.

    Raises:
        TypeError, ValueError: for a model that `find_tower` refuses; as `image_features`.
        RuntimeError: when the last layer, by hand, does not give the model's own feature.
    """
    tower = find_tower(model)
    grids: list[Tensor] = []
    pooled: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        positions, whole = tower.project(args[0] if tower.of_input else output)
        grids.append(tower.over_grid(positions.float().cpu()))
        pooled.append(whole.float().cpu())

    handle = tower.site.register_forward_hook(keep)
    try:
        real = image_features(model, preprocess, images, batch_size=batch_size)
    finally:
        handle.remove()
    by_hand = torch.cat(pooled) if pooled else real[:0]
    off = off_by(by_hand, real) if len(by_hand) == len(real) else math.inf
    if not off < _SAME_FEATURE:
        raise RuntimeError(
            "relevance: model must give the feature that its last layer gives by hand, got "
            f"{off:.2g} of its length between them: {type(unwrap(model)).__name__} does more"
        )
    return Patches(torch.cat(grids), real)


def attention_maps(
    model: nn.Module,
    preprocess: Callable[..., Any],
    images: Images,
    logits: Sequence[Callable[[Tensor, Tensor], Tensor]],
    *,
    batch_size: int = 64,
) -> list[Tensor]:
    """Which positions a score of the image rests on, by gradient times attention.

    Transformer-MM-Explainability (arXiv 2103.15679) for the image tower: from R = I, each attention
    A adds mean over heads of relu(dL/dA * A) R; the map is the class token's row of R, without its
    own entry. dL/dA is G V^T for the gradient G of the heads' outputs, so whatever kernel attends,
    A and dL/dA are had from the input of the attention and the gradient of its output.
    A ModifiedResNet has one attention, that of its pool.

    Args:
        logits: each from features [b, d] and int64 rows of `images` [b] to L [b], by autograd.

    Returns:
        [n, h, w] float32 for each of `logits`, on the CPU; all 0 where L does not depend on it.

    Raises:
        TypeError, ValueError: for a model that `find_tower` refuses, or with attention modules
            other than torch's, transformers' and the pool's.
        RuntimeError: for logits that autograd cannot follow.
    """
    tower = find_tower(model)
    for module in tower.attentions:
        if not isinstance(module, nn.MultiheadAttention) and not hasattr(module, "v_proj"):
            name = f"{type(module).__module__}.{type(module).__qualname__}"
            raise Refusal(
                "relevance", "model", f"must have plain attention for attention, got {name}"
            )
    maps: list[list[Tensor]] = [[] for _ in logits]
    model = unwrap(model)
    for rows in torch.arange(len(images), device="cpu").split(batch_size):
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any, seen: list = seen) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            seen.append((module, x, output[0] if isinstance(output, tuple) else output))

        handles = [m.register_forward_hook(keep, with_kwargs=True) for m in tower.attentions]
        # inference_mode(False): in a caller's inference mode nothing would be followed
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            try:
                paths = [images.paths[i] for i in rows.tolist()]
                z = _encode(model, pixels(model, preprocess, paths).requires_grad_())
            finally:
                for handle in handles:
                    handle.remove()
            outputs = [output for _, _, output in seen]
            for out, logit in zip(maps, logits, strict=True):
                grads = torch.autograd.grad(logit(z, rows).sum(), outputs, retain_graph=True)
                with torch.no_grad():
                    layers = [(m, x, g) for (m, x, _), g in zip(seen, grads, strict=True)]
                    out.append(tower.over_grid(_rollout(tower, layers).cpu()))
    return [torch.cat(one) for one in maps]


def pixels(model: nn.Module, preprocess: Callable[..., Any], paths: Sequence[Any]) -> Tensor:
    """[n, 3, h, w]: images as the model takes them, on its device and in its dtype."""
    opened = [open_image(path) for path in paths]
    return image_inputs(model, preprocess, opened)["pixel_values"]


def off_by(got: Tensor, want: Tensor) -> float:
    """The largest difference of two rows, relative to the length of the wanted one."""
    return float(((got - want).norm(dim=1) / want.norm(dim=1).clamp_min(1e-12)).max())


def find_tower(model: nn.Module) -> Tower:
    """The image tower of `model`, if it is one whose positions can be told apart.

    Raises TypeError for what is no nn.Module, ValueError for a model or a tower of another kind.
    """
    check_module("relevance", model)
    model = unwrap(model)
    if which_class(model, "transformers", *_TRANSFORMERS):
        vision, head = model.vision_model, model.visual_projection
        return Tower(
            vision.encoder,
            lambda output: _by_token(head(vision.post_layernorm(output[0]))),
            tuple(layer.self_attn for layer in vision.encoder.layers),
        )
    package = next(
        (p for p in ("open_clip", "clip") if which_class(model, p, "CLIP", "CustomTextCLIP")), None
    )
    visual = unwrap(model.visual) if package else model
    if package and which_class(visual, package, "ModifiedResNet"):
        pool = visual.attnpool
        return Tower(pool, lambda x: _attention_pool(pool, x), (pool,), of_input=True)
    what = f"{type(model).__name__} with {type(visual).__name__}"
    if package and which_class(visual, package, "VisionTransformer"):
        blocks = visual.transformer
        attentions = tuple(block.attn for block in blocks.resblocks)
        if package == "clip":
            return Tower(
                blocks,
                lambda x: _by_token(visual.ln_post(x.transpose(0, 1)) @ visual.proj),
                attentions,
                tokens_first=True,
            )
        if visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
            return Tower(
                blocks,
                lambda x: _open_clip(visual, x),
                attentions,
                tokens_first=not blocks.batch_first,
                averaged=visual.pool_type == "avg",
                grid=visual.grid_size,
            )
        what += f" that pools by {'attention' if visual.attn_pool else visual.pool_type}"
    raise Refusal(
        "relevance",
        "model",
        "must be CLIP or CustomTextCLIP of open_clip, or OpenAI's CLIP, with a "
        "VisionTransformer pooled by token or average or with a ModifiedResNet, or "
        f"{', '.join(_TRANSFORMERS)} of transformers, got {what}",
    )


def _encode(model: nn.Module, batch: Tensor) -> Tensor:
    return tower_features("relevance", model, "image", {"pixel_values": batch})


def _by_token(projected: Tensor) -> tuple[Tensor, Tensor]:
    return projected[:, 1:], projected[:, 0]


def _open_clip(visual: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    projected = visual.ln_post(tokens) @ visual.proj
    if visual.pool_type == "tok":
        return _by_token(projected)
    if visual.final_ln_after_pool:
        return projected[:, 1:], visual.ln_post(tokens[:, 1:].mean(dim=1)) @ visual.proj
    return projected[:, 1:], projected[:, 1:].mean(dim=1)


def _pool_tokens(pool: nn.Module, x: Tensor) -> Tensor:
    """[n, 1 + h w, c]: what the attention pool attends over, the mean first."""
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    return x + pool.positional_embedding.to(x.dtype)


def _attention_pool(pool: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Each position's value as the pool projects it, and what the pool makes of all."""
    x = _pool_tokens(pool, x)
    value = pool.v_proj(x)
    q, k, v = (
        one.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        for one in (pool.q_proj(x[:, :1]), pool.k_proj(x), value)
    )
    pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)
    return pool.c_proj(value[:, 1:]), pool.c_proj(pooled)


def _rollout(tower: Tower, layers: Sequence[tuple[nn.Module, Tensor, Tensor]]) -> Tensor:
    """[n, p] float32 from each attention's input and the gradient of its output, first to last."""
    total = None
    for module, x, grad in layers:
        if tower.of_input:  # the pool: one query, its mean token
            x, grad = _pool_tokens(module, x), grad[:, None]
        elif tower.tokens_first:
            x, grad = x.transpose(0, 1), grad.transpose(0, 1)
        added = _grad_times_attention(module, x, grad).relu().mean(dim=1)
        added = F.pad(added, (0, 0, 0, x.shape[1] - added.shape[1]))  # queries nobody asks
        total = added if total is None else total + added + added @ total
    rows = slice(1, None) if tower.averaged else slice(0, 1)
    return total[:, rows, 1:].mean(dim=1)  # `total` is R - I


def _grad_times_attention(module: nn.Module, x: Tensor, grad: Tensor) -> Tensor:
    """[n, heads, queries, tokens]: A * dL/dA, of input [n, tokens, c], grad [n, queries, c']."""
    if isinstance(module, nn.MultiheadAttention):
        weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
        out = module.out_proj.weight
    else:
        projections = (module.q_proj, module.k_proj, module.v_proj)
        weights, biases = [p.weight for p in projections], [p.bias for p in projections]
        out = (module.c_proj if hasattr(module, "c_proj") else module.out_proj).weight
    x = x.float()
    q, k, v = (
        F.linear(x, w.float(), b.float()).unflatten(2, (module.num_heads, -1)).transpose(1, 2)
        for w, b in zip(weights, biases, strict=True)
    )
    g = (grad.float() @ out.float()).unflatten(2, (module.num_heads, -1)).transpose(1, 2)
    q = q[:, :, : g.shape[2]]
    attention = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return attention * (g @ v.transpose(2, 3))
