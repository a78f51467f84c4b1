"""How the command talks: results and tables on stdout, progress, notes and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:  # at run time they would bring open_clip, which --help must not wait for
    from rich.table import Table

    from clipproj.cli.erase import Outcome, Progress

_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)  # anything else is a bug
_WORDS = {
    "force=True": "--force",
    "truncate=True": "--truncate",
    "load_pictures: folder": "images",
}  # what it is called here


def show(outcome: Outcome, out: Path, dry_run: bool) -> None:
    """The table of an erasure and what was written."""
    from clipproj.audit import tables
    from clipproj.audit.wording import listed

    history = outcome.projector.provenance
    contrast = (history.get("parameters") or {}).get("contrast")
    source = {"pictures": "other picture classes", "given": "given", "generic": "generic names"}
    screen = console()
    screen.print(
        Text.assemble(
            (f"Forgetting {listed(outcome.forget.names)}", "bold"),
            f" in {outcome.model}, {outcome.tower} tower\n"
            f"keep: {len(outcome.keep)} {source[outcome.keep_from]}; "
            f"{history.get('method', 'projector')}"
            f"{f' ({contrast} contrast)' if contrast else ''}, "
            f"rank {outcome.projector.rank}, strength {float(outcome.projector.strength):g}",
        )
    )
    if outcome.comparison is None:
        screen.print(tables.text_summary(outcome.texts, outcome.edit_seconds))
    else:
        screen.print(tables.table(outcome.comparison, outcome.edit_seconds))
    style = "green" if outcome.verdict else "bold red"
    screen.print(Text.assemble(("receipt: ", style), outcome.verdict.text))
    if dry_run:
        screen.print("dry run: nothing written")
    elif not outcome.verdict:
        screen.print(Text("nothing written: the receipt failed", style="bold red"))
    else:
        names = ", ".join(path.name for path in outcome.files.values())
        screen.print(Text(f"written to {out}: {names}"))
        # one line however narrow the terminal, to be copied
        screen.print(Text(f"undo with: {outcome.undo_command}", style="dim"), soft_wrap=True)


class _Screen(Console):
    def on_broken_pipe(self) -> None:  # rich would exit with 1, which says that the receipt failed
        raise BrokenPipeError


def console() -> Console:
    """Standard output; words are not coloured because they look like numbers."""
    return _Screen(highlight=False)


def show_table(screen: Console, table: Table) -> None:
    """Print a table whole: where the terminal is narrower, its lines go on in the next one."""
    least = screen.measure(table, options=screen.options.update(max_width=1000)).minimum
    screen.print(table, width=max(screen.width, least), crop=False)


@contextmanager
def printing() -> Iterator[None]:
    """For what is said when the work is done: no error where nobody reads on, as in `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # what is still in the buffer goes there when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress(as_json: bool) -> Iterator[Progress | None]:
    """Bars on stderr while somebody watches."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def say(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield say


@contextmanager
def quiet(as_json: bool) -> Iterator[list[str]]:
    """Warnings as one line each, collected for JSON; what libraries log is left out."""
    logging.getLogger().addHandler(logging.NullHandler())  # else open_clip's lines go to stderr
    # has a handler of its own; every retry without a network is a warning
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar for every file
    notes: list[str] = []
    # what other code prints is no part of the result
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield notes
    notes += dict.fromkeys(" ".join(str(one.message).split()) for one in caught)
    if not as_json:
        for note in notes:
            Console(stderr=True, highlight=False).print(Text(f"note: {note}", style="yellow"))


def show_error(command: str, text: str, as_json: bool) -> None:
    """One line on stderr, or {"error": ...} on stdout."""
    line = text if text.startswith(f"{command}: ") else f"{command}: {text}"
    if as_json:
        with printing():
            print(json.dumps({"error": line}))
    else:
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(line, style="red"))


def message(error: Exception) -> str:
    """An error's text as one line in the words of the command, an OSError's without its number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = " ".join(text.split())
    if not isinstance(error, _EXPECTED):
        what = type(error).__name__
        return f"internal error: {what}: {text}; CLIPPROJ_TRACEBACK=1 shows where"
    for python, command in _WORDS.items():
        text = text.replace(python, command)
    return text or type(error).__name__
