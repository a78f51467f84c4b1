"""An edit that is a whole matrix: what a method gives that trains a projection."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clipproj.refusal import Refusal


@dataclass(frozen=True, eq=False)
class Dense:
    """`rows @ matrix`, for rows of any length.

    Args:
        matrix: [d, d], finite.
        side: "image" or "text", whose features it edits.
        renormalize: whether texts are divided by their length after it, as services do; what an
            edit of the text tower did can vanish there.
    """

    matrix: Tensor
    side: str = "image"
    renormalize: bool = True

    def __post_init__(self) -> None:
        m = self.matrix
        if m.ndim != 2 or m.shape[0] != m.shape[1]:
            raise ValueError(f"Dense: matrix must be [d, d], got {list(m.shape)}")
        if not m.isfinite().all():
            raise Refusal("Dense", "matrix", "must be finite, got a NaN or inf")
        if self.side not in ("image", "text"):
            raise ValueError(f'Dense: side must be "image" or "text", got {self.side!r}')
        object.__setattr__(self, "matrix", m.detach())

    @property
    def rank(self) -> int:
        """d: it stores and costs a full matrix, whatever the rank of its change."""
        return self.matrix.shape[0]

    def __call__(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix.to(rows.device, rows.dtype)
