"""Rows that are no plain tensor: numpy's arrays, DTensors shard by shard, nested tensors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import clipproj
from clipproj import Embeddings, Projector, ProjectorBank, ZeroShotHead, ops
from clipproj.audit import Samples

D = 24


def rows(count: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, D)).astype(dtype)


def unit(count: int, seed: int = 0) -> np.ndarray:
    made = rows(count, np.float64, seed)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def basis() -> np.ndarray:
    return np.linalg.qr(rows(2, np.float64).T)[0].T


@pytest.fixture
def p() -> Projector:
    return Projector(torch.from_numpy(basis()))


# numpy


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_projector_of_arrays_edits_arrays(dtype: Any) -> None:
    read, write = rows(2, dtype, seed=1), rows(2, dtype, seed=2)
    offset = np.arange(2).astype(dtype)
    p = Projector(read, write, offset, 0.5)
    same = Projector(*(torch.from_numpy(part) for part in (read, write, offset)), 0.5)
    assert p.content_hash() == same.content_hash()
    x, strength = rows(5, dtype, seed=3), np.linspace(0, 1, 5).astype(np.float32)
    kept = x.copy()
    for given in (None, 0.25, np.float32(0.75), strength):
        got = p(x, given, normalize=True)
        want = p(
            torch.from_numpy(x),
            torch.from_numpy(given) if isinstance(given, np.ndarray) else given,
            normalize=True,
        )
        assert isinstance(got, np.ndarray)
        assert got.dtype == dtype
        assert np.array_equal(got, want.numpy())
        assert torch.equal(p(torch.from_numpy(x), given, normalize=True), want)
    assert np.array_equal(x, kept)
    assert np.array_equal(p.residual(x), p.residual(torch.from_numpy(x)))


def test_arrays_of_any_layout_are_taken(p: Projector) -> None:
    x = rows(6)
    want = p(x)
    fixed = x.copy()
    fixed.flags.writeable = False
    swapped = x.astype(x.dtype.newbyteorder())
    for other in (np.asfortranarray(x), x[::-1][::-1], np.repeat(x, 2, 1)[:, ::2], fixed, swapped):
        assert np.array_equal(p(other), want)
    assert np.array_equal(p(x[::-1]), want[::-1])
    assert p(x[0]).shape == (D,)
    assert p(x[:0]).shape == (0, D)


def test_banks_heads_and_samples_take_arrays(p: Projector) -> None:
    bank = ProjectorBank(D, capacity=4)
    bank.add("acme", p)
    index, x = bank.index(["acme", None, "acme"]), rows(3)
    strength = np.array([0.5, 1, 2], np.float64)
    for given, same in ((None, None), (strength, torch.from_numpy(strength))):
        got, want = bank(x, index, given), bank(torch.from_numpy(x), index, same)
        assert isinstance(got, np.ndarray)
        assert np.array_equal(got, want.numpy())
    classes = unit(4).astype(np.float32)
    head = ZeroShotHead(classes, bank)
    got, want = head(x, index), head(torch.from_numpy(x), index)
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, want.numpy())
    names = ("a", "b", "c", "d")
    texts = Embeddings(unit(4), names, ("{}",), "made up")
    assert texts.tensor.dtype == torch.float32
    assert np.array_equal(texts.tensor.numpy(), classes)
    samples = Samples(x, np.array([0, 1, 2]), texts)
    assert torch.equal(samples.features, torch.from_numpy(x))


METHODS: dict[str, Callable[..., Projector]] = {
    "nullspace": clipproj.nullspace,
    "hull": lambda f, k: clipproj.nullspace(f, k, "hull"),
    "ccup": clipproj.ccup,
    "rotate": lambda f, k: clipproj.rotate(f, keep=k),
    "redirect": lambda f, k: clipproj.redirect(f, k[:1] + f[:1], k),
    "self": lambda f, k: clipproj.redirect(f, "self", k),
    "subgroup": clipproj.subgroup,
    "coreset": lambda f, k: clipproj.nullspace(clipproj.coreset(k).kept, f),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:redirect. after")
def test_methods_take_arrays(name: str) -> None:
    forget, keep = unit(2, seed=4), unit(12, seed=5)
    got = METHODS[name](forget, keep)
    want = METHODS[name](torch.from_numpy(forget), torch.from_numpy(keep))
    assert got.content_hash() == want.content_hash()
    assert got.provenance["forget"] == want.provenance["forget"]


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex64, np.longdouble, object])
def test_arrays_of_other_types_are_refused(p: Projector, dtype: Any) -> None:
    x = np.ones((3, D), dtype)
    bank = ProjectorBank(D, capacity=4)
    text = re.escape(f"must be float32, float64 or float16, got {np.dtype(dtype)}")
    calls: dict[str, Callable[[], Any]] = {
        "Projector: read": lambda: Projector(x),
        "Projector: x": lambda: p(x),
        "Projector: strength": lambda: p(rows(3), x[:, 0]),
        "ProjectorBank: x": lambda: bank(x, bank.index([None] * 3)),
        "ZeroShotHead: classes": lambda: ZeroShotHead(x),
        "Embeddings: tensor": lambda: Embeddings(x, ("a", "b", "c"), ("{}",), "m"),
        "nullspace: forget": lambda: clipproj.nullspace(x),
        "residual: x": lambda: p.residual(x),
    }
    for what, call in calls.items():
        with pytest.raises(TypeError, match=f"^{what} {text}"):
            call()


def test_masked_arrays_are_refused(p: Projector) -> None:
    x = np.ma.masked_array(rows(3), mask=rows(3) > 1)
    bank = ProjectorBank(D, capacity=4)
    calls: dict[str, Callable[[], Any]] = {
        "Projector: read": lambda: Projector(x),
        "Projector: x": lambda: p(x),
        "Projector: strength": lambda: p(rows(3), x[:, 0]),
        "ProjectorBank: x": lambda: bank(x, bank.index([None] * 3)),
        "Embeddings: tensor": lambda: Embeddings(x, ("a", "b", "c"), ("{}",), "m"),
        "Samples: features": lambda: Samples(x, np.array([0, 1, 2]), embeddings()),
        "nullspace: forget": lambda: clipproj.nullspace(x),
        "residual: x": lambda: p.residual(x),
    }
    for what, call in calls.items():
        with pytest.raises(TypeError, match=f"^{what} must be without a mask, got a masked array"):
            call()


def embeddings() -> Embeddings:
    return Embeddings(unit(3), ("a", "b", "c"), ("{}",), "made up")


def test_a_strength_may_be_an_array(p: Projector) -> None:
    read = torch.from_numpy(basis())
    for strength in (np.array(0.5), np.array(0.5, np.float16), np.float32(0.5)):
        assert Projector(read, strength=strength).content_hash() == p.scaled(0.5).content_hash()
        assert p.scaled(strength).content_hash() == p.scaled(0.5).content_hash()
    with pytest.raises(ValueError, match=r"strength must be a number or 0-dim, got .*\[2\]"):
        Projector(read, strength=np.array([0.5, 1]))
    with pytest.raises(TypeError, match=r"got int64; make it one, with \.astype\(numpy\.float32\)"):
        p(rows(5), np.full(5, 1))


def test_an_array_is_not_written_to(p: Projector) -> None:
    x = rows(3)
    with pytest.raises(TypeError, match=r"^Projector: out must be None for a ndarray, got one"):
        p(x, out=x)


# sharded and nested


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Three processes, of which this is the second; the others are not there."""
    if not dist.is_available():
        pytest.skip("torch is built without distributed")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=3)
    yield dist.device_mesh.init_device_mesh("cpu", (3,))
    dist.destroy_process_group()


