"""Edits of a model that is compiled already: they take effect, or the page's check says so."""

from __future__ import annotations

import pytest
import recipes
import torch
from editing import bits
from families import FAMILIES
from torch import nn
from torch._dynamo.utils import counters

import clipproj
from clipproj.models import encoder

RECIPE = "Edit a compiled model"


def test_the_recipe() -> None:
    recipes.run(RECIPE)
    assert counters["stats"]["unique_graphs"] == 1


def test_edits_come_and_go_in_one_graph() -> None:
    """Two of them, in a head with a bias, undone in order."""
    model, p = recipes.demo(), recipes.projectors()
    given, untouched = recipes.images(4), bits(model)
    call, eager = torch.compile(model.encode_image, fullgraph=True), model.encode_image
    before = call(given).clone()
    with torch._dynamo.config.patch(error_on_recompile=True):
        first = clipproj.edit(model, p["cat"])
        torch.testing.assert_close(call(given), eager(given))
        assert p["cat"].residual(call(given)).max() < 1e-5 < 1e-3 < p["cat"].residual(before).min()
        second = clipproj.edit(model, p["dog"], strength=0.5)
        torch.testing.assert_close(call(given), eager(given))
        second.undo()
        first.undo()
        assert torch.equal(call(given), before)
    assert bits(model) == untouched
    assert counters["stats"]["unique_graphs"] == 1


def test_transformers() -> None:
    model = FAMILIES["CLIPModel"].build().eval()
    p = clipproj.Projector(torch.eye(32)[:2])
    call = torch.compile(model.get_image_features, fullgraph=True)
    given = torch.randn(4, 3, 32, 32)
    before = encoder.features(call(pixel_values=given)).clone()
    with torch._dynamo.config.patch(error_on_recompile=True):
        with clipproj.edit(model, p):
            assert p.residual(encoder.features(call(pixel_values=given))).max() < 1e-5
        assert torch.equal(encoder.features(call(pixel_values=given)), before)


def frozen(visual: nn.Module, **options: bool) -> nn.Module:
    compiled = torch.compile(visual)
    with torch._inductor.config.patch(freezing=True, **options):
        compiled(recipes.images(4))
    return compiled


@pytest.mark.campaign
def test_the_check_finds_frozen_weights() -> None:
    check = recipes.run(RECIPE)["check_not_frozen"]
    torch._dynamo.reset()
    model, p = recipes.demo(), recipes.projectors()["cat"]
    served, given = frozen(model.visual), recipes.images(4)
    check(served, model.visual, given)
    with clipproj.edit(model, p) as edit:
        assert clipproj.verify(model, edit.receipt).exact
        assert p.residual(served(given)).max() > 1e-2  # the weight stayed, whatever the bias did
        with pytest.raises(RuntimeError, match="frozen weights"):
            check(served, model.visual, given)
        torch._dynamo.reset()
        check(served, model.visual, given)
        assert p.residual(served(given)).max() < 1e-5


@pytest.mark.campaign
def test_discarded_weights_are_refused() -> None:
    model = recipes.demo()
    frozen(model.visual, freezing_discard_parameters=True)
    with pytest.raises(ValueError, match="ErasedTensor, a quantised or otherwise special tensor"):
        clipproj.edit(model, recipes.projectors()["cat"])
