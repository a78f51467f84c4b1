"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from clipproj import _C

torch.set_num_threads(1)  # matrices here are small: a busy pool costs more than it gives


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers whichever tests run, in whichever order."""
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test set torch's thread count."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=_C.build_info()["cpu_isas"])
def cpu_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine, in force while the test runs."""
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture(
    params=[*_C.build_info()["cpu_isas"], pytest.param("cuda", marks=pytest.mark.gpu)],
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each set of kernels: the device to put tensors on, "cpu" once for each instruction set."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        yield "cuda"
        return
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield "cpu"
    _C.set_cpu_isa(before)
