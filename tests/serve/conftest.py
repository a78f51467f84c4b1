"""The engine of the service on the embedded model, with tenants of each form."""

from __future__ import annotations

import pytest
import torch
from serving import D

import clipproj
from clipproj.checkpoints.checkpoint import load_model
from clipproj.serve.engine import Engine
from clipproj.serve.store import Changes, to_bytes


@pytest.fixture(scope="module")
def projectors() -> dict[str, clipproj.Projector]:
    """Each form: symmetric of three ranks, oblique, affine."""
    torch.manual_seed(1)
    keep = torch.randn(20, D)
    made = {f"sym{k}": clipproj.nullspace(torch.randn(k, D), keep, "mean") for k in (1, 2, 5)}
    made["sym2"] = made["sym2"].scaled(1.5)
    made |= {
        f"names{i}": clipproj.nullspace(torch.randn(1, D), keep, "mean").scaled(1.5) for i in "ab"
    }
    made["oblique"] = clipproj.ccup(torch.randn(2, D), keep, 10.0, 1.0)
    read, write = torch.randn(2, D) / D**0.5, torch.randn(2, D) / D**0.5
    made["affine"] = clipproj.Projector(read, write, torch.randn(2))
    return made


@pytest.fixture(scope="module")
def engine(projectors: dict[str, clipproj.Projector]) -> Engine:
    engine = Engine(load_model(), capacity=64)
    engine.apply(Changes(1, 1, {n: to_bytes(p) for n, p in projectors.items()}))
    return engine
