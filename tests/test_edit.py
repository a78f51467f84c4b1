"""Edits and their undo: every family and tower, the log, files, and what must not be touched."""

from __future__ import annotations

import copy
import errno
import functools
import gc
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, WIDTH
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.overrides import TorchFunctionMode

from clipproj import files
from clipproj.edit import Edit, edit, edits, undo
from clipproj.heads import find_heads, head_hash, head_tensors
from clipproj.projector import Projector
from clipproj.receipt import Receipt, verify

TOWERS = ("image", "text")
BIASED = "OpenAI ModifiedResNet"  # weight and bias in the image tower, a bare Parameter for texts
pytestmark = pytest.mark.filterwarnings("ignore:edit. an edit of the text head can vanish")


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """These models are too small for a second one."""
    torch.set_num_threads(1)


@pytest.fixture
def model() -> nn.Module:
    return FAMILIES[BIASED].build()


def projector(
    kind: str = "symmetric", names: str = "cat", seed: int = 3, dim: int = WIDTH, **more: Any
) -> Projector:
    generator = torch.Generator().manual_seed(seed)
    read = torch.linalg.qr(torch.randn(dim, 3, generator=generator))[0].T
    history = {"forget": {"names": [names]}} | more
    if kind == "symmetric":
        return Projector(read, provenance=history)
    write = read + 0.1 * torch.randn(3, dim, generator=generator)
    offset = torch.randn(3, generator=generator) if kind == "affine" else None
    return Projector(read, write, offset, strength=0.7, provenance=history)


def bits(model: nn.Module) -> dict[str, str]:
    """Every parameter and buffer, hashed."""
    return {name: files.sha256(tensor) for name, tensor in model.state_dict().items()}


