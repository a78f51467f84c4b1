"""One method on one class: made, and measured with the numbers that every method gets."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.evaluate import Groups, strength_curve
from clipproj.audit.probe import ridge_answers, unmeasurable
from clipproj.audit.ranpac import ranpac_answers
from clipproj.audit.samples import RowEdit, Samples
from clipproj.audit.stats import Measured, mean, plain, share
from clipproj.audit.tagging import precisions
from clipproj.audit.tradeoff import area
from clipproj.compare.method import ComparedMethod, Task
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal, refusal

HALVES = 2
TOP = 10  # images a query for the class's text brings up
WIDTH = 400  # of RanPAC: enough for what a thousand find, at a tenth of the time


@dataclass(frozen=True, eq=False)
class TrialData:
    """What is compared on: images, other images that must not suffer, and prompts.

    Args:
        samples: the images whose classes are forgotten, unedited.
        elsewhere: other data sets by name, each with texts of its own.
        empty: [d] unit text of the empty prompt, or None.
        prompts: by class, a row for each prompt of it; empty where no model is at hand.
        embed: from names and templates to texts, or None.
    """

    samples: Samples
    elsewhere: Mapping[str, Samples] | None = None
    empty: Tensor | None = None
    prompts: Mapping[str, Embeddings] | None = None
    embed: Callable[[Sequence[str], Sequence[str]], Embeddings] | None = None


@dataclass(frozen=True, eq=False)
class _Part:
    """Images and the edit that has not seen them.

    A method that learns has two, one a half; what is told from images together (a probe, a
    ranking) is told in each apart, for two edits are two spaces.
    """

    edit: RowEdit
    before: Samples
    after: Samples
    forgotten: Tensor

    @property
    def again(self) -> bool:
        """Whether texts are normalised again."""
        return getattr(self.edit, "renormalize", True)


def measure(data: TrialData, method: ComparedMethod, forget: str, seed: int = 0) -> dict[str, Any]:
    """One method on one class: plain JSON, each share as value, n, low and high.

    forget, keep, nearest, others: zero-shot accuracy, as `evaluate.Scores`.
    probe, ranpac: share of the class's images that a cross-validated ridge probe and RanPAC (400
        random features) find, as in `recover`.
    cosine: of kept features, or of kept texts where the text tower is edited, to themselves.
    retrieval: of the images that the class's text brings up first, as many as the class has and
        at most 10, the share that are of the class. precision: the class's average precision.
    prompt: accuracy of the class's images under the prompt of it that finds most of them.
    area: `tradeoff.area` over strengths 0 to 1, of a Projector of the image side.
    elsewhere: accuracy on each other data set.
    rank, distance (Frobenius norm of the edit's matrix less the identity), seconds to make it.

    A method that refuses the class (`clipproj.refusal.Refusal` when made), or needs what is not at
    hand or not installed, has {"refused": why}; any other error of it is a bug and is raised.
    """
    missing = [need for need in method.needs if not _at_hand(data, need)]
    if missing:
        return {"refused": f"needs {' and '.join(missing)}, which only a model has"}
    before = data.samples
    started = time.perf_counter()
    try:
        made = _made(data, method, forget, seed)
    except (Refusal, ImportError) as error:
        return {"refused": refusal(error)}
    seconds = (time.perf_counter() - started) / len(made)
    parts = []
    for edit, rows in made:
        side = getattr(edit, "side", "image")
        if side not in ("image", "text"):
            raise TypeError(f"measure: an edit's side must be image or text, got {side!r}")
        part = before.take(rows)
        parts.append(_Part(edit, part, part.edited(edit), part.of([forget])))

    rows = torch.cat([rows for _, rows in made])
    correct = torch.empty(len(before), dtype=torch.bool, device="cpu")
    correct[rows] = torch.cat([part.after.correct(part.again) for part in parts])
    groups = Groups.of(before, [forget])
    shares = groups.shares(correct)
    out: dict[str, Any] = dict(zip(("forget", "keep", "nearest", "others"), shares, strict=True))
    out |= _recoverable(parts, seed)
    out["cosine"] = mean(torch.cat([_cosines(part) for part in parts]))
    out |= _ranking(parts, forget)
    if data.prompts and forget in data.prompts:
        out["prompt"] = _strongest_prompt(parts, data.prompts[forget].tensor, forget)
    first = parts[0].edit
    out["area"] = math.nan if method.learns else _area(before, first, forget)
    out["elsewhere"] = {
        name: share(other.edited(first).correct(parts[0].again))
        for name, other in (data.elsewhere or {}).items()
    }
    out["rank"] = int(getattr(first, "rank", before.classes.dim))
    out["distance"] = _distance(first, before.classes.dim)
    out["seconds"] = seconds
    return plain(out)


def _at_hand(data: TrialData, need: str) -> bool:
    return bool(data.prompts) if need == "prompts" else getattr(data, need) is not None


def _made(
    data: TrialData, method: ComparedMethod, forget: str, seed: int
) -> list[tuple[RowEdit, Tensor]]:
    """Edits with the rows of the images that each is measured on."""
    s = data.samples
    task = Task(
        forget=s.classes.select([forget]),
        keep=s.classes.drop([forget]),
        scale=s.scale,
        empty=data.empty,
        prompts=(data.prompts or {}).get(forget),
        embed=data.embed,
        seed=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that strengths above 1 lengthen rows is in the table
        if not method.learns:
            return [(method.make(task), torch.arange(len(s), device="cpu"))]
        half = halves(s.labels)
        return [
            (method.make(replace(task, fit=s.take(half != i))), (half == i).nonzero().flatten())
            for i in range(HALVES)
        ]


def halves(labels: Tensor) -> Tensor:
    """[n] int64, which half each image is in: those of a class dealt out in turn."""
    half = torch.empty_like(labels)
    half[labels.argsort(stable=True)] = torch.arange(len(labels), device="cpu") % HALVES
    return half


def _cosines(part: _Part) -> Tensor:
    before, after = part.before, part.after
    if getattr(part.edit, "side", "image") == "text":
        row = int(before.labels[part.forgotten][0]) if part.forgotten.any() else -1
        kept = torch.arange(len(before.texts), device="cpu") != row
        return F.cosine_similarity(before.texts[kept].double(), after.texts[kept].double(), dim=1)
    pairs = before.features[~part.forgotten].double(), after.features[~part.forgotten].double()
    return F.cosine_similarity(*pairs, dim=1)


def _recoverable(parts: Sequence[_Part], seed: int) -> dict[str, Measured]:
    found: dict[str, list[Tensor]] = {"probe": [], "ranpac": []}
    for part in parts:
        features, labels = part.after.features, part.after.labels
        if unmeasurable(labels, labels[part.forgotten].unique()):
            return {name: Measured(math.nan, 0) for name in found}
        answers = {
            "probe": ridge_answers(features, labels)[0],
            "ranpac": ranpac_answers(features, labels, width=WIDTH, seed=seed)[0][0],
        }
        for name, told in answers.items():
            found[name].append((told == labels)[part.forgotten])
    return {name: share(torch.cat(hits)) for name, hits in found.items()}


def _ranking(parts: Sequence[_Part], forget: str) -> dict[str, Measured]:
    """What the class's text brings up: the share of its first images, and average precision."""
    first, precision = [], []
    for part in parts:
        scores = part.after.cosines(part.again)[:, part.after.names.index(forget)]
        hits = part.forgotten[scores.argsort(descending=True, stable=True)]
        first.append(hits[: min(TOP, int(part.forgotten.sum()))])
        precision.append(precisions(scores, part.forgotten))
    return {"retrieval": share(torch.cat(first)), "precision": mean(torch.cat(precision), (0, 1))}


def _strongest_prompt(parts: Sequence[_Part], prompts: Tensor, forget: str) -> Measured:
    """Accuracy on the class when its text is the prompt, of all, that finds most of its images.

    The best of many is no estimate of any one of them, but it is what an attacker has who can try.
    """
    hits = []
    for part in parts:
        row, mine = part.before.names.index(forget), part.before.take(part.forgotten)
        found = torch.zeros(len(prompts), len(mine), dtype=torch.bool, device="cpu")
        for i, prompt in enumerate(prompts):
            texts = mine.texts.clone()
            texts[row] = prompt.cpu()
            found[i] = replace(mine, texts=texts).edited(part.edit).correct(part.again)
        hits.append(found)
    found = torch.cat(hits, dim=1)
    return share(found[found.sum(1).argmax()])


def _area(before: Samples, edit: RowEdit, forget: str) -> float:
    if not isinstance(edit, Projector) or edit.side != "image":
        return math.nan
    strengths = [i / 10 for i in range(11)]
    points = strength_curve(before, [forget], edit, strengths, probe=False)
    return area([p.forget for p in points], [p.keep for p in points])


def _distance(edit: RowEdit, dim: int) -> float:
    """Frobenius norm of W - I, for rows z W + shift."""
    with torch.no_grad():
        rows = edit(
            torch.cat(
                [
                    torch.eye(dim, dtype=torch.float32, device="cpu"),
                    torch.zeros(1, dim, dtype=torch.float32, device="cpu"),
                ]
            )
        )
    return float((rows[:-1] - rows[-1] - torch.eye(dim, dtype=torch.float32, device="cpu")).norm())
