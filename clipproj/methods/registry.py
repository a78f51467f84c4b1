"""Every method by its name: what erase, audit, compare, serve and the documents offer.

A file of this package that declares a `METHOD` is found by itself, and so is a file that is put
there later; nothing else lists them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from clipproj import methods
from clipproj.methods.method import NEEDS, Method, Option, Setting, Task
from clipproj.refusal import Refusal

__all__ = [
    "DEFAULT", "METHODS", "NEEDS", "STRENGTH", "Method", "Option", "Setting", "Task",
    "check_needs", "check_options", "method",
]  # fmt: skip

DEFAULT = "nullspace"
STRENGTH = Option(  # every method's
    "strength", float, "0 nothing, 1 projects, 2 reflects; above 1 for a single direction alone",
    "1; against names in general the least that suffices", low=0, high=2,
)  # fmt: skip


def _found() -> dict[str, Method]:
    modules = (
        importlib.import_module(f"{methods.__name__}.{one.name}")
        for one in pkgutil.iter_modules(methods.__path__)
        if one.name != "registry"
    )
    found = {m.METHOD.name: m.METHOD for m in modules if isinstance(vars(m).get("METHOD"), Method)}
    return dict(sorted(found.items(), key=lambda one: (one[0] != DEFAULT, one[0])))


METHODS: dict[str, Method] = _found()


def method(op: str, name: str | None) -> Method:
    """The method of this name, None for the default. Refusal, in `op`'s name, for another."""
    name = DEFAULT if name is None else name
    if name not in METHODS:
        raise Refusal(op, "method", f"must be {' or '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def check_options(op: str, method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given, those that are None left out.

    Raises Refusal, in the name of `op`, for one that the method does not have, of another kind
    or out of range.
    """
    own = {one.name: one for one in method.options}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name in own:
            continue
        if any(name == one.name for other in METHODS.values() for one in other.options):
            why = f"must be left out with method {method.name}"
        else:
            why = f"must be an option of method {method.name}, which has {', '.join(own) or 'none'}"
        raise Refusal(op, name, f"{why}, got {value!r}")
    return {name: own[name].check(op, value) for name, value in given.items()}


def check_needs(op: str, method: Method, options: Mapping[str, Any], have: set[str]) -> None:
    """Refusal, in the name of `op`, where the method needs what is not at hand.

    Args:
        options: as `check_options` gives them.
        have: the fields of `NEEDS` that are at hand.
    """
    for need in method.needed(options):
        if need not in have:
            at = f" with {_shown(options)}" if need not in method.needs else ""
            raise Refusal(
                op,
                "method",
                f"must do with what is at hand here, got {method.name!r}{at}, which needs "
                f"{NEEDS[need]}",
            )


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
