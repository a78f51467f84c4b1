"""The two banks of a replica: each tenant's projector for images, its transpose for texts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipproj import ops
from clipproj.bank import BankFull, ProjectorBank
from clipproj.projector import TOWERS, Projector
from clipproj.serve.errors import ServiceError, invalid
from clipproj.serve.inputs import Item


@dataclass(frozen=True)
class Plan:
    """What is applied to a row.

    Attributes:
        names: of tenants, in the order in which they are applied; none for nothing.
        strength: in place of the projector's own, or None.
    """

    names: tuple[str, ...] = ()
    strength: float | None = None

    @property
    def key(self) -> str | tuple[str, ...] | None:
        """What the bank calls it."""
        return None if not self.names else self.names[0] if len(self.names) == 1 else self.names


@dataclass(frozen=True)
class Form:
    """A tenant's projector for one side, its content hash, and what receipts need of it.

    Attributes:
        inverse: [k, d] float64, of `read`: found once, not for each row.
    """

    projector: Projector
    hash: str
    inverse: Tensor

    @classmethod
    def of(cls, projector: Projector) -> Form:
        """The form of a projector, its hash and inverse computed once."""
        inverse = torch.linalg.pinv(projector.read.double()).T
        return cls(projector, projector.content_hash(), inverse)

    def residual(self, row: Tensor) -> float | None:
        """`Projector.residual` of a row [d] at length 1; None for an affine projector, whose offset
        says nothing of unit rows."""
        p, z = self.projector, row.double()
        if p.offset is not None and not p.one_sided:
            return None
        measured = z / z.norm().clamp_min(torch.finfo(z.dtype).tiny) @ p.read.double().T
        if p.one_sided:
            measured = (measured if p.offset is None else measured - p.offset).clamp_min(0)
        return float((measured @ self.inverse).norm())


class Tenants:
    """Projectors by name, for both sides.

    Args:
        dim: width of features. capacity: directions over all tenants; the banks have room for as
            many again, for combinations and for old and new side by side.
        device: of the features.
        one_sided: the most directions of a one-sided projector; it edits image features alone.

    Attributes:
        lock: whoever looks up and applies holds it around both.
        epoch, version: of the store's state that was last applied.
    """

    def __init__(self, dim: int, capacity: int, device: torch.device, one_sided: int) -> None:
        self.lock = threading.RLock()
        self.epoch, self.version = 0, 0
        self._device = device
        self._forms: dict[str, dict[str, Form]] = {side: {} for side in TOWERS}
        self._banks = {
            side: ProjectorBank(
                dim,
                2 * capacity,
                entries=max(65_536, 4 * capacity),
                side=side,
                one_sided=one_sided if side == "image" else 0,
                device=device,
            )
            for side in TOWERS
        }

    def __len__(self) -> int:
        return len(self._forms["image"])

    def apply(
        self, epoch: int, version: int, projectors: Mapping[str, Projector | None], full: bool
    ) -> None:
        """Set these tenants, remove those that are None and, with `full`, all others.

        What a batch was told may come after what a later one was told: then it is nothing new, and
        would put back what has changed since.

        ValueError where one does not fit; the version stays, so that the change comes again.
        """
        with self.lock:
            if (epoch, version) <= (self.epoch, self.version):
                return
            for name in [n for n in self._forms["image"] if full and n not in projectors]:
                self._set(name, None)
            # Those that go first, so that there is room for those that come.
            pending = sorted(projectors, key=lambda name: projectors[name] is not None)
            for i, name in enumerate(pending):
                try:
                    self._set(name, projectors[name])
                except BankFull:  # room, but in pieces
                    self._repack(without=pending[i:])
                    self._set(name, projectors[name])
            self.epoch, self.version = epoch, version

    def _repack(self, without: Sequence[str]) -> None:
        """All tenants but these taken out and put in again, side by side."""
        for side, bank in self._banks.items():
            for name in bank.names():
                bank.remove(name)
            bank.recycle()  # indices live in one call here, and the lock is held
            for name in without:
                self._forms[side].pop(name, None)
            for name, form in self._forms[side].items():
                bank.add(name, form.projector, force=True)

    def find(self, inputs: Sequence[Item]) -> list[Plan]:
        """What to apply to each input. Hold `lock` until it is applied.

        Raises ServiceError: 404 for a tenant that does not exist, 400 for one without a text form
        or several that cannot be combined, 507 where a combination has no room.
        """
        return [self._find(one, i) for i, one in enumerate(inputs)]

    def _find(self, one: Item, i: int) -> Plan:
        if not one.projector:
            return Plan()
        names = one.projector
        param = f"input[{i}].projector"
        for name in names:
            if name not in self._forms["image"]:
                text = f"{param} must name a tenant, got {name!r}, which there is not"
                raise ServiceError(404, text, param, "tenant_not_found")
            if name not in self._forms[one.side]:
                form = self._forms["image"][name].projector.form
                why = f"must have a form for texts, got the {form} one of {name!r}; apply it to "
                raise invalid(param, f"{why}images or embeddings of them", "no_text_form")
        parts = [self._forms[one.side][name].projector for name in names]
        own, forms = {float(part.strength) for part in parts}, {part.form for part in parts}
        strength = one.strength
        alike = len(own) == 1 and forms in ({"symmetric"}, {"one-sided"})
        if len(names) > 1 and strength is not None and not alike:
            why = "must be left out with several projectors unless all are symmetric, or all "
            why += "one-sided, and of one strength: it would not replace that of each"
            raise invalid(f"input[{i}].strength", why)
        if strength is None and len(names) > 1 and len(own) == 1:
            strength = own.pop()  # of all of them at once; a tenant alone was measured as it is
        rank = sum(part.rank for part in parts)
        if strength is not None and strength > 1 and rank > 1 and forms != {"one-sided"}:
            why = f"must be at most 1 for the {rank} directions of {', '.join(names)}, where "
            why += f"reflections cross, got {strength:g}"
            raise invalid(f"input[{i}].strength", why)
        if one.side == "text":
            names = names[::-1]  # (P Q)^T is Q^T P^T
        plan = Plan(names, one.strength)
        if len(names) > 1:
            try:
                self._index(one.side, [plan])
            except ServiceError as error:
                text = f"input[{i}].{error.message}"
                raise ServiceError(error.status, text, param, error.code) from error
        return plan

    def project(self, side: str, x: Tensor, plans: Sequence[Plan]) -> Tensor:
        """Unit rows of x [n, d], each edited by its plan, in one call."""
        index = self._index(side, plans)
        strength = self._strengths(side, index, plans)
        return self._banks[side].edit_features(x, index, strength, normalize=True)

    def logits(
        self,
        side: str,
        x: Tensor,
        plans: Sequence[Plan],
        classes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """[n, C] logits of x [n, d] against unit rows [C, d], each edited by its plan."""
        index = self._index(side, plans)
        strength = self._strengths(side, index, plans)
        bank = self._banks[side]
        operands = bank.operands(x, index, strength)
        x = bank.as_measured(x, index)
        return ops.logits(x, classes.to(x.dtype), scale=scale, bias=bias, **operands)

    def _index(self, side: str, plans: Sequence[Plan]) -> Tensor:
        """[n] int32. ServiceError where a combination cannot be made."""
        bank, keys = self._banks[side], [plan.key for plan in plans]
        try:
            try:
                return bank.index(keys)
            except BankFull:
                bank.recycle()  # indices live in one call here, and the lock is held
                return bank.index(keys)
        except ValueError as error:
            several = max((plan.names for plan in plans), key=len)
            why = f"must be able to combine {', '.join(several)}: {error}"
            if isinstance(error, BankFull):
                raise ServiceError(507, f"projector {why}", "projector", "bank_full") from error
            raise invalid("projector", why) from error

    def _strengths(self, side: str, index: Tensor, plans: Sequence[Plan]) -> Tensor:
        """[n] float32: of each row the strength asked for, else the entry's own."""
        own = self._banks[side].strengths[index.clamp_min(0)]
        asked = [torch.nan if p.strength is None else p.strength for p in plans]
        asked = torch.tensor(asked, dtype=torch.float32, device=self._device)
        return torch.where(asked.isnan(), own, asked)

    def receipts(
        self, inputs: Sequence[Item], plans: Sequence[Plan], rows: Tensor, unedited: Tensor
    ) -> list[dict[str, Any]]:
        """For each returned row [n, d], what was applied, and how much of that it still has,
        beside what the row that was not edited had.

        `hash`, `residual` and `before` are lists where `projector` is, in the same order.
        """
        out = []
        for one, plan, row, was in zip(inputs, plans, rows, unedited, strict=True):
            receipt = {"projector": None, "side": one.side, "hash": None,
                       "strength": None, "residual": None, "before": None}  # fmt: skip
            if plan.names:
                strength = self._strengths(one.side, self._index(one.side, [plan]), [plan])
                several = len(one.projector) > 1
                forms = [self._forms[one.side][name] for name in one.projector]
                hashes = [form.hash for form in forms]
                left, before = ([form.residual(z) for form in forms] for z in (row, was))
                receipt |= {
                    "projector": list(one.projector) if several else one.projector[0],
                    "hash": hashes if several else hashes[0],
                    "strength": float(strength),
                    "residual": left if several else left[0],
                    "before": before if several else before[0],
                }
            out.append(receipt)
        return out

    def _set(self, name: str, projector: Projector | None) -> None:
        """One change, in both banks."""
        for side, bank in self._banks.items():
            form = None if projector is None else form_for(projector, side)
            known = self._forms[side].get(name)
            if form is None:
                if known is not None:
                    bank.remove(name)
                    del self._forms[side][name]
                continue
            if known is not None and known.hash == form.content_hash():
                continue
            change = bank.add if known is None else bank.replace
            made = Form.of(form)
            try:
                change(name, form, force=True)  # whose model it is has been checked
            except BankFull:  # of indices, or of rows
                bank.recycle()
                change(name, form, force=True)
            self._forms[side][name] = made


def form_for(projector: Projector, side: str) -> Projector | None:
    """What is applied on a side; None for texts of an affine or a one-sided projector, which have
    no transpose."""
    if side != projector.side and (projector.one_sided or projector.offset is not None):
        return None
    return projector.for_tower(side)
