"""clipproj and its peers timed in turn: A B C A B C ..., so that a drifting machine does not lie.

A round times a batch of calls of clipproj, then one of each peer; a peer's ratio is the median
over the rounds of its time divided by clipproj's in the same round. pytest-benchmark owns the
rounds and clipproj's times (`pedantic`; the peers run in its teardown), so that its own table and
JSON hold true times per call.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import roofline
import torch
from peers import PEERS, Call, SkipPeer, prepare, tensor
from pytest_benchmark.fixture import BenchmarkFixture
from roofline import Work
from shapes import Problem, Shape, expected, sample
from torch import Tensor

BATCH_SECONDS = 2e-3  # a batch of calls: time for one to be among its own data
SHARE_SECONDS = 0.12  # what one call may use of a problem, the first calls apart
MOST_ROUNDS = 41
LEAST_ROUNDS = 5  # of clipproj; a slow peer may get one
ONCE_SECONDS = 1.0  # a peer's call above this is timed once, before the rounds
CACHED_SECONDS = 0.02  # calls below this find their data in a cache: precede each batch by some
REST_SECONDS = 0.002  # OpenMP's and OpenBLAS's threads hold their cores for a while after a call


def clock(device: str) -> Callable[[], float]:
    """Seconds; on a GPU after everything that was launched has run."""
    if device == "cpu":
        return perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize()
        return perf_counter()

    return synchronized


def waited() -> float:
    """Seconds for which threads of this process could have run but had no core; 0 if unknown.

    Linux says so. It is the one measure that tells a machine busy with other work from a slow call.
    """
    total = 0
    for statistic in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            total += int(statistic.read_text().split()[1])
    return 1e-9 * total


class TimedCall:
    """A call, its error against float64 in the first result, and how often it will be timed."""

    def __init__(self, call: Call, error: Callable[[Tensor], float], now: Callable[[], float]):
        self.call, self._now = call, now
        self.times: list[float] = []  # seconds per call
        self.turns: list[int] = []  # the rounds in which they were taken
        self.error = error(tensor(call()))  # the first call: compiles, allocates
        seconds = self._measure(1)
        if seconds < CACHED_SECONDS:
            seconds = min(seconds, self._measure(math.ceil(BATCH_SECONDS / seconds)))
        self.batch = max(1, math.ceil(BATCH_SECONDS / seconds))
        self.cached = seconds < CACHED_SECONDS
        self.rounds = min(MOST_ROUNDS, max(1, int(SHARE_SECONDS / (seconds * self.batch))))
        if seconds > ONCE_SECONDS:
            self.times, self.rounds = [seconds], 0

    def _measure(self, calls: int) -> float:
        start = self._now()
        for _ in range(calls):
            self.call()
        return (self._now() - start) / calls

    def ready(self) -> None:
        """Lets the threads of the one before fall asleep, then fills caches and wakes its own."""
        if torch.get_num_threads() > 1:
            sleep(REST_SECONDS)
        if self.cached:
            for _ in range(max(1, self.batch // 4)):
                self.call()

    def turn(self, number: int, of: int) -> None:
        """Its part of a round; who has fewer rounds takes them evenly spread over all."""
        due = min(self.rounds, of)
        if (number + 1) * due // of > number * due // of:
            self.ready()
            self.times.append(self._measure(self.batch))
            self.turns.append(number)

    def ratio(self, times: list[float]) -> float:
        """To the times of each round, in the same ones."""
        if not self.turns:
            return statistics.median(self.times) / statistics.median(times)
        pairs = zip(self.times, self.turns, strict=True)
        return statistics.median(mine / times[number] for mine, number in pairs)


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def compare(
    benchmark: BenchmarkFixture,
    call: Call,
    given: Problem,
    *,
    op: str,
    output: str,
    shape: Shape,
    work: Work,
    only: list[str],
) -> None:
    """Times `call`, clipproj's operator `op`, beside its peers; the record goes to extra_info.

    Args:
        output: "new" or "out": only peers that return their results in the same way compete.
        work: arithmetic and traffic of the problem, for the roofline.
        only: names of the peers to run; all where it is empty.
    """
    device = given.x.device.type
    now = clock(device)
    want = expected(op, given)

    def error(out: Tensor) -> float:
        """Of the sampled rows; features and lengths are of size 1."""
        return (sample(out, given.dim).double() - want).abs().max().item()

    peers: dict[str, TimedCall] = {}
    skipped: dict[str, str] = {}
    for name, entry in PEERS[op].items():
        if entry.output != output or (only and name not in only):
            continue
        try:
            peers[name] = TimedCall(prepare(op, name, given), error, now)
        except SkipPeer as reason:
            skipped[name] = str(reason)
    own = TimedCall(call, error, now)

    rounds = max(own.rounds, LEAST_ROUNDS)
    done = itertools.count()

    def others() -> None:
        number = next(done)
        if number >= rounds:  # pytest-benchmark calls once more, for the result
            return
        for one in peers.values():
            one.turn(number, rounds)
        own.ready()

    own.ready()
    threads = torch.get_num_threads()
    start, waiting = perf_counter(), waited()
    benchmark.pedantic(own.call, teardown=others, rounds=rounds, iterations=own.batch)
    busy = (waited() - waiting) / (perf_counter() - start) / threads
    record: dict[str, Any] = {
        "op": op,
        "output": output,
        "dtype": str(given.x.dtype).removeprefix("torch."),
        **shape._asdict(),
        "dim": given.dim,
        "flops": work.flops,
        "bytes": work.bytes,
        "error": _rounded(own.error, 2),
        "skipped": skipped,
    }
    if device == "cpu":
        bound, record["limit"] = roofline.bound(work, threads)
        record["bound_us"] = _rounded(1e6 * bound)
    if benchmark.enabled:
        times = benchmark.stats.stats.data
        seconds = statistics.median(times)
        record |= {
            "us": _rounded(1e6 * seconds),
            "busy": _rounded(busy, 2),
            "gb_per_s": _rounded(work.bytes / seconds / 1e9),
            "gflop_per_s": _rounded(work.flops / seconds / 1e9),
            "peers": {name: _against(peer, times) for name, peer in peers.items()},
        }
        if device == "cpu":
            record["roofline"] = _rounded(record["bound_us"] / record["us"])
    benchmark.group = f"{op} {output} {record['dtype']} threads={threads}"
    benchmark.extra_info |= record


def _against(peer: TimedCall, times: list[float]) -> list[float]:
    """[median us, ratio to clipproj, error]."""
    us = 1e6 * statistics.median(peer.times)
    return [_rounded(us), _rounded(peer.ratio(times)), _rounded(peer.error, 2)]
