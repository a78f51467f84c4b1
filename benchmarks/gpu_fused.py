"""Problems of the GPU suite with a projector for each row, or with the products around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gpu_cases import Case, MadeCase, Makers, copy, triton
from peers import Call, SkipPeer, compiled
from peers_project import plain, unit_
from shapes import DTYPES, Shape, problem, sample
from torch import Tensor
from torch.nn import functional

from clipproj import ops, reference

MOST_GATHERED = 4 << 30  # bytes of directions, one copy for each row, that a peer may ask for


@dataclass(frozen=True)
class Tenants:
    """Projectors of rank k in one bank, and each row's own."""

    bank: Tensor  # [m, k, d] float32, orthonormal in each
    index: Tensor  # [n] int32

    @property
    def operands(self) -> dict[str, Tensor]:
        m, k, d = self.bank.shape
        starts = torch.arange(0, m * k, k, dtype=torch.int32)
        spans = torch.stack([starts, torch.full_like(starts, k)], -1).to(self.bank.device)
        directions = self.bank.view(m * k, d)
        return {
            "read": directions,
            "write": directions,
            "offset": None,
            "spans": spans,
            "index": self.index,
        }


def tenants(device: str, n: int, d: int, k: int, m: int, order: str) -> Tenants:
    torch.manual_seed(2)
    bank = torch.linalg.qr(torch.randn(m, d, k))[0].mT.contiguous()
    index = torch.arange(n) * m // n
    index = index if order == "sorted" else index[torch.randperm(n)]
    return Tenants(bank.to(device), index.to(device, torch.int32))


def _each(x: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Rows projected by directions gathered for each, then normalised: in the dtype of x."""
    own = bank[index]
    dots = torch.einsum("nd,nkd->nk", x, own)
    return functional.normalize(x - torch.einsum("nk,nkd->nd", dots, own), dim=-1)


def _gather(x: Tensor, given: Tenants) -> Call:
    size = x.nbytes * given.bank.shape[1]
    if size > MOST_GATHERED:
        raise SkipPeer(f"directions for each row are more than {MOST_GATHERED >> 30} GB")
    bank = given.bank.to(x.dtype)
    return lambda: _each(x, bank, given.index)


def rows_case(device: str, dtype: str, shape: Shape, m: int, order: str) -> Case:
    def make() -> MadeCase:
        x = problem(shape, DTYPES[dtype], device).x
        n, d, k = shape
        bank = tenants(device, n, d, k, m, order)
        operands, one = bank.operands, bank.bank[0]
        return MadeCase(
            own=lambda: ops.project_rows(x, **operands, normalize=True),
            want=_each(sample(x).double(), bank.bank.double(), sample(bank.index)),
            sampled=sample,
            peers={
                "eager gather": lambda: _gather(x, bank),
                "Triton": lambda: triton(x, bank.bank, bank.index),
            },
            bounds={
                "copy": copy(x),
                "one projector": lambda: lambda: ops.project(x, one, one, normalize=True),
            },
            bytes=2 * x.nbytes + bank.bank.nbytes + 4 * n,
            flops=4 * n * d * k,
        )

    return Case("project_rows", dtype, shape, make, variant=f"{m} tenants {order}")


def linear_case(device: str, dtype: str, shape: Shape, width: int, m: int) -> Case:
    """m tenants, their rows in order; 0: one projector."""

    def make() -> MadeCase:
        n, d, k = shape
        x = problem(Shape(n, width, 1), DTYPES[dtype], device).x
        torch.manual_seed(3)
        weight = torch.randn(d, width, device=device).to(x.dtype)
        bank = tenants(device, n, d, k, max(m, 1), "sorted")
        operands, one = bank.operands, bank.bank[0]
        if not m:
            operands = {"read": one, "write": one}
        folded = ops.fold_(weight.clone(), one, one, dim=0)
        factors = one.T.to(x.dtype).contiguous(), one.to(x.dtype)

        def eager(weight: Tensor, read: Tensor, write: Tensor) -> Tensor:
            return plain(functional.linear(x, weight), read, write)

        def steps() -> Tensor:
            z = functional.linear(x, weight)
            if m:
                return ops.project_rows(z, **operands, normalize=True)
            return ops.project_(z, **operands, normalize=True)

        def compile_peer() -> Call:
            function = compiled(eager)
            return lambda: function(weight, *factors)

        peers: Makers = {"GEMM, then ours": lambda: steps}
        if m:
            rounded = bank.bank.to(x.dtype)
            peers["eager gather"] = lambda: (
                lambda: _each(functional.linear(x, weight), rounded, bank.index)
            )
        else:
            peers["eager"] = lambda: lambda: eager(weight, *factors)
            peers["compile"] = compile_peer
            peers["folded GEMM"] = lambda: lambda: unit_(functional.linear(x, folded))
        z = functional.linear(sample(x).double(), weight.double())
        return MadeCase(
            own=lambda: ops.linear(x, weight, None, **operands, normalize=True),
            want=_each(z, bank.bank.double(), sample(bank.index)),
            sampled=sample,
            peers=peers,
            bounds={"plain GEMM": lambda: lambda: functional.linear(x, weight)},
            bytes=x.nbytes + weight.nbytes + n * d * x.itemsize,
            flops=2 * n * width * d + 4 * n * d * k,
        )

    whose = f"{m} tenants sorted" if m else "one projector"
    return Case("linear", dtype, shape, make, variant=f"from {width}, {whose}")


def logits_case(device: str, dtype: str, shape: Shape, classes: int) -> Case:
    def make() -> MadeCase:
        given = problem(shape, DTYPES[dtype], device)
        x, read = given.x, given.read
        n, d, k = shape
        torch.manual_seed(3)
        texts = functional.normalize(torch.randn(classes, d, device=device), dim=-1).to(x.dtype)
        scale = torch.tensor(100.0, device=device)
        factors = given.directions

        def eager(read: Tensor, write: Tensor) -> Tensor:
            return 100 * (plain(x, read, write) @ texts.T)

        def compile_peer() -> Call:
            function = compiled(eager)
            return lambda: function(*factors)

        rows = reference.project(sample(x), read, read, normalize=True)
        return MadeCase(
            own=lambda: ops.logits(x, texts, read, read, None, None, scale),
            want=100 * rows @ texts.double().T,
            sampled=sample,
            peers={
                "eager": lambda: lambda: eager(*factors),
                "compile": compile_peer,
                "ours, then GEMM": lambda: (
                    lambda: 100 * (ops.project(x, read, read, normalize=True) @ texts.T)
                ),
            },
            bounds={"bare GEMM": lambda: lambda: x @ texts.T},
            bytes=x.nbytes + texts.nbytes + n * classes * x.itemsize,
            flops=2 * n * d * classes + 4 * n * d * k,
        )

    return Case("logits", dtype, shape, make, variant=f"{classes} classes")
