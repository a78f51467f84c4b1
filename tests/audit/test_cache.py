"""A cache of results: what is in it is not computed again, what is not is never made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipproj.audit.cache import Cache


def test_results_are_there_in_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    first = Cache(path)
    assert "a" not in first
    assert not path.exists()
    first.put("a", {"x": (1, 2)})
    first.put("b", None)
    again = Cache(path)
    assert again["a"] == first["a"] == {"x": [1, 2]}  # as JSON has it, in this run already
    assert "b" in again
    assert again["b"] is None


def test_a_line_cut_short_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    cache = Cache(path)
    cache.put("a", 1)
    cache.put("b", 2)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.warns(UserWarning, match="cut short"):
        again = Cache(path)
    assert "a" in again
    assert "b" not in again
    again.put("c", 3)
    assert Cache(path)["c"] == 3  # the stump is gone, the file is whole


@pytest.mark.parametrize("content", [b"hello\n", b'{"key": 1}\n', b"[1, 2]\n{}\n", b"\xff\xfe\n"])
def test_what_is_no_cache_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="line 1 is none"):
        Cache(path)
    assert path.read_bytes() == content


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "j.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        cache.put("a", float("nan"))
    assert "a" not in cache
    assert not (tmp_path / "j.jsonl").exists()


def test_memory_alone() -> None:
    cache = Cache(None)
    cache.put("a", 1)
    assert cache["a"] == 1
