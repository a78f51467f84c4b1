"""The projector of a recipe: what is made where nothing else is asked for, and by any method."""

from __future__ import annotations

import pytest
import torch
from embeddings import cone, texts

from clipproj import Embeddings, Projector, nullspace
from clipproj.audit import compare, stand_ins
from clipproj.methods.registry import Method, Task, check_options, method
from clipproj.recipe import Embedder, Recipe, check
from clipproj.recipe import make as made_by
from clipproj.recipe.record import OF_A_MODEL
from clipproj.refusal import Refusal


def make(
    forget: Embeddings,
    keep: Embeddings,
    name: str | None = None,
    *,
    closed: bool = False,
    strength: float | None = None,
    **options: object,
) -> Projector:
    one = method("make", name)
    options = check_options("make", one, options)
    return made_by("make", Task(forget, keep, closed=closed), one, options, strength)


def lists(m: int, seed: int = 2) -> Embeddings:
    rows = cone(m, seed=seed).float()
    return Embeddings(rows, tuple(f"kept {i}" for i in range(m)), ("a {}",), "model")


def contrast(made: Projector) -> str:
    return made.provenance["parameters"]["contrast"]


def test_a_closed_list_gets_a_span_where_that_leaves_nothing_else_a_hull():
    forget = texts(1)
    for m, want in ((2, "span"), (8, "span"), (16, "hull")):
        keep = lists(m)
        made, samples = make(forget, keep, closed=True), stand_ins(forget, keep)
        assert contrast(made) == want
        assert contrast(make(forget, keep, contrast="auto", closed=True)) == want
        assert float(made.strength) == 1
        edited = samples.edited(made)
        assert compare(samples, edited, forget.names, probe=False).after.found <= 0.01
    assert contrast(make(forget, lists(17), closed=True)) == "hull"
    # the mixture nearest to a text is the only other one: both score alike, and rounding decides
    assert contrast(make(forget, lists(1), closed=True)) == "span"


def test_a_forgotten_text_inside_the_span_gets_a_hull():
    keep = lists(3)
    inside = Embeddings(
        torch.nn.functional.normalize(keep.tensor[:1] - 0.2 * keep.tensor[1:2]),
        ("in",),
        ("a {}",),
        "m",
    )
    assert contrast(make(inside, keep, closed=True)) == "hull"


def test_strength_above_one_is_for_one_direction():
    one, two, keep = texts(1), texts(2), lists(40)
    assert float(make(one, keep).strength) == 1.5
    assert float(make(two, keep).strength) == 1
    assert float(make(two, keep, rank=1).strength) == 1.5
    assert float(make(two, keep, strength=0.5).strength) == 0.5
    assert float(make(one, keep, strength=2.0).strength) == 2
    with pytest.raises(ValueError, match=r"at most 1 for the 2 directions .* got 1.5"):
        make(two, keep, strength=1.5)
    with pytest.warns(UserWarning, match="strength 1.5 above 1 with 2 directions"):
        nullspace(two, keep, "mean", strength=1.5)


def test_rows_for_every_dimension_are_refused_before_the_mixtures_are_sought(monkeypatch):
    from clipproj.methods import contrast as contrasts

    monkeypatch.setattr(contrasts, "nearest_mixture", lambda *a: pytest.fail("sought"))
    with pytest.raises(ValueError, match=r"fewer than the 32 dimensions .* got 32 rows; give rank"):
        nullspace(texts(32), lists(4), "hull")


def test_most_of_the_dimensions_is_worth_a_warning():
    with pytest.warns(UserWarning, match="17 directions are most of the 32 dimensions"):
        nullspace(texts(17), lists(4), "mean")


@pytest.mark.parametrize(
    ("flags", "given", "says"),
    [
        ({"rank": 1}, ["rank=2"], "op: rank must be given once, got 1 and '2'"),
        ({}, ["angle=90"], None),
        ({}, ["forget-weight=3"], None),  # as a flag is spelt
        ({}, ["contrast=hard"], "op: contrast must be none or span .* got 'hard'"),
        ({}, ["rank"], "op: option must be NAME=VALUE, got 'rank'"),
        ({}, ["rank=1", "rank=2"], "op: option must be given once for each, got 'rank' twice"),
    ],
)
def test_options_of_the_command_line(flags: dict, given: list[str], says: str | None) -> None:
    options = pytest.importorskip("clipproj.cli.options")
    if says is not None:
        with pytest.raises(Refusal, match=says):
            options.method_options("op", None, flags, given)
    else:  # not nullspace's: whose they are not is told with the others
        found = options.method_options("op", None, flags, given)
        with pytest.raises(Refusal, match="must be left out with method nullspace"):
            check_options("op", method("op", None), found)


def test_what_a_method_needs_is_looked_for_before_the_model() -> None:
    for name, have in (("leace", OF_A_MODEL), ("coreset", ()), ("selective", ())):
        with pytest.raises(Refusal, match=f"erase: method must do with .* got '{name}', which nee"):
            check(Recipe(["cat"], method=name), have)
    check(Recipe(["cat"], method="selective", options={"domains": "sketch"}))


def test_a_method_that_asks_for_too_many_prompts_is_refused() -> None:
    embedder = Embedder(None, more=10)
    with pytest.raises(Refusal, match="method must need at most 10 more prompts, got 12"):
        embedder.for_method(["a", "b"], ["{}"] * 6)


def test_the_first_that_forgets_is_taken_of_several() -> None:
    forget, keep = texts(1), lists(8)
    hull = nullspace(forget, keep, "hull")
    weak, strong = hull.scaled(0.1), hull.scaled(1.2)

    def made_of(*offered: Projector) -> Projector:
        several = Method("several", "", lambda task: offered)
        return made_by("op", Task(forget, keep), several)

    assert made_of(weak, strong, hull) is strong
    assert made_of(weak, hull) is hull
    assert made_of(hull, weak) is hull
