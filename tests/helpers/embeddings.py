"""Text embeddings that are made up, and real ones of CLIP ViT-B/32 where they are at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipproj import Embeddings

D = 32
VITB32 = Path(__file__).parents[3] / "shared/data/vitb32_text.npz"
# CIFAR-10's classes as OpenImages names them
CIFAR = ["Airplane", "Car", "Bird", "Cat", "Deer", "Dog", "Frog", "Horse", "Boat", "Truck"]


def cone(m, seed=0, d=D, spread=0.6):
    """Unit rows around one shared direction, as CLIP's texts are."""
    g = torch.Generator().manual_seed(seed)
    shared = F.normalize(torch.randn(1, d, generator=g, dtype=torch.float64))
    own = torch.randn(m, d, generator=g, dtype=torch.float64) / d**0.5
    return F.normalize(shared + spread * own)


def texts(m, seed=0, offset=0):
    rows = cone(m + offset, seed)[offset:].float()
    names = tuple(f"class {i + offset}" for i in range(m))
    return Embeddings(rows, names, ("a {}",), "model", "0" * 64)


def vitb32(names):
    if not VITB32.exists():
        pytest.skip("needs shared/data/vitb32_text.npz, real CLIP text embeddings")
    data = np.load(VITB32)
    rows = dict(zip(data["oid_names"].tolist(), data["oid"], strict=True))
    names = rows if names is None else names
    return torch.from_numpy(np.stack([rows[name] for name in names])).double()
