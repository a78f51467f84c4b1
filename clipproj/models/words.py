"""The words that go into prompts: class names and their other forms, prompt templates."""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType

from clipproj.refusal import Refusal

Template = str | Callable[[str], str]


def expand_names(
    names: Iterable[str],
    *,
    plurals: bool = False,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """The names, each followed by its other forms; order kept, doubles (`name_key`) left out.

    Args:
        names: class names.
        plurals: also the English plural of each name and synonym ("mouse": "mice"); a name that is
            one already gets none, nor does one that ends in a digit or a sign ("C++").
        synonyms: other words for some of the names, by name, in any spelling.

    Raises:
        TypeError: for a bare string as names or as the synonyms of a name; for synonyms that are
            no mapping.
        ValueError: for blank words, or synonyms of a name that is not in names.
        ImportError: for plurals without inflect.

    Example:
        >>> clipproj.expand_names(["mouse"], plurals=True, synonyms={"mouse": ["house mouse"]})
        ['mouse', 'mice', 'house mouse', 'house mice']
    """
    op = "expand_names"
    names = strings(op, "names", names)
    if not isinstance(synonyms, Mapping | None):
        got = type(synonyms).__name__
        raise TypeError(f"{op}: synonyms must be a mapping from name to words, got {got}")
    known = {name_key(name) for name in names}
    others: dict[str, tuple[str, ...]] = {}
    for name, words in (synonyms or {}).items():
        key = name_key(name)
        if key not in known:
            raise Refusal(op, "synonyms", f"must belong to one of the names, got {name!r}")
        others[key] = (*others.get(key, ()), *strings(op, f"synonyms of {name!r}", words))
    plural = _pluralizer() if plurals else None
    expanded: dict[str, str] = {}
    for name in names:
        for word in (name, *others.get(name_key(name), ())):
            for form in (word, plural(word)) if plural else (word,):
                expanded.setdefault(name_key(form), form)
    return list(expanded.values())


def canonical(name: str) -> str:
    """The one spelling of a name: composed accents (NFC), spaces for underscores, none in excess.

    A Mac's folders hold accents as letters of their own (NFD), which read alike and tokenize
    otherwise.
    """
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split())


def name_key(name: str) -> str:
    """What two spellings of one name have in common: `canonical`, whatever the case."""
    return unicodedata.normalize("NFC", canonical(name).casefold())


def repeated(names: Iterable[str], key: Callable[[str], str] = name_key) -> tuple[str, str] | None:
    """The first two names that are one and the same by `key`; None where all differ."""
    seen: dict[str, str] = {}
    for name in names:
        form = key(name)
        if form in seen:
            return seen[form], name
        seen[form] = name
    return None


def on_both(forget: Iterable[str], keep: Iterable[str]) -> list[str]:
    """The names to keep that are spellings of one to forget."""
    gone = {name_key(name) for name in forget}
    return [name for name in keep if name_key(name) in gone]


def utf8(text: str) -> bool:
    """False for a file's name, or an argument, with bytes that are not: no report can hold it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def name_fault(name: str) -> str | None:
    """What a name must be that this one is not, in its `canonical` spelling; None for a good one.

    Control characters a terminal would obey, and those that format text nobody sees: with one,
    a name reads as another and tokenizes otherwise. Scripts and emoji need the joiners.
    """
    name = canonical(name)
    if not name:
        return "must not be blank"
    if not utf8(name) or any(
        unicodedata.category(letter) in ("Cc", "Cf") and not _joins(name, at)
        for at, letter in enumerate(name)
    ):
        return "must be UTF-8 without control characters and invisible ones"
    return None


def _joins(name: str, at: int) -> bool:
    """Whether a letter is a joiner, or keeps from joining, between two others."""
    beside = (name[at - 1 : at], name[at + 1 : at + 2])
    return name[at] in "\u200c\u200d" and all(
        one and unicodedata.category(one)[0] in "LMS" for one in beside
    )


def openai_templates() -> tuple[str, ...]:
    """The 80 prompt templates OpenAI used on ImageNet, from open_clip. ImportError without it."""
    return tuple(make("{}") for make in _zero_shot_metadata().OPENAI_IMAGENET_TEMPLATES)


def imagenet_names() -> tuple[str, ...]:
    """ImageNet's class names from open_clip, in class order: 1000 classes, 998 distinct names.

    "missile" and "sunglasses" name two classes each. ImportError without open_clip.
    """
    return tuple(dict.fromkeys(_zero_shot_metadata().IMAGENET_CLASSNAMES))


def simple_templates() -> tuple[str, ...]:
    """The 7 of them that do nearly as well, from open_clip. ImportError without it."""
    return tuple(make("{}") for make in _zero_shot_metadata().SIMPLE_IMAGENET_TEMPLATES)


def _zero_shot_metadata() -> ModuleType:
    return _extra(
        "open_clip.zero_shot_metadata",
        "the default templates and ImageNet's names come from open_clip: install clipproj[cli], or "
        'pass templates (such as ["a photo of a {}."]) and your own names to keep',
    )


def _pluralizer() -> Callable[[str], str]:
    engine = _extra("inflect", "plurals come from inflect: install clipproj[cli]").engine()

    def plural(word: str) -> str:
        if word[-1].lower() == word[-1].upper():  # a digit, a sign, a script without case
            return word
        form = engine.plural_noun(word)
        if form == word + "S":  # "NASAS" reads as another acronym
            return word + "s"
        if word.endswith("s"):  # inflect makes "buses" of "bus", but "catss" of "cats"
            return word if form == word + "s" else form
        singular = engine.singular_noun(word)
        return word if singular and engine.plural_noun(singular) == word else form

    return plural


def _extra(module: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(text) from error


def strings(op: str, argument: str, values: Iterable[str]) -> tuple[str, ...]:
    """The values as a tuple, checked: some strings of Unicode, none of them blank."""
    if isinstance(values, str):
        raise TypeError(f"{op}: {argument} must be a list of strings, got the string {values!r}")
    if not isinstance(values, Iterable):
        raise TypeError(f"{op}: {argument} must be a list of strings, got {type(values).__name__}")
    values = tuple(values)
    if not values:
        raise Refusal(op, argument, "must hold at least one string, got none")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            got = type(value).__name__
            raise TypeError(f"{op}: {argument} must be a list of strings, got {got} at index {i}")
        if not value.strip():
            raise Refusal(op, argument, f"must not be blank, got {value!r} at index {i}")
        if not utf8(value):
            raise Refusal(op, argument, f"must be UTF-8 text, got {value!r} at index {i}")
    return values


def distinct(op: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, checked to be different ones: they are looked up by name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise Refusal(op, "names", f"must be distinct, got {name!r} twice")
        seen.add(name)
    return names


def template_strings(
    op: str, templates: Iterable[Template], names: tuple[str, ...]
) -> tuple[str, ...]:
    """Templates as strings with one `{}`: what is recorded is what is embedded."""
    if isinstance(templates, str):
        raise TypeError(f"{op}: templates must be a list, got the string {templates!r}")
    given = tuple(templates)
    texts = tuple(make("{}") if callable(make) else make for make in given)
    for make, text in zip(given, strings(op, "templates", texts), strict=True):
        if text.count("{}") != 1:
            raise Refusal(op, "templates", f"must hold {{}} exactly once, got {text!r}")
        if callable(make) and any(make(name) != text.replace("{}", name) for name in names):
            raise Refusal(op, "templates", f"must put the name in unchanged, got {text!r}")
    return texts
