"""The two banks of a replica: each tenant's projector for pictures, its transpose for texts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipproj import ops
from clipproj.bank import ProjectorBank
from clipproj.projector import SIDES, Projector
from clipproj.serve.errors import ServiceError, bad
from clipproj.serve.inputs import Input, Name


@dataclass(frozen=True)
class Plan:
    """What is applied to a row: an entry of a bank (None: nothing), and how strongly."""

    key: Name | None
    strength: float


class Tenants:
    """Projectors by name, for both sides. Whoever looks up and applies holds `lock` for both.

    Args:
        dim: width of features. capacity: directions over all tenants. combine: names at once.
        device: of the features.
    """

    def __init__(self, dim: int, capacity: int, combine: int, device: torch.device) -> None:
        self.dim, self.capacity, self.combine, self.device = dim, capacity, combine, device
        self.lock = threading.RLock()
        self.epoch: str | None = None
        self.version = 0
        self._projectors: dict[str, Projector] = {}
        self._banks = self._new_banks()

    def __len__(self) -> int:
        return len(self._projectors)

    def apply(
        self, epoch: str, version: int, projectors: Mapping[str, Projector | None], full: bool
    ) -> None:
        """Set these tenants, remove those that are None and, with `full`, all others.

        ValueError for a projector that does not fit; the version stays, so the change comes again.
        """
        with self.lock:
            for name in [n for n in self._projectors if full and n not in projectors]:
                self._set(name, None)
            for name, projector in projectors.items():
                known = self._projectors.get(name)
                same = None not in (known, projector) and (
                    known.content_hash() == projector.content_hash()
                )
                if not same and not (known is None and projector is None):
                    self._set(name, projector)
            self.epoch, self.version = epoch, version

    def find(self, inputs: Sequence[Input]) -> list[Plan]:
        """What to apply to each input.

        Raises ServiceError: 404 for a tenant that does not exist, 400 for one without a text form,
        several that cannot be combined, or a strength out of range; 507 where a combination has no
        room. Hold `lock` until it is applied.
        """
        return [self._find(one, i) for i, one in enumerate(inputs)]

    def _find(self, one: Input, i: int) -> Plan:
        if one.projector is None:
            return Plan(None, 1.0)
        names = (one.projector,) if isinstance(one.projector, str) else one.projector
        for name in names:
            if name not in self._projectors:
                raise ServiceError(
                    404,
                    f"input {i}: there is no tenant {name!r}",
                    f"input[{i}].projector",
                    "tenant_not_found",
                )
            if name not in self._banks[one.side]:
                raise bad(
                    f"input {i}: tenant {name!r} has an affine projector, which has no form for "
                    "texts; apply it to pictures or features",
                    f"input[{i}].projector",
                    "no_text_form",
                )
        key = self._key(names, one.side)
        entry = self._entry(key, one.side, i)
        return Plan(key, entry.strength if one.strength is None else one.strength)

    def _key(self, names: tuple[str, ...], side: str) -> Name:
        """(P Q)^T is Q^T P^T: on texts what comes last is done first."""
        if len(names) == 1:
            return names[0]
        return names if side == "image" else names[::-1]

    def _entry(self, key: Name, side: str, i: int) -> Any:
        try:
            return self._banks[side].entry(key)
        except ValueError as error:
            if isinstance(key, str):
                raise
            first = error
        try:  # old combinations fill the bank; a new bank has only tenants
            self._banks = self._new_banks()
            return self._banks[side].entry(key)
        except ValueError as error:
            text = f"input {i}: {', '.join(key)} cannot be combined: {first}"
            full = "full" in str(error)
            raise ServiceError(
                507 if full else 400,
                text,
                f"input[{i}].projector",
                "bank_full" if full else "invalid_value",
            ) from error

    def project(self, side: str, x: Tensor, plans: Sequence[Plan]) -> Tensor:
        """Unit rows of x [n, d], each edited by its plan, in one call."""
        bank = self._banks[side]
        return bank(x, bank.index([p.key for p in plans]), self._strengths(plans), normalize=True)

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
        bank = self._banks[side]
        index = bank.index([p.key for p in plans])
        factors = bank.factors(x.dtype)
        return ops.logits(
            x,
            classes.to(x.dtype),
            factors["read"],
            factors["write"],
            factors["offset"],
            self._strengths(plans),
            scale,
            bias,
            spans=factors["spans"],
            index=index,
        )

    def _strengths(self, plans: Sequence[Plan]) -> Tensor:
        return torch.tensor([p.strength for p in plans], dtype=torch.float32, device=self.device)

    def receipts(
        self, inputs: Sequence[Input], plans: Sequence[Plan], rows: Tensor
    ) -> list[dict[str, Any]]:
        """For each returned row [n, d], what was applied and how much of that is left."""
        out = []
        for one, plan, row in zip(inputs, plans, rows, strict=True):
            if plan.key is None:
                out.append({"projector": None, "hash": None, "side": one.side, "strength": None,
                            "residual": None})  # fmt: skip
                continue
            bank = self._banks[one.side]
            named = one.projector if isinstance(one.projector, str) else list(one.projector)
            out.append(
                {
                    "projector": named,
                    "hash": bank.entry(plan.key).hash,
                    "side": one.side,
                    "strength": plan.strength,
                    "residual": float(bank.projector(plan.key).residual(row)),
                }
            )
        return out

    def _set(self, name: str, projector: Projector | None) -> None:
        """One change in both banks; where they have no room for it, new ones have."""
        if projector is None:
            del self._projectors[name]
            for bank in self._banks.values():
                if name in bank:
                    bank.remove(name)
            return
        self._projectors[name] = projector
        try:
            for side, bank in self._banks.items():
                form = _form(projector, side)
                if form is None:
                    if name in bank:
                        bank.remove(name)
                elif name in bank:
                    bank.replace(name, form)
                else:
                    bank.add(name, form)
        except ValueError:  # full of combinations and of what was replaced
            self._banks = self._new_banks()

    def _new_banks(self) -> dict[str, ProjectorBank]:
        # as much again for combinations
        banks = {
            side: ProjectorBank(self.dim, 2 * self.capacity, side=side, device=self.device)
            for side in SIDES
        }
        for name, projector in self._projectors.items():
            for side, bank in banks.items():
                form = _form(projector, side)
                if form is not None:
                    bank.add(name, form)
        return banks


def _form(projector: Projector, side: str) -> Projector | None:
    """What is applied on a side; None for an affine projector's texts."""
    if side == "image":
        return projector
    return None if projector.offset is not None else projector.T
