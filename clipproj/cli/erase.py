"""The main job without a terminal: from class names to an edited, verified, measured model."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipproj import ops
from clipproj.audit import evaluate
from clipproj.audit.evaluate import Comparison, CurvePoint
from clipproj.audit.gate import FEW_PICTURED, GENERAL_PROMPTS, Judgement, judge
from clipproj.audit.images import Pictures, image_features, load_pictures
from clipproj.audit.samples import Samples
from clipproj.checkpoints.checkpoint import Loaded, load_model, save_model
from clipproj.checkpoints.state import WEIGHTS, read_state, size
from clipproj.cli.output import Output
from clipproj.cli.request import Names, Request, check, resolve, without_earlier
from clipproj.editing import log
from clipproj.editing.edit import edit
from clipproj.editing.log import Edit
from clipproj.editing.verify import Verdict, verify
from clipproj.methods import defaults
from clipproj.models.heads import find_heads, head_tensors
from clipproj.models.text import Embeddings, embed_classes, generic_keep
from clipproj.models.words import on_both, simple_templates
from clipproj.projector import Projector, load
from clipproj.refusal import Refusal
from clipproj.report import report
from clipproj.report.sections import gate

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much

FILES = {
    "checkpoint": WEIGHTS,
    "projector": "projector.safetensors",
    "undo": "undo.safetensors",
    "receipt": "receipt.safetensors",
    "report": "report.html",
    "numbers": "report.json",
}

ABOUT = {  # the report's words for the files beside it
    "projector, for other copies or for features": FILES["projector"],
    "the head as it was": FILES["undo"],
    "receipt, for clipproj verify": FILES["receipt"],
    "the numbers of this report": FILES["numbers"],
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of it.

    Attributes:
        model: what the model is called.
        projector: as applied, with its strength.
        forget, keep: the texts of both; keep_from says where the names come from.
        pictures, comparison, curve: None and empty without a picture folder.
        judged: the same edit on mixtures of class texts, and whether it may be written.
        verdict: of the written checkpoint read back from disk; of the live model in a rehearsal.
        edit_seconds: the fold alone.
        seconds: everything.
        files: what was written, by what it is; empty in a rehearsal, when the receipt fails, or
            when the edit is refused.
    """

    model: str
    tower: str
    projector: Projector
    forget: Embeddings
    keep: Embeddings
    keep_from: str
    pictures: Pictures | None
    comparison: Comparison | None
    curve: list[CurvePoint]
    judged: Judgement
    verdict: Verdict
    edit_seconds: float
    seconds: float
    files: dict[str, Path]

    @property
    def undo_command(self) -> str | None:
        """The command line that takes the edit back; None when nothing was written."""
        if not self.files:
            return None
        paths = [str(self.files[what]) for what in ("checkpoint", "undo")]
        return shlex.join(["clipproj", "undo", *paths])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, as `--json` prints it."""
        history = self.projector.provenance
        measured = self.comparison and evaluate.as_dict(self.comparison, self.curve)
        return {
            "model": self.model,
            "tower": self.tower,
            "forget": list(self.forget.names),
            "keep": {"from": self.keep_from, "names": list(self.keep.names)},
            "method": history.get("method"),
            "parameters": history.get("parameters"),
            "rank": self.projector.rank,
            "strength": round(float(self.projector.strength), 6),
            "projector": self.projector.content_hash(),
            "pictures": self.pictures
            and {"count": len(self.pictures), "skipped": self.pictures.skipped},
            "scores": measured,
            "texts": evaluate.as_dict(self.judged.texts, every=False),
            "refused": self.judged.refused,
            "measured": gate.as_dict(self.judged),
            "advice": list(gate.advice(self.judged)),
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


def erase(request: Request, progress: Progress | None = None) -> Outcome:
    """Erase, measure before and after, verify, and write everything or nothing.

    Nothing where the edit costs the other classes more than `request.limits`, or leaves more of the
    forgotten ones: the outcome says so.

    Raises:
        ValueError: for names that are unknown, repeated, or on both lists, options out of range,
            pictures that cannot be read, a head that cannot be edited, a projector of another
            model or width, an output folder that holds something else.
        OSError: when the output cannot be written; it is then as it was.
        RuntimeError: when the model cannot be loaded. ImportError: for missing packages.
    """
    started = time.perf_counter()
    say = progress or (lambda *_: None)
    check(request)
    saved = None if request.projector is None else _scaled(load(request.projector), request)
    pictures = _pictures(request)
    names = resolve(request, saved, pictures)
    say("model", 0, 1)
    loaded = load_model(request.model, request.pretrained, request.device)
    say("model", 1, 1)
    output = None
    if request.out is not None:
        written = [*_files(loaded).values(), *loaded.files]
        output = Output(request.out, written, loaded.checkpoint, loaded.weights)
        output.need(size(loaded.model.state_dict()))

    fold = partial(edit, loaded.model, tower=request.tower, force=request.force)
    _check_rank(request, len(names.forms), find_heads(loaded.model)[request.tower].width)
    earlier = log.records(loaded.model)
    names = without_earlier(names, earlier)
    if saved is not None:
        fold(saved).undo()  # a rehearsal: refuse now, not after all the texts
    forget, keep, classes, gone, keep_from = _embed(request, loaded, names, pictures, say)
    closed = keep_from != "generic"
    general, pictured = None, set(pictures.classes if pictures else ()).difference(gone.names)
    if closed and len(pictured) < FEW_PICTURED:
        general = _general(request, loaded, forget, say)
    if saved is None:
        projector = _build(request, forget, keep, closed)
        fold(projector).undo()  # nor after an hour of pictures
    else:
        projector = saved

    before = pictures and Samples.of_pictures(
        picture_features(loaded, pictures, "pictures before", say), pictures, classes
    )
    handle = fold(projector)
    comparison, curve = None, []
    if before is not None:
        if request.tower == "image":
            rows = picture_features(loaded, pictures, "pictures after", say)
            after = replace(before, features=rows)
            if set(gone.names).intersection(pictures.classes):
                curve = evaluate.strength_curve(before, gone, handle.projector)
        else:
            edited = class_texts(
                loaded, classes.names, classes.templates, "texts after", say, request.truncate
            )
            after = replace(before, texts=edited.tensor)
        comparison = evaluate.compare(before, after, gone)
    judged = judge(
        handle.projector,
        forget,
        keep,
        request.limits,
        closed=closed,
        pictures=comparison,
        general=general,
        spent=sum(one.get("loss", 0) for one in earlier),
    )
    handle.record["loss"] = max(0.0, judged.price.loss - judged.price.spent)
    projector.provenance |= {"measured": gate.as_dict(judged)}  # of this strength, on this model
    outcome = Outcome(
        model=loaded.name,
        tower=request.tower,
        projector=projector,
        forget=forget,
        keep=keep,
        keep_from=keep_from,
        pictures=pictures,
        comparison=comparison,
        curve=curve,
        judged=judged,
        verdict=verify(loaded.model, handle.receipt),
        edit_seconds=_fold_seconds(loaded, handle),
        seconds=time.perf_counter() - started,
        files={},
    )
    if output is not None and outcome.verdict and not judged.refused:
        say("files", 0, 1)
        outcome = _write(outcome, output, loaded, handle, classes)
        say("files", 1, 1)
    return replace(outcome, seconds=time.perf_counter() - started)


def _check_rank(request: Request, names: int, dim: int | None) -> None:
    """ValueError, before any text is embedded, for more names than the head has dimensions."""
    if request.projector is None and request.rank is None and dim is not None and names >= dim:
        raise Refusal(
            request.command,
            "names",
            f"must be fewer than the {dim} dimensions of the model's "
            f"features, which a direction each would use up, got {names}; give rank, or fewer",
        )


def _files(loaded: Loaded) -> dict[str, str]:
    """`FILES`, with the name that this model's weights have."""
    return FILES | {"checkpoint": loaded.weights}


