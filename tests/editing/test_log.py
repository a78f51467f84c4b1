"""Several edits of one model and the way back: order, handles, files, state dicts, full disks."""

from __future__ import annotations

import copy
import errno
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import BIASED, bits, projector, tensors
from families import FAMILIES
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipproj import files
from clipproj.editing.edit import edit, edits, undo
from clipproj.editing.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore:edit. an edit of the text head can vanish")


@pytest.fixture
def model() -> nn.Module:
    return FAMILIES[BIASED].build()


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
    outlived = edit(FAMILIES[BIASED].build(), projector())
    gc.collect()
    assert repr(outlived) == 'Edit("cat", image head, strength=1, its model is freed)'


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


def test_an_exception_comes_out_of_the_block_though_undo_fails(model: nn.Module) -> None:
    def train_in_block() -> None:
        with edit(model, projector()):
            with torch.no_grad():
                tensors(model)[0][0, 0] += 1
            raise ZeroDivisionError

    text = r"edit: Edit.*stays in its model after ZeroDivisionError: .* one changed since"
    with pytest.warns(UserWarning, match=text), pytest.raises(ZeroDivisionError):
        train_in_block()
    (made,) = edits(model)
    with pytest.raises(RuntimeError, match="one changed since"), made:
        pass
    made.undo(force=True)


def test_a_head_that_changed_since(model: nn.Module) -> None:
    untouched, made = bits(model), edit(model, projector())
    with torch.no_grad():
        tensors(model)[1][0] += 1
    assert verify(model, made.receipt).status == "tampered"
    with pytest.raises(RuntimeError, match=r'the bits that edit "cat" left .* one changed since'):
        made.undo()
    assert made.active
    made.undo(force=True)
    assert bits(model) == untouched


def test_a_head_in_another_dtype(model: nn.Module) -> None:
    original = [t.detach().clone() for t in tensors(model)]
    made = edit(model, projector())
    model.half()
    for force in (False, True):
        text = r"must be torch\.float32 .* got torch\.float16 .*; cast it back first"
        with pytest.raises(ValueError, match=text):
            made.undo(force=force)
    model.float()
    with pytest.raises(RuntimeError, match="give force to overwrite it"):
        made.undo()
    made.undo(force=True)
    assert all(map(torch.equal, tensors(model), original))


def test_a_reloaded_model(model: nn.Module) -> None:
    original = copy.deepcopy(model.state_dict())
    untouched = bits(model)
    first = edit(model, projector())
    once = copy.deepcopy(model.state_dict())
    second = edit(model, projector(seed=4))
    model.load_state_dict(once)
    assert second.active
    versions = [t._version for t in tensors(model)]
    second.undo()  # nothing to write
    assert (edits(model), [t._version for t in tensors(model)]) == ((first,), versions)
    model.load_state_dict(original)
    undo(model, first)
    assert (bits(model), edits(model)) == (untouched, ())


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


def test_edits_with_the_same_bits_are_told_apart(model: nn.Module, tmp_path: Path) -> None:
    nothing = projector().scaled(0.0)
    first, second = edit(model, nothing), edit(model, nothing)
    first.save_undo(tmp_path / "undo")
    with pytest.raises(RuntimeError, match="got 1 of 2"):
        undo(model, first)
    undo(model, tmp_path / "undo")  # a file means the newest that it fits
    assert edits(model) == (first,)
    assert not second.active
    undo(model, first)
    assert edits(model) == ()


# Undo from files and on state dicts


@pytest.mark.parametrize("tower", ["image", "text"])
def test_undo_from_a_file(model: nn.Module, tmp_path: Path, tower: str) -> None:
    untouched, path = bits(model), tmp_path / "cat.undo.safetensors"
    made = edit(model, projector("affine" if tower == "image" else "oblique"), tower)
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
    for name in restored:  # the caller may write into it
        restored[name].zero_()
    made.undo()
    assert bits(model) == untouched


def test_undo_needs_the_right_file_and_target(model: nn.Module, tmp_path: Path) -> None:
    p, path = projector(), tmp_path / "undo"
    made = edit(model, p)
    p.save(path)
    with pytest.raises(ValueError, match="must hold kind 'undo', got 'projector'"):
        undo(model, path)
    with pytest.raises(FileNotFoundError):
        undo(model, tmp_path / "none")
    with pytest.raises(TypeError, match="target must be a model or a state dict, got list"):
        undo([1], made)
    with pytest.raises(ValueError, match=r"must hold one visual\.attnpool\.c_proj\.weight, got 0"):
        undo(FAMILIES["open_clip ViT"].build(), made)
    for foreign in (None, made.receipt, b"path"):
        with pytest.raises(TypeError, match="undo: edit must be an Edit or the path of an undo f"):
            undo(model, foreign)
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
