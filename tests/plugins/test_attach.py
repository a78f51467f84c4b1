"""Attaching to live models of open_clip and OpenAI's clip, and one-sided projectors to any."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES, WIDTH
from torch import Tensor
from torch.nn import functional

from clipproj import Projector, find_heads
from clipproj.plugins.attach import attach

NATIVE = [name for name in FAMILIES if name.startswith(("open_clip", "OpenAI"))]


def one_sided(rows: Tensor, k: int = 3) -> Projector:
    """Half-spaces that the mean of these rows, such as a model gives, is not in."""
    g = torch.Generator().manual_seed(0)
    read = functional.normalize(torch.randn(k, rows.shape[-1], generator=g), dim=1)
    read = read * (read @ rows.mean(0)).sign()[:, None]
    return Projector(read, read, torch.full((k,), -1e-3), gram=read @ read.T)


def by_hand(p: Projector, features: Tensor) -> Tensor:
    length = features.norm(dim=-1, keepdim=True)
    return p(features / length) * length


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.filterwarnings("ignore:attach. an edit of the text")
def test_every_family_gives_edited_features_and_gets_its_own_module_back(
    name: str, tower: str
) -> None:
    family = FAMILIES[name]
    model = family.build()
    before, keys = family.encode(model, tower), list(model.state_dict())
    p = one_sided(before)
    p.side = tower
    if ("visual" if tower == "image" else "text") not in model._modules:
        with pytest.raises(ValueError, match=r"attach: tower must be a module of \w+, got text"):
            attach(model, p, tower)
        return
    width = find_heads(model)[tower].width
    if width not in (None, p.dim):  # tiny ones without a head say another than they have
        with pytest.raises(ValueError, match=f"attach: projector must be of width {width}"):
            attach(model, p, tower)
        return
    modules = dict(model.named_modules())
    other = "text" if tower == "image" else "image"
    other_before = family.encode(model, other)
    want = by_hand(p, before)
    assert (want - before).abs().max() > 1e-3 * before.abs().max()

    with attach(model, p, tower) as attached:
        assert torch.allclose(family.encode(model, tower), want, atol=1e-5 * before.norm())
        assert torch.equal(family.encode(model, other), other_before)
        assert list(model.state_dict()) == keys
        with pytest.raises(ValueError, match=r"attach: \w+ must be the model's own module"):
            attach(model, p, tower)
    assert not attached.active
    assert torch.equal(family.encode(model, tower), before)
    assert dict(model.named_modules()) == modules


def test_a_tower_keeps_what_others_ask_of_it() -> None:
    family = FAMILIES["open_clip ViT"]
    model = family.build()
    size, before = model.visual.image_size, family.encode(model, "image")
    p = one_sided(before)
    want = by_hand(p, before)
    attach(model, p)
    assert model.visual.image_size == size
    with pytest.raises(AttributeError, match="nothing_of_it"):
        _ = model.visual.nothing_of_it
    again = copy.deepcopy(model)
    assert torch.allclose(family.encode(again, "image"), want, atol=1e-5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    out = compiled(**{"image": family.inputs("image")["pixel_values"]})
    features = out["image_features"] if isinstance(out, dict) else out[0]
    assert torch.allclose(features, functional.normalize(want, dim=-1), atol=1e-5)


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_one_sided_on_transformers(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    before = family.encode(model, "image")
    p = one_sided(before)
    with attach(model, p):
        assert torch.allclose(family.encode(model, "image"), by_hand(p, before), atol=1e-5)


def test_a_one_sided_projector_of_the_other_tower_is_refused() -> None:
    model = FAMILIES["CLIPModel"].build()
    with pytest.raises(ValueError, match="must be linear on the text tower, got a one-sided one"):
        attach(model, one_sided(torch.ones(1, WIDTH)), "text")


def test_harmless_rows_keep_their_bits() -> None:
    z = torch.randn(100, WIDTH)
    p = one_sided(z)
    unit = functional.normalize(z, dim=1)
    harmless = (unit @ p.read.T < -2e-3).all(1)
    assert 0 < harmless.sum() < 100
    assert torch.equal(p.edit_features(z)[harmless], z[harmless])
    assert (p.edit_features(z) @ p.read.T <= 1e-6).all()
