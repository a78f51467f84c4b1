"""What a one-sided edit leaves of any row: how much it reads, how long it is, how it was rounded.

    z' = z - s a W,    a ~ argmin_{a >= 0} 1/2 a G a^T - a e,    e = z R^T - c,    |z| <= radius

Sizes of a are measured as `|a|^2 = a G a^T`. Everything holds for what csrc/cpu/solve.inl computes,
also where it stops before the minimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clipproj.certificates.rounding import Rounding
from clipproj.methods.half_spaces import bend, widest
from clipproj.methods.hull import nearest_mixture
from clipproj.refusal import Refusal


@dataclass(frozen=True)
class Solver:
    """Where the kernels' coordinate ascent ends (`SolveLimits` of csrc/solve.h).

    Attributes:
        sweeps, move: it ends after so many sweeps, or after one that moved no coefficient by more
            than `move` times the largest excess.
        left: the sweeps after it, which raise coefficients alone, end when none was raised by more
            than `left` times the largest excess. A row that they do not bring there is NaN.
    """

    sweeps: int
    move: float
    left: float


SINGLE = Solver(512, 2.0**-10, 2.0**-16)
DOUBLE = Solver(1 << 14, 1e-14, 1e-14)


@dataclass(frozen=True, eq=False)
class HalfSpaceBounds:
    """The bounds of one edit, with k half-spaces in d dimensions; all float64.

    Attributes:
        read, write: [k, d]. gram: [k, k]. offset: [k]. strength: s.
        radius: rows are at most so long.
        rounding: of the kernels and of what is stored.
    """

    read: Tensor
    write: Tensor
    gram: Tensor
    offset: Tensor
    strength: float
    radius: float
    rounding: Rounding

    @property
    def solver(self) -> Solver:
        return DOUBLE if self.rounding.double else SINGLE

    @cached_property
    def above(self) -> Tensor:
        """[k], what an edited row reads along `read` at most, `z' R^T <= above`, without rounding.

        With the excess that is left, `x = e - a G`, an edited row reads `c + e - s a G`. Up to
        strength 1 that is `c + (1 - s) e + s x`; beyond, `c + x - (s - 1) a G`, in which a G is
        negative only by the negative elements of G.
        """
        s = self.strength
        excess = (self._most_excess * max(1 - s, 0)).clamp_min(0)
        beyond = max(s - 1, 0) * self._reach(self._negative)
        stored = s * self._reach((self.write @ self.read.T - self.gram).abs())
        return self.offset + excess + min(s, 1) * self.left + beyond + stored

    @cached_property
    def left(self) -> Tensor:
        """[k], the excess that the solver leaves at most.

        In the last sweep of raises coefficient i had no excess when its turn was over; those after
        it rose by at most `solver.left` of the largest excess, and only negative elements of G make
        excess of that.
        """
        later = self._negative.triu(1).sum(1)
        return (self.solver.left * self._largest * later).clamp_max(self._gap)

    @cached_property
    def length(self) -> float:
        """|z'| at most, before it is normalised.

        At the minimum `a G a^T = a e`, so the row is changed as by one oblique direction, reading
        a R and writing a W; the norm of that projection is at most the largest
        `|a R| |a W| / a G a^T`. Thresholds below 0 and what the solver leaves come on top.
        """
        s, wide = self.strength, self._wide(self._written) ** 0.5
        bend = self._bend
        stretch = _stretch(s, bend) * self.radius
        stored = s * bend * float((self.write @ self.read.T - self.gram).abs().max())
        stored *= self.radius / self._least
        return stretch + stored + s * wide * (self._below / self._least**0.5 + self._gap)

    @cached_property
    def rounded(self) -> Tensor:
        """[k], by how much more an edited row may read because c and the solver were rounded.

        An excess that ends near 0 was, t sweeps before, at most as far from it as the solver was
        from its end; each of k steps of a sweep rounds it by that. So by `_gap` the squares add up
        to at most `4 k (1 + rho)` times the square of the size at the minimum.
        """
        k, d = self.read.shape
        lengths = torch.linalg.vector_norm(self.read, dim=1)
        reading = self.rounding.sums(d) * (self.radius * lengths + self.offset.abs())
        if self._coupling == 0:
            return reading
        steps = self.rounding.sums(math.ceil(k * (1 + self._coupling)))
        return reading + 2 * steps * self._size_at_minimum

    @cached_property
    def update(self) -> float:
        """How far, in length, `z - s a W` is from its value because its sum over k was rounded."""
        lengths = torch.linalg.vector_norm(self.write, dim=1)
        both = torch.linalg.eigvalsh(self._written)[-1] / torch.linalg.eigvalsh(self.gram)[0]
        most = self.strength * min(
            float(self._reach(lengths[:, None])), float(both.clamp_min(0)) ** 0.5 * self._size
        )
        return self.rounding.sums(len(self.read) + 2) * (self.radius + most)

    def _reach(self, weights: Tensor) -> Tensor:
        """[m], the largest `a weights` for weights [k, m] >= 0 that a solution comes to."""
        by_size = self._size * (weights * torch.cholesky_solve(weights, self._root)).sum(0).sqrt()
        by_sum = self._size / self._least**0.5 * weights.amax(0)
        return torch.minimum(by_size, torch.minimum(by_sum, self._each @ weights))

    @cached_property
    def _each(self) -> Tensor:
        """[k], the largest that each coefficient comes to.

        A step sets one to at most its own excess plus what the others' negative elements add, so
        none ever passes the solution of `a = e + a G-`, where there is one.
        """
        k = len(self.gram)
        if torch.linalg.eigvalsh(self._negative)[-1] >= 1 - 1e-6:
            return self.gram.new_full((k,), self._size / self._least**0.5)
        free = torch.zeros_like(self.gram).fill_diagonal_(1.0) - self._negative
        return torch.linalg.solve(free, self._most_excess.clamp_min(0))

    @cached_property
    def _size(self) -> float:
        """|a| at most: that of the minimum, and how far the solver stops from it."""
        return self._size_at_minimum + self._gap

    @cached_property
    def _size_at_minimum(self) -> float:
        """`|a|^2 = a e`, and `a e` is at most |a R| radius less a times the thresholds below 0."""
        wide = self._wide(self.read @ self.read.T)
        return self.radius * wide**0.5 + self._below / self._least**0.5

    @cached_property
    def _gap(self) -> float:
        """How far the solver's a is from the minimum at most, by size.

        With U the part of G above its diagonal, and moves m of a sweep, the objective ends within
        `m U^T G^-1 U m^T / 2` of its least value, and fell by `m m^T / 2` or more. So each sweep
        leaves at most `rho / (1 + rho)` of what was to gain, rho the largest eigenvalue of
        `U^T G^-1 U`; and a sweep that moves little leaves little. Raises only gain.
        """
        most = min(len(self.gram) * self._coupling, float(self._later.abs().sum()))
        stopped = most**0.5 * self.solver.move * self._largest
        left = self._coupling / (1 + self._coupling)
        return max(stopped, self._size_at_minimum * left ** (self.solver.sweeps / 2))

    @cached_property
    def _coupling(self) -> float:
        """rho of `_gap`, 0 for independent half-spaces."""
        return max(0.0, float(torch.linalg.eigvalsh(self._later)[-1]))

    @cached_property
    def _later(self) -> Tensor:
        """`U^T G^-1 U` of `_gap`."""
        upper = torch.triu(self.gram, 1)
        return upper.T @ torch.cholesky_solve(upper, self._root)

    @cached_property
    def _bend(self) -> float:
        return bend(self.read, self.write, self.gram)

    @cached_property
    def _written(self) -> Tensor:
        return self.write @ self.write.T

    @cached_property
    def _root(self) -> Tensor:
        root, fault = torch.linalg.cholesky_ex(self.gram)
        if fault:
            raise Refusal(
                "certificate",
                "projector",
                "must have a positive definite gram, got one that is not",
            )
        return root

    def _wide(self, form: Tensor) -> float:
        return widest(form, self._root)

    @cached_property
    def _least(self) -> float:
        """The least `a G a^T` for a >= 0 of sum 1."""
        weights = nearest_mixture(self._root.new_zeros(len(self._root)), self._root)
        return float((weights @ self._root).square().sum())

    @cached_property
    def _negative(self) -> Tensor:
        return (-self.gram).clamp_min(0)

    @cached_property
    def _below(self) -> float:
        """How far thresholds lie below 0."""
        return float((-self.offset).clamp_min(0).max())

    @cached_property
    def _most_excess(self) -> Tensor:
        return self.radius * torch.linalg.vector_norm(self.read, dim=1) - self.offset

    @cached_property
    def _largest(self) -> float:
        return max(0.0, float(self._most_excess.max()))


def _stretch(strength: float, bend: float) -> float:
    """The largest norm of `I - t P` for t in [0, strength] and an oblique projection P on one
    direction whose norm is `bend`. The norm is convex in t, so it is at one of the ends.
    """
    trace = (1 - strength) ** 2 + strength**2 * (bend**2 - 1) + 1
    square = (trace + max(trace**2 - 4 * (1 - strength) ** 2, 0.0) ** 0.5) / 2
    return max(1.0, square**0.5)
