"""CUDA: every operator works on the current stream and device, and waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cases import assert_bits
from every_op import OPERATORS, Inputs, inputs
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HALF_A_SECOND = 1_000_000_000  # of a GPU's clock cycles
each_operator = pytest.mark.parametrize("name", OPERATORS)


@pytest.fixture
def given() -> Inputs:
    return inputs(n=300, d=512, k=20)


@contextmanager
def warm_stream(name: str, given: Inputs) -> Iterator[torch.cuda.Stream]:
    """Current: a stream that has run the call once, so that kernels are loaded and memory is there.

    What loads or allocates may wait for the device, which is not what the tests are about.
    """
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        OPERATORS[name](given)
        torch.cuda.synchronize()
        yield stream


@pytest.fixture
def no_synchronization() -> Iterator[None]:
    """Makes torch raise where it would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@each_operator
def test_follows_what_its_stream_has_pending(given: Inputs, name: str) -> None:
    want = OPERATORS[name](given)
    ready = inputs(n=300, d=512, k=20)  # what the stream will hold in the end
    want_ready = OPERATORS[name](ready)
    assert not torch.equal(want, want_ready)
    with warm_stream(name, given) as stream:
        torch.cuda._sleep(HALF_A_SECOND)
        for field in vars(given):
            getattr(given, field).copy_(getattr(ready, field))
        out = OPERATORS[name](given)
        assert not stream.query(), "the call waited for its stream"
    stream.synchronize()
    assert_bits(out, want_ready)


@each_operator
def test_waits_for_nothing(given: Inputs, name: str, request: pytest.FixtureRequest) -> None:
    OPERATORS[name](given)  # loads the kernels
    torch.cuda._sleep(1)
    request.getfixturevalue("no_synchronization")
    torch.cuda._sleep(HALF_A_SECOND)
    OPERATORS[name](given)
    assert not torch.cuda.current_stream().query(), "the call waited for the device"


@each_operator
def test_leaves_other_streams_alone(given: Inputs, name: str) -> None:
    """A stream that is busy delays nobody else's results."""
    want = OPERATORS[name](given)
    busy = torch.cuda.Stream()
    with warm_stream(name, given) as free:
        with torch.cuda.stream(busy):
            torch.cuda._sleep(HALF_A_SECOND)
        out = OPERATORS[name](given)
    free.synchronize()
    assert not busy.query(), "the call was launched behind another stream, or waited for it"
    assert_bits(out, want)


@each_operator
def test_memory_in_use_belongs_to_the_stream_of_the_call(given: Inputs, name: str) -> None:
    """What a call frees while its kernel is still to run goes to nobody but the same stream."""
    want = OPERATORS[name](given)
    # Factors of odd strides are copied by the call, into memory that it frees at its end.
    for field in ("read", "write", "offset", "strength", "spans", "index"):
        dense = getattr(given, field)
        setattr(given, field, torch.stack([dense, dense], -1)[..., 1])

    def spoil() -> list[Tensor]:
        sizes = [1 << power for power in range(9, 22)] * 4
        return [torch.full((size,), 255, dtype=torch.uint8, device="cuda") for size in sizes]

    spoil()
    with warm_stream(name, given) as stream:
        torch.cuda._sleep(HALF_A_SECOND)
        out = OPERATORS[name](given)
        OPERATORS[name](given)  # a result that is freed at once
    kept = spoil()
    torch.cuda.current_stream().synchronize()
    assert all((block == 255).all() for block in kept)
    assert not stream.query(), "the call waited for its stream"
    stream.synchronize()
    assert_bits(out, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@each_operator
def test_works_on_the_device_of_its_tensors(name: str) -> None:
    given = inputs(n=300, d=512, k=20, device="cuda:1")
    with torch.cuda.device(1):
        want = OPERATORS[name](given)
    assert torch.cuda.current_device() == 0
    out = OPERATORS[name](given)
    assert out.device == torch.device("cuda", 1)
    assert torch.cuda.current_device() == 0
    assert_bits(out, want)
