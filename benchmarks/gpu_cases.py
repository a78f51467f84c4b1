"""Problems of the GPU suite with one projector: who is timed, and what they must compute.

Unit rows and orthonormal directions, as the CPU suites have them (shapes.py). Beside the peers, who
solve the same problem, there are `bounds`, who do less: a copy of the rows, a bare product. A
peer's maker may raise SkipPeer; nothing is made before its problem's turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from peers import Call, SkipPeer, prepare
from peers_fold import OP as FOLD
from peers_project import OP as PROJECT
from peers_project import unit_
from peers_projected_norm import OP as PROJECTED_NORM
from shapes import DTYPES, Problem, Shape, expected, problem, sample
from torch import Tensor

from clipproj import ops, reference

FEW = 64  # rows, up to which a call is timed in a graph
Makers = dict[str, Callable[[], Call]]


@dataclass
class MadeCase:
    """A problem that has been made."""

    own: Call
    want: Tensor  # float64, of what `sampled` takes of a result
    sampled: Callable[[Tensor], Tensor]
    peers: Makers
    bounds: Makers
    bytes: int
    flops: int
    left: float = 0  # of the largest result, by solutions that stop early


@dataclass(frozen=True)
class Case:
    """A problem that can be made."""

    op: str
    dtype: str
    shape: Shape
    make: Callable[[], MadeCase] = field(repr=False, compare=False)
    dim: int = -1
    variant: str = ""

    @property
    def few(self) -> bool:
        return self.shape.n <= FEW and self.op != FOLD

    def __str__(self) -> str:
        layout = " linear" if self.dim == 0 else ""
        return " ".join(f"{self.op} {self.shape}{layout} {self.variant} {self.dtype}".split())


def _registered(op: str, names: tuple[str, ...], given: Problem) -> Makers:
    return {name: partial(prepare, op, name, given) for name in names}


def triton(x: Tensor, bank: Tensor, index: Tensor) -> Call:
    if x.dtype == torch.float32:
        raise SkipPeer("half types only, as in vLLM and Punica")
    if not x.is_cuda:
        raise SkipPeer("GPU only")
    from triton_shrink_expand import shrink_expand

    return shrink_expand(x, bank, index)


def copy(x: Tensor) -> Callable[[], Call]:
    """The least that a pass over the rows can take: each read once and written once."""
    return lambda: partial(torch.clone, x)


def project_case(device: str, dtype: str, shape: Shape, *, compiled: bool = True) -> Case:
    """`compiled`: torch.compile takes part, whose first call takes seconds."""

    def make() -> MadeCase:
        given = problem(shape, DTYPES[dtype], device)
        x, read = given.x, given.read
        n, d, k = shape
        names = ("eager", "eager addmm", *(["compile"] if compiled else []), "dense P")
        peers = _registered(PROJECT, names, given)
        index = torch.zeros(n, dtype=torch.int32, device=device)
        peers["Triton"] = lambda: triton(x, read[None], index)
        return MadeCase(
            own=lambda: ops.project(x, read, read, normalize=True),
            want=expected(PROJECT, given),
            sampled=sample,
            peers=peers,
            bounds={"copy": copy(x)},
            bytes=2 * x.nbytes + read.nbytes,
            flops=4 * n * d * k,
        )

    return Case(PROJECT, dtype, shape, make)


def one_sided_case(device: str, dtype: str, shape: Shape) -> Case:
    """Rows near the names that are forgotten, whose directions have products of .2 with each other,
    as one-sided contrasts of CLIP's texts have.
    """

    def make() -> MadeCase:
        given = problem(shape, DTYPES[dtype], device)
        n, d, k = shape
        own = torch.linalg.qr(torch.randn(d, k + 1))[0].T.to(device)
        read = unit_(own[:k] + 0.5 * own[k])
        gram = (read.double() @ read.double().T).float().fill_diagonal_(1)
        x = unit_(given.x.float() + 0.2 * read[torch.arange(n, device=device) % k])
        x, offset = x.to(given.x.dtype), torch.full((k,), 0.02, device=device)
        factors = {"offset": offset, "gram": gram}
        if k == 1:
            peers = {"eager": lambda: lambda: eager_clamp(x, read, offset)}
        else:
            peers = {"eager": lambda: lambda: eager_sweeps(x, read, offset, gram)}
        return MadeCase(
            own=lambda: ops.project(x, read, read, **factors, normalize=True),
            want=reference.project(sample(x), read, read, **factors, normalize=True),
            sampled=sample,
            peers=peers,
            bounds={
                "copy": copy(x),
                "linear": lambda: lambda: ops.project(x, read, read, offset, normalize=True),
            },
            bytes=2 * x.nbytes + read.nbytes + gram.nbytes,
            flops=4 * n * d * k,
            left=2.0**-9,
        )

    return Case(PROJECT, dtype, shape, make, variant="one-sided")


def eager_clamp(x: Tensor, read: Tensor, offset: Tensor) -> Tensor:
    rows = x.float()
    return unit_(rows - (rows @ read.T - offset).clamp_min_(0) @ read).to(x.dtype)


def eager_sweeps(x: Tensor, read: Tensor, offset: Tensor, gram: Tensor) -> Tensor:
    """The same ascent as the kernel's, in twelve sweeps."""
    rows = x.float()
    rest = (rows @ read.T - offset).T.contiguous()
    a = torch.zeros_like(rest)
    for _ in range(12):
        for i in range(len(read)):
            step = torch.maximum(rest[i], -a[i])
            a[i] += step
            rest.addr_(gram[i], step, alpha=-1)
    return unit_(rows - a.T @ read).to(x.dtype)


def norm_case(device: str, dtype: str, shape: Shape) -> Case:
    def make() -> MadeCase:
        given = problem(shape, DTYPES[dtype], device)
        x, read = given.x, given.read
        n, d, k = shape
        return MadeCase(
            own=lambda: ops.projected_norm(x, read, read),
            want=expected(PROJECTED_NORM, given),
            sampled=sample,
            peers=_registered(PROJECTED_NORM, ("eager", "compile"), given),
            bounds={},
            bytes=x.nbytes + read.nbytes + 4 * n,
            flops=4 * n * d * k,
        )

    return Case(PROJECTED_NORM, dtype, shape, make)


def fold_case(device: str, dtype: str, shape: Shape, dim: int) -> Case:
    def make() -> MadeCase:
        given = problem(shape, DTYPES[dtype], device, dim)
        weight, read = given.x.clone(), given.read
        n, d, k = shape
        return MadeCase(
            own=lambda: ops.fold_(weight, read, read, dim=dim),
            want=expected(FOLD, given),
            sampled=lambda out: sample(out, dim),
            peers=_registered(FOLD, ("addmm_", "compile"), given),
            bounds={"copy": copy(given.x)},
            bytes=2 * weight.nbytes + read.nbytes,
            flops=4 * n * d * k,
        )

    return Case(FOLD, dtype, shape, make, dim)
