"""The GPU suite without a GPU: its problems on CPU tensors, with times that are made up."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
import gpu_cases
import gpu_clock
import gpu_fused
import gpu_grid
import gpu_tables
import peers
import pytest
import results
import tables
import torch
from shapes import Shape

ROOT = Path(__file__).parents[2]
CEILINGS = {
    "copy_gb_per_s": 3000.0,
    "read_gb_per_s": 2800.0,
    "bfloat16_tflop_per_s": 800.0,
    "float32_tflop_per_s": 50.0,
    "events_us": 1.5,
}
MACHINE = {
    "device": "Some GPU 80GB",
    "cpu": "x86_64",
    "cpu_isa": "avx2",
    "threads": 2,
    "torch": "2.14",
    "build_info": {"version": "0.1.0"},
    "ceilings": CEILINGS,
}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


class MadeUp:
    """Three rounds of clipproj's 10 us; the others' are 20 us, or as `others` has them."""

    def __init__(self, **others: float) -> None:
        self.others = others
        self.few: list[bool] = []

    def ready(self, call: Any, *, few: bool) -> Any:
        self.few.append(few)
        return call

    def times(self, turns: dict[str, Any]) -> dict[str, list[float]]:
        us = {"clipproj": 10.0} | self.others
        return {name: [1e-6 * us.get(name, 20.0) * drift for drift in (1, 2, 3)] for name in turns}


def small(device: str = "cpu") -> dict[str, list[Any]]:
    """A problem of each kind."""
    return {
        "project": [
            gpu_cases.project_case(device, "bfloat16", Shape(64, 64, 8)),
            gpu_cases.one_sided_case(device, "float32", Shape(65, 64, 1)),
            gpu_cases.one_sided_case(device, "float32", Shape(65, 64, 8)),
        ],
        "project_rows": [
            gpu_fused.rows_case(device, "float32", Shape(100, 64, 8), 5, order)
            for order in ("sorted", "unsorted")
        ],
        "linear": [
            gpu_fused.linear_case(device, "float32", Shape(100, 64, 8), 96, m) for m in (0, 5)
        ],
        "logits": [gpu_fused.logits_case(device, "float32", Shape(100, 64, 8), 30)],
        "projected_norm": [gpu_cases.norm_case(device, "float32", Shape(100, 64, 8))],
        "fold_": [gpu_cases.fold_case(device, "float32", Shape(96, 64, 8), dim) for dim in (-1, 0)],
    }


@pytest.mark.parametrize("op", small())
def test_problems_are_solved_by_all_who_are_timed(op: str, tmp_path: Path) -> None:
    cases = small()[op]
    run = gpu.Run(MadeUp(), dict(MACHINE), tmp_path, seconds=1e6)
    path = run.run({op: cases})
    assert run.failed == []
    assert path.name == "some-gpu-80gb.json"
    kept = results.load(path)
    assert kept == run.results
    assert len(kept.cells) == len(cases)
    for cell in kept.cells:
        assert cell["us"] == 20  # the median of the rounds
        assert cell["peers"]
        assert all(figures[1] == 2 for figures in (cell["peers"] | cell["bounds"]).values())
        assert cell["error"] <= 4e-3 if cell["dtype"] == "bfloat16" else cell["error"] <= 1e-4
    names = {"copy", "linear", "one projector", "plain GEMM", "bare GEMM"}
    assert names >= {name for cell in kept.cells for name in cell["bounds"]}


def test_few_rows_are_timed_in_a_graph(tmp_path: Path) -> None:
    clock = MadeUp()
    run = gpu.Run(clock, dict(MACHINE), tmp_path, seconds=1e6)
    cases = [gpu_cases.project_case("cpu", "float32", Shape(n, 64, 8)) for n in (64, 65)]
    run.run({"project": cases})
    assert [cell["timed"] for cell in run.results.cells] == ["graph", "cold"]
    half = len(clock.few) // 2
    assert clock.few == [True] * half + [False] * half


def case(own: Any, **peer_calls: Any) -> Any:
    """x + 1, of 3 rows; who computes what is told."""
    x = torch.rand(3, 2, dtype=torch.float64)

    def make() -> Any:
        return gpu_cases.MadeCase(
            own=lambda: own(x),
            want=x + 1,
            sampled=lambda out: out,
            peers={name: lambda call=call: lambda: call(x) for name, call in peer_calls.items()},
            bounds={},
            bytes=10,
            flops=10,
        )

    return gpu_cases.Case("project", "float32", Shape(3, 2, 1), make)


def one_more(x: torch.Tensor) -> torch.Tensor:
    return x + 1


WRONG = {"off": lambda x: x, "nan": lambda x: x * torch.nan, "short": lambda x: x[:2] + 1}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_results_are_not_timed(wrong: Any, tmp_path: Path) -> None:
    run = gpu.Run(MadeUp(), dict(MACHINE), tmp_path, seconds=1e6)
    run.run({"project": [case(wrong), case(one_more, eager=wrong, other=one_more)]})
    (cell,) = run.results.cells
    assert list(cell["peers"]) == ["other"]
    assert len(run.failed) == 2
    assert run.failed[0].startswith("project 3x2-k1 float32: WrongResult: ")
    assert run.failed[1].startswith("project 3x2-k1 float32, eager: WrongResult: ")
    assert "failed: " in gpu_tables.report(run.results)


def test_who_cannot_run_is_skipped_with_the_reason(tmp_path: Path) -> None:
    def absent(x: torch.Tensor) -> torch.Tensor:
        raise peers.SkipPeer("not here")

    def too_large(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no")

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("first line\nsecond")

    run = gpu.Run(MadeUp(), dict(MACHINE), tmp_path, seconds=1e6)
    run.run({"project": [case(one_more, a=absent, b=too_large, c=broken, d=one_more)] * 2})
    assert [list(cell["peers"]) for cell in run.results.cells] == [["d"], ["d"]]
    assert run.results.skipped == {
        "a": ["not here"],
        "b": ["out of memory at project 3x2-k1 float32"],
        "failed": ["project 3x2-k1 float32, c: ValueError: first line"],
    }


class Seconds:
    """A clock for the budget: each question takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_sections_end_in_time_and_what_is_left_is_listed(tmp_path: Path) -> None:
    run = gpu.Run(MadeUp(), dict(MACHINE), tmp_path, seconds=30, now=Seconds())
    sections = {name: [case(one_more)] * 40 for name in ("project", "linear")}
    kept = results.load(run.run(sections))
    done = len(kept.cells)
    assert 2 <= done < 40
    assert set(kept.skipped) == {"project", "linear"}
    (reason,) = kept.skipped["project"]
    assert reason.startswith("no time for project 3x2-k1 float32, project")
    assert 30 <= run._now() <= 40


