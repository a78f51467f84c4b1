"""One-sided projectors in the CUDA kernels, without a GPU: clamps, solutions, banks of both."""

from __future__ import annotations

import pytest
import torch
from cases import assert_bits, assert_reference, features, one_sided
from cuda_on_cpu import build
from cuda_on_cpu.inputs import (
    DEVICES,
    HALF_KERNEL,
    LEAST_SPLIT,
    NAN,
    PATHS,
    ROOM,
    SEEDS,
    SOLVING,
    SOLVING_BANKS,
    Bank,
    layouts,
    poisoned,
    random_index,
)
from torch import Tensor

from clipproj import ops, reference

each_path = pytest.mark.parametrize(("dtype", "rows"), PATHS, ids=str)
each_solving = pytest.mark.parametrize(("dtype", "rows"), SOLVING, ids=str)
each_solving_bank = pytest.mark.parametrize(("dtype", "rows"), SOLVING_BANKS, ids=str)
EXACT = [(dtype, rows) for dtype, rows in SOLVING if dtype == torch.float32 or rows == 0]
MOST = 256  # kMostOneSided of csrc/check.h


def width(dtype: torch.dtype, rows: int) -> int:
    """A dim that plans give to the kernel."""
    return 40 if dtype == torch.float32 or rows == 0 else LEAST_SPLIT + 8


def both(dtype: torch.dtype, rows: int, n: int, k: int) -> list[dict]:
    """What is passed to `project` for clamps and, if the kernel solves, for a general gram."""
    d = width(dtype, rows)
    clamps = one_sided(n, d, k, dtype, diagonal=True) | {"clamps": True}
    return [clamps] if rows == HALF_KERNEL else [clamps, one_sided(n, d, k, dtype)]


def without(given: dict, *names: str) -> dict:
    return {name: value for name, value in given.items() if name not in names}


def taken(given: dict, rows: Tensor) -> dict:
    """The factors for these rows alone."""
    return given | {"strength": given["strength"][rows].clone()}


@each_path
@pytest.mark.parametrize(("n", "d", "k"), [(19, 40, 1), (5, 264, 1), (35, 512, 20), (3, 768, 33)])
def test_clamps(
    library: build.Library, dtype: torch.dtype, rows: int, n: int, d: int, k: int
) -> None:
    """Of one direction, or of several that do not look at each other; those that can be solved for
    as well become the same bits."""
    x, given = features(n, d, dtype), one_sided(n, d, k, dtype, diagonal=True)
    for normalize in (False, True):
        out, norm, length = poisoned(x), *torch.full((2, n), NAN)
        how = {"rows": rows, "normalize": normalize}
        library.project(x, **given, clamps=True, out=out, norm=norm, **how)
        assert_reference(out, x, **given, normalize=normalize)
        if rows != HALF_KERNEL:
            solved = poisoned(x)
            library.project(x, **given, out=solved, norm=length, **how)
            assert_bits(solved, out)
            assert_bits(length, norm)


@each_solving
@pytest.mark.parametrize(("n", "k"), [(19, 2), (35, 16)])
def test_solutions(library: build.Library, dtype: torch.dtype, rows: int, n: int, k: int) -> None:
    d = width(dtype, rows) + k
    x, given = features(n, d, dtype), one_sided(n, d, k, dtype)
    for normalize in (False, True):
        out, norm = poisoned(x), torch.full((n,), NAN)
        how = {"rows": rows, "normalize": normalize}
        library.project(x, **given, out=out, norm=norm, **how)
        assert_reference(out, x, **given, normalize=normalize)
        cpu = ops.project(x, **given, normalize=normalize)
        most = (out.double() - cpu.double()).abs().amax(-1) / x.double().norm(dim=-1)
        assert most.max() < max(2e-3, 2 * torch.finfo(dtype).eps)
        wide = ops.projected_norm(x, **given)
        assert ((norm - wide).abs() <= 2e-3 * x.float().norm(dim=-1)).all()


