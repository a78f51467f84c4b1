"""The one way clipproj writes an artefact: safetensors, written atomically, checked when read.

Projectors, undo files and receipts differ in what they hold, not in how they are kept. A file's
metadata carry what it is (`kind`), the format version, JSON of the rest, and a SHA-256 over all of
it, so a flipped bit, a foreign file and a file of a newer clipproj are told apart before use.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipproj.refusal import Refusal

FORMAT = 2  # raised when a reader of today could misread what is written: 2 has one-sided edits
KINDS = ("projector", "bank", "undo", "receipt", "attachment", "samples", "texts")


def _machine() -> str:
    """Of this start of the kernel, whose locks its containers share; else of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return f"{uuid.getnode():x}"


REPLACED = ".clipproj-replaced."  # how the names of folders begin that keep what is replaced
_STAGES = f".clipproj.{_machine()}."  # how the names of staging folders made here begin


class _Fields(dict[str, Any]):
    """What a file holds by name; that a name is missing is a fault of the file."""

    def __missing__(self, name: str) -> Any:
        raise Refusal("load", "path", f"must hold all that its kind has, got none of {name!r}")


@dataclass(frozen=True)
class Artefact:
    """What a file holds: its `kind`, its tensors (on the CPU) and its JSON metadata."""

    kind: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def sha256(*tensors: Tensor | None, text: str = "") -> str:
    """Hex digest over dtype, shape and bytes of tensors (any strides, any device), and a text."""
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        if plain.numel():
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder` to write to before a rename; gone afterwards, whatever happens.

    It is locked while this process lives, so that `sweep` tells it from one that was left behind.
    Raises OSError when the folder cannot be written.
    """
    sweep(folder)
    stage, lock = folder / f"{_STAGES}{uuid.uuid4().hex[:8]}", None
    try:
        while lock is None:  # swept by another process before it was locked
            try:
                stage.mkdir()
            except OSError as error:
                what = f"write: cannot write into {folder}: {error.strerror or error}"
                raise OSError(error.errno, what) from error
            lock = _lock(stage)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(stage: Path) -> int | None:
    """The folder, locked until that is closed; None if it is gone."""
    try:
        lock = _open(stage)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a disk without locks, on which nothing is swept either
        fcntl.flock(lock, fcntl.LOCK_EX)
    if stage.exists():
        return lock
    os.close(lock)
    return None


def sweep(folder: Path) -> None:
    """Remove the staging folders that processes left in `folder` when they were killed.

    Only those made since this machine was started, and that nobody has locked: the system takes
    the lock off when a process ends. The locks of another machine that shares the disk are not
    seen on every kind of disk, so what it made is left alone.
    """
    for stage in folder.glob(f"{_STAGES}*"):
        with suppress(OSError):  # in use, or of another user
            lock = _open(stage)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stage)
            finally:
                os.close(lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file beside `path` to write to: renamed to it on success, removed on failure.

    Readers see the old file or the new one, never half of one. Raises OSError when the folder
    cannot be written or the disk is full; `path` is then as it was.
    """
    target = Path(os.path.realpath(path))  # through a link, not over it
    with staging(target.parent) as stage:
        part = stage / target.name
        part.touch()
        mode = part.stat().st_mode
        yield part
        with open(part, "rb+") as written:  # a rename may reach the disk before the data does
            os.fsync(written.fileno())
        part.chmod(mode)  # safetensors writes a file of its own that only its owner can read
        try:
            os.replace(part, target)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(error.errno, f"write: cannot write {target}: {reason}") from error


def publish(stage: Path, folder: Path, last: str) -> None:
    """Move everything from a staging folder into `folder`, or nothing where that fails.

    Only renames, which need no room; what is replaced is kept until all are made. A link is
    replaced, not followed.

    Args:
        folder: on the same disk; made when missing, with its parents.
        last: the name of the file that comes last.
    """
    paths = sorted(stage.iterdir(), key=lambda path: (path.name == last, path.name))
    # not in the staging folder, of which nothing is kept should this process be killed now
    old = stage.with_name(f"{REPLACED}{uuid.uuid4().hex[:8]}")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    tried: list[Path] = []
    try:
        old.mkdir()
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            tried.append(path)
            target = folder / path.name
            if os.path.lexists(target):
                os.replace(target, old / path.name)
            os.replace(path, target)
        old.rename(stage / old.name)  # now it goes with the rest
    except BaseException:  # also Ctrl-C between two renames
        for path in reversed(tried) if old.exists() else ():
            target = folder / path.name
            if os.path.lexists(old / path.name):
                os.replace(old / path.name, target)
            elif not path.exists():
                os.replace(target, path)
        for empty in filter(Path.exists, [*made, old]):
            empty.rmdir()
        raise


def write(
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    version: int = 1,
) -> None:
    """Write an artefact, of the oldest format `version` that has all of it.

    Raises OSError (disk full, no permission) and leaves no partial file.
    """
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in sorted(tensors.items())}
    text = json.dumps(meta, sort_keys=True)
    header = {"format": f"clipproj-{version}", "kind": kind, "meta": text}
    header["digest"] = _digest(header, plain)
    with atomic(path) as part:
        try:
            save_file(plain, part, metadata=header)
        except SafetensorError as error:  # its I/O errors come as this type
            raise OSError(f"write: cannot write {path}: {error}") from error


def read(path: str | os.PathLike[str], kind: str | None = None) -> Artefact:
    """Read an artefact, of the given `kind` if one is named.

    Raises FileNotFoundError, or ValueError when the file is damaged, foreign, of another kind, or
    written by a clipproj that knows a newer format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"load: path must be a file, got {path}")
    try:
        with safe_open(path, framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
    except SafetensorError as error:
        raise Refusal(
            "load", "path", f"must be a whole safetensors file, got {path}: {error}"
        ) from error
    name, _, version = header.get("format", "").partition("-")
    if name != "clipproj" or not version.isdigit():
        raise Refusal("load", "path", f"must be a file written by clipproj, got {path}")
    if int(version) > FORMAT:
        raise Refusal(
            "load",
            "path",
            f"must be of format {FORMAT} or older, got format {version} in {path}; "
            "a newer clipproj wrote it",
        )
    if header.get("digest") != _digest(header, tensors):
        raise Refusal("load", "path", f"must be an undamaged file, got a wrong digest in {path}")
    if kind is not None and header["kind"] != kind:
        raise Refusal("load", "path", f"must hold kind {kind!r}, got {header['kind']!r} in {path}")
    meta = json.loads(header["meta"])
    if not isinstance(meta, dict):
        raise Refusal(
            "load", "path", f"must hold a JSON object, got {type(meta).__name__} in {path}"
        )
    return Artefact(header["kind"], _Fields(tensors), _Fields(meta))


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    text = "\n".join([header.get("kind", ""), header.get("meta", ""), *tensors])
    return sha256(*tensors.values(), text=text)
