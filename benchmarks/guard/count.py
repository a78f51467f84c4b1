"""Fails when a CPU kernel executes over 5 % more instructions than counts.json says.

Times drift with the machine; the number of instructions does not: the same compiler gives the
same number on a busy machine, a virtual one and another CPU. It is a guard, not a benchmark: code
can get slower in as many instructions.

What is counted and how: driver.cpp. Exit status: 0, 1 when a count grew, 2 when nothing can be
counted here. Counts of another compiler or machine type are not compared, and the output says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CPU = HERE.parents[1] / "csrc" / "cpu"
KEPT = HERE / "counts.json"
LIMIT = 0.05

# As setup.py and torch's build tools compile the extension.
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fwrapv", "-fPIC", "-fvisibility=hidden"]
SOURCES = [
    HERE / "driver.cpp",
    CPU / "isa.cpp",
    *(CPU / f"project_{isa}.cpp" for isa in ("scalar", "avx2", "avx512")),
]

# glibc picks its memcpy by the CPU, and callgrind's CPU is another: everybody takes the plainest.
PLAIN_LIBC = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps="
    "-AVX512VL,-AVX512F,-AVX2,-SSSE3,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM"
}

# Instruction set -> {"compiler": "g++ 12.2.0", "machine": "x86_64", "counts": {case: number}}
Record = dict[str, dict[str, Any]]


class CannotCount(Exception):
    """Why this machine cannot count."""


class SteppingRefused(CannotCount):
    """The system does not let the driver step its child (ptrace)."""


@dataclass
class Verdict:
    """What comes of a comparison: cases as (instruction set, case)."""

    skipped: dict[str, str] = field(default_factory=dict)  # instruction set -> why not compared
    within: list[tuple[str, str]] = field(default_factory=list)
    grown: list[tuple[str, str]] = field(default_factory=list)
    shrunk: list[tuple[str, str]] = field(default_factory=list)
    unmatched: list[tuple[str, str]] = field(default_factory=list)  # on one side only


def major(compiler: str) -> str:
    """'g++ 12.2.0' -> 'g++ 12'."""
    return re.sub(r"\..*", "", compiler)


def compare(kept: Record, now: Record) -> Verdict:
    verdict = Verdict()
    for isa in dict.fromkeys([*kept, *now]):
        if reason := why_not(kept.get(isa), now.get(isa)):
            verdict.skipped[isa] = reason
            continue
        before, after = kept[isa]["counts"], now[isa]["counts"]
        for case in dict.fromkeys([*before, *after]):
            if case not in before or case not in after:
                found = verdict.unmatched
            elif after[case] > before[case] * (1 + LIMIT):
                found = verdict.grown
            elif after[case] < before[case] * (1 - LIMIT):
                found = verdict.shrunk
            else:
                found = verdict.within
            found.append((isa, case))
    return verdict


def why_not(kept: dict[str, Any] | None, now: dict[str, Any] | None) -> str | None:
    """Why counts of one instruction set cannot be compared, or None if they can."""
    if now is None:
        return "it cannot be counted on this machine"
    if kept is None:
        return "no counts were kept, run make perf-guard-update"
    if kept["machine"] != now["machine"]:
        return f"counts were kept on {kept['machine']}, this is {now['machine']}"
    if major(kept["compiler"]) != major(now["compiler"]):
        return f"counts were kept with {major(kept['compiler'])}, this is {major(now['compiler'])}"
    return None


def build(folder: Path) -> Path:
    """Compiles the kernels and the driver, without libtorch: only torch's headers are needed."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(compiler[0]):
        raise CannotCount(f"there is no compiler {compiler[0]}")
    torch = importlib.util.find_spec("torch")  # not imported: that would take seconds
    if torch is None:
        raise CannotCount("torch is not installed, and the kernels need its headers")
    flags = [*FLAGS, f"-I{Path(torch.origin).parent / 'include'}"]
    objects = [str(folder / f"{source.stem}.o") for source in SOURCES]
    driver = folder / "driver"
    running = [
        subprocess.Popen([*compiler, *flags, "-c", str(source), "-o", to])
        for source, to in zip(SOURCES, objects, strict=True)
    ]
    statuses = [process.wait() for process in running]
    if any(statuses) or subprocess.run([*compiler, *objects, "-o", str(driver)]).returncode:
        raise CannotCount("the kernels do not compile")
    return driver


