"""Free rows of a buffer whose size never changes."""

from __future__ import annotations

from bisect import bisect_left


class FreeRows:
    """Runs of free rows in [0, size). Not thread-safe.

    Args:
        size: rows in all, all of them free.
    """

    def __init__(self, size: int) -> None:
        self._runs = [(0, size)] if size else []  # (start, length), ascending, none adjacent

    @property
    def free(self) -> int:
        """Rows that are free, in one run or in many."""
        return sum(length for _, length in self._runs)

    @property
    def longest(self) -> int:
        """Rows of the longest run."""
        return max((length for _, length in self._runs), default=0)

    def take(self, length: int, below: int | None = None) -> int | None:
        """The start of `length` rows, no longer free; None where no run is long enough.

        The shortest run that will do, so that long ones last. With `below`, one whose rows all lie
        below that row.
        """
        if length == 0:
            return 0
        fitting = [
            (size, start)
            for start, size in self._runs
            if size >= length and (below is None or start + length <= below)
        ]
        if not fitting:
            return None
        size, start = min(fitting)
        place = self._runs.index((start, size))
        self._runs[place : place + 1] = [(start + length, size - length)] if size > length else []
        return start

    def give(self, start: int, length: int) -> None:
        """Rows that were taken are free again."""
        if length == 0:
            return
        place = bisect_left(self._runs, (start, 0))
        before, after = self._runs[:place], self._runs[place:]
        if before and sum(before[-1]) == start:
            start, length = before[-1][0], before[-1][1] + length
            before.pop()
        if after and start + length == after[0][0]:
            length += after.pop(0)[1]
        self._runs = [*before, (start, length), *after]
