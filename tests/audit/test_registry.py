"""The audits are found where they stand, each with what it says, and numbers know no words."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
import torch

import clipproj
from clipproj import audit
from clipproj.audit import AuditInput, Samples, audits
from clipproj.audit.registry import Audit
from clipproj.refusal import Refusal

FOLDER = Path(audit.__file__).parent


def imports(file: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_numbers_know_no_words(file: Path) -> None:
    rooms = ("clipproj.report", "clipproj.compare", "clipproj.cli", "clipproj.serve")
    assert not {name for name in imports(file) if name.startswith(rooms)}


def test_every_audit_has_a_section_and_a_place_of_its_own() -> None:
    assert len({one.place for one in audits().values()}) == len(audits()) > 10
    for key, one in audits().items():
        assert one.key == key
        assert callable(import_module(f"clipproj.report.sections.{key}").page)


def test_an_audit_refuses_an_input_without_what_it_needs() -> None:
    classes = clipproj.Embeddings(torch.eye(2), ("a", "b"), ("{}",), "m")
    samples = Samples(torch.eye(2), torch.arange(2), classes)
    p = clipproj.nullspace(classes.select(["a"]))
    one = Audit("toy", "Toy", 0, lambda given: given.samples.domains, {"domains": "needs domains"})
    with pytest.raises(Refusal, match=r"^toy: needs domains$"):
        one(AuditInput(samples, p, ("a",)))
    told = Samples(samples.features, samples.labels, classes, domains=("x", "y"))
    assert one(AuditInput(told, p, ("a",))) == ("x", "y")
