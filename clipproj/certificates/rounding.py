"""By how much numbers are rounded: when a row is stored, and in sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from clipproj.refusal import Refusal

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rounding:
    """Of rows that are stored in `dtype` and computed in float32, float64 for float64."""

    dtype: torch.dtype

    @property
    def double(self) -> bool:
        return self.dtype == torch.float64

    @property
    def unit(self) -> float:
        """Half a unit in the last place of what is computed, relative."""
        return torch.finfo(torch.float64 if self.double else torch.float32).eps / 2

    def sums(self, n: int) -> float:
        """Relative error of a sum of n products, whose partial sums are at most 1.

        `4 u sqrt(n)`, seven standard deviations of n independent rounding errors: Higham and Mary
        (A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 2019). The
        bound that no errors exceed, n u, is one that sums of this length do not come near.
        """
        return 4 * self.unit * n**0.5

    def stored(self, length: float, d: int) -> float:
        """How far a row of d elements, at most `length` long, moves when it is stored.

        Also when it is normalised before, measured in units of the row as it was.
        """
        info = torch.finfo(self.dtype)
        least = info.smallest_normal * info.eps / 2  # half the distance of the smallest numbers
        return length * (info.eps / 2 + self.unit) + max(length, 1.0) * least * d**0.5


def rounding(op: str, dtype: torch.dtype) -> Rounding:
    """ValueError, in the name of `op`, for a dtype that rows are not stored in."""
    if dtype not in DTYPES:
        told = ", ".join(map(str, DTYPES))
        raise Refusal(op, "dtype", f"must be one of {told}, got {dtype}")
    return Rounding(dtype)
