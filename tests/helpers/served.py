"""How a server runs an operator that is joined to a product: the same questions of each of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from cases import features, orthonormal
from torch import Tensor, nn
from torch.nn import functional

Arguments = Callable[[int], tuple[Tensor, ...]]  # of a model that takes a batch of so many rows

_LOADED = """
import sys, torch, clipproj
loaded = torch._inductor.aoti_load_package(sys.argv[1])
for given, want in torch.load(sys.argv[2]):
    torch.testing.assert_close(loaded(*given), want)
"""


def layouts(dtype: torch.dtype, device: str, width: int) -> dict[str, Tensor]:
    """Rows of `width` features as views of all kinds."""
    three = features(24, width, dtype, device).view(4, 6, width)
    return {
        "slice": features(40, 2 * width, dtype, device)[1:34, 3 : 3 + width],
        "every other": features(40, 2 * width, dtype, device)[:, 1::2],
        "transposed": features(width, 33, dtype, device).T,
        "one": features(1, width, dtype, device)[0],
        "three dims": three,
        "permuted": three.transpose(0, 1),
        "expanded": features(1, width, dtype, device).expand(33, width),
        "constant rows": features(33, 1, dtype, device).expand(33, width),
        "size-1 dims": features(5, width, dtype, device)[:, None, None, :],
        "empty": features(0, width, dtype, device).view(0, 3, width),
    }


def almost_erased(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Rows x [300, 512] with 1 % of their length outside the span of read [16, 512]."""
    n, d, k = 300, 512, 16
    read = orthonormal(k, d, dtype, device)
    inside = functional.normalize(features(n, k, torch.float64, device), dim=-1) @ read.double()
    x = 0.99 * inside + 0.01 * features(n, d, torch.float64, device) / d**0.5
    return x.to(dtype), read


def assert_compiles_once(model: nn.Module, arguments: Arguments) -> None:
    """One graph serves every size of batch."""
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        given = arguments(7)
        torch.testing.assert_close(compiled(*given), model(*given))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n in (33, 3, 257):
                given = arguments(n)
                torch.testing.assert_close(compiled(*given), model(*given))


def exported(model: nn.Module, arguments: Arguments) -> torch.export.ExportedProgram:
    """The model with a batch of any size."""
    batch = {0: torch.export.Dim("batch", min=2, max=4096)}
    given = arguments(7)
    return torch.export.export(model, given, dynamic_shapes=(batch,) * len(given))


def assert_exports(model: nn.Module, arguments: Arguments, operator: object) -> None:
    """The exported graph holds the operator itself, and serves every size of batch."""
    program = exported(model, arguments)
    assert any(node.target is operator for node in program.graph.nodes)
    for n in (2, 33):
        given = arguments(n)
        torch.testing.assert_close(program.module()(*given), model(*given))


def assert_runs_ahead_of_time(model: nn.Module, arguments: Arguments, folder: Path) -> None:
    """What AOT Inductor makes of it gives the same in another process."""
    package = torch._inductor.aoti_compile_and_package(
        exported(model, arguments), package_path=str(folder / "model.pt2")
    )
    cases = [(given, model(*given)) for given in (arguments(2), arguments(33))]
    torch.save(cases, folder / "cases.pt")
    command = [sys.executable, "-c", _LOADED, package, str(folder / "cases.pt")]
    subprocess.run(command, check=True, timeout=300)