def sharded(local: Tensor, mesh: Any, placement: Any, *shape: int) -> Any:
    from torch.distributed.tensor import DTensor

    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, mesh, [placement], run_check=False, shape=shape, stride=strides
    )


@pytest.mark.parametrize("distributed", [False, True])
def test_each_process_edits_its_own_rows(p: Projector, mesh: Any, distributed: bool) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_module

    local = torch.randn(3, D)  # of seven rows, of which the last process has one
    want = p(local, 0.5, normalize=True)
    if distributed:
        p = distribute_module(p, mesh)
    for placement, shape in ((Shard(0), (7, D)), (Replicate(), (3, D))):
        x = sharded(local.clone().requires_grad_(), mesh, placement, *shape)
        y = p(x, 0.5, normalize=True)
        assert (y.shape, y.placements) == (shape, (placement,))
        assert torch.equal(y.to_local(), want)
        y.to_local().sum().backward()
    x = sharded(local[None], mesh, Shard(1), 1, 7, D)
    assert torch.equal(p(x, 0.5, normalize=True).to_local()[0], want)


def test_a_distributed_projector_takes_plain_rows(p: Projector, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, distribute_module

    x, oblique = torch.randn(3, D), Projector(rows(2), rows(2, seed=1), np.ones(2, np.float32))
    for one in (p, oblique):
        wanted = [one(x, 0.5), one.residual(x), one.dense(), torch.from_numpy(one(x.numpy()))]
        apart = distribute_module(copy.deepcopy(one), mesh)
        half = sharded(torch.tensor(0.5), mesh, Replicate())
        got = [apart(x, 0.5), apart.residual(x), apart.dense(), torch.from_numpy(apart(x.numpy()))]
        assert all(map(torch.equal, got, wanted))
        assert torch.equal(one(x, half), wanted[0])


def test_a_dtensor_of_another_width_is_named_whole(p: Projector, mesh: Any) -> None:
    from torch.distributed.tensor import Shard

    x = sharded(torch.randn(3, 8), mesh, Shard(0), 7, 8)
    with pytest.raises(ValueError, match=rf"^Projector: x must be \[\.\.\., {D}\], got \[7, 8\]"):
        p(x)


def test_gradients_go_back_shard_by_shard(p: Projector, mesh: Any) -> None:
    from torch.distributed.tensor import Shard

    plain = torch.randn(3, D, requires_grad=True)
    own = plain.detach().clone().requires_grad_()
    p(plain, normalize=True).square().sum().backward()
    p(sharded(own, mesh, Shard(0), 7, D), normalize=True).to_local().square().sum().backward()
    assert torch.equal(own.grad, plain.grad)


def test_rows_in_pieces_are_refused(p: Projector, mesh: Any) -> None:
    from torch.distributed.tensor import Partial, Shard

    whole = torch.randn(3, D)
    for x in (sharded(whole[:, :8], mesh, Shard(1), 3, D), sharded(whole, mesh, Partial(), 3, D)):
        with pytest.raises(
            ValueError, match=r"^Projector: x must be sharded by rows or replicated"
        ):
            p(x)
    x = sharded(whole, mesh, Shard(0), 7, D)
    with pytest.raises(TypeError, match=r"^Projector: strength must be 0-dim for a DTensor, got"):
        p(x, torch.ones(7))
    with pytest.raises(TypeError, match=r"^Projector: out must be None for a DTensor, got one"):
        p(x, out=x)
    bank = ProjectorBank(D, capacity=4)
    for op, call in (
        ("ProjectorBank", lambda: bank(x, bank.index([None] * 7))),
        ("residual", lambda: p.residual(x)),
    ):
        with pytest.raises(TypeError, match=f"^{op}: x must be a plain tensor, got a DTensor"):
            call()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(p: Projector, layout: torch.layout) -> None:
    x = torch.nested.nested_tensor([torch.randn(2, D), torch.randn(3, D)], layout=layout)
    bank = ProjectorBank(D, capacity=4)
    head = ZeroShotHead(unit(3))
    factors, index = p.factors(), bank.index([None] * 5)
    linear, logits = {"weight": torch.eye(D), "bias": None}, {"classes": torch.eye(D)}
    calls: dict[str, Callable[[], Any]] = {
        "Projector": lambda: p(x),
        "ProjectorBank": lambda: bank(x, index),
        "residual": lambda: p.residual(x),
        "project": lambda: ops.project(x, **factors),
        "project_": lambda: ops.project_(x, **factors),
        "project_out": lambda: ops.project_out(x, **factors, out=x),
        "project_rows": lambda: ops.project_rows(x, **bank.factors(), index=index),
        "projected_norm": lambda: ops.projected_norm(x, **factors),
        "linear": lambda: ops.linear(x, **linear, **factors),
        "logits": lambda: ops.logits(x, **logits, scale=torch.tensor(1.0), **factors),
        "fold_": lambda: ops.fold_(x, **factors, dim=1),
    }
    for op, call in calls.items():
        with pytest.raises(TypeError, match=f"^{op}: x must be one tensor, got a nested one"):
            call()
    with pytest.raises(TypeError, match="x must be one tensor, got a nested one"):
        head(x)
    assert p(torch.cat(x.unbind())).shape == (5, D)  # as the error says
