"""`clipproj compare` without a terminal: a comparison for each data set, as numbers and pages."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipproj.audit.cache import Cache
from clipproj.audit.samples import Samples
from clipproj.audit.stats import plain
from clipproj.compare import comparison, lip_words, words
from clipproj.compare import lip_protocol as lip
from clipproj.compare.comparison import BASE, BASE_IN_HALVES, known_classes
from clipproj.compare.leaderboard import Leaderboard
from clipproj.compare.method import ComparedMethod
from clipproj.compare.methods import chosen
from clipproj.compare.trial import TrialData
from clipproj.files import atomic
from clipproj.methods import prompts as prompts_of
from clipproj.recipe import Embedder, Progress, Recipe, check, resolve, silent
from clipproj.recipe.samples import Unedited, load, writable
from clipproj.refusal import Refusal
from clipproj.report import html
from clipproj.report.page import Page, as_json
from clipproj.report.summary import of_comparison


@dataclass(frozen=True)
class ComparisonRecipe(Recipe):
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
class Compared:
    """A comparison on one data set, and pages of it that its leaderboard does not have."""

    title: str
    about: dict[str, str]
    leaderboard: Leaderboard
    more: tuple[Page, ...] = ()


def run(recipe: ComparisonRecipe, say: Progress = silent) -> list[Compared]:
    """The command without a terminal.

    Raises:
        ValueError: for options that exclude each other, unknown names, classes that no image
            shows; ImportError, RuntimeError, OSError: as for `erase`.
    """
    methods = chosen(recipe.methods, recipe.also)
    _check(recipe)
    writable("compare", recipe.out, recipe.save_features)
    cache = Cache(recipe.out / "trials.jsonl")
    made = _own if recipe.protocol is None else _lip
    compared = made(recipe, methods, cache, say)
    boards = {
        one.title: (words.main(one.leaderboard), (*words.pages(one.leaderboard), *one.more))
        for one in compared
    }
    html.write(recipe.out / "compare.html", of_comparison(_facts(compared), boards))
    with atomic(recipe.out / "compare.json") as part:
        part.write_text(json.dumps(as_dict(compared), indent=2), encoding="utf-8")
    return compared


def _facts(compared: Sequence[Compared]) -> dict[str, str]:
    """What the numbers are of, all data sets together."""
    if len(compared) == 1:
        return compared[0].about
    return {
        "model": compared[0].about["model"],
        "images": "; ".join(one.about["images"] for one in compared),
    }


def _check(recipe: ComparisonRecipe) -> None:
    if recipe.protocol not in (None, "lip"):
        raise Refusal("compare", "protocol", f"must be lip, got {recipe.protocol!r}")
    if recipe.protocol:
        if recipe.images is None:
            raise Refusal(
                "compare", "images", "must be the folder of the data sets with a protocol"
            )
        for option, value in (
            ("names", recipe.names), ("features", recipe.features),
            ("elsewhere", recipe.elsewhere), ("template", recipe.templates),
            ("save-features", recipe.save_features),
        ):  # fmt: skip
            if value:
                raise Refusal("compare", option, f"must be left out with a protocol, got {value}")
    if recipe.count is not None and recipe.count < 1:
        raise Refusal("compare", "count", f"must be at least 1, or 0 for all, got {recipe.count}")


def _own(
    recipe: ComparisonRecipe, methods: Mapping[str, ComparedMethod], cache: Cache, say: Progress
) -> list[Compared]:
    """The images of one folder, or features of a file."""
    source = load(recipe, recipe.features, say)
    if recipe.save_features is not None:
        source.samples.save(recipe.save_features)
    if source.loaded is None and recipe.elsewhere:
        raise Refusal("compare", "elsewhere", "must come with a model, got features from a file")
    others = {
        name: load(replace(recipe, images=folder), None, say, loaded=source.loaded).samples
        for name, folder in recipe.elsewhere.items()
    }
    if recipe.names:
        check(recipe)
        forget = resolve(recipe, None, source.samples.names, seen=True).forget
    else:
        forget = known_classes(source.samples, recipe.count)
    title = "Methods compared"
    return [_compared(title, source, others, methods, forget, recipe, cache, say)]


def _lip(
    recipe: ComparisonRecipe, methods: Mapping[str, ComparedMethod], cache: Cache, say: Progress
) -> list[Compared]:
    """The data sets of Lip's protocol that are there."""
    folders = lip.find_datasets(recipe.images)
    if not folders:
        raise Refusal(
            "compare",
            "images",
            f"must hold {', '.join(lip.DATASETS)} with protocol lip, got none in {recipe.images}",
        )
    missing = [one.title for name, one in lip.DATASETS.items() if name not in folders]
    if missing:
        warnings.warn(
            f"compare: the protocol's score needs all four data sets, got none of "
            f"{', '.join(missing)}: the score is n/a",
            stacklevel=2,
        )
    sources: dict[str, Unedited] = {}
    for name, folder in folders.items():
        first = next(iter(sources.values()), None)
        sources[name] = load(
            replace(recipe, images=folder, templates=lip.DATASETS[name].templates),
            None,
            say,
            loaded=first and first.loaded,
            prepared=lip.DATASETS[name].prepared,
        )
        lip.DATASETS[name].find(sources[name].samples.names)  # all before any is compared
    compared = []
    for name, data in lip.DATASETS.items():
        if name not in sources:
            continue
        source = sources[name]
        others = {other: s.samples for other, s in sources.items() if other != name}
        forget = data.find(source.samples.names)
        one = _compared(data.title, source, others, methods, forget, recipe, cache, say)
        full = float(source.samples.correct().double().mean())
        page = lip_words.page(data, one.leaderboard.results, BASE, full)
        about = one.about | {"images": f"{len(source.samples)} of {data.title}"}
        compared.append(replace(one, about=about, more=(page,)))
    return compared


def _compared(
    title: str,
    source: Unedited,
    others: Mapping[str, Samples],
    methods: Mapping[str, ComparedMethod],
    forget: Sequence[str],
    recipe: ComparisonRecipe,
    cache: Cache,
    say: Progress,
) -> Compared:
    """Every class of `forget` erased by every method."""
    empty, prompts, embed = None, {}, None
    if source.loaded is not None:
        embedder = Embedder(source.loaded, say, recipe.truncate)
        empty, embed = embedder.empty(), embedder.for_method
        templates = source.samples.classes.templates
        rows = embedder.prompts(forget, templates)
        prompts = {name: rows.select(prompts_of([name], templates)) for name in forget}
    results = comparison.run(
        TrialData(source.samples, others, empty, prompts, embed),
        methods,
        forget,
        cache=cache,
        seed=recipe.seed,
        progress=lambda done, total: say(title[:16], done, total),
    )
    about = {BASE: "the model as it is"}
    about[BASE_IN_HALVES] = "the same, each half of the images apart"
    about |= {name: method.about for name, method in methods.items()}
    return Compared(title, source.about, Leaderboard.of(results, about))


def as_dict(compared: Sequence[Compared]) -> dict[str, Any]:
    """What compare.json holds: by data set its source, every method's row, every trial, pages."""
    return {
        one.title: {
            "source": one.about,
            "forget": one.leaderboard.forget,
            "methods": plain({row.name: row for row in one.leaderboard.rows}),
            "trials": one.leaderboard.results,
            "pages": [as_json(page) for page in one.more],
        }
        for one in compared
    }
