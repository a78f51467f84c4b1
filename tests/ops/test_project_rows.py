"""`project_rows`: each row is that of `project` with the row's own slice of the bank."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cases import (
    DTYPES,
    OPTIONS,
    RANKS,
    alone,
    assert_bits,
    assert_reference,
    bank,
    features,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipproj import _C, ops

INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
# (n, d, ranks): around every vector width and block of rows; many projectors, one, none.
BANKS = [
    (0, 512, RANKS),
    (1, 1, [1, 0]),
    (5, 7, [2]),
    (33, 8, [8, 3, 0]),
    (33, 17, RANKS),
    (257, 100, RANKS),
    (64, 512, [16] * 40),
    (9, 768, [50, 1]),
    (5, 256, [256, 0, 17]),
    (6, 33, [0, 0]),
    (6, 33, []),
]
both = pytest.mark.parametrize("normalize", [False, True])


def rows_of(x: Tensor, given_bank: dict[str, Tensor], **options: bool) -> Tensor:
    """What `project` makes of the rows of each projector, alone."""
    out = torch.full_like(x, torch.nan, memory_format=torch.contiguous_format)
    for projector in range(-1, len(given_bank["spans"])):
        rows = given_bank["index"] == projector
        out[rows] = ops.project(x[rows], **alone(given_bank, projector, rows), **options)
    return out


def only(given_bank: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
    """The same bank for some of the rows."""
    out = given_bank | {"index": given_bank["index"][rows]}
    if "strength" in out and out["strength"].dim():
        out["strength"] = out["strength"][rows]
    return out


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("n", "d", "ranks"), BANKS, ids=lambda value: str(value)[:20])
def test_matches_reference_and_project(
    device: str,
    dtype: torch.dtype,
    n: int,
    d: int,
    ranks: list[int],
    option: str,
    normalize: bool,
) -> None:
    x = features(n, d, dtype, device)
    given_bank = bank(option, n, d, ranks, dtype, device)
    out = ops.project_rows(x, **given_bank, normalize=normalize)
    assert_reference(out, x, **given_bank, normalize=normalize)
    assert_bits(out, rows_of(x, given_bank, normalize=normalize))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    n=st.integers(0, 40),
    d=st.integers(1, 70),
    k=st.integers(0, 40),
    ends=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=6),
    row_step=st.integers(0, 2),
    column_step=st.integers(1, 3),
    isa=st.sampled_from(_C.build_info()["cpu_isas"]),
    dtype=st.sampled_from(DTYPES),
    option=st.sampled_from(OPTIONS),
    normalize=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_bank_and_stride(
    n, d, k, ends, row_step, column_step, isa, dtype, option, normalize, seed
) -> None:
    """Spans overlap here, as they come."""
    torch.manual_seed(seed)
    strides = (row_step * column_step * d, column_step)
    buffer = torch.randn(5 + n * strides[0] + d * column_step).to(dtype)
    x = buffer.as_strided((n, d), strides, 5)
    given_bank = bank(option, n, d, [k], dtype)
    k = len(given_bank["read"])
    spans = [[round(min(pair) * k), round(max(pair) * k)] for pair in ends]
    spans = [[start, end - start] for start, end in spans]
    given_bank["spans"] = torch.tensor(spans, dtype=torch.int32).view(-1, 2)
    given_bank["index"] = torch.randint(-1, len(spans), (n,), dtype=torch.int32)
    before = _C.cpu_isa()
    _C.set_cpu_isa(isa)
    try:
        out = ops.project_rows(x, **given_bank, normalize=normalize)
        assert_bits(out, rows_of(x, given_bank, normalize=normalize))
    finally:
        _C.set_cpu_isa(before)
    assert_reference(out, x, **given_bank, normalize=normalize)


@both
def test_bits_depend_on_the_row_and_its_projector_alone(
    threads: None, device: str, dtype: torch.dtype, normalize: bool
) -> None:
    n, d = 1031, 136  # enough work for several threads
    x = features(n, d, dtype, device)
    given_bank = bank("per-row", n, d, RANKS, dtype, device)

    def run(rows: Any) -> Tensor:
        return ops.project_rows(x[rows], **only(given_bank, rows), normalize=normalize)

    torch.set_num_threads(1)
    want = run(slice(None))
    for count in (2, 3):
        torch.set_num_threads(count)
        assert_bits(run(slice(None)), want)
        assert_bits(run(slice(None)), want)
    for rows in (slice(0, 1), slice(3, 5), slice(6, 9), slice(7, 40), slice(1030, 1031)):
        assert_bits(run(rows), want[rows])
    shuffled = torch.randperm(n, device=device)
    by_projector = given_bank["index"].argsort(stable=True)
    for order in (shuffled, by_projector, by_projector.flip(0)):
        assert_bits(run(order), want[order])


def test_few_long_rows_of_high_rank_keep_their_bits(
    threads: None, device: str, dtype: torch.dtype
) -> None:
    n, d = 3, 1023  # few enough that one row may be split over threads
    x = features(n, d, dtype, device)
    given_bank = bank("per-row", n, d, [401, 0, 17], dtype, device)
    given_bank["index"].copy_(torch.tensor([2, 0, 0]))
    for count in (1, 4):
        torch.set_num_threads(count)
        for normalize in (False, True):
            out = ops.project_rows(x, **given_bank, normalize=normalize)
            assert_bits(out, rows_of(x, given_bank, normalize=normalize))


def test_one_projector_for_all_rows_is_project(device: str, dtype: torch.dtype) -> None:
    x = features(257, 100, dtype, device)
    given_bank = bank("per-row", 257, 100, RANKS, dtype, device)
    every = torch.ones(257, dtype=torch.bool, device=device)
    for projector in range(-1, len(RANKS)):
        given_bank["index"].fill_(projector)
        out = ops.project_rows(x, **given_bank)
        assert_bits(out, ops.project(x, **alone(given_bank, projector, every)))


@both
def test_where_a_projector_lies_in_the_bank_does_not_matter(
    device: str, dtype: torch.dtype, normalize: bool
) -> None:
    x = features(33, 100, dtype, device)
    given_bank = bank("offset", 33, 100, RANKS, dtype, device)
    want = ops.project_rows(x, **given_bank, normalize=normalize)
    moved = dict(given_bank)
    for name in ("read", "write", "offset"):  # strangers that no row asks for around it
        factor = given_bank[name]
        stranger = torch.full_like(factor[:5], torch.nan)
        moved[name] = torch.cat([stranger, factor, stranger])
    moved["spans"] = given_bank["spans"] + torch.tensor([5, 0], dtype=torch.int32, device=device)
    assert_bits(ops.project_rows(x, **moved, normalize=normalize), want)


@pytest.mark.parametrize("d", [17, 64])
@both
def test_layouts(device: str, dtype: torch.dtype, d: int, normalize: bool) -> None:
    block = features(24, 2 * d, dtype, device)
    three = block[:, :d].contiguous().view(4, 6, d)
    layouts = {
        "slice": block[:, 3 : 3 + d],
        "every other": block[:, 1::2],
        "transposed": features(d, 24, dtype, device).T,
        "every other row": features(48, d, dtype, device)[::2],
        "three dims": three,
        "permuted": three.transpose(0, 1),
        "permuted whole": features(d, 24, dtype, device).view(d, 6, 4).permute(2, 1, 0),
        "expanded": features(1, d, dtype, device).expand(24, d),
        "constant rows": features(24, 1, dtype, device).expand(24, d),
        "size-1 dims": block[:, None, None, :d],
        "one": block[0, :d],
        "empty": block[:0, :d].view(0, 3, d),
    }
    for name, x in layouts.items():
        n = x.numel() // d
        given_bank = bank("per-row", n, d, [5, 0, 17], dtype, device)
        dense = x.clone(memory_format=torch.contiguous_format).view(n, d)
        out = ops.project_rows(x, **given_bank, normalize=normalize)
        assert out.shape == x.shape, name
        assert out.is_contiguous(), name
        assert_bits(out.view(n, d), rows_of(dense, given_bank, normalize=normalize))


def test_banks_of_any_stride(device: str, dtype: torch.dtype) -> None:
    x = features(9, 17, dtype, device)
    dense = bank("per-row", 9, 17, [3, 4], dtype, device)
    strided = {name: torch.stack([value] * 2, -1)[..., 1] for name, value in dense.items()}
    strided["read"] = dense["read"].T.contiguous().T
    assert_bits(ops.project_rows(x, **strided), ops.project_rows(x, **dense))


@pytest.mark.parametrize("layout", ["contiguous", "strided", "permuted"])
def test_rows_of_no_direction_keep_their_bits(device: str, dtype: torch.dtype, layout: str) -> None:
    """Of no projector, or of one of rank zero; NaN payloads too, and whatever their strength."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    bits = torch.randint(torch.iinfo(integer).min, torch.iinfo(integer).max, (6, 4, 17))
    x = bits.to(device, integer).view(dtype)
    x = {"contiguous": x, "strided": x[::2], "permuted": x.transpose(0, 1)}[layout]
    n = x.numel() // 17
    given_bank = bank("per-row", n, 17, [3, 0], dtype, device)
    untouched = given_bank["index"] != 0
    assert untouched.any()
    given_bank["strength"][untouched] = torch.nan
    out = ops.project_rows(x, **given_bank)
    assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert_bits(out.view(n, 17)[untouched], x.reshape(n, 17)[untouched])
    empty = bank("per-row", n, 17, [0, 0], dtype, device)
    assert_bits(ops.project_rows(x, **empty), x)


