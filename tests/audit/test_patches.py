"""Features of positions and attention: of the real pass, by hand as by the libraries."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import families
import open_clip
import pytest
import torch
from torch import Tensor, nn
from towers import ALL, RESNETS, VITS, Setting, settings

from clipproj.audit.images import image_features
from clipproj.audit.patches import (
    _grad_times_attention,
    _pool_tokens,
    attention_maps,
    find_tower,
    off_by,
    patch_features,
    pixels,
)  # fmt: skip


@pytest.fixture
def setting(tmp_path: Path) -> Callable[[str], Setting]:
    return settings(tmp_path)


def tokens(name: str, model: nn.Module, batch: Tensor) -> Tensor:
    """[n, 1 + p, d]: the tower's last tokens by the library's own way to give them, projected."""
    if name.startswith("open_clip"):
        out = model.visual.forward_intermediates(
            batch,
            indices=1,
            output_fmt="NLC",
            output_extra_tokens=True,
            normalize_intermediates=True,
        )
        parts = out["image_intermediates_prefix"][-1], out["image_intermediates"][-1]
        return torch.cat(parts, dim=1) @ model.visual.proj
    if name == "OpenAI":  # it has no such way: ln_post is asked for every token instead
        seen: list[Tensor] = []
        handle = model.visual.transformer.resblocks[-1].register_forward_hook(
            lambda _, __, output: seen.append(output)
        )
        model.encode_image(batch)
        handle.remove()
        return model.visual.ln_post(seen[0].permute(1, 0, 2)) @ model.visual.proj
    hidden = model.vision_model(pixel_values=batch).last_hidden_state
    return model.visual_projection(model.vision_model.post_layernorm(hidden))


@pytest.mark.parametrize("name", VITS)
def test_positions_are_the_tokens_of_the_real_pass(name: str, setting: Callable) -> None:
    s = setting(name)
    grid, pooled = patch_features(s.model, s.preprocess, s.images, batch_size=4)
    with torch.no_grad():
        batch = pixels(s.model, s.preprocess, s.images.paths)
        want = tokens(name, s.model, batch)
    assert grid.shape[1:3] == (
        (4, 2) if "square" in name else (math.isqrt(grid[0, ..., 0].numel()),) * 2
    )
    torch.testing.assert_close(grid.flatten(1, 2), want[:, 1:])
    torch.testing.assert_close(pooled, image_features(s.model, s.preprocess, s.images))
    assert grid.flatten(1, 2).std(dim=1).min() > 1e-4  # positions differ


@pytest.mark.parametrize("name", ALL)
def test_the_pooled_feature_by_hand_is_the_models(name: str, setting: Callable) -> None:
    s = setting(name)
    tower, seen = find_tower(s.model), []
    handle = tower.site.register_forward_hook(
        lambda _, args, output: seen.append(tower.project(args[0] if tower.of_input else output))
    )
    real = image_features(s.model, s.preprocess, s.images)
    handle.remove()
    assert off_by(seen[0][1], real) < 1e-5


@pytest.mark.parametrize("name", RESNETS)
def test_a_pool_that_looks_everywhere_alike_gives_the_mean_of_the_positions(
    name: str, setting: Callable
) -> None:
    s = setting(name)
    pool = s.model.visual.attnpool
    with torch.no_grad():
        for parameter in (pool.q_proj.weight, pool.q_proj.bias):
            parameter.zero_()
        pool.positional_embedding[0] = pool.positional_embedding[1:].mean(dim=0)
    grid, pooled = patch_features(s.model, s.preprocess, s.images)
    assert off_by(grid.flatten(1, 2).mean(dim=1), pooled) < 1e-5


def test_another_feature_than_by_hand_is_an_error(setting: Callable) -> None:
    s = setting("open_clip")
    real = s.model.encode_image
    s.model.encode_image = lambda batch: 1.1 * real(batch)
    with pytest.raises(RuntimeError, match="feature that its last layer gives by hand"):
        patch_features(s.model, s.preprocess, s.images)
    assert not s.model.visual.transformer._forward_hooks


def test_gradients_of_attention_are_those_of_autograd(setting: Callable) -> None:
    s = setting("CLIPModel")
    model = s.model
    model.set_attn_implementation("eager")
    batch = pixels(model, s.preprocess, s.images.paths)
    text = torch.randn(families.WIDTH)
    out = model.vision_model(pixel_values=batch, output_attentions=True)
    logit = (model.visual_projection(out.pooler_output) @ text).sum()
    grads = torch.autograd.grad(logit, out.attentions)
    rolled = torch.eye(out.attentions[0].shape[-1]).expand(6, -1, -1)
    for weights, grad in zip(out.attentions, grads, strict=True):
        rolled = rolled + (weights * grad).relu().mean(dim=1) @ rolled
    want = rolled[:, 0, 1:].detach()
    model.set_attn_implementation("sdpa")
    (got,) = attention_maps(model, s.preprocess, s.images, [lambda z, _: z @ text], batch_size=4)
    torch.testing.assert_close(got.flatten(1), want)
    assert want.amax() > 1e-4


def test_attention_is_the_same_in_the_layouts_of_both_packages(setting: Callable) -> None:
    s = setting("OpenAI")
    other = open_clip.CLIP(
        families.WIDTH,
        {**families.VIT, "head_width": 64, "layers": 2},
        families.TEXT,
        quick_gelu=True,
    ).eval()
    other.visual.load_state_dict(s.model.visual.state_dict())
    text = torch.randn(families.WIDTH)
    one, two = (
        attention_maps(m, s.preprocess, s.images, [lambda z, _: z @ text])[0]
        for m in (s.model, other)
    )
    torch.testing.assert_close(one, two)


def test_an_averaged_tower_attends_from_every_position(setting: Callable) -> None:
    s = setting("open_clip, average")
    del s.model.visual.transformer.resblocks[0]  # in the last layer nothing asks the class token
    (got,) = attention_maps(s.model, s.preprocess, s.images, [lambda z, _: z[:, 0]])
    assert got.amax() > 1e-4


def test_what_the_pool_attends_to_adds_up_to_the_score(setting: Callable) -> None:
    s = setting("open_clip ResNet")
    pool, seen = s.model.visual.attnpool, []
    handle = pool.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        z = s.model.encode_image(pixels(s.model, s.preprocess, s.images.paths))
    handle.remove()
    text = torch.randn(families.WIDTH)
    flow = _grad_times_attention(pool, _pool_tokens(pool, seen[0][0]), text.expand(6, 1, -1))
    torch.testing.assert_close(flow.sum(dim=(1, 2, 3)), (z - pool.c_proj.bias) @ text)


def test_frozen_parameters_are_no_hindrance(setting: Callable) -> None:
    s = setting("open_clip")
    text = torch.randn(families.WIDTH)
    want = attention_maps(s.model, s.preprocess, s.images, [lambda z, _: z @ text])
    s.model.requires_grad_(False)
    with torch.inference_mode():
        got = attention_maps(s.model, s.preprocess, s.images, [lambda z, _: z @ text])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: families.FAMILIES["open_clip timm linear"].make(), "CLIP with TimmModel"),
        (families.coca, "got CoCa"),
        (
            lambda: families.native(families.VIT | {"attentional_pool": True}),
            "VisionTransformer that pools by attention",
        ),
        (lambda: families.FAMILIES["SiglipModel"].make(), "got SiglipModel"),
        (lambda: nn.Linear(2, 2), "got Linear"),
    ],
)
def test_other_models_are_refused_by_name(make: Callable, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        find_tower(make())
