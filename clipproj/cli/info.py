"""What a file is: one of ours, or a checkpoint and the heads in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from clipproj import files
from clipproj.audit.samples import Samples
from clipproj.bank import ProjectorBank
from clipproj.certificates import Certificate
from clipproj.checkpoints.state import locate, read_edits, read_state, size
from clipproj.editing.attachment import AttachReceipt
from clipproj.editing.receipt import Receipt
from clipproj.models.families import head_weights
from clipproj.projector import load
from clipproj.refusal import Refusal


def describe(path: Path) -> dict[str, Any]:
    """Facts about a file of ours, a checkpoint, or the checkpoint in a folder; plain JSON.

    Raises FileNotFoundError, or ValueError for a damaged file or one that is none of these.
    """
    if not path.exists():
        raise FileNotFoundError(f"info: file must exist, got {path}")
    file = locate(path)
    if not _ours(file):
        return _checkpoint(file)
    kind = files.read(file).kind
    if kind not in _DESCRIBE:
        raise Refusal("info", "file", f"must be of a known kind, got {kind!r} in {file}")
    return {"file": str(file), "kind": kind} | _DESCRIBE[kind](file)


def _projector(file: Path) -> dict[str, Any]:
    projector = load(file)
    return {
        "side": projector.side,
        "dim": projector.dim,
        "rank": projector.rank,
        "form": projector.form,
        "strength": round(float(projector.strength), 6),
        "hash": projector.content_hash(),
    } | _history(projector.provenance)


def _bank(file: Path) -> dict[str, Any]:
    bank = ProjectorBank.load(file)
    return {
        "side": bank.side,
        "dim": bank.dim,
        "capacity": bank.capacity,
        "free": bank.free,
        "hash": bank.content_hash(),
        "projectors": {
            entry.name: f"rank {entry.rank}, strength {entry.strength:g}, {entry.hash[:12]}"
            for entry in map(bank.entry, bank.names())
        },
    }


def _receipt(file: Path) -> dict[str, Any]:
    receipt = Receipt.load(file)
    return {
        "edit": receipt.label,
        "tower": receipt.tower,
        "head": [name for name in (receipt.weight, receipt.bias) if name],
        "dtype": receipt.dtype,
        "strength": round(receipt.strength, 6),
        "projector": receipt.projector_hash,
        "head_before": receipt.head_before,
        "head_after": receipt.head_after,
        "created": receipt.created,
    } | _proven(receipt.certificate)


def _attachment(file: Path) -> dict[str, Any]:
    receipt = AttachReceipt.load(file)
    return {
        "edit": receipt.label,
        "tower": receipt.tower,
        "attached_at": receipt.module,
        "strength": round(receipt.strength, 6),
        "projector": receipt.projector_hash,
        "head": receipt.head,
        "created": receipt.created,
    } | _proven(receipt.certificate)


def _proven(certificate: Certificate | None) -> dict[str, str]:
    return {} if certificate is None else {"certificate": str(certificate)}


def _undo(file: Path) -> dict[str, Any]:
    meta = files.read(file, "undo").meta
    return {
        "edit": meta["label"],
        "tower": meta["tower"],
        "head": [name for name in meta["names"] if name],
        "restores": meta["before"],
        "applies_to": meta["after"],
        "created": meta["created"],
    }


def _samples(file: Path) -> dict[str, Any]:
    samples = Samples.load(file)
    return {
        "model": samples.classes.model,
        "images": len(samples),
        "dim": samples.classes.dim,
        "classes": _some(samples.names),
        "domains": _some(sorted(set(samples.domains or ()))),
    }


def _texts(file: Path) -> dict[str, Any]:
    found = files.read(file, "texts")
    rows = found.tensors["texts"]
    return {
        "model": found.meta["model"],
        "template": found.meta["template"],
        "texts": len(rows),
        "dim": rows.shape[1],
    }


_DESCRIBE = {
    "projector": _projector,
    "bank": _bank,
    "receipt": _receipt,
    "attachment": _attachment,
    "undo": _undo,
    "samples": _samples,
    "texts": _texts,
}


def edited_since(checkpoint: Path, projector: str, tower: str) -> str:
    """What a checkpoint's own log knows about edits of a head after that with `projector`.

    Args:
        projector: its content hash.

    Returns:
        The end of a sentence; empty when there are none, or the log does not have that edit.
    """
    edits = [entry for entry in read_edits(checkpoint) if entry["tower"] == tower]
    places = [i for i, entry in enumerate(edits) if entry["projector"] == projector]
    later = edits[places[-1] + 1 :] if places else []
    if not later:
        return ""
    return f"; edited again since by {quoted(reversed(later))}: undo that first"


def quoted(edits: Iterable[Mapping[str, Any]]) -> str:
    """Edits of a checkpoint's log by what they forget."""
    return ", ".join(f'"{", ".join(entry["forget"])}"' for entry in edits)


def _ours(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("format", "").startswith("clipproj-")
    except SafetensorError as error:
        if file.suffix == ".safetensors":
            raise Refusal("info", "file", f"must be whole, got {file}: {error}") from error
        return False


def _history(provenance: dict[str, Any]) -> dict[str, Any]:
    facts = {k: v for k, v in provenance.items() if k not in ("forget", "keep", "certificate")}
    if "certificate" in provenance:
        facts |= _proven(Certificate.from_json(provenance["certificate"]))
    for what in ("forget", "keep"):
        names = provenance.get(what, {}).get("names")
        if names:
            facts[what] = _some(names)
    return facts


def _some(names: Sequence[str]) -> list[str]:
    return [*names[:8], *([f"{len(names) - 8} more"] if names[8:] else ())]


def _checkpoint(file: Path) -> dict[str, Any]:
    state = read_state(file)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())
    return {
        "file": str(file),
        "kind": "checkpoint",
        "tensors": len(state),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "bytes": size(state),
        "dtypes": dict(dtypes),
        "heads": {
            name: {"shape": list(state[name].shape), "sha256": files.sha256(state[name])}
            for name in head_weights(state)
        },
        "edits": read_edits(file, state),
    }
