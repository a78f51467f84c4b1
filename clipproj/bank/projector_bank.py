"""The bank that callers hold: projectors by name, changed while other threads call it."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from numbers import Real
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from clipproj import files, ops
from clipproj._factors import MOST_ONE_SIDED, gram_of
from clipproj._tensors import as_tensor, check_plain
from clipproj.algebra import compose, union
from clipproj.bank.rows import BankFull, BankRows, Entry
from clipproj.projector import TOWERS, Projector, unit_rows
from clipproj.refusal import Refusal

__all__ = ["BankFull", "Entry", "ProjectorBank"]


class BankFactors(TypedDict):
    """What the operators take of a bank by keyword, whatever the rows."""

    read: Tensor
    write: Tensor
    offset: Tensor | None
    spans: Tensor
    gram: Tensor | None


class BankOperands(BankFactors):
    """What they take for certain rows: `ops.project_rows(x, **bank.operands(x, index))`."""

    index: Tensor
    strength: Tensor
    flag: Tensor | None


class ProjectorBank(BankRows):
    """Projectors by name, preallocated, for `y = bank(x, bank.index(["acme", None]))`.

    Tenants come and go without a new shape or address, so that compiled graphs and captured CUDA
    graphs go on as they are. Ranks are ragged, without padding. The idea of one buffer for the
    adapters of all is that of S-LoRA (arXiv 2311.03285).

    Threads: `add`, `replace`, `remove` and `index` may be called from any thread while others call
    the bank. New rows are written to free space, then one span is switched by one store; rows that
    are no longer in use are written again only after all work that may read them has ended
    (`reclaim`). A row gets the projector from before a change or that from after it, nothing in
    between. On a GPU a change returns when it has been made, after the work before it in its
    stream; what other streams run meanwhile sees it soon. A copy, also one that is sent to another
    process, is a bank of its own. Between a forward pass and its backward pass a bank must stay as
    it is, which autograd checks. float64 features take a copy of all rows, and in a compiled graph,
    which knows no lock, a change may fall into it: leave the bank alone there.

    An index is handed out once: that of an entry which was removed is refused (an error on the CPU,
    a NaN row and `check()` on a GPU), and never means another tenant until `recycle()` is called.

    Args:
        dim: d, the width of the features.
        capacity: directions, over all projectors. 4096 at d = 512 take 16 MB.
        entries: how many indices it can hand out before `recycle()`.
        side: the tower whose features it edits.
        symmetric: for symmetric projectors only: half the memory and less to read.
        one_sided: the most directions of a one-sided projector, at most 256; 0: it takes none.
            4 bytes for each beside every direction of the capacity. None: 64 on the CPU; elsewhere
            0, for there all rows of a bank that may hold one take another kernel.
        device: where it lives; None: on the CPU, whatever torch.set_default_device says.

    Attributes:
        lock: held by every change and lookup. To make a lookup and the call after it one step that
            no change comes between, hold it around both.

    Raises:
        TypeError, ValueError: for sizes that are no numbers of at least 1, one_sided out of
            [0, 256] or with symmetric, an unknown side.

    Example:
        >>> bank = clipproj.ProjectorBank(dim=2, capacity=16)
        >>> bank.add("acme", clipproj.Projector(torch.tensor([[1.0, 0.0]])))
        0
        >>> bank(torch.ones(2, 2), bank.index(["acme", None]))
        tensor([[0., 1.],
                [1., 1.]])
    """

    def __init__(
        self,
        dim: int,
        capacity: int = 4096,
        *,
        entries: int = 65536,
        side: str = "image",
        symmetric: bool = False,
        one_sided: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if one_sided is None:
            here = torch.device(device or "cpu").type == "cpu"
            one_sided = 64 if here and not symmetric else 0
        if not isinstance(one_sided, int) or isinstance(one_sided, bool):
            got = type(one_sided).__name__
            raise TypeError(f"ProjectorBank: one_sided must be a whole number, got {got}")
        most = 0 if symmetric else MOST_ONE_SIDED
        if not 0 <= one_sided <= most:
            raise Refusal("ProjectorBank", "one_sided", f"must be in [0, {most}], got {one_sided}")
        for name, size in (("dim", dim), ("capacity", capacity), ("entries", entries)):
            if not isinstance(size, int) or isinstance(size, bool):
                got = type(size).__name__
                raise TypeError(f"ProjectorBank: {name} must be a whole number, got {got}")
            if not 1 <= size < 2**31:
                raise Refusal("ProjectorBank", name, f"must be in [1, 2^31), got {size}")
        if side not in TOWERS:
            raise Refusal("ProjectorBank", "side", f'must be "image" or "text", got {side!r}')
        super().__init__(dim, capacity, entries, side, symmetric, device, one_sided)

    def __bool__(self) -> bool:
        return True  # an empty bank is one

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """Of all entries, oldest first."""
        with self.lock:
            return list(self._entries)

    def entry(self, name: str) -> Entry:
        """What is kept under a name. ValueError for a name that the bank does not have."""
        with self.lock:
            return self._entry("entry", name)

    def projector(self, name: str) -> Projector:
        """A copy of what was added under a name, bit for bit.

        Raises ValueError for a name that the bank does not have, or where its rows are no longer
        those that were added.
        """
        with self.lock:
            return self._copy(self._entry("projector", name))

    # Changes

    def add(self, name: str, projector: Projector, *, force: bool = False) -> int:
        """Takes a projector in, under a new name.

        Args:
            name: any text that is not empty.
            projector: of the bank's width and side. It is copied, to the bank's device.
            force: take it though it comes from another model than those that are there (their
                provenance names other heads).

        Returns:
            Its index.

        Raises:
            TypeError, ValueError: a name that is taken; a projector of another width, side, model,
                not finite, or not symmetric where the bank is.
            BankFull: no room, or no index left; all is as it was. A ValueError.
            RuntimeError: while a CUDA graph is being captured.
        """
        with self.lock:
            if not isinstance(name, str):
                raise TypeError(f"add: name must be a text, got {type(name).__name__}")
            if not name:
                raise Refusal("add", "name", "must not be empty, got ''")
            if name in self._entries:
                raise Refusal(
                    "add", "name", f"must be new to the bank, got {name!r}; use replace()"
                )
            self._check("add", projector, self._entries.values(), force)
            self._entries[name] = entry = self._place("add", name, projector)
            self._keep_texts(name, projector)
            return entry.index

    def replace(self, name: str, projector: Projector, *, force: bool = False) -> int:
        """Puts another projector in the place of one.

        Its index stays, and means the new one from then on, unless the strength of its own is
        another, or only one of the two is one-sided: then it gets a new index, and the old one is
        refused.

        Takes, returns and raises what `add` does, for a name that the bank has. Old and new have to
        fit side by side. Where it raises, the old one stays.
        """
        with self.lock:
            old = self._entry("replace", name)
            others = [entry for entry in self._entries.values() if entry is not old]
            self._check("replace", projector, others, force)
            same = float(projector.strength) == old.strength
            same = same and projector.one_sided == old.one_sided  # see `_one_sided_rows`
            entry = self._place("replace", name, projector, old.index if same else None)
            old = self._entries[name]  # which making room may have moved
            self._entries[name] = entry
            self._keep_texts(name, projector)
            self._retire(old, refuse=not same)
            self._drop_combinations(old.hash)
            return entry.index

    def remove(self, name: str) -> None:
        """Lets an entry go; its index is refused from then on.

        Raises ValueError for a name that the bank does not have, RuntimeError while a CUDA graph is
        being captured.
        """
        with self.lock:
            entry = self._entry("remove", name)
            self._check_capture("remove")
            del self._entries[name]  # first, so that no interrupt makes its rows free twice
            self._texts.pop(name, None)
            self._retire(entry)
            self._drop_combinations(entry.hash)

    # Calls

    def index(self, names: Iterable[str | Sequence[str] | None]) -> Tensor:
        """Which projector each row takes.

        Args:
            names: one for each row: a name; None for a row that is left alone; or several names,
                which are combined into one projector, made when it is first asked for and kept by
                the hashes of its parts: the union of symmetric ones of one strength, else their
                composition in the order given; of one-sided ones of one strength in the metric of
                the same kept texts all half-spaces, and of no others. Equal projectors count once.
                Combinations give way, the least recent first, when room is needed; an index of one
                is then refused, and also when a part of it has been replaced or removed.

        Returns:
            [n] int32, on the bank's device.

        Raises:
            TypeError, ValueError: for a name that the bank does not have, or no name at all.
        """
        if isinstance(names, str):
            raise TypeError(f"index: names must be a list of names, got the text {names!r}")
        self._check_capture("index")  # the graph would copy from where these indices lie now
        names = list(names)
        with self.lock:
            used: set[int] = set()
            try:  # single names alone, in a tenth of the time
                held: dict[Any, Entry] = self._entries
                indices = [-1 if name is None else held[name].index for name in names]
            except (KeyError, TypeError):
                indices = [self._index_of(name, used) for name in names]
        index = torch.tensor(indices, dtype=torch.int32, device="cpu")
        if not self.read.is_cuda:
            return index
        return index.pin_memory().to(self.read.device, non_blocking=True)

    def forward(
        self,
        x: Tensor | np.ndarray,
        index: Tensor,
        strength: float | Tensor | np.ndarray | None = None,
        normalize: bool = False,
    ) -> Tensor | np.ndarray:
        """The edited rows, in the shape and dtype of x; see `clipproj.ops.project_rows`.

        Args:
            x: [..., d], float32, bfloat16 or float16, on the CPU also float64. An array of numpy is
                edited where the bank is, and given back as one.
            index: [n] int32 from `index`, for the rows of x with its leading dims flattened.
            strength: a number in [0, 2], a 0-dim tensor, or a tensor [n]; None: each entry's own.
                Tensors are not checked.
            normalize: also divide each row by its length, those without a projector too.

        Raises:
            TypeError, ValueError: for arguments of other types, an index of another length, a
                strength out of range.
            RuntimeError: for other shapes, dtypes or devices; on the CPU for an index that is not
                (or no longer) one of the bank's. On a GPU such a row becomes NaN, see `check`.
        """
        if type(x) is not Tensor and isinstance(x, np.ndarray):
            x = as_tensor("ProjectorBank", "x", x, self.read.device)
            return self(x, index, strength, normalize).numpy(force=True)
        operands = self.operands(x, index, strength)
        return ops.project_rows(x, **operands, normalize=normalize)

    def operands(
        self, x: Tensor, index: Tensor, strength: float | Tensor | np.ndarray | None = None
    ) -> BankOperands:
        """read, write, offset, gram, spans, index, strength and flag, as `project_rows`, `linear`
        and `logits` of `clipproj.ops` take them by keyword, for rows x.

        Takes and raises what calling the bank does.
        """
        if type(x) is not Tensor or x.is_nested:
            check_plain("ProjectorBank", x)
        if not isinstance(index, Tensor):
            got = type(index).__name__
            raise TypeError(f"ProjectorBank: index must be a tensor from bank.index(), got {got}")
        held: dict[str, Any] = (
            self._buffers
        )  # as attributes they would take half a microsecond each
        d = held["read"].shape[1]
        if x.ndim == 0 or x.shape[-1] != d:
            raise Refusal("ProjectorBank", "x", f"must be [..., {d}], got {list(x.shape)}")
        n = math.prod(x.shape[:-1])
        # A compiler may not know the sizes yet; the operator checks them again.
        known = not torch.compiler.is_compiling()
        if index.ndim != 1 or (known and index.shape[0] != n):
            raise Refusal(
                "ProjectorBank",
                "index",
                f"must be [{n}], one for each row, got {list(index.shape)}",
            )
        factors = self.factors(x.dtype)
        wide = factors["read"].dtype
        if isinstance(strength, Tensor):
            own = strength
        elif strength is None:  # clamped, because a bad index is the operator's to refuse
            own = held["strengths"]
            own = own.index_select(0, index.clamp(0, own.shape[0] - 1))
        elif isinstance(strength, np.ndarray):
            own = as_tensor("ProjectorBank", "strength", strength, index.device)
        elif isinstance(strength, Real):
            if not 0 <= strength <= 2:
                raise Refusal("ProjectorBank", "strength", f"must be in [0, 2], got {strength:g}")
            own = torch.full((), strength, dtype=wide, device=index.device)
        else:
            got = type(strength).__name__
            raise TypeError(f"ProjectorBank: strength must be a number or a tensor, got {got}")
        flag = held["flag"]
        return {
            **factors,
            "index": index,
            "strength": own if own.dtype == wide else own.to(wide),
            "flag": flag if flag.is_cuda else None,  # the CPU raises instead
        }

    def factors(self, dtype: torch.dtype = torch.float32) -> BankFactors:
        """read, write, offset, gram and spans, for features of `dtype`: buffers, but for float64.

        What float64 features take is a copy of one moment, spans too: a span that is switched later
        would mean other rows than were copied. (Not in a compiled graph, which knows no lock.)
        """
        held: dict[str, Any] = self._buffers
        read, write, offset, gram = held["read"], held["_write"], held["offset"], held["gram"]
        spans = held["spans"]
        if dtype == torch.float64:
            with nullcontext() if torch.compiler.is_compiling() else self.lock:
                spans = spans.clone()
                factors = read, write, offset, gram
                wide = [None if t is None else t.double() for t in factors]
            read, write, offset, gram = wide
        write = read if write is None else write
        return {"read": read, "write": write, "offset": offset, "spans": spans, "gram": gram}

    def edit_features(
        self,
        z: Tensor,
        index: Tensor,
        strength: float | Tensor | None = None,
        normalize: bool = False,
    ) -> Tensor:
        """The edited rows of features z [..., d] of any length, as a model gives them.

        Rows of one-sided projectors are divided by their length for it, and multiplied by it again
        unless `normalize` is asked for, as `Projector.edit_features` does. Takes and raises what
        calling the bank does.
        """
        which = self._one_sided_rows(z, index)
        if which is None:
            return self(z, index, strength, normalize)
        unit, length = unit_rows(z, which)
        edited = self(unit, index, strength, normalize)
        if normalize:
            return edited
        harmless = (edited == unit).all(dim=-1, keepdim=True)  # these keep their bits
        return torch.where(harmless, z, edited * length)

    def as_measured(self, z: Tensor, index: Tensor) -> Tensor:
        """Features z [..., d] as the operators take them: rows of one-sided projectors divided by
        their length, which thresholds are for, the others as they are. `ops.logits(
        bank.as_measured(z, index), classes, **bank.operands(z, index))` are the logits of features
        of any length.
        """
        which = self._one_sided_rows(z, index)
        return z if which is None else unit_rows(z, which)[0]

    def _one_sided_rows(self, z: Tensor, index: Tensor) -> Tensor | None:
        """[..., 1] bool, whether a row's projector is one-sided; None where none can be.

        An index that was handed out never changes in this, so that no change of the bank falls
        between this and the operator: `replace` sees to it.
        """
        if self.gram is None:
            return None
        late = self.read.is_cuda or torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not late and not self._had_one_sided:  # a graph would keep what is so only now
            return None
        # the operator refuses what is out of range
        at = index.clamp(0, self.spans.shape[0] - 1).long()
        return ((self.spans[at, 1] < 0) & (index >= 0)).view(*z.shape[:-1], 1)

    def check(self) -> None:
        """On a GPU: RuntimeError if since the last check a row became NaN because of its index.

        It waits for the device. On the CPU the call itself has raised.
        """
        if int(self.flag):
            self.flag.zero_()
            raise RuntimeError(
                "ProjectorBank: index must hold indices of the bank, got others since the last "
                "check; their rows are NaN"
            )

    # Files and state

    def content_hash(self) -> str:
        """SHA-256 hex over names and hashes: equal hashes mean the same edit for every name."""
        with self.lock:
            lines = sorted(f"{len(name)}:{name}={e.hash}" for name, e in self._entries.items())
        return files.sha256(text=f"bank side={self.side} dim={self.dim}\n" + "\n".join(lines))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all entries to a safetensors file, atomically. Raises OSError."""
        with self.lock:
            parts = {name: self._copy(entry).parts() for name, entry in self._entries.items()}
        tensors = {f"{i}.{key}": value for i, (held, _) in enumerate(parts.values())
                   for key, value in held.items()}  # fmt: skip
        meta = {"dim": self.dim, "capacity": self.capacity, "entries": len(self.spans),
                "side": self.side, "symmetric": self.symmetric, "one_sided": self.one_sided,
                "projectors": [{"name": name} | it for name, (_, it) in parts.items()]}  # fmt: skip
        version = files.FORMAT if any("gram" in held for held, _ in parts.values()) else 1
        files.write(path, "bank", tensors, meta, version=version)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        capacity: int | None = None,
        device: torch.device | str | None = None,
    ) -> ProjectorBank:
        """Read what `save` wrote, into a bank of the same or another capacity; indices are new.

        Raises FileNotFoundError, or ValueError when the file is damaged, foreign, no bank, of a
        newer format, or does not fit.
        """
        artefact = files.read(path, "bank")
        meta, tensors = artefact.meta, artefact.tensors
        bank = cls(
            meta["dim"],
            meta["capacity"] if capacity is None else capacity,
            entries=meta["entries"],
            side=meta["side"],
            symmetric=meta["symmetric"],
            one_sided=dict(meta).get("one_sided"),
            device=device,
        )
        for i, made in enumerate(meta["projectors"]):
            keys = ("read", "write", "offset", "strength", "gram", "forget")
            held = {key: tensors[f"{i}.{key}"] for key in keys if f"{i}.{key}" in tensors}
            bank.add(made["name"], Projector.from_parts(held, made), force=True)
        return bank

    def extra_repr(self) -> str:
        form = ", symmetric" if self.symmetric else ""
        room = f"{len(self)} entries, {self.free} of {self.capacity} rows free"
        return f"dim={self.dim}, side={self.side!r}{form}, {room}"

    # All below with the lock held

    def _entry(self, op: str, name: object, what: str = "name") -> Entry:
        if not isinstance(name, str) or name not in self._entries:
            raise Refusal(op, what, f"must be in the bank, got {name!r}")
        return self._entries[name]

    def _check(
        self, op: str, projector: object, others: Iterable[Entry], force: bool = False
    ) -> None:
        if not isinstance(projector, Projector):
            raise TypeError(f"{op}: projector must be a Projector, got {type(projector).__name__}")
        if projector.dim != self.dim:
            raise Refusal(
                op, "projector", f"must be of width {self.dim} as the bank is, got {projector.dim}"
            )
        if projector.side != self.side:
            raise Refusal(
                op,
                "projector",
                f"must be for {self.side} features as the bank is, got one for "
                f"{projector.side}; pass projector.T",
            )
        if self.symmetric and projector.form != "symmetric":
            kind = projector.form
            raise Refusal(op, "projector", f"must be symmetric as the bank is, got an {kind} one")
        if projector.one_sided and projector.rank > self.one_sided:
            raise Refusal(
                op,
                "projector",
                f"must have at most {self.one_sided} directions one-sided, got {projector.rank}; "
                f"make the bank with one_sided={min(projector.rank, MOST_ONE_SIDED)} or more, or "
                "give projector.linear()",
            )
        projector._checked(projector.strength, warn=False)  # it may have been set since
        for part in (projector.read, projector.write, projector.offset):
            if part is not None and not part.isfinite().all():
                raise Refusal(op, "projector", "must be finite, got NaN or inf in its factors")
        if projector.gram is not None:  # it may have been changed since, too
            gram_of(projector.read, projector.write, projector.gram)
        for entry in () if force else others:
            projector.require_model(
                op,
                entry.provenance.get("head_hash"),
                model="the model of the others",
                otherwise="; give force to take it anyway",
            )
        self._check_capture(op)

    def _index_of(self, name: str | Sequence[str] | None, used: set[int]) -> int:
        if name is None:
            return -1
        if isinstance(name, str):
            entry = self._entry("index", name, "names")
        elif isinstance(name, Sequence) and name:
            entry = self._combination(name, used)
        else:
            raise TypeError(f"index: names must be texts, None or lists of several, got {name!r}")
        used.add(entry.index)
        return entry.index

    def _combination(self, names: Sequence[str], used: set[int]) -> Entry:
        parts = {e.hash: e for e in (self._entry("index", name, "names") for name in names)}
        entries = list(parts.values())
        if len(set(names)) == 1:  # two names of one projector may part: no index of either
            return entries[0]
        join = compose
        forms = {e.one_sided or (e.symmetric and not e.affine and "symmetric") for e in entries}
        alike = len(forms) == 1 and all(e.strength == entries[0].strength for e in entries)
        if True in forms or (alike and "symmetric" in forms):
            join = union  # in any order, so that it is made once
            entries.sort(key=lambda entry: entry.hash)
        key = (join.__name__, *(entry.hash for entry in entries))
        if key not in self._combined:
            made = functools.reduce(join, map(self._copy, entries))
            self._check("index", made, (), force=True)
            name = " + ".join(entry.name for entry in parts.values())
            index = self._former.get(key)
            self._combined[key] = self._place("index", name, made, index, used=used)
            self._former.pop(key, None)
        self._combined.move_to_end(key)
        return self._combined[key]

    def _drop_combinations(self, digest: str) -> None:
        """Those with a part that no entry has any more."""
        if any(entry.hash == digest for entry in self._entries.values()):
            return
        for key in [key for key in self._combined if digest in key]:
            self._retire(self._combined.pop(key))
