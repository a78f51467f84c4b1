"""The rows of a bank: who has which, how they change hands while others read them.

New rows are written to free space, then one span is switched by one store of 8 bytes, the unit in
which the operators load it. Rows of former entries stay as they are until whatever may read them
has ended: a grace period, as in Linux's read-copy-update.
"""

from __future__ import annotations

import copy
import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from multiprocessing.context import get_spawning_popen
from typing import Any

import torch
from torch import Tensor, nn

from clipproj import _C
from clipproj._factors import from_base64, move_buffers, to_base64
from clipproj.bank.free_rows import FreeRows
from clipproj.projector import Projector
from clipproj.refusal import Refusal

_REFUSED = (-1, -1)  # a span that every operator refuses


class BankFull(ValueError):
    """There is no room for a projector, or no index left."""


@dataclass(frozen=True)
class Entry:
    """One projector of a bank.

    Attributes:
        name: whose it is; of a combination the names, joined by " + ".
        index: what the rows that take it have in their `index`.
        start, rank: its directions among those of the bank.
        strength: its own.
        hash: `Projector.content_hash()`, the key for caches of what it has edited.
        symmetric, affine, one_sided: its form.
        provenance: as `Projector` has it.
    """

    name: str
    index: int
    start: int
    rank: int
    strength: float
    hash: str
    symmetric: bool
    affine: bool
    provenance: dict[str, Any]
    one_sided: bool = False

    @property
    def span(self) -> tuple[int, int]:
        """As the operators take it: a one-sided rank is negative."""
        return self.start, -self.rank if self.one_sided else self.rank


