"""A service step compiled once: tenants, strengths and batches change, the graph does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import recipes
import torch
from editing import projector
from families import FAMILIES
from torch import Tensor, nn
from torch._dynamo.utils import counters

import clipproj
from clipproj import ProjectorBank, ZeroShotHead
from clipproj.models import encoder

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_the_recipe() -> None:
    recipes.run("A compiled service step")
    assert graphs() == 2, "a graph from images and one from features"


class Service:
    """A model, a bank and a head; what each tenant must see is worked out from its projector."""

    def __init__(self, encode: Callable[[Tensor], Tensor], dim: int) -> None:
        self.encode = encode
        self.bank = ProjectorBank(dim, 64, entries=100)
        self.classes = nn.functional.normalize(torch.randn(5, dim), dim=1)
        self.head = ZeroShotHead(self.classes, self.bank, 10.0)
        self.held: dict[str | None, clipproj.Projector] = {}

    def add(self, name: str, p: clipproj.Projector) -> None:
        (self.bank.replace if name in self.bank else self.bank.add)(name, p)
        self.held[name] = p

    def step(self, images: Tensor, index: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        return self.tail(self.encode(images), index, strength)

    def tail(self, features: Tensor, index: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.bank(features, index, strength, normalize=True)
        return rows, self.head(features, index, strength=strength)

    def names(self, n: int) -> list[str | None]:
        return ([*self.held, None] * n)[:n]

    def check(
        self, step: Step, x: Tensor, names: Sequence[str | None], features: Tensor, mark: Callable
    ) -> None:
        given = x, self.bank.index(names), torch.rand(len(x))
        for tensor in given:
            mark(tensor, 0)
        rows, logits = step(*given)
        want = [
            nn.functional.normalize(f[None]) if name is None else self.held[name](f[None], s, True)
            for name, f, s in zip(names, features, given[2], strict=True)
        ]
        want = torch.cat(want) if want else features
        torch.testing.assert_close(rows, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, 10 * want @ self.classes.T, rtol=1e-4, atol=1e-4)


def service(family: str) -> tuple[Service, int]:
    """With the size of its images."""
    if family == "the embedded model":
        return Service(recipes.demo().encode_image, recipes.WIDTH), recipes.SIZE
    model = FAMILIES[family].build()
    if family == "CLIPModel":
        return Service(lambda x: encoder.features(model.get_image_features(x)), 32), 32
    return Service(model.encode_image, 32), 32


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("open_clip ViT", (7, 2, 64, 15, 16, 3)),
        ("CLIPModel", (7, 2, 64, 15, 16, 3)),
        ("the embedded model", (33, 16, 64, 17)),  # from 16 up: see the page
    ],
)
def test_one_graph_from_images(family: str, sizes: Sequence[int]) -> None:
    served, size = service(family)
    bank, dim = served.bank, served.bank.dim
    step = torch.compile(served.step, fullgraph=True)

    def check(n: int) -> None:
        x = torch.randn(n, 3, size, size)
        served.check(step, x, served.names(n), served.encode(x), torch._dynamo.mark_dynamic)

    served.add("acme", projector(dim=dim))
    check(sizes[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        served.add("beta", projector("affine", seed=4, dim=dim))
        check(sizes[1])
        served.add("acme", projector("oblique", seed=5, dim=dim))
        check(sizes[2])
        stale = bank.index(["beta"] * sizes[3])
        bank.remove("beta")
        del served.held["beta"]
        check(sizes[3])
        given = torch.randn(sizes[3], 3, size, size), stale, torch.rand(sizes[3])
        for tensor in given:
            torch._dynamo.mark_dynamic(tensor, 0)
        with pytest.raises(RuntimeError, match=r"(project_rows|logits): spans must"):
            step(*given)
        for i, n in enumerate(sizes[4:]):
            served.add(f"more {i}", projector(seed=6 + i, dim=dim))
            check(n)
    assert graphs() == 1


def test_sizes_0_and_1_and_few_images_are_graphs_of_their_own() -> None:
    served, size = service("the embedded model")
    served.add("acme", projector(dim=recipes.WIDTH))
    step = torch.compile(served.step, fullgraph=True, backend="aot_eager")

    def check(n: int) -> None:
        x = torch.randn(n, 3, size, size)
        served.check(step, x, served.names(n), served.encode(x), torch._dynamo.mark_dynamic)

    for n in (16, 15, 1, 0):
        check(n)
    assert graphs() <= 4
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (64, 2, 1, 0):
            check(n)


def test_one_graph_from_features_of_any_batch() -> None:
    served = Service(lambda x: x, 32)
    served.add("acme", projector())

    @torch.compile(fullgraph=True)
    def tail(features: Tensor, index: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        return served.tail(features, index, strength)

    def check(n: int) -> None:
        x = torch.randn(n, 32)
        served.check(tail, x, served.names(n), x, torch._dynamo.decorators.mark_unbacked)

    check(7)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i, n in enumerate((1, 0, 2, 300)):
            served.add(f"more {i}", projector("affine", seed=4 + i))
            check(n)
    assert graphs() == 1


def test_own_strengths_are_read_at_each_call() -> None:
    bank, x = ProjectorBank(32, 64, entries=9), torch.randn(4, 32)
    bank.add("acme", projector().scaled(0.25))
    call = torch.compile(bank, fullgraph=True)
    call(x, bank.index(["acme", None] * 2))
    with torch._dynamo.config.patch(error_on_recompile=True):
        bank.add("beta", projector("oblique"))
        bank.replace("acme", projector(seed=4).scaled(1.5))
        names = ["acme", "beta", None, "acme"]
        got = call(x, bank.index(names))
    want = [
        f if name is None else bank.projector(name)(f) for name, f in zip(names, x, strict=True)
    ]
    torch.testing.assert_close(got, torch.stack(want))
    assert graphs() == 1
