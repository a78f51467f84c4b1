"""Peers of `project` and `project_out`: rows projected, then divided by their lengths.

A length counts as at least EPS, as in `torch.nn.functional.normalize`.
"""

from __future__ import annotations

from typing import Any

import torch
from peers import (
    FLOAT32,
    NEW,
    NOT_FLOAT16,
    OUT,
    Call,
    SkipPeer,
    compiled,
    dense,
    donated,
    jax_array,
    peer,
)
from shapes import Problem
from torch import Tensor, nn
from torch.nn import functional

OP = "project"
EPS = 1e-12


def unit_(rows: Tensor) -> Tensor:
    """Divides rows that the caller owns by their lengths."""
    return rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(EPS))


# Torch


def plain(x: Tensor, read: Tensor, write: Tensor) -> Tensor:
    """What one writes without thinking of speed; `torch.compile` gets the same function."""
    return functional.normalize(x - (x @ read) @ write, dim=-1)


@peer(OP, "eager", NEW)
def eager(given: Problem) -> Call:
    read, write = given.directions
    return lambda: plain(given.x, read, write)


@peer(OP, "eager addmm", NEW)
def eager_addmm(given: Problem) -> Call:
    """The subtraction inside the second product, the division in place."""
    read, write = given.directions
    return lambda: unit_(torch.addmm(given.x, given.x @ read, write, alpha=-1))


@peer(OP, "eager out=", OUT)
def eager_out(given: Problem) -> Call:
    """Every intermediate in a buffer made once: the best that torch's kernels allow."""
    x, (read, write) = given.x, given.directions
    dots, out, length = x @ read, torch.empty_like(x), x.new_empty(len(x), 1)

    def call() -> Tensor:
        torch.mm(x, read, out=dots)
        torch.addmm(x, dots, write, alpha=-1, out=out)
        torch.linalg.vector_norm(out, dim=-1, keepdim=True, out=length)
        return torch.div(out, length.clamp_min_(EPS), out=out)

    return call


@peer(OP, "compile", NEW)
def compile_new(given: Problem) -> Call:
    function, factors = compiled(plain), given.directions
    return lambda: function(given.x, *factors)


@peer(OP, "compile out=", OUT)
def compile_out(given: Problem) -> Call:
    """Inductor stores into the buffer instead of copying the result there."""
    factors, out = given.directions, torch.empty_like(given.x)
    function = compiled(lambda x, read, write, out: out.copy_(plain(x, read, write)))
    return lambda: function(given.x, *factors, out)


@peer(OP, "dense P", NEW, dtypes=NOT_FLOAT16)
def dense_new(given: Problem) -> Call:
    matrix = dense(given)
    return lambda: unit_(given.x @ matrix)


@peer(OP, "dense P out=", OUT, dtypes=NOT_FLOAT16)
def dense_out(given: Problem) -> Call:
    x, matrix = given.x, dense(given)
    out, length = torch.empty_like(x), x.new_empty(len(x), 1)

    def call() -> Tensor:
        torch.mm(x, matrix, out=out)
        torch.linalg.vector_norm(out, dim=-1, keepdim=True, out=length)
        return torch.div(out, length.clamp_min_(EPS), out=out)

    return call


# Array libraries


def jax_plain(x: Any, read: Any, write: Any) -> Any:
    import jax.numpy as jnp

    rows = x - (x @ read) @ write
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), EPS)


@peer(OP, "JAX", NEW, needs="jax")
def jax_new(given: Problem) -> Call:
    import jax

    x, read, write = map(jax_array, (given.x, *given.directions))
    function = jax.jit(jax_plain)
    return lambda: function(x, read, write).block_until_ready()


@peer(OP, "JAX donated", OUT, needs="jax")
def jax_donated(given: Problem) -> Call:
    return donated(jax_plain, given.x, *given.directions)


