"""An output folder that is written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from clipproj import files
from clipproj.state import WEIGHTS, locate, read_edits

_REPLACED = ".clipproj-replaced."  # how the names of folders begin that keep an earlier output
_SPARE = 64 << 20  # bytes beyond the weights: report with pictures, projector, undo


class Output:
    """The folder that `erase` writes into: staged beside it first, moved when all is there.

    Args:
        folder: made when missing, with its parents. Files of an earlier run are replaced, those of
            others are left alone.
        names: what will be written.
        source: the checkpoint that is read, which must not be overwritten by its own edit.
        weights: the one of the names that is the checkpoint.

    Raises:
        ValueError: for what is no folder nor can become one, the folder of `source`, or one where
            a name is taken by a folder, or by a file that clipproj did not write; for a checkpoint
            of another name, which would be taken for the one written; for one where a run was
            killed while it published.
    """

    def __init__(
        self, folder: Path, names: Iterable[str], source: Path | None, weights: str = WEIGHTS
    ) -> None:
        self.folder, self.weights = folder, weights
        absolute = folder.absolute()
        there = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
        if not there.is_dir():
            what = "file" if there.exists() else "dangling link"
            below = f"{folder}, below " if there != absolute else ""
            shown = there if below else folder
            raise ValueError(f"erase: out must be a folder, got {below}the {what} {shown}")
        self._refuse_replaced()
        home = None if source is None else source if source.is_dir() else source.parent
        if home is not None and folder.exists() and folder.samefile(home):
            raise ValueError(
                f"erase: out must be another folder than the model's own, got {folder}; its undo "
                "and its original weights would be lost"
            )
        taken = [name for name in names if os.path.lexists(folder / name)]
        self._refuse_folders(taken)
        other = self._checkpoint()
        if other not in (None, folder / weights):
            raise ValueError(f"erase: out must hold no other checkpoint, got {other}")
        if taken and not (other is not None and read_edits(other)):
            raise ValueError(
                f"erase: out must be empty or an earlier output of clipproj, got {folder} with "
                f"{taken[0]}"
            )

    def need(self, size: int) -> None:
        """Raises OSError when the disk has no room for weights of `size` bytes and the rest."""
        files.sweep(self._existing())
        free = shutil.disk_usage(self._existing()).free
        if free < size + _SPARE:
            raise OSError(
                errno.ENOSPC,
                f"erase: out needs {(size + _SPARE) >> 20} MiB on the disk of {self.folder}, "
                f"which has {free >> 20}",
            )

    def staged(self) -> AbstractContextManager[Path]:
        """A hidden folder on the same disk to write to; gone afterwards, published or not."""
        # inside an existing folder, which may be a mount point; else under its first real parent
        return files.staging(self._existing())

    def publish(self, stage: Path) -> None:
        """Move everything from the staging folder into place, or nothing where that fails.

        Only renames, which need no room. The weights come last: whoever finds new ones finds the
        undo file that belongs to them.
        """
        paths = sorted(stage.iterdir(), key=lambda path: (path.name == self.weights, path.name))
        self._refuse_folders(path.name for path in paths)
        # not in the staging folder, of which nothing is kept should this process be killed now
        old = stage.with_name(f"{_REPLACED}{uuid.uuid4().hex[:8]}")
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        tried: list[Path] = []
        try:
            old.mkdir()
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in paths:
                tried.append(path)
                target = self.folder / path.name
                if os.path.lexists(target):
                    os.replace(target, old / path.name)
                os.replace(path, target)
            old.rename(stage / old.name)  # now it goes with the rest
        except BaseException:  # also Ctrl-C between two renames
            for path in reversed(tried) if old.exists() else ():
                target = self.folder / path.name
                if os.path.lexists(old / path.name):
                    os.replace(old / path.name, target)
                elif not path.exists():
                    os.replace(target, path)
            for folder in filter(Path.exists, [*made, old]):
                folder.rmdir()
            raise

    def _refuse_replaced(self) -> None:
        for old in self.folder.glob(f"{_REPLACED}*"):
            try:
                old.rmdir()
            except OSError:  # it is not empty
                raise ValueError(
                    f"erase: out must hold one output, got {self.folder} where a run was killed "
                    f"before it was done: {old} keeps what it had replaced; move that back, or "
                    "remove it"
                ) from None

    def _checkpoint(self) -> Path | None:
        try:
            return locate(self.folder)
        except FileNotFoundError:
            return None

    def _refuse_folders(self, names: Iterable[str]) -> None:
        for name in names:
            if (self.folder / name).is_dir():
                raise ValueError(
                    "erase: out must have no folder of the name of a file to write, got "
                    f"{self.folder / name}"
                )

    def _existing(self) -> Path:
        folder = self.folder.absolute()
        return next(path for path in (folder, *folder.parents) if path.is_dir())
