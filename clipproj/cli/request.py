"""What is asked of `erase`, and which names are meant by it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from clipproj.audit.pictures import Pictures
from clipproj.projector import Projector
from clipproj.text import expand_names
from clipproj.words import name_key


@dataclass(frozen=True)
class Request:
    """What to erase, from what, and where to.

    Attributes:
        names: classes to forget; with `projector` what it forgets, needed where its file does not
            tell.
        model, pretrained: as `checkpoint.load_model`; no model is the embedded one.
        images: folder of class folders; None: the embedded model's own pictures, else none.
        keep: names to keep; empty: the other classes of the pictures, else a generic list.
        method: "nullspace" or "ccup".
        strength: None: 1.5 for nullspace's mean contrast, else 1.
        contrast, rank: of nullspace; no contrast: span up to 16 names to keep, for more hull, mean
            for the generic list. forget_weight, keep_weight: of ccup; None: 10, and 100 up to
            16 names or 1 for more, where a heavier weight protects the class with them.
        templates: prompts with one `{}`; empty: OpenAI's 80, or 7 of them with the generic list.
        truncate: cut prompts that the model would not read to their end; else an error.
        plurals, synonyms: forget these forms of the names as well.
        projector: a saved projector to apply, instead of making one from the names.
        tower: the tower whose head is edited.
        out: output folder; None: a rehearsal that writes nothing.
        force: apply a projector that was made for another model.
        command: whose request it is, for errors.
    """

    names: Sequence[str] = ()
    model: str | None = None
    pretrained: str | None = None
    images: Path | None = None
    keep: Sequence[str] = ()
    method: str | None = None
    strength: float | None = None
    contrast: str | None = None
    rank: int | None = None
    forget_weight: float | None = None
    keep_weight: float | None = None
    templates: Sequence[str] = ()
    truncate: bool = False
    plurals: bool = False
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    projector: Path | None = None
    tower: str = "image"
    out: Path | None = None
    force: bool = False
    device: str = "cpu"
    command: str = "erase"


@dataclass(frozen=True)
class Names:
    """Names with one spelling: that of the picture folders where there are any.

    Attributes:
        forget: classes to forget, as they are measured: also those that plurals and synonyms name.
        forms: what is embedded for them: all plurals and synonyms.
        keep: names to keep; None: the generic list.
    """

    forget: tuple[str, ...]
    forms: tuple[str, ...]
    keep: tuple[str, ...] | None


def check(request: Request) -> None:
    """Raises ValueError for what is wrong whatever the model and the pictures."""
    op = request.command
    for option, value, allowed in (
        ("method", request.method, (None, "nullspace", "ccup")),
        ("tower", request.tower, ("image", "text")),
    ):
        if value not in allowed:
            options = " or ".join(filter(None, allowed))
            raise ValueError(f"{op}: {option} must be {options}, got {value!r}")
    of_ccup = {"forget_weight": request.forget_weight, "keep_weight": request.keep_weight}
    of_nullspace = {"contrast": request.contrast, "rank": request.rank}
    of_making = of_ccup | of_nullspace | {
        "method": request.method,
        "plurals": request.plurals or None,
        "synonyms": request.synonyms or None,
    }  # fmt: skip
    if request.projector is not None:
        foreign, why = of_making, "a saved projector, which is applied as it is"
    elif request.method == "ccup":
        foreign, why = of_nullspace, "method ccup"
    else:
        foreign, why = of_ccup, "method nullspace"
    for option, value in foreign.items():
        if value is not None:
            raise ValueError(f"{op}: {option} must be left out with {why}, got {value!r}")
    if not request.names and request.projector is None:
        raise ValueError(f"{op}: names must hold at least one class to forget, got none")
    for argument, given in (("names", request.names), ("keep", request.keep)):
        seen: dict[str, str] = {}
        for name in given:
            if not name.strip():
                raise ValueError(f"{op}: {argument} must not be blank, got {name!r}")
            if first := seen.get(name_key(name)):
                raise ValueError(f"{op}: {argument} must be distinct, got {first!r} and {name!r}")
            seen[name_key(name)] = name
    _check_apart(op, request.names, request.keep)
    try:
        torch.empty(0, device=request.device)
    except (RuntimeError, AssertionError):  # the latter where torch is built without CUDA
        raise ValueError(
            f"{op}: device must be one that torch has here, such as cpu, got {request.device!r}"
        ) from None


def resolve(request: Request, saved: Projector | None, pictures: Pictures | None) -> Names:
    """Which classes are meant.

    Raises ValueError for a name that no picture folder has, that the projector does not forget, or
    that is on both lists.
    """
    op, names, keep = request.command, tuple(request.names), tuple(request.keep)
    own = _forgotten_by(op, saved, names)
    classes = () if pictures is None else pictures.classes
    names = tuple(_class_of(name, classes) or name for name in names)
    forms = own or tuple(expand_names(names, plurals=request.plurals, synonyms=request.synonyms))
    _check_apart(op, forms, keep)
    if pictures is None:
        return Names(own or names, forms, keep or None)
    forms = tuple(dict.fromkeys(_class_of(form, classes) or form for form in forms))
    measured = tuple(form for form in forms if form in classes)
    if not (own and measured):  # a projector also lists plurals and synonyms without pictures
        for name in own or names:
            check_known(op, name, classes)
    keep = tuple(_class_of(name, classes) or name for name in keep)
    keep = keep or tuple(name for name in classes if name not in measured)
    if not keep:
        raise ValueError(f"{op}: names must leave a class to keep, got all {len(measured)}")
    return Names(measured, forms, keep)


def _forgotten_by(op: str, saved: Projector | None, names: Sequence[str]) -> tuple[str, ...]:
    """What a saved projector forgets, from its file; `names` may only repeat that."""
    if saved is None:
        return ()
    own = tuple(saved.provenance.get("forget", {}).get("names", ()))
    if not own and not names:
        raise ValueError(f"{op}: names must say what the projector forgets, its file does not")
    known = {name_key(name) for name in own}
    for name in names:
        if own and name_key(name) not in known:
            raise ValueError(
                f"{op}: names must be among what the projector forgets, {list(own)}, got {name!r}"
            )
    return own


def _check_apart(op: str, forget: Sequence[str], keep: Sequence[str]) -> None:
    gone = {name_key(name) for name in forget}
    both = [name for name in keep if name_key(name) in gone]
    if both:
        raise ValueError(f"{op}: keep must not hold what is forgotten, got {both} in both")


def _class_of(name: str, classes: Sequence[str]) -> str | None:
    """The class that a name means."""
    return {name_key(one): one for one in classes}.get(name_key(name))


def check_known(op: str, name: str, classes: Sequence[str]) -> None:
    """ValueError, in the name of `op`, for a name that no picture folder has."""
    if _class_of(name, classes) is None:
        close = difflib.get_close_matches(name.casefold(), classes, cutoff=0.5) or classes[:12]
        listed = ", ".join(close) + (", ..." if len(close) == 12 < len(classes) else "")
        raise ValueError(
            f"{op}: names must be among the {len(classes)} picture folders, got {name!r}; "
            f"there is {listed}"
        )