@peer(OP, "numpy", NEW, needs="numpy", dtypes=FLOAT32, cpu_only=True)
def numpy_new(given: Problem) -> Call:
    import numpy as np

    x, read, write = given.x.numpy(), *(factor.numpy() for factor in given.directions)

    def call() -> Any:
        rows = x - (x @ read) @ write
        rows /= np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(EPS))
        return rows

    return call


@peer(OP, "numpy out=", OUT, needs="numpy", dtypes=FLOAT32, cpu_only=True)
def numpy_out(given: Problem) -> Call:
    """Buffers made once; `einsum` sums the squares without writing them."""
    import numpy as np

    x, read, write = given.x.numpy(), *(factor.numpy() for factor in given.directions)
    dots, out, length = x @ read, np.empty_like(x), np.empty(len(x), np.float32)

    def call() -> Any:
        np.matmul(x, read, out=dots)
        np.matmul(dots, write, out=out)
        np.subtract(x, out, out=out)
        np.einsum("nd,nd->n", out, out, out=length)
        np.maximum(np.sqrt(length, out=length), np.float32(EPS), out=length)
        return np.divide(out, length[:, None], out=out)

    return call


# Libraries that people use for this job


@peer(OP, "LEACE", NEW, needs="concept_erasure")
def concept_erasure(given: Problem) -> Call:
    """concept-erasure's `LeaceEraser` with these factors, made of x's dtype as a user must."""
    from concept_erasure import LeaceEraser

    read, write = given.directions
    erase = LeaceEraser(proj_left=write.T, proj_right=read.T, bias=None)
    return lambda: unit_(erase(given.x))


def adapted(given: Problem, config: Any) -> nn.Module:
    """A PEFT layer on an identity Linear, unmerged.

    PEFT edits layers, not features: applied to features that are already there, as here, its base
    layer is the identity, a d x d product that comes with the method. Adapters are left in float32,
    PEFT's default.
    """
    import peft

    base = nn.Linear(given.x.shape[1], given.x.shape[1], bias=False)
    nn.init.eye_(base.weight)
    model = nn.Sequential(base).to(given.x.device, given.x.dtype)
    return peft.get_peft_model(model, config).eval().base_model.model[0]


@peer(OP, "LoRA", NEW, needs="peft", dtypes=NOT_FLOAT16)
def lora(given: Problem) -> Call:
    """PEFT LoRA: A = read, B = -write^T, scale 1."""
    import peft

    k = len(given.read)
    layer = adapted(given, peft.LoraConfig(r=k, lora_alpha=k, target_modules=["0"]))
    layer.lora_A["default"].weight.copy_(given.read)
    layer.lora_B["default"].weight.copy_(-given.write.T)
    return lambda: unit_(layer(given.x))


@peer(OP, "DEFT", NEW, needs="peft", dtypes=NOT_FLOAT16)
def deft(given: Problem) -> Call:
    """PEFT DEFT as pure subspace removal; it factors the directions (QR) in every call."""
    import peft

    if not hasattr(peft, "DeftConfig"):
        raise SkipPeer("this peft has no DEFT")
    options = {"decomposition_method": "qr", "para": True, "target_modules": ["0"]}
    layer = adapted(given, peft.DeftConfig(r=len(given.read), **options))
    layer.deft_P["default"].copy_(given.read.T)
    return lambda: unit_(layer(given.x))


@peer(OP, "faiss", NEW, needs="faiss", dtypes=FLOAT32, cpu_only=True)
def faiss_transform(given: Problem) -> Call:
    """faiss: a dense `LinearTransform`, then a `NormalizationTransform`, as in an index chain."""
    import faiss

    d = given.x.shape[1]
    linear, normalize = faiss.LinearTransform(d, d, False), faiss.NormalizationTransform(d)
    faiss.copy_array_to_vector(dense(given).T.flatten().numpy(), linear.A)
    linear.is_trained = True
    rows = given.x.numpy()
    return lambda: normalize.apply(linear.apply(rows))
