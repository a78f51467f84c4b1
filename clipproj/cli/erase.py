"""`clipproj erase` without a terminal: a recipe carried out, and all its files or none."""

from __future__ import annotations

import json
import time
from dataclasses import replace

from clipproj.checkpoints.checkpoint import Loaded, save_model
from clipproj.checkpoints.state import WEIGHTS, read_state, size
from clipproj.cli.output import PROJECTOR, Output
from clipproj.editing.verify import verify
from clipproj.recipe import Outcome, Progress, Recipe, forget, prepare, silent
from clipproj.report.erasure import write_report
from clipproj.report.sections import gate

FILES = {
    "checkpoint": WEIGHTS,
    "projector": PROJECTOR,
    "folded": "folded.safetensors",
    "undo": "undo.safetensors",
    "receipt": "receipt.safetensors",
    "report": "report.html",
    "numbers": "report.json",
}

# Not written where the folded form is beyond its limits.
OF_A_CHECKPOINT = ("checkpoint", "folded", "undo", "receipt")

ABOUT = {  # the report's words for the files beside it
    "projector, for features and other copies": FILES["projector"],
    "what is folded into the checkpoint": FILES["folded"],
    "the head as it was": FILES["undo"],
    "receipt, for clipproj verify": FILES["receipt"],
    "the numbers of this report": FILES["numbers"],
}


def erase(recipe: Recipe, say: Progress = silent) -> Outcome:
    """Forget, measure before and after, verify, and write everything or nothing.

    Nothing where the edit costs the other classes more than `recipe.limits`, or leaves more of the
    forgotten ones: the outcome says so. Where its folded form alone does, no checkpoint.

    Raises:
        ValueError: as `recipe.prepare` and `recipe.forget`; for an output folder that holds
            something else.
        OSError: when the output cannot be written; it is then as it was.
        RuntimeError, ImportError: as `recipe.prepare`.
    """
    ready = prepare(recipe, say)
    loaded, output = ready.loaded, None
    if recipe.out is not None:
        written = [*_files(loaded).values(), *loaded.files]
        output = Output(recipe.out, written, loaded.checkpoint, loaded.weights)
        output.need(size(loaded.model.state_dict()))
    outcome = forget(ready, say)
    if output is not None and outcome.verdict and not outcome.refused:
        say("files", 0, 1)
        outcome = _write(outcome, output, loaded)
        say("files", 1, 1)
    return replace(outcome, seconds=time.perf_counter() - ready.started)


def _files(loaded: Loaded) -> dict[str, str]:
    """`FILES`, with the name that this model's weights have."""
    return FILES | {"checkpoint": loaded.weights}


def _write(outcome: Outcome, output: Output, loaded: Loaded) -> Outcome:
    """All files, with the verdict on the checkpoint as it is on the disk; none if that fails.

    Of a folded form beyond its limits neither the checkpoint nor what belongs to it.
    """
    edit, folds = outcome.edit, not outcome.folded.judged.refused
    named, verdict = _files(loaded), outcome.verdict
    if outcome.one_sided is None:
        del named["folded"]  # it is the projector
    with output.staged() as folder:
        if folds:
            verdict = verify(read_state(save_model(loaded, folder)), edit.receipt)
            outcome = replace(outcome, verdict=verdict)
            if not verdict:
                return outcome
            edit.save_undo(folder / FILES["undo"])
            receipt = edit.receipt.with_certificate(outcome.folded.certificate)
            receipt.save(folder / FILES["receipt"])
            if "folded" in named:
                outcome.folded.projector.save(folder / FILES["folded"])
        else:
            named = {k: v for k, v in named.items() if k not in OF_A_CHECKPOINT}
        outcome = replace(outcome, files={k: output.folder / v for k, v in named.items()})
        outcome.projector.save(folder / FILES["projector"])
        checkpoint = {f"edited model, as {loaded.library} loads it": loaded.weights}
        about = {
            what: name for what, name in (checkpoint | ABOUT).items() if name in named.values()
        }
        write_report(
            folder / FILES["report"],
            comparison=outcome.comparison,
            curve=outcome.curve,
            images=outcome.images,
            classes=outcome.texts.classes,
            projector=outcome.projector,
            verdict=verdict,
            receipt=edit.receipt,
            edit_seconds=outcome.edit_seconds,
            files=about,
            undo_command=outcome.undo_command,
            texts=outcome.judged.texts,
            folded=outcome.one_sided and outcome.folded,
            alarms=(*gate.alarms(outcome.judged), *outcome.folded_alarms),
            notes=gate.notes(outcome.judged),
            certificate=outcome.certificate,
        )
        numbers = json.dumps(outcome.as_dict(), indent=2)
        (folder / FILES["numbers"]).write_text(numbers, encoding="utf-8")
        output.publish(folder)
    return outcome