@both
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_stay_with_their_rows(
    device: str, dtype: torch.dtype, bad: float, normalize: bool
) -> None:
    x = features(40, 17, dtype, device)
    given_bank = bank("per-row", 40, 17, [4, 0, 17, 1], dtype, device)
    given_bank["index"].copy_(torch.arange(40) % 5 - 1)  # every neighbour another's
    clean = ops.project_rows(x, **given_bank, normalize=normalize)
    spoilt = x.clone()
    spoilt[7, 5] = bad
    out = ops.project_rows(spoilt, **given_bank, normalize=normalize)
    others = torch.arange(40, device=device) != 7
    assert_bits(out[others], clean[others])
    assert not out[7].isfinite().all()
    # What one tenant has in its factors is nobody else's trouble.
    start = given_bank["spans"][2, 0]
    for name in ("read", "write", "offset"):
        before = given_bank[name]
        given_bank[name] = before.clone()
        given_bank[name][start] = bad
        out = ops.project_rows(x, **given_bank, normalize=normalize)
        given_bank[name] = before
        others = given_bank["index"] != 2
        assert_bits(out[others], clean[others])
        assert not out[~others].isfinite().all(-1).any()


def test_strength_zero_changes_nothing(device: str, dtype: torch.dtype) -> None:
    x = features(33, 100, dtype, device)
    given_bank = bank("strength", 33, 100, RANKS, dtype, device)
    given_bank["strength"].zero_()
    assert torch.equal(ops.project_rows(x, **given_bank), x)  # only a -0 may become 0


