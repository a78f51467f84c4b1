"""The JSON bodies that the service reads, as pydantic models: their checks and their OpenAPI.

They are validated with the service's `Settings` as context, which has the limits.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from clipproj.methods.registry import DEFAULT, METHODS, STRENGTH, Method, Option
from clipproj.models.words import name_fault, name_key, repeated
from clipproj.recipe.record import OF_A_MODEL
from clipproj.serve.encoded import float32_row, image_bytes
from clipproj.serve.errors import shown

LONGEST = 2048  # letters: a model reads a hundred words, and tokenizing takes their square
TOKEN_IDS = (
    "holds token ids, which are refused: another model's tokenizer made them and here they would "
    "mean other words; send the text itself (LangChain's OpenAIEmbeddings: "
    "check_embedding_ctx_length=False)"
)


def _at_most(setting: str, help: str = "") -> BeforeValidator:
    """A list may be as long as a setting says; it is counted before its items are looked at."""

    def check(value: Any, info: ValidationInfo) -> Any:
        most = getattr(info.context, setting)
        if isinstance(value, list) and len(value) > most:
            text = f"must hold at most {most}, got {len(value)}{help}"
            raise PydanticCustomError("too_many", text)
        return value

    return BeforeValidator(check)


def _distinct(values: tuple[str, ...], key: Any = str) -> tuple[str, ...]:
    if pair := repeated(values, key):
        text = f"must be distinct, got {shown(pair[0], 40)} and {shown(pair[1], 40)}"
        raise PydanticCustomError("invalid_value", text)
    return values


def _name(value: str) -> str:
    if fault := name_fault(value):
        raise PydanticCustomError("invalid_value", f"{fault}, got {shown(value)}")
    return value


def _template(value: str) -> str:
    if value.count("{}") != 1:
        text = f"must hold {{}} exactly once, got {shown(value)}"
        raise PydanticCustomError("invalid_value", text)
    return value


def _tenants(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    names, most = read([value] if isinstance(value, str) else value), info.context.combine
    if len(names) > most:
        raise PydanticCustomError("too_many", f"must hold at most {most}, got {len(names)}")
    return names if len(names) == 1 else _distinct(names)


Text = Annotated[str, Field(max_length=LONGEST, pattern=r"\S")]
Listed = Field(min_length=1, fail_fast=True, strict=False)  # JSON's lists as tuples
Names = Annotated[
    tuple[Annotated[Text, AfterValidator(_name)], ...],
    Listed,
    _at_most("max_classes"),
    AfterValidator(lambda names: _distinct(names, name_key)),
]
Templates = Annotated[
    tuple[Annotated[Text, AfterValidator(_template)], ...],
    Listed,
    Field(max_length=1000),
    AfterValidator(_distinct),
]
Tenants = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
    Listed,
    WrapValidator(_tenants, json_schema_input_type=str | list[str]),
]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Strength = Annotated[float, Field(ge=STRENGTH.low, le=STRENGTH.high, allow_inf_nan=False)]
Base64 = Annotated[str, Field(min_length=1, json_schema_extra={"contentEncoding": "base64"})]
Numbers = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, fail_fast=True)
]


class Body(BaseModel):
    """An object whose fields are all known; null is the default wherever it may stand."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class _Item(Body):
    kind: ClassVar[str]

    projector: Tenants | None = None
    """In place of the request's, for this input alone; null for none."""
    strength: Strength | None = None
    """In place of the request's, for this input alone."""


class TextItem(_Item):
    """A text, with options of its own."""

    kind = "text"
    text: Text


class ImageItem(_Item):
    """An image: PNG, JPEG, WebP, GIF or BMP, upright by its EXIF orientation and on white."""

    kind = "image"
    image: Annotated[Base64, AfterValidator(image_bytes)]
    """A data URL (data:image/png;base64,...) or the base64 alone. No URL is fetched."""


class EmbeddingItem(_Item):
    """An embedding of the served model, made elsewhere."""

    kind = "embedding"
    embedding: Annotated[
        Annotated[Base64, Tag("<base64>")] | Annotated[Numbers, Tag("<numbers>")],
        Discriminator(lambda value: "<base64>" if isinstance(value, str) else "<numbers>"),
        AfterValidator(float32_row),
    ]
    """As many numbers as the model is wide, or base64 of them as little-endian float32."""
    side: Literal["image", "text"] | None = None
    """What it is an embedding of; null is image."""


def token_ids(one: Any) -> bool:
    """Whether this is what OpenAI takes for the tokens of a text, or for one of them."""
    ids = one if isinstance(one, list) else [one]
    return bool(ids) and all(type(number) is int for number in ids)


def _refuse_tokens(value: Any) -> Any:
    raise PydanticCustomError("token_ids", TOKEN_IDS)


# Tags of what reads an input; pydantic puts them into an error's place, where they are left out.
KINDS = {f"<{model.kind}>": model for model in (TextItem, ImageItem, EmbeddingItem)}
TAGS = {*KINDS, "<tokens>", "<base64>", "<numbers>"}


