"""The operators as PyTorch sees them: schemas, opcheck, torch.compile, export, AOTInductor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import DTYPES, RANKS, assert_bits, bank, factors, features
from torch import Tensor, nn

from clipproj import ops

RAW = torch.ops.clipproj
BANK = ("read", "write", "offset", "spans", "index", "strength")  # as project_rows takes them
SCHEMAS = {
    "project": "(Tensor x, Tensor read, Tensor write, Tensor? offset=None, "
    "Tensor? strength=None, *, bool normalize=False) -> Tensor",
    "project_": "(Tensor(a!) x, Tensor read, Tensor write, Tensor? offset=None, "
    "Tensor? strength=None, *, bool normalize=False) -> ()",
    "project_out": "(Tensor x, Tensor read, Tensor write, Tensor? offset=None, "
    "Tensor? strength=None, *, bool normalize=False, Tensor(a!) out) -> ()",
    "project_rows": "(Tensor x, Tensor read, Tensor write, Tensor? offset, Tensor spans, "
    "Tensor index, Tensor? strength=None, *, bool normalize=False) -> Tensor",
    "project_rows.flag": "(Tensor x, Tensor read, Tensor write, Tensor? offset, Tensor spans, "
    "Tensor index, Tensor? strength=None, *, bool normalize=False, Tensor(a!) flag) -> Tensor",
    "linear": "(Tensor x, Tensor weight, Tensor? bias, Tensor read, Tensor write, "
    "Tensor? offset=None, Tensor? strength=None, *, bool normalize=False, Tensor? spans=None, "
    "Tensor? index=None) -> Tensor",
    "linear.flag": "(Tensor x, Tensor weight, Tensor? bias, Tensor read, Tensor write, "
    "Tensor? offset=None, Tensor? strength=None, *, bool normalize=False, Tensor? spans=None, "
    "Tensor? index=None, Tensor(a!) flag) -> Tensor",
    "logits": "(Tensor x, Tensor classes, Tensor read, Tensor write, Tensor? offset, "
    "Tensor? strength, Tensor scale, Tensor? bias=None, *, "
    "Tensor? spans=None, Tensor? index=None, ScalarType? dtype=None) -> Tensor",
    "logits.flag": "(Tensor x, Tensor classes, Tensor read, Tensor write, Tensor? offset, "
    "Tensor? strength, Tensor scale, Tensor? bias=None, *, "
    "Tensor? spans=None, Tensor? index=None, ScalarType? dtype=None, Tensor(a!) flag) -> Tensor",
    "fold_": "(Tensor(a!) weight, Tensor read, Tensor write, Tensor? offset=None, "
    "Tensor? strength=None, *, int dim) -> ()",
    "projected_norm": "(Tensor x, Tensor read, Tensor write, Tensor? offset=None, "
    "Tensor? strength=None) -> Tensor",
}


def operator(name: str) -> torch._ops.OpOverload:
    packet, _, overload = name.partition(".")
    return getattr(getattr(RAW, packet), overload or "default")


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    assert str(operator(name)._schema) == f"clipproj::{name}{SCHEMAS[name]}"


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "requires grad"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", [name for name in SCHEMAS if name.split(".")[0] not in ("linear", "logits")]
)  # those in their own files
def test_opcheck(name: str, dtype: torch.dtype, layout: str) -> None:
    if layout == "requires grad" and name in ("project_", "project_out", "fold_"):
        pytest.skip("operators that write refuse it: test_autograd.py")
    x = features(6, 6, dtype).requires_grad_(layout == "requires grad")
    x = x.T if layout == "transposed" else x
    options: dict[str, dict] = {
        "project": {"normalize": True},
        "project_": {"normalize": True},
        "project_out": {"normalize": True, "out": torch.empty_like(x)},
        "project_rows": {"normalize": True},
        "project_rows.flag": {"normalize": True, "flag": torch.zeros(1, dtype=torch.int32)},
        "fold_": {"dim": 0},
    }
    if name.startswith("project_rows"):
        for option in ("symmetric", "oblique", "per-row"):
            given = bank(option, 6, 6, [2, 0, 3], dtype)
            arguments = [given.get(key) for key in BANK]
            torch.library.opcheck(operator(name), (x, *arguments), options[name])
        return
    option = "strength" if name == "fold_" else "per-row"
    for given in (factors("oblique", 6, 6, 2, dtype), factors(option, 6, 6, 2, dtype)):
        arguments = [given.get(key) for key in ("read", "write", "offset", "strength")]
        torch.library.opcheck(operator(name), (x, *arguments), options.get(name, {}))


class Edited(nn.Module):
    """An encoder's end with a projector after it, as a server would compile it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 16)
        for name, factor in factors("strength", 1, 16, 3).items():
            self.register_buffer(name, factor)

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(x)
        return ops.project(z, self.read, self.write, None, self.strength, normalize=True) * 2


