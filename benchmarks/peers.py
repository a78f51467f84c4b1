"""Everything that `clipproj.ops.project` is measured beside, each written once.

A peer gets the features, the factors and `normalize`, prepares what a user would prepare once (the
factors in the right dtype), and returns the call to be timed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from clipproj import ops

Peer = Callable[[Tensor, Tensor, Tensor, bool], Callable[[], Tensor]]


def clipproj(x: Tensor, read: Tensor, write: Tensor, normalize: bool) -> Callable[[], Tensor]:
    return lambda: ops.project(x, read, write, normalize=normalize)


def eager(x: Tensor, read: Tensor, write: Tensor, normalize: bool) -> Callable[[], Tensor]:
    """Two matrix products, a subtraction and `normalize`, each a kernel of torch, in x's dtype."""
    read, write = read.T.to(x.dtype), write.to(x.dtype)

    def call() -> Tensor:
        out = x - (x @ read) @ write
        return functional.normalize(out, dim=-1) if normalize else out

    return call


PEERS: dict[str, Peer] = {"clipproj": clipproj, "eager": eager}
