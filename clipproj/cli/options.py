"""Options that several commands take, said once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from clipproj.methods.registry import DEFAULT, METHODS, STRENGTH, method
from clipproj.models.words import canonical
from clipproj.recipe.samples import check_utf8
from clipproj.refusal import Refusal

WHAT, MODEL, HOW, OUTPUT = "What to forget and keep", "Model and images", "Method", "Output"
LIMITS = "What it may cost"

CHECKPOINT = "A file, an index of shards, or a folder of open_clip or transformers."

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Classes to forget.")]
Template = Annotated[
    list[str] | None,
    typer.Option(
        help="A prompt with one {}; repeat. Default: OpenAI's 80; one, with names in general.",
        rich_help_panel=WHAT,
    ),
]
Truncate = Annotated[
    bool,
    typer.Option(
        "--truncate",
        help="Cut prompts that are longer than the model reads. Default: an error.",
        rich_help_panel=WHAT,
    ),
]
Synonym = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=OTHER", help="Another word for NAME; repeat.", rich_help_panel=WHAT),
]
Projector = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A saved projector instead of making one.", rich_help_panel=WHAT
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="An open_clip architecture, a folder of open_clip or transformers, or "
        "hf-hub:ORG/REPO of open_clip. Default: the embedded model.",
        rich_help_panel=MODEL,
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        help="Weights of the architecture: a tag of open_clip, a file, or an index of shards.",
        rich_help_panel=MODEL,
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Images to measure on, a folder for each class, with folders below it or not.",
        rich_help_panel=MODEL,
    ),
]
Features = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Features that --save-features wrote, instead of a model and images.",
        rich_help_panel=MODEL,
    ),
]
SaveFeatures = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Also write the features and class texts.", rich_help_panel=OUTPUT
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Default: cuda where there is one.", rich_help_panel=MODEL)
]
Method = Annotated[
    str | None,
    typer.Option(metavar="|".join(METHODS), help=f"Default: {DEFAULT}.", rich_help_panel=HOW),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="An option of the method, see below; repeat.",
        rich_help_panel=HOW,
    ),
]  # fmt: skip
Strength = Annotated[
    float | None,
    typer.Option(
        help=f"{STRENGTH.help.capitalize()}. Default: {STRENGTH.default}.", rich_help_panel=HOW
    ),
]


def _flag(name: str) -> Any:
    """An option of methods as a flag of its own; the first method that has it says what it does."""
    owners = [one for one in METHODS.values() if one.option(name)]
    option = owners[0].option(name)
    return Annotated[
        option.kind | None,
        typer.Option(
            metavar="|".join(option.choices) or None,
            help=f"{', '.join(one.name for one in owners)}: {option.help}. "
            f"Default: {option.default}.",
            rich_help_panel=HOW,
        ),
    ]


Contrast, Rank = _flag("contrast"), _flag("rank")
ForgetWeight, KeepWeight = _flag("forget_weight"), _flag("keep_weight")
Tower = Annotated[
    str,
    typer.Option(metavar="image|text", help="The tower whose head is edited.", rich_help_panel=HOW),
]
Seed = Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=HOW)]
Out = Annotated[  # a string: as a Path an empty one would be the current folder
    str, typer.Option(metavar="FOLDER", help="Where to write.", rich_help_panel=OUTPUT)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")]


def folder(command: str, out: str) -> Path:
    """The output folder. ValueError, in the name of `command`, for one blank or not UTF-8."""
    if not out.strip():
        raise Refusal(command, "out", f"must be a folder, got {out!r}")
    check_utf8(command, "out", Path(out))
    return Path(out)


def device_or_default(device: str | None) -> str:
    """The device asked for, else cuda where there is one."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def methods_help() -> str:
    """Every method with its options, as `--help` shows them at its end."""
    told = []
    for one in METHODS.values():
        told.append(f"  [bold]{one.name}[/bold]: {escape(one.about)}.")
        for option in one.options:
            values = f", {'|'.join(option.choices)}" if option.choices else ""
            text = f"{option.name}{values}: {option.help}. Default: {option.default}."
            told.append(f"  - {escape(text)}")
    return "[bold]Methods[/bold]\n\n" + "\n\n".join(told) + "\n"


def method_options(
    command: str,
    name: str | None,
    flags: Mapping[str, Any],
    given: Sequence[str] | None,
) -> dict[str, Any]:
    """A method's options by name, of its flags and of NAME=VALUE.

    Refusal, in the name of `command`, for another method, another form, a value that an option
    does not take, or one given twice. Whether the method has them is for `check_options`.
    """
    one = method(command, name)
    options = {flag: value for flag, value in flags.items() if value is not None}
    for key, text in pairs(command, "option", "NAME=VALUE", given).items():
        key = key.replace("-", "_")
        if key in options:
            why = f"must be given once, got {options[key]!r} and {text!r}"
            raise Refusal(command, key, why)
        option = one.option(key)
        options[key] = text if option is None else option.parse(command, text)
    return options


def synonyms(command: str, given: Sequence[str] | None) -> dict[str, list[str]]:
    """Other words by name, from NAME=OTHER, as `split` reads them."""
    words: dict[str, list[str]] = {}
    for name, other in split(command, "synonym", "NAME=OTHER", given):
        words.setdefault(canonical(name), []).append(canonical(other))
    return words


def pairs(command: str, option: str, form: str, given: Sequence[str] | None) -> dict[str, str]:
    """What stands after each =, by what stands before it. ValueError also for one given twice."""
    found: dict[str, str] = {}
    for name, value in split(command, option, form, given):
        if name in found:
            raise Refusal(command, option, f"must be given once for each, got {name!r} twice")
        found[name] = value
    return found


def split(
    command: str, option: str, form: str, given: Sequence[str] | None
) -> list[tuple[str, str]]:
    """NAME=VALUE, each as a pair. ValueError, in the name of `command`, for another form."""
    found = []
    for one in given or ():
        name, equals, value = (part.strip() for part in one.partition("="))
        if not (name and equals and value):
            raise Refusal(command, option, f"must be {form}, got {one!r}")
        found.append((name, value))
    return found
