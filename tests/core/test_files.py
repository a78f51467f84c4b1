"""Artefacts: bit-exact round trips, refusal of everything else, no half-written file."""

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipproj import files


@pytest.fixture
def artefact(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.randn(3, 4).T, "a": torch.tensor(1.5), "half": torch.ones(5).bfloat16()}
    files.write(path, "undo", tensors, {"name": "Kater Ümlaut", "n": 3})
    return path, tensors


def test_round_trip_keeps_every_bit(artefact):
    path, tensors = artefact
    back = files.read(path, "undo")
    assert back.kind == "undo"
    assert back.meta == {"name": "Kater Ümlaut", "n": 3}
    assert back.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert torch.equal(back.tensors[name], tensor)


@pytest.mark.parametrize("where", [8, -1])  # in the header, in the data
def test_one_flipped_bit_is_refused(artefact, where):
    path, _ = artefact
    raw = bytearray(path.read_bytes())
    raw[where if where < 0 else raw.index(b"mlaut")] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"load: path must be"):
        files.read(path)


def test_truncated_file_is_refused(artefact):
    path, _ = artefact
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="whole safetensors file"):
        files.read(path)


def test_foreign_newer_and_other_kinds_are_refused(artefact, tmp_path):
    path, _ = artefact
    with pytest.raises(ValueError, match="must hold kind 'projector', got 'undo'"):
        files.read(path, "projector")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.ones(1)}, foreign)
    with pytest.raises(ValueError, match="written by clipproj"):
        files.read(foreign)
    header = {"format": "clipproj-99", "kind": "undo", "meta": "{}", "digest": "0"}
    save_file({"x": torch.ones(1)}, foreign, metadata=header)
    with pytest.raises(ValueError, match="a newer clipproj wrote it"):
        files.read(foreign)
    with pytest.raises(FileNotFoundError, match="load: path must be a file"):
        files.read(tmp_path / "absent")


def test_failure_while_writing_leaves_the_old_file_and_nothing_else(artefact, monkeypatch):
    path, tensors = artefact
    before = path.read_bytes()

    def full_disk(plain, part, metadata):
        part.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, "undo", tensors, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_unwritable_folder_names_the_folder(tmp_path):
    with pytest.raises(OSError, match=r"write: cannot write into .*absent"):
        files.write(tmp_path / "absent" / "a", "undo", {}, {})


def test_written_files_are_readable_by_others(artefact):
    assert artefact[0].stat().st_mode & 0o444 == 0o444


def test_files_are_plain_safetensors(artefact):
    path, tensors = artefact
    assert load_file(path).keys() == tensors.keys()


def test_sha256_sees_dtype_shape_bytes_order_and_absence():
    x = torch.arange(6.0)
    seen = [
        files.sha256(x),
        files.sha256(x.double()),
        files.sha256(x.reshape(2, 3)),
        files.sha256(-x),
        files.sha256(x, None),
        files.sha256(None, x),
        files.sha256(x, text="t"),
    ]
    assert len(set(seen)) == len(seen)
    assert files.sha256(x.reshape(2, 3).T) == files.sha256(x.reshape(2, 3).T.contiguous())


def test_meta_that_is_not_json_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(TypeError):
        files.write(tmp_path / "a", "undo", {}, {"x": object()})
    assert json.dumps([p.name for p in tmp_path.iterdir()]) == "[]"


def test_a_link_is_written_through_and_a_folder_refused(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    files.write(real, "undo", {}, {"n": 1})
    link.symlink_to(real)
    files.write(link, "undo", {}, {"n": 2})
    assert link.is_symlink()
    assert files.read(real).meta == {"n": 2}
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(OSError, match=r"write: cannot write .*folder"):
        files.write(tmp_path / "folder", "undo", {}, {})
    assert len(list(tmp_path.iterdir())) == 3


# Staging folders


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    with files.staging(tmp_path) as stage:
        machine = stage.name.rpartition(".")[0]
        left, elsewhere = tmp_path / f"{machine}.0000", tmp_path / ".clipproj.other.0000"
        for folder in (left, left / "deep", elsewhere, tmp_path / "folder"):
            folder.mkdir()
            (folder / "file").touch()
        link = tmp_path / f"{machine}.link"
        link.symlink_to(tmp_path / "folder")
        files.write(tmp_path / "a", "undo", {}, {})  # whoever writes there sweeps
        kept = {stage, elsewhere, link, tmp_path / "folder", tmp_path / "a"}
        assert set(tmp_path.iterdir()) == kept
    assert set(tmp_path.iterdir()) == kept - {stage}
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


@pytest.mark.parametrize("when", ["before it is opened", "before it is locked"])
def test_a_new_folder_that_another_sweeps_is_made_again(tmp_path, monkeypatch, when):
    opened, swept = files._open, []

    def sweeps(folder):
        lock = opened(folder) if when == "before it is locked" else None
        if not swept:
            swept.append(folder)
            shutil.rmtree(folder)
        return opened(folder) if lock is None else lock

    monkeypatch.setattr(files, "_open", sweeps)
    with files.staging(tmp_path) as stage:
        assert swept == [stage]
        (stage / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_field_that_is_missing_is_the_fault_of_the_file(tmp_path):
    files.write(tmp_path / "a", "receipt", {}, {"label": "cat"})
    files.write(tmp_path / "b", "receipt", {}, ["cat"])
    with pytest.raises(ValueError, match="must hold all that its kind has, got none of 'weight'"):
        files.read(tmp_path / "a").tensors["weight"]
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        files.read(tmp_path / "b")
