"""ONNX, run by onnxruntime: towers with an edit folded in, operators replaced by plain torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import recipes
import torch
from editing import projector
from families import FAMILIES
from torch import Tensor, nn

import clipproj
from clipproj import ops, reference
from clipproj.models import encoder

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
BATCH = {0: torch.export.Dim("batch")}
Run = Callable[..., Tensor]


def session(program: torch.onnx.ONNXProgram) -> Run:
    """The exported model as a function of tensors, run by onnxruntime."""
    assert {node.domain for node in program.model.graph} <= {""}, "an operator that is not ONNX's"
    runtime = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in runtime.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        given = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
        return torch.from_numpy(runtime.run(None, given)[0])

    return run


class ImageFeatures(nn.Module):
    """`get_image_features` of a model of transformers, with one tensor in and one out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return encoder.features(self.model.get_image_features(pixel_values=pixel_values))


@pytest.mark.parametrize("family", ["the embedded model", "open_clip ViT", "CLIPModel"])
def test_an_edited_tower(family: str) -> None:
    if family == "the embedded model":
        model, p, size = recipes.demo(), recipes.projectors()["cat"], recipes.SIZE
    else:
        model, p, size = FAMILIES[family].build(), projector(), FAMILIES[family].image_size
    tower = (ImageFeatures(model) if family == "CLIPModel" else model.visual).eval()
    given = torch.randn(3, 3, size, size)

    def export() -> Run:
        options = {"dynamo": True, "dynamic_shapes": (BATCH,), "verbose": False}
        return session(torch.onnx.export(tower, (given,), **options))

    with torch.no_grad(), clipproj.edit(model, p) as edit:
        edited = export()
        for n in (1, 2, 5):
            x = torch.randn(n, 3, size, size)
            torch.testing.assert_close(edited(x), tower(x), rtol=1e-4, atol=1e-5)
            assert p.residual(edited(x)).max() < 1e-5
        edit.undo()
        assert p.residual(edited(given)).max() < 1e-5 < 1e-3 < p.residual(tower(given)).min()


class OnTheFly(nn.Module):
    """Features [n, d] through one operator, its factors buffers."""

    def __init__(self, op: Callable[..., Tensor], *factors: Tensor | None) -> None:
        super().__init__()
        self.op, self.count = op, len(factors)
        for i, factor in enumerate(factors):
            self.register_buffer(f"factor{i}", factor)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        factors = [getattr(self, f"factor{i}") for i in range(self.count)]
        return self.op(x, *factors, *rest, normalize=True)


def exported(module: nn.Module, *given: Tensor) -> torch.export.ExportedProgram:
    rest = tuple(BATCH if t.ndim else None for t in given[1:])  # the module's *rest
    shapes = (BATCH, rest) if rest else (BATCH,)
    return torch.export.export(module.eval(), given, dynamic_shapes=shapes)


def test_an_operator_is_refused_by_name() -> None:
    p = projector()
    program = exported(OnTheFly(ops.project, p.read, p.write), torch.randn(3, p.dim))
    with pytest.raises(torch.onnx.OnnxExporterError) as refusal:
        torch.onnx.export(program, dynamo=True, verbose=False)
    assert "clipproj.project" in str(refusal.value)


@pytest.mark.parametrize("strength", [torch.rand(4), torch.tensor(0.5)], ids=["per row", "one"])
@pytest.mark.parametrize("kind", ["symmetric", "oblique", "affine"])
def test_a_projector_in_plain_torch(kind: str, strength: Tensor) -> None:
    p, x = projector(kind), torch.randn(4, 32)
    module = OnTheFly(ops.project, p.read, p.write, p.offset)
    program = exported(module, x, strength)
    plain = program.run_decompositions({torch.ops.clipproj.project.default: reference.plain})
    run = session(torch.onnx.export(plain, dynamo=True, verbose=False))
    for n in (1, 4, 7):
        x, s = torch.randn(n, 32), torch.rand(n) if strength.ndim else torch.rand(())
        torch.testing.assert_close(run(x, s), module(x, s), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_clamps_in_plain_torch(k: int) -> None:
    read = torch.linalg.qr(torch.randn(32, k)).Q.T.contiguous()
    module = OnTheFly(ops.project, read, read, torch.rand(k) / 10)
    x, gram = torch.randn(4, 32), torch.eye(k)

    def program(gram: Tensor) -> torch.export.ExportedProgram:
        module.op = functools.partial(ops.project, gram=gram)
        return exported(module, x, torch.ones(4))

    def plain(made: torch.export.ExportedProgram, **options: bool) -> torch.export.ExportedProgram:
        replaced = functools.partial(reference.plain, **options)
        return made.run_decompositions({torch.ops.clipproj.project.default: replaced})

    made = plain(program(gram), **({} if k == 1 else {"clamps": True}))
    onnx = torch.onnx.export(made, dynamo=True, verbose=False)
    assert [node.op_type for node in onnx.model.graph].count("Relu") == 1
    run = session(onnx)
    for n in (1, 4, 7):
        x, s = torch.randn(n, 32), 2 * torch.rand(n)
        torch.testing.assert_close(run(x, s), module(x, s), rtol=1e-5, atol=1e-6)
    x = torch.randn(4, 32)
    if k > 1:
        with pytest.raises(ValueError, match=r"plain: gram must be diagonal .*, got \[3, 3\]"):
            plain(program(gram))


def test_a_bank_in_plain_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = recipes.run("ONNX")["plain"]
    d, k, m = 32, 9, 5
    spans = torch.tensor(
        [[0, 3], [3, 0], [3, 1], [4, 5], [8, 2]], dtype=torch.int32
    )  # last: past k
    factors = torch.randn(k, d) / d**0.5, torch.randn(k, d) / d**0.5, torch.randn(k), spans
    module = OnTheFly(ops.project_rows, *factors)

    def rows(n: int) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(-1, m - 1, (n,), dtype=torch.int32)
        return torch.randn(n, d), index, torch.rand(n)

    program = exported(module, *rows(4)).run_decompositions(plain)
    run = session(torch.onnx.export(program, dynamo=True, verbose=False))
    for n in (1, 4, 64):
        given = rows(n)
        torch.testing.assert_close(run(*given), module(*given), rtol=1e-5, atol=1e-6)
    for bad in (-2, m - 1, m, 2**31 - 1):
        x, index, strength = rows(4)
        want = module(x, index, strength)
        index[2] = bad
        with pytest.raises(RuntimeError, match=r"index must|spans must"):
            module(x, index, strength)
        got = run(x, index, strength)
        assert got[2].isnan().all()
        others = torch.arange(4) != 2
        torch.testing.assert_close(got[others], want[others], rtol=1e-5, atol=1e-6)
