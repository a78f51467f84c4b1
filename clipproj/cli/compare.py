"""`clipproj compare`: every method on every class, on the same pictures."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from clipproj.cli import options, terminal
from clipproj.recipe import Recipe
from clipproj.refusal import Refusal

if TYPE_CHECKING:
    from clipproj.audit.cache import Journal
    from clipproj.audit.samples import Samples
    from clipproj.cli.inputs import Source
    from clipproj.compare.leaderboard import Standings
    from clipproj.compare.task import Contender
    from clipproj.recipe import Progress
    from clipproj.report.page import Page

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
            help="Pictures of other classes that must not suffer; repeat.",
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
    """Compare methods of forgetting on the same pictures, side by side.

    Writes compare.html and compare.json.
    """
    wanted = Wanted(
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
        contests = run(wanted, progress)
    with terminal.done(wanted.out):
        if as_json:
            print(json.dumps(_as_dict(contests) | {"notes": notes}, indent=2))
        else:
            _show(contests, wanted.out)


def _show(contests: list[Contested], out: Path) -> None:
    from clipproj.report.pages import printed

    screen = terminal.console()
    for one in contests:
        terminal.show_table(screen, printed(one.standings.main(), one.title))
        for page in one.more:
            for table in page.tables:
                terminal.show_table(screen, printed(table, page.title))
    screen.print(Text(f"written to {out}: compare.html, compare.json"))


@dataclass(frozen=True)
class Wanted(Recipe):
    """What to compare, on what, and where to write it: a recipe for several methods."""

    methods: Sequence[str] | None = None
    also: Path | None = None
    count: int | None = 12
    features: Path | None = None
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    protocol: str | None = None
    seed: int = 0
    save_features: Path | None = None
    out: Path = Path("clipproj-compare")
    command: str = "compare"


@dataclass(frozen=True)
class Contested:
    """One data set's contest, and pages of it that the standings do not have."""

    title: str
    about: dict[str, str]
    standings: Standings
    more: tuple[Page, ...] = ()


def run(wanted: Wanted, progress: Progress | None = None) -> list[Contested]:
    """The command without a terminal.

    Raises:
        ValueError: for options that exclude each other, unknown names, classes that no picture
            shows; ImportError, RuntimeError, OSError: as for `erase`.
    """
    from clipproj.audit.cache import Journal
    from clipproj.compare.methods import chosen
    from clipproj.files import atomic
    from clipproj.report.page import need_charts
    from clipproj.report.pages import write_pages

    say = progress or (lambda *_: None)
    need_charts()
    contenders = chosen(wanted.methods, wanted.also)
    _check(wanted)
    options.writable("compare", wanted.out, wanted.save_features)
    journal = Journal(wanted.out / "cells.jsonl")
    made = _own if wanted.protocol is None else _lip
    contests = made(wanted, contenders, journal, say)
    pages = [page for one in contests for page in (*one.standings.pages(), *one.more)]
    if len(contests) > 1:  # a key is an anchor, of which a file has one
        pages = [
            replace(page, key=f"{i}-{page.key}", title=f"{one.title}: {page.title}")
            for i, one in enumerate(contests)
            for page in (*one.standings.pages(), *one.more)
        ]
    write_pages(
        wanted.out / "compare.html",
        pages,
        title="Methods of forgetting, compared",
        eyebrow="clipproj compare",
        facts=_facts(contests),
    )
    with atomic(wanted.out / "compare.json") as part:
        part.write_text(json.dumps(_as_dict(contests), indent=2), encoding="utf-8")
    return contests


def _facts(contests: Sequence[Contested]) -> dict[str, str]:
    """What the numbers are of, all data sets together."""
    if len(contests) == 1:
        return contests[0].about
    return {
        "model": contests[0].about["model"],
        "images": "; ".join(one.about["images"] for one in contests),
    }


def _check(wanted: Wanted) -> None:
    if wanted.protocol not in (None, "lip"):
        raise Refusal("compare", "protocol", f"must be lip, got {wanted.protocol!r}")
    if wanted.protocol:
        if wanted.images is None:
            raise Refusal(
                "compare", "images", "must be the folder of the data sets with a protocol"
            )
        for option, value in (
            ("names", wanted.names), ("features", wanted.features),
            ("elsewhere", wanted.elsewhere), ("template", wanted.templates),
            ("save-features", wanted.save_features),
        ):  # fmt: skip
            if value:
                raise Refusal("compare", option, f"must be left out with a protocol, got {value}")
    if wanted.count is not None and wanted.count < 1:
        raise Refusal("compare", "count", f"must be at least 1, or 0 for all, got {wanted.count}")


