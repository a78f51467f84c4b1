"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from campaigns import mark_campaigns
from cases import DTYPES
from projectors import MAKES, D, symmetric

from clipproj import _C, Projector, ProjectorBank

torch.set_num_threads(1)  # matrices here are small: a busy pool costs more than it gives


@pytest.hookimpl(tryfirst=True)  # before `-m` is asked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_campaigns(items)


@pytest.fixture(autouse=True, scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept on the disk of a model's texts is kept from the user's own."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers whichever tests run, in whichever order."""
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test set torch's thread count."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@contextmanager
def _isa(name: str) -> Iterator[None]:
    before = _C.cpu_isa()
    _C.set_cpu_isa(name)
    yield
    _C.set_cpu_isa(before)


@pytest.fixture(params=_C.build_info()["cpu_isas"])
def cpu_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine, in force while the test runs."""
    with _isa(request.param):
        yield request.param


def devices() -> list[Any]:
    """The instruction sets of this machine and, where there is one, its GPU."""
    gpu = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []
    return [*_C.build_info()["cpu_isas"], *gpu]


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each set of kernels: the device to put tensors on, "cpu" once for each instruction set."""
    if request.param == "cuda":
        yield "cuda"
        return
    with _isa(request.param):
        yield "cpu"


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest, device: str) -> torch.dtype:
    """Each type of features that the device takes."""
    if request.param == torch.float64 and device == "cuda":
        pytest.skip("float64 is for the CPU")
    return request.param


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all its workers see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def library(shared: Path) -> Any:
    """The CUDA kernels, run on the CPU by cuda_on_cpu/."""
    from cuda_on_cpu import build

    return build.build_library(shared / "cuda-on-cpu")


# The tiny CLIP of tiny.py, which knows its images, and what is asked of it. Read only.


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.images(tmp_path_factory.mktemp("tiny") / "images")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    import tiny

    return tiny.model(tmp_path_factory.mktemp("tiny") / "model", images)


@pytest.fixture
def ask(model: Path, images: Path, tmp_path: Path) -> Callable[..., Any]:
    """A recipe for the tiny model, its images and a new output folder, with changes."""
    import tiny

    from clipproj.recipe import Recipe

    def make(*names: str, **changes: Any) -> Recipe:
        usual = {"model": str(model), "images": images, "out": tmp_path / "out"}
        return Recipe(names, **usual | {"templates": [tiny.TEMPLATE]} | changes)

    return make


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command in an empty folder: a result with exit_code, stdout, stderr, exception."""
    from typer.testing import CliRunner

    from clipproj.cli import terminal
    from clipproj.cli.app import app

    monkeypatch.setattr(terminal, "_pause", lambda _: 3600.0)  # no lines on a slow machine
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("CLIPPROJ_TRACEBACK", raising=False)
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def usual(model: Path, images: Path) -> list[str]:
    """The options that name the tiny model, its images and its one prompt."""
    import tiny

    return ["--model", str(model), "--images", str(images), "--template", tiny.TEMPLATE]


@pytest.fixture
def edited(run: Callable[..., Any], usual: list[str]) -> Path:
    """The output folder of an erased cat."""
    assert run("erase", "cat", *usual).exit_code == 0
    return Path("clipproj-out")


# Projectors and a bank of them (projectors.py).


@pytest.fixture
def bank() -> ProjectorBank:
    """One projector of each kind, and one of no direction."""
    bank = ProjectorBank(D, capacity=32)
    for name, make in MAKES.items():
        bank.add(name, make())
    bank.add("empty", symmetric(0))
    return bank


@pytest.fixture
def projectors() -> dict[str, Projector]:
    """What `bank` holds, by name."""
    return {name: make() for name, make in MAKES.items()} | {"empty": symmetric(0)}
