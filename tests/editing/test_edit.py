"""Edits of every family and tower: what they fold, what they refuse, what they leave alone."""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import BIASED, bits, projector, tensors
from families import FAMILIES, WIDTH
from torch import Tensor, nn

from clipproj.editing.edit import edit, edits, undo
from clipproj.editing.log import Edit
from clipproj.editing.receipt import Receipt
from clipproj.editing.verify import verify
from clipproj.models.heads import find_heads, head_hash, head_tensors
from clipproj.projector import Projector

TOWERS = ("image", "text")
pytestmark = pytest.mark.filterwarnings("ignore:edit. an edit of the text head can vanish")


@pytest.fixture
def model() -> nn.Module:
    return FAMILIES[BIASED].build()


built = functools.cache(lambda family: FAMILIES[family].build())


# Every family


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tower: str) -> None:
    model, head = built(family), find_heads(built(family))[tower]
    untouched = bits(model)
    if not head.foldable:
        width = head.width or WIDTH
        with pytest.raises(ValueError, match="tower must have a foldable head") as refusal:
            edit(model, projector(dim=width), tower)
        assert head.reason in str(refusal.value)
        if "no image tower" not in head.reason and "no text tower" not in head.reason:
            assert "project the features instead" in str(refusal.value)
        assert (bits(model), edits(model)) == (untouched, ())
        return

    # an offset moves features only through the bias: it shows a fold that forgets one
    p = projector("affine" if head.bias else "oblique", dim=head.width)
    if tower == "text":
        p = Projector(p.read, p.write, p.offset, p.strength, side="text")
    before = FAMILIES[family].encode(model, tower)
    want = p(before)
    made = edit(model, p, tower)
    got = FAMILIES[family].encode(model, tower)
    scale = before.norm(dim=-1).max()
    assert (want - before).norm(dim=-1).max() > 1e-2 * scale, "the edit hardly changes a feature"
    assert (got - want).norm(dim=-1).max() < 1e-5 * scale

    names = {name for name in (head.weight, head.bias) if name}
    assert {name for name, digest in bits(model).items() if digest != untouched[name]} == names
    assert verify(model, made.receipt).exact
    weight, bias = head_tensors(model, head)
    wrong = weight.detach().clone()
    wrong[3, 5] += 0.01
    target = wrong if bias is None else (wrong, bias)
    assert verify(target, made.receipt).status == "tampered"

    made.undo()
    assert bits(model) == untouched
    assert verify(model, made.receipt).status == "unedited"


def test_the_way_that_a_refusal_names_works() -> None:
    family, model = FAMILIES["open_clip SigLIP"], built("open_clip SigLIP")
    features = family.encode(model, "image")
    p = projector(dim=features.shape[-1])
    with pytest.raises(ValueError, match=re.escape("encode_image()")):
        edit(model, p)
    assert p.residual(p(features)).max() < 1e-5 < p.residual(features).min()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    model = FAMILIES["open_clip timm linear with bias"].build().to(dtype)
    untouched = bits(model)
    with edit(model, projector("affine")) as made:
        assert tensors(model)[0].dtype == dtype
        assert verify(model, made.receipt).exact
        assert verify(copy.deepcopy(model).float(), made.receipt)
    assert bits(model) == untouched


# What is folded


def test_the_projector_is_copied_and_left_alone(model: nn.Module) -> None:
    p = projector("oblique")
    digest = p.content_hash()
    made = edit(model, p, strength=0.25)
    assert p.content_hash() == digest == made.receipt.projector_hash
    assert made.projector.content_hash() == p.scaled(0.25).content_hash()
    assert made.receipt.strength == 0.25
    p.strength.fill_(0.0)
    p.read.zero_()
    assert verify(model, made.receipt).exact


