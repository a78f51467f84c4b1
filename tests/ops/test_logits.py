"""`logits`: against the reference, per row, autocast, compiled."""

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
    factor_dtype,
    factors,
    features,
)
from torch import Tensor, nn
from torch.nn import functional

from clipproj import ops, reference

# (n, d, C, k): none, one, around vector widths, more rows than a chunk has at d = 512.
SHAPES = [
    (0, 16, 3, 2),
    (5, 16, 0, 2),
    (1, 8, 1, 0),
    (33, 17, 1, 17),
    (33, 15, 16, 7),
    (257, 100, 33, 50),
    (2, 768, 1000, 16),
    (700, 512, 10, 16),
    (700, 512, 10, 0),
]


def class_rows(
    count: int, d: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Tensor:
    return functional.normalize(features(count, d, torch.float64), dim=-1).to(device, dtype)


def number(value: float, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.tensor(value, dtype=factor_dtype(dtype), device=device)


def positional(given: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
    """read, write, offset and strength."""
    return tuple(given.get(name) for name in ("read", "write", "offset", "strength"))


def rows_of(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: given[name] for name in ("spans", "index") if name in given}


def run(x: Tensor, classes: Tensor, given: dict[str, Tensor], *rest: Any, **options: Any) -> Tensor:
    return ops.logits(x, classes, *positional(given), *rest, **rows_of(given), **options)


def assert_reference(
    out: Tensor,
    x: Tensor,
    classes: Tensor,
    given: dict[str, Tensor],
    *rest: Tensor | None,
    dtype: torch.dtype | None = None,
) -> None:
    """`out` is what the operator makes of x, within the bound of the chain."""
    assert out.dtype == (dtype or x.dtype)
    assert out.shape == (*x.shape[:-1], classes.shape[0])
    assert out.is_contiguous()
    assert out.isfinite().all()
    arguments = (x, classes, *positional(given), *rest)
    bound = reference.logits_tolerance(*arguments, **rows_of(given), dtype=dtype)
    error = (out.double() - reference.logits(*arguments, **rows_of(given))).abs()
    assert (error <= bound).all(), f"error {error.max():.3g}, {(error / bound).max():.3g} x bound"


@pytest.mark.pairwise
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("n", "d", "count", "k"), SHAPES)
def test_matches_reference(
    device: str, dtype: torch.dtype, n: int, d: int, count: int, k: int, option: str
) -> None:
    x, classes = features(n, d, dtype, device), class_rows(count, d, dtype, device)
    given = factors(option, n, d, k, dtype, device)
    scale = number(100.0, dtype, device)
    per_class = features(1, count, factor_dtype(dtype), device)[0] if count else None
    for bias in (None, number(-16.5, dtype, device), per_class):
        for result in {None, factor_dtype(dtype)}:
            out = run(x, classes, given, scale, bias, dtype=result)
            assert_reference(out, x, classes, given, scale, bias, dtype=result)


@pytest.mark.parametrize("n", [0, 1, 40, 700])
def test_each_row_by_its_own_projector(device: str, dtype: torch.dtype, n: int) -> None:
    x, classes = features(n, 512, dtype, device), class_rows(10, 512, dtype, device)
    given = bank("per-row", n, 512, dtype=dtype, device=device)
    # Rows that lie in what their projector erases have no direction left to tell.
    scale, bias = number(112.0, dtype, device), number(-16.5, dtype, device)
    for result in {None, factor_dtype(dtype)}:
        out = run(x, classes, given, scale, bias, dtype=result)
        assert_reference(out, x, classes, given, scale, bias, dtype=result)


def test_layouts(device: str, dtype: torch.dtype) -> None:
    d = 20
    classes = class_rows(7, d, dtype, device)
    matrices = [classes, classes.T.contiguous().T, torch.stack([classes] * 2, -1)[..., 1]]
    scale = number(100.0, dtype, device)
    bias = number(-1.0, dtype, device)
    for x in served.layouts(dtype, device, d).values():
        given = factors("per-row", x.numel() // d, d, 5, dtype, device)
        for matrix in matrices:
            for result in {None, factor_dtype(dtype)}:
                out = run(x, matrix, given, scale, bias.expand(7), dtype=result)
                assert_reference(out, x, matrix, given, scale, bias, dtype=result)


def test_rows_almost_all_within_the_erased_span(device: str, dtype: torch.dtype) -> None:
    x, read = served.almost_erased(dtype, device)
    classes, scale = class_rows(10, 512, dtype, device), number(100.0, dtype, device)
    given = {"read": read, "write": read}
    for result in {None, factor_dtype(dtype)}:
        out = run(x, classes, given, scale, dtype=result)
        assert_reference(out, x, classes, given, scale, dtype=result)
    bound = reference.logits_tolerance(x, classes, read, read, None, None, scale)
    assert bound.isfinite().all()


@pytest.mark.parametrize("per_row", [False, True])
def test_nan_stays_in_its_row(device: str, dtype: torch.dtype, per_row: bool) -> None:
    x, classes = features(300, 512, dtype, device), class_rows(10, 512, dtype, device)
    if per_row:
        given = bank("per-row", 300, 512, dtype=dtype, device=device)
    else:
        given = factors("per-row", 300, 512, 8, dtype, device)
    scale = number(100.0, dtype, device)
    clean = run(x, classes, given, scale)
    x[7, 3] = torch.nan
    out = run(x, classes, given, scale)
    others = torch.arange(300, device=device) != 7
    assert_bits(out[others], clean[others])
    assert out[7].isnan().all()


def test_zero_rows_have_the_bias(device: str, dtype: torch.dtype) -> None:
    x, classes = torch.zeros(3, 16, dtype=dtype, device=device), class_rows(5, 16, dtype, device)
    given = factors("oblique", 3, 16, 2, dtype, device)
    out = run(x, classes, given, number(100.0, dtype, device), number(-16.5, dtype, device))
    assert (out == -16.5).all()


def test_bad_index_is_refused() -> None:
    x, classes, given = features(3, 8), class_rows(5, 8), bank("offset", 3, 8)
    for bad in (-2, len(given["spans"])):
        given["index"][1] = bad
        with pytest.raises(RuntimeError, match=r"logits: index must be in \[-1, 6\]"):
            run(x, classes, given, number(1.0))


@pytest.mark.parametrize("half", HALF, ids=str)
def test_autocast_casts_features_and_classes_alone(half: torch.dtype) -> None:
    x, classes, given = features(5, 32), class_rows(7, 32), factors("per-row", 5, 32, 4)
    rest = number(100.3), torch.rand(7)
    want = run(x.to(half), classes.to(half), given, *rest)

    def cast(x: Tensor, classes: Tensor, **options: Any) -> Tensor:
        with torch.autocast("cpu", half):
            return run(x, classes, given, *rest, **options)

    assert_bits(cast(x, classes), want)
    assert_bits(torch.compile(cast, fullgraph=True, backend="aot_eager")(x, classes), want)
    assert cast(x, classes, dtype=torch.float32).dtype == torch.float32
    with torch.autocast("cpu", half, enabled=False):
        assert run(x, classes, given, *rest).dtype == torch.float32
    x.requires_grad_()
    cast(x, classes).float().sum().backward()
    assert x.grad.dtype == torch.float32


class Server(nn.Module):
    """Zero-shot classes with a projector for each row, as a server would compile them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("classes", class_rows(5, 16))
        self.register_buffer("scale", number(100.0))
        for name, value in bank("per-row", 1, 16).items():
            if name not in ("index", "strength"):
                self.register_buffer(name, value)

    def forward(self, x: Tensor, index: Tensor, strength: Tensor) -> Tensor:
        given = {"read": self.read, "write": self.write, "offset": self.offset}
        given |= {"strength": strength, "spans": self.spans, "index": index}
        return run(x + 1, self.classes, given, self.scale, self.scale / -10).softmax(-1)


def arguments(n: int) -> tuple[Tensor, Tensor, Tensor]:
    given = bank("per-row", n, 16)
    return features(n, 16), given["index"], given["strength"]


def test_compile_with_a_dynamic_batch_compiles_once() -> None:
    served.assert_compiles_once(Server(), arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_gradients(backend: str) -> None:
    model, (x, *rest) = Server(), arguments(7)
    x.requires_grad_()
    (want,) = torch.autograd.grad(model(x, *rest).square().sum(), x)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    (found,) = torch.autograd.grad(compiled(x, *rest).square().sum(), x)
    torch.testing.assert_close(found, want)


def test_export_with_a_dynamic_batch() -> None:
    model = Server()
    served.assert_exports(model, arguments, torch.ops.clipproj.logits.default)


@pytest.mark.campaign
def test_aot_inductor_in_another_process(tmp_path: Path) -> None:
    served.assert_runs_ahead_of_time(Server(), arguments, tmp_path)
