"""Peers of `project_rows`: each row by its own tenant's directions, then divided by its length.

"shared project" does less than is asked: every row by the first tenant's directions. It is the
bound, what rows of many projectors cost where they cost nothing; its error says so.
"""

from __future__ import annotations

import torch
from peers import NEW, NOT_FLOAT16, Call, SkipPeer, compiled, peer
from peers_project import plain, unit_
from shapes import Bank
from torch import Tensor, nn

from clipproj import ops

OP = "project_rows"
GATHERED_BYTES = 1 << 30  # a copy of every row's directions above this is nobody's choice


@peer(OP, "shared project", NEW)
def shared_project(given: Bank) -> Call:
    read = given.read[: len(given.read) // len(given.spans)].clone()
    return lambda: ops.project(given.x, read, read, normalize=True)


@peer(OP, "loop over groups", NEW)
def loop(given: Bank) -> Call:
    """One eager projection per tenant in the batch; who is where is found in each call."""
    x, index, (read, write) = given.x, given.index, given.directions

    def call() -> Tensor:
        out = torch.empty_like(x)
        for tenant in index.unique().tolist():
            rows = (index == tenant).nonzero().squeeze(1)
            out[rows] = plain(x[rows], read[tenant], write[tenant])
        return out

    return call


def gathered(x: Tensor, read: Tensor, write: Tensor, index: Tensor) -> Tensor:
    """Each row's directions copied beside it, then two batched products."""
    dots = torch.einsum("nd,ndk->nk", x, read[index])
    rows = x - torch.einsum("nk,nkd->nd", dots, write[index])
    return torch.nn.functional.normalize(rows, dim=-1)


def gathering(given: Bank) -> None:
    """Refuses what would not fit beside everything else."""
    size = len(given.x) * given.read.nbytes // len(given.spans)
    if size > GATHERED_BYTES // 2:
        raise SkipPeer(f"gathered directions above {GATHERED_BYTES >> 30} GB")


@peer(OP, "gather", NEW)
def gather(given: Bank) -> Call:
    gathering(given)
    factors = given.directions
    return lambda: gathered(given.x, *factors, given.index)


@peer(OP, "gather compile", NEW)
def gather_compile(given: Bank) -> Call:
    gathering(given)
    function, factors = compiled(gathered), given.directions
    return lambda: function(given.x, *factors, given.index)


@peer(OP, "LoRA mixed batch", NEW, needs="peft", dtypes=NOT_FLOAT16)
def lora_mixed(given: Bank) -> Call:
    """PEFT with an adapter per tenant and `adapter_names` per row; else as peers_project.lora."""
    import peft

    m, d = len(given.spans), given.x.shape[1]
    k = len(given.read) // m
    base = nn.Linear(d, d, bias=False)
    nn.init.eye_(base.weight)
    config = peft.LoraConfig(r=k, lora_alpha=k, target_modules=["0"])
    model = nn.Sequential(base).to(given.x.device, given.x.dtype)
    adapted = peft.get_peft_model(model, config, adapter_name="0")
    for tenant in range(1, m):
        adapted.add_adapter(str(tenant), config)
    layer = adapted.eval().base_model.model[0]
    for tenant, read in enumerate(given.read.view(m, k, d)):
        layer.lora_A[str(tenant)].weight.copy_(read)
        layer.lora_B[str(tenant)].weight.copy_(-read.T)
    names = [str(tenant) for tenant in given.index.tolist()]
    return lambda: unit_(layer(given.x, adapter_names=names))
