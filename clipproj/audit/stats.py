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
_T = {1: 12.706204736174698, 2: 4.302652729749464}  # Student's t, where its expansion is off


class Measured(float):
    """A float with what it was measured on.

    Attributes:
        n: how many cases it is of.
        low, high: 95 % interval; NaN where it has none (no case, one to take a mean of, or several
            that are all equal).
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
    hits = torch.as_tensor(hits, dtype=torch.bool, device="cpu").flatten()
    n = hits.numel()
    if n == 0:
        return Measured(math.nan, 0)
    p = int(hits.sum()) / n
    return Measured(p, n, *wilson(p, n))


def wilson(p: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share p of n cases, n at least 1; p always lies in it."""
    z2 = _Z * _Z
    centre, spread = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z2 / n) for sign in (-1, 1))
    return max(0.0, min(low, p)), min(1.0, max(high, p))


def mean(
    values: Tensor | Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)
) -> Measured:
    """The mean of [n] values with Student's t interval, cut to what a mean can be.

    A NaN among the values is no case. For means of anything but hits: cosines, shares of classes.
    Resampling instead covers 50 % for two values and 80 % for five; this holds its 95 % for values
    without a skew, and is too narrow for few that have one (85 % for five cosines near 1).

    Args:
        within: the least and the greatest that a value can be.
    """
    values = torch.as_tensor(values, dtype=torch.float64, device="cpu").flatten()
    values = values[~values.isnan()]
    n = values.numel()
    if n < 2:
        return Measured(float(values[0]) if n else math.nan, n)
    if bool((values == values[0]).all()):  # of their spread equal values say nothing
        return Measured(float(values[0]), n)
    middle, spread = float(values.mean()), _student(n - 1) * float(values.std()) / math.sqrt(n)
    low, high = max(middle - spread, within[0]), min(middle + spread, within[1])
    return Measured(middle, n, min(low, middle), max(high, middle))  # a mean may round past an end


def _student(freedom: int) -> float:
    """The 97.5 % quantile of t, to 0.2 % (Abramowitz and Stegun 26.7.5)."""
    z, v = _Z, freedom
    return _T.get(v) or (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


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
