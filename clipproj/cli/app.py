"""The command line: `clipproj erase`, `verify`, `undo`, `info`, `audit`, `compare`, `serve`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.text import Text
    from typer.core import TyperGroup
except ImportError as error:
    print(
        f'clipproj: the command line needs {error.name}: pip install "clipproj[cli]"',
        file=sys.stderr,
    )
    raise SystemExit(2) from error

from clipproj.audit.gate import Limits
from clipproj.cli import options, terminal
from clipproj.cli.audit import EPILOG as AUDIT_EPILOG
from clipproj.cli.audit import audit
from clipproj.cli.compare import EPILOG as COMPARE_EPILOG
from clipproj.cli.compare import compare
from clipproj.cli.options import HOW, LIMITS, OUTPUT, WHAT
from clipproj.cli.serve import serve
from clipproj.refusal import Refusal
from clipproj_command import OutputError

# What needs open_clip is imported where it is used: --help must not wait for it.

FAILED, WRONG, REFUSED = 1, 2, 3
INTERRUPTED, *_ENDED = 130, 143, 129  # Ctrl-C; SIGTERM, SIGHUP
EXIT_CODES = """
[bold]Exit codes[/bold]

  0 done and verified

  1 the receipt or the check says no

  2 an error, or a request that can't be met

  3 refused: the edit costs more than --max-loss or leaves more than --max-found; nothing is written

  130 interrupted, 143 ended by SIGTERM, 129 by SIGHUP
"""


class Commands(TyperGroup):
    """Every error as one line, or as JSON where the output is JSON; never a traceback unasked."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        args = list(sys.argv[1:] if args is None else args)
        command = args[0] if args and args[0] in self.commands else "clipproj"
        options["standalone_mode"] = False
        try:
            code = super().main(args or ["--help"], *rest, **options) or (0 if args else WRONG)
            sys.stdout.flush()  # a full disk is an error of the command, not of Python's end
        except typer.Abort:
            code = INTERRUPTED
        except SystemExit as ended:  # by a signal
            code = ended.code
        except Exception as error:
            if os.environ.get("CLIPPROJ_TRACEBACK") == "1" or "--traceback" in args:
                raise
            usage = getattr(error, "format_message", None)  # typer's own errors
            text = usage() if usage else terminal.message(error)
            as_json = "--json" in args and not isinstance(error, OutputError)
            terminal.show_error(command, error, text, as_json)
            code = WRONG
        if code in (INTERRUPTED, *_ENDED) and command in ("audit", "compare"):
            print("interrupted: the same command goes on from here", file=sys.stderr)
        raise SystemExit(code)


app = typer.Typer(
    cls=Commands,
    help="Make a CLIP-like model forget a class: from its name alone, in closed form, reversibly.",
    epilog="Start with [bold]clipproj erase cat[/bold] (embedded model), or "
    f"[bold]clipproj erase --help[/bold].\n{EXIT_CODES}",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)

ERASE_EPILOG = f"""
[bold]Examples[/bold]

  clipproj erase cat

  clipproj erase "tabby cat" --plurals --model ViT-B-32 --pretrained openai --images images/

  clipproj erase --projector cat.safetensors --model ViT-B-32-quickgelu --pretrained b32.pt

  clipproj erase cat --model folder_of_transformers/ --out edited/

  clipproj erase cat --method rotate --option angle=90

{options.methods_help()}
[bold]What the numbers mean[/bold]

  [bold]forgotten[/bold]: zero-shot accuracy on images of the erased classes; should fall to 0.
  Without images, mixtures of two class texts stand in for them.

  [bold]all other classes[/bold], and [bold]the nearest[/bold] of them: should stay.

  [bold]cosine[/bold]: between a kept image's feature before and after; 1 is untouched.

  [bold]linear probe[/bold]: how many erased images a classifier trained on features still finds.

[bold]What it does not do[/bold]

  It erases the alignment of images with the [italic]texts[/italic], not the information.

  A linear probe usually still finds the class. Do not rely on it to hide what a model has seen.

[bold]Exit codes[/bold]

  clipproj --help lists them.
"""


