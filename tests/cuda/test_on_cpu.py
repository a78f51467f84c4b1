"""The CUDA kernels without a GPU: the same sources, run on the CPU by cuda_on_cpu/.

What is shown: indexing, barriers, warps' operations and numerics. What is not: speed, the order of
memory between blocks, and what nvcc makes of the sources.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from campaigns import every
from cases import HALF, assert_bits, assert_reference, factors, features
from cuda_on_cpu import build
from cuda_on_cpu.inputs import (
    DEVICES,
    HALF_KERNEL,
    LEAST_SPLIT,
    PATHS,
    SEEDS,
    layouts,
    option,
    poisoned,
)
from torch import Tensor
from torch.nn import functional

from clipproj import reference

each_path = pytest.mark.parametrize(("dtype", "rows"), PATHS, ids=lambda one: str(one))

ROWS = [1, 3, 17, 200]
DIMS = [1, 2, 7, 33, 256, 500, 512, 640, 768, 1024, 1152]
RANKS = [0, 1, 3, 8, 16, 50, 64, 100]


def shapes(d: int) -> Iterator[tuple[int, int]]:
    """(n, k) for a dim: all ranks, and each n with some; many rows only where that is quick."""
    for i, k in enumerate([*[k for k in RANKS if k < d], d]):
        n = ROWS[(i + d) % len(ROWS)]
        yield (n if n * k * d < 2_000_000 else 3), k


@pytest.mark.parametrize(
    ("dtype", "rows", "d"),
    every(3, [(dtype, rows, d) for d in DIMS for dtype, rows in PATHS]),
    ids=str,
)
def test_matches_reference(library: build.Library, d: int, dtype: torch.dtype, rows: int) -> None:
    for i, (n, k) in enumerate(shapes(d)):
        x = features(n, d, dtype)
        kind = option(i + d, dtype, rows, d, k)
        given = factors(kind, n, d, k, dtype)
        for normalize in (False, True):
            in_place = i % 2 == normalize
            source = x.clone()
            out, norm = source if in_place else poisoned(x), torch.full((n,), torch.nan)
            how = {"rows": rows, "blocks": 1 + i % 3, "seed": i, "normalize": normalize}
            how["clamps"] = kind == "clamps"
            library.project(source, **given, out=out, norm=norm, **how)
            assert_reference(out, x, **given, normalize=normalize)
            assert_lengths(norm, x, rows, **given)
            assert in_place or torch.equal(source, x)
            if not normalize:  # without lengths, which tiles keep in float32
                library.project(x, **given, out=out, **how)
                assert_reference(out, x, **given)


def assert_lengths(norm: Tensor, x: Tensor, rows: int, **given: Tensor) -> None:
    """Within what float32 allows; and, at dims that no plan gives to tensor cores, what splitting
    factors in two bfloat16 costs: five times 2^-18 of what is taken away."""
    bound = reference.tolerance(x.float(), **given)
    if rows > 0 and x.dtype != torch.float32 and x.shape[-1] < LEAST_SPLIT:
        absolute = {name: one.abs() for name, one in given.items() if name != "gram"}  # clamps
        bound += 5 * 2**-18 * (reference.project(-x.abs(), **absolute) + x.abs().double())
    length = reference.projected_norm(x, **given)
    assert ((norm - length).abs() <= bound.norm(dim=-1)).all()


@each_path
@pytest.mark.parametrize("d", [48, 500])
def test_measuring_writes_lengths_only(
    library: build.Library, d: int, dtype: torch.dtype, rows: int
) -> None:
    x = features(17, d, dtype)
    given = factors("per-row", 17, d, 9, dtype)
    before, norm, beside = x.clone(), torch.full((17,), torch.nan), torch.full((17,), torch.nan)
    library.project(x, **given, norm=norm, rows=rows)
    assert_bits(x, before)
    assert_lengths(norm, x, rows, **given)
    library.project(x, **given, out=poisoned(x), norm=beside, rows=rows, normalize=True)
    assert_bits(norm, beside)


@each_path
@pytest.mark.parametrize("d", [17, 64, 264])
def test_layouts(library: build.Library, d: int, dtype: torch.dtype, rows: int) -> None:
    for normalize in (False, True):
        for name, x in layouts(dtype, d).items():
            given = factors("per-row", len(x), d, 5, dtype)
            dense, how = x.contiguous(), {"rows": rows, "normalize": normalize}
            want, out = poisoned(dense), poisoned(dense)
            library.project(dense, **given, out=want, **how)
            assert_reference(want, dense, **given, normalize=normalize)
            library.project(x, **given, out=out, **how)
            assert_bits(out, want)
            storage = torch.empty(0, dtype=dtype).set_(x.untyped_storage())
            untouched = torch.ones_like(storage, dtype=torch.bool)
            untouched.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(False)
            before = storage.clone()
            library.project(x, **given, out=x, **how)
            assert_bits(x, want)
            assert_bits(storage[untouched], before[untouched]), name


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize(("d", "k"), [(40, 0), (500, 9), (512, 33)])
def test_bits_depend_on_the_row_alone(
    library: build.Library, d: int, k: int, dtype: torch.dtype
) -> None:
    n = 67
    x = features(n, d, dtype)
    given = factors("offset", n, d, k, dtype) | {"strength": torch.rand(n)}
    for normalize in (False, True):

        def run(take: slice, rows: int, blocks: int, seed: int, unit: bool = normalize) -> Tensor:
            part = x[take].clone()
            factor = given | {"strength": given["strength"][take].clone()}
            how = {"rows": rows, "blocks": blocks, "seed": seed, "normalize": unit}
            library.project(part, **factor, out=part, **how)
            return part

        paths = [rows for of, rows in PATHS if of == dtype]
        alone = [rows for rows in paths if rows in (0, HALF_KERNEL)]
        for tiles in [[rows] for rows in alone] + [[rows for rows in paths if rows not in alone]]:
            want = run(slice(0, n), tiles[0], 1, 0)
            for i, take in enumerate([slice(0, n), slice(0, 1), slice(3, 20), slice(5, n)]):
                for rows in tiles:
                    assert_bits(run(take, rows, 1 + i, i), want[take])


@each_path
def test_every_order_of_threads_gives_the_same_bits(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    x = features(rows + 3, 328, dtype)
    given = factors("per-row", len(x), 328, 19, dtype)
    outs = []
    for seed in SEEDS:
        outs.append(poisoned(x))
        library.project(
            x, **given, out=outs[-1], normalize=True, rows=rows, blocks=1 + seed // 4, seed=seed
        )
    for out in outs[1:]:
        assert_bits(out, outs[0])


@each_path
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_stay_in_their_row(
    library: build.Library, dtype: torch.dtype, rows: int, bad: float
) -> None:
    x = features(9, 48, dtype)
    given = factors("per-row", 9, 48, 4, dtype)
    for normalize in (False, True):
        clean, out, dirty = poisoned(x), poisoned(x), x.clone()
        dirty[4, 5] = bad
        library.project(x, **given, out=clean, rows=rows, normalize=normalize)
        library.project(dirty, **given, out=out, rows=rows, normalize=normalize)
        others = torch.arange(9) != 4
        assert_bits(out[others], clean[others])
        assert not out[4].isfinite().all()


@each_path
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["read", "write"])
def test_factors_that_are_not_finite_are_never_left_out(
    library: build.Library, dtype: torch.dtype, rows: int, bad: float, name: str
) -> None:
    x = features(9, 48, dtype)
    given = factors("oblique", 9, 48, 4, dtype)
    given[name][2, 5] = bad
    out = poisoned(x)
    library.project(x, **given, out=out, rows=rows)
    hit = torch.zeros(9, 48, dtype=torch.bool)
    hit[:, slice(None) if name == "read" else 5] = True
    assert not out[hit].isfinite().any()
    assert out[~hit].isfinite().all()


@each_path
def test_inf_normalizes_as_torch_does(
    library: build.Library, dtype: torch.dtype, rows: int
) -> None:
    x = features(3, 9, dtype)
    x[1, 4], x[2, 4] = float("inf"), float("nan")
    out = poisoned(x)
    none = factors("symmetric", 3, 9, 0, dtype)
    library.project(x, **none, out=out, rows=rows, normalize=True)
    want = functional.normalize(x.double(), dim=-1).to(dtype)
    assert torch.equal(out.isnan(), want.isnan())
    assert torch.equal(out[1:].nan_to_num(), want[1:].nan_to_num())


@each_path
def test_rows_of_any_length(library: build.Library, dtype: torch.dtype, rows: int) -> None:
    large = 1e4 if dtype == torch.float16 else 1e25
    given = factors("symmetric", 5, 100, 4, dtype)
    for size in (0.0, large):
        x = (features(5, 100, torch.float64) * size).to(dtype)
        out = poisoned(x)
        library.project(x, **given, out=out, rows=rows, normalize=True)
        assert_reference(out, x, **given, normalize=True)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_plans_fit_the_device(
    library: build.Library, device: build.DeviceProperties, dtype: torch.dtype
) -> None:
    for d, k in [(1, 1), (500, 50), (512, 8), (768, 64), (1152, 256), (4096, 4096)]:
        for normalize in (False, True):
            kernels = set()
            for n in (1, 3, 200, 5000, 65536, 1 << 20, 1 << 33):
                plan = library.plan(n, d, k, dtype, normalize, device)
                tiles = min(-(-n // plan.rows), 2**31 - 1)
                if plan.kernel == build.HALF:  # its blocks stay, with the factors that they hold
                    assert dtype in HALF
                    assert d >= LEAST_SPLIT
                    assert plan.rows == 16
                    most = device.multiprocessors
                    assert plan.blocks in (min(tiles, most), min(tiles, 2 * most))
                else:
                    assert (dtype, plan.rows if plan.kernel == build.TILES else 0) in PATHS
                    assert plan.kernel == build.PLAIN or dtype == torch.float32 or d >= LEAST_SPLIT
                    assert plan.blocks == tiles
                assert plan.kernel == build.PLAIN or plan.shared <= device.shared_of_block
                kernels.add(plan.kernel)
            assert len(kernels) == 1, "a row's bits would depend on n"


def test_factors_stay_where_they_fit(library: build.Library) -> None:
    """What decides over the speed of large batches, at the sizes of CLIP."""

    def plan(device: str, d: int, k: int) -> tuple[int, int]:
        made = library.plan(65536, d, k, torch.bfloat16, True, DEVICES[device])
        return made.kernel, made.teams

    for d, k, teams in [(512, 64, 2), (640, 48, 2), (768, 32, 2), (768, 64, 1), (1280, 32, 1)]:
        assert plan("sm_90", d, k) == (build.HALF, teams)
    assert plan("sm_90", 1024, 64) == (build.TILES, 1)
    assert plan("sm_80", 768, 32) == (build.HALF, 1)
    assert plan("sm_86", 512, 16) == (build.HALF, 2)
    assert plan("sm_86", 1024, 16) == (build.TILES, 1)
    assert plan("sm_120", 768, 16) == (build.HALF, 1)
