"""Where a projector comes from, as plain JSON: what starts it, and what it must look like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import torch

from clipproj._version import __version__

_KINDS = {"forget": dict, "keep": dict, "parameters": dict, "method": str, "model": str,
          "head_hash": str}  # fmt: skip


def made_by(method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The part that every provenance has: the method, what it was given, versions and date."""
    return {
        "method": method,
        "parameters": parameters,
        "clipproj": __version__,
        "torch": torch.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def plain_json(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy as JSON gives it back. TypeError for anything it can't hold, or where readers of a
    provenance expect something else."""
    if not isinstance(provenance, Mapping | None):
        got = type(provenance).__name__
        raise TypeError(f"Projector: provenance must be a mapping, got {got}")
    try:
        plain = json.loads(json.dumps(dict(provenance or {})))
    except (TypeError, ValueError) as error:
        raise TypeError(f"Projector: provenance must be plain JSON, got {error}") from None
    for key, kind in _KINDS.items():
        if plain.get(key) is None:
            plain.pop(key, None)
        elif not isinstance(plain[key], kind):
            got = type(plain[key]).__name__
            raise TypeError(f"Projector: provenance[{key!r}] must be a {kind.__name__}, got {got}")
    for key in plain.keys() & {"forget", "keep"}:
        names = plain[key].get("names")
        if names is None:
            plain[key].pop("names", None)
        elif not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(
                f"Projector: provenance[{key!r}]['names'] must be a list of strings, got "
                f"{names!r:.80}"
            )
    return plain
