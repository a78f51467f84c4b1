"""What the tests of docs/compile.md share: its code, and the embedded model to run it on."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clipproj
from clipproj.checkpoints.checkpoint import load_model
from clipproj.projector import Projector

DOC = Path(__file__).parents[2] / "docs" / "compile.md"
WIDTH, SIZE = 128, 64  # of the embedded model: its features and its images


def sections() -> dict[str, str]:
    """The Python of each section of the page, by heading; of several blocks in one, all."""
    parts = re.split(r"^## (.*)\n", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE)
    code = {
        title: "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {title: block for title, block in code.items() if block}


def run(*titles: str, **scope: Any) -> dict[str, Any]:
    """What the names of sections are after they have run in turn, behind the page's first one."""
    code = sections()
    for title in ("The examples", *titles):
        exec(compile(code[title], f"{DOC.name}, {title}", "exec"), scope)
    return scope


def demo() -> nn.Module:
    """The embedded model, as the command line loads it; a new one for each test to edit."""
    return load_model().model.requires_grad_(False)


@functools.cache
def projectors() -> dict[str, Projector]:
    """Projectors of the embedded model from class names, by name."""
    loaded = load_model()
    names = ("cat", "dog", "car", "whale")
    texts = clipproj.embed_classes(loaded.model, loaded.tokenizer, names, ["a drawing of a {}."])
    made = {}
    for i, name in enumerate(names):
        others = [j for j in range(len(names)) if j != i]
        made[name] = clipproj.nullspace(texts.tensor[[i]], texts.tensor[others])
    return made


def images(n: int) -> Tensor:
    """[n, 3, SIZE, SIZE] for the embedded model; noise, which no edit is asked to recognise."""
    return torch.randn(n, 3, SIZE, SIZE)
