"""Edits as files keep them: plain JSON records, read in one place and held against the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from clipproj import files
from clipproj.editing.receipt import Receipt
from clipproj.editing.weights import Original, Weights, weights_of
from clipproj.models.heads import sign_hash
from clipproj.refusal import Refusal

EDITS = "clipproj"  # their key in a config.json, an index of shards, a safetensors file's metadata

# Of an edit: projector (its hash), forget (names), tower, strength; its head (names of weight and
# bias) and, of what the edit left there, head_after (SHA-256) and signs_after, which a cast keeps;
# loss, where it was measured: by how much accuracy on all other classes fell.
Record = dict[str, Any]

_MUST: dict[str, type | tuple[type, ...]] = {
    "projector": str, "forget": list, "tower": str, "strength": (int, float),
}  # fmt: skip
_MAY = {"head": list, "head_after": str, "signs_after": str | None, "loss": (int, float)}


def make(receipt: Receipt, before: Weights, after: Weights) -> Record:
    """Of one edit, which took the tensors of a head from `before` to `after`."""
    names = receipt.projector.provenance.get("forget", {}).get("names")
    signs = sign_hash(*after)
    return {
        "projector": receipt.projector_hash,
        "forget": list(names or [receipt.label]),
        "tower": receipt.tower,
        "strength": receipt.strength,
        "head": [receipt.weight, receipt.bias],
        "head_after": receipt.head_after,
        # signs that the edit did not turn are those of the head without it too
        "signs_after": None if signs == sign_hash(*before) else signs,
    }


def parse(told: object, where: str) -> list[Record]:
    """The records in what stands under `EDITS`. ValueError, naming `where`, for anything else."""
    found = told.get("edits") if isinstance(told, Mapping) else told
    if not isinstance(found, list):
        raise Refusal("edits", where, f"must hold a list of edits, got {_short(told)}")
    for one in found:
        fits = isinstance(one, dict) and all(isinstance(one.get(k), v) for k, v in _MUST.items())
        if not fits or not all(isinstance(one[k], v) for k, v in _MAY.items() if k in one):
            raise Refusal(
                "edits",
                None,
                f"each edit in {where} must have {', '.join(_MUST)}, got {_short(one)}",
            )
    return list(found)


def held(records: Sequence[Record], target: nn.Module | Mapping[str, Tensor]) -> list[Record]:
    """The records that the heads of `target` bear out: of each tower all up to the last one whose
    edit left the bits, or at least the signs, that are there now.

    Weights and their log are not one: others load, train and save them apart. A record of an older
    version, which kept no hash, is taken at its word.
    """
    last = {one["tower"]: i for i, one in enumerate(records) if _borne_out(one, target)}
    return [one for i, one in enumerate(records) if i <= last.get(one["tower"], -1)]


def after_undo(records: Sequence[Record], original: Original, now: str) -> list[Record]:
    """The records of a model once a head, of digest `now`, has got the bits of `original`."""
    on_head = [one for one in records if one["tower"] == original.tower]
    left = on_head
    if original.records is not None:
        left = original.records
    elif now != original.before:  # an older undo file: better to forget an edit than to claim one
        places = [i for i, one in enumerate(on_head) if one["projector"] == original.projector_hash]
        left = on_head[: places[-1 if now == original.after else 0]] if places else []
    left, kept = list(left), []
    for one in records:
        if one in left:
            left.remove(one)
            kept.append(one)
        elif one["tower"] != original.tower:
            kept.append(one)
    return [*left, *kept]


def _borne_out(record: Record, target: nn.Module | Mapping[str, Tensor]) -> bool:
    if "head_after" not in record:
        return True
    try:
        weights = weights_of("edits", target, *record["head"])
    except ValueError:  # it has no such head
        return False
    if any(type(t) not in (Tensor, nn.Parameter) or t.is_meta for t in weights if t is not None):
        return False  # quantised, sharded or elsewhere: nobody can tell
    signs = record.get("signs_after")
    return files.sha256(*weights) == record["head_after"] or sign_hash(*weights) == signs


def _short(told: object) -> str:
    text = repr(told)
    return text if len(text) <= 60 else f"{text[:57]}..."
