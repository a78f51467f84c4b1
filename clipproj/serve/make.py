"""A tenant's projector from names or from a file, checked against the served model."""

from __future__ import annotations

from dataclasses import replace

from clipproj import demo
from clipproj.checkpoints.checkpoint import Loaded
from clipproj.editing import log
from clipproj.methods.registry import DEFAULT
from clipproj.models.lexicon import TEMPLATE
from clipproj.models.words import on_both, openai_templates
from clipproj.projector import Projector
from clipproj.recipe import (
    Embedder,
    Names,
    Recipe,
    check,
    embed,
    judged_edit,
    project,
    resolve,
    without_earlier,
)
from clipproj.refusal import Refusal
from clipproj.report.sections import gate
from clipproj.serve.engine import Engine
from clipproj.serve.errors import ServiceError, invalid
from clipproj.serve.inputs import check_prompts
from clipproj.serve.schema import SPECS
from clipproj.serve.store import from_bytes


def from_names(loaded: Loaded, recipe: Recipe, max_prompts: int) -> Projector:
    """As `clipproj erase` makes it, with its price in the provenance.

    Raises ServiceError: 400 for names or options that make none, 422 for an edit that costs more or
    leaves more than the limits of `recipe` allow.
    """
    earlier = log.records(loaded.model)
    try:
        check(recipe)
        names = _names(loaded, recipe, earlier)
        prompts = _count_prompts(loaded, recipe, names, max_prompts)
        embedder = Embedder(loaded, more=max_prompts - prompts)
        texts = embed(recipe, names, embedder)
        made = project(recipe, texts, embedder).on_the_fly
        judged = judged_edit(recipe, texts, made, earlier)
    except Refusal as error:
        param = "forget" if error.argument == "names" else error.argument
        known = param in SPECS[recipe.method or DEFAULT].model_fields
        raise ServiceError(400, str(error), param if known else None, "invalid_value") from error
    if judged.refused:
        advice = gate.advice(judged)
        help = f" What may help: {'; '.join(advice)}." if advice else ""
        text = (
            f"refused: {' '.join(gate.alarms(judged))}{help} max_loss and max_found set the limits."
        )
        raise ServiceError(422, text, None, "edit_refused")
    made.provenance |= {"measured": gate.as_dict(judged)}
    return made


def _names(loaded: Loaded, recipe: Recipe, earlier: list) -> Names:
    """Which names are meant: those of the embedded model stay, of others names in general.

    What earlier edits of the model forgot is not kept unless it is asked for.
    """
    names = resolve(recipe)
    if names.keep is not None:
        return names
    if loaded.name == demo.NAME:
        forgotten = set(on_both(names.forget, demo.class_names()))
        keep = tuple(name for name in demo.class_names() if name not in forgotten)
        if not keep:
            raise invalid("forget", "must leave a class of the model, got all of them")
        names = replace(names, keep=keep)
    return without_earlier(recipe.command, names, earlier)


def _count_prompts(loaded: Loaded, recipe: Recipe, names: Names, most: int) -> int:
    """How many prompts are embedded. ServiceError for more than `most`, or one that is cut.

    Names in general do not count: a model's texts of them are made once and kept.
    """
    keep = names.keep
    templates = recipe.templates or ((TEMPLATE,) if keep is None else openai_templates())
    count = (len(names.forms) + len(keep or ())) * len(templates)
    if count > most:
        why = f"times names must be at most {most}, got {count}"
        raise invalid("templates", why, "too_many")
    check_prompts(loaded.tokenizer, names.forms, templates, "forget")
    check_prompts(loaded.tokenizer, keep or (), templates, "keep")
    return count


def from_file(engine: Engine, data: bytes) -> Projector:
    """An uploaded one. ServiceError 400 for a damaged file, or a projector of another model."""
    try:
        projector = from_bytes(data)
        engine.check(projector, "the projector")
    except ValueError as error:
        raise invalid(None, str(error), "invalid_projector") from error
    return projector
