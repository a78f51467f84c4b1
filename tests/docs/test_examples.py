"""The scripts in examples/ run as a stranger runs them, offline, and say what they should."""

import ast
import contextlib
import functools
import io
import re
import runpy
import socket
from pathlib import Path
from unittest import mock

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
SHARES = re.compile(r"^(\w+) +([\d.]+)% -> +([\d.]+)%$", flags=re.MULTILINE)


@functools.cache
def printed(name: str) -> str:
    """What a script of examples/ prints; it is run once."""

    def refuse(*_: object) -> None:
        raise AssertionError("an example must not need a network")

    torch._dynamo.reset()
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return out.getvalue()


@pytest.mark.parametrize("name", ["compiled", "erase_a_class", "mixed_batch", "stored_features"])
def test_forgets_and_tells_the_price(name):
    shares = {of: (float(was), float(now)) for of, was, now in SHARES.findall(printed(name))}
    assert list(shares) == ["forget", "keep", "nearest", "probe"]
    was, now = zip(*shares.values(), strict=True)
    assert was == pytest.approx((77.8, 78.8, 85.9, 55.6), abs=1)
    assert now[0] < 1  # forgotten;
    assert was[1] - now[1] < 2  # the others are kept, within what the command line allows,
    assert was[2] - now[2] < 5  # the nearest of them too;
    assert now[3] > 25  # and the information is still there, which the script must not hide
    agreement = float(re.search(r"same answer as before, .*: ([\d.]+)%", printed(name))[1])
    assert 90 < agreement < 100


@pytest.mark.parametrize("name", ["compiled", "erase_a_class", "mixed_batch"])
def test_bits_are_as_claimed(name):
    assert re.findall(r"(?:bit for bit|same bits): (\w+)", printed(name)) == ["True"]


def test_erase_a_class_checks_its_edit():
    assert printed("erase_a_class").startswith("image head edited, bit for bit (cat, strength 1)\n")


def test_stored_features_are_not_found_by_a_search():
    before, after = re.findall(r"first 9 hits, \w+: (\d+)", printed("stored_features"))
    assert int(before) > 4
    assert int(after) == 0


def test_audit_an_edit_says_what_is_left():
    text = printed("audit_an_edit")
    assert text.startswith("refused: False")
    assert re.search(r"“cat” went from 77\.8\s% to 0\.0\s%", text)
    assert "The information is not" in text
    assert len(text.strip().split("\n\n")) == 5  # the verdict, and a page for each audit


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_is_short_and_uses_what_is_public(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.module.startswith("clipproj.")
        elif isinstance(node, ast.Import):
            assert not any(name.name.startswith("clipproj.") for name in node.names)
        elif isinstance(node, ast.Attribute) and node.attr != "_dynamo":
            assert not node.attr.startswith("_")
