"""Numbers that know what they are of: a count, and an interval that says how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_Z = 1.959963984540054  # two-sided 95 %
_DRAWS = 2000


class Measured(float):
    """A float with what it was measured on.

    Attributes:
        n: how many cases it is of.
        low, high: 95 % interval; NaN where it has none (no case, or one to take a mean of).
    """

    n: int
    low: float
    high: float

    def __new__(cls, value: float, n: int, low: float = math.nan, high: float = math.nan):
        self = super().__new__(cls, value)
        self.n, self.low, self.high = int(n), float(low), float(high)
        return self

    def __getnewargs__(self):  # copies and pickles keep the interval
        return float(self), self.n, self.low, self.high


def share(hits: Tensor | Sequence[bool]) -> Measured:
    """The share of cases that are true, with Wilson's interval (which holds near 0 and 1 too).

    Args:
        hits: [n] bool; n = 0 gives NaN.
    """
    hits = torch.as_tensor(hits, dtype=torch.bool).flatten()
    n = hits.numel()
    if n == 0:
        return Measured(math.nan, 0)
    p, z2 = int(hits.sum()) / n, _Z * _Z
    centre, spread = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z2 / n) for sign in (-1, 1))
    return Measured(p, n, max(0.0, min(low, p)), min(1.0, max(high, p)))


def mean(values: Tensor | Sequence[float]) -> Measured:
    """The mean of [n] values with a bootstrap interval (percentiles of 2000 seeded resamples).

    A NaN among the values is no case. For means of anything but hits: cosines, shares of classes.
    """
    values = torch.as_tensor(values, dtype=torch.float64).flatten()
    values = values[~values.isnan()]
    n = values.numel()
    if n < 2:
        return Measured(float(values[0]) if n else math.nan, n)
    generator = torch.Generator().manual_seed(0)
    draws = torch.empty(_DRAWS, dtype=torch.float64)
    at_once = max(1, 4_000_000 // n)
    for start in range(0, _DRAWS, at_once):
        rows = min(at_once, _DRAWS - start)
        pick = torch.randint(n, (rows, n), generator=generator)
        draws[start : start + rows] = values[pick].mean(dim=1)
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Measured(float(values.mean()), n, low, high)


def plain(value: Any) -> Any:
    """The value as JSON can hold it: dataclasses and Measured as dicts, NaN as None.

    Raises TypeError for what has no such form, a tensor above all.
    """
    if isinstance(value, Measured):
        return {
            "value": plain(float(value)), "n": value.n, "low": plain(value.low),
            "high": plain(value.high),
        }  # fmt: skip
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    got = type(value).__name__
    raise TypeError(f"plain: value must be a number, a text or made of such, got {got}")
