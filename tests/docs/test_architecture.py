"""ARCHITECTURE.md: its map is the tree, and rooms import only rooms above them in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import documents
import pytest
from documents import ROOT

PAGE = ROOT / "ARCHITECTURE.md"
ROOMS = [row[0].strip("`") for row in documents.table(PAGE, "room |")]


def room(module: str) -> str:
    """The row of the map that a module belongs to: a folder's name with a slash, or a file's."""
    name = module.split(".")[1]
    return f"{name}/" if (ROOT / "clipproj" / name).is_dir() else f"{name}.py"


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules of ours that a file imports, inside functions too; not those for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            yield from (f"{base}.{one.name}" for one in node.names)
        else:
            yield from imports(node, package)


def wrong_ways(file: Path, source: str) -> list[str]:
    """The rooms that a file of the package imports and must not, each as "room -> room"."""
    package = ".".join(file.relative_to(ROOT).parts[:-1])
    here = room(".".join(file.relative_to(ROOT).with_suffix("").parts))
    there = {room(name) for name in imports(ast.parse(source), package)
             if name.startswith("clipproj.")}  # fmt: skip
    return sorted(f"{here} -> {name}" for name in there & {*ROOMS[ROOMS.index(here) + 1 :]})


def test_every_room_is_there_and_every_file_has_one() -> None:
    package = ROOT / "clipproj"
    assert [name for name in ROOMS if not (package / name).exists()] == []
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert sorted(ROOMS) == sorted(folders | files)


def test_every_folder_is_named() -> None:
    named = " ".join(row[0] for row in documents.table(PAGE, "folder |"))
    named = {*re.findall(r"`([\w./]+)/`", named)}
    hidden = re.compile(r"[._](?!ci)|build|dist|.*\.egg-info|clipproj-")
    there = {path.name for path in ROOT.iterdir() if path.is_dir() and not hidden.match(path.name)}
    assert there - named == {"clipproj"}
    assert named - there == {"csrc/cpu", "csrc/cuda"}


def test_every_room_has_its_tests() -> None:
    tests = {path.name for path in (ROOT / "tests").iterdir() if list(path.glob("test_*.py"))}
    rooms = {name.strip("/") for name in ROOMS if name.endswith("/")} - {"demo"}
    assert rooms - tests == set()
    (row,) = (row for row in documents.table(PAGE, "folder |") if row[0] == "`tests/`")
    others = {*re.findall(r"`tests/(\w+)`", row[1])}
    assert tests | {"helpers"} == rooms | others


@pytest.mark.parametrize("name", [name for name in ROOMS if name != "__main__.py"])
def test_imports_go_up_the_map_alone(name: str) -> None:
    place = ROOT / "clipproj" / name
    files = sorted(place.glob("**/*.py")) if place.is_dir() else [place]
    found = {str(file.relative_to(ROOT)): wrong_ways(file, file.read_text("utf-8"))
             for file in files}  # fmt: skip
    assert {file: ways for file, ways in found.items() if ways} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import clipproj.cli.app",
        "from clipproj import cli",
        "from clipproj.cli.app import app",
        "from ..cli import app",
        "def late():\n    from clipproj.cli import app",
    ],
)
def test_an_import_the_wrong_way_is_found(source: str) -> None:
    assert wrong_ways(ROOT / "clipproj/models/heads.py", source) == ["models/ -> cli/"]


def test_imports_the_right_way_are_not_found() -> None:
    source = "if TYPE_CHECKING:\n    from clipproj.cli import app\nfrom clipproj import files"
    assert wrong_ways(ROOT / "clipproj/models/heads.py", source) == []


INCLUDE = re.compile(r'^#include [<"](.+?)[>"]', flags=re.MULTILINE)
KERNELS = ["csrc/params.h", "csrc/cuda/project_plan.h", *(
    str(file.relative_to(ROOT))
    for pattern in ("cpu/*.inl", "cpu/kernel.h", "cpu/isa.h", "cuda/*.cuh")
    for file in sorted((ROOT / "csrc").glob(pattern))
    if file.name != "backend.cuh"
)]  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_no_torch_header_below_the_parameters(name: str) -> None:
    file = ROOT / name
    seen, open_ = set(), [file]
    while open_:
        here = open_.pop()
        for include in INCLUDE.findall(here.read_text("utf-8")):
            assert not include.startswith(("torch/", "c10/", "ATen/")), f"{here.name}: {include}"
            if (there := (here.parent / include).resolve()).exists() and there not in seen:
                seen.add(there)
                open_.append(there)


@pytest.mark.parametrize(("device", "other"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_devices_know_nothing_of_each_other(device: str, other: str) -> None:
    for file in (ROOT / "csrc" / device).iterdir():
        for include in INCLUDE.findall(file.read_text("utf-8")):
            there = (file.parent / include).resolve().parent
            assert there != ROOT / "csrc" / other, f"{file.name}: {include}"
