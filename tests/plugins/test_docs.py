"""The recipes of docs/plugins.md run as printed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import plugin_models
import pytest
import torch
from plugin_models import bank, clip_folder, image, projector
from vllm_pooler import EmbeddingPoolerHead, Metadata, Params, Pooler, PoolerNormalize

TEXT = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def scope(tmp_path: Path) -> dict[str, Any]:
    """What the page says is there."""
    return {
        "p": projector(),
        "bank": bank(),
        "path": str(clip_folder(tmp_path / "clip")),
        "folder": str(tmp_path / "saved"),
        "images": [image(i, size) for i, size in enumerate((32, 48, 40))],
        "pixel_values": torch.randn(3, 3, 32, 32),
        "input_ids": torch.randint(3, 64, (2, 8)),
    }


def run(engine: str, scope: dict[str, Any]) -> None:
    codes = [code for name, code in RECIPES if name == engine]
    assert codes
    for code in codes:
        exec(code, scope)


def test_every_recipe_is_run_here() -> None:
    assert {name for name, _ in RECIPES} == {
        "hugging_face", "sentence_transformers", "vllm", "infinity",
    }  # fmt: skip
    assert TEXT.count("```python") == len(RECIPES)


def test_hugging_face(scope: dict[str, Any]) -> None:
    run("hugging_face", scope)
    model, pixels = scope["model"], scope["pixel_values"]
    with torch.no_grad():
        plain = model.get_image_features(pixels).pooler_output
    acme, umbrella = scope["bank"].projector("acme"), scope["bank"].projector("umbrella")
    want = torch.stack([acme(plain[0]), plain[1], umbrella(plain[2], 0.5)])
    assert (scope["features"] - want).abs().max() < 1e-5
    assert scope["logits"].shape == (3, 2)


def test_sentence_transformers(scope: dict[str, Any]) -> None:
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    run("sentence_transformers", scope)
    assert scope["features"].shape == (3, 32)


def test_vllm(scope: dict[str, Any]) -> None:
    scope["PoolingParams"] = Params
    scope["pooler"] = Pooler(EmbeddingPoolerHead(None, torch.float32, PoolerNormalize()))
    run("vllm", scope)
    states = torch.randn(1, 4, 32)
    got = scope["pooler"](states, Metadata([scope["params"]]))
    want = scope["bank"].projector("acme")(states[:, -1], 1.5, normalize=True)
    assert (got - want).abs().max() < 1e-6


def test_infinity(scope: dict[str, Any]) -> None:
    plugin_models.infinity()
    run("infinity", scope)
    vectors = asyncio.run(scope["serve"](scope["images"]))
    assert np.isfinite(np.stack(vectors)).all()
