"""`clipproj verify` and `clipproj undo`: exit codes, files, and what they can not use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command import Run
from safetensors.torch import load_file, save_file

from clipproj.checkpoints.state import WEIGHTS


def test_verify_by_exit_code(run: Run, edited: Path, model: Path) -> None:
    receipt = edited / "receipt.safetensors"
    for checkpoint in (edited, edited / WEIGHTS):
        result = run("verify", checkpoint, receipt)
        assert result.exit_code == 0
        assert result.stdout.startswith("image head edited, bit for bit")
        assert "bound" in result.stdout
    result = run("verify", model, receipt, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "unedited"
    state = load_file(edited / WEIGHTS)
    state["visual.proj"][0, 0] += 0.1
    save_file(state, "other.safetensors")
    result = run("verify", "other.safetensors", receipt)
    assert result.exit_code == 1
    assert result.stdout.startswith("image head neither edited")
    assert "since" not in result.stdout


def test_a_later_edit_is_named_by_the_log(run: Run, usual: list[str], edited: Path) -> None:
    rest = usual[2:]
    assert run("erase", "dog", "--model", edited, *rest, "--out", "two").exit_code == 0
    says = 'edited again since by "dog": undo that first'
    verdict = run("verify", "two", edited / "receipt.safetensors", "--json")
    assert says in json.loads(verdict.stdout)["text"]
    refused = run("undo", "two", edited / "undo.safetensors")
    assert (refused.exit_code, refused.stderr.strip().endswith(says)) == (2, True)


@pytest.mark.parametrize(
    ("checkpoint", "receipt", "says"),
    [
        ("none", "clipproj-out/receipt.safetensors", "verify: path must be a checkp"),
        ("clipproj-out", "none", "verify: path must be a file, got none"),
        (
            "clipproj-out",
            "clipproj-out/undo.safetensors",
            "verify: path must hold kind 'receipt'",
        ),
        ("other.safetensors", "clipproj-out/receipt.safetensors", "verify: target must hold one"),
    ],
)
@pytest.mark.usefixtures("edited")
def test_verify_says_what_it_can_not_use(
    run: Run, checkpoint: str, receipt: str, says: str
) -> None:
    save_file({"a": torch.zeros(1)}, "other.safetensors")
    result = run("verify", checkpoint, receipt)
    assert result.exit_code == 2
    assert result.stderr.startswith(says)


def test_undo_in_place(run: Run, edited: Path, model: Path) -> None:
    result = run("undo", edited, edited / "undo.safetensors")
    assert result.exit_code == 0
    assert (
        "the image head is restored, bit for bit: clipproj-out/open_clip_model.safetensors"
        in result.stdout
    )
    restored, original = load_file(edited / WEIGHTS), load_file(model / WEIGHTS)
    assert restored.keys() == original.keys()
    assert all(torch.equal(restored[name], original[name]) for name in original)
    again = run("undo", edited, edited / "undo.safetensors")
    assert again.exit_code == 2
    assert "a head without the edit" in again.stderr
    assert "give force to overwrite it" in again.stderr


def test_undo_of_a_head_that_changed_since_takes_force(run: Run, edited: Path, model: Path) -> None:
    state = load_file(edited / WEIGHTS)
    state["visual.proj"][0, 0] += 0.1
    save_file(state, "other.safetensors")
    refused = run("undo", "other.safetensors", edited / "undo.safetensors")
    assert (refused.exit_code, "one changed since" in refused.stderr) == (2, True)
    forced = run("undo", "other.safetensors", edited / "undo.safetensors", "--force")
    assert forced.exit_code == 0
    assert torch.equal(
        load_file("other.safetensors")["visual.proj"], load_file(model / WEIGHTS)["visual.proj"]
    )


def test_a_forced_undo_says_what_else_goes(run: Run, usual: list[str], edited: Path) -> None:
    for i, name in enumerate(("dog", "owl")):
        source = ["--model", edited if i == 0 else "0", *usual[2:]]
        assert run("erase", name, *source, "--out", str(i)).exit_code == 0
    shutil.copytree("1", "2")
    forced = run("undo", "1", "0/undo.safetensors", "--force")
    assert 'as it was before "dog"; with that, out of its log: "owl"' in forced.stdout
    edits = json.loads(run("info", "1", "--json").stdout)["edits"]
    assert [edit["forget"] for edit in edits] == [["cat"]]
    as_json = run("undo", "2", "0/undo.safetensors", "--force", "--json")
    assert json.loads(as_json.stdout)["removed"] == [["dog"], ["owl"]]
    plain = run("undo", "1", edited / "undo.safetensors")
    assert plain.stdout.endswith('it is as it was before "cat"\n')


def test_undo_into_another_file(run: Run, edited: Path, model: Path) -> None:
    before = (edited / WEIGHTS).read_bytes()
    result = run("undo", edited, edited / "undo.safetensors", "--out", "o.safetensors", "--json")
    assert json.loads(result.stdout)["checkpoint"] == "o.safetensors"
    assert (edited / WEIGHTS).read_bytes() == before
    assert torch.equal(
        load_file("o.safetensors")["visual.proj"], load_file(model / WEIGHTS)["visual.proj"]
    )
