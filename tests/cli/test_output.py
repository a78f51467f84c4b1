"""An output folder is written whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import WRITTEN, tree

import clipproj_command
from clipproj import Projector, files, load
from clipproj.checkpoints.state import CONFIG, WEIGHTS
from clipproj.cli import erase as job
from clipproj.cli.erase import FILES, erase
from clipproj.cli.output import Output
from clipproj.editing.log import Edit
from clipproj.editing.receipt import Receipt
from clipproj.editing.verify import Verdict
from clipproj.recipe import Recipe, run


def test_the_output_must_not_be_the_model(ask: Callable[..., Recipe], model: Path) -> None:
    before = tree(model)
    with pytest.raises(ValueError, match="another folder than the model's own"):
        erase(ask("cat", out=model))
    assert tree(model) == before


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_the_output_must_not_hold_another_model(
    ask: Callable[..., Recipe], model: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(model / name, tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="must be empty or an earlier output of clipproj"):
        erase(ask("cat"))
    assert tree(tmp_path) == before


def test_the_output_must_not_be_a_file(ask: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out must be a folder, got the file"):
        erase(ask("cat"))
    with pytest.raises(ValueError, match=r"out must be a folder, got .*deep, below the file .*out"):
        erase(ask("cat", out=tmp_path / "out" / "deep"))
    assert (tmp_path / "out").read_text() == "mine"


def test_the_output_must_not_be_a_dangling_link(ask: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="out must be a folder, got the dangling link"):
        erase(ask("cat"))
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_where_a_file_is_to_be_is_found_before_the_work(
    ask: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask("cat")
    erase(request)
    (request.out / FILES["undo"]).unlink()
    (request.out / FILES["undo"]).mkdir()
    before = tree(request.out)
    monkeypatch.setattr(run, "embed", None)  # would be called if it came to that
    with pytest.raises(ValueError, match=r"out must have no folder .* got .*undo.safetensors"):
        erase(ask("dog"))
    assert tree(request.out) == before


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("count", [0, 1, 4, 7, 10])
def test_whatever_happens_between_two_renames(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    earlier: bool,
    error: type[BaseException],
    count: int,
) -> None:
    folder, names = tmp_path / "deep" / "out", sorted(WRITTEN)
    output = Output(folder, names, None)
    if earlier:
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("old")
    before, replace, calls = tree(tmp_path), os.replace, iter(range(100))

    def fails_once(source: Path, target: Path) -> None:
        if next(calls) == (count if earlier else count // 2):
            raise error
        replace(source, target)

    with output.staged() as stage:
        for name in names:
            (stage / name).write_text("new")
        monkeypatch.setattr(os, "replace", fails_once)
        with pytest.raises(error):
            output.publish(stage)
    assert tree(tmp_path) == before
    assert (tmp_path / "deep").exists() == earlier


@pytest.fixture
def handled() -> Iterator[None]:
    """Signals end the work as they end that of the command."""
    before = {number: signal.getsignal(number) for number in clipproj_command.ENDS}
    clipproj_command._handle(clipproj_command._unwind, clipproj_command._DEFAULTS)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def write(output: Output, names: Iterable[str]) -> None:
    with output.staged() as stage:
        for name in names:
            (stage / name).write_text("new")
        output.publish(stage)


AGAIN = [
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGTERM, signal.SIGHUP),
    (signal.SIGHUP, signal.SIGINT),
    (signal.SIGTERM, signal.SIGTERM),
]


@pytest.mark.parametrize("signals", AGAIN)
def test_a_second_signal_does_not_end_the_cleaning_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handled: None, signals: tuple[int, int]
) -> None:
    folder, names = tmp_path / "out", sorted(WRITTEN)
    output = Output(folder, names, None)
    folder.mkdir()
    for name in names:
        (folder / name).write_text("old")
    before, replace, remove = tree(tmp_path), os.replace, shutil.rmtree
    calls = iter(range(100))

    def signalled(source: Path, target: Path) -> None:
        call = next(calls)
        if call >= 4:  # in the middle, then once more with each step back
            signal.raise_signal(signals[call > 4])
        replace(source, target)

    def removed(*given: Any, **options: Any) -> None:
        signal.raise_signal(signals[1])
        remove(*given, **options)

    monkeypatch.setattr(os, "replace", signalled)
    monkeypatch.setattr(shutil, "rmtree", removed)
    with pytest.raises(SystemExit) as ended:
        write(output, names)
    assert ended.value.code == 128 + signals[0]
    assert next(calls) == 7  # both of those that were replaced are back
    assert tree(tmp_path) == before


@pytest.mark.parametrize("signals", AGAIN)
def test_a_second_signal_while_staging_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handled: None, signals: tuple[int, int]
) -> None:
    remove = shutil.rmtree

    def removed(*given: Any, **options: Any) -> None:
        for _ in range(2):
            signal.raise_signal(signals[1])
        remove(*given, **options)

    monkeypatch.setattr(shutil, "rmtree", removed)
    output = Output(tmp_path, [], None)
    monkeypatch.setattr(output, "publish", lambda _: signal.raise_signal(signals[0]))
    with pytest.raises(SystemExit) as ended:
        write(output, ["weights"])
    assert ended.value.code == 128 + signals[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("done", [False, True])
def test_interrupted_when_the_old_files_go_the_output_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    folder, rename = tmp_path / "out", Path.rename
    folder.mkdir()
    output = Output(folder, ["a"], None)
    (folder / "a").write_text("old")

    def interrupted(source: Path, target: Path) -> None:
        if done:
            rename(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(output, ["a"])
    assert tree(tmp_path) == {"out/a": b"new" if done else b"old"}


def test_a_file_that_nobody_foresaw_replaces_none(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("mine")
    output = Output(tmp_path, WRITTEN, None)
    with output.staged() as stage:
        for name in (*WRITTEN, "vocab.txt"):
            (stage / name).write_text("new")
        with pytest.raises(ValueError, match=r"an earlier output of clipproj, got .*vocab\.txt"):
            output.publish(stage)
    assert tree(tmp_path) == {"vocab.txt": b"mine"}


def test_the_weights_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    monkeypatch.setattr(os, "replace", lambda source, _: moved.append(source.name))
    output = Output(tmp_path / "out", WRITTEN, None)
    with output.staged() as stage:
        for name in WRITTEN:
            (stage / name).touch()
        output.publish(stage)
    assert set(moved) == WRITTEN
    assert moved[-1] == WEIGHTS


@pytest.mark.parametrize("count", [1, 2, 13])
def test_a_kill_between_two_renames_costs_nothing_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    folder, names = tmp_path / "out", sorted(WRITTEN)
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f"old {name}")
    replace, calls = os.replace, iter(range(100))

    def dies(source: Path, target: Path) -> None:
        if next(calls) == count:
            os._exit(9)
        replace(source, target)

    child = os.fork()
    if child == 0:
        try:
            output = Output(folder, [], None)
            output.names.update(names)
            with output.staged() as stage:
                for name in names:
                    (stage / name).write_text("new")
                monkeypatch.setattr(os, "replace", dies)
                output.publish(stage)
        finally:
            os._exit(0)  # never a second pytest
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    files.sweep(folder)
    texts = [data.decode() for data in tree(tmp_path).values()]
    assert {text for text in texts if text.startswith("old")} == {f"old {name}" for name in names}
    (replaced,) = folder.glob(".clipproj-replaced.*")
    with pytest.raises(ValueError, match=f"out must hold one output, .*: {replaced} keeps"):
        Output(folder, [], None)
    for path in replaced.iterdir():
        path.rename(folder / path.name)
    Output(folder, [], None)
    assert not replaced.exists()


def test_room_that_a_killed_run_took_is_given_back_first(tmp_path: Path) -> None:
    with files.staging(tmp_path) as stage:
        left = stage.with_suffix(".0000")
    left.mkdir()
    (left / WEIGHTS).touch()
    Output(tmp_path / "out", WRITTEN, None).need(0)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_output_is_replaced_and_other_files_stay(
    ask: Callable[..., Recipe], tmp_path: Path
) -> None:
    request = ask("cat", out=tmp_path / "deep" / "er")
    erase(request)
    (request.out / "notes.txt").write_text("mine")
    (request.out / "folder").mkdir()
    erase(ask("dog", out=request.out))
    assert load(request.out / FILES["projector"]).provenance["forget"]["names"] == ["dog"]
    assert {path.name for path in request.out.iterdir()} == {*WRITTEN, "notes.txt", "folder"}
    assert (request.out / "notes.txt").read_text() == "mine"


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Sets the size at which the disk is full, for one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("size", [0, 3000, 1 << 20])
def test_a_full_disk_changes_nothing(
    ask: Callable[..., Recipe],
    tmp_path: Path,
    limit_files: Callable[[int], None],
    size: int,
    earlier: bool,
) -> None:
    if earlier:
        erase(ask("dog"))
    before = tree(tmp_path)
    limit_files(size)
    with pytest.raises(OSError, match=r"cannot write|File too large"):
        erase(ask("cat"))
    limit_files(1 << 30)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * earlier


@pytest.mark.parametrize("what", ["checkpoint", "projector", "undo", "receipt", "report"])
def test_whatever_cannot_be_written_nothing_is(
    ask: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = {
        "checkpoint": (job, "save_model"),
        "projector": (Projector, "save"),
        "undo": (Edit, "save_undo"),
        "receipt": (Receipt, "save"),
        "report": (job, "write_report"),
    }[what]
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left"):
        erase(ask("cat"))
    assert list(tmp_path.iterdir()) == []


def test_room_is_asked_for_before_the_work(
    ask: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    monkeypatch.setattr(run, "embed", None)  # would be called if it came to that
    with pytest.raises(OSError, match=r"needs \d+ MiB on the disk .* which has 0") as error:
        erase(ask("cat"))
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_failed_receipt_writes_nothing(
    ask: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "verify", lambda *_: Verdict("tampered", False, 1.0, 0.1, "no"))
    outcome = erase(ask("cat"))
    assert outcome.verdict.status == "tampered"
    assert outcome.files == {}
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_the_disk_changes_is_found_out(
    ask: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = job.read_state

    def flipped(path: Path) -> dict[str, torch.Tensor]:
        state = read(path)
        state["visual.proj"][3, 5] += 0.5
        return state

    monkeypatch.setattr(job, "read_state", flipped)
    outcome = erase(ask("cat"))
    assert outcome.verdict.status == "tampered"
    assert list(tmp_path.iterdir()) == []
