"""The tenants: one place that knows them all, what changed since when, and a folder for them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipproj import files
from clipproj.projector import Projector, load
from clipproj.refusal import Refusal
from clipproj.serve.errors import ServiceError, invalid, shown
from clipproj.serve.tenants import form_for

SUFFIX = ".safetensors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # safe in a URL and as a file's name
TOMBSTONES = 10_000  # deletions remembered; who is further behind gets everything
LOCK_WAIT = 30.0  # seconds: the last one may still be on its way out


@dataclass(frozen=True)
class Changes:
    """What a replica must do to know what the store knew.

    Attributes:
        epoch: of the store; it starts the next one each time it is started.
        version: number of changes in this epoch.
        tenants: name to a projector's file, or None for one that is removed.
        full: whether `tenants` is all there is, so that any other must go.
    """

    epoch: int
    version: int
    tenants: dict[str, bytes | None] = field(default_factory=dict)
    full: bool = False


def check_name(name: str) -> str:
    """The name, if it may be a tenant's. Raises ServiceError."""
    if not NAME.fullmatch(name):
        why = "must be 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit, "
        raise invalid("name", f"{why}got {shown(name)}")
    return name


def to_bytes(projector: Projector) -> bytes:
    """The file that `Projector.save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"projector{SUFFIX}"
        projector.save(path)
        return path.read_bytes()


def from_bytes(data: bytes) -> Projector:
    """A projector out of its file. ValueError when it is damaged or no projector."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"projector{SUFFIX}"
        path.write_bytes(data)
        try:
            return load(path)
        except (ValueError, KeyError, TypeError) as error:  # safetensors of another kind
            reason = str(error).replace(str(path), "the file")
            raise Refusal("load", None, f"the file must hold a projector: {reason}") from error


def describe(name: str, projector: Projector) -> dict[str, Any]:
    """What a tenant looks like from outside; plain JSON."""
    history = projector.provenance
    parameters, text = history.get("parameters"), form_for(projector, "text")
    return {
        "name": name,
        "hash": projector.content_hash(),
        "text_hash": None if text is None else text.content_hash(),
        "rank": projector.rank,
        "dim": projector.dim,
        "strength": float(projector.strength),
        "form": projector.form,
        "half_spaces": projector.rank if projector.one_sided else None,
        "threshold": (parameters or {}).get("threshold"),
        "method": history.get("method"),
        "parameters": parameters,
        "forget": (history.get("forget") or {}).get("names"),
        "keep": len((history.get("keep") or {}).get("names") or ()) or None,
        "measured": history.get("measured"),
        "model": history.get("model"),
        "created": history.get("created"),
    }


