"""Forget a subgroup: its three steps against their definitions, on made up and on real texts."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipproj import Embeddings, demo, embed_classes, ops
from clipproj.audit.images import Images, image_features, load_images
from clipproj.checkpoints.checkpoint import load_model
from clipproj.methods.nullspace import nullspace
from clipproj.methods.subgroup import subgroup

D = 24
VITB32 = Path(__file__).parents[3] / "shared/data/vitb32_text.npz"


def unit(rows):
    return F.normalize(rows.double(), dim=1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture
def planted():
    """Texts that differ from the parent along axis 0 and, like all else, along axis 1; features
    whose part along axis 0 the rest of a kept row tells (axis 2), while a forgotten row has more.
    """
    shared = torch.eye(D).double()[-1]
    texts = shared + 0.05 * randn(8, D, seed=1) * (torch.arange(D) == 1)
    forget = texts[:5].clone()
    forget[:, 0] += 0.6 + 0.1 * randn(5, seed=2)
    forget[:, 1] += 0.3 * randn(5, seed=3)
    siblings = texts[5:].clone()
    siblings[:, 1] += torch.tensor([-0.4, 0.0, 0.4])
    keep, gone = shared + 0.15 * randn(90, D, seed=4), shared + 0.15 * randn(12, D, seed=5)
    keep[:, 0] = 0.1 + 0.8 * keep[:, 2]
    gone[:, 0] = 0.5 + 0.1 * gone[:, 0]
    return {"forget": forget, "parent": siblings, "keep": unit(keep), "gone": unit(gone)}


def build(x, n=90, **options):
    return subgroup(
        x["forget"], x["parent"], features_forget=x["gone"], features_keep=x["keep"][:n], **options
    )


def matrix(p):
    f = p.factors(torch.float64)
    return torch.eye(p.dim).double() - f["strength"] * f["read"].T @ f["write"]


def test_relative_energy_chooses_the_planted_direction(planted):
    for p in (subgroup(planted["forget"], planted["parent"]), build(planted)):
        assert p.rank == 1
        assert p.write[0, 0].abs() > 0.97
        energies = p.provenance["parameters"]["energies"]
        assert len(energies) > 1
        assert sum(e > 2 for e in energies) == 1
    everything = build(planted, ratio=0)
    assert everything.rank == len(everything.provenance["parameters"]["energies"]) > 1


def test_energies_are_the_ratio_of_mean_squares(planted):
    p = build(planted, ratio=0)
    rows = unit(planted["forget"]) - unit(planted["parent"]).mean(0)
    u = torch.linalg.svd(rows, full_matrices=False)[2]
    found = (planted["gone"] @ u.T).square().mean(0) / (planted["keep"] @ u.T).square().mean(0)
    got = torch.tensor(p.provenance["parameters"]["energies"]).double()
    torch.testing.assert_close(got, found[: len(got)], rtol=1e-4, atol=1e-5)


def test_without_a_ratio_a_weak_best_direction_goes_alone(planted):
    weak = planted | {"gone": planted["gone"].clone()}
    weak["gone"][:, 0] *= 0.42
    weak["gone"][:, 1] *= 1.5
    p = build(weak)
    second, best = sorted(p.provenance["parameters"]["energies"])[-2:]
    assert 1 < second < best < 2
    assert (p.rank, p.provenance["parameters"]["ratio"]) == (1, 1.0)
    with pytest.raises(ValueError, match=f"largest relative energy of a direction, {best:.2f}"):
        build(weak, ratio=2)


@pytest.mark.parametrize("n", [6, 90])  # fewer rows than dimensions, and more
@pytest.mark.parametrize("ratio", [None, 0.0])
def test_the_edit_is_the_full_ridge_minimiser_and_has_rank_k(planted, n, ratio):
    p = build(planted, n, ratio=ratio, ridge=0.3)
    u, z, gone = p.factors(torch.float64)["write"], planted["keep"][:n], planted["gone"]
    eye = torch.eye(D).double()
    out = eye - u.T @ u
    weight = (n / len(gone)) ** 0.5

    w = torch.eye(D).double().requires_grad_()

    def loss(w):
        told = (z @ out @ w - z).square().sum()
        held = (weight * (gone @ out @ w - gone @ out)).square().sum()
        return told + held + 0.3 * n / D * (w - eye).square().sum()

    start = torch.autograd.grad(loss(w), w)[0]
    best = (matrix(p) + u.T @ u).requires_grad_()  # P W = P + C U
    assert torch.autograd.grad(loss(best), best)[0].norm() < 1e-5 * start.norm()
    torch.testing.assert_close(out @ best.detach(), matrix(p), atol=1e-6, rtol=0)
    assert torch.linalg.matrix_rank(eye - matrix(p), atol=1e-5) == p.rank <= len(planted["forget"])
    torch.testing.assert_close(p.read @ p.write.T, torch.eye(p.rank), atol=1e-5, rtol=0)


def test_reminding_brings_kept_rows_back_and_not_the_forgotten(planted):
    one = subgroup(planted["forget"], planted["parent"])
    two = build(planted, 60, ridge=0.1)
    u = one.read.double()
    held_out = planted["keep"][60:]

    def drift(p, rows):
        return (p(rows) - rows).norm(dim=1).mean()

    assert drift(two, held_out) < 0.65 * drift(one, held_out)
    # of what a forgotten row has along u, the rest of it tells little
    assert (two(planted["gone"]) @ u.T).abs().mean() < 0.3 * (planted["gone"] @ u.T).abs().mean()
    texts_only = subgroup(planted["forget"], planted["parent"], features_keep=planted["keep"])
    assert not texts_only.symmetric
    assert texts_only.provenance["parameters"]["energies_of"] == "texts"


def test_statistics_stand_for_the_kept_rows_that_the_sample_lacks(planted):
    everything = planted["keep"]
    order = everything[:, 2].argsort()
    sample = everything[order[:30]]  # one end of what the part along axis 0 hangs on
    statistics = (everything.mean(0), everything.std(0))
    told = build(planted | {"keep": sample}, statistics=statistics)
    own = build(planted | {"keep": sample})
    rest = everything[order[30:]]
    assert (told(rest) - rest).norm(dim=1).mean() < 0.9 * (own(rest) - rest).norm(dim=1).mean()
    same = build(planted | {"keep": sample}, statistics=(sample.mean(0), sample.std(0)))
    torch.testing.assert_close(same.dense(), own.dense(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("s", [0.0, 0.3, 1.0])
def test_a_soup_of_edited_and_original_weights_is_partial_strength(planted, s):
    p = build(planted)
    original = randn(32, D, seed=9).float()

    def folded(p):
        f = p.factors()
        weight = original.clone()
        ops.fold_(weight, f["read"], f["write"], strength=f["strength"], dim=1)
        return weight

    soup = s * folded(p) + (1 - s) * original
    torch.testing.assert_close(folded(p.scaled(s)), soup, atol=1e-5, rtol=0)
    torch.testing.assert_close(folded(build(planted, strength=s)), soup, atol=1e-5, rtol=0)


def test_one_row_of_texts_is_the_mean_contrast():
    forget, parent = randn(1, D), randn(5, D, seed=1)
    p, q = subgroup(forget, parent, ratio=0), nullspace(forget, parent, contrast="mean")
    torch.testing.assert_close(p.dense(), q.dense())


def test_the_same_twice_and_its_history(planted):
    p, q = build(planted, side="text"), build(planted, side="text")
    assert p.content_hash() == q.content_hash()
    assert p.side == "text"
    names = Embeddings(F.normalize(planted["parent"]).float(), ("a", "b", "c"), ("{}",), "m", "0")
    told = subgroup(planted["forget"], names).provenance
    assert told["method"] == "subgroup"
    assert told["keep"]["names"] == ["a", "b", "c"]


def test_on_real_texts_siblings_keep_what_the_plain_null_space_takes():
    if not VITB32.exists():
        pytest.skip("needs shared/data/vitb32_text.npz, real CLIP text embeddings")
    data = np.load(VITB32)
    texts, queries = (unit(torch.from_numpy(data[f"imagenet_{k}"])) for k in ("photo", "other"))
    breeds = list(range(151, 269))
    assert data["imagenet_names"][151] == "Chihuahua"
    for row in (151, 207, 263):
        others = [i for i in breeds if i != row]
        p, plain = subgroup(texts[[row]], texts[others]), nullspace(texts[[row]], contrast="none")
        answers = (p(queries) @ texts.T).argmax(1)
        assert answers[row] != row
        before = ((queries @ texts.T).argmax(1) == torch.arange(1000)).double()
        after = (answers == torch.arange(1000)).double()
        assert after[others].mean() >= before[others].mean() - 0.01
        cosine = F.cosine_similarity(p(texts), texts)
        assert cosine[others].mean() > 0.97
        assert F.cosine_similarity(plain(texts), texts)[others].mean() < 0.9


def test_on_images_the_siblings_stay_and_reminding_moves_them_less():
    pytest.importorskip("open_clip", reason="the embedded model is open_clip's")
    loaded = load_model(None, None, "cpu")
    shown = load_images(demo.images_dir())
    family = ["airplane", "bicycle", "boat", "bus", "car", "rocket", "train", "truck"]
    rows = torch.isin(shown.labels, torch.tensor([shown.classes.index(name) for name in family]))
    paths = tuple(p for p, one in zip(shown.paths, rows.tolist(), strict=True) if one)
    shown = Images(paths, shown.labels[rows], shown.classes)
    z = F.normalize(image_features(loaded.model, loaded.preprocess, shown), dim=1)
    texts = embed_classes(loaded.model, loaded.tokenizer, shown.classes, ["a photo of a {}."])
    fit = torch.arange(len(z)) % 2 == 0  # the other half is measured
    for name in ("car", "bus"):
        gone = shown.labels == shown.classes.index(name)
        forget, siblings = texts.select([name]), texts.select(sorted({*family} - {name}))
        p = subgroup(forget, siblings, features_forget=z[fit & gone], features_keep=z[fit & ~gone])

        def measure(edit, gone=gone):
            right = (edit(z) @ texts.tensor.T).argmax(1) == shown.labels
            cosine = F.cosine_similarity(edit(z), z)[~fit & ~gone].mean()
            return right[~fit & gone].double().mean(), right[~fit & ~gone].double().mean(), cosine

        before, after = measure(lambda z: z), measure(p)
        assert before[0] > 0.6
        assert after[0] <= 0.1
        assert after[1] >= before[1] - 0.05
        step_1, plain = subgroup(forget, siblings), nullspace(forget, contrast="none")
        assert after[2] > max(measure(step_1)[2], measure(plain)[2])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"forget": "marmoset"}, "forget must be Embeddings or a floating"),
        ({"parent": randn(3, D + 1)}, r"parent must be \[n, 24\] as forget is, got \[3, 25\]"),
        ({"parent": "copy"}, "forget must differ from parent, got row 1 equal to parent row 0"),
        ({"parent": "around"}, "forget must differ from the mean of parent, got row 0"),
        ({"parent": randn(1, D)}, "parent must have at least 2 rows"),
        ({"features_forget": randn(3, D)}, "features_keep must be given with features_forget"),
        ({"statistics": (randn(D), randn(D))}, "features_keep must be given with statistics"),
        ({"features_keep": randn(3, 5)}, r"features_keep must be \[n, 24\]"),
        ({"features_keep": torch.zeros(2, D)}, "features_keep .* zero vector in row 0"),
        ({"features_keep": randn(4, D), "statistics": randn(2, D)}, "statistics must be a tuple"),
        ({"features_keep": randn(4, D), "statistics": (randn(D), randn(2))}, r"a std \[24\]"),
        ({"features_keep": randn(4, D), "statistics": (randn(D), -randn(D).abs())}, "at least 0"),
        ({"features_keep": randn(1, D), "statistics": (randn(D), randn(D).abs())}, "2 rows with"),
        ({"ratio": -1}, "ratio must be finite and at least 0, got -1"),
        ({"ratio": 1e9}, "ratio must be below the largest relative energy"),
        ({"ridge": 0}, "ridge must be finite and above 0, got 0"),
        ({"forget": randn(D, D), "ratio": 0}, "ratio must leave something of the 24 dimensions"),
    ],
)
def test_errors_say_what_came(change, match):
    given = {"forget": randn(2, D), "parent": randn(3, D, seed=1)} | change
    if given["parent"] == "copy":
        given["parent"] = given["forget"][1:] * 3
    elif given["parent"] == "around":
        axes = torch.eye(D).double()
        given["forget"], given["parent"] = (
            axes[:1],
            axes[0] + 0.01 * torch.stack([axes[1], -axes[1]]),
        )
    with pytest.raises((TypeError, ValueError), match=f"^subgroup: .*{match}"):
        subgroup(**given)
