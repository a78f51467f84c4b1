"""Models as their files hold them, compared bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch

from clipproj.checkpoints.state import locate, read_state


def bits(folder: Path) -> dict[str, bytes]:
    """The bytes of each tensor of a folder's checkpoint."""
    return {name: t.numpy().tobytes() for name, t in read_state(locate(folder)).items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts have the same names, dtypes and values."""
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )
