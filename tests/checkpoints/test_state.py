"""State dict files: read as open_clip reads them, written whole or not at all."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from stored import same

from clipproj.checkpoints.state import (
    INDEX,
    WEIGHTS,
    locate,
    read_edits,
    read_state,
    replace_tensors,
    write_state,
)

STATE = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.ones(3, dtype=torch.float16)}


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
    record = {"projector": "a" * 64, "forget": ["cat"], "tower": "image", "strength": 1.0}
    write_state(tmp_path / "s.safetensors", STATE, [record])
    assert same(read_state(tmp_path / "s.safetensors"), STATE)
    assert read_edits(tmp_path / "s.safetensors") == [record]
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


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_every_shard(tmp_path: Path) -> None:
    big, hard = torch.arange(1 << 15), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for suffix, name in ((".pt", "one"), (".safetensors", "two")):
        file = tmp_path / f"{name}{suffix}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, hard))
        state = {"a": torch.zeros(2), "b": big}
        torch.save(state, file) if suffix == ".pt" else save_file(state, file)
        before = tiny.tree(tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        with pytest.raises(OSError, match=r"cannot write|too large"):
            replace_tensors(file, {"a": torch.ones(2)}, [])
        assert tiny.tree(tmp_path) == before


def test_a_file_with_two_tensors_of_one_name_is_refused(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(2), "a": torch.ones(2)}, tmp_path / "s.pt")
    with pytest.raises(ValueError, match="each tensor once"):
        read_state(tmp_path / "s.pt")


@pytest.mark.parametrize("wrong", [1, None, "", "..", "../m/x"])
def test_an_index_that_names_no_file_beside_it_is_refused(tmp_path: Path, wrong: Any) -> None:
    index = tmp_path / f"{WEIGHTS}{INDEX}"
    index.write_text(json.dumps({"weight_map": {"a": wrong}}))
    with pytest.raises(ValueError, match="shards must lie beside their index, got"):
        read_state(index)
