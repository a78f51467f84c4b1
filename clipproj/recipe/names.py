"""Which names are meant: as image folders spell them, and without what was forgotten before."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipproj.models.text import expand_names
from clipproj.models.words import canonical, name_key, on_both
from clipproj.projector import Projector
from clipproj.recipe.record import Recipe, check_apart
from clipproj.refusal import Refusal


@dataclass(frozen=True)
class Names:
    """Names with one spelling: that of the image folders where there are any.

    Attributes:
        forget: classes to forget, as they are measured: also those that plurals and synonyms name,
            and names without images, which can't be.
        forms: what is embedded for them: all plurals and synonyms.
        keep: names to keep; None: names in general.
        earlier: what edits that the model has already forgot, which is not kept.
    """

    forget: tuple[str, ...]
    forms: tuple[str, ...]
    keep: tuple[str, ...] | None
    earlier: tuple[str, ...] = ()


def resolve(
    recipe: Recipe,
    saved: Projector | None = None,
    classes: Sequence[str] | None = None,
    *,
    seen: bool = False,
) -> Names:
    """Which names are meant.

    Args:
        saved: the projector of `recipe.projector`.
        classes: the classes that there are images of; None without images.
        seen: refuse a name that no image folder has; False: warn of it, and forget it.

    Raises Refusal for a name that the projector does not forget, that is on both lists, or that
    no folder has and is spelt much like one that does.
    """
    op, names, keep = recipe.command, tuple(recipe.names), tuple(recipe.keep)
    own = _forgotten_by(op, saved, names)
    spelt = {name_key(one): one for one in classes or ()}  # as the image folders spell it
    names, keep = (
        tuple(spelt.get(name_key(name)) or canonical(name) for name in given)
        for given in (names, keep)
    )
    forms = own
    if not own:
        made = expand_names(names, plurals=recipe.plurals, synonyms=recipe.synonyms)
        forms = tuple(map(canonical, made))
    check_apart(op, forms, keep)
    if classes is None:
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
                f"must be image folders or unlike them, got {name!r}, which is close "
                f"to {spelt[close[0]]!r}; where both are meant, give keep",
            )
    if unknown:
        warnings.warn(_unmeasured(op, unknown), stacklevel=2)
    forgotten = set(measured)
    keep = keep or tuple(name for name in classes if name not in forgotten)
    if not keep:
        raise Refusal(op, "names", f"must leave a class to keep, got all {len(measured)}")
    return Names((*measured, *unknown), forms, keep)


def without_earlier(op: str, names: Names, edits: Sequence[Mapping[str, Any]]) -> Names:
    """What earlier edits of the model forgot is not kept, and is looked for again.

    Args:
        edits: the log of the model's checkpoint.
    """
    own = set(map(name_key, names.forms))
    earlier = tuple(n for edit in edits for n in edit["forget"] if name_key(n) not in own)
    again = on_both(earlier, names.keep or ())
    if again:
        shown = ", ".join(map(repr, again))
        warnings.warn(f"{op}: forgotten by an earlier edit and not kept: {shown}", stacklevel=2)
    keep = names.keep and tuple(name for name in names.keep if name not in set(again))
    if keep == ():
        why = "must leave a class to keep, earlier edits forgot the others"
        raise Refusal(op, "names", why)
    return replace(names, forget=(*names.forget, *again), keep=keep, earlier=earlier)


def _unmeasured(op: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" * (len(names) > 5))
    return (
        f"{op}: there are no images of {shown}: forgotten all the same, and what is left of it "
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


def check_known(op: str, name: str, classes: Sequence[str]) -> None:
    """Refusal, in the name of `op`, of a name that no image folder has: audits need them."""
    if name_key(name) not in set(map(name_key, classes)):
        close = difflib.get_close_matches(name_key(name), classes, cutoff=0.5) or classes[:12]
        listed = ", ".join(close) + (", ..." if len(close) == 12 < len(classes) else "")
        raise Refusal(
            op,
            "names",
            f"must be among the {len(classes)} image folders, got {name!r}; there is {listed}",
        )
