"""What cuda_on_cpu/ finds in kernels: small ones with a mistake each (planted.cuh), and the real
ones without one of their barriers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from campaigns import every
from cases import assert_bits, factors, features
from cuda_on_cpu import build
from cuda_on_cpu.inputs import (
    BANKED,
    HALF_KERNEL,
    PATHS,
    ROOM,
    SEEDS,
    SOLVING,
    SOLVING_BANKS,
    Bank,
    poisoned,
    random_index,
)
from torch import Tensor

KERNELS = Path(__file__).parents[2] / "csrc" / "cuda"


def test_fragments_of_tensor_cores(library: build.Library) -> None:
    a, b = (torch.randint(-8, 9, (16, size)).bfloat16() for size in (16, 8))
    for seed in SEEDS:
        out = torch.full((16, 8), torch.nan)
        library.multiply(a, b, out, seed)
        assert torch.equal(out, 2 * (a.float() @ b.float()))


def planted(library: build.Library, name: str) -> list[Tensor]:
    given, outs = torch.randn(64), []
    for seed in SEEDS:
        outs.append(torch.full((2, 64), 0.5))
        library.planted(name, given, outs[-1], seed)
    return outs


@pytest.mark.parametrize("name", ["reverse", "sum twice", "reverse warps", "copy"])
def test_right_kernels_pass(library: build.Library, name: str) -> None:
    first, *others = planted(library, name)
    assert first.isfinite().all()
    for out in others:
        assert_bits(out, first)


@pytest.mark.parametrize(
    "name",
    ["missing barrier", "missing warp barrier", "read uninitialised", "copy without barrier"],
)
def test_reads_that_come_too_early_give_nan(library: build.Library, name: str) -> None:
    assert any(out.isnan().any() for out in planted(library, name))


def test_blocks_that_write_to_the_same_place_are_found(library: build.Library) -> None:
    assert len({out.view(-1)[63].item() for out in planted(library, "colliding blocks")}) == 2


def test_writes_that_come_too_early_are_found_by_warps_that_run_ahead(
    library: build.Library,
) -> None:
    outs, right = planted(library, "missing barrier after read"), planted(library, "sum twice")
    assert any(not torch.equal(out, right[0]) for out in outs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("divergent barrier", r"sync_block meets sync_block at planted.cuh:\d+"),
        ("left before barrier", r"waits for ever in sync_block .*, thread 33 has left the kernel"),
        ("missing lane", r"waits for ever in shuffle at planted.cuh:\d+"),
        ("write beyond part", r"shared memory is written beyond part 0"),
        ("more than launched", r"part 0 ends at byte 288 of 272 that the launch gives"),
        ("misaligned", r"the address must be a multiple of 16 bytes: thread \d+ at planted.cuh"),
        ("copy without commit", r"cp.async is never committed"),
        ("copy without wait", r"cp.async is never waited for"),
        ("copy of what changes", r"the source of cp.async changes before the wait"),
    ],
)
def test_what_cuda_leaves_undefined_is_refused(
    library: build.Library, name: str, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        planted(library, name)


def barriers() -> list[tuple[str, int]]:
    """Where the kernels wait: file and line of each barrier, and of each wait for copies."""
    calls = "sync_block();", "sync_part<", "sync_warp();", "copy_async_wait<"
    return [
        (file.name, number)
        for file in sorted(KERNELS.glob("*.cuh"))
        if file.name != "device.cuh"
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if any(call in line.split("//")[0] for call in calls)
    ]


def run_everything(library: build.Library, seed: int) -> list[Tensor]:
    """Results of each kernel, such that every barrier matters: tiles follow one another in one
    block, rows or columns are contiguous, there are several groups of directions or none, squares
    overflow in some of the warps, and of a bank there are projectors with and without room. Then
    rows that are solved for."""
    torch.manual_seed(0)
    outs = []
    for dtype, rows in PATHS:
        if rows > 32:
            continue
        n, d, k = rows + 4, 320, 20
        x, given = features(n, d, dtype), factors("per-row", n, d, k, dtype)
        for i in range(1, n, 2):
            x[i, 37 * i % d] = 6e4 if dtype == torch.float16 else 1e25
            given["strength"][i] = 0  # keeps it to one column
        for wide in (x, x.T.contiguous().T):
            outs.append(poisoned(wide))
            how = {"rows": rows, "blocks": 1, "seed": seed, "normalize": True}
            library.project(wide, **given, out=outs[-1], **how)
        outs.append(poisoned(x))
        none = factors("symmetric", n, d, 0, dtype)
        library.project(x.clamp(-9, 9), **none, out=outs[-1], **how)
    for dtype, rows in BANKED:
        if rows > HALF_KERNEL:
            continue
        bank, x = Bank.random([20, ROOM + 9, 2 * ROOM + 1], 320), features(rows + 4, 320, dtype)
        outs.append(poisoned(x))
        how = {"rows": rows, "blocks": 1, "seed": seed, "normalize": True}
        library.project(x, **bank.given(random_index(len(x), 3)), out=outs[-1], **how)
    for dtype, rows in SOLVING:
        if rows > 32:
            continue
        bank, x = Bank.random([-20, 5], 320), features(rows + 4, 320, dtype)
        how = {"rows": rows, "blocks": 1, "seed": seed}
        outs.append(poisoned(x))
        library.project(x, **bank.alone(0), out=outs[-1], **how)
        if (dtype, rows) in SOLVING_BANKS:
            outs.append(poisoned(x))
            library.project(x, **bank.given(random_index(len(x), 2)), out=outs[-1], **how)
    return outs


@pytest.fixture(scope="module")
def right(library: build.Library) -> list[Tensor]:
    """What the kernels make of it with all their barriers."""
    outs = run_everything(library, 0)
    assert all(out.isfinite().all() for out in outs)
    return outs


@pytest.mark.parametrize(("file", "line"), every(3, barriers()))
def test_no_barrier_of_the_kernels_can_be_left_out(
    library: build.Library, right: list[Tensor], file: str, line: int
) -> None:
    library.remove_barrier(file, line)
    try:
        for seed in SEEDS:
            outs = run_everything(library, seed)
            if any(not torch.equal(out, want) for out, want in zip(outs, right, strict=True)):
                return
    except RuntimeError:  # a copy that nobody waits for, or threads that went different ways
        return
    finally:
        library.remove_barrier()
    pytest.fail("nothing changes without this barrier: needless, or not exercised here")


class Sanitized:
    """A program under a sanitizer, built when first asked."""

    def __init__(self, sanitizer: str, folder: Path) -> None:
        build.skip_without_compiler()
        if not build.links_with(sanitizer):
            pytest.skip(f"g++ has no library for -fsanitize={sanitizer}")
        self._program = build.build_sanitized(folder, sanitizer)
        start = self.run("reverse")
        if "unexpected memory mapping" in start.stderr:
            pytest.skip(f"{sanitizer} sanitizer does not start with this kernel's address layout")
        assert start.returncode == 0, start.stderr

    def run(self, *given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self._program, *given], capture_output=True, text=True)


@pytest.fixture(scope="session")
def address_sanitized(shared: Path) -> Sanitized:
    return Sanitized("address", shared / "address-sanitized")


@pytest.fixture(scope="session")
def thread_sanitized(shared: Path) -> Sanitized:
    return Sanitized("thread", shared / "thread-sanitized")


@pytest.mark.campaign
def test_no_access_out_of_bounds(address_sanitized: Sanitized) -> None:
    done = address_sanitized.run("kernels")
    assert done.returncode == 0, done.stderr


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("name", "finding"),
    [("read beyond", "heap-buffer-overflow"), ("write beyond part", "use-after-poison")],
)
def test_an_access_out_of_bounds_is_found(
    address_sanitized: Sanitized, name: str, finding: str
) -> None:
    done = address_sanitized.run(name)
    assert done.returncode != 0
    assert finding in done.stderr
    assert "planted.cuh" in done.stderr


@pytest.mark.campaign
def test_no_race(thread_sanitized: Sanitized) -> None:
    done = thread_sanitized.run("kernels")
    assert done.returncode == 0, done.stderr


@pytest.mark.campaign
@pytest.mark.parametrize(
    "name",
    [
        "missing barrier",
        "missing barrier after read",
        "missing warp barrier",
        "copy without barrier",
        "colliding blocks",
    ],
)
def test_a_race_is_found(thread_sanitized: Sanitized, name: str) -> None:
    done = thread_sanitized.run(name)
    assert done.returncode != 0
    assert "data race" in done.stderr
    assert "planted.cuh" in done.stderr
