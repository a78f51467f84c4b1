"""What stands in a live model for a module and edits its features, and the receipt of that."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipproj import files
from clipproj._version import __version__
from clipproj.editing.receipt import check_certificate, label_of, read_certificate
from clipproj.editing.weights import key_of, keys_of
from clipproj.models.heads import check_module, sign_hash, unwrap
from clipproj.projector import Projector

if TYPE_CHECKING:
    from clipproj.certificates.certificate import Certificate


class Attachment(nn.Module):
    """A module that stands in a model for another, whose features `projector` edits on the fly."""

    @property
    def projector(self) -> nn.Module:
        """A Projector, or a ProjectorBank."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class AttachReceipt:
    """One projector attached to one tower: enough to recognise it there, or the bare tower.

    Attributes:
        tower: "image" or "text".
        module: the dotted name of the module that the projector stands for.
        parameters: names of the parameters that the receipt speaks of: the head's weight and bias,
            or, of a tower without one, those of the module or of what it is part of.
        head, signs: SHA-256 of their bits, and of their signs, which no cast turns.
        projector: what was attached: swapped when the tower asked for it. On the CPU.
        projector_hash: its `content_hash()`.
        created, clipproj, torch: ISO date and versions.
        certificate: what is proven of the projector, or None.
    """

    tower: str
    module: str
    parameters: tuple[str, ...]
    head: str
    signs: str
    projector: Projector
    projector_hash: str
    created: str
    clipproj: str
    torch: str
    certificate: Certificate | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_certificate("AttachReceipt", self.projector, self.certificate)

    @classmethod
    def make(
        cls,
        model: nn.Module,
        tower: str,
        module: str,
        parameters: Sequence[str],
        projector: Projector,
    ) -> AttachReceipt:
        """The receipt of `projector` standing at `module` in a model."""
        tensors = _tensors("AttachReceipt", model, parameters)
        return cls(
            tower=tower,
            module=module,
            parameters=tuple(parameters),
            head=files.sha256(*tensors),
            signs=sign_hash(*tensors),
            projector=copy.deepcopy(projector).cpu(),
            projector_hash=projector.content_hash(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            clipproj=__version__,
            torch=torch.__version__,
        )

    @property
    def strength(self) -> float:
        """The strength of what was attached."""
        return float(self.projector.strength)

    @property
    def label(self) -> str:
        """What is erased, in a few words: class names where known, else method and hash."""
        return label_of(self.projector)

    def with_certificate(self, certificate: Certificate | None) -> AttachReceipt:
        """The same with a certificate of its projector. ValueError for one of another."""
        return replace(self, certificate=certificate)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the receipt, atomically. Raises OSError."""
        tensors, projector = self.projector.parts()
        meta: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        certificate = meta.pop("certificate")
        meta["projector"] = projector
        meta |= {} if certificate is None else {"certificate": certificate.to_json()}
        files.write(path, "attachment", tensors, meta, version=files.FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttachReceipt:
        """Read what `save` wrote.

        Raises FileNotFoundError, or ValueError when the file is damaged, foreign, no such receipt,
        of a newer format, or has another projector's certificate.
        """
        artefact = files.read(path, "attachment")
        meta: dict[str, Any] = artefact.meta | {
            "projector": Projector.from_parts(artefact.tensors, artefact.meta["projector"]),
            "parameters": tuple(artefact.meta["parameters"]),
            "certificate": read_certificate(artefact.meta),
        }
        return cls(**meta)


def found(target: object, receipt: AttachReceipt) -> tuple[str, bool, str]:
    """What `verify` says of a live model: "attached", "unedited" or "tampered", whether the head
    has the same bits, and all of it in a sentence.

    TypeError for what is no module: no checkpoint tells what stands in a model. ValueError for a
    model without such parameters, and for a receipt whose certificate is of another projector.
    """
    if not isinstance(target, nn.Module):
        got = type(target).__name__
        raise TypeError(f"verify: target must be a model for an attached projector, got {got}")
    check_module("verify", target)
    check_certificate("verify", receipt.projector, receipt.certificate)
    model = unwrap(target)
    tensors = _tensors("verify", model, receipt.parameters)
    exact = files.sha256(*tensors) == receipt.head
    what, edit = f"{receipt.tower} tower", f"{receipt.label}, strength {receipt.strength:g}"
    if not exact and sign_hash(*tensors) != receipt.signs:
        return "tampered", False, f"{what} has another head than {edit} was attached to"
    bits = "its head bit for bit" if exact else "its head with other bits but the same signs"
    modules = dict(model.named_modules(remove_duplicate=False))
    names = keys_of(modules, receipt.module)
    standing = modules[names[0]] if len(names) == 1 else None
    if not isinstance(standing, Attachment):
        return "unedited", exact, f"{what} not edited, nothing is attached to it ({edit}); {bits}"
    p = standing.projector
    if not isinstance(p, Projector) or p.content_hash() != receipt.projector_hash:
        got = f"projector {p.content_hash()[:12]}" if isinstance(p, Projector) else "a bank"
        want = receipt.projector_hash[:12]
        return "tampered", exact, f"{what} has {got} attached to it, not {want} ({edit})"
    return "attached", exact, f"{what} edited on the fly ({edit}), {bits}"


def _tensors(op: str, model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    parameters: dict[str, Tensor] = dict(unwrap(model).named_parameters(remove_duplicate=False))
    return [parameters[key_of(op, parameters, name)] for name in names]
