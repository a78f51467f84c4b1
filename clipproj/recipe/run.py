"""A recipe carried out on a model: edited, measured before and after, judged and verified."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj import demo, ops
from clipproj.audit import evaluate
from clipproj.audit.evaluate import Comparison, CurvePoint
from clipproj.audit.gate import Judgement, judge
from clipproj.audit.images import Images, image_features, load_images
from clipproj.audit.samples import Samples
from clipproj.certificates import Certificate, certificate
from clipproj.checkpoints.checkpoint import Loaded, load_model
from clipproj.editing import log
from clipproj.editing.edit import edit
from clipproj.editing.log import Edit
from clipproj.editing.verify import Verdict, verify
from clipproj.methods.inputs import SAME
from clipproj.models.heads import find_heads, head_tensors
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.recipe.names import Names, resolve, without_earlier
from clipproj.recipe.project import Forms, project, saved
from clipproj.recipe.record import Recipe, check, check_rank
from clipproj.recipe.texts import Embedder, Progress, Texts, embed, silent
from clipproj.report.sections import gate


@dataclass(frozen=True, eq=False)
class Ready:
    """A recipe with all that it names: the model is loaded, and nothing is edited yet.

    Attributes:
        saved: the projector to apply, at the strength asked for; None: one is made.
        images: None without an image folder.
        names: which are meant, without what earlier edits forgot.
        earlier: the log of those edits.
        started: by `time.perf_counter`.
    """

    recipe: Recipe
    saved: Projector | None
    images: Images | None
    names: Names
    loaded: Loaded
    earlier: list[dict[str, Any]]
    started: float

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Those that there are images of; None without images."""
        return None if self.images is None else self.images.classes

    def fold(self, projector: Projector) -> Edit:
        """`edit` the model. Raises as that does."""
        recipe = self.recipe
        return edit(self.loaded.model, projector, tower=recipe.tower, force=recipe.force)


@dataclass(frozen=True, eq=False)
class EditForm:
    """An edit in one of its forms, measured and judged.

    Attributes:
        projector: with its strength.
        comparison: on images; None without an image folder.
        judged: on mixtures of class texts, and whether it may be written.
        certificate: of what is kept, where the kept names are all that compete; else None.
    """

    projector: Projector
    comparison: Comparison | None
    judged: Judgement
    certificate: Certificate | None

    def as_dict(self, curve: Sequence[CurvePoint] = ()) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "form": self.projector.form,
            "parameters": self.projector.provenance.get("parameters"),
            "rank": self.projector.rank,
            "strength": round(float(self.projector.strength), 6),
            "projector": self.projector.content_hash(),
            "scores": self.comparison and evaluate.as_dict(self.comparison, curve),
            "texts": evaluate.as_dict(self.judged.texts, every=False),
            "refused": self.judged.refused,
            "measured": gate.as_dict(self.judged),
            "advice": list(gate.advice(self.judged)),
            "certificate": self.certificate and self.certificate.to_json(),
        }


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a recipe.

    Attributes:
        model: what the model is called.
        folded: the linear form, which is in the model.
        one_sided: the same names for rows on the fly, where the method has such a form; else None.
        texts: what both were made of and measured on.
        images, curve: None and empty without an image folder.
        edit: the handle of the folded form.
        verdict: of the written checkpoint read back from disk; of the live model in a rehearsal.
        edit_seconds: the fold alone.
        seconds: everything.
        files: what was written, by what it is; empty in a rehearsal, when the receipt fails, or
            when the edit is refused.
        fold: whether the folded form must be within its limits too.
    """

    model: str
    tower: str
    folded: EditForm
    one_sided: EditForm | None
    texts: Texts
    images: Images | None
    curve: list[CurvePoint]
    edit: Edit
    verdict: Verdict
    edit_seconds: float
    seconds: float
    files: dict[str, Path] = field(default_factory=dict)
    fold: bool = False

    @property
    def first(self) -> EditForm:
        """What rows are edited by and what counts: the one-sided form where there is one."""
        return self.one_sided or self.folded

    @property
    def projector(self) -> Projector:
        """Of the first form: what is written as a projector."""
        return self.first.projector

    @property
    def comparison(self) -> Comparison | None:
        """Of the first form."""
        return self.first.comparison

    @property
    def judged(self) -> Judgement:
        """Of the first form."""
        return self.first.judged

    @property
    def certificate(self) -> Certificate | None:
        """Of the first form."""
        return self.first.certificate

    @property
    def refused(self) -> bool:
        """Whether nothing is written: the first form is beyond its limits."""
        return self.judged.refused

    @property
    def fails(self) -> bool:
        """Whether it is not what was asked for: refused, or with `fold` not folded."""
        return self.refused or (self.fold and self.folded.judged.refused)

    @property
    def folded_alarms(self) -> tuple[str, ...]:
        """Why no checkpoint is written where a projector is; empty where both or neither are."""
        if self.one_sided is None or not self.folded.judged.refused:
            return ()
        told = " ".join(gate.alarms(self.folded.judged))
        return (f"Folded into weights it is refused: {told}",)

    @property
    def forget(self) -> Embeddings:
        """The texts of what is forgotten."""
        return self.texts.forget

    @property
    def keep(self) -> Embeddings:
        """The texts of what stays."""
        return self.texts.keep

    @property
    def undo_command(self) -> str | None:
        """The command line that takes the edit back; None when no checkpoint was written."""
        if "checkpoint" not in self.files:
            return None
        paths = [str(self.files[what]) for what in ("checkpoint", "undo")]
        return shlex.join(["clipproj", "undo", *paths])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, as `--json` prints it: the first form, and under "folded" the other."""
        return {
            "model": self.model,
            "tower": self.tower,
            "forget": list(self.forget.names),
            "keep": {"from": self.texts.keep_from, "names": list(self.keep.names)},
            "method": self.projector.provenance.get("method"),
            "images": self.images and {"count": len(self.images), "skipped": self.images.skipped},
            **self.first.as_dict(self.curve),
            "folded": self.one_sided and self.folded.as_dict(),
            "receipt": {
                "status": self.verdict.status,
                "exact": self.verdict.exact,
                "error": self.verdict.error,
                "bound": self.verdict.bound,
            },
            "edit_seconds": self.edit_seconds,
            "seconds": self.seconds,
            "files": {what: str(path) for what, path in self.files.items()},
        }