def test_the_other_tower_gets_the_transpose() -> None:
    family, model = FAMILIES["open_clip ViT"], FAMILIES["open_clip ViT"].build()
    p = projector("oblique")
    images, texts = family.encode(model, "image"), family.encode(model, "text")
    with edit(model, p, "text") as made:
        assert made.projector.content_hash() == p.T.content_hash()
        edited = images @ family.encode(model, "text").T
    torch.testing.assert_close(edited, p(images) @ texts.T, rtol=1e-4, atol=1e-5)
    with edit(model, p, "image"):
        torch.testing.assert_close(
            edited, family.encode(model, "image") @ texts.T, rtol=1e-4, atol=1e-5
        )


def test_a_text_edit_warns_that_it_can_vanish(model: nn.Module) -> None:
    with pytest.warns(UserWarning, match="edit: an edit of the text head can vanish"):
        edit(model, projector(), "text")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit(model, projector())


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"projector": projector(dim=24)}, ValueError, "width 32 as the image head is, got 24"),
        ({"projector": torch.eye(WIDTH)}, TypeError, "must be a Projector, got Tensor"),
        ({"tower": "audio"}, ValueError, 'tower must be "image" or "text", got \'audio\''),
        ({"strength": 2.5}, ValueError, "strength must be in [0, 2], got 2.5"),
        ({"strength": float("nan")}, ValueError, "strength must be in [0, 2], got nan"),
        ({"strength": "a"}, TypeError, "edit: strength must be a number, got str"),
        (
            {"projector": projector("affine"), "tower": "text"},
            ValueError,
            "must have no offset on the text tower, got an affine one for image",
        ),
        (
            {"projector": projector(head_hash="f" * 64, model="ViT-B-32")},
            ValueError,
            "got one of ViT-B-32 (head ffffffffffff); give force",
        ),
    ],
)
def test_refusals(
    model: nn.Module, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    untouched = bits(model)
    with pytest.raises(error, match=re.escape(text)):
        edit(model, **{"projector": projector()} | arguments)
    assert (bits(model), edits(model)) == (untouched, ())


def test_an_offset_needs_a_bias() -> None:
    model = FAMILIES["open_clip ViT"].build()
    untouched = bits(model)
    with pytest.raises(ValueError, match=r"because visual\.proj has no bias to hold it"):
        edit(model, projector("affine"))
    assert (bits(model), edits(model)) == (untouched, ())


def test_a_model_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="find_heads: model must be"):
        edit(nn.Linear(4, 4), projector())
    for target, got in (
        (None, "NoneType"),
        ("ViT-B-32", "str"),
        ((nn.Linear(4, 4), 1), "tuple; un"),
    ):
        with pytest.raises(TypeError, match=f"^edit: model must be an nn.Module, got {got}"):
            edit(target, projector())


def test_a_projector_of_this_model_fits_before_and_after_edits(model: nn.Module) -> None:
    own = projector(head_hash=head_hash(model))
    edit(model, own)
    edit(model, own, "text")
    assert head_hash(model) != own.provenance["head_hash"]
    edit(model, own)  # the model that it was before its first edit still counts
    edit(model, projector(head_hash=head_hash(model)))  # as does the one that it is
    edit(model, projector(head_hash="f" * 64), force=True)
    assert len(edits(model)) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_projector_fits_its_model_in_another_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    p = projector(head_hash=head_hash(model), model="RN50")
    other = FAMILIES[BIASED].build()
    with torch.no_grad():
        other.text_projection += 0.01 * other.text_projection.std() * torch.randn(WIDTH)
    for tower in TOWERS:
        edit(model.to(dtype), p, tower)
    for same_family in (other, other.to(dtype)):
        with pytest.raises(ValueError, match="must come from this model"):
            edit(same_family, p)


