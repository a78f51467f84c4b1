"""`clipproj info`: what it says of any file, and that it says something of every file."""

from __future__ import annotations

import json
import os
import pickle
import random
import warnings
from pathlib import Path

import pytest
import torch
from command import Run
from PIL import Image
from safetensors.torch import load_file

from clipproj import Projector, ProjectorBank, files
from clipproj.audit import Samples
from clipproj.checkpoints.checkpoint import load_model
from clipproj.checkpoints.state import WEIGHTS
from clipproj.cli import info
from clipproj.models.text import Embeddings
from clipproj.plugins.attach import attach


@pytest.mark.parametrize(
    ("file", "kind", "holds"),
    [
        ("projector.safetensors", "projector", {"rank": 1, "dim": 16, "forget": ["cat"]}),
        ("receipt.safetensors", "receipt", {"edit": "cat", "head": ["visual.proj"]}),
        ("folded.safetensors", "projector", {"form": "oblique"}),
        ("undo.safetensors", "undo", {"edit": "cat", "tower": "image"}),
        (WEIGHTS, "checkpoint", {"dtypes": {"float32": 38}}),
        (".", "checkpoint", {"tensors": 38}),
    ],
)
def test_info(run: Run, edited: Path, file: str, kind: str, holds: dict) -> None:
    facts = json.loads(run("info", edited / file, "--json").stdout)
    assert facts["kind"] == kind
    assert holds.items() <= facts.items()
    table = run("info", edited / file)
    assert table.exit_code == 0
    assert kind in table.stdout


def test_info_tells_what_is_proven(run: Run, edited: Path) -> None:
    told = json.loads((edited / "report.json").read_text())["certificate"]
    facts = json.loads(run("info", edited / "projector.safetensors", "--json").stdout)
    assert facts["certificate"].startswith("Certified: no row is answered by a forgotten name.")
    assert f"{told['kept']} kept names" in facts["certificate"]
    facts = json.loads(run("info", edited / "receipt.safetensors", "--json").stdout)
    assert facts["certificate"].startswith("Not certified: rounding may decide.")


def test_info_of_what_is_attached(run: Run) -> None:
    loaded = load_model()
    p = Projector(torch.eye(1, 128), provenance={"forget": {"names": ["cat"]}})
    with attach(loaded.model, p) as attached:
        attached.receipt().save("attached.safetensors")
    facts = json.loads(run("info", "attached.safetensors", "--json").stdout)
    assert (facts["kind"], facts["edit"], facts["tower"]) == ("attachment", "cat", "image")
    assert facts["projector"] == p.content_hash()


def test_info_of_a_bank_names_its_projectors(run: Run) -> None:
    bank, p = ProjectorBank(8, 16), Projector(torch.eye(2, 8), strength=1.5)
    bank.add("acme", p)
    bank.save("bank.safetensors")
    facts = json.loads(run("info", "bank.safetensors", "--json").stdout)
    assert (facts["kind"], facts["dim"], facts["free"]) == ("bank", 8, 14)
    assert facts["hash"] == bank.content_hash()
    entry = f"rank 2, strength 1.5, {p.content_hash()[:12]}"
    assert facts["projectors"] == {"acme": entry}


def test_info_of_every_kind_of_file(run: Run) -> None:
    names = tuple(f"class {i}" for i in range(12))
    classes = Embeddings(torch.eye(12, 16), names, ("{}",), "a model", None)
    Samples(torch.ones(3, 16), torch.arange(3), classes).save("samples.safetensors")
    facts = json.loads(run("info", "samples.safetensors", "--json").stdout)
    assert (facts["kind"], facts["model"], facts["images"]) == ("samples", "a model", 3)
    assert facts["classes"] == [*names[:8], "4 more"]
    meta = {"key": "k", "model": "a model", "template": "a {}"}
    files.write("texts.safetensors", "texts", {"texts": torch.eye(12, 16)}, meta)
    facts = json.loads(run("info", "texts.safetensors", "--json").stdout)
    assert (facts["model"], facts["template"]) == ("a model", "a {}")
    assert (facts["texts"], facts["dim"]) == (12, 16)
    assert info._DESCRIBE.keys() == set(files.KINDS)
    files.write("newer.safetensors", "tomorrow's", {}, {})
    assert 'must be of a known kind, got "tomorrow\'s"' in run("info", "newer.safetensors").stderr


def test_info_of_a_checkpoint_names_heads_and_edits(run: Run, edited: Path, model: Path) -> None:
    facts = json.loads(run("info", edited, "--json").stdout)
    assert facts["heads"]["visual.proj"]["shape"] == [32, 16]
    assert [edit["forget"] for edit in facts["edits"]] == [["cat"]]
    torch.save(load_file(model / WEIGHTS), "plain.pt")
    facts = json.loads(run("info", "plain.pt", "--json").stdout)
    assert set(facts["heads"]) == {"visual.proj", "text_projection"}
    assert facts["edits"] == []


def test_info_of_any_file_whatever(run: Run, edited: Path) -> None:
    chance = random.Random(0)

    def noise(count: int) -> bytes:
        return chance.randbytes(count)

    def damaged(data: bytes) -> bytes:
        kept = bytearray(data[: chance.randrange(1, len(data) + 1)])
        kept[chance.randrange(min(len(kept), 1000))] ^= chance.randrange(256)
        return bytes(kept)

    torch.save({"visual.proj": torch.ones(3, 3)}, "small.pt")
    torch.save([torch.ones(2)], "list.pt", _use_new_zipfile_serialization=False)
    Image.new("RGB", (9, 9)).save("image.png")
    whole = [Path("small.pt"), Path("list.pt"), edited / "undo.safetensors"]
    contents = [b"", b"\0" * 99, b"{}", b'{"a": [1]}', b"<html>", Path("image.png").read_bytes()]
    contents += [pickle.dumps(one, protocol) for one in ({}, [1], Path()) for protocol in (0, 2, 5)]
    contents += [b"\x80\x02e.", b"\x80\x020.", b"\x80\x02h\x00."]  # pops, gets of what is not there
    contents += [noise(chance.choice((1, 7, 8, 20, 200))) for _ in range(30)]
    contents += [b"\x80\x02" + noise(9) for _ in range(30)]
    contents += [damaged(path.read_bytes()) for path in whole for _ in range(10)]
    os.mkfifo("pipe")
    for suffix in ("", ".safetensors", ".pt"):
        Path(f"folder{suffix}").mkdir()
    names = ["folder", "folder.safetensors", "folder.pt", "pipe", "/dev/null", "x\0", "n" * 300, ""]
    for i, content in enumerate(contents):
        for suffix in ("", ".safetensors"):
            names.append(f"{i}{suffix}")
            Path(names[-1]).write_bytes(content)
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it would be a second line
            result = run("info", name)
        if result.exit_code:  # a flipped bit of a number is no damage that shows
            assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), name
            assert result.stderr.startswith("info: "), name
            assert "internal error" not in result.stderr, name


def test_info_of_something_else(run: Run, edited: Path) -> None:
    Path("text.safetensors").write_text("no tensors here")
    for name, says in (
        ("text.safetensors", "info: file must be whole, "),
        ("none", "info: file must exist, got none"),
    ):
        result = run("info", name)
        assert result.exit_code == 2
        assert result.stderr.startswith(says)
