"""The pooling head as vLLM calls it: one batch of many requests, each with its own parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import WIDTH
from plugin_models import bank, oblique, projector
from torch import Tensor, nn
from vllm_pooler import (
    EmbeddingPoolerHead,
    Metadata,
    Params,
    Pooler,
    PoolerNormalize,
    SequencePoolerHead,
    reference,
)

from clipproj import compose
from clipproj.plugins.vllm import PoolingHead

IN = 24


def says(tenant: Any, strength: float | None = None, **more: Any) -> Params:
    said = {"tenant": tenant} | ({} if strength is None else {"strength": strength})
    return Params(extra_kwargs={"clipproj": said}, **more)


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).norm(dim=-1).max() < 1e-5 * want.norm(dim=-1).max()


@pytest.fixture
def vllm_head() -> EmbeddingPoolerHead:
    linear = nn.Linear(IN, WIDTH)
    return EmbeddingPoolerHead(linear, torch.float32, PoolerNormalize())


def test_a_batch_of_requests_each_with_its_tenant_strength_dimensions_and_flag(
    vllm_head: EmbeddingPoolerHead,
) -> None:
    b = bank()
    acme, umbrella = b.projector("acme"), b.projector("umbrella")
    params = [
        says("acme"),
        says(None, dimensions=8),
        says("umbrella", use_activation=False),
        says("umbrella", 0.25, dimensions=16),
        says(["acme", "umbrella"], dimensions=WIDTH),
        says("acme", 2, use_activation=None, dimensions=1),
    ]
    states = torch.randn(len(params), 5, IN)
    z = vllm_head.projector(states[:, -1])
    edited = [
        acme(z[0]), z[1], umbrella(z[2]), umbrella(z[3], 0.25),
        compose(acme, umbrella)(z[4]), acme(z[5], 2.0),
    ]  # fmt: skip
    want = [reference(row, param) for row, param in zip(edited, params, strict=True)]

    pooler = Pooler(vllm_head)
    pooler.head = PoolingHead.like(pooler.head, b)
    got = pooler(states, Metadata(params))
    assert isinstance(got, list)
    for row, wanted in zip(got, want, strict=True):
        close(row, wanted)
    head = pooler.head
    assert isinstance(head, SequencePoolerHead)
    assert head.get_supported_tasks() == {"embed"}


@pytest.mark.parametrize("dimensions", [None, 8])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_batch_of_one_kind_stays_one_tensor(
    vllm_head: EmbeddingPoolerHead, dimensions: int | None, normalize: bool
) -> None:
    b = bank()
    names = ["acme", None, "umbrella"]
    params = [says(name, dimensions=dimensions, use_activation=normalize) for name in names]
    pooled = list(torch.randn(3, IN).double())  # a list, in another dtype: vLLM stacks and casts
    z = vllm_head.projector(torch.stack(pooled).float())
    edited = [row if n is None else b.projector(n)(row) for row, n in zip(z, names, strict=True)]
    want = [reference(row, param) for row, param in zip(edited, params, strict=True)]
    got = PoolingHead.like(vllm_head, b)(pooled, Metadata(params))
    assert isinstance(got, Tensor)
    close(got, torch.stack(want))


def test_one_launch_whatever_the_batch(vllm_head: EmbeddingPoolerHead) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.name())
            return func(*args, **kwargs or {})

    head = PoolingHead.like(vllm_head, bank())
    seen = []
    for n in (2, 40):
        calls: list[str] = []
        metadata = Metadata([says(("acme", None, "umbrella")[i % 3], 1.0) for i in range(n)])
        with torch.no_grad(), Count():
            head(torch.randn(n, IN), metadata)
        assert sum(call.startswith("clipproj::") for call in calls) == 1
        seen.append(len(calls))
    assert seen[0] == seen[1]


def test_one_projector_for_all_and_vllms_own_slot(vllm_head: EmbeddingPoolerHead) -> None:
    p, pooled = projector(strength=1.5), torch.randn(3, IN)
    z = vllm_head.projector(pooled)
    params = [Params(), Params(extra_kwargs={"clipproj": {"strength": 0}}), Params(dimensions=8)]
    got = PoolingHead.like(vllm_head, p)(pooled, Metadata(params))
    edited = [p(z[0]), z[1], p(z[2])]
    for row, wanted, param in zip(got, edited, params, strict=True):
        close(row, reference(wanted, param))
    # the model's CLIP has projected already: a Projector fits the slot as it is
    slot = EmbeddingPoolerHead(p, torch.float32, PoolerNormalize())
    features = torch.randn(2, WIDTH)
    close(torch.stack(slot(features, Metadata([Params()] * 2))), p(features, normalize=True))


@pytest.mark.parametrize("said", [
    None,
    {},
    {"tenant": "nobody"},
    {"tenant": ["acme", "nobody"]},
    {"tenant": 3},
    {"tenant": "acme", "strength": -1},
    {"tenant": "acme", "strength": float("nan")},
    {"tenant": "acme", "strength": "1"},
    {"tenant": "acme", "strenght": 1},
    "acme",
])  # fmt: skip
def test_a_request_that_cannot_be_served_gets_no_vector(
    vllm_head: EmbeddingPoolerHead, said: Any
) -> None:
    b, pooled = bank(), torch.randn(3, IN)
    bad = Params(extra_kwargs=None if said is None else {"clipproj": said})
    metadata = Metadata([says("acme"), bad, says("umbrella")])
    head = PoolingHead.like(vllm_head, b)
    with pytest.raises((ValueError, TypeError), match=r"^PoolingHead: "):
        head.check(bad)
    head.check(says("acme", 1.0))
    got = head(pooled, metadata)
    assert got[1].isnan().all()
    z = vllm_head.projector(pooled)
    close(got[0], b.projector("acme")(z[0], normalize=True))
    close(got[2], b.projector("umbrella")(z[2], normalize=True))
    with pytest.raises((ValueError, TypeError), match=r"\(request 1 of 3\)"):
        PoolingHead.like(vllm_head, b, on_error="raise")(pooled, metadata)


def test_a_combination_without_room_costs_nobody_else_a_vector(
    vllm_head: EmbeddingPoolerHead,
) -> None:
    b, pooled = bank(capacity=5), torch.randn(3, IN)
    metadata = Metadata([says("acme"), says(["acme", "umbrella"]), says("umbrella", 0.5)])
    got = PoolingHead.like(vllm_head, b)(pooled, metadata)
    assert got[1].isnan().all()
    z = vllm_head.projector(pooled)
    close(got[0], b.projector("acme")(z[0], normalize=True))
    close(got[2], b.projector("umbrella")(z[2], 0.5, normalize=True))
    with pytest.raises(ValueError, match="bank must have room for"):
        PoolingHead.like(vllm_head, b, on_error="raise")(pooled, metadata)


def test_refusals(vllm_head: EmbeddingPoolerHead) -> None:
    head = PoolingHead.like(vllm_head, bank())
    with pytest.raises(ValueError, match="a row for each of 1 requests, got 2"):
        head(torch.randn(2, IN), Metadata([says("acme")]))
    for size in (0, 33):  # as long as it can be, and NaN
        with pytest.raises(ValueError, match=r"dimensions must be in \[1, 32\]"):
            head.check(says("acme", dimensions=size))
        got = head(torch.randn(2, IN), Metadata([says("acme", dimensions=size), says("acme")]))
        assert got[0].isnan().all()
        assert got[1].isfinite().all()
    with pytest.raises(TypeError, match="must be vLLM's EmbeddingPoolerHead, got Linear"):
        PoolingHead.like(nn.Linear(2, 2), bank())
    with pytest.raises(TypeError, match="got PoolingHead"):
        PoolingHead.like(head, bank())
    with pytest.raises(TypeError, match="must be a Projector or a ProjectorBank"):
        PoolingHead(torch.eye(2))
    with pytest.raises(ValueError, match='"raise" or "nan"'):
        PoolingHead(bank(), on_error="ignore")
    with pytest.raises(ValueError, match="head_dtype must name a dtype"):
        PoolingHead(bank(), head_dtype="float33")
    with pytest.raises(ValueError, match="tenant must come with a bank"):
        PoolingHead(oblique()).check(says("acme"))