def test_compile_with_a_dynamic_batch_compiles_once() -> None:
    model = Edited()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    x = features(7, 12)
    torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n in (33, 2, 257):
                x = features(n, 12)
                torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_gradients(backend: str) -> None:
    model = Edited()
    x = features(7, 12)
    want = torch.autograd.grad(model(x).square().sum(dim=-1)[3] + model(x)[0, 1], model.head.weight)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    y = compiled(x)
    found = torch.autograd.grad(y.square().sum(dim=-1)[3] + y[0, 1], model.head.weight)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_writes(backend: str) -> None:
    given_factors = factors("strength", 4, 5, 2)

    @torch.compile(fullgraph=True, backend=backend)
    def step(weight: Tensor, block: Tensor, buffer: Tensor) -> Tensor:
        write(weight, block, buffer)
        return weight.sum() + block.sum() + buffer.sum()

    def write(weight: Tensor, block: Tensor, buffer: Tensor) -> None:
        ops.fold_(weight, **given_factors, dim=0)
        ops.project_(block[:, 1:6], **given_factors)
        ops.project_out(block[:, 1:6], **given_factors, out=buffer[:4])
        ops.project_out(buffer[4:], **given_factors, out=buffer[4:])

    weight, block, buffer = nn.Parameter(features(5, 4)), features(4, 8), features(8, 5)
    eager = weight.detach().clone(), block.clone(), buffer.clone()
    write(*eager)
    version = weight._version
    with torch.no_grad():
        step(weight, block, buffer)
    for written, want in zip((weight.detach(), block, buffer), eager, strict=True):
        assert_bits(written, want)
    assert weight._version > version


def test_compiled_refusals_say_what_eager_ones_say() -> None:
    given_factors = factors("oblique", 4, 5, 2)
    weight = nn.Parameter(features(5, 4))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def fold(weight: Tensor) -> None:
        ops.fold_(weight, **given_factors, dim=0)

    with pytest.raises(Exception, match="fold_: weight must not require grad in grad mode"):
        fold(weight)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def project(x: Tensor) -> Tensor:
        return ops.project(x, **given_factors)

    with pytest.raises(Exception, match=r"project: read must be \[k, d\] with d=6, got \[2, 5\]"):
        project(features(4, 6))


def test_functionalization_keeps_the_write() -> None:
    class Write(nn.Module):
        def forward(self, x: Tensor, read: Tensor) -> Tensor:
            y = x.clone()
            ops.project_(y[1:], read, read)
            out = ops.project_out(x, read, read, out=torch.empty_like(x))
            return y + out

    x, read = features(4, 5), factors("symmetric", 1, 5, 2)["read"]
    program = torch.export.export(Write(), (x, read)).run_decompositions()
    written = (RAW.project_.default, RAW.project_out.default)
    assert not any(node.target in written for node in program.graph.nodes)
    assert_bits(program.module()(x, read), Write()(x, read))