class Store:
    """Tenants by name, each change numbered, each on disk before it counts. Safe in threads.

    Args:
        folder: made where it is missing; one store at a time, which a lock on a file sees to.
        capacity: directions over all tenants.

    Raises:
        OSError: for a folder that cannot be made or written. RuntimeError: for one that another
            store holds. ValueError: for a damaged file in it, by name: it is better not to start
            than to forget a tenant.
    """

    def __init__(self, folder: str | os.PathLike[str], capacity: int = 4096) -> None:
        self.folder, self.capacity = Path(folder), capacity
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = _hold(self.folder / ".lock")
        # Changes one after the other, on disk first; who reads waits for no disk.
        self._changing, self._lock = threading.Lock(), threading.Lock()
        self._files: dict[str, bytes] = {}
        self._about: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, int] = {}  # name to version, removed ones too
        self._floor = 0  # deletions up to this version are forgotten
        self.epoch, self.version = _next_epoch(self.folder / ".epoch"), 0
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            name = path.name.removesuffix(SUFFIX).rpartition(".")[0]
            if path != self._path(name):
                raise Refusal("store", None, f"a file must be named as the store does, got {path}")
            projector = load(path)
            self._set(name, path.read_bytes(), describe(name, projector))

    def close(self) -> None:
        """Let go of the folder."""
        self._held.close()

    def __len__(self) -> int:
        return len(self._files)

    def changes(self, epoch: int, version: int) -> Changes:
        """What happened since `version` of `epoch`, 0 from who knows nothing; everything where
        that is too long ago.
        """
        with self._lock:
            if epoch != self.epoch or version < self._floor:
                return Changes(self.epoch, self.version, dict(self._files), full=True)
            if version == self.version:
                return Changes(self.epoch, self.version)
            names = [name for name, at in self._changed.items() if at > version]
            return Changes(self.epoch, self.version, {n: self._files.get(n) for n in names})

    def names(self) -> list[str]:
        """All tenants, sorted."""
        with self._lock:
            return sorted(self._files)

    def status(self) -> dict[str, int]:
        """How many tenants, and the version."""
        with self._lock:
            return {"stored_tenants": len(self._files), "stored_version": self.version}

    def about(self, name: str) -> dict[str, Any]:
        """`describe` of a tenant. ServiceError 404 for an unknown one."""
        with self._lock:
            return dict(self._about[self._known(name)])

    def file(self, name: str) -> bytes:
        """A tenant's projector file. ServiceError 404 for an unknown one."""
        with self._lock:
            return self._files[self._known(name)]

    def put(self, name: str, data: bytes, *, create: bool = False) -> dict[str, Any]:
        """Keep a projector file under a name; what it was before is replaced, on disk first.

        Returns `describe` of it, with `created`: whether the name is new.

        Raises ServiceError: 409 with `create` for a name that exists, 507 where the directions of
        all tenants would be more than the capacity, or the disk is full; all is as it was then.
        """
        check_name(name)
        projector = from_bytes(data)
        about = describe(name, projector)
        with self._changing:
            known = name in self._files
            if create and known:
                raise ServiceError(409, f"there is a tenant {name!r}", "name", "tenant_exists")
            # One that has none counts as one: banks hand out indices too.
            ranks = {key: max(1, one["rank"]) for key, one in self._about.items()}
            others = sum(ranks.values()) - ranks.get(name, 0)
            if others + max(1, projector.rank) > self.capacity:
                raise ServiceError(
                    507,
                    f"no room: the tenants have {others} of {self.capacity} directions, "
                    f"{name!r} needs {projector.rank}",
                    "name",
                    "bank_full",
                )
            try:
                projector.save(self._path(name))
                kept = self._path(name).read_bytes()
            except OSError as error:
                raise ServiceError(507, f"the tenant cannot be kept: {error}") from error
            with self._lock:
                self._set(name, kept, about)
            return about | {"new": not known}

    def remove(self, name: str) -> None:
        """Forget a tenant. ServiceError: 404 for an unknown one, 507 when the file stays."""
        with self._changing:
            try:
                self._path(self._known(name)).unlink()
            except OSError as error:
                raise ServiceError(507, f"the tenant cannot be removed: {error}") from error
            with self._lock:
                del self._files[name], self._about[name]
                self._count(name)
                removed = sorted((at, n) for n, at in self._changed.items() if n not in self._files)
                if len(removed) > TOMBSTONES:
                    for at, n in removed[: len(removed) // 2]:
                        del self._changed[n]
                        self._floor = at

    def _known(self, name: str) -> str:
        if name not in self._files:
            raise ServiceError(404, f"there is no tenant {shown(name)}", "name", "tenant_not_found")
        return name

    def _set(self, name: str, data: bytes, about: dict[str, Any]) -> None:
        self._files[name], self._about[name] = data, about
        self._count(name)

    def _count(self, name: str) -> None:
        self.version += 1
        self._changed[name] = self.version

    def _path(self, name: str) -> Path:
        # the digest tells "Acme" from "acme" where the file system does not
        return self.folder / f"{name}.{hashlib.sha256(name.encode()).hexdigest()[:8]}{SUFFIX}"


def _next_epoch(path: Path) -> int:
    """More than the last store had: replicas must tell late news from new. The time, so that it is
    more also where the folder was lost or put back.
    """
    try:
        last = int(path.read_text()) if path.exists() else 0
    except ValueError as error:
        raise Refusal("store", path, "must hold a number, got something else") from error
    epoch = max(last + 1, time.time_ns())
    with files.atomic(path) as part:
        part.write_text(str(epoch))
    return epoch


def _hold(path: Path) -> Any:
    """An open file that nobody else has locked; the system lets go of it when the process ends."""
    held = open(path, "a")  # noqa: SIM115  open as long as the store is
    end = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        except BlockingIOError as error:
            if time.monotonic() > end:
                held.close()
                raise RuntimeError(
                    f"store: folder must be free, got {path.parent}, which another store holds"
                ) from error
            time.sleep(0.2)
