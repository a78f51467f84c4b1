"""What the service can be told, and its admin token; without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic")

from clipproj import demo
from clipproj.serve.settings import TOKEN, Settings, digest

LONG = "0123456789abcdef"


def test_strings_are_taken_as_serve_run_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.chdir(tmp_path)
    made = Settings.of({"replicas": "2", "timeout": "1.5", "access_log": "true", "data": "kept"})
    assert (made.replicas, made.timeout, made.access_log) == (2, 1.5, True)
    assert made.data == str(tmp_path / "kept")  # whatever folder a replica runs in
    assert (made.served, made.token_digest) == (demo.NAME, None)
    assert Settings.of({"model": "ViT-B-32", "name": "clip"}).served == "clip"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replica": 1}, "replica: .*not permitted"),
        ({"replicas": 0}, "replicas: .* got 0"),
        ({"timeout": "soon"}, "timeout: .* got 'soon'"),
        ({"token_digest": "secret"}, "token_digest"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"serve: {words}"):
        Settings.of(given)


def test_the_token_is_known_by_its_digest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, LONG)
    assert Settings.of({}).token_digest == digest(LONG)
    assert LONG not in repr(Settings.of({}))
    file = tmp_path / "token"
    file.write_text(f" {LONG}file\n")
    assert Settings.of({"token_file": str(file)}).token_digest == digest(f"{LONG}file")
    file.write_text("\n")
    with pytest.raises(ValueError, match="must hold a token"):
        Settings.of({"token_file": str(file)})
    monkeypatch.setenv(TOKEN, LONG[1:])
    with pytest.raises(ValueError, match="at least 16 characters, got 15"):
        Settings.of({})
