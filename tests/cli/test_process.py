"""The command as a process: its streams closed, full or unread, and its end by a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipproj import files

ROOT = Path(__file__).parents[2]
MAIN = "from clipproj_command import main; main()"
PATH = {"PYTHONPATH": str(ROOT)}
ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def heard() -> None:
    """Signals that `nohup` or a shell's `&` would let every process below ignore."""
    for number in ENDS:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def start(code: str, *arguments: str, folder: Path, **more: Any) -> subprocess.Popen[str]:
    """In that folder, whose modules come first."""
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=folder, env=os.environ | PATH, **more)


def light(folder: Path, app: str) -> Path:
    """A package that is this app alone: what comes before it is seen in no time."""
    (folder / "clipproj/cli").mkdir(parents=True)
    for name in ("clipproj/__init__.py", "clipproj/cli/__init__.py"):
        (folder / name).touch()
    (folder / "clipproj/cli/app.py").write_text(app)
    return folder


def test_the_command_starts_outside_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert 'clipproj = "clipproj_command:main"' in project
    assert 'py-modules = ["clipproj_command"]' in project
    code = "import sys, clipproj_command; print({'clipproj', 'torch', 'typer'} & {*sys.modules})"
    assert start(code, folder=ROOT).communicate() == ("set()\n", "")


def test_a_signal_while_it_imports_or_when_it_is_done(tmp_path: Path) -> None:
    wait = "print('waits', flush=True); signal.pause()"
    first = light(tmp_path / "a", f"import signal; {wait}")
    last = light(tmp_path / "b", "def app(): pass")
    after = f"import signal; {MAIN}; {wait}"
    for number in ENDS:
        for code, folder in ((MAIN, first), (after, last)):
            with start(code, folder=folder) as process:
                assert process.stdout.readline() == "waits\n"
                process.send_signal(number)
                assert process.communicate() == ("", "")
            assert process.returncode == 128 + number


def test_nohup_and_the_handlers_of_others_hold(tmp_path: Path) -> None:
    app = "import signal\ndef mine(*_): print('mine')\ndef app():\n"
    app += "    for one in (signal.SIGHUP, signal.SIGTERM): signal.raise_signal(one)\n"
    app += "    signal.signal(signal.SIGTERM, mine)\n    print('goes on')\n"
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {MAIN}\n"
    code += "signal.raise_signal(signal.SIGTERM)"
    ignored = start(
        code,
        folder=light(tmp_path, app),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert ignored.communicate() == ("goes on\nmine\n", "")
    assert ignored.returncode == 0


def test_a_fork_ends_without_the_work_of_its_parent(tmp_path: Path) -> None:
    app = "import os, signal\ndef app():\n    try:\n        child = os.fork()\n"
    app += "        if child == 0: signal.raise_signal(signal.SIGTERM)\n"
    app += "        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    app += "    finally:\n        print('cleans up', flush=True)"
    assert start(MAIN, folder=light(tmp_path, app)).communicate() == ("143\ncleans up\n", "")


def test_closed_streams_are_no_files_of_ours(tmp_path: Path) -> None:
    app = "import os, sys\ndef app():\n    file = open(sys.argv[1], 'w')\n"
    app += "    os.system('echo of a child; echo of a child >&2')\n"
    app += "    for out in (sys.stdout, sys.stderr): print('said', file=out, flush=True)\n"
    app += "    file.write('ours')\n    sys.exit(5)"
    file = tmp_path / "file"
    command = ["/bin/sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", MAIN, str(file)]
    ended = subprocess.run(command, cwd=light(tmp_path, app), env=os.environ | PATH)
    assert (ended.returncode, file.read_text()) == (5, "ours")


STAGES = """
import os, signal, sys
from pathlib import Path
import clipproj_command
from clipproj.cli import app
from clipproj.cli.output import Output

def stages():
    with Output(Path(sys.argv[1]), [], None).staged() as stage:
        (stage / "weights").touch()
        print("staged", flush=True)
        signal.pause()

app.app = stages
clipproj_command.main()
"""


def test_no_staging_stays(tmp_path: Path) -> None:
    running = [
        (number, start(STAGES, "out", folder=tmp_path)) for number in (*ENDS, signal.SIGKILL)
    ]
    for _, process in running:
        assert process.stdout.readline() == "staged\n"
    assert len(list(tmp_path.iterdir())) == 4
    for number, process in running:
        files.sweep(tmp_path)  # none of a process that lives
        process.send_signal(number)
        if number == signal.SIGHUP:
            process.send_signal(number)  # as terminals do
        assert process.communicate() == ("", "")
    assert [p.returncode for _, p in running] == [130, 143, 129, -signal.SIGKILL]
    (left,) = tmp_path.iterdir()
    assert [path.name for path in left.iterdir()] == ["weights"]
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Each command in a fork, so that all is imported once; it ends as a process does.
FORKS = """
import gc, json, os, sys
import clipproj_command
from clipproj.cli import app, info
from typer import rich_utils

gc.freeze()  # or each fork would look through all of that when it ends

def full(): return os.open("/dev/full", os.O_WRONLY)
def unread():
    reader, writer = os.pipe()
    os.close(reader)
    return writer

told = []
for number, output, arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.dup2(os.open("errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if output == "closed":
            os.close(number)
            sys.stdout = None
        else:
            os.dup2(globals()[output](), number)
        sys.argv[1:] = arguments
        clipproj_command.main()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told.append([code, open("errors").read()])
print(json.dumps(told))
"""
FULL = "standard output cannot be written: No space left on device\n"
NONE = "info: file must exist, got none"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_output_that_is_full_unread_or_closed(tmp_path: Path) -> None:
    meta = dict.fromkeys(("label", "tower", "before", "after", "created"), "") | {"names": []}
    files.write(tmp_path / "a", "undo", {}, meta)
    cases = [
        (1, "full", ["--help"], 2, f"clipproj: {FULL}"),
        (1, "full", ["--version"], 2, f"clipproj: {FULL}"),
        (1, "full", ["info", "a"], 2, f"info: {FULL}"),
        (1, "full", ["info", "a", "--json"], 2, f"info: {FULL}"),
        (1, "full", ["info", "none"], 2, NONE),
        (1, "full", ["info", "none", "--json"], 2, NONE),
        (2, "full", ["info", "none"], 2, ""),
        *(
            (1, output, arguments, 0, "")
            for output in ("unread", "closed")
            for arguments in (["--help"], ["info", "a"], ["info", "a", "--json"])
        ),
    ]
    asked = json.dumps([case[:3] for case in cases])
    said, errors = start(FORKS, asked, folder=tmp_path).communicate()
    assert errors == ""
    for case, (code, error) in zip(cases, json.loads(said), strict=True):
        assert (code, error[: len(case[4])]) == case[3:], case
        assert error.count("\n") == bool(case[4]), case


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "clipproj", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | PATH)
    assert re.fullmatch(r"clipproj [\d.]+\n", said.stdout), said.stderr
