"""What the operators are measured beside: the registry of peers, and what several of them share.

A peer gets a problem, prepares what its user would prepare once (factors in the right dtype, dense
matrices, buffers, modules) and returns the call to be timed. It says whether each call makes a new
result or writes into memory that is there: the two are compared apart, since fresh memory costs
page faults. A peer whose package is absent, or that does not do this dtype, is skipped by `prepare`
with the reason. The peers of an operator are in peers_<operator>.py, each once; importing the file
registers them. All run under `torch.inference_mode`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from shapes import Problem
from torch import Tensor

NEW, OUT = "new", "out"  # a new result per call; written into x or a buffer
FLOAT32 = (torch.float32,)
# On a CPU, where torch multiplies float16 at 4 GFLOP/s: d x d products take minutes.
NOT_FLOAT16 = (torch.float32, torch.bfloat16)
ALL = (torch.float32, torch.bfloat16, torch.float16)

Call = Callable[[], Any]  # the result is a tensor, or an array that `tensor` understands


class SkipPeer(Exception):
    """Why a peer cannot run."""


@dataclass(frozen=True)
class Peer:
    make: Callable[[Problem], Call]
    output: str
    needs: str | None
    dtypes: tuple[torch.dtype, ...]
    cpu_only: bool


PEERS: dict[str, dict[str, Peer]] = {
    op: {}
    for op in (
        "project",
        "project_rows",
        "projected_norm",
        "fold_",
        "linear",
        "logits",
        "one_sided",
    )
}


def peer(
    op: str,
    name: str,
    output: str,
    *,
    needs: str | None = None,
    dtypes: tuple[torch.dtype, ...] = ALL,
    cpu_only: bool = False,
) -> Callable[[Callable[[Problem], Call]], Callable[[Problem], Call]]:
    """Registers the function as the peer `name` of `op`; `needs` is the package that it imports."""

    def register(make: Callable[[Problem], Call]) -> Callable[[Problem], Call]:
        assert name not in PEERS[op], f"two peers of {op} are called {name}"
        PEERS[op][name] = Peer(make, output, needs, dtypes, cpu_only)
        return make

    return register


def prepare(op: str, name: str, given: Problem) -> Call:
    """The call to be timed; raises SkipPeer with the reason where the peer does not apply."""
    entry = PEERS[op][name]
    if entry.needs and importlib.util.find_spec(entry.needs) is None:
        raise SkipPeer(f"{entry.needs} is not installed")
    on_cpu = given.x.device.type == "cpu"
    if entry.cpu_only and not on_cpu:
        raise SkipPeer("CPU only")
    if on_cpu and given.x.dtype not in entry.dtypes:
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in entry.dtypes)
        raise SkipPeer(f"{dtypes} only")
    return entry.make(given)


def tensor(result: Any) -> Tensor:
    """A peer's result (torch, numpy or JAX) as a tensor that shares its memory."""
    return result if isinstance(result, Tensor) else torch.from_dlpack(result)


# Shared by the peers of several operators


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Inductor for these sizes alone. Dynamo forgets other sizes: it gives up at the ninth."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def dense(given: Problem) -> Tensor:
    """I - read^T write as a `[d, d]` matrix, rounded once to the dtype of x."""
    read, write = given.read.double(), given.write.double()
    eye = torch.eye(read.shape[1], dtype=torch.float64, device=read.device)
    return (eye - read.T @ write).to(given.x.dtype)


def jax_array(given: Tensor) -> Any:
    """A JAX array on the memory of a tensor, or on a copy where JAX needs other alignment."""
    import jax

    if given.is_cuda and jax.default_backend() != "gpu":
        raise SkipPeer("this JAX has no GPU")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # a thread less to wait for
    return jax.dlpack.from_dlpack(given.contiguous())


def donated(function: Callable[..., Any], x: Tensor, *factors: Tensor) -> Call:
    """JAX's way of writing over x: each call gives its result the memory of the one before."""
    import jax
    import jax.numpy as jnp

    arrays = [jax_array(factor) for factor in factors]
    out = jnp.array(jax_array(x), copy=True)
    compiled_function = jax.jit(function, donate_argnums=0)

    def call() -> Any:
        nonlocal out
        out = compiled_function(out, *arrays).block_until_ready()
        return out

    return call
