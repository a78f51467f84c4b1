"""What a linear edit makes of any row: `z' = z - s (z R^T - c) W`, |z| <= radius."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clipproj.certificates.rounding import Rounding


@dataclass(frozen=True, eq=False)
class LinearBounds:
    """The bounds of one edit of k directions in d dimensions; all float64.

    Attributes:
        read, write: [k, d]. offset: [k]. strength: s.
        radius: rows are at most so long.
        rounding: of the kernels and of what is stored.
    """

    read: Tensor
    write: Tensor
    offset: Tensor
    strength: float
    radius: float
    rounding: Rounding

    def seen(self, texts: Tensor) -> Tensor:
        """Texts [m, d] as rows see them before the edit: `z' . t = z . seen(t) + shift . t`."""
        return texts - self.strength * (texts @ self.write.T) @ self.read

    @cached_property
    def shift(self) -> Tensor:
        """[d], what an offset adds to every row."""
        return self.strength * self.offset @ self.write

    @cached_property
    def length(self) -> float:
        """|z'| at most: outside the span of read and write a row stays as it is."""
        basis = torch.linalg.qr(torch.cat([self.read, self.write]).T)[0].T
        stretch = (
            float(torch.linalg.matrix_norm(self.seen(basis) @ basis.T, 2)) if len(basis) else 0.0
        )
        return max(1.0, stretch) * self.radius + float(torch.linalg.vector_norm(self.shift))

    @cached_property
    def update(self) -> float:
        """How far, in length, a row is from its value because sums over d and k were rounded."""
        k, d = self.read.shape
        lengths = torch.linalg.vector_norm(self.write, dim=1)
        coefficients = self.radius * torch.linalg.vector_norm(self.read, dim=1) + self.offset.abs()
        moved = self.strength * float(coefficients @ lengths)
        return self.rounding.sums(d) * moved + self.rounding.sums(k + 2) * (self.radius + moved)
