"""Methods side by side: every one on every class, on the same pictures, with the same measures.

A method that learns from pictures is made twice, each time from one half of them, and measured on
the other; so every picture is answered once by an edit that has not seen it.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj import files
from clipproj.audit.evaluate import Groups, strength_curve
from clipproj.audit.journal import Journal, code_digest
from clipproj.audit.probe import ridge_answers, unmeasurable
from clipproj.audit.ranpac import ranpac_answers
from clipproj.audit.samples import Edit, Samples
from clipproj.audit.stats import mean, plain, share
from clipproj.audit.tagging import precisions
from clipproj.audit.task import Contender, Task
from clipproj.audit.tradeoff import area
from clipproj.projector import Projector
from clipproj.text import Embeddings

BASE = "no edit"
HALVES = 2
SEEN = 0.5  # accuracy from which the model knows a class well enough to forget it
PICTURES = 8  # of a class, that its shares say something
WIDTH = 400  # of RanPAC: enough for what a thousand find, at a tenth of the time
TOP = 10  # pictures a query for the class's text brings up


@dataclass(frozen=True, eq=False)
class Field:
    """What is contested on: pictures, other pictures that must not suffer, and prompts.

    Args:
        samples: the pictures whose classes are forgotten, unedited.
        elsewhere: other data sets by name, each with texts of its own.
        empty: [d] unit text of the empty prompt, or None.
        prompts: by class, a row for each prompt of it; empty where no model is at hand.
    """

    samples: Samples
    elsewhere: Mapping[str, Samples] | None = None
    empty: Tensor | None = None
    prompts: Mapping[str, Embeddings] | None = None

    def key(self) -> str:
        """Hex digest of all of it: results of other pictures are other results."""
        sets = [self.samples, *(self.elsewhere or {}).values()]
        tensors = [t for s in sets for t in (s.features, s.labels, s.classes.tensor, s.texts)]
        tensors += [p.tensor for p in (self.prompts or {}).values()]
        names = json.dumps([[*s.names, s.scale] for s in sets] + [*(self.elsewhere or ())])
        return files.sha256(*tensors, self.empty, text=names)


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
        raise ValueError(
            f"known_classes: samples must hold a class with {PICTURES} pictures of which the model "
            "answers half right, got none"
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

    Texts are normalised again after an edit of the text tower, as services do, unless an edit has
    `renormalize` and it is false. Numbers are plain JSON: see `measure`. A method that refuses a
    class (ValueError), or needs what is not at hand, has {"refused": why} there. Anything else is
    an error.

    Args:
        journal: results of earlier runs, which are not computed again; new ones are added.
        progress: called with (cells done, cells in all).
    """
    for name in forget:
        field.samples.of([name])  # all are looked up before any is computed
    contenders = {BASE: Contender("the model as it is", _same), **contenders}
    journal = Journal(None) if journal is None else journal
    code, key = code_digest(), field.key()
    out: dict[str, dict[str, Any]] = {name: {} for name in contenders}
    done, cells = 0, len(contenders) * len(forget)
    for name, contender in contenders.items():
        for gone in forget:
            cell = json.dumps([code, contender.code, key, name, contender.about, gone, seed])
            if cell not in journal:
                journal.put(cell, measure(field, contender, gone, seed))
            out[name][gone] = journal[cell]
            done += 1
            if progress is not None:
                progress(done, cells)
    return out


def measure(field: Field, contender: Contender, forget: str, seed: int = 0) -> dict[str, Any]:
    """One method on one class: plain JSON, each share as value, n, low and high.

    forget, retain, neighbours, others: zero-shot accuracy, as `evaluate.Scores`.
    probe, ranpac: share of the class's pictures that a cross-validated ridge probe and RanPAC (400
        random features) find, as in `recover`.
    cosine: of retained features, or of kept texts where the text tower is edited, to themselves.
    retrieval: of the pictures that the class's text brings up first, as many as the class has and
        at most 10, the share that are of the class. precision: the class's average precision.
    prompt: accuracy of the class's pictures under the prompt of it that finds most of them.
    area: `tradeoff.area` over strengths 0 to 1, of a Projector of the image side.
    elsewhere: accuracy on each other data set.
    rank, distance (Frobenius norm of the edit's matrix less the identity), seconds to make it.
    """
    missing = [need for need in contender.needs if not _at_hand(field, need)]
    if missing:
        return {"refused": f"needs {' and '.join(missing)}, which only a model has"}
    before = field.samples
    try:
        started = time.perf_counter()
        edits = list(_edits(field, contender, forget, seed))
        seconds = (time.perf_counter() - started) / len(edits)
    except ValueError as error:
        return {"refused": str(error)}
    after = _pooled(before, edits)
    edit = edits[0][0]
    again = getattr(edit, "renormalize", True)
    groups = Groups.of(before, [forget])
    shares = groups.shares(after.correct(again))
    out: dict[str, Any] = dict(
        zip(("forget", "retain", "neighbours", "others"), shares, strict=True)
    )
    out |= _recoverable(after, groups, seed)
    out["cosine"] = _cosine(before, after, groups)
    out |= _ranking(after, forget, groups, again)
    if field.prompts and forget in field.prompts:
        out["prompt"] = _strongest_prompt(before, edits, field.prompts[forget].tensor, forget)
    out["area"] = _area(before, edit, forget, learns=contender.learns)
    out["elsewhere"] = {
        name: share(other.edited(edit).correct()) for name, other in (field.elsewhere or {}).items()
    }
    out["rank"] = int(getattr(edit, "rank", before.classes.dim))
    out["distance"] = _distance(edit, before.classes.dim)
    out["seconds"] = seconds
    return plain(out)


