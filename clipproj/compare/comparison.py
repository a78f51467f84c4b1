"""Methods side by side: every one on every class, on the same pictures, with the same measures.

A method that learns from pictures is made twice, each time from one half of them, and measured on
the other; so every picture is answered once by an edit that has not seen it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clipproj import files
from clipproj.audit.cache import Journal, code_digest
from clipproj.audit.samples import Edit, Samples
from clipproj.compare.task import Contender, Task
from clipproj.compare.trial import Field, measure
from clipproj.refusal import Refusal

BASE = "no edit"
BASE_IN_HALVES = "no edit, in halves"
SEEN = 0.5  # accuracy from which the model knows a class well enough to forget it
PICTURES = 8  # of a class, that its shares say something


def known_classes(samples: Samples, count: int | None = None) -> tuple[str, ...]:
    """Classes with at least 8 pictures of which the model answers half right, sorted by name.

    A class that the model does not know cannot be seen to be forgotten. With `count`, at most so
    many, spread evenly over them. Raises ValueError where there is none.
    """
    correct = samples.correct()
    found = []
    for row, name in enumerate(samples.names):
        of_class = samples.labels == row
        if int(of_class.sum()) >= PICTURES and float(correct[of_class].double().mean()) >= SEEN:
            found.append(name)
    if not found:
        raise Refusal(
            "known_classes",
            "samples",
            f"must hold a class with {PICTURES} pictures of which the model "
            "answers half right, got none; name classes to take others",
        )
    found.sort()
    if count is None or count >= len(found):
        return tuple(found)
    return tuple(found[i * len(found) // count] for i in range(count))


def run(
    field: Field,
    contenders: Mapping[str, Contender],
    forget: Sequence[str],
    *,
    journal: Journal | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every contender on every class: {contender: {class: numbers}}, with `BASE` as the first.

    Where a contender learns, `BASE_IN_HALVES` is the second: probes and rankings of methods that
    learn are of halves, and this is what they are to be held against.

    Texts are normalised again after an edit of the text tower, as services do, unless an edit has
    `renormalize` and it is false. Numbers are plain JSON, as `cell.measure` gives them.

    Args:
        journal: results of earlier runs, which are not computed again; new ones are added.
        progress: called with (cells done, cells in all), the first time before any.

    Raises:
        ValueError: for a name that is no class, or a contender with the name of a base.
        RuntimeError: for a contender that fails, by its name; what is done is in the journal.
    """
    for name in forget:
        field.samples.of([name])  # all are looked up before any is computed
    bases = {BASE: Contender("the model as it is", _same)}
    if any(one.learns for one in contenders.values()):
        about = "the model as it is, each half of the pictures apart"
        bases[BASE_IN_HALVES] = Contender(about, _same, learns=True)
    for name in contenders:
        if name in (BASE, BASE_IN_HALVES):
            raise Refusal("run", "contenders", f"must have names of their own, got {name!r}")
    contenders = {**bases, **contenders}
    journal = Journal(None) if journal is None else journal
    code, key = code_digest(), _digest(field)
    out: dict[str, dict[str, Any]] = {name: {} for name in contenders}
    done, cells = 0, len(contenders) * len(forget)
    if progress is not None:
        progress(done, cells)
    for name, contender in contenders.items():
        for gone in forget:
            prompts = (field.prompts or {}).get(gone)
            own = None if prompts is None else files.sha256(prompts.tensor)
            cell = json.dumps([code, contender.code, key, own, name, contender.about, gone, seed])
            if cell not in journal:
                try:
                    value = measure(field, contender, gone, seed)
                except Exception as error:  # of a method that may be anybody's
                    what = f"{type(error).__name__}: {error}"
                    raise RuntimeError(f"compare: method {name!r} on {gone!r}: {what}") from error
                journal.put(cell, value)
            out[name][gone] = journal[cell]
            done += 1
            if progress is not None:
                progress(done, cells)
    return out


@dataclass(frozen=True)
class _Same:
    """The edit that is none."""

    side: str = "image"
    rank: int = 0

    def __call__(self, rows: Tensor) -> Tensor:
        return rows


def _same(task: Task) -> Edit:
    return _Same()


def _digest(field: Field) -> str:
    """Hex digest of the pictures and texts: results of others are other results."""
    sets = [field.samples, *(field.elsewhere or {}).values()]
    tensors = [t for s in sets for t in (s.features, s.labels, s.classes.tensor, s.texts)]
    names = json.dumps([[*s.names, s.scale] for s in sets] + [*(field.elsewhere or ())])
    return files.sha256(*tensors, field.empty, text=names)
