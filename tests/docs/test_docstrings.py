"""The examples in docstrings that stand alone give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("ops.project", "project"),
        ("ops.project_rows", "project_rows"),
        ("ops.fold", "fold_"),
        ("ops.projected_norm", "projected_norm"),
        ("methods.nullspace", "nullspace"),
    ],
)
def test_example(module: str, function: str) -> None:
    home = import_module(f"clipproj.{module}")
    known = vars(home) | {"torch": import_module("torch")}
    (example,) = doctest.DocTestFinder(recurse=False).find(
        getattr(home, function), function, globs=known
    )
    done = doctest.DocTestRunner().run(example)
    assert (done.failed, done.attempted > 0) == (0, True)
