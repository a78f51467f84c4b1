"""Receipts: what an edit did to a head, measured, so that its result is recognised elsewhere."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clipproj import files
from clipproj._version import __version__
from clipproj.editing.weights import Weights, rows_of
from clipproj.models.heads import Head
from clipproj.projector import Projector, stored
from clipproj.refusal import Refusal

if TYPE_CHECKING:
    from clipproj.certificates.certificate import Certificate

PROBES = 8  # columns of the sketch


@dataclass(frozen=True, eq=False)
class Receipt:
    """One edit of one head, measured: enough to recognise its result without the original weights.

    The n rows of a head are the vectors it sums up to features: the rows of `x @ A` heads, the
    columns of an `nn.Linear.weight`, and the bias as the last one. A receipt holds measurements
    of the original rows, from which those of the edited rows follow by the edit's formula.

    Attributes:
        tower, weight, bias, dim, dtype: the head: names of its parameters, the weight's embedding
            dimension, the type it had when edited.
        head_before, head_after: SHA-256 of weight and bias, before the edit and after.
        projector: what was folded: with the strength used, swapped when the tower asked for it. On
            the CPU.
        projector_hash: `content_hash()` of the projector that `edit` was given.
        measured: [n, k] float64, the original rows times read^T.
        sketch: [n, 8] float64, the original rows times random vectors that follow from
            `head_before`. It sees what lies outside span(read).
        norms: [n] float64, lengths of the original rows.
        created, clipproj, torch: ISO date and versions.
        certificate: what is proven of the projector that was folded, or None.
    """

    tower: str
    weight: str
    bias: str | None
    dim: int
    dtype: str
    head_before: str
    head_after: str
    projector: Projector
    projector_hash: str
    measured: Tensor = field(repr=False)
    sketch: Tensor = field(repr=False)
    norms: Tensor = field(repr=False)
    created: str
    clipproj: str
    torch: str
    certificate: Certificate | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_certificate("Receipt", self.projector, self.certificate)

    @classmethod
    def make(
        cls, head: Head, given: Projector, folded: Projector, before: Weights, after: Weights
    ) -> Receipt:
        """The receipt of having folded `folded`, a form of `given`, into the tensors `before`."""
        if head.weight is None or head.dim is None:
            raise Refusal("Receipt", "head", f"must have a weight, got {head}")
        head_before = files.sha256(*before)
        rows = rows_of(before, head.dim)
        read = folded.linear_factors("Receipt", torch.float64)["read"]
        return cls(
            tower=head.tower,
            weight=head.weight,
            bias=head.bias,
            dim=head.dim,
            dtype=dtype_name(before[0].dtype),
            head_before=head_before,
            head_after=files.sha256(*after),
            projector=copy.deepcopy(folded).cpu(),
            projector_hash=given.content_hash(),
            measured=(rows @ read.T).cpu(),
            sketch=(rows @ probes(folded.dim, head_before).to(rows.device)).cpu(),
            norms=rows.norm(dim=1).cpu(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            clipproj=__version__,
            torch=torch.__version__,
        )

    @property
    def strength(self) -> float:
        """The strength that was folded."""
        return float(self.projector.strength)

    @property
    def label(self) -> str:
        """What was erased, in a few words: class names where known, else method and hash."""
        return label_of(self.projector, self.projector_hash)

    def with_certificate(self, certificate: Certificate | None) -> Receipt:
        """The same with a certificate of what was folded: `clipproj.certificate(receipt.projector,
        keep)`. ValueError for one of another projector."""
        return replace(self, certificate=certificate)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the receipt, atomically. Raises OSError."""
        p = self.projector
        tensors = {name: getattr(self, name) for name in ("measured", "sketch", "norms")}
        factors = {"read": p.read, "offset": p.offset, "strength": p.strength}
        factors |= {"write": None if p.symmetric else p.write, "forget": p.forget}
        tensors |= {name: factor for name, factor in factors.items() if factor is not None}
        meta = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in tensors}
        meta["projector"] = {"side": p.side, "provenance": p.provenance}
        certificate = meta.pop("certificate")
        meta |= {} if certificate is None else {"certificate": certificate.to_json()}
        files.write(path, "receipt", tensors, meta, version=1 if certificate is None else 2)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Receipt:
        """Read what `save` wrote.

        Raises FileNotFoundError, or ValueError when the file is damaged, foreign, no receipt, of a
        newer format, or has another projector's certificate.
        """
        artefact = files.read(path, "receipt")
        tensors, meta = artefact.tensors, artefact.meta
        projector = stored(tensors, **meta["projector"])
        told: dict[str, Any] = {name: tensors[name] for name in ("measured", "sketch", "norms")}
        told |= meta | {"projector": projector, "certificate": read_certificate(meta)}
        return cls(**told)


def label_of(projector: Projector, digest: str | None = None) -> str:
    """What a projector erases, in a few words: class names where known, else method and hash, its
    own unless another is given."""
    names = projector.provenance.get("forget", {}).get("names")
    if names:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    method = projector.provenance.get("method", "projector")
    return f"{method} {(digest or projector.content_hash())[:8]}"


def check_certificate(op: str, projector: Projector, certificate: Certificate | None) -> None:
    """ValueError, in the name of `op`, for a certificate of another projector than this."""
    if certificate is not None and certificate.projector != (own := projector.content_hash()):
        got = certificate.projector
        raise Refusal(op, "certificate", f"must be of projector {own[:12]}, got one of {got[:12]}")


def read_certificate(meta: Mapping[str, Any]) -> Certificate | None:
    """The certificate in a receipt's metadata, or None. ValueError for one that was changed."""
    if "certificate" not in meta:
        return None
    # late: with it come the methods, which whoever serves features has no use for
    from clipproj.certificates.certificate import Certificate

    return Certificate.from_json(meta["certificate"])


def probes(d: int, seed: str) -> Tensor:
    """[d, 8] float64, uniform in [-sqrt 3, sqrt 3], the same on every machine.

    Uniform entries of variance 1 are strictly sub-Gaussian: for any row e chosen without them
    P(|e G| > t |e|) is at most the Chernoff bound of a chi variable with 8 degrees of freedom,
    (t^2/8)^4 exp(4 - t^2/2), 2e-12 at t = 9.
    """
    raw = hashlib.shake_256(seed.encode()).digest(4 * d * PROBES)
    unit = np.frombuffer(raw, "<u4").reshape(d, PROBES) / 2.0**32
    return torch.from_numpy((2 * unit - 1) * math.sqrt(3))


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32", as files keep it."""
    return str(dtype).removeprefix("torch.")
