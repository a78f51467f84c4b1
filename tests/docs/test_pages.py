"""All pages: what they name exists, be it a file, a link, a Python name or a command's option."""

import pkgutil
import re
import shlex
from pathlib import Path

import documents
import pytest
import torch
import typer
from documents import ROOT

from clipproj.cli.app import app

FOLDERS = ("clipproj", "csrc", "tests", "docs", "benchmarks", "tools", "examples", r"\.ci")
SOURCES = ("py", "pyi", "h", "cpp", "inl", "cu", "cuh", "j2", "css", "toml", "cff")
every_page = pytest.mark.parametrize("page", documents.PAGES, ids=documents.NAMES)


def exists(name: str) -> bool:
    """Whether a dotted name is a module of ours, or what a module or a class has."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_a_name_that_does_not_exist_is_found():
    assert exists("clipproj.ops.project")
    assert exists("clipproj.projector.Projector.residual")
    assert not exists("clipproj.ops.projekt")
    assert not exists("clipproj.no_such_module.project")


@every_page
def test_python_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w.\-/])clipproj(?:\.[A-Za-z_]\w*)+", text))
    assert [name for name in sorted(names) if not exists(name)] == []
    operators = set(re.findall(r"torch\.ops\.clipproj\.(\w+)", text))
    assert [name for name in operators if not hasattr(torch.ops.clipproj, name)] == []


@every_page
def test_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w", text)
    assert [path for path in paths if not list(ROOT.glob(path))] == []
    files = set(re.findall(rf"`([\w-]+\.(?:{'|'.join(SOURCES)}))`", text))
    known = {file.name for top in (*FOLDERS[:-1], ".") for file in (ROOT / top).rglob("*.*")
             if ".venv" not in file.parts}  # fmt: skip
    assert sorted(files - known) == []


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert ROOT in place.parents
        assert not anchor or anchor in documents.anchors(place), target


@every_page
def test_commands_and_their_options_exist(page: Path) -> None:
    commands = {c.name: c for c in typer.main.get_command(app).commands.values()}
    for line in "\n".join(documents.blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if line.startswith("clipproj ") else []
        if words and not words[1].startswith("-"):
            known = {name for p in commands[words[1]].params for name in p.opts} | {"--help"}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@every_page
def test_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, flags=re.MULTILINE))
    assert [one for one in made if not re.search(rf"^{one}:", makefile, re.MULTILINE)] == []


def test_the_index_lists_every_page_and_every_example() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", index)}
    wanted = {*documents.PAGES, *(ROOT / "examples").glob("*.py")}
    assert wanted - linked == {ROOT / "docs/README.md", ROOT / "README.md"}


@every_page
def test_one_word_for_one_thing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    old = r"\b(?:pictures?|retain\w*|contenders?|standings?|journals?|cells\.jsonl)\b"
    assert re.findall(old, text, flags=re.IGNORECASE) == []
