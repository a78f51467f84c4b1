"""Methods side by side: every one on every class, on the same images, with the same measures.

A method that learns from images is made twice, each time from one half of them, and measured on
the other; so every image is answered once by an edit that has not seen it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clipproj import files
from clipproj.audit.cache import Cache, code_digest
from clipproj.audit.samples import RowEdit, Samples
from clipproj.compare.method import ComparedMethod, Task
from clipproj.compare.trial import TrialData, measure
from clipproj.refusal import Refusal

BASE = "no edit"
BASE_IN_HALVES = "no edit, in halves"
SEEN = 0.5  # accuracy from which the model knows a class well enough to forget it
IMAGES = 8  # of a class, that its shares say something


def known_classes(samples: Samples, count: int | None = None) -> tuple[str, ...]:
    """Classes with at least 8 images of which the model answers half right, sorted by name.

    A class that the model does not know cannot be seen to be forgotten. With `count`, at most so
    many, spread evenly over them. Raises ValueError where there is none.
    """
    correct = samples.correct()
    found = []
    for row, name in enumerate(samples.names):
        of_class = samples.labels == row
        if int(of_class.sum()) >= IMAGES and float(correct[of_class].double().mean()) >= SEEN:
            found.append(name)
    if not found:
        raise Refusal(
            "known_classes",
            "samples",
            f"must hold a class with {IMAGES} images of which the model "
            "answers half right, got none; name classes to take others",
        )
    found.sort()
    if count is None or count >= len(found):
        return tuple(found)
    return tuple(found[i * len(found) // count] for i in range(count))


def run(
    data: TrialData,
    methods: Mapping[str, ComparedMethod],
    forget: Sequence[str],
    *,
    cache: Cache | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every method on every class: {method: {class: numbers}}, with `BASE` as the first.

    Where a method learns, `BASE_IN_HALVES` is the second: probes and rankings of methods that
    learn are of halves, and this is what they are to be held against.

    Texts are normalised again after an edit of the text tower, as services do, unless an edit has
    `renormalize` and it is false. Numbers are plain JSON, as `trial.measure` gives them.

    Args:
        cache: results of earlier runs, which are not computed again; new ones are added.
        progress: called with (trials done, trials in all), the first time before any.

    Raises:
        ValueError: for a name that is no class, or a method with the name of a base.
        RuntimeError: for a method that fails, by its name; what is done is in the cache.
    """
    for name in forget:
        data.samples.of([name])  # all are looked up before any is computed
    bases = {BASE: ComparedMethod("the model as it is", _same)}
    if any(one.learns for one in methods.values()):
        about = "the model as it is, each half of the images apart"
        bases[BASE_IN_HALVES] = ComparedMethod(about, _same, learns=True)
    for name in methods:
        if name in (BASE, BASE_IN_HALVES):
            raise Refusal("run", "methods", f"must have names of their own, got {name!r}")
    methods = {**bases, **methods}
    cache = Cache(None) if cache is None else cache
    code, key = code_digest(), _digest(data)
    out: dict[str, dict[str, Any]] = {name: {} for name in methods}
    done, trials = 0, len(methods) * len(forget)
    if progress is not None:
        progress(done, trials)
    for name, method in methods.items():
        for one in forget:
            prompts = (data.prompts or {}).get(one)
            own = None if prompts is None else files.sha256(prompts.tensor)
            entry = json.dumps([code, method.code, key, own, name, method.about, one, seed])
            if entry not in cache:
                try:
                    value = measure(data, method, one, seed)
                except Exception as error:  # of a method that may be anybody's
                    what = f"{type(error).__name__}: {error}"
                    raise RuntimeError(f"compare: method {name!r} on {one!r}: {what}") from error
                cache.put(entry, value)
            out[name][one] = cache[entry]
            done += 1
            if progress is not None:
                progress(done, trials)
    return out


@dataclass(frozen=True)
class _Same:
    """The edit that is none."""

    side: str = "image"
    rank: int = 0

    def __call__(self, rows: Tensor) -> Tensor:
        return rows


def _same(task: Task) -> RowEdit:
    return _Same()


def _digest(data: TrialData) -> str:
    """Hex digest of the images and texts: results of others are other results."""
    sets = [data.samples, *(data.elsewhere or {}).values()]
    tensors = [t for s in sets for t in (s.features, s.labels, s.classes.tensor, s.texts)]
    names = json.dumps([[*s.names, s.scale] for s in sets] + [*(data.elsewhere or ())])
    return files.sha256(*tensors, data.empty, text=names)
