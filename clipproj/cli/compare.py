"""`clipproj compare`: every method on every class, on the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from clipproj.cli import options, terminal

if TYPE_CHECKING:
    from clipproj.compare.run import Compared

EPILOG = f"""
[bold]Examples[/bold]

  clipproj compare

  clipproj compare cat dog --method "nullspace, hull" --method ccup

  clipproj compare --also benchmarks/methods --count 10

  clipproj compare --model RN50 --pretrained openai --protocol lip --images datasets/

[bold]What it measures[/bold]

  Each class is erased alone by each method: what is forgotten, what the others and the nearest
  keep, what probes still find, search, prompts. docs/methods.md says what each means.

  An interrupted run goes on where it was. Methods that learn from images are measured on others.

{options.methods_help()}"""


def compare(
    names: options.Names = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="By its name in the table, or of those below with its options: "
            "'rotate, angle=90, strength=1'; repeat. Default: the table.",
            rich_help_panel=options.HOW,
        ),
    ] = None,
    also: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Python with more methods (METHODS, a dict of make(task)). It is run.",
            rich_help_panel=options.HOW,
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option(
            help="How many classes where none is named: of those that the model knows, spread "
            "evenly. 0: all.",
            rich_help_panel=options.WHAT,
        ),
    ] = 12,
    template: options.Template = None,
    truncate: options.Truncate = False,
    model: options.Model = None,
    pretrained: options.Pretrained = None,
    images: options.Images = None,
    features: options.Features = None,
    elsewhere: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Images of other classes that must not suffer; repeat.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="lip",
            help="Lip's data sets, classes, templates and score; images holds the data sets.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    device: options.Device = None,
    seed: options.Seed = 0,
    save_features: options.SaveFeatures = None,
    out: options.Out = "clipproj-compare",
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Compare methods of forgetting on the same images, side by side.

    Writes compare.html and compare.json.
    """
    from clipproj.compare.run import ComparisonRecipe, as_dict, run

    recipe = ComparisonRecipe(
        names=tuple(names or ()),
        methods=method,
        also=also,
        count=count or None,
        templates=tuple(template or ()),
        truncate=truncate,
        model=model,
        pretrained=pretrained,
        images=images,
        features=features,
        elsewhere={
            name: Path(folder)
            for name, folder in options.pairs(
                "compare", "elsewhere", "NAME=FOLDER", elsewhere
            ).items()
        },
        protocol=protocol,
        device=options.device_or_default(device),
        seed=seed,
        save_features=save_features,
        out=options.folder("compare", out),
    )
    with terminal.quiet(as_json) as notes, terminal.progress(as_json) as progress:
        compared = run(recipe, progress)
    with terminal.done(recipe.out):
        if as_json:
            print(json.dumps(as_dict(compared) | {"notes": notes}, indent=2))
        else:
            _show(compared, recipe.out)


def _show(compared: list[Compared], out: Path) -> None:
    from clipproj.compare import words
    from clipproj.report.terminal import printed

    screen = terminal.console()
    for one in compared:
        terminal.show_table(screen, printed(words.main(one.leaderboard), one.title))
        for page in one.more:
            for table in page.tables:
                terminal.show_table(screen, printed(table, page.title))
    screen.print(Text(f"written to {out}: compare.html, compare.json"))
