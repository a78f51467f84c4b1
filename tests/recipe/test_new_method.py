"""A method in a file of its own is in every command, in the service and in the help at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

TOY = '''
"""A method that takes out a first part of what the names have in common."""

from clipproj import nullspace
from clipproj.methods.method import Method, Option, Task


def make(task: Task, bend: float = 0.5):
    made = nullspace(task.forget, task.keep, "hull", side=task.side)
    made.provenance |= {"method": "toy", "parameters": {"bend": bend}}
    return made


METHOD = Method(
    "toy", "bends what the names have in common", make,
    options=(Option("bend", float, "how far to bend", "0.5", low=0, high=1),),
    symmetric=True,
)
'''

EVERYWHERE = """
import json, sys
from clipproj import methods

methods.__path__.append(sys.argv[1])  # the file's place is beside the others
from typer.testing import CliRunner
from clipproj.cli.app import app
from clipproj.checkpoints.checkpoint import load_model
from clipproj.serve import make, parse, schema
from clipproj.serve.settings import Settings

def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    return result.stdout if arguments[-1] == "--help" else json.loads(result.stdout)

usual = ["--model", sys.argv[2], "--images", sys.argv[3], "--template", sys.argv[4], "--json"]
toy = ["--method", "toy", "--option", "bend=0.25"]
found = {"help": [run(command, "--help") for command in ("erase", "audit", "compare")]}
found["erase"] = run("erase", "cat", *toy, "--dry-run", *usual)
found["audit"] = run("audit", "cat", *toy, "--only", "accuracy", *usual)
asked = ["--method", "toy", "--method", "toy, bend=0.25, strength=0.5"]
found["compare"] = run("compare", "cat", *asked, *usual)
found["refused"] = run("erase", "cat", "--method", "toy", "--option", "bend=2", *usual)
found["foreign"] = run("erase", "cat", "--method", "toy", "--option", "rank=2", *usual)
body = {"forget": ["cat"], "keep": ["dog", "owl"], "templates": [sys.argv[4]], "method": "toy"}
recipe = parse.spec(json.dumps(body | {"bend": 0.25}).encode(), Settings())
found["serve"] = make.from_names(load_model(sys.argv[2]), recipe, 1000).provenance
found["openapi"] = schema.SPECS["toy"].model_json_schema()["properties"]["bend"]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def everywhere(
    tmp_path_factory: pytest.TempPathFactory, model: Path, images: Path
) -> dict[str, object]:
    pytest.importorskip("pydantic")
    folder = tmp_path_factory.mktemp("new")
    (folder / "file").mkdir()
    (folder / "file" / "toy.py").write_text(TOY, encoding="utf-8")
    arguments = [folder / "file", model, images, tiny.TEMPLATE]
    command = [sys.executable, "-c", EVERYWHERE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_names_it_with_its_options(everywhere: dict) -> None:
    for text in everywhere["help"]:
        assert "toy" in text
        assert "bend: how far to bend. Default: 0.5." in " ".join(text.split())


def test_erase_and_audit_make_it(everywhere: dict) -> None:
    for command in ("erase", "audit"):
        told = everywhere[command]
        assert (told["method"], told["parameters"]) == ("toy", {"bend": 0.25})
    assert everywhere["erase"]["scores"]["after"]["forget"] == 0
    assert not everywhere["erase"]["refused"]


def test_compare_makes_it_at_its_defaults_and_at_options(everywhere: dict) -> None:
    told = next(iter(everywhere["compare"].values()))
    assert list(told["methods"]) == ["no edit", "toy", "toy, bend=0.25, strength=0.5"]
    plain, half = (told["trials"][name]["cat"] for name in list(told["methods"])[1:])
    assert plain["distance"] == pytest.approx(2 * half["distance"])


def test_the_service_makes_it(everywhere: dict) -> None:
    assert everywhere["serve"]["method"] == "toy"
    assert everywhere["serve"]["parameters"] == {"bend": 0.25}
    assert everywhere["openapi"]["description"] == "How far to bend. Default: 0.5."


def test_what_it_does_not_take_is_refused(everywhere: dict) -> None:
    text = "erase: bend must be a finite number at least 0 and at most 1, got 2.0"
    assert everywhere["refused"] == {"error": text}
    assert everywhere["foreign"]["error"] == "erase: rank must be left out with method toy, got '2'"