def _kind(one: Any) -> str | None:
    """Of an input: the tag of what reads it. A string is read, and named, as its own text."""
    if isinstance(one, str):
        return "text"
    if isinstance(one, dict):
        kinds = [kind for kind in ("text", "image", "embedding") if kind in one]
        return f"<{kinds[0]}>" if len(kinds) == 1 else None
    return "<tokens>" if token_ids(one) else None


Item = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[TextItem, Tag("<text>")]
    | Annotated[ImageItem, Tag("<image>")]
    | Annotated[EmbeddingItem, Tag("<embedding>")]
    | Annotated[Any, AfterValidator(_refuse_tokens), SkipJsonSchema(), Tag("<tokens>")],
    Discriminator(
        _kind,
        custom_error_type="invalid_value",
        custom_error_message="must be a text, or an object with exactly one of text, image and "
        "embedding",
    ),
]


def _inputs(value: Any, info: ValidationInfo) -> Any:
    """One input as a list of one; too many are refused before any of them is read."""
    if value is None:
        text = "must be a text, or a list of at least one input, got null"
        raise PydanticCustomError("invalid_value", text)
    inputs, most = value if isinstance(value, list) else [value], info.context.max_batch
    if len(inputs) > most and not token_ids(inputs[0]):  # many ids are one text
        text = f"must hold at most {most} inputs, got {len(inputs)}; send more requests "
        text += "(LangChain's OpenAIEmbeddings: chunk_size)"
        raise PydanticCustomError("too_many", text)
    return inputs


class _Request(Body):
    input: Annotated[
        tuple[Item, ...],
        Listed,
        BeforeValidator(_inputs, json_schema_input_type=Item | list[Item]),
    ]
    """A text, or a list of texts, images and embeddings, at most `max_batch` (256) of them."""
    model: str | None = None
    """As `/v1/models` names it; there is one."""
    projector: Tenants | None = None
    """A tenant's name, or several that are applied together."""
    strength: Strength | None = None
    """In place of the projector's own; above 1 for a single direction alone."""
    receipt: bool | None = None
    """Whether each row says what was done to it."""
    truncate: bool | None = None
    """Whether a text that is too long for the model is cut; else it is an error."""
    user: str | None = None
    """Taken from OpenAI's clients and not used."""


class EmbeddingsRequest(_Request):
    """Rows for texts, images and embeddings, each with its tenant's projector."""

    encoding_format: Literal["float", "base64"] | None = None
    """null is float; base64 is of little-endian float32."""
    dimensions: Count | None = None
    """May only be the model's width."""


class ClassifyRequest(_Request):
    """Which of some classes each input is, after its tenant's projector."""

    classes: Names
    """Names to choose from, no two of them spellings of one."""
    templates: Templates | None = None
    """Prompts, each with {} once for the name; null is open_clip's seven simple ones."""
    top: Count | None = None
    """How many classes each input gets, the likeliest first; null is all."""


class TenantSpec(Body):
    """How to make a tenant's projector: what `clipproj erase` takes, with its defaults."""

    forget: Names
    """Class names that the projector erases."""
    keep: Names | None = None
    """Names that stay; null is the embedded model's classes, else names in general."""
    templates: Templates | None = None
    """Prompts, each with {} once for the name; null is OpenAI's 80, or 7 with names in general."""
    strength: Strength | None = None
    """In place of the method's own; above 1 for a single direction alone."""
    max_loss: Share | None = None
    """By how much accuracy on all other classes may fall; null is 0.02, 1 allows everything."""
    max_found: Share | None = None
    """Which share of the forgotten may still be found; null is 0.01, 1 allows everything."""


class _Made(TenantSpec):
    model_config = ConfigDict(use_attribute_docstrings=False)  # it reads the source, here of none


def _spec_of(method: Method) -> type[TenantSpec]:
    """A tenant's spec with this method's name and options."""
    named: Any = Literal[method.name]
    fields: dict[str, Any] = {
        "method": (named | None, None) if method.name == DEFAULT else (named, ...)
    }
    for one in method.options:
        text = f"{one.help[0].upper()}{one.help[1:]}. Default: {one.default}."
        fields[one.name] = (Annotated[_values(one) | None, Field(description=text)], None)
    return create_model(
        f"{method.name.title()}Spec",
        __base__=_Made,
        __doc__=f"Method {method.name}: {method.about} ({method.paper}).",
        **fields,
    )


def _values(option: Option) -> Any:
    """The values of a method's option, as a type with its range."""
    if option.choices:
        return Literal[option.choices]
    if option.kind is str:
        return Text
    ends = {"ge": option.low, "le": option.high, "gt": option.above}
    finite = {"allow_inf_nan": False} if option.kind is float else {}
    return Annotated[option.kind, Field(**ends, **finite)]


SPECS = {  # all that can be made of names
    name: _spec_of(one) for name, one in METHODS.items() if one.needs <= OF_A_MODEL
}
