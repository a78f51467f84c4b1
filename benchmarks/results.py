"""Result files: pytest-benchmark's JSON as it comes, or the small form that the repository keeps.

The small form has one line per problem, so that a diff shows which problems moved:

    {"machine": {...}, "commit": {...}, "skipped": {peer: [reason, ...]}, "cells": [
     {"op": "project", "output": "new", "dtype": "float32", "n": 256, "d": 512, "k": 16, "dim": -1,
      "flops": ..., "bytes": ..., "limit": "flops" or "bytes", "bound_us": ..., "roofline": ...,
      "us": ..., "busy": ..., "rounds": ..., "gb_per_s": ..., "gflop_per_s": ..., "error": ...,
      "peers": {name: [us, ratio, error]}},
     ...]}

`us` is clipproj's median per call; a peer's ratio is the median of its time over clipproj's in the
same round (above 1: clipproj is faster); errors are the largest against float64. `busy` is the part
of the time for which other work on the machine kept the threads from running. Cells of a GPU have
what gpu.py says in place of `limit`, `bound_us`, `roofline` and `busy`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

KEY = ("op", "output", "dtype", "n", "d", "k", "dim")  # what makes two cells the same problem
BOUNDS = (
    "shared project",
    "bare product",
    "linear form",
)  # beside the peers, but less than was asked: never the best peer


class Results(NamedTuple):
    machine: dict[str, Any]
    commit: dict[str, Any]
    skipped: dict[str, list[str]]
    cells: list[dict[str, Any]]


def key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return (*(cell[name] for name in KEY), cell.get("variant", ""))


def best(cell: dict[str, Any]) -> tuple[str, float, float, float] | None:
    """Name, us, ratio and error of the quickest peer that is no bound; None where none ran."""
    peers = [peer for peer in cell["peers"].items() if peer[0] not in BOUNDS]
    if not peers:
        return None
    name, (us, ratio, error) = min(peers, key=lambda peer: peer[1][1])
    return name, us, ratio, error


def load(path: str | Path) -> Results:
    """Reads either form."""
    content = json.loads(Path(path).read_text())
    if "benchmarks" not in content:
        return Results(**content)
    commit = {name: content["commit_info"].get(name) for name in ("id", "time", "dirty")}
    skipped: dict[str, set[str]] = {}
    cells = []
    for entry in content["benchmarks"]:
        cell = dict(entry["extra_info"])
        for name, reason in cell.pop("skipped").items():
            skipped.setdefault(name, set()).add(reason)
        cells.append(cell | {"rounds": entry["stats"]["rounds"]})
    reasons = {name: sorted(skipped[name]) for name in sorted(skipped)}
    return Results(content["machine_info"], commit, reasons, cells)


def slug(machine: dict[str, Any]) -> str:
    """A file name for a GPU, or for a CPU and a number of threads."""
    on_cpu = machine["device"] == "cpu"
    words = re.sub(r"[^a-z0-9]+", "-", machine["cpu" if on_cpu else "device"].lower()).strip("-")
    return f"{words}-{machine['cpu_isa']}-t{machine['threads']}" if on_cpu else words


def keep(results: Results, folder: str | Path) -> Path:
    """Writes the small form as `<slug>.json`, at no time a part of it."""
    path = Path(folder, f"{slug(results.machine)}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    head = results._asdict()
    lines = ",\n".join(json.dumps(cell) for cell in head.pop("cells"))
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(head)[:-1] + ', "cells": [\n' + lines + "\n]}\n")
    return beside.replace(path)
