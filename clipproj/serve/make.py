"""A tenant's projector from names or from a file, checked against the served model."""

from __future__ import annotations

from clipproj import demo
from clipproj.audit.gate import GENERAL_PROMPTS, judge
from clipproj.checkpoints.checkpoint import Loaded
from clipproj.editing import log
from clipproj.methods import defaults
from clipproj.models.text import Embeddings, embed_classes, generic_keep
from clipproj.models.words import name_key, on_both, openai_templates, simple_templates
from clipproj.projector import Projector
from clipproj.report.sections import gate
from clipproj.serve.engine import Engine
from clipproj.serve.errors import ServiceError, invalid
from clipproj.serve.inputs import Spec, check_prompts
from clipproj.serve.store import from_bytes


def from_spec(loaded: Loaded, spec: Spec, max_prompts: int) -> Projector:
    """As `clipproj erase` makes it, with its price in the provenance.

    Raises ServiceError: 400 for names or options that make none, 422 for an edit that costs more or
    leaves more than the limits of `spec` allow.
    """
    try:
        forget, keep, closed = _texts(loaded, spec, max_prompts)
        made = defaults.make(
            forget,
            keep,
            spec.method,
            **spec.options,
            strength=spec.strength,
            closed=closed,
        )
        general = None
        if closed:
            general = generic_keep(
                loaded.model, loaded.tokenizer, forget, templates=GENERAL_PROMPTS, truncate=True
            )
        spent = sum(one.get("loss", 0) for one in log.records(loaded.model))
        judged = judge(made, forget, keep, spec.limits, closed=closed, general=general, spent=spent)
    except (ValueError, TypeError) as error:
        raise ServiceError(400, str(error), None, "invalid_value") from error
    if judged.refused:
        advice = gate.advice(judged)
        help = f" What may help: {'; '.join(advice)}." if advice else ""
        text = (
            f"refused: {' '.join(gate.alarms(judged))}{help} max_loss and max_found set the limits."
        )
        raise ServiceError(422, text, None, "edit_refused")
    made.provenance |= {"measured": gate.as_dict(judged)}
    return made


def from_file(engine: Engine, data: bytes) -> Projector:
    """An uploaded one. ServiceError 400 for a damaged file, or a projector of another model."""
    try:
        projector = from_bytes(data)
        engine.check(projector, "the projector")
    except ValueError as error:
        raise invalid(None, str(error), "invalid_projector") from error
    return projector


def _texts(loaded: Loaded, spec: Spec, max_prompts: int) -> tuple[Embeddings, Embeddings, bool]:
    """Texts to forget and to keep, and whether the latter are all names that compete."""
    keep = spec.keep
    # what edits that the model has already forgot is not kept unless it is asked for
    earlier = [name for one in log.records(loaded.model) for name in one["forget"]]
    if keep is None and loaded.name == demo.NAME:
        gone = {name_key(name) for name in (*spec.forget, *earlier)}
        keep = tuple(name for name in demo.class_names() if name_key(name) not in gone)
        if not keep:
            raise invalid("forget", "must leave a class of the model, got all of them")
    default = simple_templates() if keep is None else openai_templates()
    templates = spec.templates or default
    names = (*spec.forget, *(keep or ()))
    prompts = (len(names) + (0 if keep else 1000)) * len(templates)
    if prompts > max_prompts:
        why = f"times names must be at most {max_prompts}, got {prompts}"
        raise invalid("templates", why, "too_many")

    check_prompts(loaded.tokenizer, spec.forget, templates, "forget")
    check_prompts(loaded.tokenizer, keep or (), templates, "keep")
    texts = embed_classes(
        loaded.model, loaded.tokenizer, dict.fromkeys(names), templates, model_name=loaded.name
    )
    forget = texts.select(spec.forget)
    if keep is not None:
        return forget, texts.select(keep), True
    keep = generic_keep(loaded.model, loaded.tokenizer, forget, templates=templates)
    if again := on_both(earlier, keep.names):
        keep = keep.drop(again)
    return forget, keep, False
