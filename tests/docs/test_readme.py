"""The README's Python runs as printed, on the embedded model; its commands and files exist."""

import re
import shlex
from pathlib import Path

import open_clip
import torch
import typer

import clipproj
from clipproj import demo
from clipproj.cli.app import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_python_runs(monkeypatch):
    made = open_clip.create_model_and_transforms(f"local-dir:{demo.model_dir()}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{demo.model_dir()}")
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *_, **__: made)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_: tokenizer)
    scope = {"images": torch.randn(3, 3, 64, 64)}
    erase, serve = blocks("python")
    exec(erase, scope)
    features, p = scope["features"], scope["p"]
    assert features.shape == (3, p.dim)
    scope["q"] = q = clipproj.nullspace(torch.eye(p.dim)[:1], contrast="none")
    exec(serve, scope)
    both = clipproj.union(p, q)(features[2], normalize=True)
    want = torch.stack([p(features[0], normalize=True), features[1], both])
    torch.testing.assert_close(scope["rows"], want)
    assert scope["logits"].shape == (3, 2)


def test_commands_and_their_options_exist():
    commands = {c.name: c for c in typer.main.get_command(app).commands.values()}
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    used = [shlex.split(line, comments=True) for line in lines]
    asked = [words for words in used if words and words[0] == "clipproj"]
    assert {words[1] for words in asked} >= {"erase", "verify", "undo"}
    for words in asked:
        known = {name for p in commands[words[1]].params for name in p.opts}
        assert {word for word in words if word.startswith("--")} <= known
    makefile = (ROOT / "Makefile").read_text()
    for words in used:
        if words and words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE)


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
