"""What is asked for: which names to forget, by which method, in which model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipproj.audit.gate import Limits
from clipproj.methods.registry import Method, check_needs, check_options, method
from clipproj.models.words import name_fault, on_both, repeated
from clipproj.projector import TOWERS
from clipproj.refusal import Refusal

OF_A_MODEL = frozenset({"embed", "empty", "prompts"})  # of `NEEDS`, what a model is enough for


@dataclass(frozen=True)
class Recipe:
    """What to forget, by which method, in which model, and where to.

    Attributes:
        names: classes to forget; with `projector` what it forgets, needed where its file does not
            tell.
        keep: names to keep; empty: the other classes of the images, else names in general.
        templates: prompts with one `{}`; empty: OpenAI's 80, or a single one with names in general.
        truncate: cut prompts that the model would not read to their end; else an error.
        plurals, synonyms: forget these forms of the names as well.
        method: of `methods.registry.METHODS`; None: nullspace. options: its own, by name.
        strength: None: the method's own. Above 1 for one direction alone.
        projector: a saved projector to apply, instead of making one from the names.
        tower: the tower whose head is edited.
        fold: the folded form is what counts: beyond its limits the recipe is refused, whatever the
            one-sided form does.
        limits: what the edit may cost and leave; beyond them nothing is written.
        force: apply a projector that was made for another model.
        model, pretrained: as `checkpoint.load_model`; no model is the embedded one.
        images: folder of class folders; None: the embedded model's own images, else none.
        device: where the model is loaded.
        out: output folder; None: a rehearsal that writes nothing.
        command: whose it is, for errors.

        Recipe(["cat"], method="rotate", options={"angle": 90.0})
    """

    names: Sequence[str] = ()
    keep: Sequence[str] = ()
    templates: Sequence[str] = ()
    truncate: bool = False
    plurals: bool = False
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    strength: float | None = None
    projector: Path | None = None
    tower: str = "image"
    fold: bool = False
    limits: Limits = field(default_factory=Limits)
    force: bool = False
    model: str | None = None
    pretrained: str | None = None
    images: Path | None = None
    device: str = "cpu"
    out: Path | None = None
    command: str = "erase"

    def chosen(self) -> tuple[Method, dict[str, Any]]:
        """The method and its checked options. Refusal for one that it does not have."""
        one = method(self.command, self.method)
        return one, check_options(self.command, one, self.options)


def check(recipe: Recipe, have: Iterable[str] = OF_A_MODEL) -> None:
    """Refusal of what is wrong whatever the model and the images.

    Args:
        have: what a method may need that is at hand, of `registry.NEEDS`.
    """
    op = recipe.command
    if recipe.tower not in TOWERS:
        raise Refusal(op, "tower", f"must be {' or '.join(TOWERS)}, got {recipe.tower!r}")
    if recipe.projector is not None:
        making = {**recipe.options, "method": recipe.method, "plurals": recipe.plurals or None,
                  "synonyms": recipe.synonyms or None}  # fmt: skip
        for option, value in making.items():
            if value is not None:
                why = "must be left out with a saved projector, which is applied as it is"
                raise Refusal(op, option, f"{why}, got {value!r}")
    else:
        check_needs(op, *recipe.chosen(), set(have))
        if not recipe.names:
            raise Refusal(op, "names", "must hold at least one class to forget, got none")
    words = [word for given in recipe.synonyms.values() for word in given]
    for argument, given in (("names", recipe.names), ("keep", recipe.keep), ("synonyms", words)):
        for name in given:
            if fault := name_fault(name):
                raise Refusal(op, argument, f"{fault}, got {name!r}")
    for argument, given in (("names", recipe.names), ("keep", recipe.keep)):
        if pair := repeated(given):
            raise Refusal(op, argument, f"must be distinct, got {pair[0]!r} and {pair[1]!r}")
    check_apart(op, recipe.names, recipe.keep)
    try:
        torch.empty(0, dtype=torch.float32, device=recipe.device)
    except (RuntimeError, AssertionError):  # the latter where torch is built without CUDA
        why = f"must be one that torch has here, such as cpu, got {recipe.device!r}"
        raise Refusal(op, "device", why) from None


def check_rank(recipe: Recipe, names: int, dim: int | None) -> None:
    """Refusal, before any text is embedded, of more names than the head has dimensions."""
    made = recipe.projector is None and recipe.options.get("rank") is None
    help = "give rank, or fewer" if recipe.chosen()[0].option("rank") else "give fewer"
    if made and dim is not None and names >= dim:
        raise Refusal(
            recipe.command,
            "names",
            f"must be fewer than the {dim} dimensions of the model's "
            f"features, which a direction each would use up, got {names}; {help}",
        )


def check_apart(op: str, forget: Sequence[str], keep: Sequence[str]) -> None:
    """Refusal of a name that is on both lists, in any spelling."""
    if both := on_both(forget, keep):
        raise Refusal(op, "keep", f"must not hold what is forgotten, got {both} in both")
