"""The operators as PyTorch sees them: schemas, opcheck, torch.compile, export, AOTInductor."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from cases import DTYPES, RANKS, assert_bits, bank, factor_dtype, factors, features
from torch import Tensor, nn

from clipproj import ops, reference

RAW = torch.ops.clipproj
POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
OVERLOADS = [
    f"{name}.{overload}" for name in ops.__all__ for overload in getattr(RAW, name).overloads()
]
TYPES = {
    "Tensor": Tensor,
    "Optional[Tensor]": Tensor | None,
    "bool": bool,
    "int": int,
    "Optional[int]": torch.dtype | None,  # what a ScalarType? is to TorchScript
}


def operator(name: str) -> torch._ops.OpOverload:
    packet, _, overload = name.partition(".")
    return getattr(getattr(RAW, packet), overload or "default")


def parameters(op: torch._ops.OpOverload) -> list[inspect.Parameter]:
    """What the schema would be as a Python function's."""
    return [
        inspect.Parameter(
            arg.name,
            inspect.Parameter.KEYWORD_ONLY if arg.kwarg_only else POSITIONAL,
            default=arg.default_value if arg.has_default_value() else inspect.Parameter.empty,
            annotation=TYPES[str(arg.type)],
        )
        for arg in op._schema.arguments
    ]


def test_there_is_a_public_form_of_every_operator() -> None:
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("clipproj:")]
    assert {name.removeprefix("clipproj::").partition(".")[0] for name in names} == {*ops.__all__}


@pytest.mark.parametrize("name", ops.__all__)
def test_public_form_reference_and_schema_agree(name: str) -> None:
    """Names, order, types and defaults: csrc/operators.h says them, the others repeat them."""
    want = parameters(operator(name))
    if "flag" in getattr(RAW, name).overloads():
        *same, flag = parameters(operator(f"{name}.flag"))
        assert same == want
        assert flag.annotation is Tensor
        want.append(flag.replace(default=None, annotation=Tensor | None))
    signature = inspect.signature(getattr(ops, name))
    assert [*signature.parameters.values()] == want
    assert signature.return_annotation is Tensor

    function = getattr(reference, name.removesuffix("_out").removesuffix("_"))
    found = inspect.signature(function, eval_str=True).parameters.values()
    assert [*found] == [one for one in want if one.name not in ("out", "flag", "dtype")]


@pytest.mark.pairwise
@pytest.mark.parametrize("full", [False, True], ids=["required", "all"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "requires grad"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OVERLOADS)
def test_opcheck(name: str, dtype: torch.dtype, layout: str, full: bool) -> None:
    op = operator(name)
    if layout == "requires grad" and not op._schema.returns:
        pytest.skip("operators that write refuse it: test_autograd.py")
    x = features(6, 6, dtype).requires_grad_(layout == "requires grad")
    x = x.T if layout == "transposed" else x
    option = "symmetric" if not full else "per-row" if name.startswith("fold_") else "one-sided"
    banked = any(arg.name == "spans" for arg in op._schema.arguments)
    given = bank(option, 6, 6, [2, 0, 3], dtype) if banked else factors(option, 6, 6, 5, dtype)
    given |= {
        "x": x,
        "weight": x,
        "dim": 0,
        "bias": x.detach()[0],
        "classes": x.detach(),
        "scale": torch.tensor(10, dtype=factor_dtype(dtype)),
        "normalize": True,
        "out": torch.empty_like(x),
        "flag": torch.zeros(1, dtype=torch.int32),
        "dtype": factor_dtype(dtype),
    }
    if name.startswith("fold_"):  # one strength, and an offset only with a bias
        given |= {"offset": None, "strength": torch.tensor(0.7, dtype=factor_dtype(dtype))}
    if name.startswith("logits"):
        given["bias"] = given["scale"]
    with_flag = ("spans", "index") if name.endswith(".flag") else ()
    chosen = [
        arg
        for arg in op._schema.arguments
        if full or not arg.has_default_value() or arg.name in with_flag
    ]
    arguments = [given.get(arg.name) for arg in chosen if not arg.kwarg_only]
    options = {arg.name: given[arg.name] for arg in chosen if arg.kwarg_only}
    torch.library.opcheck(op, tuple(arguments), options)


def private(path: Path) -> list[str]:
    """The private names of torch in a file; torch._check is documented."""
    found, ours = [], {"torch"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            ours |= {alias.asname or alias.name for alias in node.names}
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("torch.")]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        found += [
            name
            for name in names
            if re.search(r"\._(?!_|check\b)", name)
            and (name.partition(".")[0] in ours or re.search(r"\._(schema|opname)$", name))
        ]
    return found


def test_private_symbols_of_torch_stand_in_one_file() -> None:
    package = Path(ops.__file__).parents[1]
    files = {path.relative_to(package).as_posix(): private(path) for path in package.rglob("*.py")}
    assert len(files.pop("ops/_torch.py")) > 10  # the search finds what there is
    assert {path: names for path, names in files.items() if names} == {}


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


@pytest.mark.campaign
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