def _own(
    wanted: Wanted, contenders: Mapping[str, Contender], journal: Journal, say: Progress
) -> list[Contested]:
    """The pictures of one folder, or features of a file."""
    from clipproj.cli import inputs
    from clipproj.compare.comparison import known_classes
    from clipproj.recipe import check, resolve

    source = inputs.load(wanted, wanted.features, say)
    if wanted.save_features is not None:
        source.samples.save(wanted.save_features)
    if source.loaded is None and wanted.elsewhere:
        raise Refusal("compare", "elsewhere", "must come with a model, got features from a file")
    others = {
        name: inputs.load(replace(wanted, images=folder), None, say, loaded=source.loaded).samples
        for name, folder in wanted.elsewhere.items()
    }
    if wanted.names:
        check(wanted)
        forget = resolve(wanted, None, source.samples.names, seen=True).forget
    else:
        forget = known_classes(source.samples, wanted.count)
    title = "Methods compared"
    return [_contest(title, source, others, contenders, forget, wanted, journal, say)]


def _lip(
    wanted: Wanted, contenders: Mapping[str, Contender], journal: Journal, say: Progress
) -> list[Contested]:
    """The data sets of Lip's protocol that are there."""
    from clipproj.cli import inputs
    from clipproj.compare import comparison
    from clipproj.compare import lip_protocol as lip

    folders = lip.find_datasets(wanted.images)
    if not folders:
        raise Refusal(
            "compare",
            "images",
            f"must hold {', '.join(lip.DATASETS)} with protocol lip, got none in {wanted.images}",
        )
    missing = [one.title for name, one in lip.DATASETS.items() if name not in folders]
    if missing:
        warnings.warn(
            f"compare: the protocol's score needs all four data sets, got none of "
            f"{', '.join(missing)}: the score is n/a",
            stacklevel=2,
        )
    sources: dict[str, Source] = {}
    for name, folder in folders.items():
        first = next(iter(sources.values()), None)
        sources[name] = inputs.load(
            replace(wanted, images=folder, templates=lip.DATASETS[name].templates),
            None,
            say,
            loaded=first and first.loaded,
            prepared=lip.DATASETS[name].prepared,
        )
        lip.DATASETS[name].find(sources[name].samples.names)  # all before any is contested
    contests = []
    for name, data in lip.DATASETS.items():
        if name not in sources:
            continue
        source = sources[name]
        others = {other: s.samples for other, s in sources.items() if other != name}
        forget = data.find(source.samples.names)
        one = _contest(data.title, source, others, contenders, forget, wanted, journal, say)
        full = float(source.samples.correct().double().mean())
        page = lip.page(data, one.standings.results, comparison.BASE, full)
        about = one.about | {"images": f"{len(source.samples)} of {data.title}"}
        contests.append(replace(one, about=about, more=(page,)))
    return contests


def _contest(
    title: str,
    source: Source,
    others: Mapping[str, Samples],
    contenders: Mapping[str, Contender],
    forget: Sequence[str],
    wanted: Wanted,
    journal: Journal,
    say: Progress,
) -> Contested:
    from clipproj.compare import comparison, trial
    from clipproj.compare.leaderboard import Standings
    from clipproj.methods import prompts as prompts_of
    from clipproj.recipe import Embedder

    empty, prompts, embed = None, {}, None
    if source.loaded is not None:
        embedder = Embedder(source.loaded, say, wanted.truncate)
        empty, embed = embedder.empty(), embedder.for_method
        templates = source.samples.classes.templates
        rows = embedder.prompts(forget, templates)
        prompts = {name: rows.select(prompts_of([name], templates)) for name in forget}
    results = comparison.run(
        trial.Field(source.samples, others, empty, prompts, embed),
        contenders,
        forget,
        journal=journal,
        seed=wanted.seed,
        progress=lambda done, total: say(f"{title}"[:16], done, total),
    )
    about = {comparison.BASE: "the model as it is"}
    about[comparison.BASE_IN_HALVES] = "the same, each half of the pictures apart"
    about |= {name: contender.about for name, contender in contenders.items()}
    return Contested(title, source.about, Standings.of(results, about))


def _as_dict(contests: Sequence[Contested]) -> dict[str, Any]:
    from clipproj.audit.stats import plain
    from clipproj.report.page import as_json

    return {
        one.title: {
            "source": one.about,
            "forget": one.standings.forget,
            "methods": plain({s.name: s for s in one.standings.standings}),
            "cells": one.standings.results,
            "pages": [as_json(page) for page in one.more],
        }
        for one in contests
    }
