"""Methods side by side: numbers known by construction, halves kept apart, results kept."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj import Embeddings, Projector, nullspace
from clipproj.audit import Samples
from clipproj.audit.cache import Cache
from clipproj.compare import leaderboard, trial, words
from clipproj.compare.comparison import BASE, BASE_IN_HALVES, known_classes, run
from clipproj.compare.method import ComparedMethod, Task
from clipproj.compare.methods import chosen, settings
from clipproj.compare.trial import TrialData, halves
from clipproj.refusal import Refusal

NAMES = ("ant", "bee", "cat", "dog", "emu", "fox")


def samples(per_class: int = 10, noise: float = 0.05, seed: int = 0) -> Samples:
    g = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(6, 24, generator=g) + 0.6, dim=1)
    labels = torch.arange(6).repeat_interleave(per_class)
    features = 3 * (rows[labels] + noise * torch.randn(len(labels), 24, generator=g))
    return Samples(features, labels, Embeddings(rows, NAMES, ("a {}",), "made up"))


def plain(task: Task) -> Projector:
    return nullspace(task.forget, task.keep, "hull")


@dataclass
class Table:
    """Sends every image it was fitted on to its class text, every other to the class's."""

    fit: Samples
    forget: Embeddings
    side: str = "image"
    rank: int = 24

    def __call__(self, rows: Tensor) -> Tensor:
        seen = (rows[:, None] == self.fit.features[None]).all(-1)
        own = self.fit.classes.tensor[self.fit.labels[seen.int().argmax(1)]]
        return torch.where(seen.any(1)[:, None], own, self.forget.tensor)


def test_numbers_of_the_unedited_model_and_of_an_edit_are_those_of_the_audits() -> None:
    data = TrialData(samples())
    results = run(data, {"plain": ComparedMethod("p", plain)}, ["cat", "fox"])
    assert list(results) == [BASE, "plain"]
    base, trial = results[BASE]["cat"], results["plain"]["cat"]
    assert (base["forget"]["value"], base["forget"]["n"]) == (1.0, 10)
    assert base["cosine"]["value"] == pytest.approx(1)
    assert (base["rank"], base["distance"], base["area"]) == (0, 0.0, None)
    assert base["retrieval"]["value"] == base["precision"]["value"] == 1
    assert trial["forget"]["value"] == 0
    assert trial["distance"] == pytest.approx(1)
    assert trial["rank"] == 1
    edit = plain(Task(data.samples.classes.select(["cat"]), data.samples.classes.drop(["cat"])))
    after = data.samples.edited(edit)
    kept = data.samples.labels != 2
    assert trial["keep"]["value"] == float(after.correct()[kept].double().mean())
    cosine = F.cosine_similarity(data.samples.features, after.features)[kept].mean()
    assert trial["cosine"]["value"] == pytest.approx(float(cosine), abs=1e-6)
    assert trial["probe"]["value"] > 0.5  # the information stays
    json.dumps(results, allow_nan=False)


def test_a_method_that_learns_is_measured_on_images_it_has_not_seen() -> None:
    data = TrialData(samples())

    def memorise(task: Task) -> Table:
        assert len(task.fit) == 30
        return Table(task.fit, task.forget)

    learns = ComparedMethod("m", memorise, learns=True)
    trial = run(data, {"m": learns}, ["cat"])["m"]["cat"]
    assert trial["keep"]["value"] == 0  # measured on seen ones it would be 1
    assert trial["forget"]["value"] == 1
    half = halves(data.samples.labels)
    for label in range(6):
        assert torch.bincount(half[data.samples.labels == label]).tolist() == [5, 5]


