"""README.md: its Python runs, CI runs its commands, and the output it shows is what is printed."""

import re
import shlex

import documents
import open_clip
import pytest
import torch
from documents import ROOT
from typer.testing import CliRunner

import clipproj
from clipproj import demo
from clipproj.cli.app import app

README, PYTHON = (ROOT / name for name in ("README.md", "docs/python.md"))


@pytest.fixture
def scope(monkeypatch):
    """What the texts take for granted: images, and in the place of OpenAI's the embedded model."""
    made = open_clip.create_model_and_transforms(f"local-dir:{demo.model_dir()}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{demo.model_dir()}")
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *_, **__: made)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_: tokenizer)
    return {"images": torch.randn(3, 3, 64, 64)}


def test_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def test_python_runs(scope):
    (code,) = documents.blocks(README, "python")
    exec(code, scope)
    features, p = scope["features"], scope["p"]
    assert features.shape == (3, p.dim)
    assert not clipproj.verify(scope["model"], scope["edit"].receipt)
    assert clipproj.verify(scope["model"], scope["edit"].receipt).exact


def test_python_of_the_docs_runs(scope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    erase, halves, serve = documents.blocks(PYTHON, "python")
    exec(erase, scope)
    features, p = scope["features"], scope["p"]
    assert features.shape == (3, p.dim)
    exec(halves, scope)
    scope |= {"features": features, "p": p}
    scope["q"] = q = clipproj.nullspace(torch.eye(p.dim)[:1], contrast="none")
    exec(serve, scope)
    both = clipproj.compose(p, q)(features[2], normalize=True)
    want = torch.stack([p(features[0], normalize=True), features[1], both])
    torch.testing.assert_close(scope["rows"], want)
    assert scope["logits"].shape == (3, 2)


def test_ci_runs_its_commands():
    lines = [line for block in documents.blocks(README, "sh") for line in block.splitlines()]
    made = [words[1] for words in (shlex.split(x, comments=True) for x in lines)
            if words and words[0] == "make"]  # fmt: skip
    assert "test" in made
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    ci = re.search(r"^for step in (.+); do$", (ROOT / ".ci/run").read_text(), re.MULTILINE)[1]
    for target in made:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
        assert target in ci.split()


def test_shows_what_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = next(text for text in documents.blocks(README, "") if text.startswith("Forgetting"))
    printed = CliRunner().invoke(app, ["erase", "cat"], catch_exceptions=False).stdout

    def words(text):
        """Wherever lines are broken, and however long the edit took."""
        return re.sub(r"[\d.]+\s\ws$", "TIME", text, flags=re.MULTILINE).split()

    assert words(shown) == words(printed)[: len(words(shown))]