@pytest.mark.parametrize("how", ["one Parameter", "one storage", "a buffer"])
def test_shared_parameters_are_refused(how: str) -> None:
    model = FAMILIES["CLIPModel"].build()
    weight = model.visual_projection.weight
    if how == "one Parameter":
        model.text_projection.weight, other = weight, "text_projection.weight"
    elif how == "one storage":
        model.text_projection.weight, other = nn.Parameter(weight[:, :]), "text_projection.weight"
    else:
        model.register_buffer("cache", weight.detach()[4:8])
        other = "cache"
    text = f"share memory with another parameter, got visual_projection.weight tied to {other}"
    untouched = bits(model)
    with pytest.raises(ValueError, match=re.escape(text)):
        edit(model, projector(), force=True)
    assert bits(model) == untouched


def test_parameters_that_only_share_a_buffer_are_not_tied() -> None:
    model = FAMILIES["CLIPModel"].build()
    a, b = model.visual_projection, model.text_projection
    flat = torch.cat([a.weight.detach().flatten(), b.weight.detach().flatten()])
    a.weight.data, b.weight.data = (part.view(WIDTH, -1) for part in flat.split(a.weight.numel()))
    other = bits(model)["text_projection.weight"]
    with edit(model, projector()):
        assert bits(model)["text_projection.weight"] == other


def test_weights_that_are_not_finite(model: nn.Module) -> None:
    weight = tensors(model)[0]
    with torch.no_grad():
        weight[2, 2] = float("inf")
    untouched = bits(model)
    with pytest.raises(ValueError, match=r"finite, got NaN or inf in .*weight before the edit"):
        edit(model, projector())
    assert bits(model) == untouched
    model.half()
    with torch.no_grad():
        weight.fill_(6e4)
    untouched = bits(model)
    p = Projector(torch.ones(1, WIDTH), -torch.ones(1, WIDTH))
    with pytest.raises(ValueError, match=r"finite, got NaN or inf in .*weight after it"):
        edit(model, p)
    assert (bits(model), edits(model)) == (untouched, ())


# Training, autograd, inference mode, compile


@pytest.mark.parametrize("trained", [True, False])
def test_parameters_stay_the_same_objects(model: nn.Module, trained: bool) -> None:
    for parameter in tensors(model):
        parameter.requires_grad_(trained)
    before = [(t, id(t), t.data_ptr(), t.requires_grad, t._version) for t in tensors(model)]
    with edit(model, projector()):
        for t, (_, ident, pointer, grad, version) in zip(tensors(model), before, strict=True):
            assert (id(t), t.data_ptr(), t.requires_grad) == (ident, pointer, grad)
            assert t._version > version
            assert t.is_leaf
            assert t.grad is None


def test_an_optimizer_goes_on(model: nn.Module) -> None:
    weight, bias = tensors(model)
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    made = edit(model, projector())
    edited = weight.detach().clone()
    weight.square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), 0.8 * edited)
    with pytest.raises(RuntimeError, match="one changed since"):
        made.undo()


def test_a_pending_backward_raises(model: nn.Module) -> None:
    weight, bias = tensors(model)
    x = torch.randn(2, weight.shape[1], requires_grad=True)
    loss = nn.functional.linear(x, weight, bias).sum()
    edit(model, projector())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode_and_normal_parameters(model: nn.Module) -> None:
    untouched = bits(model)
    with torch.inference_mode():
        made = edit(model, projector())
        inner = edit(model, projector(seed=4))
        inner.undo()
    assert verify(model, made.receipt).exact
    assert not tensors(model)[0].is_inference()
    tensors(model)[0].sum().backward()  # still a parameter that trains
    made.projector(torch.randn(2, WIDTH, requires_grad=True)).sum().backward()
    made.undo()
    assert bits(model) == untouched