def test_a_refusal_is_a_result_and_a_bug_is_an_error() -> None:
    def refuses(task: Task) -> Projector:
        why = "this one" if task.forget.names == ("cat",) else "that"
        raise Refusal("r", None, f"not {why}")

    def fails(task: Task) -> Projector:
        raise ValueError("r: a bug that looks like a refusal")

    def lacks(task: Task) -> Projector:
        raise ImportError("install that") from ModuleNotFoundError("No that", name="that")

    def misnamed(task: Task) -> Projector:
        from clipproj.audit import forgotten  # noqa: F401

    needs = ComparedMethod("needs", plain, needs=("empty",))
    methods = {"r": ComparedMethod("r", refuses), "n": needs, "l": ComparedMethod("l", lacks)}
    results = run(TrialData(samples()), methods, ["cat", "dog"])
    assert results["l"]["dog"] == {"refused": "install that"}
    assert results["r"]["cat"] == {"refused": "r: not this one"}
    assert "needs empty" in results["n"]["dog"]["refused"]
    table = leaderboard.Leaderboard.of(results, {BASE: "", "r": "r", "n": "n", "l": "l"})
    assert (table.rows[1].refused, table.rows[1].why) == (2, "r: not this one")
    assert math.isnan(table.rows[1].numbers["forget"])
    for make, error in ((fails, "ValueError: r: a bug"), (misnamed, "ImportError: cannot import")):
        with pytest.raises(RuntimeError, match=f"method 'f' on 'cat': {error}"):
            run(TrialData(samples()), {"f": ComparedMethod("f", make)}, ["cat"])
    with pytest.raises(ValueError, match="names of their own"):
        run(TrialData(samples()), {BASE: ComparedMethod("f", plain)}, ["cat"])
    with pytest.raises(ValueError, match="names must be among"):
        run(TrialData(samples()), {}, ["cta"])


def test_results_are_computed_once_and_anew_when_anything_changes(tmp_path: Path) -> None:
    calls = []

    def counted(task: Task) -> Projector:
        calls.append(task.forget.names)
        return plain(task)

    path, one = tmp_path / "j", {"c": ComparedMethod("c", counted)}
    first = run(TrialData(samples()), one, ["cat", "dog"], cache=Cache(path))
    assert len(calls) == 2
    again = run(TrialData(samples()), one, ["cat", "dog"], cache=Cache(path))
    assert again == first
    assert len(calls) == 2
    for data, methods, seed in (
        (TrialData(samples(seed=1)), one, 0),
        (TrialData(samples(), elsewhere={"x": samples(seed=2)}), one, 0),
        (TrialData(replace(samples(), scale=7.0)), one, 0),
        (TrialData(samples()), one, 1),
        (TrialData(samples()), {"c": replace(one["c"], code="changed")}, 0),
        (TrialData(samples()), {"c": replace(one["c"], about="other settings")}, 0),
    ):
        calls.clear()
        run(data, methods, ["cat"], cache=Cache(path), seed=seed)
        assert calls == [("cat",)]


def test_an_edit_of_the_texts_and_what_normalising_again_makes_of_it() -> None:
    data = TrialData(samples())

    class Shrinks:
        side, rank = "text", 24

        def __init__(self, task: Task, renormalize: bool) -> None:
            self.task, self.renormalize = task, renormalize

        def __call__(self, rows: Tensor) -> Tensor:
            return torch.where((rows @ self.task.forget.tensor.T) > 0.999, 0.01 * rows, rows)

    both = {
        str(again): ComparedMethod("s", lambda task, again=again: Shrinks(task, again))
        for again in (True, False)
    }
    results = run(data, both, ["cat"])
    assert results["True"]["cat"]["forget"]["value"] == 1  # the length was all that changed
    assert results["False"]["cat"]["forget"]["value"] == 0
    assert results["False"]["cat"]["cosine"]["value"] == pytest.approx(1)
    learnt = run(data, {"s": replace(both["False"], learns=True)}, ["cat"])["s"]["cat"]
    assert learnt["forget"] == results["False"]["cat"]["forget"]


