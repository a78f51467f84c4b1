"""How `nullspace` is applied where nobody says: contrast, metric, threshold, strength, by form."""

from __future__ import annotations

import warnings

import torch

from clipproj.methods.contrast import CONTRASTS, SPAN_UP_TO
from clipproj.methods.half_spaces import MOST
from clipproj.methods.method import Method, Option, Setting, Task
from clipproj.methods.nullspace import nullspace
from clipproj.projector import Projector
from clipproj.refusal import Refusal

# What distance in kept texts weighs, mu, one-sided and folded. On 6000 images and 1000 names of
# ImageNet mu 3 to 30 differ by a point one-sided; folded, mu 10 costs others 2 points at 100 names,
# mu 0 twelve. Against a lexicon, whose names do not compete, more than .3 protects the class;
# folded it is 0, for oblique projectors lengthen rows at strengths above 1.
KEEP_WEIGHT = {"hull": (3.0, 10.0), "neighbours": (0.3, 0.0)}
# Against names in general the first of these at which mixtures of texts are forgotten, from a
# little above 1 on, for lists that are served are shorter: of ten of 24 breeds, and of as many
# dishes, 1.1 leaves 3.6 % and .5 % of the images, 1 leaves 4.8 % and .9 %; a threshold of half a
# sigma 10 % and 5 %. Reflections of several directions cross, half-spaces do not.
STRENGTHS = (1.1, 1.25, 1.5, 2.0)
MEAN_STRENGTH = 1.5  # of one direction less a mean of many names; 1 leaves up to a third of a class


def make(
    task: Task,
    contrast: str = "auto",
    rank: int | None = None,
    keep_weight: float | None = None,
    threshold: str | None = None,
    dtype: str = "float32",
) -> Projector | tuple[Projector, ...]:
    """`nullspace` of names, linear, at the contrast, metric and strengths that suit them.

    "auto" is hull against a closed list and neighbours against names in general. Texts, that are
    normalised after the edit, it has no such form for: there it is span where that leaves nothing
    of the class, else hull, and against names in general mean.
    """
    chosen = _contrast(task, contrast)
    if not _halves(task, chosen, rank):
        for name, value, own in (("threshold", threshold, None), ("dtype", dtype, "float32")):
            if value != own:
                why = "must be left out where the edit has no one-sided form"
                raise Refusal("nullspace", name, f"{why}, got {value!r}")

    def made(contrast: str) -> Projector:
        weight = _keep_weight(task, contrast, keep_weight)[1]
        return nullspace(
            task.forget, task.keep, contrast, rank=rank, side=task.side, keep_weight=weight
        )

    if chosen == "auto":  # texts
        hull = made("hull")
        if len(task.keep) > SPAN_UP_TO:
            return hull
        try:
            return made("span"), hull
        except ValueError:  # the kept names span the forgotten one
            return hull
    one = made(chosen)
    if one.rank > 1:
        return one
    if chosen == "neighbours" and not task.closed:
        return tuple(map(one.scaled, STRENGTHS))
    return one.scaled(MEAN_STRENGTH) if chosen == "mean" and not task.closed else one


def one_sided(
    task: Task,
    contrast: str = "auto",
    rank: int | None = None,
    keep_weight: float | None = None,
    threshold: str | None = None,
    dtype: str = "float32",
) -> tuple[Projector, ...] | None:
    """The same one-sided; None for texts, other contrasts, a rank, and more names than it takes."""
    chosen = _contrast(task, contrast)
    if not _halves(task, chosen, rank):
        return None
    if len(task.forget) > MOST:
        text = f"nullspace: {len(task.forget)} names are more than {MOST}: folded alone"
        warnings.warn(text, stacklevel=2)
        return None
    one = nullspace(
        task.forget,
        task.keep,
        chosen,
        side=task.side,
        keep_weight=_keep_weight(task, chosen, keep_weight)[0],
        one_sided=True,
        threshold=threshold,
        dtype=getattr(torch, dtype),
    )
    return (one,) if task.closed else tuple(map(one.scaled, STRENGTHS))


def _halves(task: Task, contrast: str, rank: int | None) -> bool:
    """Whether there is a one-sided form, of few enough names."""
    return task.side == "image" and rank is None and contrast in KEEP_WEIGHT


def _contrast(task: Task, contrast: str) -> str:
    if contrast != "auto":
        return contrast
    if task.side == "text":
        return "auto" if task.closed else "mean"
    return "hull" if task.closed else "neighbours"


def _keep_weight(task: Task, contrast: str, given: float | None) -> tuple[float, float]:
    """Of the one-sided form, and folded."""
    if given is not None:
        return given, given
    return (0.0, 0.0) if task.side == "text" else KEEP_WEIGHT.get(contrast, (0.0, 0.0))


METHOD = Method(
    "nullspace",
    "projects out what sets the names apart from the kept ones",
    make,
    one_sided=one_sided,
    options=(
        Option(
            "contrast", str, "what the names are told apart from",
            "hull(keep) of a closed list, neighbours(keep) of names in general; of texts "
            "span(keep) up to 16 names where that suffices, else hull(keep), or mean(keep)",
            choices=(*CONTRASTS, "auto"),
        ),
        Option("rank", int, "at most so many directions, the strongest first", "all", low=1),
        Option(
            "keep_weight", float, "mu; larger moves what is kept less, and all else more",
            "hull 3, folded 10; neighbours 0.3, folded 0; else 0", low=0,
        ),
        Option(
            "threshold", str, "one-sided: what a row may read of a name, a number or sigmas",
            "hull just below 0, neighbours 0",
        ),
        Option(
            "dtype", str, "one-sided: what edited rows are stored in", "float32",
            choices=("float32", "float16", "bfloat16"),
        ),
    ),
    promise="hull: no image is answered by a forgotten name; span: kept texts do not move",
    paper="arXiv 2512.14137",
    settings=(
        Setting(
            "nullspace, plain",
            "arXiv 2512.14137's projector: the class's text itself, strength 1",
            {"contrast": "none"},
        ),
        Setting("nullspace, span", "less span(keep), strength 1", {"contrast": "span"}),
        Setting("nullspace, mean", "less mean(keep), strength 1", {"contrast": "mean"}, 1.0),
        Setting("nullspace, mean 1.5", "less mean(keep), strength 1.5", {"contrast": "mean"}, 1.5),
        Setting(
            "nullspace, hull", "less the nearest mixture of kept texts, strength 1",
            {"contrast": "hull", "keep_weight": 0.0},
        ),
        Setting(
            "nullspace, hull 0.85", "the same at strength 0.85",
            {"contrast": "hull", "keep_weight": 0.0}, 0.85,
        ),
        Setting(
            "nullspace, folded",
            "hull in the metric of what is kept, mu 10: the default for closed lists, folded",
            {"contrast": "hull"},
        ),
        Setting(
            "nullspace, one-sided",
            "hull in the metric of what is kept, mu 3, one-sided: the default for closed lists",
            {"contrast": "hull"}, one_sided=True,
        ),
    ),
)  # fmt: skip
