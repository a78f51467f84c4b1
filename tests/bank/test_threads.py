"""A bank that changes while other threads call it: rows of before or of after, nothing else."""

import threading
import time

import pytest
import torch
from projectors import D, oblique, one_sided, symmetric

from clipproj import ProjectorBank

SECONDS = 1.5


@pytest.mark.parametrize("make", [oblique, one_sided])
def test_calls_see_one_projector_or_the_other(make):
    """One tenant is replaced again and again, by projectors of other ranks, whose rows lie where
    those of a third tenant were: a torn span or rows freed too early would show."""
    bank = ProjectorBank(D, capacity=24)
    choices = [make(k, seed=k) for k in (1, 9, 4, 7)]
    steady = one_sided(3, seed=40)
    bank.add("a", choices[0])
    bank.add("steady", steady)
    x = torch.randn(9000, D)  # long calls, which changes fall into
    names = ["a", "steady", None] * 3000
    index = bank.index(names)
    allowed = [p(x) for p in choices]
    a, still = torch.arange(0, 9000, 3), torch.arange(1, 9000, 3)
    want = steady(x)[still]
    failures, calls, stop = [], [0] * 3, threading.Event()

    def call(worker):
        while not stop.is_set():
            try:
                out = bank(x, index)
            except RuntimeError as error:
                failures.append(str(error))
                return
            calls[worker] += 1
            right = torch.stack([(out[a] == rows[a]).all(1) for rows in allowed]).any(0)
            if not right.all() or not torch.equal(out[still], want):
                failures.append(f"{int((~right).sum())} rows of nobody's projector")
                return

    workers = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    changes, end = 0, time.monotonic() + SECONDS
    try:
        while time.monotonic() < end and not failures:
            assert bank.replace("a", choices[changes % len(choices)]) == index[0]
            bank.add("other", (oblique, one_sided)[changes % 2](6, seed=changes))
            bank.compact()
            bank.remove("other")
            changes += 1
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert not failures
    assert changes > 20
    assert min(calls) > 20


def test_a_call_meets_a_removal_with_an_error_or_the_projector():
    bank = ProjectorBank(D, capacity=24)
    p = symmetric(3)
    x = torch.randn(9000, D)
    want, stop, wrong, errors = p(x), threading.Event(), [], []
    shared = {}
    index = bank.add("a", p)
    shared["index"] = torch.full((9000,), index, dtype=torch.int32)

    def call():
        while not stop.is_set():
            try:
                out = bank(x, shared["index"])
            except RuntimeError as error:
                errors.append(str(error))
                continue
            if not torch.equal(out, want):
                wrong.append(out)
                return

    worker = threading.Thread(target=call)
    worker.start()
    end = time.monotonic() + SECONDS / 2
    while time.monotonic() < end:
        bank.remove("a")
        bank.add("b", oblique(3, seed=5))  # in the rows that "a" had, as soon as it may
        bank.add("c", oblique(20, seed=6))
        bank.remove("c")
        bank.remove("b")
        shared["index"] = torch.full((9000,), bank.add("a", p), dtype=torch.int32)
    stop.set()
    worker.join()
    assert not wrong
    assert all("spans must lie within" in error for error in errors)
