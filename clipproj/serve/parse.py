"""From JSON to requests: every field is known and checked, and an error names its place."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic_core import from_json

from clipproj.audit.gate import Limits
from clipproj.methods.contrast import CONTRASTS
from clipproj.models.words import canonical, name_fault, name_key, on_both, repeated
from clipproj.serve.errors import ServiceError, bad
from clipproj.serve.inputs import Input, Name, Request
from clipproj.serve.settings import Settings

LONGEST = 2048  # letters: a model reads a hundred words, and tokenizing takes their square

COMMON = {"model", "input", "projector", "strength", "receipt", "truncate", "user"}
OF_EMBEDDINGS = COMMON | {"encoding_format", "dimensions"}
OF_CLASSIFY = COMMON | {"classes", "templates", "top"}
OF_INPUT = {"text", "image", "embedding", "projector", "strength", "side"}
OF_SPEC = {"forget", "keep", "templates", "method", "contrast", "rank", "strength",
           "forget_weight", "keep_weight", "max_loss", "max_found"}  # fmt: skip

TOKEN_IDS = (
    "token ids are refused, another model's tokenizer made them and here they would mean other "
    "words; send the text itself (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)
# Base64 as RFC 4648 has it: either alphabet, the padding whole or left out; RFC 2045 adds lines.
URL_SAFE = bytes.maketrans(b"-_", b"+/")
BETWEEN = b" \t\r\n"
FOREIGN = re.compile(r"[^A-Za-z0-9+/_ \t\r\n-]")


@dataclass(frozen=True)
class Spec:
    """How to make a tenant's projector: what `clipproj erase` takes, with its defaults.

    Attributes:
        forget, keep: class names in their one spelling; keep None: the embedded model's classes,
            else generic ones.
        templates: None: OpenAI's 80, or 7 with the generic names.
        method: "nullspace" or "ccup". contrast, rank: of nullspace. forget_weight, keep_weight:
            of ccup. strength: None for the method's own.
        limits: what the edit may cost and leave, else it is refused.
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
    limits: Limits = field(default_factory=Limits)


def json_object(body: bytes, allowed: set[str]) -> dict[str, Any]:
    """A request's body. ServiceError for anything but an object with these fields."""
    try:
        data = from_json(body, allow_inf_nan=True)  # a NaN gets an error that says where it is
        # It silently keeps the last of two fields of one name. json shows both, but takes what it
        # refuses, half of a surrogate pair and a thousand levels: so both read the body.
        _check_fields(body)
    except ValueError as error:
        raise bad(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise bad("the body must be a JSON object", code="invalid_json")
    for key in data:
        if key not in allowed:
            known = ", ".join(sorted(allowed))
            raise bad(f"there is no field {key!r}; there are {known}", key, "unknown_field")
    return data


@dataclass(frozen=True)
class _Twice:
    """An object in which a field stands twice."""

    field: str


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
        _refuse_twice(whole)


def _refuse_twice(value: Any, place: str = "") -> None:
    """Raises ServiceError, naming its place, for the first field that stands twice."""
    if isinstance(value, _Twice):
        text = f"a field must stand once in its object, got {value.field!r:.80} twice"
        raise bad(text, f"{place}.{value.field}".lstrip("."), "duplicate_field")
    for name, one in value.items() if isinstance(value, dict) else ():
        _refuse_twice(one, f"{place}.{name}".lstrip("."))
    for i, one in enumerate(value) if isinstance(value, list) else ():
        _refuse_twice(one, f"{place}[{i}]")


def embeddings(body: bytes, settings: Settings) -> tuple[Request, str]:
    """The request of `/v1/embeddings`, and "float" or "base64"."""
    data = json_object(body, OF_EMBEDDINGS)
    _model(data, settings)
    form = _one_of(("float", "base64"), data.get("encoding_format"), "encoding_format")
    return _request(data, settings, dimensions=_whole(data.get("dimensions"), "dimensions")), form


def classify(body: bytes, settings: Settings) -> tuple[Request, int | None]:
    """The request of `/v1/classify`, and how many classes of each input are asked for."""
    data = json_object(body, OF_CLASSIFY)
    _model(data, settings)
    classes = _names(data.get("classes"), "classes", settings)
    templates = _templates(data)
    prompts = len(classes) * len(templates or range(7))
    if prompts > settings.max_prompts:
        raise _prompts(prompts, settings)
    top = _whole(data.get("top"), "top")
    return _request(data, settings, classes, templates), top


def spec(body: bytes, settings: Settings) -> Spec:
    """How to make a tenant's projector; what it is made of is checked where it is made."""
    data = json_object(body, OF_SPEC)
    forget = _names(data.get("forget"), "forget", settings)
    keep = data.get("keep")
    keep = None if keep is None else _names(keep, "keep", settings)
    if both := on_both(forget, keep or ()):
        raise bad(f"keep must not hold what is forgotten, got {both} in both", "keep")
    forget = tuple(map(canonical, forget))  # as the command line embeds them
    keep = None if keep is None else tuple(map(canonical, keep))
    templates = _templates(data)
    method = _one_of(("nullspace", "ccup"), data.get("method"), "method")
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
    shares = {name: _number(data.get(name), name) for name in ("max_loss", "max_found")}
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise bad(f"{name} must be a share in [0, 1], got {share:g}", name)
    limits = Limits(**{name: share for name, share in shares.items() if share is not None})
    return Spec(forget, keep, templates, method, contrast, rank, strength, **weights, limits=limits)


def _names(value: Any, name: str, settings: Settings) -> tuple[str, ...]:
    """Class names as they are spelt, no two of them spellings of one: those share its texts."""
    names = strings(value, name, settings.max_classes, name_key)
    for i, one in enumerate(names):
        if fault := name_fault(one):
            raise bad(f"{name}[{i}] {fault}, got {one!r:.80}", f"{name}[{i}]")
    return names


def strings(value: Any, name: str, most: int, key: Callable[[str], str] = str) -> tuple[str, ...]:
    """A list of non-blank strings, distinct in what `key` makes of them."""
    if not isinstance(value, list) or not value:
        raise bad(f"{name} must be a list of strings with at least one", name)
    if len(value) > most:
        raise bad(f"{name} must hold at most {most} strings, got {len(value)}", name, "too_many")
    for i, one in enumerate(value):
        if not isinstance(one, str) or not one.strip():
            text = f"{name}[{i}] must be a string that is not blank, got {one!r:.80}"
            raise bad(text, f"{name}[{i}]")
        if len(one) > LONGEST:
            text = f"{name}[{i}] must have at most {LONGEST} letters, got {len(one)}"
            raise bad(text, f"{name}[{i}]", "too_long")
    if pair := repeated(value, key):
        raise bad(f"{name} must be distinct, got {pair[0]!r} and {pair[1]!r}", name)
    return tuple(value)


def _prompts(prompts: int, settings: Settings) -> ServiceError:
    text = f"names times templates must be at most {settings.max_prompts}, got {prompts}"
    return bad(text, "templates", "too_many")


def _templates(data: Mapping[str, Any]) -> tuple[str, ...] | None:
    if data.get("templates") is None:
        return None
    templates = strings(data["templates"], "templates", 1000)
    for i, one in enumerate(templates):
        if one.count("{}") != 1:
            text = f"templates[{i}] must hold {{}} exactly once, got {one!r}"
            raise bad(text, f"templates[{i}]")
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
    dimensions: int | None = None,
) -> Request:
    given = data.get("input")
    inputs = given if isinstance(given, list) else [given]
    if given is None or not inputs:
        raise bad("input must be a text, or a list of at least one input", "input")
    for i, one in enumerate(inputs):  # before they are counted: a list of ids is one text
        if _token_ids(one):
            raise bad(f"input {i}: {TOKEN_IDS}", f"input[{i}]", "token_ids")
    if len(inputs) > settings.max_batch:
        text = f"input must hold at most {settings.max_batch} inputs, got {len(inputs)}; send more "
        text += "requests (LangChain's OpenAIEmbeddings: chunk_size)"
        raise bad(text, "input", "too_many")
    default = _projector(data.get("projector"), "projector", "", settings)
    strength = _strength(data.get("strength"), "strength", "")
    made = tuple(_input(one, i, default, strength, settings) for i, one in enumerate(inputs))
    if strength is not None and all(one.projector is None for one in made):
        raise bad("strength must come with a projector", "strength")
    receipt, truncate = (_flag(data.get(name), name) for name in ("receipt", "truncate"))
    return Request(made, receipt, classes, templates, truncate, dimensions)


