"""How the command talks: results and tables on stdout, progress, notes and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from clipproj.refusal import Refusal
from clipproj_command import OutputError

if TYPE_CHECKING:  # at run time they would bring open_clip, which --help must not wait for
    from rich.table import Table

    from clipproj.recipe import Outcome, Progress

_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)  # anything else is a bug
_OPERATION = re.compile(r"^\w+: ")  # how an error of ours begins that is no Refusal
_OPTIONS = {("load_images", "folder"): "images"}  # arguments that are options of another name


def show(outcome: Outcome, out: Path, dry_run: bool) -> None:
    """The table of an erasure and what was written."""
    from clipproj.report.erasure import side_by_side, table
    from clipproj.report.formatting import cosine, duration, listed
    from clipproj.report.sections import gate
    from clipproj.report.terminal import printed

    history = outcome.projector.provenance
    contrast = (history.get("parameters") or {}).get("contrast")
    source = {"images": "other image classes", "given": "given", "generic": "names in general"}
    screen = console()
    screen.print(
        Text.assemble(
            (f"Forgetting {listed(outcome.forget.names)}", "bold"),
            f" in {outcome.model}, {outcome.tower} tower\n"
            f"keep: {len(outcome.keep)} {source[outcome.texts.keep_from]}; "
            f"{history.get('method', 'projector')}"
            f"{f' ({contrast} contrast)' if contrast else ''}, "
            f"rank {outcome.projector.rank}, strength {float(outcome.projector.strength):g}",
        )
    )
    judged = outcome.judged
    if alarms := gate.alarms(judged):
        what = "Refused" if judged.refused else "This edit is not good"
        screen.print(Text(f"{what}. {' '.join(alarms)}", style="bold red"))
        if advice := gate.advice(judged):
            screen.print(Text(f"What may help: {'; '.join(advice)}.", style="red"))
    for alarm in outcome.folded_alarms:
        screen.print(Text(alarm, style="red" if outcome.fold else "yellow"))
    measured, took = outcome.comparison or judged.texts, duration(outcome.edit_seconds)
    if outcome.one_sided:
        screen.print(printed(side_by_side(outcome.one_sided, outcome.folded)))
        screen.print(Text(f"folded in {took}"))
    else:
        screen.print(printed(table(measured, judged.texts)))
        moved = f"mean cosine of all others to what they were {cosine(measured.cosine)}"
        screen.print(Text(f"{moved}; edited in {took}"))
    for note in gate.notes(judged):
        screen.print(Text(note, style="yellow"))
    if not outcome.folded_alarms:
        style = "green" if outcome.verdict else "bold red"
        screen.print(Text.assemble(("receipt: ", style), outcome.verdict.text))
    if outcome.refused:
        screen.print("refused: nothing written; --max-loss 1 --max-found 1 lift the limits")
    elif dry_run:
        screen.print("dry run: nothing written")
    elif not outcome.verdict:
        screen.print(Text("nothing written: the receipt failed", style="bold red"))
    else:
        names = ", ".join(path.name for path in outcome.files.values())
        screen.print(Text(f"written to {out}: {names}"))
        if outcome.undo_command:  # one line however narrow the terminal, to be copied
            screen.print(Text(f"undo with: {outcome.undo_command}", style="dim"), soft_wrap=True)


def console() -> Console:
    """Standard output; words are not coloured because they look like numbers."""
    return Console(highlight=False)


def show_table(screen: Console, table: Table) -> None:
    """Print a table whole: where the terminal is narrower, its lines go on in the next one."""
    least = screen.measure(table, options=screen.options.update(max_width=1000)).minimum
    screen.print(table, width=max(screen.width, least), crop=False)


@contextmanager
def progress(as_json: bool) -> Iterator[Progress | None]:
    """How far it is, on stderr: bars while somebody watches, lines now and then in a log.

    JSON has the screen for itself, but not the log.
    """
    watched = sys.stderr.isatty()
    if watched and as_json:
        yield None
        return
    with _bars() if watched else _lines() as say:
        yield say


@contextmanager
def _bars() -> Iterator[Progress]:
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
def _lines() -> Iterator[Progress]:
    """From a thread, so that a stage of minutes is no silence; a short run says nothing."""
    out, ended, started, at = sys.stderr, Event(), time.monotonic(), "started"

    def say(stage: str, done: int, total: int) -> None:
        nonlocal at
        at = f"{stage} {done}/{total}"

    def tell() -> None:
        while not ended.wait(_pause(time.monotonic() - started)):
            print(f"{time.monotonic() - started:.0f} s: {at}", file=out, flush=True)

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield say
    finally:
        ended.set()
        thread.join()


def _pause(passed: float) -> float:
    """Seconds to the next line: ten, later a tenth of the time so far, few lines in all."""
    return max(10.0, passed / 10)


@contextmanager
def quiet(as_json: bool) -> Iterator[list[str]]:
    """Warnings as one line each, collected for JSON; what libraries log is left out."""
    logging.getLogger().addHandler(logging.NullHandler())  # else open_clip's lines go to stderr
    # has a handler of its own; every retry without a network is a warning
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar for every file
    notes: list[str] = []
    try:
        # what other code prints is no part of the result
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            yield notes
    except Exception as error:
        error.notes = notes  # for `show_error`: they may say why
        raise
    finally:
        notes += dict.fromkeys(" ".join(str(one.message).split()) for one in caught)
        if not as_json:
            for note in notes:
                Console(stderr=True, highlight=False).print(Text(f"note: {note}", style="yellow"))


@contextmanager
def done(written: Path | None) -> Iterator[None]:
    """What is printed of a work whose output is written already, if it is.

    Raises OutputError, which says so, where that cannot be printed to its end.
    """
    try:
        yield
        sys.stdout.flush()
    except OutputError as error:
        if written is None:
            raise
        what = f"{error.strerror}; all is done and written to {written}"
        raise OutputError(error.errno, what) from error


def show_error(command: str, error: Exception, text: str, as_json: bool) -> None:
    """One line on stderr, or {"error": ...} on stdout if that can be written, with the notes."""
    line = f"{command}: {text}"
    if as_json:
        notes = getattr(error, "notes", [])
        with suppress(OutputError):
            print(json.dumps({"error": line} | ({"notes": notes} if notes else {})), flush=True)
            return
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(line, style="red"))


def message(error: Exception) -> str:
    """An error's text as one line in the words of the command, an OSError's without its number.

    The operation that raised it is left out: the command is named in its place.
    """
    if isinstance(error, Refusal):
        option = _OPTIONS.get((error.op, error.argument), error.argument)
        text = f"{option} {error.why}" if option else error.why
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        text = _OPERATION.sub("", text)
    else:
        text = _OPERATION.sub("", str(error))
    text = " ".join(text.split())
    if not isinstance(error, _EXPECTED):
        what = type(error).__name__
        return f"internal error: {what}: {text}; CLIPPROJ_TRACEBACK=1 shows where"
    return text or type(error).__name__
