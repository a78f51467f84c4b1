"""What the operators take of the machine's memory, by the kernel's own books."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cases import factors, features

from clipproj import ops

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' /proc")

# Peak resident memory in KiB before and after, of a process of its own.
GROWTH = """
import resource, torch
from clipproj import ops

torch.set_num_threads(1)
read = torch.linalg.qr(torch.randn(512, 16))[0].T.contiguous()
ops.project_(torch.ones(64, 512), read, read)
x = torch.ones(1_000_000, 512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.project_(x, read, read, normalize=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""

# The same beside the result, for rows of a bank in no order.
ROWS_GROWTH = """
import resource, torch
from clipproj import ops

torch.set_num_threads(1)
n, d, ranks = 1_000_000, 128, [8, 0, 24, 1]
read = torch.randn(sum(ranks), d)
spans = torch.tensor([[0, 8], [8, 0], [8, 24], [32, 1]], dtype=torch.int32)
x, index = torch.ones(n, d), torch.randint(-1, 4, (n,), dtype=torch.int32)
ops.project_rows(x[:64], read, read, None, spans, index[:64], normalize=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = ops.project_rows(x, read, read, None, spans, index, normalize=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - out.nbytes // 1024)
"""

# The same for the products: what lies between their steps is a chunk.
PRODUCTS_GROWTH = """
import resource, torch
from clipproj import ops

torch.set_num_threads(1)
n, d = 500_000, 256
read = torch.linalg.qr(torch.randn(d, 16))[0].T.contiguous()
spans = torch.tensor([[0, 8], [8, 8]], dtype=torch.int32)
weight, scale = torch.randn(d, 64), torch.tensor(100.0)
classes = torch.randn(8, d)
x, z = torch.ones(n, 64), torch.ones(n, d)
index = torch.randint(-1, 2, (n,), dtype=torch.int32)

def linear(n):
    bank = {"spans": spans, "index": index[:n]}
    return ops.linear(x[:n], weight, None, read, read, normalize=True, **bank)

def logits(n):
    bank = {"spans": spans, "index": index[:n]}
    return ops.logits(z[:n], classes, read, read, None, None, scale, **bank)

linear(4096), logits(4096)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = logits(n)
first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - out.nbytes // 1024
out = linear(n), out
second = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(max(first - before, second - before - sum(t.nbytes for t in out) // 1024))
"""


def available() -> int:
    """Bytes that may be taken without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10


def growth(code: str) -> int:
    """Bytes, as a process of its own prints them."""
    if available() < 4 << 30:
        pytest.skip("needs 4 GB of available memory")
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return int(out.stdout) << 10


@linux
def test_a_large_batch_is_projected_in_its_own_memory() -> None:
    assert growth(GROWTH) < 64 << 20


@linux
def test_rows_of_a_bank_take_no_memory_but_the_result() -> None:
    assert growth(ROWS_GROWTH) < 16 << 20


@linux
def test_products_take_a_chunk_beside_the_result() -> None:
    assert growth(PRODUCTS_GROWTH) < 16 << 20


def flags(address: int) -> list[str]:
    """VmFlags of the mapping that an address belongs to."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError(f"no mapping at {address:#x}")


@linux
def test_a_large_new_result_asks_for_huge_pages() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no huge pages")
    x = features(16384, 512)  # 32 MiB: a mapping of its own
    out = ops.project(x, **factors("symmetric", 1, 512, 1))
    assert "hg" in flags(out.data_ptr() + out.nbytes // 2)
