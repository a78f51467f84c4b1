"""A service on a GPU: tenants and edits change, nothing is recorded again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import recipes
import torch
from cases import assert_bits
from editing import projector
from torch import Tensor
from torch._dynamo.utils import counters

import clipproj
from clipproj import Projector, ProjectorBank, ZeroShotHead

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each CUDA graph that is recorded."""
    seen: list[str] = []
    begin = torch.cuda.CUDAGraph.capture_begin

    def counted(self: torch.cuda.CUDAGraph, *args: Any, **options: Any) -> None:
        seen.append("recorded")
        begin(self, *args, **options)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", counted)
    return seen


def tenant(kind: str = "symmetric", seed: int = 3) -> Projector:
    return projector(kind, seed=seed, dim=recipes.WIDTH)


def wanted(bank: ProjectorBank, names: list[str | None], features: Tensor, s: Tensor) -> Tensor:
    """Rows by each one's projector; a row's bits do not depend on its neighbours."""
    rows = []
    for name, feature, strength in zip(names, features, s, strict=True):
        p = bank.projector(name) if name else Projector(feature.new_zeros(0, recipes.WIDTH))
        rows.append(p.cuda()(feature[None], strength, normalize=True))
    return torch.cat(rows)


def test_the_recipe(captures: list[str]) -> None:
    page = recipes.run("CUDA graphs")
    graph, bank, index, rows = (page[name] for name in ("graph", "bank", "index", "rows"))
    features = page["model"].encode_image(page["images"])

    def check(names: list[str | None]) -> None:
        index.copy_(bank.index(names))
        page["strength"].uniform_()
        rows.fill_(torch.nan)
        graph.replay()
        bank.check()
        want = wanted(bank, names, features, page["strength"])
        torch.testing.assert_close(rows, want, rtol=1e-3, atol=1e-4)
        logits = page["head"].scale * want @ page["head"].classes.T
        torch.testing.assert_close(page["logits"], logits, rtol=1e-3, atol=1e-2)

    check(["acme", None] * 4)
    bank.add("beta", tenant("affine", seed=4))
    check(["acme", "beta"] * 4)
    bank.replace("beta", tenant("oblique", seed=5))
    check([None, "beta"] * 4)
    bank.remove("beta")  # index still holds it
    graph.replay()
    assert rows[1::2].isnan().all()
    assert not rows[::2].isnan().any()
    with pytest.raises(RuntimeError, match="index must hold indices of the bank"):
        bank.check()
    check(["acme", None] * 4)
    assert len(captures) == 1


def test_reduce_overhead(captures: list[str]) -> None:
    bank = ProjectorBank(recipes.WIDTH, 64, entries=100, device="cuda")
    classes = torch.nn.functional.normalize(torch.randn(5, recipes.WIDTH), dim=1).cuda()
    head = ZeroShotHead(classes, bank, 10.0)

    def step(features: Tensor, index: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        rows = bank(features, index, strength, normalize=True)
        return rows, head(features, index, strength=strength)

    compiled = torch.compile(step, fullgraph=True, mode="reduce-overhead")

    def check(names: list[str | None]) -> None:
        features = torch.randn(len(names), recipes.WIDTH, device="cuda")
        strength = torch.rand(len(names), device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        rows, logits = compiled(features, bank.index(names), strength)
        want = wanted(bank, names, features, strength)
        torch.testing.assert_close(rows, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, 10 * want @ classes.T, rtol=1e-3, atol=1e-2)
        bank.check()

    bank.add("acme", tenant())
    for _ in range(3):  # warms up, records, replays
        check(["acme", None] * 4)
    recorded = len(captures)
    assert recorded, "no CUDA graph was made"
    with torch._dynamo.config.patch(error_on_recompile=True):
        bank.add("beta", tenant("affine", seed=4))
        check(["acme", "beta"] * 4)
        bank.replace("acme", tenant("oblique", seed=5))
        check(["beta", "acme"] * 4)
        bank.remove("beta")
        check(["acme", None] * 4)
    assert len(captures) == recorded
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]["cudagraph_skips"] == 0


def test_a_replay_sees_edits() -> None:
    model, p = recipes.demo().cuda(), recipes.projectors()["cat"]
    images = recipes.images(8).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        model.visual(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features = model.visual(images)
    graph.replay()
    before = features.clone()
    edit = clipproj.edit(model, p)
    graph.replay()
    assert p.residual(features.cpu()).max() < 1e-4 < 1e-2 < p.residual(before.cpu()).max()
    edit.undo()
    graph.replay()
    assert_bits(features, before)


class Service(torch.nn.Module):
    """Features to logits, the bank in one place."""

    def __init__(self, head: ZeroShotHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, index: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.head.projector(x, index, strength, normalize=True)
        return rows, self.head(x, index, strength=strength)


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_package_reads_a_live_bank(tmp_path: Path) -> None:
    classes = torch.nn.functional.normalize(torch.randn(5, recipes.WIDTH), dim=1).cuda()
    bank = ProjectorBank(recipes.WIDTH, 64, entries=100, device="cuda")
    service = Service(ZeroShotHead(classes, bank, 10.0)).eval()
    index = torch.full((8,), -1, dtype=torch.int32, device="cuda")
    given = torch.randn(8, recipes.WIDTH, device="cuda"), index, torch.ones(8, device="cuda")
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(service, given, dynamic_shapes=(batch, batch, batch))
    path = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(tmp_path / "service.pt2")
    )
    served = torch._inductor.aoti_load_package(path)
    held = set(served.get_constant_fqns())
    shared = {f"head.projector.{name}": buffer for name, buffer in bank.named_buffers()}
    shared = {name: buffer for name, buffer in shared.items() if name in held}
    served.load_constants(shared, check_full_update=False, user_managed=True)
    for i, kind in enumerate(("symmetric", "oblique", "affine")):
        bank.add(kind, tenant(kind, seed=i))
        names: list[str | None] = [kind, None, "symmetric"] * 3
        features = torch.randn(9, recipes.WIDTH, device="cuda")
        strength = torch.rand(9, device="cuda")
        rows, logits = served(features, bank.index(names), strength)
        want = wanted(bank, names, features, strength)
        torch.testing.assert_close(rows, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, 10 * want @ classes.T, rtol=1e-3, atol=1e-2)
