"""Tables of a GPU's result file, and what it says of the targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grid import grid, number
from results import Results

Cell = dict[str, Any]
LAYOUTS = {0: "linear", -1: "matrix"}


def against(cell: Cell, name: str) -> float | None:
    """A peer's or bound's time over clipproj's."""
    return (cell["peers"] | cell["bounds"]).get(name, [None, None])[1]


@dataclass(frozen=True)
class Target:
    """What `value` of each cell that is `of` it should be: at least, or at most, a limit."""

    text: str
    of: Callable[[Cell], bool]
    value: Callable[[Cell], float | None]
    limit: float
    at_least: bool = True

    def met(self, cell: Cell) -> bool | None:
        """None where the target is none of the cell's, or was not measured."""
        value = self.value(cell) if self.of(cell) else None
        return (
            None if value is None else value >= self.limit if self.at_least else value <= self.limit
        )

    def line(self, cells: list[Cell]) -> str:
        judged = [(self.value(cell), cell) for cell in cells if self.met(cell) is not None]
        relation = "at least" if self.at_least else "at most"
        wanted = f"{self.text}: {relation} {self.limit:g}"
        if not judged:
            return f"none  {wanted}, not measured"
        values = sorted(value for value, _ in judged)
        missed = sum(not self.met(cell) for _, cell in judged)
        worst = (min if self.at_least else max)(judged, key=lambda pair: pair[0])[1]
        place = " ".join([*_shape(worst), worst["variant"]]).strip()
        found = f"{number(values[0])} to {number(values[-1])}, worst at {place}"
        return f"{'MISS' if missed else 'pass'}  {wanted}; {missed} of {len(judged)} miss, {found}"


def _inverse(value: float | None) -> float | None:
    return value and 1 / value


def _large(cell: Cell) -> bool:
    return cell["op"] == "project" and cell["dtype"] == "bfloat16" and cell["n"] >= 65536


TARGETS = (
    Target(
        "project, n >= 65536, k <= 32, bfloat16: of the speed of a copy",
        lambda cell: _large(cell) and cell["k"] <= 32,
        lambda cell: against(cell, "copy"),
        0.85,
    ),
    Target(
        "project, n >= 65536, k = 64, bfloat16: of the speed of a copy",
        lambda cell: _large(cell) and cell["k"] == 64,
        lambda cell: against(cell, "copy"),
        0.70,
    ),
    Target(
        "project, n >= 65536, k <= 64, bfloat16: times eager",
        lambda cell: _large(cell) and cell["k"] <= 64,
        lambda cell: against(cell, "eager"),
        2.5,
    ),
    Target(
        "project, n >= 65536, k <= 64, bfloat16: times torch.compile",
        lambda cell: _large(cell) and cell["k"] <= 64,
        lambda cell: against(cell, "compile"),
        1.8,
    ),
    Target(
        "project, n <= 64, k <= 32: us",
        lambda cell: cell["op"] == "project" and cell["n"] <= 64 and cell["k"] <= 32,
        lambda cell: cell["us"],
        5,
        at_least=False,
    ),
    Target(
        "logits, k <= 32, bfloat16: times the bare GEMM's time",
        lambda cell: cell["op"] == "logits" and cell["dtype"] == "bfloat16" and cell["k"] <= 32,
        lambda cell: _inverse(against(cell, "bare GEMM")),
        1.5,
        at_least=False,
    ),
    Target(
        "linear per row, bfloat16: times the plain GEMM's time",
        lambda cell: (
            cell["op"] == "linear" and cell["dtype"] == "bfloat16" and "tenants" in cell["variant"]
        ),
        lambda cell: _inverse(against(cell, "plain GEMM")),
        1.8,
        at_least=False,
    ),
)


def _shape(cell: Cell) -> list[str]:
    return [str(cell[name]) for name in ("n", "d", "k")]


def _kind(cell: Cell) -> str:
    return LAYOUTS[cell["dim"]] if cell["op"] == "fold_" else cell["variant"]


def _verdict(cell: Cell) -> str:
    verdicts = [verdict for target in TARGETS if (verdict := target.met(cell)) is not None]
    return "" if not verdicts else "pass" if all(verdicts) else "MISS"


def table(cells: list[Cell], *, markdown: bool = False) -> str:
    """Of one operator and dtype: times, then everybody else's over clipproj's."""
    bounds = list(dict.fromkeys(name for cell in cells for name in cell["bounds"]))
    peers = list(dict.fromkeys(name for cell in cells for name in cell["peers"]))
    rows = []
    for cell in cells:
        figures = [number(cell["us"]), f"{100 * cell['spread']:.0f}", number(cell["gb_per_s"])]
        ratios = [number(against(cell, name)) for name in (*bounds, *peers)]
        rows.append(
            [*_shape(cell), _kind(cell), *figures, *ratios, f"{cell['error']:.1e}", _verdict(cell)]
        )
    head = ["n", "d", "k", "", "us", "±%", "GB/s", *bounds, *peers, "error", "targets"]
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    kept = [[line[i] for i in used] for line in (head, *rows)]
    return grid(kept[0], kept[1:], markdown=markdown)


def by_kind(cells: list[Cell]) -> dict[tuple[str, str], list[Cell]]:
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell["n"], cell["d"], cell["k"])):
        found.setdefault((cell["op"], cell["dtype"]), []).append(cell)
    return dict(sorted(found.items()))


def ceilings(results: Results) -> str:
    """What the device reached in the same run."""
    found = results.machine["ceilings"]
    return (
        f"copy {number(found['copy_gb_per_s'])} GB/s (read and written), "
        f"read {number(found['read_gb_per_s'])} GB/s, "
        f"GEMM {number(found['bfloat16_tflop_per_s'])} TFLOP/s in bfloat16, "
        f"{number(found['float32_tflop_per_s'])} in float32"
    )


def targets(results: Results) -> str:
    return "\n".join(target.line(results.cells) for target in TARGETS)


def marked(what: str, results: Results) -> str:
    """The table that a text marks: `ceilings`, `targets`, or an operator and a dtype."""
    if what == "ceilings":
        return ceilings(results)
    if what == "targets":
        return "\n".join(f"- {line}" for line in targets(results).splitlines())
    op, dtype = what.split()
    return table(by_kind(results.cells)[op, dtype], markdown=True)


def report(results: Results, *, markdown: bool = False) -> str:
    info = results.machine
    commit = (results.commit.get("id") or "no commit")[:12]
    parts = [f"{info['device']}, torch {info['torch']}, {commit}\n{ceilings(results)}"]
    for (op, dtype), cells in by_kind(results.cells).items():
        title = f"{op}, {dtype}"
        title = f"#### {title}\n" if markdown else f"== {title}"
        parts.append(f"{title}\n{table(cells, markdown=markdown)}")
    for name, reasons in results.skipped.items():
        parts.append(f"{name}: {'; '.join(reasons)}")
    return "\n\n".join([*parts, targets(results)])
