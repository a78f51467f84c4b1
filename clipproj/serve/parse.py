"""A request's body, checked against its model; an error names its place in OpenAI's shape."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from clipproj.audit.gate import Limits
from clipproj.methods.registry import DEFAULT
from clipproj.models.words import canonical, on_both, repeated
from clipproj.recipe import Recipe
from clipproj.serve.errors import ServiceError, invalid, shown
from clipproj.serve.inputs import Item, Job
from clipproj.serve.schema import (
    KINDS,
    SPECS,
    TAGS,
    Body,
    ClassifyRequest,
    EmbeddingsRequest,
    TenantSpec,
)
from clipproj.serve.settings import Settings

Model = TypeVar("Model", bound=Body)

CODES = {  # by the type of pydantic's error; any other is invalid_value
    "extra_forbidden": "unknown_field",
    "string_too_long": "too_long",
    "too_long": "too_many",
} | {code: code for code in ("invalid_value", "too_many", "token_ids", "invalid_base64")}
WORDS = {  # where pydantic's own would not do
    "missing": "must be given",
    "string_pattern_mismatch": "must be a string that is not blank, got {got}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} letters, got {length}",
    "tuple_type": "must be a list, got {got}",
    "too_short": "must hold at least {min_length}, got {length}",
    "too_long": "must hold at most {max_length}, got {length}",
    "greater_than": "must be above {gt:g}, got {got}",
    "greater_than_equal": "must be at least {ge:g}, got {got}",
    "less_than_equal": "must be at most {le:g}, got {got}",
    "float_type": "must be a finite number, got {got}",  # also of one with 400 digits
}
WHOLE = ("embedding", "projector")  # named as a whole, whatever part of it is wrong
LONGEST_PLACE = 100  # letters; a stranger's fields may be long and nested
MOST_FAULTS = 100  # each takes its time, and only unknown fields can be so many


def embeddings(body: bytes, settings: Settings) -> tuple[Job, str]:
    """The request of `/v1/embeddings`, and "float" or "base64"."""
    asked = _checked(EmbeddingsRequest, _object(body), settings)
    return _job(asked, settings, dimensions=asked.dimensions), asked.encoding_format or "float"


def classify(body: bytes, settings: Settings) -> tuple[Job, int | None]:
    """The request of `/v1/classify`, and how many classes of each input are asked for."""
    asked = _checked(ClassifyRequest, _object(body), settings)
    _check_prompts(len(asked.classes) * len(asked.templates or range(7)), settings)
    return _job(asked, settings, classes=asked.classes, templates=asked.templates), asked.top


def spec(body: bytes, settings: Settings) -> Recipe:
    """How to make a tenant's projector; what it is made of is checked where it is made."""
    data = _object(body)
    method = DEFAULT if data.get("method") is None else data["method"]
    if method not in list(SPECS):
        raise invalid("method", f"must be {' or '.join(SPECS)}, got {shown(method)}")
    asked = _checked(SPECS[method], data, settings)
    if both := on_both(asked.forget, asked.keep or ()):
        raise invalid("keep", f"must not hold what is forgotten, got {shown(both[0])} in both")
    if asked.templates and asked.keep:
        prompts = (len(asked.forget) + len(asked.keep)) * len(asked.templates)
        _check_prompts(prompts, settings)
    given = asked.model_dump(exclude_none=True, exclude={"method"})
    given["names"] = tuple(map(canonical, given.pop("forget")))  # as the command line embeds them
    given["keep"] = tuple(map(canonical, given.get("keep", ())))
    fields = {"names", *TenantSpec.model_fields}
    common = {name: given.pop(name) for name in fields if name in given}
    limits = {name: common.pop(name) for name in ("max_loss", "max_found") if name in common}
    limits = Limits(**limits)
    return Recipe(**common, method=method, options=given, limits=limits, command="make")


def _check_prompts(prompts: int, settings: Settings) -> None:
    if prompts > settings.max_prompts:
        why = f"times names must be at most {settings.max_prompts}, got {prompts}"
        raise invalid("templates", why, "too_many")