def test_autocast_is_neutral() -> None:
    x, given_bank = features(5, 17), bank("oblique", 5, 17)
    want = ops.project_rows(x, **given_bank)
    with torch.autocast("cpu", torch.bfloat16):
        assert_bits(ops.project_rows(x, **given_bank), want)


def test_a_flag_changes_no_bits_and_stays_down(device: str, dtype: torch.dtype) -> None:
    x, given_bank = (
        features(33, 17, dtype, device),
        bank("offset", 33, 17, RANKS, dtype, device),
    )
    for raised in (0, 1):
        flag = torch.full((1,), raised, dtype=torch.int32, device=device)
        out = ops.project_rows(x, **given_bank, flag=flag)
        assert_bits(out, ops.project_rows(x, **given_bank))
        assert flag.item() == raised


# The CPU's refusals of what only the run can know; those of a GPU are in tests/cuda.


def refused(x: Tensor, given_bank: dict[str, Tensor], text: str) -> None:
    """With this text, and with nothing written."""
    flag = torch.zeros(1, dtype=torch.int32)
    before = [value.clone() for value in (x, *given_bank.values()) if value is not None]
    for options in ({}, {"normalize": True}, {"flag": flag}):
        with pytest.raises(RuntimeError, match=f"^{re.escape(f'project_rows: {text}')}$"):
            ops.project_rows(x, **given_bank, **options)
    after = [value for value in (x, *given_bank.values()) if value is not None]
    for old, new in zip(before, after, strict=True):
        assert_bits(old, new)
    assert flag.item() == 0
    assert flag._version == 0


@pytest.mark.parametrize("row", [0, 500, 999])
@pytest.mark.parametrize("bad", [7, 8, -2, INT_MAX, INT_MIN])
def test_an_index_of_no_projector_is_refused(threads: None, row: int, bad: int) -> None:
    torch.set_num_threads(3)
    x, given_bank = features(1000, 64), bank("offset", 1000, 64)
    given_bank["index"][row] = bad
    refused(x, given_bank, f"index must be in [-1, 6], got {bad} in row {row}")


@pytest.mark.parametrize("bad", [0, -2])
def test_an_empty_bank_has_no_projector(bad: int) -> None:
    x, given_bank = features(3, 5), bank("offset", 3, 5, [])
    given_bank["index"][1] = bad
    refused(x, given_bank, f"index must be in [-1, -1], got {bad} in row 1")


@pytest.mark.parametrize(
    ("start", "rank"),
    [(-1, 2), (3, -1), (60, 1), (59, 2), (0, 61), (INT_MAX, INT_MAX), (1, INT_MAX), (INT_MIN, 1)],
)
def test_a_span_outside_the_bank_is_refused(start: int, rank: int) -> None:
    x, given_bank = features(33, 64), bank("offset", 33, 64)
    assert len(given_bank["read"]) == 60
    given_bank["index"][4] = 2
    given_bank["spans"][2] = torch.tensor([start, rank], dtype=torch.int32)
    text = (
        "spans must lie within the 60 directions of the bank, "
        f"got start {start} and rank {rank} in span 2"
    )
    refused(x, given_bank, text)


def test_a_bank_may_end_at_its_last_direction(device: str) -> None:
    x, given_bank = features(9, 64, device=device), bank("offset", 9, 64, device=device)
    given_bank["spans"][0] = torch.tensor([60, 0], dtype=torch.int32)
    given_bank["spans"][1] = torch.tensor([59, 1], dtype=torch.int32)
    given_bank["index"].copy_(torch.arange(9) % 2)
    assert_bits(ops.project_rows(x, **given_bank), rows_of(x, given_bank))
