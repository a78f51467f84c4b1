"""The operators on a GPU beside what else could do their job; results/<GPU>.json and a verdict.

    make bench-gpu
    python setup.py build_ext --inplace && PYTHONPATH=. python benchmarks/gpu.py [--quick]

Needs a CUDA build of torch 2.10 or newer with its Triton and, to build, nvcc of the same major
version, setuptools, ninja and pybind11: nothing is downloaded. Each problem is first held against
float64, then timed as gpu_clock.py says, everybody in turn. A run ends in time: problems that are
left are listed with the reason, and the file is complete after every problem. Exits with 1 when a
result was wrong or a problem failed, not when a target was missed.

A cell of the file is as in results.py, with

    "variant": tenants, classes, widths     "timed": "graph" (device time of a call, in the cache)
    "spread": of the times' quartiles                or "cold" (from memory)
    "bounds": {name: [us, ratio]}, of calls that do less: a copy of the rows, a bare product

and `machine` has the ceilings that were measured in the same run.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_grid
import gpu_tables
import torch
from gpu_cases import Case, MadeCase
from gpu_clock import Call, Clock, CudaClock, ceilings, spread
from grid import number
from peers import SkipPeer, tensor
from results import Results, keep
from shapes import DTYPES
from torch import Tensor

from clipproj import _C
from clipproj.ops import _library

RESULTS = Path(__file__).parent / "results"
MINUTES = {"full": 9.0, "quick": 3.0}
RESERVE_SECONDS = 20  # for the start, and the problem that is running when time is up
COMPILE_SHARE = 0.4  # of the time, for the first calls of what torch.compile makes
ERROR = 4  # units in the last place of the largest result
OWN = "clipproj"


class WrongResult(Exception):
    """The time of who computed it would mean nothing."""


def error(case: Case, made: MadeCase, out: Tensor) -> float:
    """The largest against float64; raises WrongResult where one rounding of the result and of the
    factors to the dtype of x, sums in float32, and what a solution may leave, do not explain it.
    """
    got, want = made.sampled(out).double(), made.want
    if got.shape != want.shape:
        raise WrongResult(f"shape {list(got.shape)} instead of {list(want.shape)}")
    sums = torch.finfo(torch.float32).eps * (case.shape.d + case.shape.k) ** 0.5
    rounding = ERROR * (torch.finfo(DTYPES[case.dtype]).eps + sums)
    limit = (rounding + made.left) * want.abs().max().item()
    found = (got - want).abs().max().item()
    if not found <= limit:  # NaN too
        raise WrongResult(f"error {found:.1e} against float64, {limit:.1e} at most")
    return found


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def record(
    case: Case, made: MadeCase, times: dict[str, list[float]], errors: dict[str, float]
) -> dict[str, Any]:
    """The cell of a file."""
    own = times[OWN]
    seconds = statistics.median(own)

    def against(name: str) -> list[float]:
        ratio = statistics.median(a / b for a, b in zip(times[name], own, strict=True))
        return [rounded(1e6 * statistics.median(times[name])), rounded(ratio)]

    n, d, k = case.shape
    return {
        "op": case.op,
        "output": "out" if case.op.endswith("_") else "new",
        "dtype": case.dtype,
        **{"n": n, "d": d, "k": k, "dim": case.dim, "variant": case.variant},
        "timed": "graph" if case.few else "cold",
        "flops": made.flops,
        "bytes": made.bytes,
        "us": rounded(1e6 * seconds),
        "spread": rounded(spread(own)),
        "rounds": len(own),
        "gb_per_s": rounded(made.bytes / seconds / 1e9),
        "gflop_per_s": rounded(made.flops / seconds / 1e9),
        "error": rounded(errors[OWN]),
        "bounds": {name: against(name) for name in made.bounds if name in times},
        "peers": {
            name: [*against(name), rounded(errors[name])] for name in made.peers if name in times
        },
    }


class Run:
    """Problems one after the other; the file is complete after each."""

    def __init__(
        self,
        clock: Clock,
        machine: dict[str, Any],
        folder: Path,
        seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._folder, self._now = clock, folder, now
        self._start, self._seconds, self._compiling = now(), seconds, 0.0
        self.results = Results(machine, commit(), {}, [])

    @property
    def failed(self) -> list[str]:
        return self.results.skipped.get("failed", [])

    def run(self, sections: dict[str, list[Case]]) -> Path:
        shares = {name: gpu_grid.SHARES[name] for name in sections}
        until = self._start
        for name, cases in sections.items():
            until += shares[name] / sum(shares.values()) * self._seconds
            for i, case in enumerate(cases):
                if self._now() >= until:
                    self._skip(name, f"no time for {', '.join(map(str, cases[i:]))}")
                    break
                self._one(case)
                keep(self.results, self._folder)
        return keep(self.results, self._folder)

    def _skip(self, name: str, reason: str) -> None:
        reasons = self.results.skipped.setdefault(name, [])
        if reason not in reasons:
            reasons.append(reason)

    def _fail(self, what: str, error: Exception) -> None:
        text = f"{what}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        self._skip("failed", text)
        print(f"FAILED {text}", flush=True)

    def _one(self, case: Case) -> None:
        try:
            cell = self._measure(case)
        except Exception as error:  # this problem's, whatever it is: the others are still to come
            self._fail(str(case), error)
            return
        self.results.cells.append(cell)
        others = cell["bounds"] | cell["peers"]
        ratios = ", ".join(f"{name} {number(figures[1])}" for name, figures in others.items())
        print(f"{case}: {number(cell['us'])} us; {ratios}", flush=True)

    def _measure(self, case: Case) -> dict[str, Any]:
        made = case.make()
        errors: dict[str, float] = {}

        def ready(name: str, call: Call) -> Any:
            out = tensor(call())
            if name not in made.bounds:
                errors[name] = error(case, made, out)
            return self._clock.ready(call, few=case.few)

        turns = {OWN: ready(OWN, made.own)}
        for name, make in (made.bounds | made.peers).items():
            start = self._now()
            try:
                if name == "compile" and self._compiling >= COMPILE_SHARE * self._seconds:
                    raise SkipPeer("no time left to compile")
                turns[name] = ready(name, make())
            except SkipPeer as reason:
                self._skip(name, str(reason))
            except torch.OutOfMemoryError:
                self._skip(name, f"out of memory at {case}")
            except Exception as wrong:
                self._fail(f"{case}, {name}", wrong)
            if name == "compile":
                self._compiling += self._now() - start
        return record(case, made, self._clock.times(turns), errors)


def commit() -> dict[str, Any]:
    """Of the sources, where git knows."""

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", Path(__file__).parent, *arguments]
            return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
        except (FileNotFoundError, subprocess.CalledProcessError):
            return None

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "id": git("rev-parse", "HEAD"),
        "time": git("log", "-1", "--format=%cI"),
        "dirty": None if changed is None else bool(changed),
    }


def describe() -> dict[str, Any]:
    import triton

    return {
        "device": torch.cuda.get_device_name(),
        "cpu": platform.machine(),
        "cpu_isa": _C.cpu_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "build_info": _C.build_info(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a problem or two of each operator")
    parser.add_argument("--minutes", type=float, help=f"default: {MINUTES}")
    parser.add_argument("--only", nargs="+", choices=gpu_grid.SHARES, help="operators")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no CUDA device, or this torch is a CPU build")
    if _library.CUDA_LIBRARY is None:
        parser.error("no CUDA kernels: CLIPPROJ_CUDA=1 python setup.py build_ext --inplace")
    grid = gpu_grid.quick if options.quick else gpu_grid.full
    minutes = options.minutes or MINUTES["quick" if options.quick else "full"]
    sections = {
        name: cases
        for name, cases in grid("cuda").items()
        if options.only is None or name in options.only
    }
    with torch.inference_mode():
        clock = CudaClock()
        machine = describe() | {"ceilings": ceilings(clock, "cuda")}
        run = Run(clock, machine, options.out, 60 * minutes - RESERVE_SECONDS)
        path = run.run(sections)
    print(f"\n{gpu_tables.report(run.results)}\n\nkept: {path}")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
