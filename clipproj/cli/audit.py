"""`clipproj audit`: all that is known to be asked of an edit, on pictures or on their features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from clipproj.audit.registry import audits
from clipproj.cli import options, terminal
from clipproj.refusal import Refusal

if TYPE_CHECKING:
    from clipproj.audit.suite import AuditResult
    from clipproj.cli.inputs import Source
    from clipproj.models.text import Embeddings
    from clipproj.projector import Projector
    from clipproj.recipe import Recipe

EPILOG = f"""
[bold]Examples[/bold]

  clipproj audit cat

  clipproj audit --projector out/projector.safetensors --model ViT-B-32 --pretrained openai
  --images pictures/

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
            help="Pictures whose file name fits the pattern (as in a shell) are of that domain; "
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
        source, edit, results = run(
            recipe,
            features=features,
            only=only,
            domains=options.pairs("audit", "domain", "PATTERN=NAME", domain),
            seed=seed,
            save_features=save_features,
            progress=progress,
        )
    with terminal.done(recipe.out):
        if as_json:
            print(json.dumps(_as_dict(source, edit, results) | {"notes": notes}, indent=2))
        else:
            _show(results, recipe.out)


def run(
    recipe: Recipe,
    *,
    features: Path | None = None,
    only: list[str] | None = None,
    domains: Mapping[str, str] | None = None,
    seed: int = 0,
    save_features: Path | None = None,
    progress: Any = None,
) -> tuple[Source, Projector, list[AuditResult]]:
    """The command without a terminal. Raises as `erase` and `suite.audit` do."""
    from clipproj.audit import suite
    from clipproj.audit.cache import Journal
    from clipproj.audit.registry import AuditInput
    from clipproj.cli import inputs
    from clipproj.projector import load
    from clipproj.recipe import Embedder, Texts, check, check_known, project, resolve, silent
    from clipproj.recipe.record import OF_A_MODEL
    from clipproj.report.page import need_charts
    from clipproj.report.pages import write_pages
    from clipproj.report.sections import kept, page_of

    say = progress or silent
    need_charts()
    # other words attack the edit here, they are not forgotten with the class
    synonyms, recipe = recipe.synonyms, replace(recipe, synonyms={})
    check(recipe, OF_A_MODEL if features is None else ())
    suite.check_keys(only)
    if recipe.projector is not None and recipe.keep:
        raise Refusal("audit", "keep", f"must be left out with a projector, got {recipe.keep}")
    options.writable("audit", recipe.out, save_features)
    saved = None if recipe.projector is None else load(recipe.projector)
    if saved is not None and recipe.strength is not None:
        saved = saved.scaled(recipe.strength)
    source = inputs.load(recipe, features, say)
    if domains:
        source = replace(source, samples=inputs.in_domains(source.samples, domains))
    classes = source.samples.classes
    names = resolve(recipe, saved, classes.names, seen=True)
    for name in names.keep:
        check_known("audit", name, classes.names)
    loaded = source.loaded
    if saved is None:
        gone = classes.select(names.forget)
        texts = Texts(gone, classes.select(names.keep), "images", classes, gone)
        edit = project(recipe, texts, loaded and Embedder(loaded, say, recipe.truncate))
    else:
        edit = saved.for_tower(recipe.tower, "audit")  # as `erase` folds it
        _check_same_space(edit, classes, recipe.force)
    if save_features is not None:
        source.samples.save(save_features)
    results = suite.audit(
        AuditInput(
            samples=source.samples,
            projector=edit,
            forget=names.forget,
            model=loaded and loaded.model,
            preprocess=loaded and loaded.preprocess,
            embed=loaded and inputs.prompt_embedder(loaded, recipe.truncate),
            truncate=recipe.truncate,
            synonyms=synonyms,
            seed=seed,
        ),
        only,
        words=kept,
        journal=Journal(recipe.out / "audits.jsonl"),
        progress=lambda done, total: say("audits", done, total),
    )
    facts = source.about | {
        "method": edit.provenance.get("method", "projector"),
        "rank": f"{edit.rank} of {edit.dim}",
        "strength": f"{float(edit.strength):g}",
    }
    from clipproj.files import atomic
    from clipproj.report.formatting import listed

    write_pages(
        recipe.out / "audit.html",
        [page_of(one) for one in results],
        title=f"Erasing {listed(names.forget)}: the audits",
        eyebrow="clipproj audit",
        facts=facts,
    )
    with atomic(recipe.out / "audit.json") as part:
        part.write_text(json.dumps(_as_dict(source, edit, results), indent=2), encoding="utf-8")
    return source, edit, results


def _check_same_space(edit: Projector, classes: Embeddings, force: bool) -> None:
    if edit.dim != classes.dim:
        raise Refusal(
            "audit",
            "projector",
            f"must be of width {classes.dim} as the features are, got {edit.dim}",
        )
    if not force:
        model, otherwise = "the model that is audited", "; force=True audits it all the same"
        edit.require_model("audit", classes.head_hash, model=model, otherwise=otherwise)


def _as_dict(source: Source, edit: Projector, results: list[AuditResult]) -> dict[str, Any]:
    from clipproj.report.sections import page_of

    return {
        "source": source.about,
        "projector": edit.content_hash(),
        "method": edit.provenance.get("method"),
        "parameters": edit.provenance.get("parameters"),
        "rank": edit.rank,
        "strength": round(float(edit.strength), 6),
        "audits": {
            one.key: {"title": page.title, "lead": page.lead, "numbers": one.numbers}
            for one, page in ((one, page_of(one)) for one in results)
        },
    }


def _show(results: list[AuditResult], out: Path) -> None:
    from clipproj.report.sections import page_of

    screen = terminal.console()
    for one in results:
        page = page_of(one)
        screen.print(Text(page.title, style="bold"))
        screen.print(Text(page.lead, style="yellow" if one.refused else ""))
        screen.print()
    screen.print(Text(f"written to {out}: audit.html, audit.json"))
