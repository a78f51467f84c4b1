"""A recipe audited: its projector on unedited images or features, and every audit's numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipproj.audit import suite
from clipproj.audit.cache import Cache
from clipproj.audit.registry import AuditInput
from clipproj.audit.suite import AuditResult
from clipproj.certificates import Certificate
from clipproj.files import atomic
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.recipe import samples
from clipproj.recipe.names import check_known, resolve
from clipproj.recipe.project import project, saved
from clipproj.recipe.record import OF_A_MODEL, Recipe, check
from clipproj.recipe.run import certified
from clipproj.recipe.samples import Unedited, in_domains, prompt_embedder
from clipproj.recipe.texts import Embedder, Progress, Texts, silent
from clipproj.refusal import Refusal
from clipproj.report import html
from clipproj.report.certificate import page
from clipproj.report.formatting import listed
from clipproj.report.sections import kept, page_of
from clipproj.report.summary import of_audits


@dataclass(frozen=True, eq=False)
class Audited:
    """What was audited on what, and what came of it; with a certificate where there is one."""

    source: Unedited
    projector: Projector
    forget: tuple[str, ...]
    results: list[AuditResult]
    certificate: Certificate | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: the numbers of each audit with the title and lead of its page."""
        history = self.projector.provenance
        return {
            "source": self.source.about,
            "projector": self.projector.content_hash(),
            "method": history.get("method"),
            "parameters": history.get("parameters"),
            "rank": self.projector.rank,
            "strength": round(float(self.projector.strength), 6),
            "certificate": self.certificate and self.certificate.to_json(),
            "audits": {
                one.key: {"title": page.title, "lead": page.lead, "numbers": one.numbers}
                for one, page in ((one, page_of(one)) for one in self.results)
            },
        }

    def write(self, out: Path) -> None:
        """audit.html and audit.json. Raises OSError; ImportError without jinja2."""
        edit = self.projector
        facts = self.source.about | {
            "method": edit.provenance.get("method", "projector"),
            "rank": f"{edit.rank} of {edit.dim}",
            "strength": f"{float(edit.strength):g}",
        }
        proven = [] if self.certificate is None else [page(self.certificate)]
        report = of_audits(
            f"Erasing {listed(self.forget)}: the audits",
            facts,
            [*proven, *(page_of(one) for one in self.results)],
            {one.key: one.numbers for one in self.results},
            float(edit.strength),
        )
        html.write(out / "audit.html", report)
        with atomic(out / "audit.json") as part:
            part.write_text(json.dumps(self.as_dict(), indent=2), encoding="utf-8")


def audited(
    recipe: Recipe,
    *,
    features: Path | None = None,
    only: Sequence[str] | None = None,
    domains: Mapping[str, str] | None = None,
    seed: int = 0,
    save_features: Path | None = None,
    say: Progress = silent,
) -> Audited:
    """Make or load a recipe's projector, run the audits, write them into `recipe.out`.

    No model is edited: the projector is applied to features.

    Args:
        features: what `Samples.save` wrote, instead of a model and images.
        only: keys of audits; None: all.
        domains: patterns of file names to the domain of such images.
        seed: of everything random.
        save_features: where to write the features.

    Raises:
        ValueError: as `recipe.check`, `recipe.resolve`, `samples.load`, `in_domains`, `suite.audit`
            and for a projector of another model; OSError, RuntimeError, ImportError as these.
    """
    # other words attack the edit here, they are not forgotten with the class
    synonyms, recipe = recipe.synonyms, replace(recipe, synonyms={})
    check(recipe, OF_A_MODEL if features is None else ())
    suite.check_keys(only)
    if recipe.projector is not None and recipe.keep:
        raise Refusal("audit", "keep", f"must be left out with a projector, got {recipe.keep}")
    samples.writable("audit", recipe.out, save_features)
    given = saved(recipe)
    source = samples.load(recipe, features, say)
    if domains:
        source = replace(source, samples=in_domains(source.samples, domains))
    classes = source.samples.classes
    names = resolve(recipe, given, classes.names, seen=True)
    for name in names.keep:
        check_known("audit", name, classes.names)
    loaded = source.loaded
    if given is None:
        forget = classes.select(names.forget)
        texts = Texts(forget, classes.select(names.keep), "images", classes, forget)
        forms = project(recipe, texts, loaded and Embedder(loaded, say, recipe.truncate))
        edit = forms.on_the_fly
    else:
        edit = given.for_tower(recipe.tower, "audit")  # as `erase` folds it
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
            embed=loaded and prompt_embedder(loaded, recipe.truncate),
            truncate=recipe.truncate,
            synonyms=synonyms,
            seed=seed,
        ),
        only,
        words=kept,
        cache=Cache(recipe.out / "audits.jsonl"),
        progress=lambda done, total: say("audits", done, total),
    )
    keep = classes.select(names.keep)
    done = Audited(source, edit, names.forget, results, certified(keep, edit))
    done.write(recipe.out)
    return done


def _check_same_space(edit: Projector, classes: Embeddings, force: bool) -> None:
    if edit.dim != classes.dim:
        raise Refusal(
            "audit",
            "projector",
            f"must be of width {classes.dim} as the features are, got {edit.dim}",
        )
    if not force:
        model, otherwise = "the model that is audited", "; give force to audit it all the same"
        edit.require_model("audit", classes.head_hash, model=model, otherwise=otherwise)
