"""The methods that `clipproj compare` compares, with the settings each is compared at."""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from clipproj import files
from clipproj.audit.cache import code_digest
from clipproj.compare.comparison import BASE, BASE_IN_HALVES
from clipproj.compare.task import Contender, Task
from clipproj.methods import coreset, nullspace, redirect, rotate
from clipproj.projector import Projector
from clipproj.refusal import Refusal


def _nullspace(task: Task, contrast: str, strength: float = 1.0) -> Projector:
    keep = None if contrast == "none" else task.keep
    return nullspace(task.forget, keep, contrast, strength)


def _core(task: Task) -> Projector:
    core = coreset(task.prompts, seed=task.seed).kept
    return nullspace(core.tensor, task.keep.tensor, "hull", rank=1)


def _redirect(task: Task, target: str) -> Projector:
    to = task.empty[None] if target == "empty" else target
    return redirect(task.forget, to, task.keep)


def _ccup(task: Task) -> Projector:
    from clipproj.methods import defaults  # which measures with the audits

    return defaults.make(task.forget, task.keep, "ccup")


_PACKAGE = "__init__.py"

CONTENDERS: dict[str, Contender] = {
    "nullspace, plain": Contender(
        "arXiv 2512.14137's projector: the class's text itself, strength 1",
        partial(_nullspace, contrast="none"),
    ),
    "nullspace, span": Contender(
        "less span(keep), strength 1", partial(_nullspace, contrast="span")
    ),
    "nullspace, mean": Contender(
        "less mean(keep), strength 1", partial(_nullspace, contrast="mean")
    ),
    "nullspace, mean 1.5": Contender(
        "less mean(keep), strength 1.5", partial(_nullspace, contrast="mean", strength=1.5)
    ),
    "nullspace, hull": Contender(
        "less the nearest mixture of kept texts, strength 1: the default for closed lists",
        partial(_nullspace, contrast="hull"),
    ),
    "nullspace, hull 0.85": Contender(
        "the same at strength 0.85", partial(_nullspace, contrast="hull", strength=0.85)
    ),
    "coreset, hull": Contender(
        "hull on UPCORE's core of the class's prompts, rank 1", _core, needs=("prompts",)
    ),
    "ccup": Contender(
        "the full objective of 2512.14137, lambda 10, mu by the default rules",
        _ccup,
    ),
    "redirect, self": Contender(
        "to the model's own likely kept labels (Partial Model Collapse)",
        partial(_redirect, target="self"),
    ),
    "redirect, empty": Contender(
        "to the empty prompt (TIA's target, in closed form)",
        partial(_redirect, target="empty"),
        needs=("empty",),
    ),
    "rotate": Contender(
        "turned into the neutral direction, no length changed (OrthSR's Cayley form)",
        lambda task: rotate(task.forget, keep=task.keep),
    ),
}


def chosen(
    names: Iterable[str] | None = None, also: str | os.PathLike[str] | None = None
) -> dict[str, Contender]:
    """The contenders of these names, or all, and those of a folder or file of Python.

    Args:
        names: of `CONTENDERS` or of `also`; None: all.
        also: Python that defines `METHODS`, a dict from a name to `make(task)` or to a `Contender`;
            a bare `make` is taken to learn from pictures. It is run: name only what you trust.

    Raises:
        ValueError: for an unknown name, no such file, or one without METHODS; ImportError: for what
            it imports and is not there.
    """
    known = dict(CONTENDERS)
    if also is not None:
        file = _file(Path(also))
        own = file.name == _PACKAGE
        code = code_digest(file.parent) if own else files.sha256(text=file.read_text("utf-8"))
        for name, make in _methods_of(file).items():
            if not isinstance(name, str) or name in (BASE, BASE_IN_HALVES, *known):
                raise Refusal("compare", "also", f"must have names of its own, got {name!r}")
            if not isinstance(make, Contender):
                if not callable(make):
                    raise Refusal(
                        "compare", None, f"METHODS[{name!r}] must be callable, got {make!r}"
                    )
                make = Contender(_first_line(make), make, learns=True)
            known[name] = replace(make, code=code)
    if names is None:
        return known
    picked = {}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, cutoff=0.3) or list(known)
            listed = ", ".join(map(repr, close))
            raise Refusal("compare", "method", f"must be known, got {name!r}; there is {listed}")
        picked[name] = known[name]
    return picked


def _file(path: Path) -> Path:
    file = path / _PACKAGE if path.is_dir() else path
    if not file.is_file():
        raise Refusal("compare", "also", f"must be Python or a package folder, got {path}")
    return file


def _methods_of(file: Path) -> Mapping[str, Callable | Contender]:
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