def _version(asked: bool) -> None:
    if asked:
        from clipproj import __version__

        print(f"clipproj {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog=ERASE_EPILOG)
def erase(
    names: options.Names = None,
    names_file: Annotated[
        Path | None,
        typer.Option(help="Classes to forget, one a line.", rich_help_panel=WHAT),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that competes; repeat, all of them: it replaces the default, the other "
            "image folders, else names in general.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    keep_file: Annotated[
        Path | None, typer.Option(help="Names to keep, one a line.", rich_help_panel=WHAT)
    ] = None,
    plurals: Annotated[
        bool, typer.Option("--plurals", help="Forget the plurals too.", rich_help_panel=WHAT)
    ] = False,
    synonym: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=OTHER",
            help="Forget another word for NAME too; repeat.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    template: options.Template = None,
    truncate: options.Truncate = False,
    projector: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Apply a saved projector instead of making one.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    model: options.Model = None,
    pretrained: options.Pretrained = None,
    images: options.Images = None,
    device: options.Device = None,
    method: options.Method = None,
    strength: options.Strength = None,
    contrast: options.Contrast = None,
    rank: options.Rank = None,
    forget_weight: options.ForgetWeight = None,
    keep_weight: options.KeepWeight = None,
    option: options.Option = None,
    tower: options.Tower = "image",
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Apply a projector that another model made.", rich_help_panel=HOW
        ),
    ] = False,
    max_loss: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Refuse an edit that costs all other classes more accuracy; 1: never.",
            rich_help_panel=LIMITS,
        ),
    ] = Limits.max_loss,
    max_found: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Refuse an edit that leaves more of the forgotten classes, or ten times that of "
            "one; 1: never.",
            rich_help_panel=LIMITS,
        ),
    ] = Limits.max_found,
    fold: Annotated[
        bool,
        typer.Option(
            "--fold",
            help="Fail, with exit code 3, where the edit folded into the weights is refused, "
            "though the one-sided projector is not.",
            rich_help_panel=LIMITS,
        ),
    ] = False,
    out: options.Out = "clipproj-out",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Do all of it, write nothing.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Make a model forget classes, measure it, and write the edited checkpoint.

    Writes the projector, the checkpoint (for the library that loaded it), an undo file, a receipt
    and a report.
    Names alone are enough. Images in class folders, or --keep, say which names compete: several
    names at once need that. What costs too much or leaves too much is refused, with exit code 3.
    """
    from clipproj.cli.erase import erase as run
    from clipproj.recipe import Recipe

    folder = options.folder("erase", out)
    flags = {"contrast": contrast, "rank": rank, "forget_weight": forget_weight,
             "keep_weight": keep_weight}  # fmt: skip
    recipe = Recipe(
        names=[*(names or ()), *_names_in("names-file", names_file)],
        model=model,
        pretrained=pretrained,
        images=images,
        keep=[*(keep or ()), *_names_in("keep-file", keep_file)],
        method=method,
        strength=strength,
        options=options.method_options("erase", method, flags, option),
        templates=template or (),
        truncate=truncate,
        plurals=plurals,
        synonyms=options.synonyms("erase", synonym),
        projector=projector,
        tower=tower,
        fold=fold,
        limits=Limits(max_loss, max_found),
        out=None if dry_run else folder,
        force=force,
        device=options.device_or_default(device),
    )
    with terminal.quiet(as_json) as notes, terminal.progress(as_json) as progress:
        outcome = run(recipe, progress)
    with terminal.done(folder if outcome.files else None):
        if as_json:
            print(json.dumps(outcome.as_dict() | {"notes": notes}, indent=2))
        else:
            terminal.show(outcome, folder, dry_run)
    if outcome.fails:
        raise typer.Exit(REFUSED)
    if not outcome.verdict:
        raise typer.Exit(FAILED)


@app.command()
def verify(
    checkpoint: Annotated[Path, typer.Argument(help=options.CHECKPOINT)],
    receipt: Annotated[Path, typer.Argument(help="The receipt of the edit to look for.")],
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Check from its receipt whether a checkpoint holds an edit.

    Only the edited head is looked at; the other weights may have changed.

    Exit code 0: edited. 1: unedited, tampered with, or too weak an edit to tell.
    """
    from clipproj.checkpoints.state import locate, read_state
    from clipproj.cli.info import edited_since
    from clipproj.editing.receipt import Receipt
    from clipproj.editing.verify import verify as check

    file = locate(checkpoint)
    made = Receipt.load(receipt)
    verdict = check(read_state(file), made)
    text = verdict.text
    if verdict.status == "tampered":
        text += edited_since(file, made.projector_hash, made.tower)
    if as_json:
        shown = {name: getattr(verdict, name) for name in ("status", "exact", "error", "bound")}
        print(json.dumps({"checkpoint": str(file), "text": text} | shown, indent=2))
    else:
        style = "bold green" if verdict else "bold red"
        terminal.console().print(Text(text, style=style))
        terminal.console().print(Text(f"error {verdict.error:.3g}, bound {verdict.bound:.3g}"))
    if not verdict:
        raise typer.Exit(FAILED)