@pytest.mark.parametrize(("dtype", "rows"), EXACT, ids=str)
@pytest.mark.parametrize("k", [2, 5, 31, 32, 33, 100, 128, 129, MOST])
def test_the_same_excess_gives_the_bits_of_the_cpu(
    library: build.Library, dtype: torch.dtype, rows: int, k: int
) -> None:
    """Rows are excesses themselves, so that nothing rounds before the solution."""
    n = 4 if k > 40 else 18
    given = one_sided(n, k + 8, k, dtype)
    x = torch.cat([features(n, k, dtype), features(n, 3, dtype)], dim=1)
    eye = torch.eye(k, k + 3)
    given |= {"read": eye, "write": eye}
    out = poisoned(x)
    library.project(x, **given, out=out, rows=rows, seed=k)
    assert_bits(out, ops.project(x, **given))
    assert not torch.equal(out, x)


@pytest.mark.parametrize("k", [40, 100])
def test_many_directions(library: build.Library, k: int) -> None:
    """The reference in float64 takes seconds for one: rows are such that all dtypes hold them."""
    exact = (features(5, LEAST_SPLIT + 8) * 64).round().clamp(-255, 255) / 64
    given = without(one_sided(5, LEAST_SPLIT + 8, k), "strength")
    want = reference.project(exact, **given)
    highest = (exact @ given["read"].T - given["offset"]).amax(-1, keepdim=True)
    for dtype, rows in SOLVING:
        x = exact.to(dtype)
        assert torch.equal(x.float(), exact)
        out = poisoned(x)
        library.project(x, **given, out=out, rows=rows)
        half = torch.finfo(dtype).eps / 2 * want.abs()
        assert ((out - want).abs() <= half + 5e-3 * highest).all()
        if dtype == torch.float32:
            left = out.double() @ given["read"].double().T - given["offset"]
            assert (left <= 1e-4 * highest).all()