def prepare(recipe: Recipe, say: Progress = silent) -> Ready:
    """All that can be refused before a text is embedded, and the model.

    Raises:
        ValueError: for names that are unknown, repeated, or on both lists, options out of range,
            images that cannot be read, a head that cannot be edited, a projector of another model
            or width.
        RuntimeError: when the model cannot be loaded. ImportError: for missing packages.
    """
    started = time.perf_counter()
    check(recipe)
    projector = saved(recipe)
    images = _images(recipe)
    names = resolve(recipe, projector, None if images is None else images.classes)
    say("model", 0, 1)
    loaded = load_model(recipe.model, recipe.pretrained, recipe.device)
    say("model", 1, 1)
    earlier = log.records(loaded.model)
    return Ready(recipe, projector, images, names, loaded, earlier, started)


def forget(ready: Ready, say: Progress = silent) -> Outcome:
    """Edit the model, measured before and after, judged and verified. It stays edited.

    Raises as `prepare`, and as the method does.
    """
    recipe, loaded, images = ready.recipe, ready.loaded, ready.images
    check_rank(recipe, len(ready.names.forms), find_heads(loaded.model)[recipe.tower].width)
    names = without_earlier(recipe.command, ready.names, ready.earlier)
    forms = None if ready.saved is None else Forms.of(ready.saved)
    if forms is not None:
        ready.fold(forms.folded).undo()  # a rehearsal: refuse now, not after all the texts
    embedder = Embedder(loaded, say, recipe.truncate)
    texts = embed(recipe, names, embedder, ready.classes)
    if forms is None:
        forms = project(recipe, texts, embedder)
        ready.fold(forms.folded).undo()  # nor after an hour of images

    before = images and Samples.of_images(
        image_rows(loaded, images, "images before", say), images, texts.classes
    )
    one_sided = forms.one_sided and _one_sided(ready, texts, forms.one_sided, before)
    projector = forms.folded
    handle = ready.fold(projector)
    comparison, curve = None, []
    if before is not None:
        if recipe.tower == "image":
            rows = image_rows(loaded, images, "images after", say)
            after = replace(before, features=rows)
            if set(texts.forget_classes.names).intersection(images.classes):
                applied = forms.one_sided or handle.projector
                curve = evaluate.strength_curve(before, texts.forget_classes, applied)
        else:
            edited = embedder(texts.classes.names, texts.classes.templates, "texts after")
            after = replace(before, texts=edited.tensor)
        comparison = evaluate.compare(before, after, texts.forget_classes)
    judged = judged_edit(recipe, texts, handle.projector, ready.earlier, comparison)
    handle.record["loss"] = max(0.0, judged.price.loss - judged.price.spent)
    projector.provenance |= {"measured": gate.as_dict(judged)}  # of this strength, on this model
    proven = certified(texts.keep, handle.projector) if texts.closed else None
    return Outcome(
        model=loaded.name,
        tower=recipe.tower,
        folded=EditForm(projector, comparison, judged, proven),
        one_sided=one_sided or None,
        texts=texts,
        images=images,
        curve=curve,
        edit=handle,
        verdict=verify(loaded.model, handle.receipt),
        edit_seconds=_fold_seconds(loaded, handle),
        seconds=time.perf_counter() - ready.started,
        fold=recipe.fold,
    )