@app.command()
def undo(
    checkpoint: Annotated[Path, typer.Argument(help=options.CHECKPOINT)],
    undo_file: Annotated[Path, typer.Argument(help="What `erase` wrote as undo.safetensors.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write here. Default: replace the checkpoint."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Overwrite the head though it changed since the edit: later edits of it go too.",
        ),
    ] = False,
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Put the original weights back into an edited checkpoint, bit for bit.

    In place a torch file stays one and shards stay shards; --out writes one .safetensors file.
    """
    from clipproj import files
    from clipproj.checkpoints.checkpoint import undo as restore
    from clipproj.checkpoints.state import locate, read_edits
    from clipproj.cli.info import edited_since, quoted

    file = locate(checkpoint)
    undone = files.read(undo_file, "undo").meta
    logged = read_edits(file)
    try:
        written = restore(file, undo_file, out, force=force)
    except RuntimeError as error:
        later = edited_since(file, undone["projector_hash"], undone["tower"])
        raise RuntimeError(f"{error}{later}") from error
    left = read_edits(written)
    removed = [entry for entry in logged if entry not in left]
    with terminal.done(written):
        if as_json:
            facts = {"checkpoint": str(written), "undone": str(undo_file)}
            facts["before"] = undone["label"]
            facts["removed"] = [entry["forget"] for entry in removed]
            print(json.dumps(facts, indent=2))
        else:
            others = [one for one in removed if one["projector"] != undone["projector_hash"]]
            text = f"the {undone['tower']} head is restored, bit for bit: {written}"
            text += f'\nit is as it was before "{undone["label"]}"'
            text += f"; with that, out of its log: {quoted(others)}" if others else ""
            terminal.console().print(Text(text))


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A file that clipproj wrote, or a checkpoint.")],
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Say what a file is and what is in it."""
    from clipproj.cli.info import describe

    facts = describe(file)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        grid.add_row(Text(key.replace("_", " "), style="bold"), Text(shown, overflow="fold"))
    terminal.console().print(grid)


app.command(epilog=AUDIT_EPILOG)(audit)
app.command(epilog=COMPARE_EPILOG)(compare)
app.command()(serve)


def _names_in(option: str, file: Path | None) -> list[str]:
    if file is None:
        return []
    if not file.is_file():
        raise Refusal("erase", option, f"must be a file, got {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")  # some editors put a byte order mark in front
    except UnicodeDecodeError as error:
        raise Refusal("erase", option, f"must be UTF-8 text, got {file}: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise Refusal("erase", option, f"must hold a name on each line, got none in {file}")
    return names
