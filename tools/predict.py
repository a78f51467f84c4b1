"""What the CUDA kernels should take on an H100, by arithmetic: the table of benchmarks/NOTES.md.

    python tools/predict.py

For `project` of bfloat16 features with normalisation by a symmetric projector, by
project_half_kernel. Instructions were counted in what ptxas makes of it for sm_90; the rest is
assumed until measured.
"""

from __future__ import annotations

import math

MULTIPROCESSORS, CLOCK = 132, 1.7e9
MEMORY = 3.0e12  # bytes a second, read and written, of a copy
SHARED = 128  # bytes a cycle and multiprocessor
TENSOR = 600e12  # bfloat16 operations a second by mma.sync, of the whole device
ISSUED = {2: 2.4, 1: 1.8}  # warp instructions a cycle and multiprocessor, by teams of eight warps
SLACK, LAUNCH = 1.1, 3e-6  # what does not overlap, and a launch
ROOM = 232_448  # bytes of shared memory of a block
WARPS, ROWS, GROUP = 8, 16, 16


def teams(d: int, k: int) -> int:
    """How many teams share a block, as plan_half decides; 0: another kernel serves."""
    pieces, groups = max(2, math.ceil(d / 256)), math.ceil(k / GROUP)
    factors, own = 4 * groups * GROUP * pieces * 256, 2 * ROWS * pieces * 256 + 10_752
    most = (ROOM - factors) // own
    return min(most, 2 if pieces <= 3 else 1)


def cycles_of_tile(d: int, k: int) -> dict[str, float]:
    """What a tile of 16 rows keeps a multiprocessor busy with, apart from memory."""
    pieces, groups = max(2, math.ceil(d / 256)), math.ceil(k / GROUP)
    instructions = 260 + 110 * pieces + (45 + 40 * pieces) * groups  # of a warp
    products = WARPS * pieces * 20 * groups  # m16n8k16: 8 for x R^T, 12 for c W
    factors = 2 * 4 * GROUP * 256 * pieces * groups  # bytes, both parts, twice
    rows = 2 * 2 * ROWS * 256 * pieces
    return {
        "issue": WARPS * instructions / ISSUED[teams(d, k)],
        "shared": (factors + rows) / SHARED,
        "tensor": products * 4096 / (TENSOR / MULTIPROCESSORS / CLOCK),
    }


def line(n: int, d: int, k: int) -> str:
    """A row of the table."""
    tiles = math.ceil(n / ROWS)
    busy = {name: c * tiles / MULTIPROCESSORS / CLOCK for name, c in cycles_of_tile(d, k).items()}
    copy = 4 * n * d / MEMORY
    seconds = SLACK * max(copy, *busy.values()) + LAUNCH
    bound = max({"memory": copy} | busy, key=({"memory": copy} | busy).__getitem__)
    cells = [n, d, k, teams(d, k), *(f"{1e6 * t:.0f}" for t in (copy, *busy.values()))]
    cells += [f"{1e6 * seconds:.0f} ({bound})", f"{copy / seconds:.0%}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    print("| n | d | k | teams | memory us | issue us | shared us | tensor us | predicted us "
          "| of copy speed |")  # fmt: skip
    print("|---" * 10 + "|")
    for n, d, k in [
        *[(65536, 512, k) for k in (1, 16, 32, 64)],
        *[(65536, 768, k) for k in (1, 16, 32, 64)],
        *[(65536, 1024, k) for k in (16, 32)],
        *[(1 << 20, d, 16) for d in (512, 768)],
    ]:
        print(line(n, d, k))


if __name__ == "__main__":
    main()
