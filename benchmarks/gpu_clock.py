"""Device time of calls in turn: A B C A B C ..., so that a drifting clock rate is everybody's.

A call on many rows is timed by events around it, its data out of the cache: before each, more than
the L2 holds is *read*, which leaves nothing there to be written back at the next one's expense. The
host, which needs tens of microseconds to launch what torch.compile made, stays ahead of the device,
since the reading takes longer. A call on few rows is over before events could tell: many of them
are captured in one graph, and its replay is timed. Their data are in the cache, as features are
that an encoder has just made.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

Call = Callable[[], Any]
Times = dict[str, list[float]]  # seconds of each, per call, round by round

SHARE_SECONDS = 0.12  # of a problem, for all its calls together
MOST_ROUNDS, LEAST_ROUNDS = 40, 7
WARM_CALLS = 3
GRAPH_CALLS = 100  # of one call in a graph
COLD_BYTES = 512 << 20  # many times any L2, and 0.2 ms of reading


Turn = Callable[[], tuple[torch.cuda.Event, torch.cuda.Event, int]]  # events around so many calls


class Clock(Protocol):
    def ready(self, call: Call, *, few: bool) -> Any:
        """What `times` takes for a call; `few`: on few rows, to be timed in a graph."""

    def times(self, turns: dict[str, Any]) -> Times:
        """Of calls in turn."""


class CudaClock:
    def __init__(self) -> None:
        self._cold = torch.randn(COLD_BYTES // 4, device="cuda")
        self._sum = torch.empty((), device="cuda")

    def ready(self, call: Call, *, few: bool) -> Turn:
        if few:
            return self._replay(_captured(call))
        for _ in range(WARM_CALLS):
            call()
        return lambda: self._once(call)

    def _once(self, call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event, int]:
        start, end = _event(), _event()
        torch.sum(self._cold, 0, out=self._sum)
        start.record()
        call()
        end.record()
        return start, end, 1

    @staticmethod
    def _replay(graph: torch.cuda.CUDAGraph) -> Turn:
        def turn() -> tuple[torch.cuda.Event, torch.cuda.Event, int]:
            start, end = _event(), _event()
            start.record()
            graph.replay()
            end.record()
            return start, end, GRAPH_CALLS

        return turn

    def times(self, turns: dict[str, Turn]) -> Times:
        self._measure(turns, 1)
        seconds = sum(taken[0] for taken in self._measure(turns, 1).values())
        rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, math.ceil(SHARE_SECONDS / seconds)))
        return self._measure(turns, rounds)

    @staticmethod
    def _measure(turns: dict[str, Turn], rounds: int) -> Times:
        taken = [{name: turn() for name, turn in turns.items()} for _ in range(rounds)]
        torch.cuda.synchronize()
        return {
            name: [
                1e-3 * start.elapsed_time(end) / calls
                for start, end, calls in (one[name] for one in taken)
            ]
            for name in turns
        }


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _captured(call: Call) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_CALLS):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            call()
    graph.replay()
    return graph


def spread(times: Iterable[float]) -> float:
    """The distance of the quartiles, of the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def ceilings(
    clock: Clock, device: str, *, large: int = 1 << 29, side: int = 8192
) -> dict[str, float]:
    """What this device reaches: `large` float32 copied (bytes read and written) and read, products
    of square matrices, bfloat16 and float32 (no TF32); and what events add to a time.
    """
    x = torch.randn(large, device=device)
    y, total = torch.empty_like(x), x.new_empty(())
    a = torch.randn(side, side, device=device)
    half = a.bfloat16()
    calls = {
        "copy_gb_per_s": (2 * x.nbytes, lambda: y.copy_(x)),
        "read_gb_per_s": (x.nbytes, lambda: torch.sum(x, 0, out=total)),
        "bfloat16_tflop_per_s": (2 * side**3 / 1e3, lambda: half @ half),
        "float32_tflop_per_s": (2 * side**3 / 1e3, lambda: a @ a),
    }
    turns = {name: clock.ready(call, few=False) for name, (_, call) in calls.items()}
    turns["events_us"] = clock.ready(lambda: None, few=False)
    median = {name: statistics.median(taken) for name, taken in clock.times(turns).items()}
    found = {name: amount / median[name] / 1e9 for name, (amount, _) in calls.items()}
    return found | {"events_us": 1e6 * median["events_us"]}
