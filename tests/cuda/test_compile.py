"""CUDA: torch.compile with CUDA graphs, export, AOTInductor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from cases import assert_bits
from every_op import OPERATORS, inputs
from torch import Tensor, nn
from torch._dynamo.utils import counters

from clipproj import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Without those that write: torch.compile makes no CUDA graph of what changes its inputs.
RETURNING = ["project", "projected_norm", "project_rows"]
RETURNING += ["linear", "linear, per row", "logits", "logits, per row"]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize("name", RETURNING)
def test_reduce_overhead_follows_tenants_and_strengths(name: str) -> None:
    given = inputs(64, 512, 20)
    compiled = torch.compile(OPERATORS[name], mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        compiled(given)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(4):  # warms up, records, replays
                given.renew()
                torch.compiler.cudagraph_mark_step_begin()
                assert_bits(compiled(given), OPERATORS[name](given))
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.parametrize("name", RETURNING)
def test_one_compilation_serves_every_batch(name: str) -> None:
    compiled = torch.compile(OPERATORS[name], fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for n in (7, 64, 2, 1000):
            given = inputs(n, 512, 20)
            for field in ("x", "strength", "index", "wide"):
                torch._dynamo.mark_dynamic(getattr(given, field), 0)
            assert_bits(compiled(given), OPERATORS[name](given))
    assert counters["stats"]["unique_graphs"] == 1


class Served(nn.Module):
    """A tower's end with a projector for each row, then class logits."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in vars(inputs(1, 512, 20)).items():
            if name not in ("x", "index", "strength", "wide"):
                self.register_buffer(name, value)

    def forward(self, wide: Tensor, index: Tensor, strength: Tensor) -> Tensor:
        bank = (self.read, self.write, self.offset)
        z = ops.linear(wide, self.weight, self.bias, *bank, strength, spans=self.spans, index=index)
        z = ops.project_rows(z, *bank, self.spans, index, strength, normalize=True)
        y = ops.project(z, self.read, self.read, None, self.one_strength)
        return ops.logits(
            y, self.classes, *bank, strength, self.scale, spans=self.spans, index=index
        )


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    given = inputs(7, 512, 20)
    batch = {0: torch.export.Dim("batch", min=2, max=65536)}
    arguments = (given.wide, given.index, given.strength)
    return torch.export.export(model, arguments, dynamic_shapes=(batch, batch, batch))


def test_export() -> None:
    model = Served()
    program = exported(model).module()
    for n in (2, 300):
        given = inputs(n, 512, 20)
        arguments = (given.wide, given.index, given.strength)
        assert_bits(program(*arguments), model(*arguments))


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_aot_inductor(tmp_path: Path) -> None:
    model = Served()
    package = torch._inductor.aoti_compile_and_package(
        exported(model), package_path=str(tmp_path / "served.pt2")
    )
    loaded = torch._inductor.aoti_load_package(package)
    for n in (2, 300):
        given = inputs(n, 512, 20)
        arguments = (given.wide, given.index, given.strength)
        assert_bits(loaded(*arguments), model(*arguments))