def test_inference_tensors(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = FAMILIES[BIASED].build()
    assert tensors(model)[0].is_inference()
    untouched = bits(model)
    outside = edit(model, projector("affine"))
    with torch.inference_mode():
        inside = edit(model, projector(seed=4))
    assert verify(model, inside.receipt).exact
    inside.save_undo(tmp_path / "undo")
    undo(model, tmp_path / "undo")
    with torch.inference_mode():
        outside.undo()
    assert bits(model) == untouched


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_graphs_see_the_edit_without_recompiling(compiler: None, backend: str) -> None:
    model, p = FAMILIES["open_clip ViT"].build(), projector()

    def tail(x: Tensor) -> Tensor:  # no more than a product: inductor then has no C++ to compile
        return x @ model.visual.proj

    call = torch.compile(tail, backend=backend, fullgraph=True)
    x = torch.randn(4, model.visual.proj.shape[0])
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        before, want = call(x), p(x @ model.visual.proj)
        made = edit(model, p)
        torch.testing.assert_close(call(x), want)
        made.undo()
        torch.testing.assert_close(call(x), before, rtol=0, atol=0)


def test_a_compiled_model(compiler: None) -> None:
    model = FAMILIES["open_clip ViT"].build()
    wrapped, p = torch.compile(model, backend="aot_eager"), projector()
    images = FAMILIES["open_clip ViT"].inputs("image")["pixel_values"]
    with torch.no_grad():
        before = wrapped(images)[0]
        with (
            torch._dynamo.config.patch(error_on_recompile=True),
            edit(wrapped, p) as made,
        ):
            assert p.residual(wrapped(images)[0]).max() < 1e-5 < p.residual(before).min()
            assert edits(model) == edits(wrapped) == (made,)
            assert verify(wrapped, made.receipt).exact
            assert verify(wrapped.state_dict(), made.receipt).exact
        assert torch.equal(wrapped(images)[0], before)


def test_a_head_inside_a_compiled_tower(compiler: None, tmp_path: Path) -> None:
    model, plain = FAMILIES["open_clip ViT"].build(), FAMILIES["open_clip ViT"].build()
    model.visual = torch.compile(model.visual, backend="eager")
    made = edit(model, projector())
    assert "_orig_mod" in made.receipt.weight
    with edit(plain, projector()):
        assert verify(plain, made.receipt).exact
    made.save_undo(tmp_path / "undo")
    made.undo()
    with edit(plain, projector()):
        state = undo(plain.state_dict(), tmp_path / "undo")
    assert torch.equal(state["visual.proj"], plain.visual.proj)


def test_data_parallel(model: nn.Module) -> None:
    wrapped = nn.DataParallel(model)
    with edit(wrapped, projector()) as made:
        assert edits(model) == edits(wrapped) == (made,)
        assert verify(wrapped, made.receipt).exact


# Receipts of live edits


def test_a_receipt_serves_another_process(model: nn.Module, tmp_path: Path) -> None:
    made = edit(model, projector("affine", model="RN50"))
    made.receipt.save(tmp_path / "receipt")
    receipt = Receipt.load(tmp_path / "receipt")
    assert isinstance(made, Edit)
    assert (receipt.tower, receipt.dim) == ("image", 0)
    assert (receipt.weight, receipt.bias) == (made.receipt.weight, made.receipt.bias)
    assert receipt.projector.provenance == made.projector.provenance
    assert verify(model, receipt).exact
    assert verify(copy.deepcopy(model).bfloat16(), receipt).status == "edited"
    made.undo()
    assert verify(model, receipt).status == "unedited"
    assert verify(copy.deepcopy(model).bfloat16(), receipt).status == "unedited"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cuda(model: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    model.to("cuda", dtype)
    untouched, p = bits(model), projector("affine")
    made = edit(model, p)
    assert p.read.device.type == "cpu"
    made.save_undo(tmp_path / "undo")
    assert verify(model, made.receipt).exact
    assert made.original.weights[0].is_cuda
    model.cpu()  # the same bits on another device
    assert verify(model, made.receipt).exact
    undo(copy.deepcopy(model), tmp_path / "undo")
    made.undo()
    assert bits(model) == untouched
