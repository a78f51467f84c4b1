"""What every method checks before it computes: rows to forget, rows to keep, and their history."""

from __future__ import annotations

import warnings
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from clipproj._version import __version__
from clipproj.text import Embeddings

SAME = 1 - 1e-6  # cosine from which two texts are one


def unit_rows(op: str, name: str, value: Embeddings | Tensor) -> Tensor:
    """Rows of `value` [m, d] in float64 and of length 1, on their device.

    Raises TypeError, or ValueError naming the row that is NaN, inf or zero.
    """
    rows = value.tensor if isinstance(value, Embeddings) else value
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        got = rows.dtype if isinstance(rows, Tensor) else type(value).__name__
        raise TypeError(f"{op}: {name} must be Embeddings or a floating point tensor, got {got}")
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{op}: {name} must be [m, d] with m >= 1, got {list(rows.shape)}")
    rows = rows.detach().double()
    lengths = torch.linalg.vector_norm(rows, dim=1)
    for wrong, what in ((~rows.isfinite().all(1), "a NaN or inf"), (lengths == 0, "a zero vector")):
        if wrong.any():
            row = int(wrong.nonzero()[0])
            label = f" ({value.names[row]})" if isinstance(value, Embeddings) else ""
            kind = "nonzero rows" if what == "a zero vector" else "finite rows"
            raise ValueError(
                f"{op}: {name} must be [m, d] with {kind}, got {what} in row {row}{label}"
            )
    return rows / lengths[:, None]


def forget_and_keep(
    op: str, forget: Embeddings | Tensor, keep: Embeddings | Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Unit rows of both, after the checks that need both: one space, nothing on both lists."""
    f = unit_rows(op, "forget", forget)
    if keep is None:
        return f, None
    k = unit_rows(op, "keep", keep).to(f.device)
    if f.shape[1] != k.shape[1]:
        raise ValueError(f"{op}: keep must be [m, {f.shape[1]}] as forget is, got {list(k.shape)}")
    if isinstance(forget, Embeddings) and isinstance(keep, Embeddings):
        if None not in (forget.head_hash, keep.head_hash) and forget.head_hash != keep.head_hash:
            raise ValueError(
                f"{op}: keep must come from the model that forget comes from, got {keep.model} "
                f"with head {str(keep.head_hash)[:12]}, not {forget.model} with head "
                f"{str(forget.head_hash)[:12]}"
            )
        if forget.templates != keep.templates:
            warnings.warn(
                f"{op}: keep and forget were embedded with different templates "
                f"({len(keep.templates)} and {len(forget.templates)}): what sets those apart is "
                "erased with the class; embed both alike",
                stacklevel=3,
            )
        kept = {name.casefold() for name in keep.names}
        both = [name for name in forget.names if name.casefold() in kept]
        if both:
            raise ValueError(f"{op}: keep must not name what forget names, got {both} in both")
    same = (f @ k.T > SAME).nonzero()
    if len(same):
        i, j = same[0].tolist()
        raise ValueError(f"{op}: forget must differ from keep, got row {i} equal to keep row {j}")
    return f, k


def provenance(
    method: str, parameters: dict[str, Any], forget: Any = None, keep: Any = None
) -> dict[str, Any]:
    """What a projector's file says of where it comes from; plain JSON."""
    out: dict[str, Any] = {"method": method, "parameters": parameters, "clipproj": __version__}
    out["torch"] = torch.__version__
    out["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for name, value in (("forget", forget), ("keep", keep)):
        if isinstance(value, Embeddings):
            out[name] = {"names": list(value.names), "templates": list(value.templates)}
            known = {"model": value.model, "head_hash": value.head_hash}
            out = {key: told for key, told in known.items() if told is not None} | out
        elif isinstance(value, Tensor):
            out[name] = {"rows": len(value)}
    return out
