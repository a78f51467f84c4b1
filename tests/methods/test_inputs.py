"""What all methods share: the numbers they take, and contexts that must not change a result."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from embeddings import D, cone, texts

import clipproj
from clipproj import Embeddings, ccup, nullspace
from clipproj.methods import coreset, redirect, rotate, selective_rows, subgroup, synthesize
from clipproj.methods.domains import Cells

FORGET, FEW, MANY = texts(2, seed=3), texts(9, seed=5, offset=2), texts(20, seed=5, offset=2)
CLASSES, PARENT = texts(6, seed=8), texts(8, seed=7)
SHIFTS = 0.3 * cone(2, seed=9, spread=3).float()
CELLS = Cells(
    torch.cat([CLASSES.tensor + shift for shift in SHIFTS]), CLASSES.names * 2,
    ("oil",) * 6 + ("ink",) * 6,
)  # fmt: skip
FEATURES = cone(40, seed=11).float(), cone(60, seed=12).float()
SELECTIVE = (CLASSES, CELLS, CLASSES.names[0], ["oil"], ["ink"])

# of what the texts are turned into
METHODS = {
    "none": lambda of: nullspace(of(FORGET), contrast="none"),
    "span": lambda of: nullspace(of(FORGET), of(FEW), "span"),
    "hull": lambda of: nullspace(of(FORGET), of(MANY), "hull"),
    "mean": lambda of: nullspace(of(FORGET), of(MANY), "mean", 1.5),
    "ccup": lambda of: ccup(of(FORGET), of(FEW)),
    "redirect": lambda of: redirect(of(FORGET), of(FEW.select(FEW.names[:1])), of(FEW)),
    "self": lambda of: redirect(of(FORGET), "self", of(FEW)),
    "rotate": lambda of: rotate(of(FORGET), keep=of(MANY)),
    "subgroup": lambda of: subgroup(of(FORGET), of(PARENT), ratio=0),
    "features": lambda of: subgroup(
        of(FORGET), of(PARENT), ratio=0, features_forget=FEATURES[0],
        features_keep=FEATURES[1],
    ),
    "reader": lambda of: selective_rows(*SELECTIVE),
    "subspace": lambda of: selective_rows(*SELECTIVE, form="subspace"),
    "coreset": lambda of: nullspace(coreset(of(MANY)).kept, contrast="none", rank=1),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_what_surrounds_a_method_does_not_change_it(method, tmp_path):
    def make(of=lambda given: given):
        return METHODS[method](of)

    one = make()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert make().content_hash() == one.content_hash()
    assert make(lambda given: given.tensor).content_hash() == one.content_hash()
    wide = make(lambda given: given.tensor.double().requires_grad_())
    assert wide.content_hash() == one.content_hash()
    assert not wide.read.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert make().content_hash() == one.content_hash()
    with torch.device("meta"):  # as another default device than that of the texts
        assert make().content_hash() == one.content_hash()
    torch.set_default_dtype(torch.float64)
    try:
        assert make().content_hash() == one.content_hash()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        inside = make()
    rows = cone(3, seed=20).requires_grad_()
    inside(rows).sum().backward()  # tensors of inference mode could not
    assert inside.content_hash() == one.content_hash()
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert torch.is_grad_enabled()
    one.save(tmp_path / "p")
    assert clipproj.load(tmp_path / "p").provenance == one.provenance


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"features"}))
def test_the_text_side_changes_the_same_scores(method, monkeypatch):
    one = METHODS[method](lambda given: given)
    made = (nullspace, ccup, redirect, rotate, subgroup, selective_rows)
    for function in made:  # the same call with side="text"
        monkeypatch.setitem(
            globals(), function.__name__, lambda *a, f=function, **k: f(*a, **k, side="text")
        )
    other = METHODS[method](lambda given: given)
    assert (one.side, other.side) == ("image", "text")
    images, names = cone(9, seed=20), cone(7, seed=21)
    torch.testing.assert_close(one(images) @ names.T, images @ other(names).T, atol=1e-5, rtol=0)


def test_numpy_numbers_are_taken_and_saved():
    half, two = np.float32(0.5), np.int64(2)
    made = (
        nullspace(FORGET, FEW, rank=two, tol=np.float32(1e-4), strength=half),
        ccup(FORGET, FEW, half, torch.tensor(2.0)),
        redirect(FORGET, "self", FEW, samples=two, seed=two, margin=half, temperature=half),
        rotate(FORGET, keep=MANY, angle=np.float32(90), seed=two),
        subgroup(FORGET, PARENT, ratio=half),
        selective_rows(*SELECTIVE, depth=half, domain_gain=half, strength=half),
        selective_rows(*SELECTIVE, form="subspace", rank=two, tol=np.float32(1e-3)),
    )
    assert all(one.provenance["parameters"] for one in made)
    assert coreset(MANY, level=np.float32(0.9)).dropped == coreset(MANY, level=0.9).dropped


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: nullspace(FORGET, FEW, rank=1.5), "nullspace: rank must be an integer, got float"),
        (lambda: nullspace(FORGET, FEW, tol="1"), "nullspace: tol must be a number, got str"),
        (lambda: ccup(FORGET, FEW, None), "ccup: forget_weight must be a number, got NoneType"),
        (lambda: redirect(FORGET, FEW, margin="a"), "redirect: margin must be a number, got str"),
        (lambda: rotate(FORGET, keep=MANY, seed=0.5), "rotate: seed must be an integer"),
        (lambda: rotate(FORGET, keep=MANY, angle=torch.ones(2)), r"a number, got \[2\]"),
        (lambda: subgroup(FORGET, FEW, ridge="1"), "subgroup: ridge must be a number, got str"),
        (lambda: selective_rows(*SELECTIVE, depth="1"), "selective: depth must be a number"),
        (lambda: coreset(MANY, level="0.9"), "coreset: level must be a number, got str"),
    ],
)
def test_what_is_no_number_is_refused_by_name(call, text):
    with pytest.raises(TypeError, match=text):
        call()


def test_a_seed_that_the_forest_cannot_take_is_refused():
    with pytest.raises(ValueError, match="coreset: seed must be at least 0, got -1"):
        coreset(MANY, method="isolation_forest", seed=-1)


def test_rows_too_long_to_measure_are_refused():
    with pytest.raises(ValueError, match=r"nullspace: forget must be .* finite rows, got .* row 1"):
        nullspace(cone(2) * torch.tensor([[1.0], [1e200]], dtype=torch.float64), contrast="none")


def test_warnings_point_at_the_caller():
    other = Embeddings(FEW.tensor, FEW.names, ("the {}",), "model", "0" * 64)
    calls = (
        lambda: nullspace(FORGET), lambda: rotate(FORGET, FEW.select(FEW.names[:2])),
        lambda: ccup(FORGET, other), lambda: redirect(FORGET, "self", other),
    )  # fmt: skip
    for call in calls:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
        assert [warning.filename for warning in seen] == [__file__]


def test_synthesis_does_not_hang_on_default_dtype_and_device():
    goal = Cells(F.normalize(torch.ones(1, D)), ("cat",), ("oil",))
    model = torch.nn.Linear(2, 2)
    model.encode_image = lambda pixels: pixels
    one = synthesize(model, goal).rows
    with torch.device("meta"):
        assert torch.equal(synthesize(model, goal).rows, one)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(synthesize(model, goal).rows, one)
    finally:
        torch.set_default_dtype(torch.float32)