def run(command: list[str]) -> list[list[str]]:
    """What the driver prints: a row with the compiler, then rows of cases."""
    done = subprocess.run(command, env=os.environ | PLAIN_LIBC, capture_output=True, text=True)
    if done.returncode == 3:
        raise SteppingRefused(f"this system refuses to step a process: {done.stderr.strip()}")
    if done.returncode != 0:
        raise CannotCount(f"the driver failed: {done.stderr.strip()}")
    return [line.split("\t") for line in done.stdout.splitlines()]


def record(rows: list[list[str]]) -> Record:
    """Counts by instruction set, less what calling a kernel that does nothing costs."""
    (compiler,), (_, _, overhead), *cases = rows
    found: Record = {}
    for isa, case, count in cases:
        start = {"compiler": compiler, "machine": platform.machine(), "counts": {}}
        found.setdefault(isa, start)["counts"][case] = int(count) - int(overhead)
    return found


def count_steps(driver: Path) -> Record:
    return record(run([str(driver), "steps"]))


def count_callgrind(driver: Path) -> Record:
    """The same counts by callgrind, for the instruction sets it knows: scalar and AVX2."""
    if not shutil.which("valgrind"):
        raise CannotCount("valgrind is not installed")
    with tempfile.TemporaryDirectory() as folder:
        tool = ["valgrind", "--quiet", "--tool=callgrind", "--toggle-collect=counted_call"]
        rows = run([*tool, f"--callgrind-out-file={folder}/%p", str(driver), "pids"])
        for row in rows[1:]:
            text = Path(folder, row[2]).read_text()
            row[2] = re.search(r"^totals: (\d+)$", text, re.MULTILINE)[1]
    return record(rows)


def show(kept: Record, now: Record, beside: Record) -> None:
    """The table: every case, kept and now; and callgrind's count beside, when asked for."""
    width = max(len(case) for isa in now for case in now[isa]["counts"])
    header = f"{'kept':>9} {'now':>9} {'change':>8} {'/ element':>9}"
    for isa, mine in now.items():
        before = {} if why_not(kept.get(isa), mine) else kept[isa]["counts"]
        other = beside.get(isa, {"counts": {}})["counts"]
        print(f"\n{isa:{width}} {header}{'  callgrind' if other else ''}")
        for case, count in mine["counts"].items():
            n, d = map(int, re.search(r"n=(\d+) d=(\d+)", case).groups())
            old, change = "-", "-"
            if case in before:
                old, change = before[case], f"{count / before[case] - 1:+.1%}"
            extra = f" {other[case]:10} {other[case] / count - 1:+.2%}" if other else ""
            print(f"{case:{width}} {old:>9} {count:9} {change:>8} {count / (n * d):9.2f}{extra}")
    print()


def report(kept: Record, now: Record) -> int:
    """Prints what came of the comparison; the exit status."""
    verdict = compare(kept, now)
    for isa, reason in verdict.skipped.items():
        print(f"perf-guard: {isa} not compared: {reason}")
    for isa, case in verdict.unmatched:
        print(f"perf-guard: {isa} {case} is not in both, run make perf-guard-update")
    for isa, case in verdict.grown:
        before, after = kept[isa]["counts"][case], now[isa]["counts"][case]
        print(f"perf-guard: {isa} {case} grew by {after / before - 1:.2%} ({before} -> {after})")
    if verdict.shrunk:
        print(
            f"perf-guard: {len(verdict.shrunk)} cases shrank by more than {LIMIT:.0%}, "
            "run make perf-guard-update to hold them there"
        )
    if verdict.grown or verdict.unmatched:
        grown, other = len(verdict.grown), len(verdict.unmatched)
        print(f"perf-guard: FAILED: {grown} cases grew by more than {LIMIT:.0%}, {other} unmatched")
        return 1
    compared = len(verdict.within) + len(verdict.shrunk)
    print(f"perf-guard: {f'{compared} cases did not grow' if compared else 'nothing compared'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write counts.json anew")
    parser.add_argument("--callgrind", action="store_true", help="its counts beside ours")
    args = parser.parse_args(argv)
    kept: Record = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            driver = build(Path(folder))
            beside = count_callgrind(driver) if args.callgrind else {}
            try:
                now = count_steps(driver)
            except SteppingRefused as refusal:
                print(f"perf-guard: {refusal}; trying callgrind, for scalar and AVX2 only")
                now = count_callgrind(driver)
    except CannotCount as reason:
        print(f"perf-guard: cannot count: {reason}", file=sys.stderr)
        return 2
    show(kept, now, beside)
    if args.update:
        KEPT.write_text(json.dumps(kept | now, indent=2) + "\n")
        print(f"perf-guard: wrote {', '.join(now)} to {KEPT.name}")
        return 0
    return report(kept, now)


if __name__ == "__main__":
    sys.exit(main())