class BankRows(nn.Module):
    """Buffers of a bank, and the entries in them. `clipproj.ProjectorBank` says what is promised.

    Methods with an underscore want the lock held.
    """

    read: Tensor
    offset: Tensor | None
    gram: Tensor | None
    spans: Tensor
    strengths: Tensor
    flag: Tensor
    _write: Tensor | None

    def __init__(
        self,
        dim: int,
        capacity: int,
        entries: int,
        side: str,
        symmetric: bool,
        device: torch.device | str | None,
        one_sided: int,
    ) -> None:
        super().__init__()
        self.side = side
        device = device or "cpu"  # not the caller's default, as of a Projector
        with torch.inference_mode(False):
            rows = functools.partial(torch.zeros, device=device, dtype=torch.float32)
            self.register_buffer("read", rows(capacity, dim))
            self.register_buffer("_write", None if symmetric else rows(capacity, dim))
            self.register_buffer("offset", None if symmetric else rows(capacity))
            # of each one-sided projector the gram matrix, beside its directions
            self.register_buffer("gram", rows(capacity, one_sided) if one_sided else None)
            spans = torch.full((entries, 2), -1, dtype=torch.int32, device=device)
            self.register_buffer("spans", spans)
            self.register_buffer(
                "strengths", torch.ones(entries, dtype=torch.float32, device=device)
            )
            self.register_buffer("flag", torch.zeros(1, dtype=torch.int32, device=device))
        self.lock = threading.RLock()
        self._forget_all()

    def _forget_all(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._combined: OrderedDict[tuple[str, ...], Entry] = OrderedDict()  # least recent first
        self._free_rows = FreeRows(self.capacity)
        self._retired: list[tuple[int, int]] = []  # (start, rank), still read by some work
        self._next = 0  # the first index that is new
        self._spare: list[int] = []  # recycled ones
        self._former: dict[tuple[str, ...], int] = {}  # of combinations that have yielded
        self._texts: dict[str, Tensor] = {}  # what an entry's projector forgets, by its name
        self._had_one_sided = False  # whether an index was ever that of a one-sided one

    @property
    def dim(self) -> int:
        """d, the width of the features."""
        return self.read.shape[1]

    @property
    def capacity(self) -> int:
        """Directions that it has room for."""
        return self.read.shape[0]

    @property
    def symmetric(self) -> bool:
        """Whether it takes symmetric projectors only."""
        return self._write is None

    @property
    def one_sided(self) -> int:
        """The most directions of a one-sided projector that it takes; 0: it takes none."""
        return 0 if self.gram is None else self.gram.shape[1]

    @property
    def free(self) -> int:
        """Directions that are not in use, those of combinations counted as free."""
        with self.lock:
            lent = sum(entry.rank for entry in self._combined.values())
            return self._free_rows.free + sum(rank for _, rank in self._retired) + lent

    @property
    def indices_left(self) -> int:
        """How many more indices can be handed out before `recycle()`."""
        with self.lock:
            return len(self.spans) - self._next + len(self._spare)

    def reclaim(self) -> None:
        """Makes the rows of former entries free, once nothing can be reading them any more.

        `add` and `replace` do so when they need the room. It waits for the operators that run in
        other threads of this process, and on a GPU for all work of the device (which breaks a graph
        capture that runs in another thread in the global mode).
        """
        with self.lock:
            if not self._retired:
                return
            if self.read.is_cuda:
                self._check_capture("reclaim")
                torch.cuda.synchronize(self.read.device)
            else:
                _C.wait_for_bank_readers()
            while self._retired:  # each given once, also when an interrupt ends this
                self._free_rows.give(*self._retired.pop())

    def recycle(self) -> None:
        """Lets the indices of former entries be handed out again.

        To be called where no `index` made before is still in use, in any graph or thread: from here
        on it may mean another tenant.
        """
        with self.lock:
            held = {e.index for e in (*self._entries.values(), *self._combined.values())}
            self._spare = [i for i in range(self._next) if i not in held]
            self._former.clear()

    def compact(self) -> None:
        """Moves entries towards the first row, as far as gaps have room for them.

        `add` does so when free rows are scattered. Indices stay, and calls may go on meanwhile.
        """
        with self.lock:
            self.reclaim()
            both: tuple[dict[Any, Entry], ...] = (self._entries, self._combined)
            for held in both:
                for key, old in sorted(held.items(), key=lambda item: -item[1].start):
                    start = self._free_rows.take(old.rank, below=old.start) if old.rank else None
                    if start is None:
                        continue
                    for buffer in (self.read, self._write, self.offset, self.gram):
                        if buffer is not None:
                            moved = buffer[old.start : old.start + old.rank]
                            self._write_to(buffer, slice(start, start + old.rank), moved)
                    held[key] = replace(old, start=start)
                    self._switch(old.index, held[key].span)
                    self._retired.append((old.start, old.rank))
            self.reclaim()

    def get_extra_state(self) -> Tensor:
        """Names, places and hashes, for `state_dict`: as bytes, which every format can hold."""
        with self.lock:
            texts = {name: to_base64(rows) for name, rows in self._texts.items()}
            state = {"side": self.side, "next": self._next, "forget": texts,
                     "entries": [asdict(entry) for entry in self._entries.values()]}  # fmt: skip
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """What `load_state_dict` calls last; the bank must not be in use meanwhile.

        Raises ValueError, and leaves the bank empty, for other rows than were saved.
        """
        saved = json.loads(bytes(state.tolist()))
        with self.lock:
            handed_out = self._next
            self._forget_all()
            self.side, self._next = saved["side"], max(saved["next"], handed_out)
            self._write_to(self.spans, slice(None), -1)
            entries = [Entry(**entry) for entry in saved["entries"]]
            texts = saved.get("forget", {}).items()
            self._texts = {name: from_base64(kept, self.dim) for name, kept in texts}
            self._had_one_sided = any(entry.one_sided for entry in entries)
            for entry in entries:
                if self.symmetric and not entry.symmetric:
                    raise Refusal(
                        "load_state_dict",
                        "bank",
                        f"must not be symmetric for {entry.name!r}, got one",
                    )
                self._copy(entry)
                self._write_to(self.strengths, entry.index, entry.strength)
            self._free_rows = _left(self.capacity, entries)
            for entry in entries:
                self._switch(entry.index, entry.span)
                self._entries[entry.name] = entry

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: rows and entries of one moment, and none that two banks write to,
        such as the shared memory in which torch.multiprocessing hands tensors on.
        """
        with self.lock, torch.inference_mode(False):
            state = {key: value for key, value in self.__dict__.items() if key != "lock"}
            for key in (
                "_entries",
                "_combined",
                "_free_rows",
                "_retired",
                "_spare",
                "_former",
                "_texts",
            ):
                state[key] = copy.copy(state[key])
            # detached: a normal tensor's clone, whatever mode the caller is in
            state["_buffers"] = {
                key: None if buffer is None else buffer.detach().clone()
                for key, buffer in self._buffers.items()
            }
            spawning = get_spawning_popen()
            if spawning is not None:  # whose pickle holds no tensors, only where they are
                vars(spawning).setdefault("clipproj_banks", []).append(state["_buffers"])
            return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = threading.RLock()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BankRows:
        """Move with the module, keep the precision."""
        with self.lock:
            move_buffers(self, fn)
        return self

    # All below with the lock held

    def _copy(self, entry: Entry) -> Projector:
        rows = slice(entry.start, entry.start + entry.rank)
        held = {
            "read": self.read[rows],
            "strength": torch.tensor(entry.strength, dtype=torch.float32, device="cpu"),
        }
        if self._write is not None and not entry.symmetric:
            held["write"] = self._write[rows]
        if self.offset is not None and entry.affine:
            held["offset"] = self.offset[rows]
        if self.gram is not None and entry.one_sided:
            held["gram"] = self.gram[rows, : entry.rank]
        if entry.name in self._texts:
            held["forget"] = self._texts[entry.name].to(self.read.device)
        meta = {"side": self.side, "provenance": entry.provenance, "hash": entry.hash}
        made = Projector.from_parts(held, meta)
        # What its form does not have is in the bank all the same, for the operators to read.
        if entry.symmetric and not torch.equal(
            self.read[rows], (self.read if self._write is None else self._write)[rows]
        ):
            raise Refusal(
                "ProjectorBank", "write", f"must be read for {entry.name!r}, got other rows"
            )
        if self.offset is not None and not entry.affine and self.offset[rows].any():
            raise Refusal(
                "ProjectorBank", "offset", f"must be 0 for {entry.name!r}, got other numbers"
            )
        return made

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, local: dict, *rest: Any
    ) -> None:
        if local.get("assign_to_params_buffers"):  # two banks would write to one memory
            own = {key: value.clone() for key, value in state.items() if key.startswith(prefix)}
            state = {**state, **own}
        if self.gram is not None and prefix + "read" in state:  # of a bank from before there was it
            state = {prefix + "gram": torch.zeros_like(self.gram), **state}
        super()._load_from_state_dict(state, prefix, local, *rest)

    def _check_capture(self, op: str) -> None:
        if self.read.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"{op}: must not be called while a CUDA graph is being captured")

    def _place(
        self, op: str, name: str, p: Projector, index: int | None = None, used: Iterable[int] = ()
    ) -> Entry:
        """Rows for a projector, its span last: under an index that is there, or a new one."""
        if index is None and not self._spare and self._next == len(self.spans):
            raise BankFull(
                f"{op}: bank must have an index left, got all {self._next} handed out; call "
                "recycle() where no index made before is in use"
            )
        strength, affine = float(p.strength), p.offset is not None
        made = p.content_hash(), p.symmetric, affine, copy.deepcopy(p.provenance), p.one_sided
        start = self._room(op, p.rank, used)
        rows = slice(start, start + p.rank)
        try:
            self._write_to(self.read, rows, p.read)
            if self._write is not None:
                self._write_to(self._write, rows, p.write)
            if self.offset is not None:
                self._write_to(self.offset, rows, 0.0 if p.offset is None else p.offset)
            if self.gram is not None and p.gram is not None:
                self._write_to(self.gram, (rows, slice(p.rank)), p.gram)
            if index is None:
                index = self._spare.pop() if self._spare else self._next
                self._next = max(self._next, index + 1)
                self._write_to(self.strengths, index, p.strength)
        except BaseException:
            self._free_rows.give(start, p.rank)
            raise
        entry = Entry(name, index, start, p.rank, strength, *made)
        self._had_one_sided |= p.one_sided  # before anybody knows the index
        self._switch(index, entry.span)
        return entry

    def _keep_texts(self, name: str, p: Projector) -> None:
        """What an entry's projector forgets; no operator reads it, so it stays on the CPU."""
        self._texts.pop(name, None)
        if p.forget is not None:
            self._texts[name] = p.forget.detach().cpu().clone()

    def _room(self, op: str, rank: int, used: Iterable[int]) -> int:
        """The start of so many free rows; combinations of other indices than those in use yield."""
        lent = [key for key, entry in self._combined.items() if entry.index not in used]
        yielding = [functools.partial(self._yield, key) for key in lent]  # least recent first
        kept = sum(entry.rank for entry in self._combined.values() if entry.index in used)
        if rank <= self.free - kept:  # else nobody need yield for it
            ways: list[Callable[[], object]] = [self.reclaim, self.compact, *yielding, self.compact]
            for make_room in (lambda: None, *ways):
                make_room()
                start = self._free_rows.take(rank)
                if start is not None:
                    return start
        self.reclaim()  # so that the numbers below are those that count
        raise BankFull(
            f"{op}: bank must have {rank} free rows side by side, got {self._free_rows.free} of "
            f"{self.capacity}, at most {self._free_rows.longest} side by side; remove entries, or "
            "save() the bank and load() it with a larger capacity"
        )

    def _yield(self, key: tuple[str, ...]) -> None:
        """A combination's rows. Made again, it gets the index that it had."""
        entry = self._combined.pop(key)
        self._former[key] = entry.index
        self._retire(entry)
        self.reclaim()

    def _retire(self, entry: Entry, refuse: bool = True) -> None:
        if refuse:
            self._switch(entry.index, _REFUSED)
        self._retired.append((entry.start, entry.rank))

    def _switch(self, index: int, span: tuple[int, int]) -> None:
        """In one store of 8 bytes, which is how the operators load a span, after its rows."""
        both = int(torch.tensor(span, dtype=torch.int32, device="cpu").view(torch.int64))
        _C.release_fence()
        self._write_to(self.spans.view(torch.int64), index, both)
        if self.read.is_cuda:  # changes of other streams come after it, whoever makes them
            torch.cuda.current_stream(self.read.device).synchronize()

    @staticmethod
    def _write_to(
        buffer: Tensor, place: int | slice | tuple[slice, slice], values: Tensor | float
    ) -> None:
        with torch.no_grad():
            if isinstance(values, Tensor):
                buffer[place].copy_(values)
            else:
                buffer[place].fill_(values)


def _left(capacity: int, entries: Iterable[Entry]) -> FreeRows:
    """What entries leave of a bank's rows."""
    left, end = FreeRows(0), 0
    for start, rank in sorted((entry.start, entry.rank) for entry in entries if entry.rank):
        left.give(end, start - end)
        end = start + rank
    left.give(end, capacity - end)
    return left
