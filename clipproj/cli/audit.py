"""`clipproj audit`: all that is known to be asked of an edit, on images or on their features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from clipproj.audit.registry import audits
from clipproj.cli import options, terminal

if TYPE_CHECKING:
    from clipproj.audit.suite import AuditResult

EPILOG = f"""
[bold]Examples[/bold]

  clipproj audit cat

  clipproj audit --projector out/projector.safetensors --model ViT-B-32 --pretrained openai
  --images images/

  clipproj audit cat --only recover --only leak

[bold]What it says[/bold]

  audit.html has a page each; docs/methods.md says what each means. An interrupted run goes on
  where it was.

[bold]Exit codes[/bold]

  0 all audits were made or say why not, 2 an error. It passes no judgement.

{options.methods_help()}"""


def audit(
    names: options.Names = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="A class to keep; repeat. Default: the other classes.",
            rich_help_panel=options.WHAT,
        ),
    ] = None,
    synonym: options.Synonym = None,
    template: options.Template = None,
    truncate: options.Truncate = False,
    projector: options.Projector = None,
    model: options.Model = None,
    pretrained: options.Pretrained = None,
    images: options.Images = None,
    features: options.Features = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=NAME",
            help="Images whose file name fits the pattern (as in a shell) are of that domain; "
            "repeat.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    device: options.Device = None,
    method: options.Method = None,
    strength: options.Strength = None,
    contrast: options.Contrast = None,
    option: options.Option = None,
    tower: options.Tower = "image",
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AUDIT",
            help=f"{', '.join(audits())}; repeat. Default: all.",
            rich_help_panel=options.HOW,
        ),
    ] = None,
    seed: options.Seed = 0,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Audit a projector that another model made.",
            rich_help_panel=options.HOW,
        ),
    ] = False,
    save_features: options.SaveFeatures = None,
    out: options.Out = "clipproj-audit",
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Measure what an edit did and what it did not: an audit a page.

    The edit is applied to features; the model itself stays as it is. Writes audit.html and
    audit.json.
    """
    from clipproj.recipe import Recipe
    from clipproj.recipe.audit import audited

    recipe = Recipe(
        names=names or (),
        model=model,
        pretrained=pretrained,
        images=images,
        keep=keep or (),
        method=method,
        strength=strength,
        options=options.method_options("audit", method, {"contrast": contrast}, option),
        templates=template or (),
        truncate=truncate,
        synonyms=options.synonyms("audit", synonym),
        projector=projector,
        tower=tower,
        out=options.folder("audit", out),
        force=force,
        device=options.device_or_default(device),
        command="audit",
    )
    with terminal.quiet(as_json) as notes, terminal.progress(as_json) as progress:
        done = audited(
            recipe,
            features=features,
            only=only,
            domains=options.pairs("audit", "domain", "PATTERN=NAME", domain),
            seed=seed,
            save_features=save_features,
            say=progress,
        )
    with terminal.done(recipe.out):
        if as_json:
            print(json.dumps(done.as_dict() | {"notes": notes}, indent=2))
        else:
            _show(done.results, recipe.out)


def _show(results: list[AuditResult], out: Path) -> None:
    from clipproj.report.sections import page_of

    screen = terminal.console()
    for one in results:
        page = page_of(one)
        screen.print(Text(page.title, style="bold"))
        screen.print(Text(page.lead, style="yellow" if one.refused else ""))
        screen.print()
    screen.print(Text(f"written to {out}: audit.html, audit.json"))
