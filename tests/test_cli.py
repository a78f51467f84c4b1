"""The command: what it prints, where, with which exit code, and how it says no."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipproj import Projector, ProjectorBank, __version__
from clipproj.cli import erase as job
from clipproj.cli import terminal
from clipproj.receipt import Verdict
from clipproj.state import WEIGHTS

Run = Callable[..., Any]  # a result with exit_code, stdout, stderr, exception


def test_erase_prints_the_table_and_writes(run: Run, usual: list[str], tmp_path: Path) -> None:
    result = run("erase", "cat", *usual)
    assert result.exit_code == 0, result.stderr
    out = result.stdout
    assert "Forgetting “cat”" in out
    assert "5 other picture classes; nullspace (span contrast), rank 1, strength 1" in out
    for row in ("“cat” (3 pictures)", "all other classes (15 pictures)", "tall tree", "café",
                "linear probe", "cosine", "time of the edit"):  # fmt: skip
        assert row in out
    assert "receipt: image head edited, bit for bit" in out
    assert "undo with: clipproj undo clipproj-out/open_clip_model.safetensors" in out
    assert "not" in out.split("linear probe still")[0]
    assert result.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["clipproj-out"]


def test_a_rehearsal_leaves_nothing(run: Run, usual: list[str], tmp_path: Path) -> None:
    result = run("erase", "cat", *usual, "--dry-run")
    assert result.exit_code == 0
    assert "dry run: nothing written" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_and_nothing_else(run: Run, usual: list[str]) -> None:
    result = run("erase", "cat", "--json", "--keep", "dog", "--keep", "owl", *usual)
    assert result.exit_code == 0
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert said["forget"] == ["cat"]
    assert said["keep"] == {"from": "given", "names": ["dog", "owl"]}
    assert said["scores"]["before"]["forget"] == 1
    assert said["scores"]["after"]["forget"] == 0
    assert said["receipt"]["status"] == "edited"
    assert said["notes"] == []
    assert Path(said["files"]["checkpoint"]).is_file()


def test_names_to_keep_from_a_file(run: Run, usual: list[str], tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("# the good ones\ndog\n\n  tall tree \n", encoding="utf-8")
    result = run("erase", "cat", "--json", "--keep-file", "keep.txt", "--keep", "owl", *usual)
    assert json.loads(result.stdout)["keep"]["names"] == ["owl", "dog", "tall tree"]


def test_names_to_keep_from_a_file_of_another_editor(
    run: Run, usual: list[str], tmp_path: Path
) -> None:
    (tmp_path / "keep.txt").write_text("dog\nowl\n", encoding="utf-8-sig")
    result = run("erase", "cat", "--json", "--keep-file", "keep.txt", *usual)
    assert json.loads(result.stdout)["keep"]["names"] == ["dog", "owl"]
    (tmp_path / "keep.txt").write_text("café\n", encoding="latin-1")
    result = run("erase", "cat", "--keep-file", "keep.txt", *usual)
    assert result.exit_code == 2
    assert result.stderr.startswith("erase: keep-file must be UTF-8 text, got keep.txt")


@pytest.mark.parametrize("columns", ["20", "200"])
def test_names_of_any_letters_in_any_width(
    run: Run, usual: list[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = run("erase", "CAFÉ", "Tall Tree", *usual, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "café" in result.stdout


def test_a_note_for_who_folds_into_the_text_tower(run: Run, usual: list[str]) -> None:
    result = run("erase", "cat", "--tower", "text", "--dry-run", *usual)
    assert result.exit_code == 0
    assert result.stderr.startswith("note: edit: ")
    said = json.loads(run("erase", "cat", "--tower", "text", "--json", *usual).stdout)
    assert len(said["notes"]) == 1


def test_a_failed_receipt_is_exit_code_1(
    run: Run, usual: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "verify", lambda *_: Verdict("tampered", False, 1.0, 0.1, "no good"))
    result = run("erase", "cat", *usual)
    assert result.exit_code == 1
    assert "receipt: no good" in result.stdout
    assert "nothing written" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cta"], "erase: names must be among the 6 picture folders, got 'cta'; there is cat"),
        (["cat", "CAT"], "erase: names must be distinct, got 'cat' and 'CAT'"),
        (["cat", "--keep", "cat"], "erase: keep must not hold what is forgotten"),
        (["cat", "--strength", "2.1"], "erase: Projector: strength must be in [0, 2], got 2.1"),
        (["cat", "--images", "none"], "erase: images must be a folder, got none"),
        (["cat", "--synonym", "cat"], "erase: synonym must be NAME=OTHER, got 'cat'"),
        (["cat", "--out", ""], "erase: out must be a folder, got ''"),
        (["cat", "--device", "abacus"], "erase: device must be one that torch has here, such as "),
        (["cat", "--keep-file", "none"], "erase: keep-file must be a file, got none"),
        (["cat", "--projector", "none"], "erase: load: path must be a file, got none"),
        (["cat", "--model", "none"], "erase: load_model: model must be a folder, "),
        (["cat", "--rank", "some"], "erase: Invalid value for '--rank'"),
        (["cat", "--nonsense"], "erase: No such option: --nonsense"),
        ([], "erase: names must hold at least one class to forget, got none"),
    ],
)
def test_an_error_is_one_line_or_json(
    run: Run, usual: list[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    result = run("erase", *usual, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1
    as_json = run("erase", *usual, *arguments, "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout)["error"] == result.stderr.strip()
    assert as_json.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_projector_of_another_model_needs_force(
    run: Run, usual: list[str], tmp_path: Path
) -> None:
    foreign = {"model": "other", "head_hash": "f" * 64, "forget": {"names": ["cat"]}}
    Projector(torch.eye(16)[:1], provenance=foreign).save(tmp_path / "p")
    result = run("erase", "--projector", "p", *usual)
    assert result.exit_code == 2
    assert "projector must come from this model" in result.stderr
    assert "; --force folds it anyway" in result.stderr
    assert not Path("clipproj-out").exists()
    assert run("erase", "--projector", "p", "--force", *usual).exit_code == 0


def test_a_traceback_for_who_asks(
    run: Run, usual: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(run("erase", "cta", *usual, "--traceback").exception, ValueError)
    monkeypatch.setenv("CLIPPROJ_TRACEBACK", "1")
    assert isinstance(run("erase", "cta", *usual).exception, ValueError)


def test_a_bug_is_no_failed_receipt(
    run: Run, usual: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "check", lambda _: {}["bug"])
    result = run("erase", "cat", *usual)
    says = "erase: internal error: KeyError: 'bug'; CLIPPROJ_TRACEBACK=1 shows where"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{says}\n")
    result = run("erase", "cat", *usual, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (2, {"error": says})
    monkeypatch.setenv("CLIPPROJ_TRACEBACK", "1")
    assert isinstance(run("erase", "cat", *usual).exception, KeyError)


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
        ("none", "clipproj-out/receipt.safetensors", "verify: checkpoint: path must be a checkp"),
        ("clipproj-out", "none", "verify: load: path must be a file, got none"),
        (
            "clipproj-out",
            "clipproj-out/undo.safetensors",
            "verify: load: path must hold kind 'receipt'",
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
    assert "--force overwrites it" in again.stderr


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


def test_undo_into_another_file(run: Run, edited: Path, model: Path) -> None:
    before = (edited / WEIGHTS).read_bytes()
    result = run("undo", edited, edited / "undo.safetensors", "--out", "o.safetensors", "--json")
    assert json.loads(result.stdout)["checkpoint"] == "o.safetensors"
    assert (edited / WEIGHTS).read_bytes() == before
    assert torch.equal(
        load_file("o.safetensors")["visual.proj"], load_file(model / WEIGHTS)["visual.proj"]
    )


@pytest.mark.parametrize(
    ("file", "kind", "holds"),
    [
        ("projector.safetensors", "projector", {"rank": 1, "dim": 16, "forget": ["cat"]}),
        ("receipt.safetensors", "receipt", {"edit": "cat", "head": ["visual.proj"]}),
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


def test_info_of_a_bank_names_its_projectors(run: Run) -> None:
    bank, p = ProjectorBank(8, 16), Projector(torch.eye(2, 8), strength=1.5)
    bank.add("acme", p)
    bank.save("bank.safetensors")
    facts = json.loads(run("info", "bank.safetensors", "--json").stdout)
    assert (facts["kind"], facts["dim"], facts["free"]) == ("bank", 8, 14)
    assert facts["hash"] == bank.content_hash()
    entry = f"rank 2, strength 1.5, {p.content_hash()[:12]}"
    assert facts["projectors"] == {"acme": entry}


def test_info_of_a_checkpoint_names_heads_and_edits(run: Run, edited: Path, model: Path) -> None:
    facts = json.loads(run("info", edited, "--json").stdout)
    assert facts["heads"]["visual.proj"]["shape"] == [32, 16]
    assert [edit["forget"] for edit in facts["edits"]] == [["cat"]]
    torch.save(load_file(model / WEIGHTS), "plain.pt")
    facts = json.loads(run("info", "plain.pt", "--json").stdout)
    assert set(facts["heads"]) == {"visual.proj", "text_projection"}
    assert facts["edits"] == []


def test_info_of_something_else(run: Run, edited: Path) -> None:
    Path("text.safetensors").write_text("no tensors here")
    for name in ("text.safetensors", "none"):
        result = run("info", name)
        assert result.exit_code == 2
        assert result.stderr.startswith("info: ")


def test_progress_only_where_somebody_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.progress(False) as say:
        assert say is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with terminal.progress(True) as say:
        assert say is None
    with terminal.progress(False) as say:
        say("texts", 1, 2)
        say("texts", 2, 2)
    assert capsys.readouterr().out == ""


def test_help_teaches(run: Run) -> None:
    top = run("--help")
    assert top.exit_code == 0
    for command in ("erase", "verify", "undo", "info"):
        assert command in top.stdout
        assert run(command, "--help").exit_code == 0
    text = " ".join(run("erase", "--help").stdout.split())
    for lesson in ("clipproj erase cat", "What the numbers mean", "not the information",
                   "linear probe", "Exit codes"):  # fmt: skip
        assert lesson in text


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"clipproj {__version__}\n"


def script(*arguments: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


def test_help_does_not_wait_for_open_clip() -> None:
    code = (
        "import sys\nfrom clipproj.cli import main\ntry:\n    main()\nexcept SystemExit: pass\n"
        "print([m for m in ('open_clip', 'torchvision', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    result = script("erase", "--help", code=code)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from clipproj.cli import main; main()"
    result = script("--help", code=code)
    assert result.returncode == 2
    assert 'pip install "clipproj[cli]"' in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_nobody_reads_on(edited: Path, extra: list[str]) -> None:
    code = "from clipproj.cli import main; main()"
    command = [sys.executable, "-c", code, "info", str(edited / "projector.safetensors"), *extra]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_hub_does_not_report_every_retry() -> None:
    pytest.importorskip("huggingface_hub")
    code = (
        "import logging\nfrom clipproj.cli import terminal\nwith terminal.quiet(False):\n"
        "    import huggingface_hub.utils\n"
        "    logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s')\n"
    )
    result = script(code=code)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_installed_command() -> None:
    command = shutil.which("clipproj", path=Path(sys.executable).parent)
    if command is None:
        pytest.skip("clipproj is not installed beside this Python")
    result = subprocess.run([command, "erase"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr == "erase: names must hold at least one class to forget, got none\n"
