"""The log of edits of a folder of transformers: in its config, held against its weights."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from families import FAMILIES, MODELS
from plugin_models import clip_folder, projector
from safetensors import safe_open
from stored import bits

from clipproj import RecordedEdit, edit, edits, undo
from clipproj.checkpoints.checkpoint import load_model, save_model
from clipproj.checkpoints.checkpoint import undo as checkpoint_undo
from clipproj.checkpoints.state import (
    HF_WEIGHTS,
    INDEX,
    locate,
    read_edits,
    read_state,
)
from clipproj.editing.verify import verify
from clipproj.models.heads import find_heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("hf") / "clip")


@pytest.fixture
def logged(folder: Path, tmp_path: Path) -> Path:
    """A folder with one edit, and its undo file."""
    loaded, to = load_model(str(folder)), tmp_path / "logged"
    to.mkdir()
    edit(loaded.model, projector(1)).save_undo(to / "undo.safetensors")
    save_model(loaded, to)
    assert len(read_edits(locate(to))) == 1
    return to


@pytest.mark.parametrize("log", [None, [], "x", {"edits": None}, {"edits": [{"tower": "image"}]}])
def test_a_log_written_by_hand_is_refused_or_read(logged: Path, log: Any) -> None:
    config = json.loads((logged / "config.json").read_text())
    (logged / "config.json").write_text(json.dumps(config | {"clipproj": log}))
    before = tiny.tree(logged)
    model = transformers.CLIPModel.from_pretrained(logged)
    calls = [lambda: read_edits(locate(logged)), lambda: edits(model),
             lambda: edit(model, projector(1)), lambda: load_model(str(logged)),
             lambda: checkpoint_undo(logged, logged / "undo.safetensors")]  # fmt: skip
    if log == []:
        assert (calls[0](), calls[1]()) == ([], ())
        return
    for call in calls:
        with pytest.raises(ValueError, match=r"edits: .* must h"):
            call()
    assert tiny.tree(logged) == before


def test_a_config_alone_claims_no_edit(logged: Path, folder: Path) -> None:
    config = transformers.CLIPConfig.from_pretrained(logged)
    assert edits(transformers.CLIPModel(config)) == ()
    assert edits(transformers.CLIPModel.from_pretrained(folder, config=config)) == ()
    assert len(edits(transformers.CLIPModel.from_pretrained(logged))) == 1
    assert len(edits(transformers.CLIPModel.from_pretrained(logged, dtype=torch.float16))) == 1


def test_the_log_of_a_folder_is_that_of_its_weights(logged: Path, folder: Path) -> None:
    undo_file, bin_file = logged / "undo.safetensors", logged / "pytorch_model.bin"
    torch.save(read_state(folder / HF_WEIGHTS), bin_file)
    before = tiny.tree(logged)
    assert read_edits(bin_file) == []  # it has no edit
    with pytest.raises(ValueError, match=r"whole model of its folder, model\.safetensors, got"):
        checkpoint_undo(bin_file, undo_file, force=True)
    with pytest.raises(
        ValueError, match=r"out must be a file of its own, got .*model\.safetensors, which"
    ):
        checkpoint_undo(folder, undo_file, logged / HF_WEIGHTS, force=True)
    assert tiny.tree(logged) == before
    (logged / "open_clip_config.json").write_text("{}")  # as hubs have them side by side
    assert len(read_edits(locate(logged))) == 1
    checkpoint_undo(logged, undo_file)
    (logged / "open_clip_config.json").unlink()
    assert read_edits(locate(logged)) == []
    assert bits(logged) == bits(folder)


def test_a_shard_is_not_undone_alone(logged: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(logged)
    (logged / HF_WEIGHTS).unlink()
    model.save_pretrained(logged, max_shard_size="60KB")
    index = json.loads((logged / f"{HF_WEIGHTS}{INDEX}").read_text())
    shard = logged / index["weight_map"]["visual_projection.weight"]
    before = tiny.tree(logged)
    with pytest.raises(ValueError, match=r"whole model of its folder, model\.safetensors\.index"):
        checkpoint_undo(shard, logged / "undo.safetensors")
    assert tiny.tree(logged) == before
    assert len(read_edits(locate(logged))) == 1


@pytest.mark.parametrize("fails", ["config.json", HF_WEIGHTS])
def test_undo_replaces_all_files_or_none(
    logged: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    before, replace = tiny.tree(logged), os.replace

    def refused(source: Path, target: Path) -> None:
        if Path(target) == logged / fails and Path(source).parent.parent == logged:
            monkeypatch.setattr(os, "replace", replace)
            raise PermissionError(1, "no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError):
        checkpoint_undo(logged, logged / "undo.safetensors")
    assert tiny.tree(logged) == before


@pytest.mark.filterwarnings("ignore:edit. an edit of the text head can vanish")
@pytest.mark.parametrize("name", MODELS)
def test_every_family_keeps_its_edits_through_save_pretrained(name: str, tmp_path: Path) -> None:
    model = FAMILIES[name].build()
    heads = [head for head in find_heads(model) if head.foldable]
    config = model.config
    head = heads[0]
    p = projector(1, head.tower, dim=head.width)
    made = edit(model, p, head.tower)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / HF_WEIGHTS, "pt") as opened:
        assert {head.weight for head in heads} <= set(opened.keys())
    assert verify(read_state(locate(tmp_path)), made.receipt).exact
    again = type(model).from_pretrained(tmp_path)
    want = RecordedEdit((made.receipt.label,), head.tower, 1.0, p.content_hash())
    assert edits(again) == (want,)
    assert edits(model) == (made,)
    assert edits(copy.deepcopy(model)) == (want,)
    assert not hasattr(config, "clipproj")  # another model may have been made of it
    made.save_undo(tmp_path / "undo")
    undo(again, tmp_path / "undo")
    assert edits(again) == ()
    made.undo()
    assert (edits(model), hasattr(model.config, "clipproj")) == ((), False)


def test_a_live_edit_comes_after_what_the_checkpoint_says(erased: Path, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(erased)
    with edit(model, projector(1)) as made:
        recorded, live = edits(model)
        assert (recorded.forget, live) == (("cat",), made)
    assert edits(model) == (recorded,)
