"""The projector of a recipe: what is made where nothing else is asked for, and by any method."""

from __future__ import annotations

import pytest
import torch
from embeddings import cone, texts

from clipproj import Embeddings, Projector, nullspace
from clipproj.audit import compare, stand_ins
from clipproj.methods.defaults import STRENGTHS
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
    side: str = "image",
    one_sided: bool = False,
    **options: object,
) -> Projector | None:
    one = method("make", name)
    options = check_options("make", one, options)
    task = Task(forget, keep, closed=closed, side=side)
    return made_by("make", task, one, options, strength, one_sided=one_sided)


def lists(m: int, seed: int = 2) -> Embeddings:
    rows = cone(m, seed=seed).float()
    return Embeddings(rows, tuple(f"kept {i}" for i in range(m)), ("a {}",), "model")


def contrast(made: Projector) -> str:
    return made.provenance["parameters"]["contrast"]


def given(made: Projector, *names: str) -> list[object]:
    """The projector's parameters of these names."""
    return [made.provenance["parameters"].get(name) for name in names]


def test_a_closed_list_gets_a_hull_in_the_metric_of_what_is_kept_one_sided_and_folded():
    for m, keep in ((1, lists(9)), (3, lists(17)), (10, lists(12)), (1, lists(1))):
        forget = texts(m)
        folded, halves = (make(forget, keep, closed=True, one_sided=one) for one in (False, True))
        assert (folded.one_sided, halves.one_sided) == (False, True)
        assert given(folded, "contrast", "keep_weight") == ["hull", 10.0]
        assert given(halves, "contrast", "keep_weight", "dtype") == ["hull", 3.0, "float32"]
        assert float(folded.strength) == float(halves.strength) == 1
        samples = stand_ins(forget, keep)
        for one in (folded, halves) if len(keep) > 1 else ():
            edited = samples.edited(one)
            assert compare(samples, edited, forget.names, probe=False).after.found <= 0.01
        assert torch.equal(halves.forget, folded.forget)


def test_names_in_general_give_neighbours_at_the_least_strength_that_suffices():
    one, two, keep = texts(1), texts(2), lists(150)
    halves = make(two, keep, one_sided=True)
    assert given(halves, "contrast", "keep_weight") == ["neighbours", 0.3]
    assert given(halves, "threshold") == [0.0]
    samples = stand_ins(two, keep)
    found = {
        strength: compare(
            samples, samples.edited(halves.scaled(strength)), two.names, probe=False
        ).after.found
        for strength in STRENGTHS
    }
    assert STRENGTHS[0] > 1  # a list that is served is shorter than a lexicon
    most = max(0.01, found[STRENGTHS[-1]])
    least = next(s for s in STRENGTHS if found[s] <= most)
    assert float(halves.strength) == pytest.approx(least)
    assert float(make(two, keep).strength) == 1  # reflections of several directions cross
    assert float(make(one, keep).strength) > 1
    assert given(make(one, keep), "contrast", "keep_weight") == ["neighbours", None]
    assert make(one, keep).symmetric


def test_what_has_no_one_sided_form_says_so():
    forget, keep = texts(2), lists(9)
    for options in ({"contrast": "span"}, {"contrast": "mean"}, {"rank": 1}, {"side": "text"}):
        assert make(forget, keep, closed=True, one_sided=True, **options) is None
        for asked in ({"threshold": "0.1"}, {"dtype": "bfloat16"}):
            with pytest.raises(
                ValueError, match="must be left out where the edit has no one-sided"
            ):
                make(forget, keep, closed=True, **options, **asked)
    assert make(forget, keep, "ccup", one_sided=True) is None
    many = Embeddings(cone(300, 400).float(), tuple(map(str, range(300))), ("a {}",), "model")
    with pytest.warns(UserWarning, match="300 names are more than 256: folded alone"):
        assert make(many, lists(3, 400), one_sided=True, closed=True) is None
    made = make(forget, keep, closed=True, one_sided=True, dtype="bfloat16", threshold="-0.1")
    assert given(made, "dtype", "threshold") == ["bfloat16", "-0.1"]


def test_of_texts_a_short_closed_list_gets_a_span_where_there_is_one_else_a_hull():
    forget = texts(1)
    made = make(forget, lists(8), closed=True, side="text")
    assert (contrast(made), float(made.strength), made.symmetric) == ("span", 1, True)
    assert contrast(make(forget, lists(17), closed=True, side="text")) == "hull"
    keep = lists(3)  # the forgotten text inside the span
    inside = torch.nn.functional.normalize(keep.tensor[:1] - 0.2 * keep.tensor[1:2])
    inside = Embeddings(inside, ("in",), ("a {}",), "m")
    assert contrast(make(inside, keep, closed=True, side="text")) == "hull"
    assert contrast(make(forget, lists(40), side="text")) == "mean"


def test_strength_above_one_is_for_one_direction_unless_one_sided():
    one, two, keep = texts(1), texts(2), lists(40)
    mean = {"contrast": "mean"}
    assert float(make(one, keep, **mean).strength) == 1.5
    assert float(make(two, keep, **mean).strength) == 1
    assert float(make(two, keep, rank=1, **mean).strength) == 1.5
    assert float(make(two, keep, strength=0.5).strength) == 0.5
    assert float(make(one, keep, strength=2.0).strength) == 2
    assert float(make(two, keep, strength=2.0, one_sided=True).strength) == 2
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
