"""Banks and `scale` in the CUDA kernels, without a GPU: each row by a projector of its own."""

from __future__ import annotations

import pytest
import torch
from cases import assert_bits, assert_reference, features
from cuda_on_cpu import build
from cuda_on_cpu.inputs import (
    BANKED,
    DEVICES,
    NAN,
    ROOM,
    SEEDS,
    WIDEST,
    Bank,
    layouts,
    poisoned,
    random_index,
)
from torch import Tensor
from torch.nn import functional

each_path = pytest.mark.parametrize(("dtype", "rows"), BANKED, ids=lambda one: str(one))

RANKS = [3, 0, 8, 1, 16, 50, 64, 100]
BAD = [9, 2**31 - 1, -2, -(2**31)]  # as index of a bank of fewer projectors


def indices(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@each_path
@pytest.mark.parametrize("d", [7, 48, 200])
def test_each_row_by_its_own_projector(
    library: build.Library, d: int, dtype: torch.dtype, rows: int
) -> None:
    """Within the bounds of the reference, and the bits that its projector gives by itself."""
    ranks = [*RANKS, d, ROOM + 5] if d == 200 else [*RANKS[:-2], d]
    n, bank = 36, Bank.random(ranks, d)
    x, index, strength = features(n, d, dtype), random_index(n, len(ranks)), torch.rand(n)
    for normalize in (False, True):
        out, norm = poisoned(x), torch.full((n,), NAN)
        how = {"rows": rows, "normalize": normalize}
        flag = indices(0)
        library.project(
            x, **bank.given(index), strength=strength, flag=flag, out=out, norm=norm, **how
        )
        assert flag.item() == 0
        for which in index.unique().tolist():
            mine = index == which
            part, given = x[mine], bank.alone(which) | {"strength": strength[mine]}
            assert_reference(out[mine], part, **given, normalize=normalize)
            one, length = poisoned(part), torch.full((len(part),), NAN)
            library.project(part, **given, out=one, norm=length, **how)
            assert_bits(out[mine], one)
            assert_bits(norm[mine], length)


@each_path
def test_bits_depend_on_the_row_and_its_projector_alone(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    """In whatever order rows come, whoever their neighbours are, whichever threads run first."""
    n, d = 19, 136
    ranks = [1 + i % 9 for i in range(n)] + [ROOM + 4]
    bank, x, strength = Bank.random(ranks, d), features(n, d, dtype), torch.rand(n)
    few = random_index(n, 4)
    few[3:5] = n  # of the last, which has no room
    orders = {
        "unsorted": (few, torch.arange(n)),
        "sorted": (few, few.argsort()),
        "all distinct": (torch.arange(n, dtype=torch.int32), torch.randperm(n)),
        "all the same": (torch.full_like(few, 5), torch.arange(n - 1, -1, -1)),
    }
    for normalize in (False, True):
        for i, (index, order) in enumerate(orders.values()):
            want = poisoned(x)
            how = {"rows": rows, "normalize": normalize}
            library.project(x, **bank.given(index), strength=strength, out=want, **how)
            for take in (order, order[2:9], order[:1]):
                given = bank.given(index[take]) | {"strength": strength[take]}
                part = x[take]
                library.project(part, **given, out=part, **how, blocks=1 + i % 2, seed=i)
                assert_bits(part, want[take])


@each_path
def test_what_has_no_room_keeps_signs_of_zeros(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    """The last of so many directions takes less than float32 can hold off -0."""
    bank, x = Bank.random([ROOM + 5], 136), features(2, 136, dtype)
    own = bank.alone(0)
    own["write"][:, 3] = torch.tensor([0.0] * (ROOM + 4) + [-1e-30])
    own["read"][-1], own["offset"][-1], x[:, 3] = 0, -1e-30, -0.0
    out, one = poisoned(x), poisoned(x)
    library.project(x, **bank.given(indices(0, 0)), out=out, rows=rows)
    library.project(x, **own, out=one, rows=rows)
    assert_bits(out, one)


@each_path
def test_every_order_of_threads_gives_the_same_bits(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    n, d = rows + 4, 136
    bank, x = Bank.random([5, 17, ROOM + 1], d), features(n, d, dtype)
    index = random_index(n, 3)
    index[:4] = indices(2, 0, 7, 1)
    outs = []
    for seed in SEEDS:
        flag = indices(0)
        outs.append(poisoned(x))
        how = {"normalize": True, "rows": rows, "blocks": 1 + seed // 4, "seed": seed}
        library.project(x, **bank.given(index), flag=flag, out=outs[-1], **how)
        assert flag.item() == 1
    for out in outs[1:]:
        assert_bits(out, outs[0])


@each_path
def test_rows_of_no_projector_keep_their_bits(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    x, index = features(7, 40, dtype), indices(-1, 0, 1, -1, 1, 0, -1)
    x[3, 5:8] = torch.tensor([NAN, -0.0, float("inf")])
    payload = x[6].view(torch.int32 if dtype == torch.float32 else torch.int16)
    payload[4] = payload[4] | (0x7F812345 if dtype == torch.float32 else 0x7F81)  # signalling
    bank = Bank.random([4, 0], 40)
    untouched = index != 0
    for source in (x, x.T.contiguous().T):
        out = poisoned(source)
        library.project(source, **bank.given(index), out=out, rows=rows)
        assert_bits(out[untouched], x[untouched])
        library.project(source, **bank.given(index), out=source, rows=rows)
        assert_bits(source, out)
    rest = torch.tensor([0, 2])
    out = poisoned(x)
    library.project(x, **bank.given(index), out=out, rows=rows, normalize=True)
    want = functional.normalize(x[rest].double(), dim=-1)
    assert (out[rest].double() - want).abs().max() <= torch.finfo(dtype).eps


@each_path
@pytest.mark.parametrize("normalize", [False, True])
def test_rows_of_an_unknown_projector_become_nan(
    library: build.Library, dtype: torch.dtype, rows: int, normalize: bool
) -> None:
    most, d, n = 2**31 - 1, 40, 21
    bank, x = Bank.random([4, 9, 0], d), features(n, d, dtype)
    k = len(bank.read)
    spans = [(-1, 2), (0, -1), (k - 1, 2), (0, k + 1), (most, most), (-(2**31), 1), (k + 1, 0)]
    bank.spans = torch.cat([bank.spans, torch.tensor(spans, dtype=torch.int32)])
    m = len(bank.spans)
    good = torch.randint(-1, 3, (n,), dtype=torch.int32)
    index, bad = good.clone(), [m, *BAD[1:], *range(3, m)]
    index[1 : 1 + len(bad)] = indices(*bad)
    known = index == good
    for source in (x, x.T.contiguous().T):  # with rows adjacent, too
        want, length, flag = poisoned(source), torch.full((n,), NAN), indices(0)
        how = {"rows": rows, "normalize": normalize}
        library.project(source, **bank.given(good), flag=flag, out=want, norm=length, **how)
        assert flag.item() == 0
        out, norm = torch.ones_like(source), torch.zeros(n)
        library.project(source, **bank.given(index), flag=flag, out=out, norm=norm, **how)
        assert flag.item() == 1
        assert_bits(out[known], want[known])
        assert_bits(norm[known], length[known])
        assert out[~known].isnan().all()
        assert norm[~known].isnan().all()
        library.project(source, **bank.given(index), out=source, **how)  # and nobody to tell
        assert_bits(source, out)
    for one in bad:
        given, flag = bank.given(indices(one)), indices(0)
        library.project(x[:1], **given, flag=flag, out=poisoned(x[:1]), rows=rows)
        assert flag.item() == 1


@each_path
def test_an_empty_bank_knows_nobody(library: build.Library, dtype: torch.dtype, rows: int) -> None:
    bank, x, flag = Bank.random([], 24), features(3, 24, dtype), indices(0)
    out = poisoned(x)
    library.project(x, **bank.given(indices(-1, 0, -1)), flag=flag, out=out, rows=rows)
    assert flag.item() == 1
    assert out[1].isnan().all()
    assert_bits(out[::2], x[::2])


@each_path
@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_factors_that_are_not_finite_stay_with_their_rows(
    library: build.Library, dtype: torch.dtype, rows: int, bad: float
) -> None:
    d, n = 136, 20
    bank, x = Bank.random([6, 5, ROOM + 3, 0], d), features(n, d, dtype)
    index = random_index(n, 4)
    index[:3] = indices(0, 2, 1)
    for normalize in (False, True):
        for spoiled in (0, 2):
            clean, out, others = poisoned(x), poisoned(x), index != spoiled
            given = bank.given(index)
            library.project(x, **given, out=clean, rows=rows, normalize=normalize)
            own = bank.spans[spoiled, 0].item()
            for name in ("read", "write"):
                given[name] = given[name].clone()
                given[name][own : own + 2] = bad
            library.project(x, **given, out=out, rows=rows, normalize=normalize)
            assert_bits(out[others], clean[others])
            assert not out[index == spoiled].isfinite().any(-1).all()


@each_path
def test_features_that_are_not_finite_stay_in_their_row(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    bank, x, index = Bank.random([4, 2], 48), features(9, 48, dtype), indices(*[0, 1, -1] * 3)
    dirty, others = x.clone(), torch.arange(9) != 4
    dirty[4, 5] = NAN
    clean, out = poisoned(x), poisoned(x)
    library.project(x, **bank.given(index), out=clean, rows=rows, normalize=True)
    library.project(dirty, **bank.given(index), out=out, rows=rows, normalize=True)
    assert_bits(out[others], clean[others])
    assert out[4].isnan().all()


@each_path
@pytest.mark.parametrize("d", [17, 64])
def test_layouts(library: build.Library, d: int, dtype: torch.dtype, rows: int) -> None:
    bank = Bank.random([5, 2, 0], d)
    for normalize in (False, True):
        for x in layouts(dtype, d).values():
            given = bank.given(random_index(len(x), 3)) | {"strength": torch.rand(len(x))}
            dense, how = x.contiguous(), {"rows": rows, "normalize": normalize}
            want, out = poisoned(dense), poisoned(dense)
            library.project(dense, **given, out=want, **how)
            library.project(x, **given, out=out, **how)
            assert_bits(out, want)
            library.project(x, **given, out=x, **how)
            assert_bits(x, want)


@each_path
def test_measuring_writes_lengths_only(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    n, d = 17, 136
    bank, x, index = Bank.random([3, 9, ROOM + 2], d), features(n, d, dtype), random_index(n, 3)
    index[5] = 8
    before, norm, beside = x.clone(), torch.zeros(n), torch.zeros(n)
    library.project(x, **bank.given(index), norm=norm, rows=rows)
    assert_bits(x, before)
    out = poisoned(x)
    library.project(x, **bank.given(index), out=out, norm=beside, rows=rows, normalize=True)
    assert_bits(norm, beside)
    assert torch.equal(norm.isnan(), index == 8)


@each_path
@pytest.mark.parametrize("banked", [False, True])
def test_scale_multiplies_the_finished_row(
    library: build.Library, dtype: torch.dtype, rows: int, banked: bool
) -> None:
    n, d = 18, 48
    bank, x = Bank.random([5, 0], d), features(n, d, dtype)
    given = bank.given(random_index(n, 2)) if banked else bank.alone(0)
    for source in (x, x.T.contiguous().T):
        for normalize in (False, True):
            how = {"rows": rows, "normalize": normalize}
            plain, out, norm, length = poisoned(x), poisoned(source), *torch.zeros(2, n)
            library.project(x, **given, out=plain, norm=length, **how)
            library.project(source, **given, out=out, norm=norm, scale=torch.tensor(4.0), **how)
            assert_bits(out, 4 * plain)  # a power of two: exact
            assert_bits(norm, length)  # of the row before
            factor = torch.tensor(3.7)
            library.project(source, **given, out=out, scale=factor, **how)
            error = out.double() - factor.double() * plain.double()
            assert (error.abs() <= 2 * torch.finfo(dtype).eps * out.double().abs()).all()
            library.project(source, **given, out=out, scale=torch.tensor(NAN), **how)
            assert out.isnan().all()


FUTURE = build.DeviceProperties(13, 200, 1 << 20, 1 << 20)


@pytest.mark.parametrize("device", [*DEVICES.values(), FUTURE], ids=[*DEVICES, "future"])
def test_rows_of_a_bank_go_the_way_of_their_projector_by_itself(
    library: build.Library, device: build.DeviceProperties
) -> None:
    """To a kernel over tiles or not, for every rank that has room; else bits would differ."""
    for d in (1, 40, 512, 768, 1024, 1152, 1280, 1400, 2048, 3000, WIDEST, 8000):
        for normalize in (False, True):
            by_tiles = set()
            for n in (1, 5000, 1 << 20):
                for k in (1, 64, ROOM):
                    plan = library.plan(n, d, k, torch.float32, normalize, device)
                    by_tiles.add(plan.kernel == build.TILES)
                for k in (1, 500, 1 << 20):
                    plan = library.plan(n, d, k, torch.float32, normalize, device, banked=True)
                    assert plan.kernel in (build.PLAIN, build.TILES)
                    assert plan.shared <= device.shared_of_block
                    assert plan.kernel == build.PLAIN or d <= WIDEST
                    by_tiles.add(plan.kernel == build.TILES)
            assert len(by_tiles) == 1
