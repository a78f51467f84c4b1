"""Tables of result files, and the comparison of two.

    python benchmarks/tables.py FILE.json                 # every problem beside every peer
    python benchmarks/tables.py FILE.json --markdown      # for a text: us · best ratio
    python benchmarks/tables.py FILE.json --keep FOLDER   # ... and keep the small form of the file
    python benchmarks/tables.py --compare OLD.json NEW.json
    python benchmarks/tables.py --fill docs/operators.md  # renew the tables that a text marks

A ratio is a peer's time over clipproj's: below 1 clipproj is slower, and the row is marked `<`.
`%roof` is the least possible time (roofline.py) over the time taken. `%busy` says how long threads
waited for cores that other work held: times of a row with more than a few percent mean little, with
several threads nothing. `new` are calls that return a new result, `out` such as write into memory
that is there; each is compared with its like.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import gpu_tables
from grid import grid, mean, number
from results import Results, best, keep, key, load

ROOT = Path(__file__).parents[1]
NEAR_ROOF = 0.75  # of the roofline: the target for problems of at least BATCH rows
BATCH = 256
BUSY = 0.05  # of the time, above which a table says that the machine was not quiet
MOVED = 0.1  # of a time or ratio: compare flags what moved more
# A table in a text, between two comments: a result file's summary, or one operator, kind of output
# and dtype of it. Files of a GPU have other tables: gpu_tables.marked.
MARKED = re.compile(
    r"<!-- table (?P<what>.+?) of (?P<file>\S+) -->\n(?P<table>.*?)<!-- end -->", re.S
)

Cell = dict[str, Any]


def shape(cell: Cell) -> list[str]:
    layout = {0: "linear", -1: "matrix"}[cell["dim"]] if cell["op"] == "fold_" else ""
    return [str(cell["n"]), str(cell["d"]), str(cell["k"]), *([layout] if layout else [])]


def shape_head(cells: list[Cell]) -> list[str]:
    return ["n", "d", "k", *(["layout"] if cells[0]["op"] == "fold_" else [])]


def speed(cell: Cell) -> str:
    """In the unit of what bounds the problem."""
    if cell.get("limit") == "bytes":
        return f"{number(cell['gb_per_s'])} GB/s"
    return f"{number(cell['gflop_per_s'])} GFLOP/s"


def roof(cell: Cell) -> str:
    return f"{100 * cell['roofline']:.0f}" if "roofline" in cell else "-"


def full_table(cells: list[Cell]) -> str:
    """Every peer's ratio; the error of clipproj and of the quickest peer."""
    names = list(dict.fromkeys(name for cell in cells for name in cell["peers"]))
    rows = []
    for cell in cells:
        first = best(cell)
        ratios = [number(cell["peers"].get(name, [0, None])[1]) for name in names]
        slower = "<" if first and first[2] < 1 else ""
        errors = [f"{cell['error']:.1e}", f"{first[3]:.1e}" if first else "-"]
        busy = f"{100 * cell['busy']:.0f}"
        figures = [number(cell["us"]), speed(cell), roof(cell), busy]
        rows.append([*shape(cell), *figures, *ratios, slower, first[0] if first else "-", *errors])
    head = [*shape_head(cells), "us", "rate", "%roof", "%busy", *names]
    return grid([*head, "", "best peer", "error", "its error"], rows)


def short_table(cells: list[Cell]) -> str:
    """A row per width and rank (`fold_`: per weight), the rest as columns: us · ratio."""
    fold = cells[0]["op"] == "fold_"

    def place(cell: Cell) -> tuple[str, str]:
        n, d, k, *layout = shape(cell)
        return (f"{n}x{d} {layout[0]}", f"k = {k}") if fold else (f"{d}, {k}", f"n = {n}")

    def text(cell: Cell) -> str:
        first = best(cell)
        if first is None:
            return number(cell["us"])
        both = f"{number(cell['us'])} · {number(first[2], 2)}"
        return f"**{both}**" if first[2] < 1 else both

    columns = list(dict.fromkeys(place(cell)[1] for cell in cells))
    rows: dict[str, dict[str, str]] = {}
    for cell in cells:
        row, column = place(cell)
        rows.setdefault(row, {})[column] = text(cell)
    body = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    return grid(["weight" if fold else "d, k", *columns], body, markdown=True)


def by_kind(cells: list[Cell]) -> dict[tuple[str, str, str], list[Cell]]:
    """Cells by operator, kind of output and dtype, in the order of the file."""
    found: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell["op"], cell["output"], cell["dtype"]), []).append(cell)
    return found


def summary(cells: list[Cell], *, markdown: bool = False) -> str:
    """A row for each of `by_kind`: ratios to the best peer, distance from the roofline, errors."""
    rows = []
    for kind, members in by_kind(cells).items():
        firsts = [first for cell in members if (first := best(cell))]
        ratios = [first[2] for first in firsts]
        large = [cell for cell in members if cell["n"] >= BATCH and "roofline" in cell]
        far = sum(cell["roofline"] < NEAR_ROOF for cell in large)
        speeds = [number(mean(ratios)), number(min(ratios, default=None))]
        slower = f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}"
        errors = [max(cell["error"] for cell in members), max((f[3] for f in firsts), default=None)]
        rows.append([*kind, *speeds, slower, f"{far} of {len(large)}", *map(number, errors)])
    head = ["op", "result", "dtype", "best peer / clipproj, geometric mean", "least", "slower"]
    head += [f"n >= {BATCH} below {NEAR_ROOF:.0%} of roofline", "error", "best peer's"]
    return grid(head, rows, markdown=markdown)