def test_an_edit_that_works_in_place_harms_no_other() -> None:
    data = TrialData(samples())

    def turned(rows: Tensor) -> Tensor:
        return rows.mul_(-1)

    results = run(data, {"in place": ComparedMethod("t", lambda task: turned)}, ["cat", "dog"])
    again = run(data, {}, ["cat", "dog"])
    assert results["in place"]["cat"]["cosine"]["value"] == pytest.approx(-1)
    assert results["in place"]["dog"]["cosine"]["value"] == pytest.approx(-1)
    for name in ("cat", "dog"):
        one, other = again[BASE][name], results[BASE][name]
        assert {k: v for k, v in one.items() if k != "seconds"} == {
            k: v for k, v in other.items() if k != "seconds"
        }


def test_what_learns_is_held_against_halves_and_probed_in_each_apart() -> None:
    data = TrialData(samples(noise=0.3))

    def mirrored(task: Task) -> Projector:
        sign = 1.0 if float(task.fit.features[0, 0]) < 0 else -1.0  # another space for each half

        class Mirror:
            side, rank = "image", 24

            def __call__(self, rows: Tensor) -> Tensor:
                return sign * rows

        return Mirror()

    results = run(data, {"m": ComparedMethod("m", mirrored, learns=True)}, ["cat"])
    assert list(results) == [BASE, BASE_IN_HALVES, "m"]
    halved = results[BASE_IN_HALVES]["cat"]
    assert results["m"]["cat"]["probe"] == halved["probe"]  # a sign is nothing to a probe
    assert halved["forget"] == results[BASE]["cat"]["forget"]


def test_other_data_sets_are_measured_with_their_own_texts() -> None:
    other = samples(seed=3)
    data = TrialData(samples(), elsewhere={"other": other})
    trial = run(data, {"p": ComparedMethod("p", plain)}, ["cat"])["p"]["cat"]
    edit = plain(Task(data.samples.classes.select(["cat"]), data.samples.classes.drop(["cat"])))
    want = float(other.edited(edit).correct().double().mean())
    assert trial["elsewhere"]["other"]["value"] == want


def test_the_strongest_prompt_is_found() -> None:
    one = samples()
    texts = one.classes.tensor
    prompts = Embeddings(texts[[2, 0, 1]], ("p", "q", "r"), ("{}",), "made up")
    data = TrialData(one, prompts={"cat": prompts})
    shifted = replace(one, texts=texts.clone().index_copy(0, torch.tensor([2]), -texts[2:3]))
    results = run(replace(data, samples=shifted), {}, ["cat"])
    assert results[BASE]["cat"]["forget"]["value"] == 0
    assert results[BASE]["cat"]["prompt"]["value"] == 1


def test_classes_the_model_does_not_know_are_left_out() -> None:
    one = samples(per_class=9)
    labels = one.labels.clone()
    labels[one.labels == 5] = 4  # fox has no image, emu's are half foxes
    mixed = Samples(one.features, labels, one.classes)
    assert known_classes(mixed) == NAMES[:5]
    assert known_classes(mixed, 2) == ("ant", "cat")
    wrong = Samples(one.features.roll(9, 0), one.labels, one.classes)
    with pytest.raises(ValueError, match="got none"):
        known_classes(wrong)


def test_a_leaderboard_is_means_over_classes() -> None:
    results = run(TrialData(samples()), {"p": ComparedMethod("p", plain)}, ["ant", "bee", "cat"])
    table = leaderboard.Leaderboard.of(results, {BASE: "as it is", "p": "plain"})
    row = table.rows[1]
    values = [results["p"][name]["keep"]["value"] for name in ("ant", "bee", "cat")]
    before = [results[BASE][name]["keep"]["value"] for name in ("ant", "bee", "cat")]
    assert row.numbers["keep"] == pytest.approx(sum(values) / 3)
    assert row.numbers["keep_lost"] == pytest.approx((sum(before) - sum(values)) / 3)
    assert row.numbers["keep"].n == 3
    one_refused = {"q": {n: {"refused": "no"} if n == "bee" else results["p"][n] for n in
                         ("ant", "bee", "cat")}}  # fmt: skip
    part = leaderboard.Leaderboard.of(results | one_refused, {BASE: "", "p": "", "q": ""})
    assert words.main(part).rows[-1][0] == "q (2 of 3)"
    assert " q " not in words.pages(part)[0].lead
    keys = [page.key for page in words.pages(table)]
    assert keys == ["price", "classes", "methods"]
    main = words.main(table)
    assert [r[0] for r in main.rows] == [BASE, "p"]
    assert "n/a" not in words.pages(table)[0].lead


