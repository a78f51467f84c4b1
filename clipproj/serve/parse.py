"""From JSON to requests: every field is known and checked, and an error names its place."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import from_json

from clipproj.methods.nullspace import CONTRASTS
from clipproj.serve.errors import ServiceError, bad
from clipproj.serve.inputs import Input, Name, Request
from clipproj.serve.settings import Settings

LONGEST = 2048  # letters: a model reads a hundred words, and tokenizing takes their square

COMMON = {"model", "input", "projector", "strength", "receipt", "truncate", "user"}
OF_EMBEDDINGS = COMMON | {"encoding_format"}
OF_CLASSIFY = COMMON | {"classes", "templates", "top"}
OF_INPUT = {"text", "image", "embedding", "projector", "strength", "side"}
OF_SPEC = {"forget", "keep", "templates", "method", "contrast", "rank", "strength",
           "forget_weight", "keep_weight"}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """How to make a tenant's projector: what `clipproj erase` takes, with its defaults.

    Attributes:
        forget, keep: class names; keep None: the embedded model's classes, else generic ones.
        templates: None: OpenAI's 80, or 7 with the generic names.
        method: "nullspace" or "ccup". contrast, rank: of nullspace. forget_weight, keep_weight:
            of ccup. strength: None for the method's own.
    """

    forget: tuple[str, ...]
    keep: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    method: str = "nullspace"
    contrast: str | None = None
    rank: int | None = None
    strength: float | None = None
    forget_weight: float | None = None
    keep_weight: float | None = None


def json_object(body: bytes, allowed: set[str]) -> dict[str, Any]:
    """A request's body. ServiceError for anything but an object with these fields."""
    try:
        data = from_json(body, allow_inf_nan=True)  # a NaN gets an error that says where it is
    except ValueError as error:
        raise bad(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise bad("the body must be a JSON object", code="invalid_json")
    for key in data:
        if key not in allowed:
            known = ", ".join(sorted(allowed))
            raise bad(f"there is no field {key!r}; there are {known}", key, "unknown_field")
    return data


def embeddings(body: bytes, settings: Settings) -> tuple[Request, str]:
    """The request of `/v1/embeddings`, and "float" or "base64"."""
    data = json_object(body, OF_EMBEDDINGS)
    _model(data, settings)
    form = data.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise bad(f'encoding_format must be "float" or "base64", got {form!r}', "encoding_format")
    return _request(data, settings), form


def classify(body: bytes, settings: Settings) -> tuple[Request, int | None]:
    """The request of `/v1/classify`, and how many classes of each input are asked for."""
    data = json_object(body, OF_CLASSIFY)
    _model(data, settings)
    classes = strings(data.get("classes"), "classes", settings.max_classes)
    templates = _templates(data)
    prompts = len(classes) * len(templates or range(7))
    if prompts > settings.max_prompts:
        raise _prompts(prompts, settings)
    top = _whole(data.get("top"), "top")
    return _request(data, settings, classes, templates), top


def spec(body: bytes, settings: Settings) -> Spec:
    """How to make a tenant's projector; what it is made of is checked where it is made."""
    data = json_object(body, OF_SPEC)
    forget = strings(data.get("forget"), "forget", settings.max_classes)
    keep = data.get("keep")
    keep = None if keep is None else strings(keep, "keep", settings.max_classes)
    templates = _templates(data)
    method = data.get("method") or "nullspace"
    if method not in ("nullspace", "ccup"):
        raise bad(f'method must be "nullspace" or "ccup", got {method!r}', "method")
    foreign = ("contrast", "rank") if method == "ccup" else ("forget_weight", "keep_weight")
    for name in foreign:
        if data.get(name) is not None:
            raise bad(f"{name} must be left out with method {method}", name)
    contrast, rank = data.get("contrast"), _whole(data.get("rank"), "rank")
    if contrast not in (None, "auto", *CONTRASTS):
        raise bad(f"contrast must be auto, {', '.join(CONTRASTS)}, got {contrast!r}", "contrast")
    weights = {name: _number(data.get(name), name) for name in ("forget_weight", "keep_weight")}
    strength = _strength(data.get("strength"), "strength", "")
    if templates and keep is not None:
        prompts = (len(forget) + len(keep)) * len(templates)
        if prompts > settings.max_prompts:
            raise _prompts(prompts, settings)
    return Spec(forget, keep, templates, method, contrast, rank, strength, **weights)


def strings(value: Any, name: str, most: int) -> tuple[str, ...]:
    """A list of distinct, non-blank strings."""
    if not isinstance(value, list) or not value:
        raise bad(f"{name} must be a list of strings with at least one", name)
    if len(value) > most:
        raise bad(f"{name} must hold at most {most} strings, got {len(value)}", name, "too_many")
    seen = set()
    for i, one in enumerate(value):
        if not isinstance(one, str) or not one.strip():
            raise bad(f"{name}[{i}] must be a string that is not blank, got {one!r:.80}", name)
        if len(one) > LONGEST:
            text = f"{name}[{i}] must have at most {LONGEST} letters, got {len(one)}"
            raise bad(text, name, "too_long")
        if one in seen:
            raise bad(f"{name} must be distinct, got {one!r} twice", name)
        seen.add(one)
    return tuple(value)


def _prompts(prompts: int, settings: Settings) -> ServiceError:
    text = f"names times templates must be at most {settings.max_prompts}, got {prompts}"
    return bad(text, "templates", "too_many")


def _templates(data: Mapping[str, Any]) -> tuple[str, ...] | None:
    if data.get("templates") is None:
        return None
    templates = strings(data["templates"], "templates", 1000)
    for one in templates:
        if one.count("{}") != 1:
            raise bad(f"templates must hold {{}} exactly once, got {one!r}", "templates")
    return templates


def _model(data: Mapping[str, Any], settings: Settings) -> None:
    asked = data.get("model")
    if asked is not None and asked != settings.served:
        raise ServiceError(
            404,
            f"there is no model {asked!r} here; there is {settings.served!r}",
            "model",
            "model_not_found",
        )


def _request(
    data: Mapping[str, Any],
    settings: Settings,
    classes: tuple[str, ...] | None = None,
    templates: tuple[str, ...] | None = None,
) -> Request:
    given = data.get("input")
    inputs = given if isinstance(given, list) else [given]
    if given is None or not inputs:
        raise bad("input must be a text, or a list of at least one input", "input")
    if len(inputs) > settings.max_batch:
        text = f"input must hold at most {settings.max_batch} inputs, got {len(inputs)}"
        raise bad(text, "input", "too_many")
    default = _projector(data.get("projector"), "projector", "", settings)
    strength = _strength(data.get("strength"), "strength", "")
    made = tuple(_input(one, i, default, strength, settings) for i, one in enumerate(inputs))
    if strength is not None and all(one.projector is None for one in made):
        raise bad("strength must come with a projector", "strength")
    receipt, truncate = (_flag(data.get(name), name) for name in ("receipt", "truncate"))
    return Request(made, receipt, classes, templates, truncate)


def _input(
    one: Any, i: int, projector: Name | None, strength: float | None, settings: Settings
) -> Input:
    if isinstance(one, str):
        one = {"text": one}
    place, before = f"input[{i}]", f"input {i}: "
    if not isinstance(one, dict):
        text = "it must be a text or an object with text, image or embedding"
        raise bad(before + text, place)
    kinds = [kind for kind in ("text", "image", "embedding") if kind in one]
    if len(kinds) != 1 or not set(one) <= OF_INPUT:
        text = "it must have exactly one of text, image and embedding, and else only projector, "
        raise bad(f"{before}{text}strength, side; got {sorted(one)}", place)
    kind = kinds[0]
    if "projector" in one:
        projector = _projector(one["projector"], f"{place}.projector", before, settings)
    if one.get("strength") is not None:
        strength = _strength(one["strength"], f"{place}.strength", before)
        if projector is None:
            raise bad(before + "strength must come with a projector", f"{place}.strength")
    if projector is None:
        strength = None
    side = None
    if "side" in one:
        if kind != "embedding" or one["side"] not in ("image", "text"):
            text = 'side must be "image" or "text", and come with an embedding'
            raise bad(before + text, f"{place}.side")
        side = one["side"]
    read = {"text": _text, "image": _image, "embedding": _embedding}[kind]
    return Input(kind, read(one[kind], f"{place}.{kind}", before), projector, strength, side)


def _text(value: Any, param: str, before: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise bad(before + "the text must be a string that is not blank", param)
    if len(value) > LONGEST:
        raise bad(f"{before}the text must have at most {LONGEST} letters, got {len(value)}", param)
    return value


def _image(value: Any, param: str, before: str) -> bytes:
    if not isinstance(value, str) or not value:
        raise bad(before + "the image must be a data URL or base64", param)
    if value.startswith("data:"):
        head, comma, value = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise bad(before + "the image's data URL must be base64", param)
    elif value.startswith(("http:", "https:")):
        raise bad(before + "the image must be sent itself, the service fetches no URL", param)
    return _base64(value, param, before)


def _base64(value: str, param: str, before: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad(f"{before}not base64: {error}", param, "invalid_base64") from error


def _embedding(value: Any, param: str, before: str) -> np.ndarray:
    """[d] float32 from numbers, or from base64 of little-endian float32."""
    if isinstance(value, str):
        data = _base64(value, param, before)
        if not data or len(data) % 4:
            text = f"base64 must hold whole float32 numbers, got {len(data)} bytes"
            raise bad(before + text, param)
        return np.frombuffer(data, "<f4").astype(np.float32)
    if not isinstance(value, list) or not value:
        raise bad(before + "the embedding must be a list of numbers, or base64", param)
    for j, number in enumerate(value):
        if type(number) not in (int, float):
            raise bad(f"{before}the embedding must hold numbers, got {number!r} at {j}", param)
    try:
        with np.errstate(over="ignore"):  # becomes inf, which is refused
            return np.array(value, np.float64).astype(np.float32)
    except OverflowError as error:
        raise bad(before + "the embedding must be finite, got a number too large", param) from error


def _projector(value: Any, param: str, before: str, settings: Settings) -> Name | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise bad(before + "projector must be a tenant's name, a list of names, or null", param)
    if len(set(names)) != len(names) or len(names) > settings.combine:
        text = f"projector must hold at most {settings.combine} distinct names"
        raise bad(before + text, param)
    return names[0] if len(names) == 1 else tuple(names)


def _strength(value: Any, param: str, before: str) -> float | None:
    number = _number(value, param, before)
    if number is not None and not 0 <= number <= 2:
        raise bad(f"{before}strength must be in [0, 2], got {number:g}", param)
    return number


def _number(value: Any, param: str, before: str = "") -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # an integer of more than 308 digits
        number = math.inf
    if not math.isfinite(number):
        raise bad(f"{before}{param} must be a finite number, got {value!r}", param)
    return number


def _whole(value: Any, name: str) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise bad(f"{name} must be a whole number of at least 1, got {value!r}", name)
    return value


def _flag(value: Any, name: str) -> bool:
    if value not in (None, True, False) or type(value) in (int, float):
        raise bad(f"{name} must be true or false, got {value!r}", name)
    return bool(value)
