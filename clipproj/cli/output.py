"""An output folder that is written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clipproj.checkpoint import WEIGHTS, read_edits

_SPARE = 64 << 20  # bytes beyond the weights: report with pictures, projector, undo


class Output:
    """The folder that `erase` writes into: staged beside it first, moved when all is there.

    Args:
        folder: made when missing, with its parents. Files of an earlier run are replaced, those of
            others are left alone.
        names: what will be written.
        source: the checkpoint that is read, which must not be overwritten by its own edit.

    Raises:
        ValueError: for a file, the folder of `source`, or one where a name is taken by a file that
            clipproj did not write.
    """

    def __init__(self, folder: Path, names: Iterable[str], source: Path | None) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"erase: out must be a folder, got the file {folder}")
        home = None if source is None else source if source.is_dir() else source.parent
        if home is not None and folder.exists() and folder.samefile(home):
            raise ValueError(
                f"erase: out must be another folder than the model's own, got {folder}; its undo "
                "and its original weights would be lost"
            )
        taken = [name for name in names if (folder / name).exists()]
        if taken and not ((folder / WEIGHTS).is_file() and read_edits(folder / WEIGHTS)):
            raise ValueError(
                f"erase: out must be empty or an earlier output of clipproj, got {folder} with "
                f"{taken[0]}"
            )

    def need(self, size: int) -> None:
        """Raises OSError when the disk has no room for weights of `size` bytes and the rest."""
        free = shutil.disk_usage(self._existing()).free
        if free < size + _SPARE:
            raise OSError(
                errno.ENOSPC,
                f"erase: out needs {(size + _SPARE) >> 20} MiB on the disk of {self.folder}, "
                f"which has {free >> 20}",
            )

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A hidden folder on the same disk to write to; gone afterwards, published or not."""
        # inside an existing folder, which may be a mount point; else under its first real parent
        stage = self._existing() / f".clipproj.{uuid.uuid4().hex[:8]}"
        try:
            stage.mkdir()
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                error.errno, f"erase: cannot write into {stage.parent}: {reason}"
            ) from error
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def publish(self, stage: Path) -> None:
        """Move everything from the staging folder into place; only renames, which need no room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(stage.iterdir()):
            os.replace(path, self.folder / path.name)

    def _existing(self) -> Path:
        folder = self.folder.absolute()
        return next(path for path in (folder, *folder.parents) if path.is_dir())
