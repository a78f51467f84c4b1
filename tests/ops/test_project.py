"""Values of `project` and `project_`: against the reference, and what a row may depend on."""

from __future__ import annotations

import pytest
import torch
from cases import (
    DTYPES,
    HALF,
    OPTIONS,
    SHAPES,
    assert_bits,
    assert_reference,
    factors,
    features,
    orthonormal,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from clipproj import _C, ops, reference


@pytest.mark.pairwise
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_matches_reference(
    device: str, dtype: torch.dtype, n: int, d: int, k: int, option: str
) -> None:
    x = features(n, d, dtype, device)
    given_factors = factors(option, n, d, k, dtype, device)
    for normalize in (False, True):
        out = ops.project(x, **given_factors, normalize=normalize)
        assert_reference(out, x, **given_factors, normalize=normalize)
        assert_bits(ops.project_(x.clone(), **given_factors, normalize=normalize), out)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    n=st.integers(0, 40),
    d=st.integers(1, 70),
    share=st.floats(0, 1),
    row_step=st.integers(0, 2),
    column_step=st.integers(1, 3),
    start=st.integers(0, 5),
    isa=st.sampled_from(_C.build_info()["cpu_isas"]),
    dtype=st.sampled_from(DTYPES),
    option=st.sampled_from(OPTIONS),
    normalize=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_stride(
    n, d, share, row_step, column_step, start, isa, dtype, option, normalize, seed
) -> None:
    torch.manual_seed(seed)
    k = round(share * d)
    strides = (row_step * column_step * d, column_step)
    buffer = torch.randn(start + n * strides[0] + d * column_step).to(dtype)
    x = buffer.as_strided((n, d), strides, start)
    given_factors = factors(option, n, d, k, dtype)
    before = _C.cpu_isa()
    _C.set_cpu_isa(isa)
    try:
        out = ops.project(x, **given_factors, normalize=normalize)
    finally:
        _C.set_cpu_isa(before)
    assert_reference(out, x, **given_factors, normalize=normalize)


def layouts(dtype: torch.dtype, device: str, d: int) -> dict[str, Tensor]:
    """Features that are not one contiguous block, by what makes them so."""
    block = features(40, 2 * d, dtype, device)
    three = features(24, d, dtype, device).view(4, 6, d)
    return {
        "slice": block[1:34, 3 : 3 + d],
        "every other": block[:, 1::2],
        "transposed": features(d, 33, dtype, device).T,
        "transposed slice": features(2 * d, 40, dtype, device)[1 : 1 + d, 2:35].T,
        "every other row": block[::2, 1 : 1 + d],
        "one": features(1, d, dtype, device)[0],
        "one column": features(d, 5, dtype, device)[:, 2],
        "three dims": three,
        "permuted": three.transpose(0, 1),
        "permuted whole": features(d, 12, dtype, device).view(d, 3, 4).permute(2, 1, 0),
        "expanded": features(1, d, dtype, device).expand(33, d),
        "expanded outside": three[0].expand(3, 6, d),
        "constant rows": features(33, 1, dtype, device).expand(33, d),
        "size-1 dims": features(5, d, dtype, device)[:, None, None, :],
        "empty": features(0, d, dtype, device).view(0, 3, d),
    }


@pytest.mark.parametrize("d", [17, 64])
@pytest.mark.parametrize("normalize", [False, True])
def test_layouts(device: str, dtype: torch.dtype, d: int, normalize: bool) -> None:
    for name, x in layouts(dtype, device, d).items():
        n = x.numel() // d
        given_factors = factors("per-row", n, d, 5, dtype, device)
        dense = x.clone(memory_format=torch.contiguous_format).view(n, d)
        want = ops.project(dense, **given_factors, normalize=normalize).view(x.shape)
        out = ops.project(x, **given_factors, normalize=normalize)
        assert out.is_contiguous(), name
        assert_bits(out, want)
        if name.startswith(("permuted", "expanded", "constant")):
            with pytest.raises(RuntimeError, match=r"project_: x must"):
                ops.project_(x, **given_factors, normalize=normalize)
            assert_bits(x, dense.view(x.shape))
        else:
            assert_bits(ops.project_(x, **given_factors, normalize=normalize), want)


def test_lazily_negated_features() -> None:
    x = features(5, 17)
    given_factors = factors("oblique", 5, 17, 4)
    assert_bits(ops.project(torch._neg_view(x), **given_factors), ops.project(-x, **given_factors))


def test_in_place_leaves_the_rest_alone(device: str, dtype: torch.dtype) -> None:
    block = features(9, 40, dtype, device)
    before = block.clone()
    ops.project_(block[2:7, 3:20], **factors("oblique", 5, 17, 4, dtype, device))
    inside = torch.zeros_like(block, dtype=torch.bool)
    inside[2:7, 3:20] = True
    assert_bits(block[~inside], before[~inside])
    assert (block[inside] != before[inside]).any()


def test_factors_of_any_stride(device: str, dtype: torch.dtype) -> None:
    x = features(5, 17, dtype, device)
    dense = factors("per-row", 5, 17, 4, dtype, device)
    strided = {
        "read": dense["read"].T.contiguous().T,
        "write": torch.stack([dense["write"]] * 2, -1)[..., 1],
        "offset": torch.stack([dense["offset"]] * 2, -1)[:, 1],
        "strength": torch.stack([dense["strength"]] * 2, -1)[:, 0],
    }
    assert_bits(ops.project(x, **strided), ops.project(x, **dense))


@pytest.mark.parametrize("half", HALF, ids=str)
def test_half_types_round_once(cpu_isa: str, half: torch.dtype) -> None:
    x, device = features(33, 100, half), "cpu"  # CUDA sums half types in another order
    for option in OPTIONS:
        given_factors = factors(option, 33, 100, 16, half, device)
        for normalize in (False, True):
            wide = ops.project(x.float(), **given_factors, normalize=normalize)
            assert_bits(ops.project(x, **given_factors, normalize=normalize), wide.to(half))


@pytest.mark.parametrize("layout", ["contiguous", "strided", "permuted"])
def test_rank_zero_copies_bits(device: str, dtype: torch.dtype, layout: str) -> None:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    bits = torch.randint(torch.iinfo(integer).min, torch.iinfo(integer).max, (6, 4, 17))
    x = bits.to(device, integer).view(dtype)  # NaNs with payloads among them
    x = {"contiguous": x, "strided": x[::2], "permuted": x.transpose(0, 1)}[layout]
    none = factors("symmetric", 0, 17, 0, dtype, device)
    out = ops.project(x, **none)
    assert_bits(out, x)
    assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    if layout == "strided":
        assert_bits(ops.project_(x.clone(), **none), x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalize", [False, True])
def test_nan_and_inf_stay_in_their_row(
    device: str, dtype: torch.dtype, bad: float, normalize: bool
) -> None:
    x = features(9, 17, dtype, device)
    given_factors = factors("per-row", 9, 17, 4, dtype, device)
    clean = ops.project(x, **given_factors, normalize=normalize)
    x[4, 5] = bad
    out = ops.project(x, **given_factors, normalize=normalize)
    others = torch.arange(9, device=device) != 4
    assert_bits(out[others], clean[others])
    assert not out[4].isfinite().all()
    # A strength or a factor that is not finite is nobody's fault but the rows' that use it.
    given_factors["strength"][2] = bad
    out = ops.project(x, **given_factors, normalize=normalize)
    assert_bits(out[5:], clean[5:])
    assert not out[2].isfinite().all()


def test_inf_normalizes_as_torch_does(device: str, dtype: torch.dtype) -> None:
    x = features(3, 9, dtype, device)
    x[1, 4] = float("inf")
    x[2, 4] = float("nan")
    none = factors("symmetric", 3, 9, 0, dtype, device)
    out = ops.project(x, **none, normalize=True)
    want = functional.normalize(x.double(), dim=-1).to(dtype)
    assert torch.equal(out.isnan(), want.isnan())
    assert torch.equal(out[1:].nan_to_num(), want[1:].nan_to_num())


def test_zero_rows_stay_zero(device: str, dtype: torch.dtype) -> None:
    x = torch.zeros(5, 17, dtype=dtype, device=device)
    given_factors = factors("oblique", 5, 17, 4, dtype, device)
    for normalize in (False, True):
        assert (ops.project(x, **given_factors, normalize=normalize) == 0).all()


def test_rows_whose_squares_overflow(device: str, dtype: torch.dtype) -> None:
    size = 1e4 if dtype == torch.float16 else 1e25 if dtype.itemsize < 8 else 1e200
    x = (features(5, 100, torch.float64, device) * size).to(dtype)
    given_factors = factors("symmetric", 5, 100, 4, dtype, device)
    out = ops.project(x, **given_factors, normalize=True)
    scaled = (x.double() / size).to(dtype)  # torch's own norm overflows: ask about smaller rows
    want = reference.project(scaled, **given_factors, normalize=True)
    assert (out.double() - want).abs().max() <= 4 * torch.finfo(dtype).eps


def test_subnormal_rows(device: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    x = (features(5, 33, torch.float64, device) * tiny / 8).to(dtype)
    given_factors = factors("symmetric", 5, 33, 4, dtype, device)
    out = ops.project(x, **given_factors)
    want = reference.project(x, **given_factors)
    # Below `tiny` the spacing is constant: one step at the store, one where float32 accumulates.
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert (out.double() - want).abs().max() <= 8 * step
    assert (out != 0).any()


@pytest.mark.parametrize("normalize", [False, True])
def test_bits_depend_on_the_row_alone(
    threads: None, device: str, dtype: torch.dtype, normalize: bool
) -> None:
    n, d = 1031, 136  # enough work for several threads
    x = features(n, d, dtype, device)
    given_factors = factors("oblique", n, d, 32, dtype, device)

    def run(rows: Tensor) -> Tensor:
        return ops.project(rows, **given_factors, normalize=normalize)

    torch.set_num_threads(1)
    want = run(x)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert_bits(run(x), want)
        assert_bits(run(x), want)
    for rows in (slice(0, 1), slice(3, 5), slice(6, 9), slice(7, 40), slice(1030, 1031)):
        assert_bits(run(x[rows]), want[rows])
    order = torch.randperm(n, device=device)
    assert_bits(run(x[order]), want[order])
    assert_bits(run(x.T.contiguous().T), want)


@pytest.mark.parametrize("n", [1, 3, 13])
def test_few_rows_split_over_threads_keep_their_bits(
    threads: None, device: str, dtype: torch.dtype, n: int
) -> None:
    d, k = 1023, 401  # enough work for several threads
    x = features(16, d, dtype, device)
    given_factors = factors("per-row", 16, d, k, dtype, device)
    strength = given_factors.pop("strength")

    def run(rows: Tensor, s: Tensor, normalize: bool) -> list[Tensor]:
        out = ops.project(rows, **given_factors, strength=s, normalize=normalize)
        turned = ops.project(rows.T.contiguous().T, **given_factors, strength=s)
        apart = torch.full((*rows.shape, 2), torch.nan, dtype=dtype, device=device)
        apart[..., 0] = rows
        apart = ops.project(apart[..., 0], **given_factors, strength=s, normalize=normalize)
        assert_bits(apart, out)
        return [out, turned, ops.projected_norm(rows, **given_factors, strength=s)]

    for normalize in (False, True):
        torch.set_num_threads(1)
        want = run(x, strength, normalize)
        torch.set_num_threads(4)
        stale = [torch.full((n, d + 33), 1e4) for _ in range(50)]  # what scratch memory may hold
        del stale
        for got, all_rows in zip(run(x[:n], strength[:n], normalize), want, strict=True):
            assert_bits(got, all_rows[:n])


@pytest.mark.parametrize("flush", [False, True])
def test_every_thread_flushes_denormals_as_the_caller_does(
    threads: None, cpu_isa: str, flush: bool
) -> None:
    d, k = 1023, 401  # enough work for several threads, of few rows as well
    x = 1e-40 * torch.randn(512, d)
    read, write = torch.randn(2, k, d) / d
    spans = torch.tensor([[0, k], [3, 7]], dtype=torch.int32)
    index = torch.arange(512, dtype=torch.int32) % 2

    def run() -> list[Tensor]:
        with torch.no_grad():
            across = ops.fold_(x.T.contiguous(), read, write, dim=0)
        few, norm = ops.project(x[:3], read, write), ops.projected_norm(x, read, write)
        rows = ops.project_rows(x, read, write, None, spans, index)
        return [ops.project(x, read, write), few, norm, rows, across]

    torch.set_num_threads(3)
    run()  # the threads are there before the mode is set
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor cannot flush denormals")
    try:
        many = run()
        torch.set_num_threads(1)
        one = run()
    finally:
        torch.set_flush_denormal(False)
    for got, want in zip(many, one, strict=True):
        assert_bits(got, want)
    assert [bool(rows.any()) for rows in one[:2]] == [not flush] * 2
    torch.set_num_threads(3)  # who lent a hand has its own mode again
    assert (1e-40 * torch.ones(1 << 20)).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_results_too_large_for_caches_keep_their_bits(
    cpu_isa: str, dtype: torch.dtype, normalize: bool
) -> None:
    d = 1040  # whole vectors of every instruction set, which results past the caches need
    n = (17 << 20) // (d * dtype.itemsize)
    x = torch.randn(n, d).to(dtype)
    given_factors = factors("symmetric", n, d, 2, dtype)
    want = ops.project_(x.clone(), **given_factors, normalize=normalize)
    assert_bits(ops.project(x, **given_factors, normalize=normalize), want)
    # Rows that no vector's alignment fits.
    out = torch.empty(n, d + 1, dtype=dtype)[:, 1:]
    ops.project_out(x, **given_factors, normalize=normalize, out=out)
    assert_bits(out, want)


def test_strength_zero_changes_nothing(device: str, dtype: torch.dtype) -> None:
    x = features(33, 100, dtype, device)
    given_factors = factors("strength", 33, 100, 16, dtype, device)
    given_factors["strength"].zero_()
    assert torch.equal(ops.project(x, **given_factors), x)  # only a -0 may become 0


@pytest.mark.parametrize("strength", [1.0, 1.5, 2.0])
def test_strength_acts_on_the_span(device: str, dtype: torch.dtype, strength: float) -> None:
    x = features(33, 100, dtype, device)
    given_factors = factors("symmetric", 33, 100, 16, dtype, device)
    given_factors["strength"] = torch.tensor(
        strength, device=device, dtype=given_factors["read"].dtype
    )
    out = ops.project(x, **given_factors)
    read = given_factors["read"].double()
    eps = torch.finfo(dtype).eps
    kept = (1 - strength) * (x.double() @ read.T)
    assert (out.double() @ read.T - kept).abs().max() <= 8 * eps * 10  # rows have length 10
    if strength == 2:  # a reflection undoes itself
        assert (ops.project(out, **given_factors).double() - x.double()).abs().max() <= 40 * eps


def test_projecting_twice_is_projecting_once(device: str, dtype: torch.dtype) -> None:
    x = features(33, 100, dtype, device)
    given_factors = factors("symmetric", 33, 100, 16, dtype, device)
    once = ops.project(x, **given_factors)
    twice = ops.project(once, **given_factors)
    assert (twice.double() - once.double()).abs().max() <= 16 * torch.finfo(dtype).eps


def test_symmetric_projector_may_come_as_two_tensors(device: str, dtype: torch.dtype) -> None:
    x = features(33, 100, dtype, device)
    read = orthonormal(7, 100, dtype, device)
    assert_bits(ops.project(x, read, read), ops.project(x, read, read.clone()))


def test_one_strength_for_each_row_of_the_flattened_leading_dims(
    device: str, dtype: torch.dtype
) -> None:
    x = features(12, 17, dtype, device).view(3, 4, 17)
    given_factors = factors("per-row", 12, 17, 4, dtype, device)
    strength = given_factors.pop("strength")
    out = ops.project(x, **given_factors, strength=strength)
    for i, s in enumerate(strength):
        row = ops.project(x.view(12, 17)[i], **given_factors, strength=s)
        assert_bits(out.view(12, 17)[i], row)


@pytest.mark.parametrize("half", HALF, ids=str)
def test_autocast_is_neutral(half: torch.dtype) -> None:
    x = features(5, 17)
    given_factors = factors("oblique", 5, 17, 4)
    want = ops.project(x, **given_factors)
    with torch.autocast("cpu", half):
        assert_bits(ops.project(x, **given_factors), want)
        assert_bits(ops.project_(x, **given_factors), want)
