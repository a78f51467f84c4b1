"""The methods to compare with learn, stop and edit as their papers say, on small synthetic data."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clipproj import Embeddings
from clipproj.audit.samples import Samples
from clipproj.compare import comparison
from clipproj.methods.method import Task

FOLDER = Path(__file__).parents[2] / "benchmarks/methods"
spec = importlib.util.spec_from_file_location(
    "benchmark_methods", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
)
package = importlib.util.module_from_spec(spec)
sys.modules["benchmark_methods"] = package
spec.loader.exec_module(package)
METHODS = package.METHODS
features, jit, lip, pbu, tia = (
    importlib.import_module(f"benchmark_methods.{stem}")
    for stem in ("features", "jit", "lip", "pbu", "tia")
)
D, C, GONE = 24, 8, "class 3"
LEARNED = ["lip", "pbu", "pbu, synthetic", "jit", "jit, synthetic"]


def gap():
    """The direction that images share and texts lack."""
    return F.normalize(torch.randn(D, generator=torch.Generator().manual_seed(7)), dim=0)


def samples(seed):
    g = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(C, D, generator=g), dim=1)
    classes = Embeddings(texts, tuple(f"class {i}" for i in range(C)), ("a {}",), "model")
    labels = torch.arange(C).repeat_interleave(20)
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), D, generator=g) / D**0.5
    return Samples(9 * (texts[labels] + gap() + 0.7 * noise), labels, classes, scale=30.0)


def task(**changes):
    fit = samples(1)
    texts = fit.classes
    empty = F.normalize(torch.randn(D, generator=torch.Generator().manual_seed(5)), dim=0)
    usual = Task(texts.select([GONE]), texts.drop([GONE]), fit, fit.scale, empty)
    return replace(usual, **changes)


def problem(**changes):
    """What the image-side methods work on: the classes, and the rows of the class."""
    t = task(**changes)
    classes = features.Classes.of(t)
    return classes, features.to_learn("test", t, classes, synthetic=False)


def shares(edit, renormalize=True):
    """Accuracy on the class and on the others, before and after, on images not learned from."""
    before = samples(2)
    gone = before.of([GONE])
    return [
        float(hits[mask].double().mean())
        for mask in (gone, ~gone)
        for hits in (before.correct(), before.edited(edit).correct(renormalize))
    ]


@pytest.mark.parametrize("name", LEARNED)
def test_image_side_methods_forget_the_class_and_keep_the_others(name):
    edit = METHODS[name].make(task())
    assert (edit.side, edit.rank) == ("image", D)
    had, has, kept, keeps = shares(edit)
    assert had > 0.9
    assert has <= 0.4
    assert keeps >= kept - 0.15


@pytest.mark.parametrize("name", ["lip", "pbu", "jit"])
def test_image_side_methods_need_no_images(name):
    had, has, kept, keeps = shares(METHODS[name].make(task(fit=None)))
    assert has <= had - 0.5
    assert keeps >= kept - 0.1


@pytest.mark.parametrize("name", ["pbu", "jit"])
def test_images_without_the_class_are_an_error_and_not_replaced(name):
    others = samples(1)
    others = others.take(~others.of([GONE]))
    with pytest.raises(ValueError, match=f"{name}: task.fit must have images of what is forgott"):
        METHODS[name].make(task(fit=others))
    assert METHODS[f"{name}, synthetic"].make(task(fit=others)).rank == D


@pytest.mark.parametrize("name", ["lip", "pbu, synthetic", "jit", "tia"])
def test_the_seed_decides_and_nothing_else(name, monkeypatch):
    monkeypatch.setattr(tia, "STEPS", 100)
    monkeypatch.setattr(tia, "_TRIES", 2)
    torch.manual_seed(1)
    first = METHODS[name].make(task()).matrix
    torch.manual_seed(2)
    assert torch.equal(METHODS[name].make(task()).matrix, first)
    assert not torch.equal(METHODS[name].make(task(seed=1)).matrix, first)


def test_made_up_features_are_sure_and_start_at_the_mean_image():
    classes, rows = problem(fit=None)
    assert rows.shape == (64, D)
    assert classes.accuracy(rows) == 1
    p = classes.probabilities(rows)[:, 0]
    assert p.min() >= features.SURE
    assert (rows @ rows.T).mean() < 0.9  # each stops on its way: at the text they would be one
    t = task()
    near_images = features.synthesise(t, classes)
    assert (near_images @ gap()).mean() > (rows @ gap()).mean() + 0.1


def test_a_made_up_feature_that_cannot_be_sure_ends_at_the_text():
    t = task(fit=None)
    twin = F.normalize(t.forget.tensor + 1e-3 * t.keep.tensor[:1], dim=1)
    keep = replace(t.keep, tensor=torch.cat([twin, t.keep.tensor[1:]]))
    t = replace(t, keep=keep)
    classes = features.Classes.of(t)
    rows = features.synthesise(t, classes)
    assert classes.probabilities(rows)[:, 0].max() < 0.6
    torch.testing.assert_close(rows, t.forget.tensor.expand_as(rows), atol=1e-3, rtol=0)


def test_a_smoothing_step_pulls_answers_to_those_of_noisy_copies():
    classes, rows = problem(fit=None)
    xi = torch.randn(25, *rows.shape, generator=torch.Generator().manual_seed(3)) / D**0.5
    copies = classes.probabilities(rows + xi)  # they stay: that branch has no gradient

    def away(matrix):
        apart = (classes.probabilities(rows, matrix) - copies).norm(dim=-1)
        return (apart / xi.norm(dim=-1)).mean()

    matrix = torch.eye(D, requires_grad=True)
    level = lip.ratio(classes, rows, matrix, 1.0, torch.Generator().manual_seed(3))
    torch.testing.assert_close(level, away(matrix))
    (slope,) = torch.autograd.grad(level, matrix)
    torch.testing.assert_close(slope, torch.autograd.grad(away(matrix), matrix)[0])
    step = torch.eye(D) - 2.0 * slope
    assert away(step) < away(torch.eye(D))
    before, after = (classes.probabilities(rows, m)[:, 0].mean() for m in (torch.eye(D), step))
    assert after < before


def test_of_a_linear_map_the_ratio_knows_nothing_of_the_image():
    class Linear:
        def probabilities(self, rows, matrix):
            return rows @ matrix

    classes, rows = problem()
    matrix = torch.randn(D, D, requires_grad=True)

    def level(of, row):
        return lip.ratio(of, row, matrix, 0.5, torch.Generator().manual_seed(3))

    here, there = rows[:1], -rows[4:5]
    torch.testing.assert_close(level(Linear(), here), level(Linear(), there))
    assert (level(classes, here) - level(classes, there)).abs() > 1e-3


def test_lip_undoes_an_epoch_that_forgets_nothing_and_then_takes_more_noise(monkeypatch):
    monkeypatch.setattr(features.Classes, "accuracy", lambda *_: 1.0)
    epochs = []
    matrix = lip.make(task(progress=lambda done, _: epochs.append(done))).matrix
    assert epochs == list(range(1, len(lip.NOISE) + 1))
    assert torch.equal(matrix, torch.eye(D))


@pytest.mark.parametrize("method", [lip, jit, pbu], ids=["lip", "jit", "pbu"])
def test_training_stops_once_the_class_is_forgotten(method, monkeypatch):
    told = []
    matrix = method.make(task(progress=lambda *a: told.append(a))).matrix
    classes, rows = problem() if method is not lip else (features.Classes.of(task()), None)
    rows = features.synthesise(task(), classes) if rows is None else rows
    assert classes.accuracy(rows, matrix) <= method.STOP
    assert all(done < every for done, every in told)
    monkeypatch.setattr(method, "STOP", 1.0)  # reached before the first step
    assert torch.equal(method.make(task()).matrix, torch.eye(D))


def test_pbu_gradient_and_fisher_are_those_of_each_row():
    classes, rows = problem()
    matrix = torch.eye(D, requires_grad=True)
    each = torch.stack(
        [torch.autograd.grad(pbu.cross_entropy(classes, row[None], matrix), matrix)[0]
         for row in rows]
    )  # fmt: skip
    gradient, fisher = pbu.gradient_and_fisher(classes, rows)
    torch.testing.assert_close(gradient, each.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fisher, (each**2).mean(0), atol=1e-5, rtol=1e-4)


def test_pbu_one_step_is_the_first_newton_step_of_its_quadratic_model():
    classes, rows = problem()
    gradient, fisher = pbu.gradient_and_fisher(classes, rows)
    start = torch.zeros(D, D, requires_grad=True)
    (slope,) = torch.autograd.grad(pbu.objective(classes, rows, start, fisher), start)

    def model(change):  # the cross-entropy by its tangent
        loss = pbu.objective(classes, rows, change, fisher)
        climbed = pbu.cross_entropy(classes, rows, torch.eye(D) + change)
        return loss + pbu.CLIMB * climbed - pbu.CLIMB * (gradient * change).sum()

    curvature = torch.autograd.functional.hessian(model, start.detach()).reshape(D * D, D * D)
    newton = -torch.linalg.solve(curvature.double(), slope.double().flatten()).view(D, D)
    step = pbu.one_step(gradient, fisher)
    torch.testing.assert_close(step.double(), newton, atol=1e-5, rtol=1e-3)
    after = pbu.cross_entropy(classes, rows, torch.eye(D) + step)
    assert after > pbu.cross_entropy(classes, rows, torch.eye(D))


def test_tia_sends_the_text_to_the_empty_prompt_and_leaves_the_others(monkeypatch):
    t = task()
    edit = tia.make(t)
    assert (edit.side, edit.rank) == ("text", D)
    text, kept = edit(t.forget.tensor), edit(t.keep.tensor)
    assert F.cosine_similarity(text, t.empty[None]) > 0.9
    assert text.norm() < 0.3
    assert F.cosine_similarity(kept, t.keep.tensor).min() > 0.9
    texts = t.empty[None], t.forget.tensor, t.keep.tensor
    missed, moved = tia.losses(edit.matrix, *texts)
    assert missed < 0.3 * tia.losses(torch.eye(D), *texts)[0]
    monkeypatch.setattr(tia, "PRESERVE", 0.0)
    assert moved < 0.7 * tia.losses(tia.make(t).matrix, *texts)[1]


def test_tia_forgets_while_texts_are_not_normalised_again_and_else_by_where_the_prompt_lies():
    far = tia.make(task(empty=-gap()))
    near = tia.make(task(empty=gap()))
    for edit in (far, near):
        had, has, kept, keeps = shares(edit, renormalize=False)
        assert had > 0.9
        assert has <= 0.1
        assert keeps >= kept - 0.05
    assert shares(far)[1] == 0
    _, has, kept, keeps = shares(near)  # the empty prompt near every image takes them all
    assert has > 0.9
    assert keeps < kept - 0.3


def test_tia_learns_nothing_from_texts_of_length_one(monkeypatch):
    monkeypatch.setattr(tia, "LENGTH", 1.0)
    monkeypatch.setattr(tia, "_TRIES", 1)
    assert (tia.make(task()).matrix - torch.eye(D)).abs().max() < 1e-3


def test_tia_takes_an_empty_prompt_away_from_the_class():
    t = task()
    texts, g = torch.cat([t.forget.tensor, t.keep.tensor]), torch.Generator().manual_seed(0)
    between = F.normalize(t.forget.tensor[0] + 0.97 * t.keep.tensor[0], dim=0)
    assert (texts @ between).argmax() == 0
    moved = tia._away(between, t.forget.tensor, t.keep.tensor, g)
    assert (texts @ moved[0]).argmax() != 0
    with pytest.raises(RuntimeError, match="tia: no noise"):
        tia._away(t.forget.tensor[0], t.forget.tensor, t.keep.tensor * 1e-6, g)
    with pytest.raises(ValueError, match=r"tia: task\.empty must be the empty prompt's text"):
        tia.make(task(empty=None))


def test_leace_is_the_authors_fit_to_the_labels():
    fitter = pytest.importorskip("concept_erasure").LeaceFitter
    t = task()
    edit = METHODS["leace"].make(t)
    shown = t.fit.of([GONE]).double()[:, None]
    eraser = fitter.fit(t.fit.features.double(), shown).eraser
    other = samples(2).features.double()
    torch.testing.assert_close(edit(other), eraser(other), atol=1e-4, rtol=1e-4)
    assert edit.rank == 1
    assert shares(edit)[1] <= 0.3
    with pytest.raises(ValueError, match=r"leace: task\.fit must have images of kept names"):
        METHODS["leace"].make(task(fit=t.fit.take(t.fit.of([GONE]))))


def test_every_method_takes_part_in_a_comparison():
    pytest.importorskip("concept_erasure")
    pytest.importorskip("sklearn")
    data = comparison.TrialData(samples(2), empty=task().empty)
    results = comparison.run(data, METHODS, [GONE])
    assert list(results) == [comparison.BASE, comparison.BASE_IN_HALVES, *METHODS]
    for name in METHODS:
        trial = results[name][GONE]
        assert "refused" not in trial, (name, trial)
        assert trial["distance"] > 0, name