@dataclass(frozen=True)
class _Same:
    """The edit that is none."""

    side: str = "image"
    rank: int = 0

    def __call__(self, rows: Tensor) -> Tensor:
        return rows


def _same(task: Task) -> Edit:
    return _Same()


def _at_hand(field: Field, need: str) -> bool:
    return {"empty": field.empty is not None, "prompts": bool(field.prompts)}[need]


def _edits(
    field: Field, contender: Contender, forget: str, seed: int
) -> Iterator[tuple[Edit, Tensor]]:
    """Edits with the rows of the pictures that each is measured on."""
    s = field.samples
    task = Task(
        forget=s.classes.select([forget]),
        keep=s.classes.drop([forget]),
        scale=s.scale,
        empty=field.empty,
        prompts=(field.prompts or {}).get(forget),
        seed=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that strengths above 1 lengthen rows is in the table
        if not contender.learns:
            yield contender.make(task), torch.arange(len(s))
            return
        half = halves(s.labels)
        for i in range(HALVES):
            fit = s.take(half != i)
            yield contender.make(replace(task, fit=fit)), (half == i).nonzero().flatten()


def halves(labels: Tensor) -> Tensor:
    """[n] int64, which half each picture is in: those of a class dealt out in turn."""
    half = torch.empty_like(labels)
    half[labels.argsort(stable=True)] = torch.arange(len(labels)) % HALVES
    return half


def _pooled(before: Samples, edits: Sequence[tuple[Edit, Tensor]]) -> Samples:
    """Every picture edited by the edit that has not seen it.

    An edit of the text tower that learns has two sets of texts; then each picture's answers come
    from its own, and what is said of the texts from the first.
    """
    if len(edits) == 1:
        return before.edited(edits[0][0])
    if getattr(edits[0][0], "side", "image") == "text":
        raise ValueError("measure: contender must edit pictures to learn from them, got text side")
    features = before.features.clone()
    for edit, rows in edits:
        features[rows] = before.take(rows).edited(edit).features
    return replace(before, features=features)


def _cosine(before: Samples, after: Samples, groups: Groups) -> float:
    if torch.equal(before.features, after.features):
        kept = before.texts @ before.texts[groups.labels[groups.gone]][0] < 1 - 1e-6
        pairs = before.texts[kept].double(), after.texts[kept].double()
    else:
        pairs = before.features[~groups.gone].double(), after.features[~groups.gone].double()
    return mean(F.cosine_similarity(*pairs, dim=1))


def _recoverable(after: Samples, groups: Groups, seed: int) -> dict[str, float]:
    wanted = groups.labels[groups.gone].unique()
    if unmeasurable(groups.labels, wanted):
        return {"probe": math.nan, "ranpac": math.nan}
    ridge = ridge_answers(after.features, groups.labels)[0]
    ranpac = ranpac_answers(after.features, groups.labels, width=WIDTH, seed=seed)[0][0]
    found = {"probe": ridge, "ranpac": ranpac}
    return {name: share((got == groups.labels)[groups.gone]) for name, got in found.items()}


def _ranking(after: Samples, forget: str, groups: Groups, again: bool) -> dict[str, float]:
    """What the class's text brings up: the share of its first pictures, and average precision."""
    scores = after.cosines(again)[:, after.names.index(forget)]
    hits = groups.gone[scores.argsort(descending=True, stable=True)]
    first = min(TOP, int(groups.gone.sum()))
    return {
        "retrieval": share(hits[:first]) if first else math.nan,
        "precision": mean(precisions(scores, groups.gone)),
    }


def _strongest_prompt(
    before: Samples, edits: Sequence[tuple[Edit, Tensor]], prompts: Tensor, forget: str
) -> float:
    """Accuracy on the class when its text is the prompt, of all, that finds most of its pictures.

    The best of many is no estimate of any one of them, but it is what an attacker has who can try.
    """
    row = before.names.index(forget)
    mine = (before.labels == row).nonzero().flatten()
    hits = torch.zeros(len(prompts), len(mine), dtype=torch.bool)
    for edit, rows in edits:
        seen = torch.isin(mine, rows)
        for i, prompt in enumerate(prompts):
            texts = before.texts.clone()
            texts[row] = prompt.cpu()
            attacked = replace(before, texts=texts).take(mine[seen]).edited(edit)
            hits[i, seen] = attacked.correct(getattr(edit, "renormalize", True))
    return share(hits[hits.sum(1).argmax()])


def _area(before: Samples, edit: Edit, forget: str, learns: bool) -> float:
    if learns or not isinstance(edit, Projector) or edit.side != "image":
        return math.nan
    strengths = [i / 10 for i in range(11)]
    points = strength_curve(before, [forget], edit, strengths, probe=False)
    return area([p.forget for p in points], [p.retain for p in points])


def _distance(edit: Edit, dim: int) -> float:
    """Frobenius norm of W - I, for rows z W + shift."""
    with torch.no_grad():
        rows = edit(torch.cat([torch.eye(dim), torch.zeros(1, dim)]))
    return float((rows[:-1] - rows[-1] - torch.eye(dim)).norm())