def _token_ids(one: Any) -> bool:
    """Whether this is what OpenAI takes for the tokens of a text, or for one of them."""
    ids = one if isinstance(one, list) else [one]
    return bool(ids) and all(type(number) is int for number in ids)


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
    side = one.get("side")
    if side is not None and (kind != "embedding" or side not in ("image", "text")):
        text = 'side must be "image" or "text", and come with an embedding'
        raise bad(before + text, f"{place}.side")
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
    scheme = value[:6].lower()
    if scheme.startswith("data:"):
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64") or "%" in value:
            text = "the image's data URL must be data:TYPE;base64,DATA and not percent-encoded"
            raise bad(before + text, param)
    elif scheme.startswith(("http:", "https:")):
        raise bad(before + "the image must be sent itself, the service fetches no URL", param)
    return _base64(value, param, before)


def _base64(value: str, param: str, before: str) -> bytes:
    """Bytes from base64 in either alphabet, in lines or not, padded or not."""

    def refusal(why: str) -> ServiceError:
        wrong = FOREIGN.search(text)
        why = f"{wrong[0]!r} at {wrong.start()}" if wrong else why
        return bad(f"{before}not base64: {why}", param, "invalid_base64")

    text = value.rstrip("= \t\r\n")
    digits = text.encode("ascii", "replace").translate(None, BETWEEN)  # "?" for a foreign letter
    if any(c in digits for c in b"-_"):
        if any(c in digits for c in b"+/"):
            raise refusal("it mixes the alphabet of + and / with the URL-safe one of - and _")
        digits = digits.translate(URL_SAFE)
    missing, padding = -len(digits) % 4, value.count("=", len(text))
    if missing == 3 or padding not in (0, missing):
        raise refusal(f"cut off or wrongly padded, {len(digits)} digits and {padding} of =")
    try:
        return base64.b64decode(digits + b"=" * missing, validate=True)
    except binascii.Error as error:
        raise refusal(str(error)) from error


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


def _one_of(options: tuple[str, ...], value: Any, name: str) -> str:
    """One of the options, the first where none is given."""
    if value is None:
        return options[0]
    if value not in options:
        listed = " or ".join(f'"{one}"' for one in options)
        raise bad(f"{name} must be {listed}, got {value!r}", name)
    return value


def _flag(value: Any, name: str) -> bool:
    if value not in (None, True, False) or type(value) in (int, float):
        raise bad(f"{name} must be true or false, got {value!r}", name)
    return bool(value)
