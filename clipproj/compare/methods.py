"""The methods that `clipproj compare` compares, with the settings each is compared at."""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from clipproj import files
from clipproj.audit.cache import code_digest
from clipproj.compare.comparison import BASE, BASE_IN_HALVES
from clipproj.compare.method import ComparedMethod, Task
from clipproj.methods.registry import METHODS, STRENGTH, Method, Setting, check_options
from clipproj.projector import Projector
from clipproj.recipe import make
from clipproj.refusal import Refusal

_PACKAGE = "__init__.py"


def settings() -> dict[str, ComparedMethod]:
    """What is compared where nothing is named: every method at the settings that it declares."""
    return {
        setting.name: _compared(method, setting)
        for method in METHODS.values()
        for setting in _settings(method)
    }


def _settings(method: Method) -> tuple[Setting, ...]:
    own = method.settings
    return (Setting(method.name, method.about),) if own is None else own


def _compared(method: Method, setting: Setting) -> ComparedMethod:
    def of(task: Task) -> Projector:
        made = make(
            "compare", task, method, setting.options, setting.strength, one_sided=setting.one_sided
        )
        if made is None:
            raise Refusal("compare", "method", f"must have a one-sided form, got {setting.name!r}")
        return made

    needs = method.needed(setting.options)
    return ComparedMethod(
        setting.about, of, learns="fit" in needs, needs=tuple(n for n in needs if n != "fit")
    )


def _asked(text: str) -> ComparedMethod | None:
    """A method of the registry by its name, its options and strength behind it with commas.

        rotate, angle=90, strength=0.5

    None for another name or form; Refusal of options that the method does not have.
    """
    name, *parts = (part.strip() for part in text.split(","))
    pairs = [part.partition("=") for part in parts]
    if name not in METHODS or not all(equals for _, equals, _ in pairs):
        return None
    method, given = METHODS[name], {}
    for key, _, value in pairs:
        option = STRENGTH if key.strip() == "strength" else method.option(key.strip())
        given[key.strip()] = value if option is None else option.parse("compare", value.strip())
    strength = given.pop("strength", None)
    options = check_options("compare", method, given)
    about = f"{method.about}; {', '.join(parts)}" if parts else method.about
    return _compared(method, Setting(text, about, options, strength))


def chosen(
    names: Iterable[str] | None = None, also: str | os.PathLike[str] | None = None
) -> dict[str, ComparedMethod]:
    """The methods of these names, or all, and those of a folder or file of Python.

    Args:
        names: of `settings`, of `also`, or a method of the registry with its options behind it,
            such as "rotate, angle=90"; None: all of the first two.
        also: Python that defines `METHODS`, a dict from a name to `make(task)`, which is taken to
            learn from images, or to a `ComparedMethod`. It is run: name only what you trust.

    Raises:
        ValueError: for an unknown name, no such file, or one without METHODS; ImportError: for what
            it imports and is not there.
    """
    known = settings()
    if also is not None:
        file = _file(Path(also))
        own = file.name == _PACKAGE
        code = code_digest(file.parent) if own else files.sha256(text=file.read_text("utf-8"))
        for name, make in _methods_of(file).items():
            if not isinstance(name, str) or name in (BASE, BASE_IN_HALVES, *known):
                raise Refusal("compare", "also", f"must have names of its own, got {name!r}")
            if not isinstance(make, ComparedMethod):
                if not callable(make):
                    raise Refusal(
                        "compare", None, f"METHODS[{name!r}] must be callable, got {make!r}"
                    )
                make = ComparedMethod(_first_line(make), make, learns=True)
            known[name] = replace(make, code=code)
    if names is None:
        return known
    picked = {}
    for name in names:
        one = known.get(name) or _asked(name)
        if one is None:
            every = {**known, **METHODS}
            close = difflib.get_close_matches(name, every, cutoff=0.3) or list(every)
            listed = ", ".join(map(repr, close))
            raise Refusal("compare", "method", f"must be known, got {name!r}; there is {listed}")
        picked[name] = one
    return picked


def _file(path: Path) -> Path:
    file = path / _PACKAGE if path.is_dir() else path
    if not file.is_file():
        raise Refusal("compare", "also", f"must be Python or a package folder, got {path}")
    return file


def _methods_of(file: Path) -> Mapping[str, Callable | ComparedMethod]:
    module = _imported(file)
    methods = getattr(module, "METHODS", None)
    if not isinstance(methods, Mapping) or not methods:
        raise Refusal("compare", "also", f"must define METHODS, a dict, got none in {file}")
    return methods


def _imported(file: Path) -> ModuleType:
    package = file.name == _PACKAGE
    name = f"clipproj_also_{file.parent.name if package else file.stem}"
    where = [str(file.parent)] if package else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=where)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a package's own relative imports look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        what = f"{type(error).__name__}: {error}"
        raise Refusal(
            "compare", "also", f"must be Python that runs, got {what} in {file}"
        ) from error
    return module


def _first_line(make: Callable) -> str:
    doc = make.__doc__ or sys.modules[make.__module__].__doc__ or ""
    return doc.strip().partition("\n")[0]
