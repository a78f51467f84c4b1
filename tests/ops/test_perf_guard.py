"""The guard on instruction counts: what it makes of two sets of counts. Nothing is counted here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "benchmarks" / "guard" / "count.py"
CASE = "float32 n=16 d=64 k=16 normalize"


@pytest.fixture(scope="module")
def guard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guard_count", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def counts(isas: str = "scalar avx2", *, count: int = 1000, **other: Any) -> dict[str, Any]:
    usual = {"compiler": "g++ 12.2.0", "machine": "x86_64", "counts": {CASE: count}}
    return dict.fromkeys(isas.split(), usual | other)


@pytest.fixture
def run(guard: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """main() on kept and present counts, without a compiler; a refusal to step instead of these."""

    def main(kept: dict[str, Any], now: Any, *argv: str) -> int:
        def count_steps(driver: Path) -> dict[str, Any]:
            if isinstance(now, Exception):
                raise now
            return now

        monkeypatch.setattr(guard, "KEPT", tmp_path / "counts.json")
        guard.KEPT.write_text(json.dumps(kept))
        monkeypatch.setattr(guard, "build", lambda folder: folder)
        monkeypatch.setattr(guard, "count_steps", count_steps)
        return guard.main(list(argv))

    return main


@pytest.mark.parametrize(
    ("count", "found"),
    [(1000, "within"), (1050, "within"), (950, "within"), (1051, "grown"), (949, "shrunk")],
)
def test_five_percent_is_the_limit(guard: ModuleType, count: int, found: str) -> None:
    verdict = guard.compare(counts("avx2"), counts("avx2", count=count))
    for kind in ("within", "grown", "shrunk", "unmatched"):
        assert getattr(verdict, kind) == ([("avx2", CASE)] if kind == found else [])
    assert not verdict.skipped


def test_growth_fails_and_names_the_case(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(counts(), counts("scalar") | counts("avx2", count=1100)) == 1
    said = capsys.readouterr().out
    assert f"avx2 {CASE} grew by 10.00% (1000 -> 1100)" in said
    assert "FAILED: 1 cases grew by more than 5%" in said
    assert f"scalar {CASE} grew" not in said


def test_equal_counts_pass(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(counts(), counts()) == 0
    assert "2 cases did not grow" in capsys.readouterr().out


def test_shrinking_asks_for_an_update(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(counts(), counts(count=900)) == 0
    assert "2 cases shrank by more than 5%, run make perf-guard-update" in capsys.readouterr().out


@pytest.mark.parametrize("side", ["kept", "now"])
def test_a_case_on_one_side_only_fails(run: Any, guard: ModuleType, side: str) -> None:
    more = counts("avx2", counts={CASE: 1000, "float32 n=1 d=8 k=1": 10})
    less = counts("avx2")
    assert run(*((more, less) if side == "kept" else (less, more))) == 1


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"compiler": "g++ 13.1.0"}, "counts were kept with g++ 12, this is g++ 13"),
        ({"compiler": "clang++ 12.2.0"}, "counts were kept with g++ 12, this is clang++ 12"),
        ({"machine": "aarch64"}, "counts were kept on x86_64, this is aarch64"),
    ],
)
def test_another_toolchain_is_not_compared(
    run: Any, capsys: pytest.CaptureFixture[str], other: dict[str, str], reason: str
) -> None:
    assert run(counts("avx2"), counts("avx2", count=9999, **other)) == 0
    said = capsys.readouterr().out
    assert f"avx2 not compared: {reason}" in said
    assert "nothing compared" in said


def test_a_minor_version_is_compared(run: Any) -> None:
    assert run(counts(), counts(compiler="g++ 12.4.0", count=1100)) == 1


def test_a_missing_instruction_set_is_said(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(counts("scalar avx2 avx512"), counts("scalar avx2")) == 0
    said = capsys.readouterr().out
    assert "avx512 not compared: it cannot be counted on this machine" in said
    assert "2 cases did not grow" in said


def test_an_instruction_set_never_kept_is_said(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(counts("scalar"), counts("scalar avx2")) == 0
    assert "avx2 not compared: no counts were kept" in capsys.readouterr().out


def test_update_keeps_what_this_machine_cannot_count(run: Any, guard: ModuleType) -> None:
    kept = counts("scalar avx2 avx512")
    now = counts("scalar avx2", count=2000, compiler="g++ 13.1.0")
    assert run(kept, now, "--update") == 0
    assert json.loads(guard.KEPT.read_text()) == kept | now


def test_no_stepping_and_no_valgrind_is_an_error(
    run: Any,
    guard: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(guard.shutil, "which", lambda name: None)
    refusal = guard.SteppingRefused("this system refuses to step a process: not permitted")
    assert run(counts(), refusal) == 2
    said = capsys.readouterr()
    assert "refuses to step a process: not permitted" in said.out
    assert "cannot count: valgrind is not installed" in said.err


def test_no_stepping_falls_back_on_callgrind(
    run: Any, guard: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "count_callgrind", lambda driver: counts(count=1100))
    assert run(counts("scalar avx2 avx512"), guard.SteppingRefused("not permitted")) == 1


def test_a_driver_that_fails_is_no_refusal(
    run: Any, guard: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "count_callgrind", lambda driver: counts())
    assert run(counts(), guard.CannotCount("the driver failed")) == 2


def test_calling_costs_are_taken_off(guard: ModuleType) -> None:
    rows = [["g++ 12.2.0"], ["none", "nothing", "70"], ["avx2", CASE, "170"]]
    assert guard.record(rows)["avx2"]["counts"] == {CASE: 100}
    assert guard.record(rows)["avx2"]["compiler"] == "g++ 12.2.0"


def test_counts_are_kept_for_every_instruction_set(guard: ModuleType) -> None:
    kept = json.loads(guard.KEPT.read_text())
    assert {"scalar", "avx2", "avx512"} <= set(kept)
    assert len({len(record["counts"]) for record in kept.values()}) == 1
