"""Free rows: none handed out twice, none lost, neighbours joined."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from clipproj.bank.free_rows import FreeRows


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_rows_are_handed_out_once_and_come_back(data):
    size = data.draw(st.integers(0, 40))
    space, held = FreeRows(size), []
    for _ in range(data.draw(st.integers(1, 60))):
        if held and data.draw(st.booleans()):
            space.give(*held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            length = data.draw(st.integers(0, 12))
            below = data.draw(st.none() | st.integers(0, size))
            longest, start = space.longest, space.take(length, below)
            if start is None:
                assert length > longest or below is not None
            else:
                held.append((start, length))
                assert 0 <= start <= size - length
                assert length == 0 or below is None or start + length <= below
        taken = sorted((start, length) for start, length in held if length)
        assert all(sum(a) <= b[0] for a, b in pairwise(taken))
        assert space.free == size - sum(length for _, length in taken)
    for start, length in held:
        space.give(start, length)
    assert space.longest == space.free == size


def test_takes_the_shortest_run_that_will_do():
    space = FreeRows(10)
    assert [space.take(n) for n in (2, 3, 5)] == [0, 2, 5]
    space.give(0, 2)
    space.give(5, 5)
    assert space.take(2) == 0
    assert space.take(3, below=5) is None
    assert space.take(3, below=8) == 5
