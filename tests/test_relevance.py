"""Heat maps: of the real pass, of nothing where the text is erased, and the model as it was."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clipproj import demo, nullspace
from clipproj.audit.patches import (
    _grad_times_attention,
    _pool_tokens,
    attention_maps,
    find_tower,
    off_by,
    patch_features,
    pixels,
)  # fmt: skip
from clipproj.audit.pictures import Pictures, image_features, load_pictures
from clipproj.audit.relevance import _correlation, _kept, relevance
from clipproj.audit.samples import Samples
from clipproj.audit.stats import plain
from clipproj.checkpoint import Loaded, load_model
from clipproj.projector import Projector
from clipproj.text import Embeddings, embed_classes

VIT = families.VIT | {"patch_size": 8, "layers": 2}
VITS: dict[str, Callable[[], nn.Module]] = {
    "open_clip": lambda: families.native(VIT),
    "open_clip, average": lambda: families.native(VIT | {"pool_type": "avg"}),
    "open_clip, norm after the average": lambda: families.native(
        VIT | {"pool_type": "avg", "final_ln_after_pool": True}
    ),
    "open_clip, not square": lambda: families.custom(VIT | {"image_size": (32, 16)}),
    "OpenAI": lambda: families.openai(2, 64),
    "CLIPModel": lambda: families.hugging_face(
        "CLIPModel",
        families._hf(max_position_embeddings=16),
        families._pixels(num_hidden_layers=2, patch_size=8),
        projection_dim=families.WIDTH,
    ),
    "ChineseCLIPModel": families.FAMILIES["ChineseCLIPModel"].make,
    "MetaClip2Model": families.FAMILIES["MetaClip2Model"].make,
}
RESNETS: dict[str, Callable[[], nn.Module]] = {
    "open_clip ResNet": lambda: families.native(families.RESNET | {"image_size": 64}),
    "OpenAI ResNet": families.FAMILIES["OpenAI ModifiedResNet"].make,
}
ALL = VITS | RESNETS
NAMES = ("ant", "bee", "cow")


@dataclass
class Setting:
    model: nn.Module
    preprocess: Callable[..., Any]
    pictures: Pictures

    def samples(self) -> Samples:
        features = image_features(self.model, self.preprocess, self.pictures)
        rows = F.normalize(torch.randn(3, features.shape[1]) + F.normalize(features[[0, 2, 4]]))
        classes = Embeddings(rows, NAMES, ("{}",), "random")
        return Samples(features, self.pictures.labels, classes, paths=self.pictures.paths)


def preprocess_for(model: nn.Module, size: tuple[int, int]) -> Callable[..., Any]:
    def one(image: Image.Image) -> Tensor:
        data = torch.tensor(list(image.resize(size[::-1]).tobytes()), dtype=torch.float32)
        return (data.view(*size, 3).permute(2, 0, 1) / 255 - 0.5) / 0.25

    if hasattr(model, "encode_image"):
        return one
    return lambda images, return_tensors: {"pixel_values": torch.stack([one(i) for i in images])}


@pytest.fixture
def setting(tmp_path: Path) -> Callable[[str], Setting]:
    """A random model of a family that does see differences, and two pictures of each class."""

    def make(name: str) -> Setting:
        torch.manual_seed(0)
        model = ALL[name]().eval()
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
            if key.endswith("bn3.weight"):  # zero by default: layers that do nothing
                nn.init.ones_(parameter)
        size = (
            (32, 16)
            if "square" in name
            else (64, 64)
            if name.startswith("open_clip R")
            else (32, 32)
        )
        paths = []
        for i in range(6):
            colours = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8).numpy()
            paths.append(tmp_path / f"{i}.png")
            Image.fromarray(colours).resize((40, 40), Image.Resampling.NEAREST).save(paths[-1])
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        return Setting(model, preprocess_for(model, size), Pictures(tuple(paths), labels, NAMES))

    return make


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
    grid, pooled = patch_features(s.model, s.preprocess, s.pictures, batch_size=4)
    with torch.no_grad():
        batch = pixels(s.model, s.preprocess, s.pictures.paths)
        want = tokens(name, s.model, batch)
    assert grid.shape[1:3] == (
        (4, 2) if "square" in name else (math.isqrt(grid[0, ..., 0].numel()),) * 2
    )
    torch.testing.assert_close(grid.flatten(1, 2), want[:, 1:])
    torch.testing.assert_close(pooled, image_features(s.model, s.preprocess, s.pictures))
    assert grid.flatten(1, 2).std(dim=1).min() > 1e-4  # positions differ


@pytest.mark.parametrize("name", ALL)
def test_the_pooled_feature_by_hand_is_the_models(name: str, setting: Callable) -> None:
    s = setting(name)
    tower, seen = find_tower(s.model), []
    handle = tower.site.register_forward_hook(
        lambda _, args, output: seen.append(tower.project(args[0] if tower.of_input else output))
    )
    real = image_features(s.model, s.preprocess, s.pictures)
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
    grid, pooled = patch_features(s.model, s.preprocess, s.pictures)
    assert off_by(grid.flatten(1, 2).mean(dim=1), pooled) < 1e-5


def test_another_feature_than_by_hand_is_an_error(setting: Callable) -> None:
    s = setting("open_clip")
    real = s.model.encode_image
    s.model.encode_image = lambda batch: 1.1 * real(batch)
    with pytest.raises(RuntimeError, match="feature that its last layer gives by hand"):
        patch_features(s.model, s.preprocess, s.pictures)
    assert not s.model.visual.transformer._forward_hooks


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", ["image", "text"])
def test_an_erased_text_has_no_heat_anywhere(name: str, side: str, setting: Callable) -> None:
    s = setting(name)
    one = s.samples()
    with pytest.warns(UserWarning, match="without keep"):
        edit = nullspace(one.classes.select(["bee"]), side=side)
    result = relevance(one, edit, ["bee"], s.model, s.preprocess, attention=True)
    (bee,) = result.forgotten
    assert bee.before > 0.01
    assert bee.after < 1e-5 * bee.before
    assert bee.kept < 1e-5
    assert bee.turned < 1e-5
    assert bee.before.n == 2
    assert result.retained.before.n == 4
    assert result.retained.kept > 0.3
    assert result.retained.attended > 0.3
    assert {heat.name for heat in result.neighbours} == {"ant", "cow"}
    by_text = [
        lambda z, i: (z * one.texts[1]).sum(dim=1),
        lambda z, i: (Projector(one.texts[1:2])(z) * one.texts[1]).sum(dim=1),
    ]
    before, after = attention_maps(s.model, s.preprocess, s.pictures, by_text, batch_size=4)
    assert before.shape == (6, *result.grid)
    assert before.amax() > 1e-4
    assert after.amax() < 1e-5 * before.amax()


def test_heat_is_what_the_edit_leaves_and_what_it_turns(setting: Callable) -> None:
    s = setting("open_clip")
    one = s.samples()
    direction = one.texts[1:2]
    for strength in (0.0, 0.25, 1.0, 2.0):
        edit = Projector(direction, strength=strength)
        (bee,) = relevance(one, edit, ["bee"], s.model, s.preprocess).forgotten
        # z.t goes to (1 - s) z.t at every position; at 2 what was cold is hot, and the reverse
        if strength <= 1:
            assert bee.kept == pytest.approx(1 - strength, abs=1e-5)
        else:
            assert bee.turned == pytest.approx(1 - bee.kept, abs=1e-5)
        if strength == 0:
            assert bee.turned == pytest.approx(0, abs=1e-5)
        assert math.isnan(bee.attended)
    unchanged = relevance(one, lambda rows: rows, ["bee"], s.model, s.preprocess)
    assert unchanged.retained.correlation == pytest.approx(1)
    assert unchanged.forgotten[0].answered_before == unchanged.forgotten[0].answered_after


def test_gradients_of_attention_are_those_of_autograd(setting: Callable) -> None:
    s = setting("CLIPModel")
    model = s.model
    model.set_attn_implementation("eager")
    batch = pixels(model, s.preprocess, s.pictures.paths)
    text = torch.randn(families.WIDTH)
    out = model.vision_model(pixel_values=batch, output_attentions=True)
    logit = (model.visual_projection(out.pooler_output) @ text).sum()
    grads = torch.autograd.grad(logit, out.attentions)
    rolled = torch.eye(out.attentions[0].shape[-1]).expand(6, -1, -1)
    for weights, grad in zip(out.attentions, grads, strict=True):
        rolled = rolled + (weights * grad).relu().mean(dim=1) @ rolled
    want = rolled[:, 0, 1:].detach()
    model.set_attn_implementation("sdpa")
    (got,) = attention_maps(model, s.preprocess, s.pictures, [lambda z, _: z @ text], batch_size=4)
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
        attention_maps(m, s.preprocess, s.pictures, [lambda z, _: z @ text])[0]
        for m in (s.model, other)
    )
    torch.testing.assert_close(one, two)


def test_an_averaged_tower_attends_from_every_position(setting: Callable) -> None:
    s = setting("open_clip, average")
    del s.model.visual.transformer.resblocks[0]  # in the last layer nothing asks the class token
    (got,) = attention_maps(s.model, s.preprocess, s.pictures, [lambda z, _: z[:, 0]])
    assert got.amax() > 1e-4


def test_what_the_pool_attends_to_adds_up_to_the_score(setting: Callable) -> None:
    s = setting("open_clip ResNet")
    pool, seen = s.model.visual.attnpool, []
    handle = pool.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        z = s.model.encode_image(pixels(s.model, s.preprocess, s.pictures.paths))
    handle.remove()
    text = torch.randn(families.WIDTH)
    flow = _grad_times_attention(pool, _pool_tokens(pool, seen[0][0]), text.expand(6, 1, -1))
    torch.testing.assert_close(flow.sum(dim=(1, 2, 3)), (z - pool.c_proj.bias) @ text)


@pytest.mark.parametrize("name", ["open_clip", "OpenAI ResNet", "CLIPModel"])
def test_the_model_is_left_as_it_was(name: str, setting: Callable) -> None:
    s = setting(name)
    one = s.samples()
    s.model.train()
    next(s.model.children()).eval()
    modes = [module.training for module in s.model.modules()]
    before = {key: value.clone() for key, value in s.model.state_dict().items()}

    def breaks(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no more pictures")

    edit = Projector(one.texts[:1])
    relevance(one, edit, ["ant"], s.model, s.preprocess, attention=True)
    with pytest.raises(OSError, match="no more pictures"):
        relevance(one, edit, ["ant"], s.model, breaks, attention=True)
    with pytest.raises(OSError, match="no more pictures"):
        attention_maps(s.model, breaks, s.pictures, [lambda z, _: z[:, 0]])
    assert [module.training for module in s.model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in s.model.modules())
    assert all(parameter.grad is None for parameter in s.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in s.model.state_dict().items())


def test_frozen_parameters_are_no_hindrance(setting: Callable) -> None:
    s = setting("open_clip")
    text = torch.randn(families.WIDTH)
    want = attention_maps(s.model, s.preprocess, s.pictures, [lambda z, _: z @ text])
    s.model.requires_grad_(False)
    with torch.inference_mode():
        got = attention_maps(s.model, s.preprocess, s.pictures, [lambda z, _: z @ text])
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


def test_relevance_refuses(setting: Callable) -> None:
    s = setting("open_clip")
    one = s.samples()
    edit = Projector(one.texts[:1])

    def call(
        samples: Samples = one, forget: Any = ("ant",), model: Any = s.model, **more: Any
    ) -> None:
        relevance(samples, edit, forget, model, s.preprocess, **more)

    without = Samples(one.features, one.labels, one.classes)
    other = Samples(1.1 * one.features, one.labels, one.classes, paths=one.paths)
    for text, options in (
        ("paths, got features without", {"samples": without}),
        ("must have a picture, got none", {"samples": one.take(one.labels < 0)}),
        ("forget must be some of the", {"forget": NAMES}),
        ("close: 'ant'", {"forget": ["aunt"]}),
        ("per_class must be at least 1", {"per_class": 0}),
        ("off by 0.0", {"samples": other}),
    ):
        with pytest.raises(ValueError, match=text):
            call(**options)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module"):
        call(model="clip")


def test_shares_and_correlations_by_hand() -> None:
    before = torch.tensor([[1.0, 2, 3], [0, 0, 0], [2, 2, 2]]).double()
    after = torch.tensor([[2.0, 4, 6], [1, 2, 3], [1, 1, 0]]).double()
    assert _kept(before, after) == pytest.approx(20 / 12)
    assert _kept(before, 0 * after) == 0
    assert math.isnan(_kept(0 * before, after))
    assert _correlation(before, after)[0] == pytest.approx(1)
    assert _correlation(before, after)[1:].isnan().all()  # a flat map has no correlation
    assert _correlation(before[:1], -after[:1]) == pytest.approx(-1)


@pytest.fixture(scope="module")
def embedded() -> tuple[Loaded, Samples]:
    loaded = load_model()
    found = load_pictures(demo.pictures_dir())
    names = ("cat", "dog", "house", "tiger")
    keep = [i for i in range(len(found)) if found.classes[found.labels[i]] in names]
    labels = [names.index(found.classes[found.labels[i]]) for i in keep]
    some = Pictures(tuple(found.paths[i] for i in keep), torch.tensor(labels), names)
    features = image_features(loaded.model, loaded.preprocess, some)
    templates = ["a photo of a {}."]
    classes = embed_classes(loaded.model, loaded.tokenizer, found.classes, templates)
    labels = torch.tensor([found.classes.index(names[label]) for label in labels])
    return loaded, Samples(features, labels, classes, paths=some.paths)


def test_the_embedded_model_loses_the_cat_and_keeps_the_others(embedded: tuple) -> None:
    loaded, one = embedded
    edit = nullspace(one.classes.select(["cat"]), one.classes.drop(["cat"]), "mean", strength=1.5)
    result = relevance(
        one, edit, ["cat"], loaded.model, loaded.preprocess, per_class=5, attention=True
    )
    (cat,) = result.forgotten
    assert result.grid == (2, 2)
    assert result.pictures == 20
    assert cat.answered_before > 0.5 > cat.answered_after
    assert max(cat.kept, cat.apart, cat.attended) < 0.2
    assert cat.turned > 0.1
    assert result.retained.correlation > 0.85
    assert min(result.retained.apart, result.retained.attended) > 0.7
    page = result.page()
    assert "turned against them" in page.lead
    assert page.tables[0].rows[0][0] == "cat"
    assert json.loads(json.dumps(plain(result), allow_nan=False))["grid"] == [2, 2]
    data = base64.b64decode(page.figures[0].source.split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (3 * 116, len(result.drawn) * 116)
    assert result.drawn[:2] == ("cat", "cat")
    # what the model sees, heat before, and none of it after
    seen, before, after = result.picture[:116].float().split(116, dim=1)
    colour = [float((one.amax(dim=2) - one.amin(dim=2)).mean()) for one in (before, after)]
    assert colour[0] > 20 > 5 > colour[1]
    assert seen.std() > 10


def test_nothing_is_drawn_when_nothing_is_asked_for(embedded: tuple) -> None:
    loaded, one = embedded
    edit = Projector(one.texts[:1])
    result = relevance(one, edit, ["cat"], loaded.model, loaded.preprocess, per_class=1, drawn=0)
    assert result.drawn == ()
    assert result.page().figures == ()
    assert len(result.page().tables[0].columns) == 9


def test_a_forgotten_class_without_pictures_is_told_and_has_no_map(setting: Callable) -> None:
    s = setting("open_clip")
    one = s.samples()
    some = one.take(one.labels > 0)
    result = relevance(some, Projector(one.texts[:1]), [NAMES[0], NAMES[1]], s.model, s.preprocess)
    assert [heat.name for heat in result.forgotten] == [NAMES[1]]
    assert f"There is no picture of “{NAMES[0]}”, so no map." in result.page().lead
