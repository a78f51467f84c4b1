"""Requests into batches: who comes together, who alone, who is told what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from clipproj.serve.batching import Batcher


class Model:
    """Doubles numbers, batch by batch, each of which waits to be let go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.at_once = 0

    async def __call__(self, batch: Sequence[int]) -> list[Any]:
        self.batches.append(list(batch))
        self.at_once += 1
        assert self.at_once == 1
        await self.gate.wait()
        self.at_once -= 1
        if 13 in batch:
            raise OSError("thirteen")
        return [ValueError("seven") if one == 7 else 2 * one for one in batch]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_who_comes_while_a_batch_runs_is_in_the_next() -> None:
    async def run() -> list[list[int]]:
        model = Model()
        batcher = Batcher(model, lambda _: 1, most=8, wait=0.0)
        calls = []
        for i in range(11):
            calls.append(asyncio.create_task(batcher(i)))
            await settle()
        model.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [r for r in results if isinstance(r, int)] == [2 * i for i in range(11) if i != 7]
        assert isinstance(results[7], ValueError)
        return model.batches

    assert asyncio.run(run()) == [[0], [1, 2, 3, 4, 5, 6, 7, 8], [9, 10]]


def test_a_batch_waits_for_others_until_it_is_full() -> None:
    async def run(wait: float, items: list[int]) -> list[list[int]]:
        model = Model()
        model.gate.set()
        batcher = Batcher(model, lambda size: size, most=10, wait=wait)
        await asyncio.wait_for(asyncio.gather(*map(batcher, items)), 5)
        return model.batches

    assert asyncio.run(run(0.05, [4, 4])) == [[4, 4]]  # in the end it goes though not full
    # Full at once, in the order of their coming; what is too large goes alone.
    assert asyncio.run(run(1000.0, [4, 4, 4, 12, 10])) == [[4, 4], [4], [12], [10]]


def test_errors_and_cancelled_callers_leave_the_others_alone() -> None:
    async def run() -> list[list[int]]:
        model = Model()
        batcher = Batcher(model, lambda _: 1, most=2, wait=0.0)
        calls = [asyncio.create_task(batcher(i)) for i in (1, 13, 3, 4, 5)]
        await settle()
        calls[0].cancel()  # its batch runs
        calls[2].cancel()  # still in the queue
        model.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        kinds = [asyncio.CancelledError, OSError, asyncio.CancelledError, int, int]
        assert [type(r) for r in results] == kinds
        assert results[3:] == [8, 10]
        assert await batcher(6) == 12  # goes on after an idle time
        return model.batches

    assert asyncio.run(run()) == [[1, 13], [4, 5], [6]]


def test_too_few_results_are_nobodys() -> None:
    async def short(batch: Sequence[int]) -> list[int]:
        return list(batch)[1:]

    async def run() -> None:
        batcher = Batcher(short, lambda _: 1, most=4, wait=0.0)
        await asyncio.gather(batcher(1), batcher(2))

    with pytest.raises(RuntimeError, match="must give 2 results, got 1"):
        asyncio.run(run())
