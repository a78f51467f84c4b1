"""Attaching to live models of transformers: every way through, every row its own, or an error."""

from __future__ import annotations

import asyncio
import copy
import threading
import warnings

import pytest
import torch
from families import FAMILIES, ROWS, WIDTH, Family
from plugin_models import bank, oblique, projector
from torch import Tensor, nn

import clipproj
from clipproj import Projector
from clipproj.models.encoder import features
from clipproj.plugins.attach import attach
from clipproj.plugins.head import ProjectedHead

HUGGING_FACE = [name for name in FAMILIES if not name.startswith(("open_clip", "OpenAI"))]
BIASED = ["FlavaModel", "GroupViTModel", "SiglipModel", "AlignModel"]


def close(got: Tensor, want: Tensor) -> None:
    scale = want.norm(dim=-1).max()
    assert got.shape == want.shape
    assert (got - want).norm(dim=-1).max() < 1e-5 * scale


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def forward(family: Family, model: nn.Module) -> object:
    inputs = family.inputs("image") | family.inputs("text")
    with torch.no_grad():
        return model(**inputs)


@pytest.fixture
def clip() -> nn.Module:
    return FAMILIES["CLIPModel"].build()


CLIP = FAMILIES["CLIPModel"]


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("name", HUGGING_FACE)
@pytest.mark.filterwarnings("ignore:attach. an edit of the text")
def test_every_family_gives_edited_features_and_gets_its_own_module_back(
    name: str, tower: str
) -> None:
    family = FAMILIES[name]
    model = family.build()
    head = clipproj.find_heads(model)[tower]
    if head.width is None or (head.reason or "").startswith("the model has no"):
        with pytest.raises(ValueError, match=f"attach: tower must have a head, got {tower}"):
            attach(model, projector(), tower)
        return
    p = oblique(side="image")  # for the text tower its transpose: read and write swap
    before, keys = family.encode(model, tower), list(model.state_dict())
    modules = dict(model.named_modules())
    other = "text" if tower == "image" else "image"
    if "Projection" not in name:
        other_before = family.encode(model, other)
    want = (p if tower == "image" else p.T)(before)
    assert (want - before).norm() > 1e-2 * before.norm(), "the edit hardly changes a feature"

    attached = attach(model, p, tower)
    close(family.encode(model, tower), want)
    if "Projection" not in name:
        assert torch.equal(family.encode(model, other), other_before)
    assert list(model.state_dict()) == keys

    attached.detach()
    assert torch.equal(family.encode(model, tower), before)
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize(
    "name", ["CLIPModel", "SiglipModel", "Siglip2Model", "AlignModel", "ChineseCLIPModel"]
)
def test_forward_is_edited_too(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    before, p = forward(family, model), projector(strength=1.5)
    want = unit(p(family.encode(model, "image")))
    with attach(model, p):
        after = forward(family, model)
    close(after.image_embeds, want)
    assert torch.equal(after.text_embeds, before.text_embeds)
    change = (before.image_embeds - want) @ before.text_embeds.T
    slope = after.logits_per_image - before.logits_per_image
    scale = (slope * change).sum() / change.square().sum()  # logits are this times the similarity
    close(slope, scale * change)
    assert torch.equal(forward(family, model).image_embeds, before.image_embeds)


def test_both_ways_that_transformers_returns_features(clip: nn.Module) -> None:
    pixels, p = CLIP.inputs("image"), projector()
    want = p(CLIP.encode(clip, "image"))
    with attach(clip, p), torch.no_grad():
        close(clip.get_image_features(**pixels).pooler_output, want)
        close(clip.get_image_features(**pixels, return_dict=False)[1], want)


# a bank: PEFT's failures (its get_image_features edits every row by the active adapter; an
# exception leaves its hooks behind) must not be possible here


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel", "AlignModel", "FlavaModel"])
def test_each_row_has_its_own_projector_in_get_image_features_and_forward(name: str) -> None:
    family = FAMILIES[name]
    model, b = family.build(), bank()
    before = family.encode(model, "image")
    want = torch.stack(
        [before[0], b.projector("acme")(before[1]), b.projector("umbrella")(before[2])]
    )
    attached = attach(model, b)
    with attached.rows([None, "acme", "umbrella"]):
        got = family.encode(model, "image")
        close(got, want)
        assert torch.equal(got[0], before[0])
        if name != "FlavaModel":  # whose forward() does not project
            close(forward(family, model).image_embeds, unit(want))
    with attached.rows(b.index(["acme"] * ROWS), [0.0, 0.5, 1.0]):
        weights = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(before[0].numel() // WIDTH)
        close(family.encode(model, "image"), b.projector("acme")(before, weights))
    with attached.rows("umbrella", 0.5):
        close(family.encode(model, "image"), b.projector("umbrella")(before, 0.5))
    with attached.rows([("acme", "umbrella")] * ROWS):
        close(
            family.encode(model, "image"),
            clipproj.compose(b.projector("acme"), b.projector("umbrella"))(before),
        )


def test_a_bank_lets_no_row_through_that_nobody_spoke_for(clip: nn.Module) -> None:
    attached = attach(clip, bank())
    with pytest.raises(RuntimeError, match="must be told whose"):
        CLIP.encode(clip, "image")
    with pytest.raises(RuntimeError, match="must be told whose"):
        forward(CLIP, clip)
    for names in (["acme"], ["acme"] * (ROWS + 1), []):
        with (
            attached.rows(names),
            pytest.raises(RuntimeError, match=f"as many as the call has, {ROWS}, got {len(names)}"),
        ):
            CLIP.encode(clip, "image")
    with (
        pytest.raises(ValueError, match="names must be in the bank, got 'x'"),
        attached.rows(["x"]),
    ):
        pass
    with pytest.raises(RuntimeError, match="must be told whose"):
        CLIP.encode(clip, "image")


def test_an_exception_inside_leaves_nothing_behind(clip: nn.Module) -> None:
    before, b = CLIP.encode(clip, "image"), bank()
    attached = attach(clip, b)
    with pytest.raises(ZeroDivisionError), attached.rows(["acme"] * ROWS):
        raise ZeroDivisionError
    with attached.rows(["acme"] * ROWS), pytest.raises(ValueError, match="doesn't match"):
        clip.get_image_features(torch.zeros(ROWS, 3, 8, 8))  # the model itself refuses
    with pytest.raises(RuntimeError, match="must be told whose"):
        CLIP.encode(clip, "image")
    with attached.rows([None] * ROWS):
        assert torch.equal(CLIP.encode(clip, "image"), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in clip.modules())
    with pytest.raises(ZeroDivisionError), attached:
        raise ZeroDivisionError
    assert torch.equal(CLIP.encode(clip, "image"), before)


def test_a_tenant_removed_in_the_meantime_is_refused(clip: nn.Module) -> None:
    b = bank()
    attached = attach(clip, b)
    with attached.rows(["acme"] * ROWS):
        b.remove("acme")
        with pytest.raises(RuntimeError, match="spans must lie within"):
            CLIP.encode(clip, "image")


def test_threads_and_tasks_that_share_a_model_do_not_mix(clip: nn.Module) -> None:
    b, names = bank(), ["acme", "umbrella", None]
    before = CLIP.encode(clip, "image")
    want = {n: before if n is None else b.projector(n)(before) for n in names}
    attached = attach(clip, b)
    meet, wrong = threading.Barrier(len(names)), []

    def serve(name: str | None) -> None:
        for _ in range(5):
            with attached.rows([name] * ROWS):
                meet.wait()
                got = CLIP.encode(clip, "image")
                meet.wait()
            if (got - want[name]).norm() > 1e-5 * before.norm():
                wrong.append(name)

    threads = [threading.Thread(target=serve, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

    async def task(name: str | None) -> None:
        with attached.rows([name] * ROWS):
            await asyncio.sleep(0)
            got = CLIP.encode(clip, "image")
            await asyncio.sleep(0)
        close(got, want[name])

    async def tasks() -> None:
        await asyncio.gather(*(task(name) for name in names * 3))

    asyncio.run(tasks())


def test_a_copy_of_the_model_does_not_hear_what_is_said_to_the_original(clip: nn.Module) -> None:
    b = bank()
    attached = attach(clip, b)
    twin = copy.deepcopy(clip)
    with attached.rows(["acme"] * ROWS):
        CLIP.encode(clip, "image")
        with pytest.raises(RuntimeError, match="must be told whose"):
            CLIP.encode(twin, "image")
    with twin.visual_projection.rows(["acme"] * ROWS), attached.rows([None] * ROWS):
        before = CLIP.encode(clip, "image")
        close(CLIP.encode(twin, "image"), b.projector("acme")(before))


# torch.compile


@pytest.mark.parametrize("compiled_first", [False, True])
def test_a_compiled_model_is_edited_in_one_graph(clip: nn.Module, compiled_first: bool) -> None:
    torch.compiler.reset()
    p, want = projector(), forward(CLIP, clip).image_embeds
    compiled = torch.compile(clip, fullgraph=True, backend="aot_eager")
    if compiled_first:
        close(forward(CLIP, compiled).image_embeds, want)
    want = unit(p(CLIP.encode(clip, "image")))
    with attach(compiled, p):
        close(forward(CLIP, compiled).image_embeds, want)
    if compiled_first:
        assert (forward(CLIP, compiled).image_embeds - want).norm() > 1e-3


def test_a_compiled_model_takes_other_rows_without_another_graph(clip: nn.Module) -> None:
    torch.compiler.reset()
    b = bank()
    before = CLIP.encode(clip, "image")
    attached = attach(clip, b)
    compiled = torch.compile(clip, fullgraph=True, backend="aot_eager")

    def served(names: list[str | None], strength: object = None) -> Tensor:
        with attached.rows(names, strength):
            return forward(CLIP, compiled).image_embeds

    def want(names: list[str | None]) -> Tensor:
        rows = [z if n is None else b.projector(n)(z) for z, n in zip(before, names, strict=True)]
        return unit(torch.stack(rows))

    first = ["acme", None, "umbrella"]
    close(served(first), want(first))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for names in (["umbrella", "acme", None], ["acme"] * 3, [None] * 3):
            close(served(names), want(names))
    close(served(["acme"] * 3, [0.0, 1.0, 1.0])[1:], want(["acme"] * 3)[1:])
    with pytest.raises(Exception, match="rows"):
        forward(CLIP, compiled)
    with pytest.raises(Exception, match="rows"):
        served(["acme"])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_bank_is_not_exported_with_the_rows_of_one_call(clip: nn.Module) -> None:
    """They would be constants of the graph: whoever runs it would get this tenant's vectors."""

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = clip

        def forward(self, pixels: Tensor) -> Tensor:
            return self.clip.get_image_features(pixels).pooler_output

    pixels = CLIP.inputs("image")["pixel_values"]
    attached = attach(clip, bank())
    with attached.rows(["acme"] * ROWS):
        for strict in (False, True):
            with pytest.raises(Exception, match="must not be exported"):
                torch.export.export(Images(), (pixels,), strict=strict)
        with pytest.raises(RuntimeError, match="must not be exported"):
            torch.jit.trace(Images(), pixels)
    attached.detach()
    p = projector()
    want = p(CLIP.encode(clip, "image"))
    with attach(clip, p), torch.no_grad():
        close(torch.export.export(Images(), (pixels,)).module()(pixels), want)


def test_a_tower_that_was_compiled_alone_notices(clip: nn.Module) -> None:
    torch.compiler.reset()
    family, p = FAMILIES["SiglipModel"], projector()
    model = family.build()
    model.vision_model = torch.compile(model.vision_model, backend="aot_eager")
    before = family.encode(model, "image")
    with attach(model, p):
        close(family.encode(model, "image"), p(before))
    close(family.encode(model, "image"), before)


# what it does to the model, and what it refuses


def test_the_head_moves_casts_and_loads_as_before(clip: nn.Module) -> None:
    head, p = clip.visual_projection, projector()
    attached = attach(clip, p)
    assert clip.visual_projection.weight is head.weight
    clip.to(torch.bfloat16).train()
    assert head.weight.dtype == torch.bfloat16
    assert head.training
    assert p.read.dtype == torch.float32
    clip.eval().float()
    fresh = {k: torch.randn_like(v) for k, v in clip.state_dict().items() if v.is_floating_point()}
    clip.load_state_dict(fresh, strict=False, assign=True)
    want = p(features(_plain(clip, head)))
    close(CLIP.encode(clip, "image"), want)
    attached.detach()
    assert clip.visual_projection is head
    assert torch.equal(head.weight, fresh["visual_projection.weight"])


def _plain(model: nn.Module, head: nn.Module) -> Tensor:
    module, model.visual_projection = model.visual_projection, head
    try:
        return CLIP.encode(model, "image")
    finally:
        model.visual_projection = module


def test_half_types_train_and_hooks(clip: nn.Module) -> None:
    p = projector()
    ran = []
    clip.visual_projection.register_forward_hook(lambda *_: ran.append(True))
    want = p(CLIP.encode(clip, "image"))
    with attach(clip, p) as attached:
        assert not attached.module.fused
        close(CLIP.encode(clip, "image"), want)
        assert len(ran) == 2
        loss = clip.get_image_features(**CLIP.inputs("image")).pooler_output.square().sum()
        loss.backward()
        grad = clip.visual_projection.weight.grad
        assert grad.norm() > 0
        assert (p.read @ grad).norm() < 1e-4 * grad.norm(), "an erased direction learns nothing"


def test_refusals(clip: nn.Module) -> None:
    with pytest.raises(ValueError, match="find_heads: model must be"):
        attach(nn.Linear(2, 2), projector())
    with pytest.raises(TypeError, match="projector must be a Projector or a ProjectorBank"):
        attach(clip, torch.eye(WIDTH))
    with pytest.raises(ValueError, match="of width 32"):
        attach(clip, Projector(torch.eye(8)[:2]))
    with pytest.raises(ValueError, match="of side 'text', got 'image'"):
        attach(clip, bank(), "text")
    affine = Projector(torch.eye(WIDTH)[:2], offset=torch.ones(2))
    with pytest.raises(ValueError, match="no offset on the text tower"):
        attach(clip, affine, "text")
    foreign = Projector(torch.eye(WIDTH)[:2], provenance={"model": "m", "head_hash": "0" * 64})
    with pytest.raises(ValueError, match="must come from this model"):
        attach(clip, foreign)
    with pytest.raises(TypeError, match="must be a ProjectorBank to choose from"):
        attach(clip, foreign, force=True).rows(["acme"]).__enter__()
    with pytest.raises(ValueError, match=r"exactly an nn\.Linear"):
        attach(clip, projector())  # the one before still stands
    with pytest.raises(ValueError, match=r"exactly an nn\.Linear"):
        clipproj.edit(clip, projector())
    siglip = FAMILIES["SiglipModel"].build()
    attached = attach(siglip, projector())
    with pytest.raises(ValueError, match="attached before"):
        attach(siglip, projector())
    attached.detach()
    with pytest.raises(RuntimeError, match="must be the one attached"):
        attached.detach()
    alone = FAMILIES["CLIPModel"].build()
    alone.visual_projection = torch.compile(alone.visual_projection)
    with pytest.raises(ValueError, match="compiled or wrapped by itself"):
        attach(alone, projector())
    with pytest.raises(TypeError, match="list of names"):
        ProjectedHead(nn.Linear(2, WIDTH), bank()).rows(3).__enter__()
    with pytest.raises(ValueError, match=r"in \[0, 2\], got -1"):
        ProjectedHead(nn.Linear(2, WIDTH), bank()).rows(["acme"], -1).__enter__()
    with pytest.raises(ValueError, match=r"strength must be 0-dim or \[1\]"):
        ProjectedHead(nn.Linear(2, WIDTH), bank()).rows(["acme"], [1.0, 1.0]).__enter__()


def test_the_text_tower_warns(clip: nn.Module) -> None:
    with pytest.warns(UserWarning, match="can vanish"):
        attach(clip, projector(), "text")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(clip, projector())