def _one_sided(
    ready: Ready, texts: Texts, projector: Projector, before: Samples | None
) -> EditForm:
    """The form that is applied on the fly, on the features of the unedited model."""
    comparison = before and evaluate.compare(before, before.edited(projector), texts.forget_classes)
    judged = judged_edit(ready.recipe, texts, projector, ready.earlier, comparison)
    projector.provenance |= {"measured": gate.as_dict(judged)}
    proven = certified(texts.keep, projector) if texts.closed else None
    if proven is not None:
        projector.provenance |= {"certificate": proven.to_json()}
    return EditForm(projector, comparison, judged, proven)


def certified(keep: Embeddings, projector: Projector) -> Certificate | None:
    """What is proven of the edit against what is kept, for rows in the dtype it was made for.

    None for the text side, for a projector of another model or that does not know its forgotten
    texts, and where one of these is kept by another name: that name answers for it.
    """
    if projector.side != "image" or projector.forget is None:
        return None
    if projector.provenance.get("head_hash") not in (None, keep.head_hash):
        return None
    forget, kept = (
        F.normalize(one.cpu().float(), dim=1) for one in (projector.forget, keep.tensor)
    )
    if float((forget @ kept.T).amax()) > SAME:
        return None
    made_for = (projector.provenance.get("parameters") or {}).get("dtype", "float32")
    return certificate(projector, keep, getattr(torch, made_for))


def judged_edit(
    recipe: Recipe,
    texts: Texts,
    projector: Projector,
    earlier: list[dict[str, Any]],
    images: Comparison | None = None,
) -> Judgement:
    """The edit held against the recipe's limits, by whatever method it was made.

    Args:
        earlier: the log of the model's edits; what they lost counts.
        images: what the edit does to images, where there are some.
    """
    return judge(
        projector,
        texts.forget,
        texts.keep,
        recipe.limits,
        closed=texts.closed,
        images=images,
        general=texts.general,
        spent=sum(one.get("loss", 0) for one in earlier),
    )


def image_rows(loaded: Loaded, images: Images, stage: str, say: Progress = silent) -> Tensor:
    """`image_features`, saying how far it is."""
    return image_features(
        loaded.model,
        loaded.preprocess,
        images,
        progress=lambda done, total: say(stage, done, total),
    )


def _images(recipe: Recipe) -> Images | None:
    if recipe.images is not None:
        return load_images(recipe.images)
    return None if recipe.model is not None else load_images(demo.images_dir())


def _fold_seconds(loaded: Loaded, handle: Edit) -> float:
    """The fold alone, on a copy of the head, warm: without checks, hashes and the receipt."""
    head = find_heads(loaded.model)[handle.tower]
    weight = head_tensors(loaded.model, head)[0].detach().clone()
    factors = {**handle.projector.linear_factors("edit", weight.dtype), "offset": None}
    factors = {k: v if v is None else v.to(weight.device) for k, v in factors.items()}
    seconds = []
    for _ in range(3):
        if weight.is_cuda:
            torch.cuda.synchronize(weight.device)
        start = time.perf_counter()
        ops.fold_(weight, **factors, dim=head.dim)
        if weight.is_cuda:
            torch.cuda.synchronize(weight.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
