"""Inputs for the CUDA kernels on the CPU: which kernels there are, devices, layouts, banks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cases import HALF, OPTIONS, features, one_sided
from cuda_on_cpu.build import DeviceProperties
from torch import Tensor

# By which kernel: the rows of its tile, 0 for the plain one, 17 for project_half_kernel.
HALF_KERNEL = 17
PATHS = [(torch.float32, rows) for rows in (0, 16, 32)]
PATHS += [(half, rows) for half in HALF for rows in (0, 16, HALF_KERNEL, 32, 48)]
SEEDS = range(8)


def poisoned(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan)


def layouts(dtype: torch.dtype, d: int) -> dict[str, Tensor]:
    block = features(40, 2 * d, dtype)
    return {
        "slice": block[1:34, 3 : 3 + d],
        "slice of whole packs": block[1:34, 8 : 8 + d],
        "every other": block[:, 1::2],
        "every other row": block[::2, 1 : 1 + d],
        "transposed": features(d, 33, dtype).T,
        "transposed slice": features(2 * d, 40, dtype)[1 : 1 + d, 2:35].T,
        "one column": features(d, 5, dtype)[:, 2][None],
    }


DEVICES = {
    "sm_75": DeviceProperties(7, 40, 65536, 65536),
    "sm_80": DeviceProperties(8, 108, 166912, 167936),
    "sm_86": DeviceProperties(8, 84, 101376, 102400),
    "sm_90": DeviceProperties(9, 132, 232448, 233472),
    "sm_120": DeviceProperties(12, 170, 101376, 102400),
}


# project_wide_kernel comes without banks.
BANKED = [
    (dtype, rows) for dtype, rows in PATHS if dtype == torch.float32 or rows in (0, HALF_KERNEL)
]
ROOM, WIDEST = 128, 4096  # kRoom, kWidest of project_plan.h
LEAST_SPLIT = 256  # kLeastSplit
# Kernels that solve for coefficients: in a bank too, and for one projector alone.
SOLVING = [(dtype, rows) for dtype, rows in PATHS if rows != HALF_KERNEL]
SOLVING_BANKS = [(dtype, rows) for dtype, rows in SOLVING if (dtype, rows) in BANKED]
NAN = float("nan")


def option(i: int, dtype: torch.dtype, rows: int, d: int, k: int) -> str:
    """One of OPTIONS in turn, as far as the kernel takes it and float64 has it soon."""
    name = OPTIONS[i % len(OPTIONS)]
    accurate = rows == 0 or dtype == torch.float32 or d >= LEAST_SPLIT
    solved = rows != HALF_KERNEL and accurate and k <= 64
    return "clamps" if name == "one-sided" and not solved else name


@dataclass
class Bank:
    """Projectors of some ranks, those below 0 one-sided. Directions between them belong to nobody
    and are NaN, as is what lies beside a gram: a kernel that reads one tells."""

    read: Tensor
    write: Tensor
    offset: Tensor
    spans: Tensor
    gram: Tensor | None = None

    @classmethod
    def random(cls, ranks: list[int], d: int) -> Bank:
        gaps = [1 + i % 3 for i in range(len(ranks))]
        sizes, width = [abs(rank) for rank in ranks], -min([0, *ranks])
        starts = [sum(sizes[:i]) + sum(gaps[: i + 1]) for i in range(len(ranks))]
        k = sum(sizes) + sum(gaps) + 1
        read, write, offset, gram = (
            torch.full(size, NAN) for size in [(k, d), (k, d), (k,), (k, width)]
        )
        for start, rank in zip(starts, ranks, strict=True):
            own = slice(start, start + abs(rank))
            if rank < 0:
                made = one_sided(1, d, -rank)
                read[own], write[own], offset[own] = made["read"], made["write"], made["offset"]
                gram[own, :-rank] = made["gram"]
                continue
            read[own] = torch.randn(rank, d) / d**0.5
            write[own] = torch.randn(rank, d) / d**0.5
            offset[own] = torch.randn(rank)
        spans = torch.tensor([*zip(starts, ranks, strict=True)], dtype=torch.int32)
        return cls(read, write, offset, spans.reshape(-1, 2), gram if width else None)

    def given(self, index: Tensor) -> dict[str, Tensor]:
        return {**vars(self), "index": index}

    def alone(self, which: int) -> dict[str, Tensor]:
        """What the operator of one projector takes for this one, -1 for none."""
        start, rank = (0, 0) if which == -1 else self.spans[which].tolist()
        own = slice(start, start + abs(rank))
        factors = {"read": self.read[own], "write": self.write[own], "offset": self.offset[own]}
        return factors if rank >= 0 else factors | {"gram": self.gram[own, :-rank].contiguous()}


def random_index(n: int, m: int) -> Tensor:
    return torch.randint(-1, m, (n,), dtype=torch.int32)
