"""Models of open_clip on the disk: loaded, saved with their log, undone there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from stored import same

import clipproj
from clipproj import Projector, RecordedEdit, edits, nullspace
from clipproj.checkpoints.checkpoint import _brief, load_model, save_model, undo
from clipproj.checkpoints.sources import whole
from clipproj.checkpoints.state import (
    CONFIG,
    EDITS,
    INDEX,
    WEIGHTS,
    locate,
    read_edits,
    read_state,
    replace_tensors,
    write_state,
)
from clipproj.editing.edit import edit
from clipproj.editing.verify import verify

ON_TEXT = {"projector": "b" * 64, "forget": ["owl"], "tower": "text", "strength": 1.0}


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_is_loaded(folder: Path, prefix: str) -> None:
    loaded = load_model(f"{prefix}{folder}")
    assert same(dict(loaded.model.state_dict()), load_file(folder / WEIGHTS))
    assert not loaded.model.training
    assert loaded.checkpoint == folder / WEIGHTS
    assert loaded.config["model_cfg"] == tiny.CONFIG


def test_an_architecture_is_loaded_with_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "clipproj-tiny.json").write_text(json.dumps(tiny.CONFIG))
    open_clip.add_model_config(tmp_path / "clipproj-tiny.json")
    state = load_file(folder / WEIGHTS)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pt")
    loaded = load_model("clipproj-tiny", str(tmp_path / "w.pt"))
    assert same(dict(loaded.model.state_dict()), state)
    assert loaded.config["model_cfg"] == tiny.CONFIG
    assert loaded.name == "clipproj-tiny (w.pt)"


def test_a_folder_with_a_torch_file(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / CONFIG, tmp_path)
    state = load_file(folder / WEIGHTS)
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    loaded = load_model(str(tmp_path))
    assert same(dict(loaded.model.state_dict()), state)
    assert loaded.checkpoint == locate(tmp_path) == tmp_path / "open_clip_pytorch_model.bin"


def test_shards_of_open_clip_are_joined(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / WEIGHTS)
    places = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(state)}
    for file in set(places.values()):
        save_file({n: state[n] for n in state if places[n] == file}, tmp_path / file)
    index = tmp_path / f"{WEIGHTS}{INDEX}"
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / "clipproj-shards.json").write_text(json.dumps(tiny.CONFIG))
    open_clip.add_model_config(tmp_path / "clipproj-shards.json")
    by_file = load_model("clipproj-shards", str(index))
    assert same(dict(by_file.model.state_dict()), state)
    shutil.copy(folder / CONFIG, tmp_path)
    by_folder = load_model(str(tmp_path))
    assert same(dict(by_folder.model.state_dict()), state)
    assert by_folder.checkpoint == locate(tmp_path) == index
    before = tiny.tree(tmp_path)
    with edit(by_folder.model, Projector(torch.eye(16)[:1])) as made:
        made.save_undo(tmp_path / "undo")
        edited = {"visual.proj": by_folder.model.visual.proj.detach().clone()}
        replace_tensors(index, edited, [made.record])
    assert verify(read_state(index), made.receipt).exact
    assert read_edits(index) == [made.record]
    assert [one.projector for one in edits(load_model(str(tmp_path)).model)] == [
        made.receipt.projector_hash
    ]
    shard = tmp_path / places["visual.proj"]
    with pytest.raises(ValueError, match=r"undo: checkpoint must be the whole model of its folder"):
        undo(shard, tmp_path / "undo")
    assert undo(tmp_path, tmp_path / "undo") == index
    assert same(read_state(index), state)
    after = tiny.tree(tmp_path)
    assert json.loads(after.pop(index.name)) == json.loads(before.pop(index.name)) | {
        "metadata": {}
    }
    assert before == {k: v for k, v in after.items() if k != "undo"}


def test_a_reloaded_model_says_that_it_was_edited(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(str(folder))
    p = Projector(torch.eye(16)[:1], provenance={"forget": {"names": ["cat"]}})
    made = edit(loaded.model, p)
    made.save_undo(tmp_path / "undo")
    save_model(loaded, tmp_path)
    again = load_model(str(tmp_path)).model
    assert edits(again) == (RecordedEdit(("cat",), "image", 1.0, p.content_hash()),)
    with edit(again, Projector(torch.eye(16)[1:2])) as second:
        assert edits(again)[1:] == (second,)
    assert clipproj.undo(again, tmp_path / "undo") is again
    assert edits(again) == ()
    undo(tmp_path, tmp_path / "undo")
    assert edits(load_model(str(tmp_path)).model) == ()


def test_a_checkpoint_of_another_model(folder: Path, tmp_path: Path) -> None:
    write_state(tmp_path / "w.safetensors", {"visual.proj": torch.zeros(3, 4)}, [])
    (tmp_path / "clipproj-other.json").write_text(json.dumps(tiny.CONFIG))
    open_clip.add_model_config(tmp_path / "clipproj-other.json")
    with pytest.raises(RuntimeError, match=r"cannot load clipproj-other .*Missing key") as error:
        load_model("clipproj-other", str(tmp_path / "w.safetensors"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), b"no torch file"])
def test_a_pickle_of_other_things(folder: Path, tmp_path: Path, content: object) -> None:
    (tmp_path / "clipproj-pickle.json").write_text(json.dumps(tiny.CONFIG))
    open_clip.add_model_config(tmp_path / "clipproj-pickle.json")
    if isinstance(content, bytes):
        (tmp_path / "w.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "w.pt")
    with pytest.raises(RuntimeError, match=r"\(w\.pt\): the weights must be a state dict") as error:
        load_model("clipproj-pickle", str(tmp_path / "w.pt"))
    assert "weights_only" not in str(error.value)


def test_errors_of_others_lose_their_colours() -> None:
    assert _brief(RuntimeError("\x1b[1mno\x1b[0m such\nlayer")) == "no such layer"


def test_random_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    with pytest.raises(RuntimeError, match=r"pretrained weights .* could not be loaded"):
        load_model(str(tmp_path))


def test_undo_restores_every_bit_and_the_log(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(str(folder))
    edited = tmp_path / "edited.safetensors"
    log = []
    for i in range(2):
        texts = torch.randn(1, 16)
        projector = nullspace(texts, contrast="none", rank=1)
        made = edit(loaded.model, projector)
        made.save_undo(tmp_path / f"{i}.undo")
        log.append(made.record)
    log.append(ON_TEXT)
    write_state(edited, loaded.model.state_dict(), log)
    with pytest.raises(RuntimeError, match="changed since"):
        undo(edited, tmp_path / "0.undo")
    assert undo(edited, tmp_path / "1.undo") == edited
    assert read_edits(edited) == [log[0], log[2]]
    out = tmp_path / "original.safetensors"
    assert undo(edited, tmp_path / "0.undo", out) == out
    assert same(read_state(out), load_file(folder / WEIGHTS))
    assert read_edits(edited) == [log[0], log[2]]
    assert read_edits(out) == log[2:]


@pytest.mark.parametrize(
    ("log", "undone", "left"),
    [
        ("A B C t", 1, "A t"),  # with B's edit C's is gone too, though not that of the other head
        ("A B C t", 0, "t"),
        ("A C t", 1, "A t"),  # the undo file knows what was in the head before
        ("t", 1, "A t"),
    ],
)
def test_a_forced_undo_leaves_no_edit_in_the_log_that_is_gone(
    folder: Path, tmp_path: Path, log: str, undone: int, left: str
) -> None:
    loaded, known = load_model(str(folder)), {"t": ON_TEXT}
    for i, name in enumerate("ABC"):
        projector = nullspace(torch.randn(1, 16), contrast="none", rank=1)
        made = edit(loaded.model, projector)
        made.save_undo(tmp_path / f"{i}.undo")
        known[name] = made.record
    path = tmp_path / "edited.safetensors"
    write_state(path, loaded.model.state_dict(), [known[name] for name in log.split()])
    undo(path, tmp_path / f"{undone}.undo", force=True)
    assert read_edits(path) == [known[name] for name in left.split()]
    undo(path, tmp_path / f"{undone}.undo", force=True)  # has its bits already
    assert read_edits(path) == [known[name] for name in left.split()]


@pytest.mark.parametrize(
    ("log", "undone", "force", "left"),
    [("A B C t", 2, False, "A B t"), ("A B C t", 1, True, "A t"), ("A C t", 1, True, "t")],
)
def test_an_undo_file_of_before_it_kept_records(
    folder: Path, tmp_path: Path, log: str, undone: int, force: bool, left: str
) -> None:
    loaded, known = load_model(str(folder)), {"t": ON_TEXT}
    for name in "ABC":
        made = edit(loaded.model, nullspace(torch.randn(1, 16), contrast="none", rank=1))
        replace(made.original, records=None).save(tmp_path / name)
        known[name] = made.record
    path = tmp_path / "edited.safetensors"
    write_state(path, loaded.model.state_dict(), [known[name] for name in log.split()])
    undo(path, tmp_path / "ABC"[undone], force=force)
    assert read_edits(path) == [known[name] for name in left.split()]


def test_shards_are_joined_beside_links_not_copies(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file(state, tmp_path / "part.safetensors")
    index = tmp_path / f"{WEIGHTS}{INDEX}"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "part.safetensors")}))
    shutil.copy(folder / CONFIG, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"big")
    with whole(f"local-dir:{tmp_path}", None, index) as (place, _):
        made = Path(place.removeprefix("local-dir:"))
        copied = {path.name for path in made.iterdir() if not path.is_symlink()}
        assert copied == {WEIGHTS}
        assert (made / CONFIG).read_bytes() == (folder / CONFIG).read_bytes()


def two_edits(folder: Path, to: Path) -> list[Any]:
    """A folder with edits A and B, and their undo files beside."""
    loaded, made = load_model(str(folder)), []
    to.mkdir()
    for i, name in enumerate("AB"):
        p = Projector(torch.eye(16)[i : i + 1], provenance={"forget": {"names": [name]}})
        made.append(edit(loaded.model, p))
        made[-1].save_undo(to / name)
    save_model(loaded, to)
    return made


@pytest.mark.parametrize("where", ["file", "model"])
def test_forced_undo_of_the_first_edit_and_then_of_the_second(
    folder: Path, tmp_path: Path, where: str
) -> None:
    a, _ = two_edits(folder, tmp_path / "m")
    model = load_model(str(tmp_path / "m")).model

    def after(name: str) -> list[tuple[str, ...]]:
        if where == "file":
            undo(tmp_path / "m", tmp_path / "m" / name, force=True)
            return [tuple(one["forget"]) for one in read_edits(locate(tmp_path / "m"))]
        clipproj.undo(model, tmp_path / "m" / name, force=True)
        return [one.forget for one in edits(model)]

    assert after("A") == []
    assert after("B") == [("A",)]  # the head has the bits that A left
    state = model if where == "model" else read_state(locate(tmp_path / "m"))
    assert verify(state, a.receipt).exact
    assert after("A") == []


def test_a_log_claims_no_edit_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    a, b = two_edits(folder, tmp_path / "m")
    path, original = tmp_path / "m" / WEIGHTS, load_file(folder / WEIGHTS)
    records = [a.record, b.record]
    once = load_model(str(tmp_path / "m")).model
    clipproj.undo(once, tmp_path / "m" / "B")
    trained = {k: v + 0.5 * torch.randn_like(v) for k, v in original.items()}
    for state, kept in (
        (original, []),
        (trained, []),
        (once.state_dict(), records[:1]),
        ({k: v.half() for k, v in load_file(path).items()}, records),  # a cast takes none out
    ):
        write_state(path, state, records)
        assert read_edits(path) == kept
    write_state(path, original, records)
    assert edits(load_model(str(tmp_path / "m")).model) == ()


def test_an_edit_that_turns_no_sign_is_told_by_its_bits_alone(folder: Path, tmp_path: Path) -> None:
    loaded, path = load_model(str(folder)), tmp_path / "w.safetensors"
    original = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    made = edit(loaded.model, Projector(torch.eye(16)[:1]), strength=1e-3)
    for state, kept in ((loaded.model.state_dict(), [made.record]), (original, [])):
        write_state(path, state, [made.record])
        assert read_edits(path) == kept


@pytest.mark.parametrize("log", [None, "x", {"edits": None}, [{"tower": "image"}], ["cat"]])
def test_a_log_that_is_none_is_refused(folder: Path, tmp_path: Path, log: Any) -> None:
    path = tmp_path / "w.safetensors"
    save_file(load_file(folder / WEIGHTS), path, metadata={EDITS: json.dumps(log)})
    with pytest.raises(ValueError, match=r"^edits: .*w\.safetensors must h"):
        read_edits(path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_undo_of_a_torch_file_whose_first_entry_is_no_tensor(
    folder: Path, tmp_path: Path, prefix: str, nested: bool
) -> None:
    loaded, file = load_model(str(folder)), tmp_path / "edited.pt"
    edit(loaded.model, Projector(torch.eye(16)[:1])).save_undo(tmp_path / "undo")
    state = {"epoch": 3, **{f"{prefix}{k}": v for k, v in loaded.model.state_dict().items()}}
    torch.save({"state_dict": state} if nested else state, file)
    undo(file, tmp_path / "undo")
    assert same(read_state(file), load_file(folder / WEIGHTS))
    written = torch.load(file, weights_only=True)
    assert list(written["state_dict"] if nested else written) == list(state)


def test_undo_leaves_what_is_linked(folder: Path, tmp_path: Path) -> None:
    two_edits(folder, tmp_path / "m")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"  # as a hub's cache keeps files
    shutil.copytree(tmp_path / "m", blobs)
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    before = tiny.tree(blobs)
    undo(snapshot, blobs / "B")
    assert tiny.tree(blobs) == before
    undo(blobs, blobs / "B")
    assert same(read_state(locate(snapshot)), read_state(locate(blobs)))
    assert not (snapshot / WEIGHTS).is_symlink()


def test_undo_keeps_a_torch_file_what_it_is(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(str(folder))
    edit(loaded.model, Projector(torch.eye(16)[:1])).save_undo(tmp_path / "undo")
    state = {f"module.{name}": value for name, value in loaded.model.state_dict().items()}
    file = tmp_path / "edited.pt"
    torch.save({"epoch": 3, "state_dict": state}, file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"out must be a \.safetensors file, got .*o\.pt"):
        undo(file, tmp_path / "undo", tmp_path / "o.pt")
    restored = undo(file, tmp_path / "undo", tmp_path / "o.safetensors")
    original = load_file(folder / WEIGHTS)
    assert same(read_state(restored), original)
    assert file.read_bytes() == before
    assert undo(file, tmp_path / "undo") == file
    assert same(read_state(file), original)
    assert torch.load(file, weights_only=True)["epoch"] == 3
