"""The least time that a problem can take on this machine, from two measured rates.

    bound = max(flops / FMA peak, bytes / in-place copy rate of the same working set)

Both rates are measured in this run, on as many threads as the operators use, by a few lines of C++
(roofline.cpp) that the system's compiler builds for this very CPU: a library GEMM does not reach
the peak, and a copy of another size does not have the cache behaviour of this one. The arithmetic
peak is that of float32, in which the operators compute for every dtype; a peer that multiplies
bfloat16 in hardware can be above it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("roofline.cpp")
SECONDS = 0.003  # of one pass; the C++ side takes the best of 25


class Work(NamedTuple):
    """What a problem needs: arithmetic, memory traffic, and the distinct memory that it touches."""

    flops: int
    bytes: int
    touched: int


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "roofline.so")
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, "-std=c++17", *flags, SOURCE, "-o", library], check=True)
        loaded = ctypes.CDLL(str(library))
    loaded.fma_peak.restype = loaded.copy_rate.restype = ctypes.c_double
    return loaded


@functools.cache
def fma_peak(threads: int) -> float:
    """float32 operations per second; a fused multiply-add is two."""
    return _library().fma_peak(ctypes.c_int(threads), ctypes.c_double(SECONDS))


@functools.cache
def copy_rate(size: int, threads: int) -> float:
    """Bytes read plus bytes written per second when `size` bytes are scaled in place."""
    arguments = ctypes.c_int64(size), ctypes.c_int(threads), ctypes.c_double(SECONDS)
    return _library().copy_rate(*arguments)


def bound(work: Work, threads: int) -> tuple[float, str]:
    """Seconds below which `work` cannot be done, and whether "flops" or "bytes" say so."""
    flops = work.flops / fma_peak(threads), "flops"
    return max(flops, (work.bytes / copy_rate(work.touched, threads), "bytes"))


if __name__ == "__main__":
    for threads in range(1, (os.cpu_count() or 1) + 1):
        print(f"{threads} threads: {fma_peak(threads) / 1e9:.0f} GFLOP/s")
        for power in range(12, 29, 2):
            print(f"  {2**power:>10} bytes in place: {copy_rate(2**power, threads) / 1e9:.0f} GB/s")