def _pictures(request: Request) -> Pictures | None:
    if request.images is not None:
        return load_pictures(request.images)
    if request.model is not None:
        return None
    from clipproj import demo

    return load_pictures(demo.pictures_dir())


def class_texts(
    loaded: Loaded,
    names: Sequence[str],
    templates: Sequence[str] | None,
    stage: str,
    say: Progress,
    truncate: bool = False,
) -> Embeddings:
    """`embed_classes`, saying how far it is."""
    return embed_classes(
        loaded.model,
        loaded.tokenizer,
        names,
        templates,
        model_name=loaded.name,
        truncate=truncate,
        progress=lambda done, total: say(stage, done, total),
    )


def _embed(
    request: Request, loaded: Loaded, names: Names, pictures: Pictures | None, say: Progress
) -> tuple[Embeddings, Embeddings, Embeddings, Embeddings, str]:
    """Texts to forget, to keep, that compete for the pictures, and of `names.forget`; where the
    kept ones are from."""
    classes = names.forget if pictures is None else pictures.classes
    if request.keep:  # pictures are told from all that is kept, whether it has a folder or not
        classes = tuple(dict.fromkeys([*classes, *names.keep]))
    everything = dict.fromkeys([*classes, *names.forms, *names.forget, *(names.keep or ())])
    # a thousand generic names with 80 templates each are a wait; both lists get the same few
    few = simple_templates() if names.keep is None else None
    templates = request.templates or few
    texts = class_texts(loaded, tuple(everything), templates, "texts", say, request.truncate)
    forget, gone = texts.select(names.forms), texts.select(names.forget)
    if names.keep is not None:
        keep_from = "given" if request.keep else "pictures"
        return forget, texts.select(names.keep), texts.select(classes), gone, keep_from
    keep = generic_keep(
        loaded.model,
        loaded.tokenizer,
        forget,
        templates=forget.templates,
        truncate=request.truncate,
        progress=lambda done, total: say("generic texts", done, total),
    )
    if again := on_both(names.earlier, keep.names):
        keep = keep.drop(again)
    return forget, keep, texts.select(classes), gone, "generic"


