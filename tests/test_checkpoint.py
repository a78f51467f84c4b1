"""Checkpoints in and out: what open_clip writes, reads and refuses."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import tiny
import torch
from safetensors.torch import load_file

from clipproj import Projector, nullspace
from clipproj.checkpoint import _brief, load_model, undo
from clipproj.edit import edit
from clipproj.state import CONFIG, WEIGHTS, locate, read_edits, read_state, write_state

STATE = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.ones(3, dtype=torch.float16)}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    return tiny.model(root / "model", tiny.pictures(root / "pictures", 1))


@pytest.fixture
def small_files() -> Iterator[None]:
    """A disk that is full after 64 KiB of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {"epoch": 3, "state_dict": STATE},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}},
    ],
    ids=["plain", "nested", "data-parallel"],
)
def test_torch_files_are_read_as_open_clip_reads_them(tmp_path: Path, saved: dict) -> None:
    torch.save(saved, tmp_path / "model.pt")
    assert same(read_state(tmp_path / "model.pt"), STATE)


def test_a_state_dict_survives_the_file(tmp_path: Path) -> None:
    write_state(tmp_path / "s.safetensors", STATE, [{"forget": ["cat"]}])
    assert same(read_state(tmp_path / "s.safetensors"), STATE)
    assert read_edits(tmp_path / "s.safetensors") == [{"forget": ["cat"]}]
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


def test_tied_and_strided_tensors_are_written_in_full(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tied = {"one": base.view(3, 4), "two": base.view(3, 4).T, "part": base[4:], "same": base}
    write_state(tmp_path / "s.safetensors", tied, [])
    assert same(read_state(tmp_path / "s.safetensors"), tied)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("s.safetensors", b"\x00" * 40, "whole file"),
        ("s.pt", b"not a torch file", "whole torch file"),
        ("s.pt", None, "must be a file"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        read_state(tmp_path / name)
    assert "weights_only" not in str(error.value)


def test_a_torch_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "s.pt")
    with pytest.raises(ValueError, match="state dict with tensors"):
        read_state(tmp_path / "s.pt")


def test_a_torch_file_runs_no_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Bomb()}, tmp_path / "s.pt")
    with pytest.raises(ValueError, match="whole torch file"):
        read_state(tmp_path / "s.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_state(path, STATE, [])
    with pytest.raises(OSError, match="cannot write"):
        write_state(path, {"big": torch.zeros(1 << 16)}, [])
    assert same(read_state(path), STATE)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_folder_stands_for_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert locate(folder) == folder / WEIGHTS
    assert locate(folder / WEIGHTS) == folder / WEIGHTS
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="must be a checkpoint or a folder"):
            locate(path)


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


@pytest.mark.parametrize(
    ("name", "pretrained", "says"),
    [
        ("ViT-B-23", None, "got 'ViT-B-23'; close: .*ViT-B-32"),
        ("ViT-B-32", None, "needs pretrained weights, .*openai"),
        ("ViT-B-32", "opnai", "a file or one of the tags .*; close: openai"),
        ("local-dir:/nowhere", None, f"a folder with {CONFIG}"),
        ("hf-hub:a/b", "openai", "left out with hf-hub"),
        (None, "openai", "come with a model"),
    ],
)
def test_a_model_that_is_not_there(name: str | None, pretrained: str | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_model(name, pretrained)


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
        edit(loaded.model, projector).save_undo(tmp_path / f"{i}.undo")
        log.append({"projector": projector.content_hash(), "tower": "image"})
    log.append({"projector": "of the other head", "tower": "text"})
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
