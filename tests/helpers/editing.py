"""What the tests of edits, their log and their undo share."""

from __future__ import annotations

from typing import Any

import torch
from families import WIDTH
from torch import Tensor, nn

from clipproj import files
from clipproj.models.heads import find_heads, head_tensors
from clipproj.projector import Projector

BIASED = "OpenAI ModifiedResNet"  # weight and bias in the image tower, a bare Parameter for texts


def projector(
    kind: str = "symmetric", names: str = "cat", seed: int = 3, dim: int = WIDTH, **more: Any
) -> Projector:
    generator = torch.Generator().manual_seed(seed)
    read = torch.linalg.qr(torch.randn(dim, 3, generator=generator))[0].T
    history = {"forget": {"names": [names]}} | more
    if kind == "symmetric":
        return Projector(read, provenance=history)
    write = read + 0.1 * torch.randn(3, dim, generator=generator)
    offset = torch.randn(3, generator=generator) if kind == "affine" else None
    return Projector(read, write, offset, strength=0.7, provenance=history)


def bits(model: nn.Module) -> dict[str, str]:
    """Every parameter and buffer, hashed."""
    return {name: files.sha256(tensor) for name, tensor in model.state_dict().items()}


def tensors(model: nn.Module, tower: str = "image") -> list[Tensor]:
    return [t for t in head_tensors(model, find_heads(model)[tower]) if t is not None]