def tensors(model: nn.Module, tower: str = "image") -> list[Tensor]:
    return [t for t in head_tensors(model, find_heads(model)[tower]) if t is not None]


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
    assert {name for name, digest in bits(model).items() if digest != untouched[name]} >= names
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
    p = projector(dim=find_heads(model).image.width)
    with pytest.raises(ValueError, match=re.escape("encode_image()")):
        edit(model, p)
    assert p.residual(p(family.encode(model, "image"))).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    model = FAMILIES["open_clip timm linear with bias"].build().to(dtype)
    untouched = bits(model)
    with edit(model, projector("affine")) as made:
        assert tensors(model)[0].dtype == dtype
        assert verify(model, made.receipt).exact
        assert verify(model.float(), made.receipt)
        model.to(dtype)
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
        (
            {"projector": projector("affine"), "tower": "text"},
            ValueError,
            "must have no offset to be folded into the text head, got an affine one for image",
        ),
        (
            {"projector": projector(head_hash="f" * 64, model="ViT-B-32")},
            ValueError,
            "got one of ViT-B-32 (head ffffffffffff); force=True",
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
    with pytest.raises(TypeError, match="find_heads: model must be an nn.Module"):
        edit("ViT-B-32", projector())


def test_a_projector_of_this_model_fits_before_and_after_edits(model: nn.Module) -> None:
    own = projector(head_hash=head_hash(model))
    edit(model, own)
    edit(model, own, "text")
    assert head_hash(model) != own.provenance["head_hash"]
    edit(model, own)  # the model that it was before its first edit still counts
    edit(model, projector(head_hash=head_hash(model)))  # as does the one that it is
    edit(model, projector(head_hash="f" * 64), force=True)
    assert len(edits(model)) == 5


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
    text = f"must not share memory with another parameter, got visual_projection.weight tied to {other}"
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


class Interrupt(TorchFunctionMode):
    """Ctrl-C in place of the nth copy into a tensor."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self.left = nth

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.copy_:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return func(*args, **kwargs or {})


def test_an_exception_between_weight_and_bias(model: nn.Module) -> None:
    untouched, p = bits(model), projector()
    with pytest.raises(KeyboardInterrupt), Interrupt(2):
        edit(model, p)
    assert (bits(model), edits(model)) == (untouched, ())
    made = edit(model, p)
    edited = bits(model)
    with pytest.raises(KeyboardInterrupt), Interrupt(2):
        made.undo()
    assert (bits(model), edits(model)) == (edited, (made,))
    made.undo()
    assert bits(model) == untouched


# The log


def test_edits_stack_and_come_off_in_reverse(model: nn.Module) -> None:
    states, made = [bits(model)], []
    for name, seed in (("cat", 3), ("dog", 4), ("fox", 5)):
        made.append(edit(model, projector("oblique", name, seed)))
        states.append(bits(model))
    text = edit(model, projector("oblique", "owl", 6), "text")
    assert edits(model) == (*made, text)
    assert [one.receipt.label for one in edits(model)] == ["cat", "dog", "fox", "owl"]
    assert verify(model, made[2].receipt)
    later = verify(model, made[0].receipt)
    assert later.status == "tampered"
    assert later.text.endswith('; edited again since: "dog", "fox"')

    order = 'must be the last one on the image head, got 1 of 3; undo "fox", "dog" first'
    with pytest.raises(RuntimeError, match=order):
        made[0].undo()
    with pytest.raises(RuntimeError, match="got 2 of 3"):
        made[1].undo(force=True)
    assert edits(model) == (*made, text)
    for one, state in zip(reversed(made), reversed(states[:-1]), strict=True):
        one.undo()
        image = {name: digest for name, digest in bits(model).items() if name != "text_projection"}
        assert image == {name: state[name] for name in image}
    assert edits(model) == (text,)
    text.undo()
    assert (bits(model), edits(model)) == (states[0], ())


def test_towers_do_not_wait_for_each_other(model: nn.Module) -> None:
    untouched = bits(model)
    image, text = edit(model, projector()), edit(model, projector(), "text")
    image.undo()
    assert edits(model) == (text,)
    text.undo()
    assert bits(model) == untouched


def test_undo_twice(model: nn.Module) -> None:
    made = edit(model, projector())
    assert made.active
    assert repr(made) == 'Edit("cat", image head, strength=1, active)'
    made.undo()
    assert not made.active
    assert repr(made) == 'Edit("cat", image head, strength=1, undone)'
    with pytest.raises(RuntimeError, match="edit must be active, got one where it was undone"):
        made.undo(force=True)


def test_context_manager(model: nn.Module) -> None:
    untouched = bits(model)
    with edit(model, projector()) as outer, edit(model, projector(seed=4)) as inner:
        assert edits(model) == (outer, inner)
        inner.undo()  # leaving the block then finds nothing to do
    assert (bits(model), edits(model)) == (untouched, ())
    with pytest.raises(ZeroDivisionError), edit(model, projector()):
        raise ZeroDivisionError
    assert bits(model) == untouched
    with (
        pytest.raises(RuntimeError, match="must be the last one"),
        edit(model, projector()) as outer,
    ):
        left = edit(model, projector(seed=4))
    left.undo()
    outer.undo()
    assert bits(model) == untouched


def test_a_head_that_changed_since(model: nn.Module) -> None:
    untouched, made = bits(model), edit(model, projector())
    with torch.no_grad():
        tensors(model)[1][0] += 1
    assert verify(model, made.receipt).status == "tampered"
    with pytest.raises(RuntimeError, match='the bits that edit "cat" left .* one changed since'):
        made.undo()
    assert made.active
    made.undo(force=True)
    assert bits(model) == untouched


def test_a_head_in_another_dtype(model: nn.Module) -> None:
    made = edit(model, projector())
    for force in (False, True):
        with pytest.raises(ValueError, match="must be torch.float32 .* got torch.float16"):
            made.undo(force=force) if not model.half() else made.undo(force=force)


def test_models_are_not_kept_alive() -> None:
    model = FAMILIES[BIASED].build()
    with edit(model, projector()) as made:
        del model
        gc.collect()
        assert not made.active
        with pytest.raises(RuntimeError, match="got one where its model is freed"):
            made.undo()


def test_copies_have_no_log_but_the_receipt_holds(model: nn.Module) -> None:
    untouched, made = bits(model), edit(model, projector())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.state_dict()))):
        assert verify(twin, made.receipt).exact
    twin = copy.deepcopy(model)
    assert edits(twin) == ()
    with edit(twin, projector(seed=4)) as second:
        assert edits(model) == (made,)
        assert edits(twin) == (second,)
    undo(twin, made)  # by its bits, though the handle is another model's
    assert bits(twin) == untouched
    assert made.active


# Undo from files and on state dicts


def test_undo_from_a_file(model: nn.Module, tmp_path: Path) -> None:
    untouched, path = bits(model), tmp_path / "cat.undo.safetensors"
    made = edit(model, projector("affine"))
    made.save_undo(path)
    twin = copy.deepcopy(model)  # as another process would load it
    assert undo(twin, path) is twin
    assert bits(twin) == untouched
    with pytest.raises(RuntimeError, match="a head without the edit"):
        undo(twin, str(path))
    assert undo(model, path) is model
    assert (bits(model), made.active) == (untouched, False)


def test_undo_from_a_file_keeps_the_order(model: nn.Module, tmp_path: Path) -> None:
    made = edit(model, projector())
    made.save_undo(tmp_path / "cat")
    later = edit(model, projector(names="dog", seed=4))
    with pytest.raises(RuntimeError, match='got 1 of 2; undo "dog" first'):
        undo(model, tmp_path / "cat", force=True)
    twin = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="one changed since"):
        undo(twin, tmp_path / "cat")
    third = edit(twin, projector(names="fox", seed=5))
    with pytest.raises(
        RuntimeError, match='must have no later edits on the image head, undo "fox"'
    ):
        undo(twin, tmp_path / "cat", force=True)
    third.undo()
    undo(twin, tmp_path / "cat", force=True)
    later.undo()
    made.undo()
    assert bits(twin) == bits(model)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("source", ["handle", "file"])
def test_undo_on_a_state_dict(model: nn.Module, tmp_path: Path, source: str, prefix: str) -> None:
    untouched, made = bits(model), edit(model, projector("affine"))
    made.save_undo(tmp_path / "undo")
    state = {prefix + name: tensor.clone() for name, tensor in model.state_dict().items()}
    edited = {name: files.sha256(tensor) for name, tensor in state.items()}
    restored = undo(state, made if source == "handle" else tmp_path / "undo")
    assert {name: files.sha256(tensor) for name, tensor in state.items()} == edited
    assert {n.removeprefix(prefix): files.sha256(t) for n, t in restored.items()} == untouched
    assert list(restored) == list(state)
    with pytest.raises(RuntimeError, match="a head without the edit"):
        undo(restored, made)
    made.undo()
    for name in restored:  # it owns what it returns
        restored[name].zero_()
    assert bits(model) == untouched


def test_undo_needs_the_right_file_and_target(model: nn.Module, tmp_path: Path) -> None:
    p, path = projector(), tmp_path / "undo"
    made = edit(model, p)
    p.save(path)
    with pytest.raises(ValueError, match="must hold a undo, got a projector|must hold an undo"):
        undo(model, path)
    with pytest.raises(FileNotFoundError):
        undo(model, tmp_path / "none")
    with pytest.raises(TypeError, match="target must be a model or a state dict, got list"):
        undo([1], made)
    with pytest.raises(ValueError, match="must hold one visual.attnpool.c_proj.weight, got 0"):
        undo(FAMILIES["open_clip ViT"].build(), made)
    wide = {name: torch.zeros(3) for name in model.state_dict()}
    with pytest.raises(ValueError, match=r"must be torch.float32 \[32, 256\] .* got .* \[3\]"):
        undo(wide, made, force=True)
    made.save_undo(path)
    with open(path, "rb+") as file:
        file.seek(-3, 2)
        file.write(b"\x55")
    with pytest.raises(ValueError, match="wrong digest"):
        undo(model, path)
    assert verify(model, made.receipt).exact


def test_a_full_disk(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untouched, made = bits(model), edit(model, projector())
    old = tmp_path / "undo"
    old.write_bytes(b"before")

    def full(tensors: dict[str, Tensor], path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    for write in (made.save_undo, made.receipt.save):
        with pytest.raises(OSError, match="No space left"):
            write(old)
    assert [path.name for path in tmp_path.iterdir()] == ["undo"]
    assert old.read_bytes() == b"before"
    made.undo()
    assert bits(model) == untouched


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
    family, model = FAMILIES["open_clip ViT"], FAMILIES["open_clip ViT"].build()
    p = projector()

    def tail(x: Tensor) -> Tensor:
        return normalize(x @ model.visual.proj, dim=-1)

    call = torch.compile(tail, backend=backend, fullgraph=True)
    x = torch.randn(4, model.visual.proj.shape[0])
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        before, want = call(x), p(x @ model.visual.proj, normalize=True)
        made = edit(model, p)
        torch.testing.assert_close(call(x), want)
        made.undo()
        torch.testing.assert_close(call(x), before, rtol=0, atol=0)
    assert family.encode(model, "image").isfinite().all()


def test_a_compiled_model(compiler: None) -> None:
    model = FAMILIES["open_clip ViT"].build()
    wrapped, p = torch.compile(model, backend="aot_eager"), projector()
    pictures = FAMILIES["open_clip ViT"].inputs("image")["pixel_values"]
    with torch.no_grad():
        before = wrapped(pictures)[0]
        with (
            torch._dynamo.config.patch(error_on_recompile=True),
            edit(wrapped, p) as made,
        ):
            assert p.residual(wrapped(pictures)[0]).max() < 1e-5 < p.residual(before).min()
            assert edits(model) == edits(wrapped) == (made,)
            assert verify(wrapped, made.receipt).exact
            assert verify(wrapped.state_dict(), made.receipt).exact
        assert torch.equal(wrapped(pictures)[0], before)


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
