"""Models on the disk, before and after an edit."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from command import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of open_clip; files about other libraries have a folder of their own."""
    root = tmp_path_factory.mktemp("tiny")
    return tiny.model(root / "model", tiny.images(root / "images", 1))


@pytest.fixture
def asked(folder: Path, images: Path) -> list[str]:
    """The options that name the model, its images and a prompt for its 16 tokens."""
    return ["--model", str(folder), "--images", str(images), "--template", tiny.TEMPLATE]


@pytest.fixture
def erased(run: Run, asked: list[str]) -> Path:
    """The output folder of an erased cat."""
    assert run("erase", "cat", *asked).exit_code == 0
    return Path("clipproj-out")
