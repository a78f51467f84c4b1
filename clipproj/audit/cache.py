"""Results kept one by one, so that what takes an hour and was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from clipproj.refusal import Refusal


@cache
def code_digest(folder: Path = Path(__file__).parents[1]) -> str:
    """Hex digest of the Python in a folder, clipproj's own: results of other code are others."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


class Cache:
    """An append-only file of JSON lines, each a result under a key.

    A key says all that a result depends on; a result under a key is never computed again. The last
    line may be cut short, as by a kill or a full disk: it is dropped with a warning. Anything else
    that is no such line is refused, for the file may be something else.

    Args:
        path: the file, made on the first `put`; None keeps results in memory alone.

    Raises ValueError for a file that is no such file, OSError when it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._found: dict[str, Any] = {}
        if self.path is None or not self.path.exists():
            return
        data = self.path.read_bytes()
        whole, _, cut = data.rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                self._found[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                raise Refusal(
                    "Cache",
                    "path",
                    f"must hold results of an earlier run, got {self.path} whose "
                    f"line {number} is none; remove it or choose another folder",
                ) from None
        if cut:
            warnings.warn(
                f"Cache: the last line of {self.path} was cut short and is computed again",
                stacklevel=2,
            )
            with open(self.path, "rb+") as file:
                file.truncate(len(data) - len(cut))

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def put(self, key: str, value: Any) -> None:
        """Keep a result: on the disk when this returns. OSError when it cannot be written."""
        line = json.dumps({"key": key, "value": value}, allow_nan=False)
        self._found[key] = json.loads(line)["value"]  # as the next run will read it
        if self.path is None:
            return
        with open(self.path, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
