"""The redirection against its own objective, and what images then score."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from embeddings import CIFAR, cone, texts, vitb32
from torch import nn

import clipproj
from clipproj import ccup
from clipproj.methods.ccup import pull
from clipproj.methods.redirect import empty_text, redirect

WEIGHTS = [(100.0, 2.0), (0.3, 0.0), (1e4, 1e4)]


def objective(m, f, c, k, lam, mu):
    loss = (m - torch.eye(len(m), dtype=m.dtype)).square().sum()
    loss = loss + lam * (m @ f.T - c.T).square().sum()
    return loss + mu * (m @ k.T - k.T).square().sum()


def closed_form(f, c, k, lam, mu):
    return torch.eye(f.shape[1], dtype=f.dtype) - (f - c).T @ pull(f, k, lam, mu)


@pytest.mark.parametrize(("lam", "mu"), WEIGHTS)
@pytest.mark.parametrize("m", [1, 4])
def test_closed_form_is_where_the_gradient_vanishes(lam, mu, m):
    f, k, t = cone(m), cone(9, seed=5), cone(m, seed=7)
    matrix = closed_form(f, 0.8 * t, k, lam, mu).requires_grad_()
    gradient = torch.autograd.grad(objective(matrix, f, 0.8 * t, k, lam, mu), matrix)[0]
    eye = torch.eye(f.shape[1], dtype=torch.float64, requires_grad=True)
    start = torch.autograd.grad(objective(eye, f, 0.8 * t, k, lam, mu), eye)[0]
    assert gradient.norm() < 1e-9 * start.norm()
    # and this is what the projector holds, on either side
    options = {"forget_weight": lam, "keep_weight": mu, "margin": 0.2}
    image = redirect(3 * f, t, k, **options)
    torch.testing.assert_close(image.dense(), matrix.detach().float(), atol=1e-5, rtol=1e-5)
    text = redirect(f, 5 * t, k, side="text", **options)
    torch.testing.assert_close(text.dense(), image.dense().T, atol=1e-6, rtol=0)
    assert image.rank == m


def test_closed_form_is_what_an_optimiser_finds():
    f, k, c = cone(2, d=6), cone(3, seed=5, d=6), cone(2, seed=7, d=6)
    m = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([m], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimiser.zero_grad()
        loss = objective(m, f, c, k, 20.0, 5.0)
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(m.detach(), closed_form(f, c, k, 20.0, 5.0), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("lam", "mu"), WEIGHTS)
def test_with_nothing_left_of_the_target_it_is_ccup(lam, mu):
    f, k = cone(3), cone(9, seed=5)
    kept = torch.eye(f.shape[1], dtype=torch.float64) + mu * k.T @ k
    want = torch.linalg.solve(kept + lam * f.T @ f, kept, left=False)
    torch.testing.assert_close(closed_form(f, 0 * f, k, lam, mu), want, atol=1e-10, rtol=0)
    p = redirect(f, cone(1, seed=7), k, forget_weight=lam, keep_weight=mu, margin=1)
    assert p.content_hash() == ccup(f, k, lam, mu).content_hash()


def test_images_score_for_the_forgotten_name_what_they_scored_for_its_target():
    f, k, t, z = cone(2), cone(9, seed=5), cone(2, seed=7), cone(30, seed=8, spread=2.0)
    options = {"forget_weight": 1e7, "keep_weight": 1e7, "margin": 0.25}
    p = redirect(f, t, k, **options)
    torch.testing.assert_close(p(z) @ f.T, 0.75 * z @ t.T, atol=1e-3, rtol=0)
    torch.testing.assert_close(p(z) @ k.T, z @ k.T, atol=1e-3, rtol=0)
    assert (p.T(z) @ f.T - 0.75 * z @ t.T).abs().max() > 0.1  # the other side's edit does not
    text = p.T(f, normalize=True)  # on which lengths go, and with them the margin
    torch.testing.assert_close(text, t, atol=1e-3, rtol=0)
    half = redirect(f, t, k, strength=0.5, **options)
    torch.testing.assert_close(half(z), (z + p(z)) / 2, atol=1e-5, rtol=0)
    one = redirect(f, t[:1], k, **options)  # one target for all
    torch.testing.assert_close(one(z) @ f.T, 0.75 * z @ t[[0, 0]].T, atol=1e-3, rtol=0)


def test_margin_breaks_the_tie_with_a_kept_target():
    f, k = cone(1), cone(9, seed=5)
    images = F.normalize(f + 0.5 * k[3] + 0.02 * cone(50, seed=9))
    assert ((images @ f.T) > (images @ k.T).amax(1, keepdim=True)).all()
    sharp = {"forget_weight": 1e8, "keep_weight": 1e8}
    tied = redirect(f, k[3:4], k, margin=0, **sharp)(images)
    torch.testing.assert_close(tied @ f[0], tied @ k[3], atol=1e-4, rtol=0)
    edited = redirect(f, k[3:4], k)(images)
    assert ((edited @ f.T) < (edited @ k.T).amax(1, keepdim=True)).all()


def test_what_weights_promise_holds():
    f, k, c = cone(3), cone(20, seed=5), cone(3, seed=7)
    for lam, mu in ((100.0, 5.0), (1e4, 1.0), (1.0, 50.0)):
        m = closed_form(f, c, k, lam, mu)
        assert (m @ k.T - k.T).norm() <= math.sqrt(lam / mu) * (f - c).norm()
        exact = torch.linalg.pinv(f.T)  # I - (F - C) F^+ sends F to C: no worse a minimum than it
        price = ((f - c).T @ exact).square().sum()
        price = price + mu * ((f - c).T @ exact @ k.T).square().sum()
        assert lam * (m @ f.T - c.T).square().sum() <= price


def test_keeps_share_their_weight():
    f, t = cone(1), cone(1, seed=7)
    for count in (1, 8):
        p = redirect(f, t, cone(count, seed=5))
        assert p.provenance["parameters"]["keep_weight"] == 100 / count
    assert redirect(f, t).provenance["parameters"]["keep_weight"] == 0


def test_self_draws_from_the_models_own_labels_and_takes_the_least_like():
    f, k = texts(2), texts(9, offset=2)
    like = f.tensor @ k.tensor.T

    def labels(**options):
        told = redirect(f, "self", k, **options).provenance["parameters"]["target"]
        assert told["kind"] == "self"
        return told["labels"]

    cold = labels(temperature=1e-4)
    assert cold == [k.names[i] for i in like.argmax(1)]
    hot = labels(temperature=1e4, samples=500)
    assert hot == [k.names[i] for i in like.argmin(1)]
    # one draw a round is one of the model's distribution, in the seed's hands
    drawn = [labels(samples=1, temperature=5, rounds=1, seed=s) for s in range(200)]
    assert drawn == [labels(samples=1, temperature=5, rounds=1, seed=s) for s in range(200)]
    share = torch.bincount(torch.tensor([k.names.index(one[0]) for one in drawn]), minlength=9)
    p = torch.softmax(100 * like[0].double() / 5, 0)
    assert p.amax() > 5 * p.amin()
    assert ((share / 200 - p).abs() < 4 * (p * (1 - p) / 200).sqrt()).all()


def test_self_goes_on_until_texts_leave_and_says_when_they_do_not():
    f, k = texts(2), texts(9, offset=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = redirect(f, "self", k)
    told = p.provenance["parameters"]["target"]
    assert (told["rounds"], told["stayed"]) == (1, [])
    moved = p.T(f.tensor, normalize=True) @ torch.cat([k.tensor, f.tensor]).T
    assert moved.argmax(1).tolist() == [k.names.index(label) for label in told["labels"]]
    with pytest.warns(UserWarning, match=r"after 3 rounds \['class 0', 'class 1'\] still"):
        stuck = redirect(f, "self", k, forget_weight=1e-3, rounds=3)
    told = stuck.provenance["parameters"]["target"]
    assert (told["rounds"], told["stayed"]) == (3, ["class 0", "class 1"])
    # the best of all rounds stays: three rounds of 5 are at least as unlike as the first
    first = redirect(f, "self", k, forget_weight=1e6, rounds=1).provenance["parameters"]["target"]
    like = f.tensor @ k.tensor.T
    for i, (late, early) in enumerate(zip(told["labels"], first["labels"], strict=True)):
        assert like[i, k.names.index(late)] <= like[i, k.names.index(early)]


def test_rows_without_names_are_told_by_number(tmp_path):
    f, k = cone(1), cone(9, seed=5)
    p = redirect(f, "self", k, seed=4)
    target = p.provenance["parameters"]["target"]
    assert target["labels"] == [int(i) for i in target["labels"]]
    p.save(tmp_path / "p.safetensors")
    again = clipproj.load(tmp_path / "p.safetensors")
    assert again.provenance == p.provenance
    assert redirect(f, k[:1], k).provenance["parameters"]["target"] == {"kind": "given", "rows": 1}
    f, k = texts(1), texts(3, offset=1)
    p = redirect(f, k.select(["class 2"]), k)
    assert p.provenance["parameters"]["target"] == {"kind": "given", "names": ["class 2"]}
    assert p.provenance["forget"]["names"] == ["class 0"]
    assert p.provenance["keep"]["names"] == list(k.names)


GOOD = cone(2), cone(2, seed=7), cone(9, seed=5)
NAN = torch.full((1, 32), math.nan)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"target": NAN}, ValueError, "target must be .* finite rows, got a NaN"),
        ({"target": torch.zeros(1, 32)}, ValueError, "target must be .* zero vector"),
        ({"target": cone(3)}, ValueError, r"target must be \[2, 32\] or \[1, 32\], got \[3, 32\]"),
        ({"target": cone(1, d=16)}, ValueError, r"target must be .*got \[1, 16\]"),
        ({"target": "empty"}, ValueError, 'target must be rows or "self", got .empty.'),
        ({"target": 3}, TypeError, "target must be Embeddings or a floating point tensor"),
        ({"target": GOOD[0][1:]}, ValueError, "forget must differ from target, got row 1 equal"),
        ({"target": "self", "keep": None}, ValueError, "keep must be given"),
        ({"target": "self", "margin": 1}, ValueError, "margin must be below 1"),
        ({"target": "self", "samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"target": "self", "rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
        ({"target": "self", "temperature": 1e-320}, ValueError, "temperature must leave .* finite"),
        ({"target": "self", "temperature": 0}, ValueError, "temperature must be .* above 0"),
        ({"keep": NAN}, ValueError, "keep must be .* finite rows"),
        ({"keep": GOOD[0]}, ValueError, "forget must differ from keep"),
        ({"forget": cone(33)}, ValueError, "m <= d"),
        ({"forget_weight": 0}, ValueError, "forget_weight must be finite and above 0, got 0"),
        ({"keep_weight": math.inf}, ValueError, "keep_weight must be finite and at least 0"),
        ({"margin": 1.1}, ValueError, r"margin must be in \[0, 1\], got 1.1"),
        ({"strength": 3.0}, ValueError, "strength must be"),
        ({"side": "audio"}, ValueError, "side must be"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, text):
    arguments = dict(zip(("forget", "target", "keep"), GOOD, strict=True)) | changes
    with pytest.raises(error, match=text):
        redirect(**arguments)


def test_a_target_of_another_model_is_refused():
    f, other = texts(1), texts(1, offset=5)
    other = clipproj.Embeddings(other.tensor, other.names, other.templates, "other", "1" * 64)
    with pytest.raises(ValueError, match="target must come from the model"):
        redirect(f, other)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 8)
        self.drop = nn.Dropout(0.5)

    def encode_text(self, tokens):
        return 3 * self.drop(self.table(tokens)).sum(1)


def test_empty_text_is_the_models_feature_of_an_empty_prompt():
    model = Towers()
    row = empty_text(model, lambda prompts: torch.tensor([[2, 3] for _ in prompts if not _]))
    want = F.normalize(model.table.weight[[2, 3]].sum(0, keepdim=True))
    torch.testing.assert_close(row, want.detach())
    assert model.training
    assert not row.requires_grad
    with pytest.raises(TypeError, match="empty_text: model must be"):
        empty_text("ViT-B-32", None)
    model.table.weight.data.zero_()
    with pytest.raises(ValueError, match=r"empty_text: the feature must be .* zero vector"):
        empty_text(model, lambda prompts: torch.tensor([[0]]))


def test_on_real_clip_texts_a_name_becomes_its_target_and_the_others_stay():
    every = vitb32(CIFAR)
    every = F.normalize(every)
    for i in range(len(CIFAR)):
        keep = torch.cat([every[:i], every[i + 1 :]])
        p = redirect(every[i : i + 1], "self", keep)
        label = p.provenance["parameters"]["target"]["labels"][0]
        rows = p.T(torch.cat([keep, every[i : i + 1]]), normalize=True)
        assert rows[-1] @ keep[label] > 0.99  # from 0.83 to 0.9
        assert (rows[:-1] * keep).sum(1).min() > 0.99