@each_path
def test_rows_without_excess_keep_their_bits(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    n = 21
    for given in both(dtype, rows, n, 7):
        x = features(n, width(dtype, rows), dtype)
        below = torch.linalg.solve(given["gram"], torch.full((7,), 6.0)) @ given["write"]
        x[torch.rand(n) < 0.6] -= below.to(dtype)
        x[:, 3], x[:, 5] = -0.0, 1e-40 if dtype != torch.float16 else 6e-8
        tame = (x.double() @ given["read"].double().T < given["offset"] - 1e-3).all(1)
        assert tame.any()
        assert not tame.all()
        for normalize in (False, True):
            out, none = poisoned(x), poisoned(x)
            library.project(x, **given, out=out, rows=rows, normalize=normalize)
            nothing = {"read": given["read"][:0], "write": given["write"][:0]}
            library.project(x, **nothing, out=none, rows=rows, normalize=normalize)
            assert_bits(out[tame], none[tame])
            if not normalize:
                assert_bits(out[tame], x[tame])
            assert not torch.equal(out, none)


@each_path
@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_nan_and_inf_stay_in_their_row(
    library: build.Library, dtype: torch.dtype, rows: int, bad: float
) -> None:
    n = 9
    for given in both(dtype, rows, n, 5):
        x = features(n, width(dtype, rows), dtype)
        for normalize in (False, True):
            clean, out, dirty = poisoned(x), poisoned(x), x.clone()
            dirty[4, 5] = bad
            library.project(x, **given, out=clean, rows=rows, normalize=normalize)
            library.project(dirty, **given, out=out, rows=rows, normalize=normalize)
            others = torch.arange(n) != 4
            assert_bits(out[others], clean[others])
            assert not out[4].isfinite().all()
            if bad != bad:
                assert out[4].isnan().all()


@each_solving
def test_a_row_that_is_not_solved_is_nan(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    """The gram matrix is singular: no row is in both half-spaces."""
    d = width(dtype, rows)
    read = torch.zeros(2, d)
    read[:, 0] = torch.tensor([1.0, -1.0])
    gram = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    x = torch.zeros(3, d, dtype=dtype)
    x[0, 0], x[1, 1], x[2, 0] = 0.5, 1, 0.05
    for offset in (-0.1, 0.1):
        out = poisoned(x)
        given = {"read": read, "write": read, "offset": torch.full((2,), offset), "gram": gram}
        library.project(x, **given, out=out, rows=rows)
        if offset < 0:
            assert out.isnan().all()
        else:
            assert_bits(out[1:], x[1:])
            assert out[0].isfinite().all()


@each_path
def test_bits_depend_on_the_row_alone(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    """Whatever the batch, the blocks, the order of threads and the rows of a tile."""
    n = 37
    others = [other for of, other in SOLVING if of == dtype and other > 0 < rows != HALF_KERNEL]
    for given in both(dtype, rows, n, 9):
        x, want = features(n, width(dtype, rows), dtype), None
        for i, take in enumerate([slice(0, n), slice(0, 1), slice(3, 20), slice(5, n)]):
            for other in [rows, *others]:
                part = x[take].clone()
                how = {"rows": other, "blocks": 1 + i % 2, "seed": i, "normalize": True}
                library.project(part, **taken(given, take), out=part, **how)
                want = part if want is None else want
                assert_bits(part, want[take])


@each_solving
def test_every_order_of_threads_gives_the_same_bits(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    n, d = rows + 3, width(dtype, rows)
    x, given, outs = features(n, d, dtype), one_sided(n, d, 19, dtype), []
    for seed in SEEDS:
        outs.append(poisoned(x))
        how = {"normalize": True, "rows": rows, "blocks": 1 + seed // 4, "seed": seed}
        library.project(x, **given, out=outs[-1], **how)
    for out in outs[1:]:
        assert_bits(out, outs[0])


@each_path
def test_layouts(library: build.Library, dtype: torch.dtype, rows: int) -> None:
    for x in layouts(dtype, width(dtype, rows)).values():
        for given in both(dtype, rows, len(x), 5):
            dense, how = x.contiguous(), {"rows": rows, "normalize": len(x) % 2 == 0}
            want, out = poisoned(dense), poisoned(dense)
            library.project(dense, **given, out=want, **how)
            assert_reference(want, dense, **without(given, "clamps"), normalize=how["normalize"])
            library.project(x, **given, out=out, **how)
            assert_bits(out, want)
            library.project(x.clone(), **given, out=x, **how)
            assert_bits(x, want)


@each_path
def test_measuring_writes_lengths_only(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    for given in both(dtype, rows, 17, 9):
        x = features(17, width(dtype, rows), dtype)
        before, norm, beside = x.clone(), *torch.full((2, 17), NAN)
        library.project(x, **given, norm=norm, rows=rows)
        assert_bits(x, before)
        library.project(x, **given, out=poisoned(x), norm=beside, rows=rows, normalize=True)
        assert_bits(norm, beside)


@each_solving_bank
def test_a_bank_of_both_kinds(library: build.Library, dtype: torch.dtype, rows: int) -> None:
    """Each row by the sign of its span: with the bits that its projector gives by itself, and for
    linear ones with those of a bank that has no others."""
    d, n = 200, 40
    ranks = [3, -5, 0, -1, 40, -17, ROOM + 5, -(ROOM + 9)]
    bank, x, strength = Bank.random(ranks, d), features(n, d, dtype), 2 * torch.rand(n)
    index = random_index(n, len(ranks))
    index[: len(ranks)] = torch.arange(len(ranks))
    for normalize in (False, True):
        out, norm, flag = poisoned(x), torch.full((n,), NAN), torch.zeros(1, dtype=torch.int32)
        how = {"rows": rows, "normalize": normalize}
        library.project(
            x, **bank.given(index), strength=strength, flag=flag, out=out, norm=norm, **how
        )
        assert flag.item() == 0
        for which in index.unique().tolist():
            mine = index == which
            part, given = x[mine], bank.alone(which) | {"strength": strength[mine]}
            if "gram" not in given or len(given["read"]) < ROOM:  # float64 would take minutes
                assert_reference(out[mine], part, **given, normalize=normalize)
            one, length = poisoned(part), torch.full((len(part),), NAN)
            library.project(part, **given, out=one, norm=length, **how)
            assert_bits(out[mine], one)
            assert_bits(norm[mine], length)
            if len(given["read"]) == 1:
                library.project(part, **given, clamps="gram" in given, out=one, **how)
                assert_bits(out[mine], one)
        if not normalize:
            assert_bits(out[index == -1], x[index == -1])
        for take in (torch.randperm(n), torch.arange(3, 9)):
            some, given = poisoned(x[take]), bank.given(index[take])
            library.project(x[take], **given, strength=strength[take], out=some, **how, seed=5)
            assert_bits(some, out[take])


@each_solving_bank
def test_a_one_sided_span_without_its_gram_spoils_its_rows_alone(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    bank, x = Bank.random([-4, 3, -2], 40), features(8, 40, dtype)
    index = torch.tensor([0, 1, 2, -1] * 2, dtype=torch.int32)
    want, flag = poisoned(x), torch.zeros(1, dtype=torch.int32)
    library.project(x, **bank.given(index), out=want, flag=flag, rows=rows)
    assert flag.item() == 0
    spoilt = index == 0
    for spans in ([0, -5], [len(bank.read) - 1, -2], [-1, -1], [0, -(2**31)], [2**31 - 1, -1]):
        out, flag = torch.ones_like(x), torch.zeros(1, dtype=torch.int32)
        given = bank.given(index)
        given["spans"] = given["spans"].clone()
        given["spans"][0] = torch.tensor(spans, dtype=torch.int32)
        library.project(x, **given, out=out, flag=flag, rows=rows)
        assert flag.item() == 1
        assert out[spoilt].isnan().all()
        assert_bits(out[~spoilt], want[~spoilt])
    given = bank.given(index) | {"gram": None}
    library.project(x, **given, out=out, flag=flag, rows=rows)
    one_sided = bank.spans[index.clamp_min(0).long(), 1].lt(0) & (index >= 0)
    assert out[one_sided].isnan().all()
    assert out[~one_sided].isfinite().all()


@each_solving_bank
def test_what_is_not_finite_stays_with_its_rows(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    bank, x = Bank.random([-6, 5, -3], 40), features(20, 40, dtype)
    index = random_index(20, 3)
    index[:3] = torch.arange(3)
    clean = poisoned(x)
    library.project(x, **bank.given(index), out=clean, rows=rows, normalize=True)
    for name in ("read", "write", "gram"):
        given, out = bank.given(index), poisoned(x)
        given[name] = given[name].clone()
        start = bank.spans[0, 0].item()
        given[name][start : start + 2] = NAN
        library.project(x, **given, out=out, rows=rows, normalize=True)
        assert_bits(out[index != 0], clean[index != 0])
        assert name == "gram" or out[index == 0].isnan().all()


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_plans(library: build.Library, device: build.DeviceProperties, dtype: torch.dtype) -> None:
    """What is solved for fits the device, and the kernel does not depend on n. Clamps go the way of
    linear projectors; in a float32 bank linear ones stay where they are without the others."""

    def plan(n: int, d: int, k: int, **how: int) -> build.Plan:
        return library.plan(n, d, k, dtype, True, device, **how)

    for d, k in [(1, 1), (512, 16), (768, 100), (1152, 200), (1280, 16), (4096, MOST), (8000, 4)]:
        kernels, banks = set(), set()
        for n in (1, 3, 200, 5000, 1 << 20):
            solved, clamps, linear = (
                plan(n, d, k, gram=k),
                plan(n, d, k, clamps=True),
                plan(n, d, k),
            )
            assert solved.shared <= device.shared_of_block
            assert solved.kernel != build.HALF
            assert (clamps.kernel, clamps.shared) == (linear.kernel, linear.shared)
            kernels.add(solved.kernel)
            bank = plan(n, d, 5000, gram=min(k, ROOM), banked=True)
            assert bank.shared <= device.shared_of_block
            banks.add(bank.kernel)
            if dtype == torch.float32:
                assert bank.kernel == plan(n, d, 5000, banked=True).kernel
                assert k > ROOM or bank.kernel == solved.kernel
        assert len(kernels) == len(banks) == 1
