"""The command: what it prints, where, with which exit code, and how it says no."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import time
import unicodedata
from pathlib import Path
from threading import Semaphore
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import Run
from rich.console import Console

from clipproj import Projector
from clipproj.checkpoints.state import WEIGHTS
from clipproj.cli import erase as job
from clipproj.cli import terminal
from clipproj.editing.verify import Verdict
from clipproj.recipe import run as carrying_out
from clipproj_command import OutputError


def test_erase_prints_the_table_and_writes(run: Run, usual: list[str], tmp_path: Path) -> None:
    result = run("erase", "cat", *usual)
    assert result.exit_code == 0, result.stderr
    out = result.stdout
    assert "Forgetting “cat”" in out
    assert "5 other image classes; nullspace (hull contrast), rank 1, strength 1" in out
    for row in ("“cat” (3 images)", "all other classes (15 images)", "tall tree", "café",
                "linear probe", "mean cosine", "folded in"):  # fmt: skip
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


def test_a_folder_and_a_keyboard_spell_one_name(
    run: Run, model: Path, images: Path, tmp_path: Path
) -> None:
    apart = unicodedata.normalize("NFD", "café")
    shutil.copytree(images, tmp_path / "mac")
    (tmp_path / "mac" / "café").rename(tmp_path / "mac" / apart)
    for asked, folder in (("café", tmp_path / "mac"), (apart, images)):
        usual = ["--model", model, "--images", folder, "--template", "a {}", "--dry-run", "--json"]
        result = run("erase", asked, *usual)
        assert result.exit_code == 0, result.stdout
        told = json.loads(result.stdout)
        assert told["forget"] == ["café"]
        assert told["scores"]["after"]["forget"] == 0


def test_what_is_left_out_is_told(run: Run, usual: list[str], images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "shown")
    (tmp_path / "shown" / "cat" / "phone.heic").write_bytes(b"")
    usual[usual.index(str(images))] = "shown"
    said = "load_images: left out 1 file of shown: 1 .heic"
    result = run("erase", "cat", *usual)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"note: {said}")
    numbers = json.loads(Path("clipproj-out/report.json").read_text())
    assert numbers["images"] == {"count": 18, "skipped": {".heic": 1}}
    told = json.loads(run("audit", "cat", *usual, "--only", "accuracy", "--json").stdout)
    assert told["source"]["images"] == "18 from shown; 1 other file left out"
    assert told["notes"][0].startswith(said)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_bytes_that_are_no_utf8_are_refused_before_the_work(
    run: Run, usual: list[str], images: Path, tmp_path: Path, dry: list[str]
) -> None:
    odd = os.fsdecode(b"caf\xe9")
    shutil.copytree(images, tmp_path / "shown")
    (tmp_path / "shown" / "café").rename(tmp_path / "shown" / odd)
    for wrong, says in (
        (["cat", "--images", "shown"], "the name of a class folder must be UTF-8 without "),
        (["cat", "--out", odd], "out must be a path in UTF-8, "),
        ([odd], "names must be UTF-8 without control characters and invisible ones, "),
        (["cat", "--keep", odd], "keep must be UTF-8 without control characters and "),
        (["cat", "--synonym", f"cat={odd}"], "synonyms must be UTF-8 without "),
    ):
        result = run("erase", *usual, *wrong, *dry)
        assert result.exit_code == 2
        assert says in result.stderr
        assert r"got 'caf\udce9'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["shown"]


def test_a_note_for_who_folds_into_the_text_tower(run: Run, usual: list[str]) -> None:
    result = run("erase", "cat", "--tower", "text", "--dry-run", "--max-found", "1", *usual)
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
        (["cat", "--max-loss", "2"], "erase: max_loss must be a share in [0, 1], got 2"),
        (["cat", "CAT"], "erase: names must be distinct, got 'cat' and 'CAT'"),
        (["cat", "--keep", "cat"], "erase: keep must not hold what is forgotten"),
        (["cat", "--strength", "2.1"], "erase: strength must be in [0, 2], got 2.1"),
        (["cat", "--images", "none"], "erase: images must be a folder, got none"),
        (["cat", "--synonym", "cat"], "erase: synonym must be NAME=OTHER, got 'cat'"),
        (["cat", "--out", ""], "erase: out must be a folder, got ''"),
        (["cat", "--device", "abacus"], "erase: device must be one that torch has here, such as "),
        (["cat", "--keep-file", "none"], "erase: keep-file must be a file, got none"),
        (["cat", "--projector", "none"], "erase: path must be a file, got none"),
        (["cat", "--model", "none"], "erase: model must be a folder, "),
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


def test_a_note_is_told_though_an_error_follows(run: Run, images: Path) -> None:
    arguments = ("erase", "cat", "unicorn", "--images", images, "--model", "none")
    result = run(*arguments)
    *lines, error = result.stderr.splitlines()
    note = " ".join(" ".join(lines).split())
    assert note.startswith("note: erase: there are no images of 'unicorn'")
    assert error.startswith("erase: model must be a folder")
    said = json.loads(run(*arguments, "--json").stdout)
    assert said == {"error": error, "notes": [note.removeprefix("note: ")]}


def test_an_interrupted_erase_does_not_go_on_whatever_its_words(
    run: Run, usual: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(carrying_out, "check", interrupted)
    result = run("erase", "cat", "--keep", "audit", "compare", *usual)
    assert (result.exit_code, result.stderr) == (130, "")


def test_what_cannot_be_printed_is_written_all_the_same(
    run: Run, usual: list[str], edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OutputError(errno.ENOSPC, "standard output cannot be written: full")

    monkeypatch.setattr(terminal, "show", full)
    monkeypatch.setattr(Console, "print", full)
    for arguments, written in (
        (("erase", "dog", *usual), edited),
        (("undo", edited, edited / "undo.safetensors"), edited / WEIGHTS),
    ):
        error = run(*arguments, "--traceback").exception
        assert error.strerror.endswith(f": full; all is done and written to {written}")
    error = run("erase", "owl", *usual, "--dry-run", "--traceback").exception
    assert error.strerror == "standard output cannot be written: full"
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(flush=full))
    with pytest.raises(OutputError, match=r"written to out$"), terminal.done(Path("out")):
        pass  # of what is in the buffer


def test_a_projector_of_another_model_needs_force(
    run: Run, usual: list[str], tmp_path: Path
) -> None:
    foreign = {"model": "other", "head_hash": "f" * 64, "forget": {"names": ["cat"]}}
    Projector(torch.eye(16)[:1], provenance=foreign).save(tmp_path / "p")
    result = run("erase", "--projector", "p", *usual)
    assert result.exit_code == 2
    assert "projector must come from this model" in result.stderr
    assert "; give force to fold it anyway" in result.stderr
    assert not Path("clipproj-out").exists()
    lifted = ["--max-loss", "1", "--max-found", "1"]
    assert run("erase", "--projector", "p", "--force", *lifted, *usual).exit_code == 0


def test_a_traceback_for_who_asks(
    run: Run, usual: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(run("erase", "cat", "cat", *usual, "--traceback").exception, ValueError)
    monkeypatch.setenv("CLIPPROJ_TRACEBACK", "1")
    assert isinstance(run("erase", "cat", "cat", *usual).exception, ValueError)


def test_a_bug_is_no_failed_receipt(
    run: Run, usual: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying_out, "check", lambda _: {}["bug"])
    result = run("erase", "cat", *usual)
    says = "erase: internal error: KeyError: 'bug'; CLIPPROJ_TRACEBACK=1 shows where"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{says}\n")
    result = run("erase", "cat", *usual, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (2, {"error": says})
    monkeypatch.setenv("CLIPPROJ_TRACEBACK", "1")
    assert isinstance(run("erase", "cat", *usual).exception, KeyError)


def test_bars_where_somebody_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with terminal.progress(True) as say:
        assert say is None
    with terminal.progress(False) as say:
        say("texts", 1, 2)
        say("texts", 2, 2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_a_log_gets_lines_while_a_stage_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    goes_on = Semaphore(0)  # in place of time
    monkeypatch.setattr(terminal, "_pause", lambda _: 1 - goes_on.acquire())
    said = out = ""
    with terminal.progress(as_json) as say:
        for stage in ("texts", "images"):
            say(stage, 1, 2)
            goes_on.release()
            for _ in range(1000):
                if said.endswith(f"{stage} 1/2\n"):
                    break
                time.sleep(0.01)
                read = capsys.readouterr()
                said, out = said + read.err, out + read.out
        goes_on.release()
    assert re.fullmatch(r"\d+ s: texts 1/2\n\d+ s: images 1/2\n", said)
    assert out == ""


def test_few_lines_even_of_a_long_run() -> None:
    now, lines = 0.0, []
    while now < 8 * 3600:
        now += terminal._pause(now)
        lines.append(now)
    assert lines[0] == 10
    assert len(lines) < 100