def _general(request: Request, loaded: Loaded, forget: Embeddings, say: Progress) -> Embeddings:
    """The generic names, for what the model knows beside its list."""
    return generic_keep(
        loaded.model,
        loaded.tokenizer,
        forget,
        templates=GENERAL_PROMPTS,
        truncate=True,  # they are only measured on
        progress=lambda done, total: say("general texts", done, total),
    )


def _build(request: Request, forget: Embeddings, keep: Embeddings, closed: bool) -> Projector:
    return defaults.make(
        forget,
        keep,
        request.method,
        contrast=request.contrast,
        rank=request.rank,
        forget_weight=request.forget_weight,
        keep_weight=request.keep_weight,
        strength=request.strength,
        closed=closed,
        side=request.tower,
    )


def _scaled(projector: Projector, request: Request) -> Projector:
    if request.strength is None:
        return projector
    return defaults.scaled(request.command, projector, request.strength)


def picture_features(loaded: Loaded, pictures: Pictures, stage: str, say: Progress) -> Tensor:
    """`image_features`, saying how far it is."""
    return image_features(
        loaded.model,
        loaded.preprocess,
        pictures,
        progress=lambda done, total: say(stage, done, total),
    )


def _fold_seconds(loaded: Loaded, handle: Edit) -> float:
    """The fold alone, on a copy of the head, warm: without checks, hashes and the receipt."""
    head = find_heads(loaded.model)[handle.tower]
    weight = head_tensors(loaded.model, head)[0].detach().clone()
    factors = handle.projector.factors(weight.dtype) | {"offset": None}
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


def _write(
    outcome: Outcome, output: Output, loaded: Loaded, handle: Edit, classes: Embeddings
) -> Outcome:
    """All files, with the verdict on the checkpoint as it is on the disk; none if that fails."""
    with output.staged() as folder:
        file = save_model(loaded, folder)
        verdict = verify(read_state(file), handle.receipt)
        outcome = replace(outcome, verdict=verdict)
        if not verdict:
            return outcome
        named = _files(loaded)
        outcome = replace(outcome, files={k: output.folder / v for k, v in named.items()})
        outcome.projector.save(folder / FILES["projector"])
        handle.save_undo(folder / FILES["undo"])
        handle.receipt.save(folder / FILES["receipt"])
        report.write_report(
            folder / FILES["report"],
            comparison=outcome.comparison,
            curve=outcome.curve,
            pictures=outcome.pictures,
            classes=classes,
            projector=outcome.projector,
            verdict=verdict,
            receipt=handle.receipt,
            edit_seconds=outcome.edit_seconds,
            files={f"edited model, as {loaded.library} loads it": loaded.weights} | ABOUT,
            undo_command=outcome.undo_command,
            texts=outcome.judged.texts,
            alarms=gate.alarms(outcome.judged),
            notes=gate.notes(outcome.judged),
        )
        numbers = json.dumps(outcome.as_dict(), indent=2)
        (folder / FILES["numbers"]).write_text(numbers, encoding="utf-8")
        output.publish(folder)
    return outcome
