"""RanPAC: forgetting is exact, adding is exact, and what it answers is what plain algebra gives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clipproj.audit.probe import FOLDS, folds
from clipproj.audit.ranpac import RanPAC, ranpac_answers


def _data(n: int, d: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=generator)
    return centres[labels] + 0.5 * torch.randn(n, d, generator=generator), labels


@settings(max_examples=60, deadline=None)
@given(
    d=st.integers(1, 12),
    width=st.integers(1, 60),
    classes=st.integers(2, 6),
    per_class=st.integers(1, 9),
    gone=st.integers(0, 5),
    ridge=st.sampled_from([None, 1e-3, 1.0, 1e4]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_forgetting_is_training_without_the_class(
    d: int, width: int, classes: int, per_class: int, gone: int, ridge: float | None, scale: float
) -> None:
    gone %= classes
    x, y = _data(classes * per_class, d, classes)
    x = x * scale
    names = [f"c{i}" for i in range(classes)]
    head = RanPAC.fit(x, y, names, width=width, seed=3, ridge=ridge)
    head.forget(names[gone], x[y == gone].flip(0))
    kept = y != gone
    fresh = RanPAC.fit(
        x[kept], y[kept] - (y[kept] > gone).long(), names[:gone] + names[gone + 1 :],
        width=width, seed=3, ridge=head.ridge,
    )  # fmt: skip
    assert head.classes == fresh.classes
    assert torch.equal(head.counts, fresh.counts)
    queries = torch.randn(20, d)
    torch.testing.assert_close(head.scores(queries), fresh.scores(queries), rtol=0, atol=1e-10)
    bound = 1e-9 * float(fresh.weights.abs().max()) + 1e-12
    torch.testing.assert_close(head.weights, fresh.weights, rtol=0, atol=bound)


def test_adding_is_training_on_all_and_a_class_comes_back_as_it_was() -> None:
    x, y = _data(90, 6, 3)
    whole = RanPAC.fit(x, y, ["a", "b", "c"], width=50, ridge=0.1)
    first = y < 2
    head = RanPAC.fit(x[first][:20], y[first][:20], ["a", "b"], width=50, ridge=0.1)
    head.add(x[first][20:], y[first][20:])
    head.add(x[~first], y[~first], new=["c"])
    torch.testing.assert_close(head.scores(x), whole.scores(x), rtol=0, atol=1e-12)
    head.forget("c", x[~first])
    assert head.predict(x).max() == 1
    head.add(x[~first], y[~first], new=["c"])
    torch.testing.assert_close(head.scores(x), whole.scores(x), rtol=0, atol=1e-11)


def test_scores_are_those_of_plain_algebra_and_the_ridge_that_of_least_error() -> None:
    x, y = _data(60, 5, 4)
    head = RanPAC.fit(x, y, list("abcd"), width=30, seed=9)
    generator = torch.Generator().manual_seed(9)
    projection = torch.randn(5, 30, generator=generator, dtype=torch.float64)
    order = torch.randperm(60, generator=generator)
    hidden = (F.normalize(x.double(), dim=1) @ projection).clamp_min(0)
    targets = F.one_hot(y).double()

    def weights(rows: torch.Tensor, ridge: float) -> torch.Tensor:
        h = hidden[rows]
        return torch.linalg.solve(h.T @ h + ridge * torch.eye(30), h.T @ targets[rows])

    fitted, asked = order[12:], order[:12]
    trace = float(hidden[fitted].square().sum())
    errors = {
        ridge: float((hidden[asked] @ weights(fitted, ridge) - targets[asked]).square().mean())
        for ridge in (10.0**i for i in range(-8, 9))
        if 1e-6 * trace <= ridge <= trace
    }
    assert head.ridge == min(errors, key=errors.__getitem__)
    assert len(set(errors.values())) > 4
    expected = hidden @ weights(torch.arange(60), head.ridge)
    torch.testing.assert_close(head.scores(x), expected, rtol=1e-9, atol=1e-12)


def test_random_features_see_what_no_linear_probe_sees() -> None:
    angles = torch.rand(400, generator=torch.Generator().manual_seed(1)) * 2 * math.pi
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    y = (x[:, 0] * x[:, 1] > 0).long()  # opposite quadrants are one class
    head = RanPAC.fit(x[:300], y[:300], ["odd", "even"], width=200)
    assert (head.predict(x[300:]) == y[300:]).double().mean() > 0.95


def test_forgetting_refuses_other_images_and_then_changes_nothing() -> None:
    x, y = _data(30, 4, 3)
    head = RanPAC.fit(x, y, ["a", "b", "c"], width=20)
    before = head.scores(x)
    for features, why in (
        (x[y == 1][1:], "the 10 images of 'b' that were taken in, got 9"),
        (x[y == 0], "got others"),
        (x[y == 1].bfloat16(), "got others"),
    ):
        with pytest.raises(ValueError, match=why):
            head.forget("b", features)
    with pytest.raises(ValueError, match="forget: name must be one of 3 classes"):
        head.forget("d", x[y == 1])
    assert torch.equal(head.scores(x), before)
    head.forget("b", x[y == 1])
    head.forget("a", x[y == 0])
    with pytest.raises(ValueError, match="not the last"):
        head.forget("c", x[y == 2])


def test_cross_validation_by_downdates_is_cross_validation_by_fits() -> None:
    x, y = _data(70, 6, 4)
    labels, other = torch.tensor([5, 2, 9, 4])[y], x.flip(1)
    gone = torch.tensor([9])
    answers, pruned = ranpac_answers(x, labels, other, width=40, seed=2, without=gone)
    rows = labels.unique(return_inverse=True)[1]
    ridge = RanPAC.fit(x, rows, list("abcd"), width=40, seed=2).ridge
    for i in range(FOLDS):
        out = folds(rows) == i
        for kept, told in ((~out, answers), (~out & (labels != 9), pruned)):
            names, index = labels[kept].unique(return_inverse=True)
            fresh = RanPAC.fit(
                x[kept], index, [str(n) for n in names.tolist()], width=40, seed=2, ridge=ridge
            )
            for j, asked in enumerate((x, other)):
                assert torch.equal(told[j, out], names[fresh.predict(asked[out])])
    assert 9 in answers[0].tolist()
    assert 9 not in pruned.tolist()[0]


def test_seeds_decide_and_repeat() -> None:
    x, y = _data(40, 5, 3)
    one, same, other = (RanPAC.fit(x, y, list("abc"), width=16, seed=s)
                        for s in (4, 4, 5))  # fmt: skip
    assert torch.equal(one.scores(x), same.scores(x))
    assert not torch.equal(one.projection, other.projection)
    assert RanPAC.fit(torch.zeros(4, 3), y[:4], list("abc"), width=8).scores(x[:, :3]).eq(0).all()


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"features": torch.ones(4, 3).long()}, TypeError, "features must be a floating"),
        ({"features": torch.ones(3)}, ValueError, r"features must be \[n, d\]"),
        ({"features": torch.full((4, 3), math.nan)}, ValueError, "in row 0"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, ValueError, "rows of the 2 classes, got 0 to 2"),
        ({"labels": torch.tensor([0, 1])}, ValueError, r"labels must be int64 \[4\]"),
        ({"classes": ["a", "a"]}, ValueError, "classes must be distinct"),
        ({"classes": []}, TypeError, "classes must be names"),
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"ridge": 0.0}, ValueError, "ridge must be finite and above 0"),
        ({"features": torch.ones(1, 3), "labels": torch.tensor([0])}, ValueError, "ridge must be"),
    ],
)
def test_bad_calls_say_what_they_wanted(change: dict, error: type[Exception], why: str) -> None:
    call = {
        "features": torch.randn(4, 3), "labels": torch.tensor([0, 1, 0, 1]), "classes": ["a", "b"],
        "width": 8,
    } | change  # fmt: skip
    with pytest.raises(error, match=why):
        RanPAC.fit(**call)
    head = RanPAC.fit(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), ["a", "b"], width=8)
    with pytest.raises(ValueError, match=r"scores: features must be \[n, 3\]"):
        head.scores(torch.randn(2, 4))
