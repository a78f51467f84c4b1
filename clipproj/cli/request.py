"""What is asked of `erase`, and which names are meant by it."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from clipproj.audit.gate import Limits
from clipproj.audit.images import Pictures
from clipproj.models.text import expand_names
from clipproj.models.words import canonical, name_fault, name_key, on_both, repeated
from clipproj.projector import Projector
from clipproj.refusal import Refusal


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
        strength: None: 1.5 for one direction of nullspace's mean contrast, else 1. Above 1 for one
            direction alone.
        contrast, rank: of nullspace; no contrast: span up to 16 names to keep where it suffices,
            else hull, mean for the generic list. forget_weight, keep_weight: of ccup; None: 10,
            and 100 up to 16 names or 1 for more, where a heavier weight protects the class with
            them.
        templates: prompts with one `{}`; empty: OpenAI's 80, or 7 of them with the generic list.
        truncate: cut prompts that the model would not read to their end; else an error.
        plurals, synonyms: forget these forms of the names as well.
        projector: a saved projector to apply, instead of making one from the names.
        tower: the tower whose head is edited.
        limits: what the edit may cost and leave; beyond them nothing is written.
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
    limits: Limits = field(default_factory=Limits)
    out: Path | None = None
    force: bool = False
    device: str = "cpu"
    command: str = "erase"


@dataclass(frozen=True)
class Names:
    """Names with one spelling: that of the picture folders where there are any.

    Attributes:
        forget: classes to forget, as they are measured: also those that plurals and synonyms name,
            and names without pictures, which can't be.
        forms: what is embedded for them: all plurals and synonyms.
        keep: names to keep; None: the generic list.
        earlier: what edits that the model has already forgot, which is not kept.
    """

    forget: tuple[str, ...]
    forms: tuple[str, ...]
    keep: tuple[str, ...] | None
    earlier: tuple[str, ...] = ()


def check(request: Request) -> None:
    """Raises ValueError for what is wrong whatever the model and the pictures."""
    op = request.command
    for option, value, allowed in (
        ("method", request.method, (None, "nullspace", "ccup")),
        ("tower", request.tower, ("image", "text")),
    ):
        if value not in allowed:
            options = " or ".join(filter(None, allowed))
            raise Refusal(op, option, f"must be {options}, got {value!r}")
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
            raise Refusal(op, option, f"must be left out with {why}, got {value!r}")
    if not request.names and request.projector is None:
        raise Refusal(op, "names", "must hold at least one class to forget, got none")
    words = [word for given in request.synonyms.values() for word in given]
    for argument, given in (("names", request.names), ("keep", request.keep), ("synonyms", words)):
        for name in given:
            if fault := name_fault(name):
                raise Refusal(op, None, f"{argument} {fault}, got {name!r}")
    for argument, given in (("names", request.names), ("keep", request.keep)):
        if pair := repeated(given):
            raise Refusal(op, argument, f"must be distinct, got {pair[0]!r} and {pair[1]!r}")
    _check_apart(op, request.names, request.keep)
    try:
        torch.empty(0, dtype=torch.float32, device=request.device)
    except (RuntimeError, AssertionError):  # the latter where torch is built without CUDA
        raise Refusal(
            op, "device", f"must be one that torch has here, such as cpu, got {request.device!r}"
        ) from None


def resolve(
    request: Request, saved: Projector | None, pictures: Pictures | None, *, seen: bool = False
) -> Names:
    """Which classes are meant.

    Args:
        seen: refuse a name that no picture folder has; False: warn of it, and forget it.

    Raises ValueError for a name that the projector does not forget, that is on both lists, or that
    no folder has and is spelt much like one that does.
    """
    op, names, keep = request.command, tuple(request.names), tuple(request.keep)
    own = _forgotten_by(op, saved, names)
    classes = () if pictures is None else pictures.classes
    spelt = {name_key(one): one for one in classes}  # as the picture folders spell it
    names, keep = (
        tuple(spelt.get(name_key(name)) or canonical(name) for name in given)
        for given in (names, keep)
    )
    forms = own
    if not own:
        made = expand_names(names, plurals=request.plurals, synonyms=request.synonyms)
        forms = tuple(map(canonical, made))
    _check_apart(op, forms, keep)
    if pictures is None:
        return Names(own or names, forms, keep or None)
    forms = tuple(dict.fromkeys(spelt.get(name_key(form), form) for form in forms))
    known = set(classes)
    measured = tuple(form for form in forms if form in known)
    # a projector also lists plurals and synonyms, which nobody asked to measure
    asked = () if own and measured else own or names
    unknown = tuple(name for name in asked if name not in known)
    for name in unknown if seen else ():
        check_known(op, name, classes)
    for name in () if own or keep else unknown:
        if close := difflib.get_close_matches(name_key(name), spelt, n=1, cutoff=0.8):
            raise Refusal(
                op,
                "names",
                f"must be picture folders or unlike them, got {name!r}, which is close "
                f"to {spelt[close[0]]!r}; where both are meant, give keep",
            )
    if unknown:
        warnings.warn(_unmeasured(op, unknown), stacklevel=2)
    gone = set(measured)
    keep = keep or tuple(name for name in classes if name not in gone)
    if not keep:
        raise Refusal(op, "names", f"must leave a class to keep, got all {len(measured)}")
    return Names((*measured, *unknown), forms, keep)


def without_earlier(names: Names, edits: Sequence[Mapping[str, Any]]) -> Names:
    """What earlier edits of the model forgot is not kept, and is looked for again.

    Args:
        edits: the log of the model's checkpoint.
    """
    own = set(map(name_key, names.forms))
    earlier = tuple(n for edit in edits for n in edit["forget"] if name_key(n) not in own)
    again = on_both(earlier, names.keep or ())
    if again:
        shown = ", ".join(map(repr, again))
        warnings.warn(f"erase: forgotten by an earlier edit and not kept: {shown}", stacklevel=2)
    keep = names.keep and tuple(name for name in names.keep if name not in set(again))
    if keep == ():
        raise Refusal(
            "erase", "names", "must leave a class to keep, earlier edits forgot the others"
        )
    return replace(names, forget=(*names.forget, *again), keep=keep, earlier=earlier)


def _unmeasured(op: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" * (len(names) > 5))
    return (
        f"{op}: there are no pictures of {shown}: forgotten all the same, and what is left of it "
        "measured on texts"
    )


def _forgotten_by(op: str, saved: Projector | None, names: Sequence[str]) -> tuple[str, ...]:
    """What a saved projector forgets, from its file; `names` may only repeat that."""
    if saved is None:
        return ()
    own = tuple(saved.provenance.get("forget", {}).get("names", ()))
    if not own and not names:
        raise Refusal(op, "names", "must say what the projector forgets, its file does not")
    known = {name_key(name) for name in own}
    for name in names:
        if own and name_key(name) not in known:
            raise Refusal(
                op, "names", f"must be among what the projector forgets, {list(own)}, got {name!r}"
            )
    return own


def _check_apart(op: str, forget: Sequence[str], keep: Sequence[str]) -> None:
    if both := on_both(forget, keep):
        raise Refusal(op, "keep", f"must not hold what is forgotten, got {both} in both")


def check_known(op: str, name: str, classes: Sequence[str]) -> None:
    """ValueError, in the name of `op`, for a name that no picture folder has: audits need them."""
    if name_key(name) not in set(map(name_key, classes)):
        close = difflib.get_close_matches(name_key(name), classes, cutoff=0.5) or classes[:12]
        listed = ", ".join(close) + (", ..." if len(close) == 12 < len(classes) else "")
        raise Refusal(
            op,
            "names",
            f"must be among the {len(classes)} picture folders, got {name!r}; there is {listed}",
        )
