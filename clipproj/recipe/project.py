"""From texts to a projector: any method of the registry, at the options and strength asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, overload

from clipproj.audit.evaluate import compare
from clipproj.audit.gate import Limits
from clipproj.audit.standins import stand_ins
from clipproj.methods.registry import Method, Task
from clipproj.projector import Projector, load
from clipproj.recipe.record import Recipe
from clipproj.recipe.texts import Embedder, Texts
from clipproj.refusal import Refusal


@dataclass(frozen=True, eq=False)
class Forms:
    """An edit in the forms that it is applied in.

    Attributes:
        folded: linear, what a weight can hold.
        one_sided: for rows on the fly, where the method has such a form; else None.
    """

    folded: Projector
    one_sided: Projector | None = None

    @classmethod
    def of(cls, projector: Projector) -> Forms:
        """Those of one projector."""
        return cls(projector.linear(), projector if projector.one_sided else None)

    @property
    def on_the_fly(self) -> Projector:
        """What rows are edited by: the one-sided form where there is one."""
        return self.one_sided or self.folded


def project(recipe: Recipe, texts: Texts, embedder: Embedder | None) -> Forms:
    """The projector of these texts, in all its forms.

    Args:
        embedder: the model, for methods that need more of it than the texts; None: not at hand.

    Raises Refusal as `make`, and of a method that needs what is not at hand.
    """
    method, options = recipe.chosen()
    forget, have = texts.forget, {}
    needs = method.needed(options) if embedder is not None else ()
    if "prompts" in needs:
        have["prompts"] = embedder.prompts(forget.names, forget.templates)
    if "empty" in needs:
        have["empty"] = embedder.empty()
    if "embed" in needs:
        have["embed"] = embedder.for_method
    task = Task(forget, texts.keep, closed=texts.closed, side=recipe.tower, **have)
    op, strength = recipe.command, recipe.strength
    one_sided = None
    if method.one_sided is not None:
        one_sided = make(op, task, method, options, strength, one_sided=True)
    return Forms(make(op, task, method, options, strength), one_sided)


@overload
def make(
    op: str,
    task: Task,
    method: Method,
    options: Mapping[str, Any] | None = None,
    strength: float | None = None,
) -> Projector: ...
@overload
def make(
    op: str,
    task: Task,
    method: Method,
    options: Mapping[str, Any] | None = None,
    strength: float | None = None,
    *,
    one_sided: bool,
) -> Projector | None: ...
def make(
    op: str,
    task: Task,
    method: Method,
    options: Mapping[str, Any] | None = None,
    strength: float | None = None,
    *,
    one_sided: bool = False,
) -> Projector | None:
    """What the method makes of the task.

    Of several that it offers, the first that leaves no more of the forgotten names than `Limits`
    allow, or than the last does. That is counted on mixtures of texts.

    Args:
        strength: None for the method's own.
        one_sided: the form for rows on the fly; None where the method has none of these options.

    Raises:
        TypeError, ValueError: as the method does; also for a strength above 1 for several
            directions.
    """
    form = method.one_sided if one_sided else method.make
    made = form(task, **(options or {})) if form is not None else None
    if made is None:
        return None
    if isinstance(made, tuple):
        made = made[0] if len(made) == 1 else _first_enough(task, made)
    return made if strength is None else scaled(op, made, strength)


def _first_enough(task: Task, made: tuple[Projector, ...]) -> Projector:
    samples = stand_ins(task.forget, task.keep)

    def found(one: Projector) -> float:
        edited = samples.edited(one)
        return compare(samples, edited, task.forget.names, probe=False).after.found

    *firsts, last = made
    most = max(Limits().max_found, found(last))
    return next((one for one in firsts if found(one) <= most), last)


def saved(recipe: Recipe) -> Projector | None:
    """The recipe's saved projector, at the strength asked for; None where one is to be made.

    Raises as `load` and `scaled`.
    """
    if recipe.projector is None:
        return None
    projector = load(recipe.projector)
    if recipe.strength is None:
        return projector
    return scaled(recipe.command, projector, recipe.strength)


def scaled(op: str, projector: Projector, strength: float) -> Projector:
    """At another strength. Refusal, in the name of `op`, above 1 for several directions."""
    if strength > 1 and projector.rank > 1 and not projector.one_sided:
        raise Refusal(
            op,
            "strength",
            f"must be at most 1 for the {projector.rank} directions of several names, where "
            f"reflections cross and ruin the rest, got {strength:g}",
        )
    return projector.scaled(strength)
