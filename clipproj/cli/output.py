"""An output folder that is written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from clipproj import files
from clipproj.checkpoints.state import WEIGHTS, locate, read_edits
from clipproj.refusal import Refusal

PROJECTOR = "projector.safetensors"
_SPARE = 64 << 20  # bytes beyond the weights: report with images, projector, undo


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
        self.folder, self.weights, self.names = folder, weights, set(names)
        absolute = folder.absolute()
        there = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
        if not there.is_dir():
            what = "file" if there.exists() else "dangling link"
            below = f"{folder}, below " if there != absolute else ""
            shown = there if below else folder
            raise Refusal("erase", "out", f"must be a folder, got {below}the {what} {shown}")
        self._refuse_replaced()
        home = None if source is None else source if source.is_dir() else source.parent
        if home is not None and folder.exists() and folder.samefile(home):
            raise Refusal(
                "erase",
                "out",
                f"must be another folder than the model's own, got {folder}; its undo "
                "and its original weights would be lost",
            )
        self._refuse_taken(sorted(self.names))

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

        The weights come last: whoever finds new ones finds the undo file that belongs to them.
        Raises ValueError for a file of another name than was said before that would be replaced.
        """
        staged = {path.name for path in stage.iterdir()}
        self._refuse_folders(staged)
        if self.weights not in staged and (old := self._checkpoint()) is not None:
            why = "must hold no checkpoint where the edit is not folded into one"
            raise Refusal("erase", "out", f"{why}, got {old}, which an earlier edit left")
        if unforeseen := staged - self.names:  # what a tokenizer saves is up to its library
            self._refuse_taken(sorted(unforeseen))
        files.publish(stage, self.folder, self.weights)

    def _refuse_replaced(self) -> None:
        for old in self.folder.glob(f"{files.REPLACED}*"):
            try:
                old.rmdir()
            except OSError:  # it is not empty
                raise Refusal(
                    "erase",
                    "out",
                    f"must hold one output, got {self.folder} where a run was killed "
                    f"before it was done: {old} keeps what it had replaced; move that back, or "
                    "remove it",
                ) from None

    def _checkpoint(self) -> Path | None:
        try:
            return locate(self.folder)
        except FileNotFoundError:
            return None

    def _refuse_folders(self, names: Iterable[str]) -> None:
        for name in names:
            if (self.folder / name).is_dir():
                raise Refusal(
                    "erase",
                    "out",
                    f"must have no folder of the name of a file to write, got {self.folder / name}",
                )

    def _refuse_taken(self, names: Iterable[str]) -> None:
        taken = [name for name in names if os.path.lexists(self.folder / name)]
        self._refuse_folders(taken)
        other = self._checkpoint()
        if other not in (None, self.folder / self.weights):
            raise Refusal("erase", "out", f"must hold no other checkpoint, got {other}")
        if taken and not (self._unfolded() if other is None else read_edits(other)):
            raise Refusal(
                "erase",
                "out",
                f"must be empty or an earlier output of clipproj, got {self.folder} "
                f"with {taken[0]}",
            )

    def _unfolded(self) -> bool:
        """Whether an earlier edit left its projector here, and no checkpoint."""
        try:
            files.read(self.folder / PROJECTOR, "projector")
        except (ValueError, OSError):
            return False
        return True

    def _existing(self) -> Path:
        folder = self.folder.absolute()
        return next(path for path in (folder, *folder.parents) if path.is_dir())
