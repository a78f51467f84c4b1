"""What is asked of `erase`, and which names are meant by it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipproj.audit.pictures import Pictures
from clipproj.projector import Projector
from clipproj.text import expand_names


@dataclass(frozen=True)
class Request:
    """What to erase, from what, and where to.

    Attributes:
        names: classes to forget; with `projector` those to measure, by default its own.
        model, pretrained: as `checkpoint.load_model`; no model is the embedded one.
        images: folder of class folders; None: the embedded model's own pictures, else none.
        keep: names to keep; empty: the other classes of the pictures, else a generic list.
        method: "nullspace" or "ccup".
        strength: None: 1.5 for nullspace's mean contrast, else 1.
        contrast, rank: of nullspace. forget_weight, keep_weight: of ccup; None: 10, and 100 up to
            16 names or 1 for more, where a heavier weight protects the class with them.
        templates: prompts with one `{}`; empty: OpenAI's 80, or 7 of them with the generic list.
        plurals, synonyms: forget these forms of the names as well.
        projector: a saved projector to apply, instead of making one from the names.
        tower: the tower whose head is edited.
        out: output folder; None: a rehearsal that writes nothing.
        force: apply a projector that was made for another model.
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
    plurals: bool = False
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    projector: Path | None = None
    tower: str = "image"
    out: Path | None = None
    force: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Names:
    """Names with one spelling: that of the picture folders where there are any.

    Attributes:
        forget: classes to forget, as they are measured.
        forms: what is embedded for them: also plurals and synonyms.
        keep: names to keep; None: the generic list.
    """

    forget: tuple[str, ...]
    forms: tuple[str, ...]
    keep: tuple[str, ...] | None


def check(request: Request) -> None:
    """Raises ValueError for what is wrong whatever the model and the pictures."""
    for option, value, allowed in (
        ("method", request.method, (None, "nullspace", "ccup")),
        ("tower", request.tower, ("image", "text")),
    ):
        if value not in allowed:
            options = " or ".join(filter(None, allowed))
            raise ValueError(f"erase: {option} must be {options}, got {value!r}")
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
            raise ValueError(f"erase: {option} must be left out with {why}, got {value!r}")
    if not request.names and request.projector is None:
        raise ValueError("erase: names must hold at least one class to forget, got none")
    for argument, given in (("names", request.names), ("keep", request.keep)):
        seen: set[str] = set()
        for name in given:
            if not name.strip():
                raise ValueError(f"erase: {argument} must not be blank, got {name!r}")
            if name.casefold() in seen:
                raise ValueError(f"erase: {argument} must be distinct, got {name!r} twice")
            seen.add(name.casefold())
    both = {name.casefold() for name in request.names} & {name.casefold() for name in request.keep}
    if both:
        raise ValueError(f"erase: keep must not hold what is forgotten, got {sorted(both)} in both")


def resolve(request: Request, saved: Projector | None, pictures: Pictures | None) -> Names:
    """Which classes are meant. Raises ValueError for a name that no picture folder has."""
    names, keep = tuple(request.names), tuple(request.keep)
    if not names and saved is not None:
        names = tuple(saved.provenance.get("forget", {}).get("names", ()))
        if pictures is not None:  # it also lists plurals and synonyms, which have no pictures
            names = tuple(n for n in names if _class_of(n, pictures.classes)) or names
        if not names:
            raise ValueError(
                "erase: names must say what the projector forgets, its file does not; they are "
                "only measured"
            )
    if pictures is not None:
        names = tuple(_known(name, pictures.classes) for name in names)
        keep = tuple(_class_of(name, pictures.classes) or name for name in keep)
    forms = tuple(expand_names(names, plurals=request.plurals, synonyms=request.synonyms))
    if not keep and pictures is not None:
        gone = {form.casefold() for form in forms}
        keep = tuple(name for name in pictures.classes if name.casefold() not in gone)
        if not keep:
            raise ValueError(f"erase: names must leave a class to keep, got all {len(names)}")
    return Names(names, forms, keep or None)


def _class_of(name: str, classes: Sequence[str]) -> str | None:
    """The class that a name means: case does not matter, nor does an underscore for a space."""
    folded = {one.casefold(): one for one in classes}
    return folded.get(name.replace("_", " ").strip().casefold())


def _known(name: str, classes: Sequence[str]) -> str:
    found = _class_of(name, classes)
    if found is None:
        close = difflib.get_close_matches(name.casefold(), classes, cutoff=0.5) or classes[:12]
        listed = ", ".join(close) + (", ..." if len(close) == 12 < len(classes) else "")
        raise ValueError(
            f"erase: names must be among the {len(classes)} picture folders, got {name!r}; "
            f"there is {listed}"
        )
    return found