def machine_line(results: Results) -> str:
    info = results.machine
    where = f"{info['cpu']} ({info['cpu_isa']})" if info["device"] == "cpu" else info["device"]
    peak = f", {info['fma_gflops']:.0f} GFLOP/s float32" if "fma_gflops" in info else ""
    version = f"torch {info['torch']}, clipproj {info['build_info']['version']}"
    commit = (results.commit.get("id") or "no commit")[:12]
    return f"{where}, {info['threads']} thread(s){peak}, {version}, {commit}"


def report(results: Results, *, markdown: bool = False) -> str:
    if results.machine["device"] != "cpu":
        return gpu_tables.report(results, markdown=markdown)
    parts = [machine_line(results)]
    for (op, output, dtype), cells in by_kind(results.cells).items():
        title = f"{op}, {output}, {dtype}"
        parts.append(f"#### {title}\n" if markdown else f"== {title}")
        parts[-1] += "\n" + (short_table(cells) if markdown else full_table(cells))
    parts.append(summary(results.cells, markdown=markdown))
    if busy := sum(cell["busy"] > BUSY for cell in results.cells):
        parts.append(f"{busy} of {len(results.cells)} rows with the machine over {BUSY:.0%} busy")
    if results.skipped:
        reasons = (f"{name} ({'; '.join(why)})" for name, why in results.skipped.items())
        parts.append("Skipped where it does not apply: " + ", ".join(reasons))
    return "\n\n".join(parts)


def differences(old: Results, new: Results) -> list[str]:
    """What must be the same for times to be comparable, and is not."""
    names = ("device", "cpu", "cpu_isa", "threads")
    return [
        f"{name}: {old.machine[name]} and {new.machine[name]}"
        for name in names
        if old.machine[name] != new.machine[name]
    ]


def comparison(old: Results, new: Results) -> str:
    """Per problem: the time, and the ratio to the best peer, which drifts less than times do."""
    before = {key(cell): cell for cell in old.cells}
    rows, ratios = [], []
    for cell in new.cells:
        if key(cell) not in before:
            continue
        was = before[key(cell)]
        time = cell["us"] / was["us"]
        pair = (best(was), best(cell))
        moved = pair[1][2] / pair[0][2] if pair[0] and pair[1] else None
        flags = "time " * (abs(time - 1) > MOVED) + "ratio" * (
            moved is not None and abs(moved - 1) > MOVED
        )
        times = [number(was["us"]), number(cell["us"]), number(time)]
        against = [number(side[2]) if side else "-" for side in pair]
        problem = " ".join(["x".join(shape(cell)), cell.get("variant", "")]).strip()
        name = [cell["op"], cell["output"], cell["dtype"], problem]
        rows.append([*name, *times, *against, number(moved), flags.strip()])
        ratios.append(time)
    head = ["op", "output", "dtype", "problem", "old us", "new us", "new/old"]
    head += ["old ratio", "new ratio", "new/old", f"moved > {MOVED:.0%}"]
    alone = len(old.cells) + len(new.cells) - 2 * len(rows)
    last = f"times new/old: geometric mean {number(mean(ratios))}; {alone} problems in one file"
    return "\n\n".join([machine_line(old), machine_line(new), grid(head, rows), last])


def filled(text: str) -> str:
    """A text with its marked tables as the result files have them."""

    def renew(mark: re.Match[str]) -> str:
        results = load(ROOT / mark["file"])
        if results.machine["device"] != "cpu":
            table = gpu_tables.marked(mark["what"], results)
        elif mark["what"] == "summary":
            table = summary(results.cells, markdown=True)
        else:
            table = short_table(by_kind(results.cells)[tuple(mark["what"].split())])
        return f"<!-- table {mark['what']} of {mark['file']} -->\n{table}\n<!-- end -->"

    return MARKED.sub(renew, text)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="the short form, for a text")
    parser.add_argument("--keep", metavar="FOLDER", help="write the small form of FILE there")
    parser.add_argument("--compare", action="store_true", help="two files: old and new")
    parser.add_argument("--anyway", action="store_true", help="compare across machines or threads")
    parser.add_argument("--fill", action="store_true", help="renew the marked tables of texts")
    options = parser.parse_args(arguments)
    if options.fill:
        for text in map(Path, options.files):
            text.write_text(filled(text.read_text()))
        return
    if len(options.files) != 1 + options.compare:
        parser.error(f"expected {1 + options.compare} files, got {len(options.files)}")
    if options.compare:
        old, new = map(load, options.files)
        if (unlike := differences(old, new)) and not options.anyway:
            parser.error(f"not comparable ({'; '.join(unlike)}); --anyway compares nevertheless")
        print("\n".join([*unlike, comparison(old, new)]))
        return
    results = load(options.files[0])
    print(report(results, markdown=options.markdown))
    if options.keep:
        print(f"\nkept: {keep(results, options.keep)}")


if __name__ == "__main__":
    main()
