"""The examples in public docstrings give what they say."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import clipproj

# What no line or two can show: they need images, another package's object, or a whole prompt list.
WITHOUT = {
    "AttachReceipt",
    "Edit", "Receipt", "RecordedEdit", "Verdict", "build_info", "coreset", "cpu_isa", "from_leace",
    "generic_keep", "selective", "set_cpu_isa", "subgroup", "text_proxies", "tune", "unrotate",
}  # fmt: skip
PUBLIC = {name: getattr(clipproj, name) for name in clipproj.__all__}
PUBLIC |= {f"ops.{name}": getattr(clipproj.ops, name) for name in clipproj.ops.__all__}
CALLABLE = sorted(name for name, one in PUBLIC.items() if callable(one))


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What examples may take as given: a model, its tokenizer, texts of three classes."""
    pytest.importorskip("open_clip")
    from clipproj.checkpoints.checkpoint import load_model

    loaded = load_model()
    texts = clipproj.embed_classes(
        loaded.model, loaded.tokenizer, ["cat", "dog", "horse"], ["a drawing of a {}"]
    )
    return {"model": loaded.model, "tokenizer": loaded.tokenizer, "texts": texts}


@pytest.mark.parametrize("name", [name for name in CALLABLE if name not in WITHOUT])
def test_example(
    name: str, known: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    public = PUBLIC[name]
    home = dict(vars(inspect.getmodule(public)))
    globs = home | known | {"torch": torch, "clipproj": clipproj}
    (example,) = doctest.DocTestFinder(recurse=False).find(public, name, globs=globs)
    done = doctest.DocTestRunner().run(example)
    assert (done.failed, done.attempted > 0) == (0, True)


def test_every_other_public_name_is_known_to_have_none() -> None:
    assert set(CALLABLE) >= WITHOUT
    assert not [name for name in WITHOUT if ">>>" in (inspect.getdoc(PUBLIC[name]) or "")]
