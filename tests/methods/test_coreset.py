"""Pruned prompts: who goes, what it does to the variance, and whether they are forgotten too."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipproj import Embeddings, demo, embed_classes, nullspace
from clipproj.checkpoints.checkpoint import load_model
from clipproj.methods.coreset import coreset, prompts

METHODS = ["mahalanobis", "isolation_forest"]
D = 32
VITB32 = Path(__file__).parents[3] / "shared/data/vitb32_text.npz"


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def planted(m=60, outliers=(3, 17, 40)):
    """Rows around one direction, some of them around others, one each."""
    rows = torch.eye(D)[0] + 0.02 * randn(m, D)
    rows[list(outliers)] += 0.5 * torch.eye(D).double()[1] + 0.3 * randn(len(outliers), D, seed=7)
    return F.normalize(rows, dim=1)


def named(rows, prefix="prompt"):
    names = tuple(f"{prefix} {i}" for i in range(len(rows)))
    return Embeddings(rows.float(), names, ("{}",), "model", "0" * 64)


@pytest.mark.parametrize("method", METHODS)
def test_planted_outliers_go_first_and_the_variance_falls(method):
    rows = planted()
    found = coreset(named(rows), share=0.05, method=method)
    assert set(found.dropped) == {3, 17, 40}
    assert found.names == tuple(f"prompt {i}" for i in found.dropped)
    assert found.dropped == tuple(found.scores.argsort(descending=True)[:3].tolist())
    assert found.kept.names == tuple(f"prompt {i}" for i in range(60) if i not in {3, 17, 40})
    assert found.variance_before == pytest.approx(np.trace(np.cov(rows.numpy().T)), rel=1e-5)
    kept = found.kept.tensor.double()
    assert found.variance_after == pytest.approx(np.trace(np.cov(kept.numpy().T)), rel=1e-5)
    assert found.variance_after < 0.3 * found.variance_before


@pytest.mark.parametrize("share", [0.05, 0.1, 0.33])
def test_drops_those_that_scikit_learn_calls_outliers(share):
    from sklearn.ensemble import IsolationForest

    rows = planted(61)
    forest = IsolationForest(contamination=share, random_state=3).fit(rows.numpy())
    want = np.nonzero(forest.predict(rows.numpy()) == -1)[0].tolist()
    assert sorted(coreset(rows, share=share, method=METHODS[1], seed=3).dropped) == want


def test_distances_are_in_units_of_the_two_principal_variances():
    rows = planted()
    centred = rows - rows.mean(0)
    basis = torch.linalg.eigh(centred.T @ centred)[1][:, -2:]
    part = centred @ basis
    want = (part @ torch.linalg.inv(torch.cov(part.T)) * part).sum(1)
    torch.testing.assert_close(coreset(rows * 7).scores, want)
    line = torch.stack([torch.eye(D)[0] + a * torch.eye(D)[1] for a in (0.0, 0.1, 0.2, 3.0)])
    assert coreset(F.normalize(line.double())).dropped == (3,)


def test_a_level_drops_as_many_as_are_far_out():
    # uniform noise on two axes has no row so far out; three planted ones are found without a count
    noise = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)).double() - 0.5
    rows = torch.eye(D)[0] + F.pad(0.02 * noise, (1, D - 3))
    assert coreset(rows, level=0.999).dropped == ()
    rows[[3, 17, 40], 1] += 0.2
    assert sorted(coreset(rows, level=0.999).dropped) == [3, 17, 40]
    normal = torch.eye(D)[0] + F.pad(0.001 * randn(4000, 2), (1, D - 3))
    assert len(coreset(normal, level=0.9).dropped) == pytest.approx(400, abs=60)


def test_kept_rows_of_a_tensor_are_its_own():
    rows = planted().float() * 3
    found = coreset(rows, share=0.1)
    assert torch.equal(found.kept, rows[[i for i in range(60) if i not in found.dropped]])
    assert found.names == ()
    everything = coreset(rows, share=0)
    assert torch.equal(everything.kept, rows)
    assert everything.variance_after == everything.variance_before


@pytest.mark.parametrize("method", METHODS)
def test_the_same_twice(method):
    one, two = (coreset(planted(), method=method, seed=5) for _ in range(2))
    assert one.dropped == two.dropped
    assert torch.equal(one.scores, two.scores)


def test_prompts_are_every_name_in_every_template_once():
    assert prompts(["cat", "cats"], ["a {}", "the {}"]) == [
        "a cat",
        "the cat",
        "a cats",
        "the cats",
    ]
    assert prompts(["a cat", "cat"], ["{}", "a {}"]) == ["a cat", "a a cat", "cat"]
    with pytest.raises(TypeError, match="prompts: templates must be a list"):
        prompts(["cat"], "a {}")
    with pytest.raises(ValueError, match="prompts: templates must hold"):
        prompts(["cat"], ["a cat"])


@pytest.mark.parametrize("method", METHODS)
def test_pruned_prompts_of_the_embedded_model_are_forgotten_too(method):
    pytest.importorskip("open_clip", reason="the embedded model is open_clip's")
    loaded = load_model(None, None, "cpu")
    names = demo.class_names()
    classes = embed_classes(loaded.model, loaded.tokenizer, names, ["a photo of a {}."])
    own = prompts(["dog"])
    strangers = prompts(["boat"])[:4]  # a word on the list that means something else
    rows = embed_classes(loaded.model, loaded.tokenizer, own + strangers, ["{}"])
    found = coreset(rows, share=0.1, method=method)
    assert set(strangers) <= set(found.names)
    assert found.variance_after < 0.5 * found.variance_before

    keep = classes.drop(["dog"]).tensor

    def answers(p, of):
        nearest = (p(rows.select(of).tensor) @ classes.tensor.T).argmax(1)
        return [names[i] for i in nearest.tolist()]

    assert answers(lambda x: x, own).count("dog") == len(own) == 80
    core, everything = (
        nullspace(x, keep, contrast="mean", rank=2) for x in (found.kept.tensor, rows.tensor)
    )
    assert "dog" not in answers(core, own)
    assert "boat" not in answers(everything, strangers)
    assert answers(core, strangers).count("boat") == 4


@pytest.mark.parametrize("method", METHODS)
def test_on_real_texts_the_core_costs_less_and_takes_the_pruned_along(method):
    if not VITB32.exists():
        pytest.skip("needs shared/data/vitb32_text.npz, real CLIP text embeddings")
    data = np.load(VITB32)
    rows = F.normalize(torch.from_numpy(data["imagenet_photo"]).double(), dim=1)
    dogs = rows[151:269]
    others = torch.cat([rows[:151], rows[269:]])
    others = others[(others @ dogs.T).amax(1) < 1 - 1e-6]  # "cardigan" is a dog and a garment
    found = coreset(dogs, share=0.1, method=method)
    assert len(found.dropped) == 12
    assert found.variance_after < found.variance_before
    pruned = dogs[list(found.dropped)]
    dogness = F.normalize(dogs.mean(0), dim=0) - F.normalize(others.mean(0), dim=0)

    def measure(forget):
        p = nullspace(forget, others, contrast="mean", rank=2)
        moved = F.cosine_similarity(p(others), others).mean()
        return moved, (F.normalize(p(pruned), dim=1) @ dogness).mean()

    core, everything = measure(found.kept), measure(dogs)
    assert core[0] > everything[0]
    for seed in range(3):
        order = torch.randperm(118, generator=torch.Generator().manual_seed(seed))
        assert core[0] > measure(dogs[order[12:]])[0]
    assert core[1] < 0.5 * (pruned @ dogness).mean()
    assert core[1] < everything[1] + 0.005


def test_the_forest_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ImportError, match=r"^coreset: .*pip install scikit-learn"):
        coreset(planted(), method="isolation_forest")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"forget": randn(2, D)}, "forget must have at least 3 rows, got 2"),
        ({"forget": torch.zeros(4, D)}, "zero vector in row 0"),
        ({"forget": torch.ones(4, D)}, "rows that differ, got 4 equal ones"),
        ({"forget": [1.0]}, "forget must be Embeddings or"),
        ({"share": 0.6}, r"share must be in \[0, 0.5\], got 0.6"),
        ({"share": float("nan")}, "share must be in"),
        ({"level": 1.0}, r"level must be in \(0, 1\) with \"mahalanobis\", got 1.0"),
        ({"level": 0.9, "method": "isolation_forest"}, "level must be in"),
        ({"level": 1e-9}, "level must leave at least 2 of 10 rows"),
        ({"method": "lof"}, "method must be .*got 'lof'"),
    ],
)
def test_errors_say_what_came(change, match):
    with pytest.raises((TypeError, ValueError), match=f"^coreset: .*{match}"):
        coreset(**({"forget": randn(10, D)} | change))
