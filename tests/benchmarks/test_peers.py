"""The benchmark suite is right about what it compares; nothing here is timed.

Peers must compute the same update as the operators, or their times mean nothing. Those whose
package is absent skip: the `bench` extra has them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
import peers_fold  # noqa: F401  each registers its peers
import peers_one_sided
import peers_project  # noqa: F401
import peers_projected_norm  # noqa: F401
import pytest
import results
import shapes
import tables
import torch

ROOT = Path(__file__).parents[2]


PEERS = [
    pytest.param(op, name, dim, id=f"{op}-{name}{'-linear' if dim == 0 else ''}")
    for op, entries in peers.PEERS.items()
    for name in entries
    if name not in results.BOUNDS  # they do not compute the same
    for dim in ((-1, 0) if op == "fold_" else (-1,))
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "name", "dim"), PEERS)
def test_peer(op: str, name: str, dim: int, dtype: torch.dtype) -> None:
    """The right numbers, in every call, where the peer says that it puts them."""
    shape = shapes.Shape(n=12, d=64, k=16)
    given = shapes.problem(shape, dtype, dim=dim)
    if op == peers_one_sided.OP:
        given = shapes.half_spaces(shape, dtype)
    before = given.x.clone()
    want = shapes.expected(op, given)
    with torch.inference_mode():
        try:
            call = peers.prepare(op, name, given)
        except peers.SkipPeer as reason:
            pytest.skip(str(reason))
        first = call()
        place = peers.tensor(first).data_ptr()
        for out in (peers.tensor(first), peers.tensor(call())):
            assert out.shape == want.shape
            # Of unit rows, of which a quarter is erased; half types round the factors too.
            assert (out.double() - want).abs().max() <= 4 * torch.finfo(dtype).eps
        if peers.PEERS[op][name].output == peers.NEW:
            assert out.data_ptr() not in (place, given.x.data_ptr())
    assert torch.equal(given.x, before), "a peer must leave the problem to the next one"


def test_problem_is_the_same_at_every_call() -> None:
    shape = shapes.Shape(n=9, d=32, k=4)
    one, other = (shapes.problem(shape, torch.float32) for _ in range(2))
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.read, other.read)
    assert torch.equal(shapes.problem(shape, torch.float32, dim=0).x, one.x.T)


def test_grid_is_the_one_of_the_targets() -> None:
    assert len(shapes.ROWS["full"]) == 36
    assert len(shapes.FOLDS["full"]) == 9
    assert {str(shape) for shape in shapes.FOLDS["full"]} >= {"768x512-k1", "1664x1280-k64"}


# Tables


def cell(us: float, roofline: float = 0.5, **changes: Any) -> dict[str, Any]:
    """A problem on which eager takes 20 us and JAX 10 us."""
    usual = {"op": "project", "output": "new", "dtype": "float32", "n": 256, "d": 512, "k": 16}
    sides = {"eager": [20.0, 20 / us, 1e-8], "JAX": [10.0, 10 / us, 2e-8]}
    figures = {"us": us, "gb_per_s": 50.0, "gflop_per_s": 70.0, "rounds": 41, "error": 3e-8}
    bound = {"flops": 100, "bytes": 10, "limit": "bytes", "bound_us": 1.0, "roofline": roofline}
    return usual | {"dim": -1, "busy": 0.01} | bound | figures | {"peers": sides} | changes


def made(*cells: dict[str, Any], **machine: Any) -> Any:
    usual = {"device": "cpu", "cpu": "Some CPU", "cpu_isa": "avx2", "threads": 2}
    versions = {"fma_gflops": 100.0, "torch": "2.14", "build_info": {"version": "0.1.0"}}
    commit = {"id": "0" * 40, "time": "now", "dirty": False}
    skipped = {"numpy": ["float32 only"]}
    return results.Results(usual | versions | machine, commit, skipped, list(cells))


def test_table_marks_what_is_slower_than_the_best_peer() -> None:
    text = tables.report(made(cell(5.0, 0.8), cell(20.0, 0.7, n=4096), cell(2.5, 0.1, n=1)))
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "<" in lines["4096"]
    assert "<" not in lines["256"]
    assert lines["256"].split()[-3:] == ["JAX", "3.0e-08", "2.0e-08"]
    final = lines["project"].split()  # ratios 2, 0.5 and 4
    assert final[3:7] == ["1.59", "0.500", "1", "of"]
    assert final[8:11] == ["1", "of", "2"]  # of the rows with n >= 256
    assert "numpy (float32 only)" in text


def test_markdown_is_one_table_per_kind() -> None:
    text = tables.report(made(cell(5.0), cell(20.0, n=4096)), markdown=True)
    assert "| d, k | n = 256 | n = 4096 |" in text
    assert "| 512, 16 | 5.00 · 2.0 | **20.0 · 0.50** |" in text


def test_table_says_that_the_machine_was_busy() -> None:
    assert "1 of 2 rows" in tables.report(made(cell(5.0), cell(5.0, n=1, busy=0.4)))


def test_both_forms_of_a_file_read_the_same(tmp_path: Path) -> None:
    given = made(cell(5.0), cell(20.0, n=4096))
    raw = tmp_path / "raw.json"
    entries = [
        {"extra_info": one | {"skipped": {"numpy": "float32 only"}}, "stats": {"rounds": 41}}
        for one in given.cells
    ]
    content = {"machine_info": given.machine, "commit_info": given.commit, "benchmarks": entries}
    raw.write_text(json.dumps(content))
    assert results.load(raw) == given
    kept = results.keep(given, tmp_path)
    assert kept.name == "some-cpu-avx2-t2.json"
    assert results.load(kept) == given


def test_compare_flags_what_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = results.keep(made(cell(5.0), cell(5.0, n=1), cell(5.0, n=8)), tmp_path / "old")
    new = results.keep(made(cell(5.2), cell(7.0, n=1)), tmp_path / "new")
    tables.main(["--compare", str(old), str(new)])
    shown = capsys.readouterr().out
    lines = {line.split()[3]: line for line in shown.splitlines() if line.startswith("project")}
    assert not lines["256x512x16"].endswith("ratio")
    assert lines["1x512x16"].split()[-2:] == ["time", "ratio"]
    assert "1 problems in one file" in shown


def test_compare_refuses_another_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = results.keep(made(cell(5.0)), tmp_path / "old")
    new = results.keep(made(cell(5.0), threads=1), tmp_path / "new")
    with pytest.raises(SystemExit):
        tables.main(["--compare", str(old), str(new)])
    assert "threads: 2 and 1" in capsys.readouterr().err
    tables.main(["--compare", "--anyway", str(old), str(new)])
    assert "threads: 2 and 1" in capsys.readouterr().out


def test_a_suite_runs_and_prints(tmp_path: Path) -> None:
    """From the options to the table, in a process of its own: the suite pins its threads."""
    raw = tmp_path / "raw.json"
    options = ["--threads", "1", "--grid", "small", "--dtype", "float32", "--peers", "eager"]
    chosen = ["-k", "test_project and 1x512", f"--benchmark-json={raw}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "benchmarks", *options, *chosen]
    # As a worker of pytest-xdist, pytest-benchmark would time nothing.
    env = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = results.load(raw)
    assert content.machine["threads"] == 1
    for one in content.cells:
        assert one["us"] > 0
        assert 0 < one["bound_us"] < one["us"]
        assert one["error"] < 1e-6
    assert {one["output"] for one in content.cells} == {"new", "out"}
    assert "eager" in tables.report(content)


@pytest.mark.parametrize("name", ["docs/operators.md", "benchmarks/NOTES.md"])
def test_tables_of_texts_are_those_of_the_results(name: str) -> None:
    text = (tables.ROOT / name).read_text()
    assert tables.MARKED.search(text)
    assert tables.filled(text) == text