def test_every_method_runs_or_says_what_it_needs() -> None:
    one = samples()
    g = torch.Generator().manual_seed(5)
    prompts = Embeddings(
        F.normalize(one.classes.tensor[2] + 0.1 * torch.randn(30, 24, generator=g), dim=1),
        tuple(f"p{i}" for i in range(30)), ("{}",), "made up",
    )  # fmt: skip
    empty = F.normalize(torch.randn(24, generator=g), dim=0)
    results = run(TrialData(one, None, empty, {"cat": prompts}), settings(), ["cat"])
    for name, trials in results.items():
        assert "refused" not in trials["cat"], (name, trials["cat"])
        json.dumps(trials, allow_nan=False)
    assert results["nullspace, hull"]["cat"]["forget"]["value"] == 0
    bare = run(TrialData(one), settings(), ["cat"])
    assert "only a model has" in bare["redirect, empty"]["cat"]["refused"]
    assert "only a model has" in bare["coreset, hull"]["cat"]["refused"]


def test_methods_of_a_file_join(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        '"""Mine."""\nfrom clipproj import nullspace\n'
        'def make(task):\n    """The plain one."""\n'
        '    return nullspace(task.forget, contrast="none")\nMETHODS = {"mine": make}\n'
    )
    found = chosen(["mine", "ccup"], file)
    assert list(found) == ["mine", "ccup"]
    assert found["mine"].about == "The plain one."
    assert found["mine"].learns
    first = found["mine"].code
    file.write_text(file.read_text() + "# changed\n")
    assert chosen(["mine"], file)["mine"].code != first
    for bad, text in (
        (("x",), "method must be known, got 'x'"),
        ((None, tmp_path / "none.py"), "also must be Python"),
    ):
        with pytest.raises(ValueError, match=text):
            chosen(*bad)
    file.write_text("METHODS = {}\n")
    with pytest.raises(ValueError, match="must define METHODS"):
        chosen(None, file)
    file.write_text('METHODS = {"ccup": print}\n')
    with pytest.raises(ValueError, match="names of its own, got 'ccup'"):
        chosen(None, file)


def test_the_edit_s_distance_is_that_of_its_matrix() -> None:
    p = Projector(torch.eye(2, 24), strength=0.5)
    assert trial._distance(p, 24) == pytest.approx(0.5 * math.sqrt(2))
    shifted = Projector(torch.eye(2, 24), torch.eye(2, 24), torch.ones(2))
    assert trial._distance(shifted, 24) == pytest.approx(math.sqrt(2))


def test_a_method_of_the_registry_is_compared_at_any_options() -> None:
    (one,) = chosen(["rotate, angle=90, strength=0.5"]).values()
    classes = samples().classes
    made = one.make(Task(classes.select(["cat"]), classes.drop(["cat"])))
    assert made.provenance["parameters"]["angle"] == 90
    assert float(made.strength) == 0.5
    assert one.about.endswith("; angle=90, strength=0.5")  # which keeps its results apart
    (plain,) = chosen(["nullspace"]).values()
    assert plain.about != settings()["nullspace, hull"].about
    assert chosen(["leace"])["leace"].learns
    assert chosen(["selective, domains=sketch"]).popitem()[1].needs == ("embed",)
    for name, says in (
        ("rotate, angle=0", "compare: angle must be a finite number above 0"),
        ("rotate, rank=1", "compare: rank must be left out with method rotate"),
        ("rotate, 90", "compare: method must be known"),
        ("rotat", "there is .*'rotate'"),
    ):
        with pytest.raises(Refusal, match=says):
            chosen([name])