def test_compiling_has_a_share_of_the_time(tmp_path: Path) -> None:
    clock = Seconds()

    def slow(x: torch.Tensor) -> torch.Tensor:
        clock.now += 5
        return x + 1

    run = gpu.Run(MadeUp(), dict(MACHINE), tmp_path, seconds=100, now=clock)
    run.run({"project": [case(one_more, compile=slow)] * 20})
    compiled = [cell for cell in run.results.cells if "compile" in cell["peers"]]
    assert 0 < len(compiled) < len(run.results.cells)
    assert run.results.skipped["compile"] == ["no time left to compile"]


def test_every_result_is_kept_as_it_comes(tmp_path: Path) -> None:
    def killed(x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    run = gpu.Run(MadeUp(), dict(MACHINE), tmp_path, seconds=1e6)
    with pytest.raises(KeyboardInterrupt):
        run.run({"project": [case(one_more), case(killed)]})
    assert len(results.load(tmp_path / "some-gpu-80gb.json").cells) == 1


# The grid


@pytest.mark.parametrize("grid", [gpu_grid.quick, gpu_grid.full])
def test_grids_have_every_section_and_no_problem_twice(grid: Any) -> None:
    sections = grid("cuda")
    assert list(sections) == list(gpu_grid.SHARES)
    cases = [
        (one.op, one.dtype, one.shape, one.dim, one.variant) for c in sections.values() for one in c
    ]
    assert len(set(cases)) == len(cases)
    assert sum(gpu_grid.SHARES.values()) == pytest.approx(1)


def test_the_full_grid_is_the_one_of_the_targets() -> None:
    sections = gpu_grid.full("cuda")
    linear = [one for one in sections["project"] if one.variant != "one-sided"]
    halves = {tuple(one.shape) for one in linear if one.dtype == "bfloat16"}
    rows, dims, ranks = (1, 64, 1024, 65536, 1 << 20), (512, 768, 1024, 1152), (1, 8, 16, 64, 256)
    assert halves == {(n, d, k) for n in rows for d in dims for k in ranks}
    variants = {one.variant for one in sections["project_rows"]}
    assert variants >= {f"{m} tenants {o}" for m in (100, 1000) for o in ("sorted", "unsorted")}


# Times and tables


def test_spread_is_that_of_the_quartiles() -> None:
    assert gpu_clock.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(1.0)


def test_rounds_fill_the_time_of_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def __init__(self, ms: float = 0.0) -> None:
            self.ms = ms

        def elapsed_time(self, end: Any) -> float:
            return end.ms - self.ms

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = object.__new__(gpu_clock.CudaClock)  # without what it keeps on a device
    order = []

    def turn(name: str, ms: float, calls: int) -> Any:
        return lambda: order.append(name) or (Event(1.0), Event(1.0 + ms), calls)

    times = clock.times({"a": turn("a", 9.0, 1), "b": turn("b", 300.0, 100)})
    assert order[-4:] == ["a", "b", "a", "b"]
    assert times == {"a": [pytest.approx(9e-3)] * 10, "b": [pytest.approx(3e-3)] * 10}
    for ms, rounds in ((1000.0, gpu_clock.LEAST_ROUNDS), (1e-3, gpu_clock.MOST_ROUNDS)):
        assert len(clock.times({"a": turn("a", ms, 1)})["a"]) == rounds


def test_ceilings_are_rates_of_what_was_timed() -> None:
    class Second(MadeUp):
        def times(self, turns: dict[str, Any]) -> dict[str, list[float]]:
            for call in turns.values():
                call()
            return {name: [1.0] for name in turns}

    found = gpu_clock.ceilings(Second(), "cpu", large=1000, side=100)
    assert found == {
        "copy_gb_per_s": 8000 / 1e9,
        "read_gb_per_s": 4000 / 1e9,
        "bfloat16_tflop_per_s": 2e6 / 1e12,
        "float32_tflop_per_s": 2e6 / 1e12,
        "events_us": 1e6,
    }
    assert set(found) == set(CEILINGS)


def cell(us: float, op: str = "project", **changes: Any) -> dict[str, Any]:
    """A problem at 0.9 of copy speed, where eager takes 300 us and torch.compile 200 us."""
    usual = {"op": op, "output": "new", "dtype": "bfloat16", "n": 65536, "d": 768, "k": 16}
    figures = {"dim": -1, "variant": "", "timed": "cold", "us": us, "spread": 0.02, "rounds": 9}
    rates = {"flops": 1, "bytes": 1, "gb_per_s": 2500.0, "gflop_per_s": 1.0, "error": 1e-3}
    sides = {"eager": [300.0, 300 / us, 2e-3], "compile": [200.0, 200 / us, 2e-3]}
    bounds = {"bounds": {"copy": [0.9 * us, 0.9]}, "peers": sides}
    return usual | figures | rates | bounds | changes


def file(*cells: dict[str, Any]) -> Any:
    return results.Results(dict(MACHINE), {"id": None}, {"compile": ["no time"]}, list(cells))


def test_targets_say_what_is_met_and_what_is_worst() -> None:
    slow = cell(120.0, d=512, bounds={"copy": [60.0, 0.5]})
    few = cell(4.0, n=64, timed="graph")
    lines = gpu_tables.targets(file(cell(100.0), slow, few)).splitlines()
    copy, wide, eager, compiled, latency, logits, linear = lines
    assert copy.startswith("MISS  project, n >= 65536, k <= 32")
    assert copy.endswith("1 of 2 miss, 0.500 to 0.900, worst at 65536 512 16")
    assert wide == (
        "none  project, n >= 65536, k = 64, bfloat16: of the speed of a copy: at least 0.7, "
        "not measured"
    )
    assert eager.startswith("pass")
    assert "2.50 to 3.00" in eager
    assert compiled.startswith("MISS")
    assert compiled.endswith("1 of 2 miss, 1.67 to 2.00, worst at 65536 512 16")
    assert latency.startswith("pass")
    assert "at most 5; 0 of 1 miss" in latency
    assert logits.startswith("none")
    assert linear.startswith("none")


@pytest.mark.parametrize(("us", "verdict"), [(149.0, "pass"), (151.0, "MISS")])
def test_products_are_held_against_the_bare_one(us: float, verdict: str) -> None:
    bare = cell(us, "logits", bounds={"bare GEMM": [100.0, 100 / us]}, variant="1000 classes")
    assert gpu_tables.targets(file(bare)).splitlines()[5].startswith(verdict)
    plain = {"plain GEMM": [100.0, 100 / (1.2 * us)]}
    rows = cell(1.2 * us, "linear", bounds=plain, variant="from 768, 100 tenants sorted")
    assert gpu_tables.targets(file(rows)).splitlines()[6].startswith(verdict)


def test_report_and_tables_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = file(cell(100.0), cell(4.0, n=64), cell(9.0, "fold_", dim=0, variant=""))
    text = tables.report(content)
    assert "Some GPU 80GB, torch 2.14, no commit" in text
    assert "copy 3000 GB/s" in text
    assert re.search(r"^ *64 +768 +16 +4.00 +2 .* pass$", text, re.M)
    assert re.search(r"^65536 +768 +16 +linear +9.00 ", text, re.M)
    assert "compile: no time" in text
    kept = results.keep(content, tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    mark = f"<!-- table {{}} of {kept.name} -->\nold\n<!-- end -->\n".format
    filled = tables.filled(mark("project bfloat16") + mark("targets") + mark("ceilings"))
    assert "| 65536 | 768 | 16 | 100 | 2 | 2500 | 0.900 | 3.00 | 2.00 | 1.0e-03 | pass |" in filled
    assert "- pass  project, n >= 65536, k <= 32" in filled
    assert "GEMM 800 TFLOP/s in bfloat16" in filled
    assert "old" not in filled
    assert tables.filled(filled) == filled


def test_two_runs_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(results.keep(file(cell(us)), tmp_path / str(us))) for us in (100.0, 120.0)]
    tables.main(["--compare", *names])
    assert "1.20" in capsys.readouterr().out


# The peer in Triton


SHRINK_EXPAND = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from triton_shrink_expand import shrink_expand

torch.manual_seed(0)
for n, d, k, m in [(70, 100, 3, 4), (130, 64, 16, 1), (5, 768, 64, 2), (200, 130, 20, 7)]:
    x = torch.randn(n, d).half()
    bank = torch.linalg.qr(torch.randn(m, d, k))[0].mT.contiguous()
    index = torch.randint(0, m, (n,), dtype=torch.int32)
    own, wide = bank.double()[index], x.double()
    dots = torch.einsum("nd,nkd->nk", wide, own)
    want = torch.nn.functional.normalize(wide - torch.einsum("nk,nkd->nd", dots, own), dim=-1)
    call = shrink_expand(x, bank, index)
    first = call()
    assert (first.double() - want).abs().max() <= 2 * torch.finfo(x.dtype).eps
    assert torch.equal(call(), first)
"""


def test_shrink_expand_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    # A process of its own: Triton asks once, at its import, whether it is to interpret.
    done = subprocess.run(
        [sys.executable, "-c", SHRINK_EXPAND, str(ROOT / "benchmarks")],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("own", "code"), [(one_more, 0), (lambda x: x, 1)])
def test_command_keeps_reports_and_says_whether_results_were_right(
    own: Any,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = {"project": [case(one_more)], "linear": [case(own, eager=one_more)]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU 80GB")
    monkeypatch.setattr(gpu._library, "CUDA_LIBRARY", Path("_C_cu13.abi3.so"))
    monkeypatch.setattr(gpu, "CudaClock", MadeUp)
    monkeypatch.setattr(gpu, "ceilings", lambda clock, device: CEILINGS)
    monkeypatch.setattr(gpu_grid, "quick", lambda device: cases)
    pytest.importorskip("triton")
    assert gpu.main(["--quick", "--only", "linear", "--out", str(tmp_path)]) == code
    shown = capsys.readouterr().out
    assert ("FAILED" in shown) == bool(code)
    assert "none  linear per row" in shown
    kept = results.load(tmp_path / "some-gpu-80gb.json")
    assert len(kept.cells) == 1 - code
    assert kept.machine["ceilings"] == CEILINGS


def test_suite_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no CUDA device" in capsys.readouterr().err


def test_file_is_json_with_a_problem_on_each_line(tmp_path: Path) -> None:
    path = results.keep(file(cell(1.0), cell(2.0, n=1)), tmp_path)
    lines = path.read_text().splitlines()
    assert [json.loads(line.rstrip(","))["us"] for line in lines[1:-1]] == [1.0, 2.0]
    assert not path.with_suffix(".tmp").exists()
