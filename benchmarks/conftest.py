"""Options of the suites, the cores that they run on, and what their JSON says about the machine.

    pytest benchmarks                                    # every problem on all cores
    pytest benchmarks --threads 1 --dtype bfloat16 -k 'fold and 512'
    pytest benchmarks --grid small --peers 'eager,JAX' --benchmark-json FILE

The process is held on as many cores as it has threads, before any library starts its own pool:
torch, OpenBLAS, faiss and JAX all count the cores that they may use, and none asks for less.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DTYPES = "float32,bfloat16,float16"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clipproj")
    group.addoption("--threads", type=int, help="threads of everybody; default: all cores")
    group.addoption("--dtype", default=DTYPES, help="names; default: %(default)s")
    group.addoption("--peers", default="", help="names, separated by commas; default: all")
    group.addoption(
        "--grid", choices=("full", "small"), default="full", help="default: %(default)s"
    )
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")


def pytest_configure(config: pytest.Config) -> None:
    # Nothing that runs threads may be imported above this line.
    threads = config.getoption("threads")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if threads and threads > len(cores):
            raise pytest.UsageError(f"--threads must be at most {len(cores)}, got {threads}")
        threads = threads or len(cores)
        os.sched_setaffinity(0, cores[-threads:])
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of compilers beside
    # OpenBLAS (numpy, faiss) holds its cores for 2^this cycles after a call, 2^26 unless told; that
    # would slow whoever is timed next. Calls of one batch follow each other much sooner than 2^20.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    import torch

    torch.set_num_threads(threads or torch.get_num_threads())
    _check_peers(_asked(config))


def _asked(config: pytest.Config) -> list[str]:
    return [name for name in config.getoption("peers").split(",") if name]


def _check_peers(names: list[str]) -> None:
    import peers_fold  # noqa: F401  each registers its peers
    import peers_linear  # noqa: F401
    import peers_logits  # noqa: F401
    import peers_one_sided  # noqa: F401
    import peers_project  # noqa: F401
    import peers_project_rows  # noqa: F401
    import peers_projected_norm  # noqa: F401
    from peers import PEERS

    known = dict.fromkeys(name for peers in PEERS.values() for name in peers)
    if unknown := set(names) - set(known):
        raise pytest.UsageError(f"--peers must be of {list(known)}, got {sorted(unknown)}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each test its `shape` (from the table that its module calls SHAPES) and `dtype`."""
    import shapes

    if "dtype" in metafunc.fixturenames:
        names = metafunc.config.getoption("dtype").split(",")
        if unknown := set(names) - set(shapes.DTYPES):
            raise pytest.UsageError(f"--dtype must be of {DTYPES}, got {sorted(unknown)}")
        metafunc.parametrize("dtype", [shapes.DTYPES[name] for name in names], ids=names)
    if "shape" in metafunc.fixturenames:
        table = metafunc.module.SHAPES[metafunc.config.getoption("grid")]
        metafunc.parametrize("shape", table, ids=str)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("device")


@pytest.fixture
def only(request: pytest.FixtureRequest) -> list[str]:
    """The peers that were asked for; empty for all."""
    return _asked(request.config)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    import torch

    with torch.inference_mode():
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from pairs import clock

    timer = clock(config.getoption("device"))
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=timer))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    import roofline
    import torch

    from clipproj import _C

    device = config.getoption("device")
    on_cpu = device == "cpu"
    threads = torch.get_num_threads()
    peak = {"fma_gflops": round(roofline.fma_peak(threads) / 1e9, 1)} if on_cpu else {}
    return {
        "device": device if on_cpu else torch.cuda.get_device_name(),
        "cpu": _cpu_model(),
        "cpu_isa": _C.cpu_isa(),
        "threads": threads,
        **peak,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build_info": _C.build_info(),
    }