def export(model: nn.Module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2, max=4096)
    return torch.export.export(model, (features(7, 12),), dynamic_shapes=({0: batch},))


def test_export_with_a_dynamic_batch() -> None:
    model = Edited().requires_grad_(False)
    program = export(model)
    assert any(node.target is RAW.project.default for node in program.graph.nodes)
    for n in (2, 33):
        x = features(n, 12)
        torch.testing.assert_close(program.module()(x), model(x))


def test_export_with_an_unbacked_batch() -> None:
    class Mask(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, read: Tensor) -> Tensor:
            return ops.projected_norm(ops.project(x[mask], read, read), read, read)

    x, mask = features(7, 12), torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.bool)
    read = factors("symmetric", 1, 12, 3)["read"]
    program = torch.export.export(Mask(), (x, mask, read))
    torch.testing.assert_close(program.module()(x, ~mask, read), Mask()(x, ~mask, read))


def test_aot_inductor_round_trip(tmp_path: Path) -> None:
    model = Edited().requires_grad_(False)
    package = torch._inductor.aoti_compile_and_package(
        export(model), package_path=str(tmp_path / "edited.pt2")
    )
    loaded = torch._inductor.aoti_load_package(package)
    for n in (2, 33):
        x = features(n, 12)
        torch.testing.assert_close(loaded(x), model(x))


class Served(nn.Module):
    """An encoder's end with a projector and a strength for each row."""

    def __init__(self, flagged: bool) -> None:
        super().__init__()
        self.head = nn.Linear(12, 48)
        for name, value in bank("offset", 1, 48).items():
            self.register_buffer(name, value)
        self.register_buffer("flag", torch.zeros(1, dtype=torch.int32) if flagged else None)

    def forward(self, x: Tensor, index: Tensor, strength: Tensor) -> Tensor:
        z = self.head(x)
        tenants = (self.read, self.write, self.offset, self.spans)
        return ops.project_rows(z, *tenants, index, strength, normalize=True, flag=self.flag) * 2


def rows(n: int) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.randint(-1, len(RANKS), (n,), dtype=torch.int32)
    return features(n, 12), index, torch.rand(n)


both_forms = pytest.mark.parametrize("flagged", [False, True], ids=["unflagged", "flagged"])
BATCH = {0: torch.export.Dim("batch", min=2, max=4096)}


@both_forms
def test_one_compilation_serves_every_batch_tenant_and_strength(flagged: bool) -> None:
    model = Served(flagged)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    given = rows(7)
    for argument in given:
        torch._dynamo.mark_dynamic(argument, 0)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*given), model(*given))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n in (33, 2, 257):
                model.spans.copy_(model.spans.roll(1, 0))  # tenants that move within the bank
                given = rows(n)
                torch.testing.assert_close(compiled(*given), model(*given))


@both_forms
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_gradients_of_a_bank(backend: str, flagged: bool) -> None:
    model, given = Served(flagged), rows(7)

    def gradient(forward: nn.Module) -> Tensor:
        return torch.autograd.grad(forward(*given)[:, 3].sin().sum(), model.head.weight)[0]

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(gradient(compiled), gradient(model))


@both_forms
def test_a_bank_goes_through_export_and_aot_inductor(flagged: bool, tmp_path: Path) -> None:
    model = Served(flagged).requires_grad_(False)
    program = torch.export.export(model, rows(7), dynamic_shapes=(BATCH, BATCH, BATCH))
    wanted = operator("project_rows.flag" if flagged else "project_rows")
    assert any(node.target is wanted for node in program.graph.nodes)
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "served.pt2")
    )
    loaded = torch._inductor.aoti_load_package(package)
    for n in (2, 33):
        given = rows(n)
        torch.testing.assert_close(program.module()(*given), model(*given))
        torch.testing.assert_close(loaded(*given), model(*given))
