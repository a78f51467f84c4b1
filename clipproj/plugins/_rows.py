"""Who edits the rows of a call: one projector for all, or a bank and a choice for each row.

The choice travels in a context variable, so that threads and asyncio tasks which share a model do
not mix; each plug-in sees only what was said to it. PEFT's way, hooks on the model for the time of
a call, leaves them behind when the call raises, and its `get_image_features` takes the active
adapter for every row whatever the names say: here a call without a choice of its own raises.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from clipproj import ops
from clipproj.bank import ProjectorBank
from clipproj.projector import Projector
from clipproj.refusal import Refusal

Name = str | tuple[str, ...] | None  # of a bank's entry, of several at once, or of none


class _Rows(NamedTuple):
    index: Tensor  # int32, [n], or 0-dim for every row of the call
    strength: Tensor | None  # 0-dim, or [n]
    lent: bool  # the caller's own index, which a CUDA graph may go on reading


_ROWS: ContextVar[Mapping[int, _Rows]] = ContextVar("clipproj_plugins_rows")
_KEYS = itertools.count()


def check_projector(op: str, projector: object) -> None:
    """TypeError, in the name of `op`, for what is neither a projector nor a bank."""
    if not isinstance(projector, Projector | ProjectorBank):
        got = type(projector).__name__
        raise TypeError(f"{op}: projector must be a Projector or a ProjectorBank, got {got}")


def on_tower(
    op: str, projector: Projector | ProjectorBank, tower: str
) -> Projector | ProjectorBank:
    """What edits a tower's features: a projector's form for it, or a bank of its side.

    ValueError, in the name of `op`, for a bank of the other side, an affine projector of it.
    """
    if isinstance(projector, Projector):
        return projector.for_tower(tower, op)
    if projector.side != tower:
        raise Refusal(op, "bank", f"must be of side {tower!r}, got {projector.side!r}")
    return projector


class RowEditor:
    """A projector or a bank, and what the current context chose from it.

    Not a module, so that what holds it keeps the state dict it had. A copy (deepcopy, pickle) has
    choices of its own: those made for the original do not reach it.

    Raises TypeError for anything but a Projector or a ProjectorBank.
    """

    def __init__(self, op: str, projector: Projector | ProjectorBank) -> None:
        check_projector(op, projector)
        self.projector = projector
        self._key = next(_KEYS)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._key = next(_KEYS)

    @contextmanager
    def rows(self, rows: Tensor | Sequence[Name] | Name, strength: object = None) -> Iterator[None]:
        """Which entry of the bank edits which row, for the calls inside the block.

        Args:
            rows: one name for each row of a call; a list, because a tuple is the name of several
                erasures at once; None in it for a row that stays as it is. A single name (or None)
                goes for every row of any number. Or int32 [n], what `ProjectorBank.index` gives.
            strength: replaces the entries' own: a number for all, one for each row (a sequence), or
                a tensor, 0-dim or [n], which is not checked for its values.

        What the block says holds in its thread or task, in those that `asyncio` starts from it and
        in `asyncio.to_thread`, not in other threads: these raise. What runs after the block is not
        in it: with activation checkpointing, which calls the model again in `backward`, take that
        in too.

        Raises:
            TypeError: there is no bank; rows or strength of another kind.
            ValueError: a name that the bank does not have; a strength out of [0, 2] or of another
                length.
        """
        chosen = self.choose(rows, strength)
        token = _ROWS.set({**_ROWS.get({}), self._key: chosen})
        try:
            yield
        finally:
            _ROWS.reset(token)

    def choose(self, rows: Tensor | Sequence[Name] | Name, strength: object = None) -> _Rows:
        """What `rows` says, as tensors on the bank's device."""
        bank = self.projector
        if not isinstance(bank, ProjectorBank):
            raise TypeError(
                "rows: projector must be a ProjectorBank to choose from, got one Projector"
            )
        if isinstance(rows, Tensor):
            if rows.dtype != torch.int32 or rows.ndim > 1:
                got = f"{rows.dtype} {list(rows.shape)}"
                raise TypeError(f"rows: rows must be an int32 tensor [n] or names, got {got}")
            index = rows
        elif rows is None or isinstance(rows, str | tuple):
            index = bank.index([rows])[0]
        elif isinstance(rows, list):
            index = bank.index(rows)
        else:
            got = type(rows).__name__
            raise TypeError(f"rows: rows must be a list of names or one name, got {got}")
        return _Rows(index, strengths(strength, index), isinstance(rows, Tensor))

    def project(self, z: Tensor, normalize: bool = False) -> Tensor:
        """The edited rows of z [..., d], each by the projector that is its own.

        RuntimeError for a bank without a choice in this context, or with one for another number of
        rows.
        """
        if isinstance(self.projector, Projector):
            return self.projector.edit_features(z, normalize=normalize)
        index, strength, _ = self._chosen(z.shape[:-1])
        return self.projector.edit_features(z, index, strength, normalize)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`project(x @ weight.T + bias)`; x [..., in] to [..., d]."""
        if isinstance(self.projector, Projector):
            if self.projector.one_sided:  # of rows at a length that is known after the product
                return self.projector.edit_features(functional.linear(x, weight, bias))
            return ops.linear(x, weight, bias, **self.projector.factors(x.dtype))
        index, strength, _ = self._chosen(x.shape[:-1])
        if self.projector.one_sided:
            return self.projector.edit_features(functional.linear(x, weight, bias), index, strength)
        return ops.linear(x, weight, bias, **self.projector.operands(x, index, strength))

    def _chosen(self, shape: torch.Size) -> _Rows:
        n = shape.numel()
        said = _ROWS.get(None)  # a constant, for the sake of torch.compile
        chosen = None if said is None else said.get(self._key)
        if chosen is None:
            raise RuntimeError(
                "rows: a bank must be told whose the rows of a call are, got a call outside of "
                "`with plugin.rows(names):`"
            )
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise RuntimeError(
                "rows: a bank must not be exported in a model, where the rows of this call would "
                "become constants; export the model without it and call the bank on the features"
            )
        index, strength, lent = chosen
        if not lent and index.is_cuda and not torch.compiler.is_compiling():
            _check_capture()
        if index.ndim == 0:
            index = index.expand(n).contiguous()
        elif len(shape) == 2 and index.shape[0] == shape[0]:  # FLAVA projects every token of a row
            index, strength = (
                one if one is None or one.ndim == 0 else one[:, None].expand(shape).flatten()
                for one in (index, strength)
            )
        if index.shape[0] != n:
            raise RuntimeError(
                f"rows: rows must be as many as the call has, {n}, got {index.shape[0]}"
            )
        return _Rows(index, strength, lent)


def _check_capture() -> None:
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "rows: rows must be a tensor while a CUDA graph is being captured, whose values are "
            "then yours to change before a replay, got names"
        )


def strengths(strength: object, index: Tensor) -> Tensor | None:
    """Numbers as a tensor beside `index`, 0-dim or [n]; checked for their range."""
    if strength is None:
        return None
    if isinstance(strength, Tensor):
        given = strength
    else:
        numbers = list(strength) if isinstance(strength, Sequence) else [strength]
        for number in numbers:
            if not isinstance(number, Real):
                got = type(number).__name__
                raise TypeError(f"rows: strength must be numbers or a tensor, got {got}")
            if not 0 <= number <= 2:
                raise Refusal("rows", "strength", f"must be in [0, 2], got {number:g}")
        numbers = [float(number) for number in numbers]
        given = torch.tensor(numbers, dtype=torch.float32, device=index.device)
        given = given if isinstance(strength, Sequence) else given[0]
    if given.ndim and given.shape != index.shape:
        raise Refusal(
            "rows",
            "strength",
            f"must be 0-dim or {list(index.shape)} as rows is, got {list(given.shape)}",
        )
    return given.to(index.device)


class Asked(NamedTuple):
    """What one request of a batch wants for its row."""

    tenant: Name
    strength: float | None  # None: the entry's own


def has(bank: ProjectorBank, name: Name) -> bool:
    """Whether the bank can serve a name now; None, for rows that stay as they are, always."""
    names = (name,) if isinstance(name, str) else name
    return names is None or (len(names) > 0 and all(one in bank for one in names))


def serve(
    bank: ProjectorBank, rows: Tensor, asked: Sequence[Asked | None], normalize: bool = False
) -> tuple[Tensor, list[int]]:
    """Rows [n, d] of n requests, each edited as it asked, in one launch; and whose are lost.

    A request that is None, whose tenant is not in the bank, or for whose combination of tenants
    there is no room gets a row of NaN: for engines in which an exception would take every other
    request with it.
    """
    numbers = [torch.nan if one is None or one.strength is None else one.strength for one in asked]
    given = torch.tensor(numbers, dtype=torch.float32, device=rows.device)
    with bank.lock:  # nobody is removed between the look-up and the launch
        served = [one is not None and has(bank, one.tenant) for one in asked]
        try:
            index = bank.index(_names(asked, served))
        except ValueError:  # some combination that cannot be made, or for which there is no room
            for i in range(len(asked)):
                try:
                    bank.index(_names(asked[: i + 1], served[: i + 1]))
                except ValueError:
                    served[i] = False
            index = bank.index(_names(asked, served))
        given = torch.where(given.isnan(), bank.strengths[index.clamp_min(0)], given)
        edited = bank.edit_features(rows, index, given, normalize)
    lost = [i for i, ok in enumerate(served) if not ok]
    return blank(edited, lost), lost


def blank(rows: Tensor, lost: list[int]) -> Tensor:
    """`rows` [n, d] itself, with NaN in those that nobody may take for features."""
    if lost:
        rows[torch.tensor(lost, device=rows.device)] = torch.nan
    return rows


def _names(asked: Sequence[Asked | None], served: list[bool]) -> list[Name]:
    return [one.tenant if ok else None for one, ok in zip(asked, served, strict=True)]
