"""Visual prototypes: means of images, and images climbed to from texts in either space."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, WIDTH
from torch import nn

from clipproj import demo
from clipproj.checkpoints.checkpoint import load_model
from clipproj.methods.domains import Cells
from clipproj.methods.prototypes import feature_prototypes, synthesize

PROCESSOR = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3)


def texts(width, count=3):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(3))
    return Cells(rows, [f"class {i}" for i in range(count)], ["sketch"] * count)


def cosines(cells, targets):
    return (cells.rows * targets.rows).sum(1)


def test_feature_prototypes_are_means_of_directions():
    rows = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 0.0], [0.0, -1.0]])
    got = feature_prototypes(rows, ["a", "a", "b", "a"], ["x", "x", "x", "y"])
    assert list(zip(got.names, got.domains, strict=True)) == [("a", "x"), ("b", "x"), ("a", "y")]
    want = torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(got.rows, want)
    with pytest.raises(ValueError, match="got a zero vector in row 0"):
        feature_prototypes(torch.tensor([[1.0], [-2.0]]), ["a"] * 2, ["x"] * 2)
    with pytest.raises(ValueError, match="got a NaN or inf in row 1"):
        feature_prototypes(torch.tensor([[1.0], [float("nan")]]), ["a"] * 2, ["x"] * 2)
    with pytest.raises(ValueError, match="domains must be 2, one a row, got 1"):
        feature_prototypes(torch.ones(2, 1), ["a"] * 2, ["x"])


def test_feature_space_climbs_from_the_start_and_repeats_by_seed():
    model, targets = FAMILIES["open_clip ViT"].build(), texts(WIDTH)
    start, told = torch.randn(WIDTH), []
    near = synthesize(model, targets, start=start, steps=1, rate=0.01)
    assert (near.rows @ F.normalize(start, dim=0)).min() > 0.999
    before = (targets.rows @ F.normalize(start, dim=0)).max()
    last = before
    for steps in (1, 5, 20):
        now = cosines(synthesize(model, targets, start=start, steps=steps), targets).min()
        assert now > last or steps == 1
        last = now
    assert last > 0.8
    once = synthesize(model, targets, seed=4, progress=lambda *at: told.append(at))
    assert told == [(i + 1, 10) for i in range(10)]
    assert torch.equal(once.rows, synthesize(model, targets, seed=4).rows)
    assert not torch.equal(once.rows, synthesize(model, targets, seed=5).rows)


@pytest.mark.parametrize(
    "family",
    ["open_clip ViT", "OpenAI ViT", "CLIPModel", "SiglipModel"],
)
def test_pixel_space_climbs_in_every_family_and_leaves_the_model_alone(family):
    model = FAMILIES[family].build()
    model.train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    width = FAMILIES[family].encode(model.eval(), "image").shape[1]
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    targets, told = texts(width), []
    options = {"space": "pixel", "preprocess": PROCESSOR, "seed": 1, "batch_size": 2}
    with torch.no_grad():
        few = synthesize(model, targets, steps=1, **options)
        many = synthesize(model, targets, steps=25, progress=lambda *at: told.append(at), **options)
    assert cosines(many, targets).mean() > cosines(few, targets).mean() + 0.02
    assert told == [(i + 1, 50) for i in range(50)]
    assert torch.equal(many.rows, synthesize(model, targets, steps=25, **options).rows)
    assert not torch.equal(
        many.rows, synthesize(model, targets, steps=25, **options | {"seed": 2}).rows
    )
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Watched(nn.Module):
    """A linear encoder that keeps what it was shown, and its own mean and deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = SimpleNamespace(
            image_size=(8, 6), image_mean=(0.2,) * 3, image_std=(0.5,) * 3
        )
        self.head = nn.Linear(3 * 8 * 6, 4)
        self.seen: list[torch.Tensor] = []

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels.detach())
        return self.head(pixels.flatten(1))


@pytest.mark.parametrize(("preprocess", "mean", "std"), [(None, 0.2, 0.5), (PROCESSOR, 0.5, 0.25)])
def test_pixels_stay_in_the_range_that_mean_and_deviation_give(preprocess, mean, std):
    model = Watched()
    synthesize(model, texts(4), space="pixel", steps=30, preprocess=preprocess)
    seen = torch.cat(model.seen) * std + mean
    assert seen.shape[1:] == (3, 8, 6)
    assert seen.min() == pytest.approx(0, abs=1e-6)
    assert seen.max() == pytest.approx(1, abs=1e-6)


def test_pixels_are_not_rounded_by_a_callers_autocast():
    seen = []

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
            self.visual = SimpleNamespace(image_size=8, image_mean=[0.5] * 3, image_std=[0.2] * 3)

        def encode_image(self, pixels):
            seen.append(pixels.detach())
            return (pixels.mean(dim=(2, 3))[:, None] * self.p).sum(-1)

    rows = synthesize(Linear(), texts(4), space="pixel", steps=12).rows
    plain, seen = seen, []
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(synthesize(Linear(), texts(4), space="pixel", steps=12).rows, rows)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))


def test_embedded_model_calls_a_synthesised_image_by_its_name():
    from clipproj import embed_classes

    loaded = load_model(None, None, "cpu")
    names = demo.class_names()[:20]
    found = embed_classes(loaded.model, loaded.tokenizer, names, ["a {}", "the {}"])
    cells = Cells(found.tensor, names, ["drawing"] * len(names))
    made = synthesize(loaded.model, cells, space="pixel", steps=60, preprocess=loaded.preprocess)
    answers = (made.rows @ found.tensor.T).argmax(1)
    assert (answers == torch.arange(len(names))).float().mean() > 0.7


class NoImages(nn.Module):
    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": NoImages()}, TypeError, "model must have encode_image"),
        ({"texts": torch.ones(2, 4)}, TypeError, "texts must be Cells, got Tensor"),
        ({"space": "words"}, ValueError, 'space must be "feature" or "pixel", got \'words\''),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an integer, got float"),
        ({"rate": 0.0}, ValueError, "rate must be finite and above 0"),
        ({"start": torch.ones(3)}, ValueError, r"start must be \[4\] as the texts are, got \[3\]"),
        ({"start": torch.full((4,), float("nan"))}, ValueError, "got a NaN or inf"),
        ({"space": "pixel", "start": torch.ones(4)}, ValueError, "start must be None"),
        ({"space": "pixel", "texts": texts(5)}, ValueError, "width of the model's image features"),
        (
            {"space": "pixel", "model": FAMILIES["CLIPModel"].build(), "texts": texts(WIDTH)},
            ValueError,
            "preprocess must tell mean and standard deviation",
        ),
    ],
)
def test_errors(options, error, message):
    usual = {"model": Watched(), "texts": texts(4)}
    with pytest.raises(error, match=message):
        synthesize(**usual | options)
