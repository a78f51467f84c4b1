"""Help, version, and a start that loads nothing which is not needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import Run

from clipproj import __version__


def test_help_teaches(run: Run) -> None:
    top = run("--help")
    assert top.exit_code == 0
    for command in ("erase", "verify", "undo", "info"):
        assert command in top.stdout
        assert run(command, "--help").exit_code == 0
    codes = " ".join(top.stdout.partition("Exit codes")[2].split())
    for code in ("0 done and verified", "1 the receipt", "2 an error", "3 refused",
                 "130 interrupted, 143 ended by SIGTERM, 129 by SIGHUP"):  # fmt: skip
        assert code in codes
    text = " ".join(run("erase", "--help").stdout.split())
    for lesson in ("clipproj erase cat", "What the numbers mean", "not the information",
                   "linear probe", "Exit codes"):  # fmt: skip
        assert lesson in text


def test_without_a_command_it_helps(run: Run) -> None:
    result = run()
    assert (result.exit_code, result.stdout, result.stderr) == (2, run("--help").stdout, "")


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
