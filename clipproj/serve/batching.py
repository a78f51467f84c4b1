"""Requests into batches: whoever comes while one batch runs is in the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Waiting(Generic[Item, Result]):
    item: Item
    since: float
    answer: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Calls `work` with one batch at a time, in the order in which items came.

    Ray's `serve.batch` closes a batch when its wait is over, also while another one runs: under
    load its batches stay as small as they were without, when they should grow.

    Args:
        work: gives a result, which may be an exception, for each item of a batch.
        size: of an item.
        most: sizes in a batch add up to at most so much; a larger item is a batch of its own.
        wait: seconds that an item waits for others to join it.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Result | BaseException]]],
        size: Callable[[Item], int],
        most: int,
        wait: float,
    ) -> None:
        self._work, self._size, self._most, self._wait = work, size, most, wait
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._came = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The item's result. Raises what `work` raised, or gave for it.

        A caller that is cancelled leaves the queue; where its batch is running, it only stops
        waiting.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, loop.time(), loop.create_future())
        self._queue.append(waiting)
        self._came.set()
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._run())
        return await waiting.answer

    async def _run(self) -> None:
        while self._queue:
            batch = await self._next()
            if not batch:
                continue
            try:
                results: Sequence[Any] = await self._work([one.item for one in batch])
                if len(results) != len(batch):
                    raise RuntimeError(
                        f"serve: work must give {len(batch)} results, got {len(results)}"
                    )
            except Exception as error:
                results = [error] * len(batch)
            for one, result in zip(batch, results, strict=True):
                if one.answer.done():  # cancelled
                    continue
                if isinstance(result, BaseException):
                    one.answer.set_exception(result)
                else:
                    one.answer.set_result(result)

    async def _next(self) -> list[_Waiting[Item, Result]]:
        """The next batch, when it is full or its first item has waited long enough."""
        end = self._queue[0].since + self._wait
        loop = asyncio.get_running_loop()
        while sum(self._size(one.item) for one in self._queue) < self._most:
            self._came.clear()
            left = end - loop.time()
            if left <= 0:
                break
            try:
                await asyncio.wait_for(self._came.wait(), left)
            except asyncio.TimeoutError:
                break
        batch: list[_Waiting[Item, Result]] = []
        room = self._most
        while self._queue:
            one = self._queue[0]
            if one.answer.done():
                self._queue.popleft()
                continue
            if batch and self._size(one.item) > room:
                break
            room -= self._size(one.item)
            batch.append(self._queue.popleft())
        return batch
