"""`linear`: against the reference, per row, autocast, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import served
import torch
from cases import (
    HALF,
    OPTIONS,
    assert_bits,
    bank,
    factors,
    features,
)
from torch import Tensor, nn

from clipproj import ops, reference

# (n, in, d, k): none, one, around vector widths, more rows than a chunk has at d = 512.
SHAPES = [
    (0, 8, 16, 3),
    (1, 1, 1, 0),
    (5, 1, 1, 1),
    (5, 0, 17, 2),
    (33, 15, 16, 7),
    (257, 17, 17, 17),
    (5, 96, 100, 50),
    (2, 768, 512, 16),
    (700, 24, 512, 16),
    (700, 24, 512, 0),
]


def head(
    d: int, width: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """A weight [d, width] and a bias."""
    weight = features(d, width, torch.float64) / max(width, 1) ** 0.5
    return weight.to(device, dtype), features(1, d, dtype, device)[0]


def assert_reference(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, **given: Any
) -> None:
    """`out` is what the operator makes of x, within the bound of the chain."""
    assert out.dtype == x.dtype
    assert out.shape == (*x.shape[:-1], weight.shape[0])
    assert out.is_contiguous()
    assert out.isfinite().all()
    bound = reference.linear_tolerance(x, weight, bias, **given)
    error = (out.double() - reference.linear(x, weight, bias, **given)).abs()
    assert (error <= bound).all(), f"error {error.max():.3g}, {(error / bound).max():.3g} x bound"


@pytest.mark.pairwise
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("n", "width", "d", "k"), SHAPES)
def test_matches_reference(
    device: str, dtype: torch.dtype, n: int, width: int, d: int, k: int, option: str
) -> None:
    x = features(n, width, dtype, device)
    weight, bias = head(d, width, dtype, device)
    given = factors(option, n, d, k, dtype, device)
    for normalize in (False, True):
        for b in (None, bias):
            out = ops.linear(x, weight, b, **given, normalize=normalize)
            assert_reference(out, x, weight, b, **given, normalize=normalize)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n", [0, 1, 40, 700])
def test_each_row_by_its_own_projector(
    device: str, dtype: torch.dtype, n: int, normalize: bool
) -> None:
    width, d = 24, 512
    x = features(n, width, dtype, device)
    weight, bias = head(d, width, dtype, device)
    given = bank("per-row", n, d, dtype=dtype, device=device)
    out = ops.linear(x, weight, bias, **given, normalize=normalize)
    assert_reference(out, x, weight, bias, **given, normalize=normalize)
    given["index"].fill_(-1)
    out = ops.linear(x, weight, bias, **given, normalize=normalize)
    assert_reference(out, x, weight, bias, **given, normalize=normalize)


def test_layouts(device: str, dtype: torch.dtype) -> None:
    width, d = 20, 33
    weight, bias = head(d, width, dtype, device)
    weights = {
        "contiguous": weight,
        "transposed": weight.T.contiguous().T,
        "both strided": torch.stack([weight] * 2, -1)[..., 1],
    }
    biases = {"contiguous": bias, "expanded": bias[:1].expand(d), "strided": bias.repeat(2)[::2]}
    for x in served.layouts(dtype, device, width).values():
        given = factors("per-row", x.numel() // width, d, 5, dtype, device)
        for w in weights.values():
            assert_reference(ops.linear(x, w, bias, **given), x, w, bias, **given)
    for b in biases.values():
        assert_reference(ops.linear(x, weight, b, **given), x, weight, b, **given)


def test_rows_almost_all_within_the_erased_span(device: str, dtype: torch.dtype) -> None:
    x, read = served.almost_erased(dtype, device)
    weight, bias = torch.eye(x.shape[1], dtype=dtype, device=device), None
    for normalize in (False, True):
        out = ops.linear(x, weight, bias, read, read, normalize=normalize)
        given = {"read": read, "write": read, "normalize": normalize}
        assert_reference(out, x, weight, bias, **given)
        assert reference.linear_tolerance(x, weight, bias, **given).isfinite().all()


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_nan_stays_in_its_row(
    device: str, dtype: torch.dtype, normalize: bool, per_row: bool
) -> None:
    x = features(300, 24, dtype, device)
    weight, bias = head(512, 24, dtype, device)
    if per_row:
        given = bank("per-row", 300, 512, dtype=dtype, device=device)
    else:
        given = factors("per-row", 300, 512, 8, dtype, device)
    clean = ops.linear(x, weight, bias, **given, normalize=normalize)
    x[7, 3] = torch.nan
    out = ops.linear(x, weight, bias, **given, normalize=normalize)
    others = torch.arange(300, device=device) != 7
    assert_bits(out[others], clean[others])
    assert out[7].isnan().all()


def test_bad_index_is_refused() -> None:
    x, (weight, bias), given = features(3, 4), head(8, 4), bank("offset", 3, 8)
    for bad in (-2, len(given["spans"])):
        given["index"][1] = bad
        with pytest.raises(RuntimeError, match=r"linear: index must be in \[-1, 6\]"):
            ops.linear(x, weight, bias, **given)


@pytest.mark.parametrize("half", HALF, ids=str)
def test_autocast_casts_the_product_alone(half: torch.dtype) -> None:
    x, (weight, bias), given = features(5, 24), head(32, 24), factors("per-row", 5, 32, 4)
    want = ops.linear(x.to(half), weight.to(half), bias.to(half), **given)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", half):
            return ops.linear(x, weight, bias, **given)

    assert_bits(run(x, weight, bias), want)
    assert_bits(torch.compile(run, fullgraph=True, backend="aot_eager")(x, weight, bias), want)
    with torch.autocast("cpu", half, enabled=False):
        assert ops.linear(x, weight, bias, **given).dtype == torch.float32
    wide = factors("oblique", 5, 32, 4, torch.float64)
    with torch.autocast("cpu", half):
        out = ops.linear(x.double(), weight.double(), None, **wide)
    assert out.dtype == torch.float64
    parameter = weight.clone().requires_grad_()
    run(x, parameter, bias).float().sum().backward()
    assert parameter.grad.dtype == torch.float32


def test_autocast_is_neutral_for_the_project_family() -> None:
    x, given, own = features(5, 32), factors("per-row", 5, 32, 4), bank("per-row", 5, 32)
    calls = [
        lambda: ops.project(x, **given, normalize=True),
        lambda: ops.project_out(x, **given, out=torch.empty_like(x)),
        lambda: ops.project_(x.clone(), **given),
        lambda: ops.project_rows(x, **own),
        lambda: ops.projected_norm(x, **given),
    ]
    for call in calls:
        want = call()
        with torch.autocast("cpu", torch.bfloat16):
            assert_bits(call(), want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_on_a_gpu() -> None:
    x, (weight, bias) = features(5, 24, device="cuda"), head(32, 24, device="cuda")
    given = factors("per-row", 5, 32, 4, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        out = ops.linear(x, weight, bias, **given)
    half = (x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert_bits(out, ops.linear(*half, **given))


class Tower(nn.Module):
    """An encoder's end with a projector for each row, as a server would compile it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 16)
        for name, value in bank("per-row", 1, 16).items():
            if name not in ("index", "strength"):
                self.register_buffer(name, value)

    def forward(self, x: Tensor, index: Tensor, strength: Tensor) -> Tensor:
        factors = self.read, self.write, self.offset, strength
        options = {"spans": self.spans, "index": index, "normalize": True}
        return 2 * ops.linear(x + 1, self.head.weight, self.head.bias, *factors, **options)


def arguments(n: int) -> tuple[Tensor, Tensor, Tensor]:
    given = bank("per-row", n, 16)
    return features(n, 12), given["index"], given["strength"]


def test_compile_with_a_dynamic_batch_compiles_once() -> None:
    served.assert_compiles_once(Tower(), arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_gradients(backend: str) -> None:
    model, given = Tower(), arguments(7)
    want = torch.autograd.grad(model(*given).sin().sum(), [*model.parameters()])
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    found = torch.autograd.grad(compiled(*given).sin().sum(), [*model.parameters()])
    torch.testing.assert_close(found, want)


def test_export_with_a_dynamic_batch() -> None:
    model = Tower().requires_grad_(False)
    served.assert_exports(model, arguments, torch.ops.clipproj.linear.default)


@pytest.mark.campaign
def test_aot_inductor_in_another_process(tmp_path: Path) -> None:
    served.assert_runs_ahead_of_time(Tower().requires_grad_(False), arguments, tmp_path)