def _job(asked: EmbeddingsRequest | ClassifyRequest, settings: Settings, **options: Any) -> Job:
    """What the engine is to do: each input with the projector and the strength that it takes."""
    if asked.model not in (None, settings.served):
        text = f"there is no model {shown(asked.model)} here; there is {settings.served!r}"
        raise ServiceError(404, text, "model", "model_not_found")
    items = []
    for i, one in enumerate(asked.input):
        projector, strength, side = asked.projector, asked.strength, None
        if isinstance(one, str):
            kind, value = "text", one
        else:
            kind, value = one.kind, getattr(one, one.kind)
            side = one.side if kind == "embedding" else None
            if "projector" in one.model_fields_set:
                projector = one.projector
            if one.strength is not None:
                strength = one.strength
                if projector is None:
                    raise invalid(f"input[{i}].strength", "must come with a projector")
        items.append(Item(kind, value, projector or (), strength if projector else None, side))
    if asked.strength is not None and not any(one.projector for one in items):
        raise invalid("strength", "must come with a projector")
    return Job(tuple(items), bool(asked.receipt), truncate=bool(asked.truncate), **options)


def _object(body: bytes) -> dict[str, Any]:
    """A body's JSON object. ServiceError for anything else, and a field that stands twice."""
    try:
        data = from_json(body)  # a NaN gets an error that says where it is
        # It silently keeps the last of two fields of one name. json shows both, but takes what it
        # refuses, half of a surrogate pair and a thousand levels: so both read the body, unless
        # it has no more colons than `data` has fields: then none was lost. Those of data URLs
        # stand in strings.
        if body.count(b":") - body.count(b'"data:') > _count_fields(data):
            _check_fields(body)
    except ValueError as error:
        raise invalid(None, f"the body is not JSON: {error}", "invalid_json") from error
    if not isinstance(data, dict):
        raise invalid(None, "the body must be a JSON object", "invalid_json")
    return data


def _checked(model: type[Model], data: dict[str, Any], settings: Settings) -> Model:
    """The object as a model. ServiceError for the first thing that does not fit."""
    try:
        return model.model_validate(data, context=settings)
    except ValidationError as error:
        raise _refusal(error, model) from None


def _count_fields(data: Any) -> int:
    """Of an object, and of the objects in it and in its lists; not of any further down."""
    if not isinstance(data, dict):
        return 0
    lists = (one if isinstance(one, list) else [one] for one in data.values())
    return len(data) + sum(len(one) for some in lists for one in some if isinstance(one, dict))


def _check_fields(body: bytes) -> None:
    """Raises ServiceError for a field that stands twice, ValueError for what is not JSON."""
    found: list[_Twice] = []

    def read(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Twice:
        pair = repeated((name for name, _ in pairs), str)
        if pair is None:
            return dict(pairs)
        found.append(_Twice(pair[0]))
        return found[-1]

    whole = json.loads(body, object_pairs_hook=read)
    if found:
        _refuse_twice(whole, ())


@dataclass(frozen=True)
class _Twice:
    """An object in which a field stands twice."""

    field: str


def _refuse_twice(value: Any, path: tuple[str | int, ...]) -> None:
    """Raises ServiceError, naming its place, for the first field that stands twice."""
    if isinstance(value, _Twice):
        why = f"must stand once in its object, got {shown(value.field)} twice"
        raise invalid(_place((*path, value.field)), why, "duplicate_field")
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for part, one in items:
        if isinstance(one, dict | list | _Twice):
            _refuse_twice(one, (*path, part))


def _refusal(error: ValidationError, model: type[Body]) -> ServiceError:
    """The first of pydantic's errors, in the service's shape."""
    if error.error_count() > MOST_FAULTS:
        return invalid(None, f"there are over {MOST_FAULTS} unknown fields", "unknown_field")
    first = error.errors(include_url=False)[0]
    kind, path, given = first["type"], first["loc"], first["input"]
    whole = next((n for n, part in enumerate(path) if part in WHOLE), len(path))
    param, code = _place(path[: whole + 1]), CODES.get(kind, "invalid_value")
    if kind == "extra_forbidden":
        known = (KINDS.get(path[-2], model) if len(path) > 1 else model).model_fields
        return invalid(param, f"is no field here; there are {', '.join(sorted(known))}", code)
    if kind in WORDS:
        length = len(given) if isinstance(given, str | list) else None
        text = WORDS[kind].format(got=shown(given), length=length, **first.get("ctx", {}))
    elif kind == code:  # one of ours
        text = first["msg"]
    else:
        text = re.sub(r"^\w+ should", "must", first["msg"]) + f", got {shown(given)}"
    return ServiceError(400, f"{_place(path)} {text}", param, code)


def _place(path: Sequence[str | int]) -> str:
    """As in `input[3].image`."""
    parts = (f"[{p}]" if isinstance(p, int) else f".{p:.80}" for p in path if p not in TAGS)
    return "".join(parts).removeprefix(".")[:LONGEST_PLACE]
