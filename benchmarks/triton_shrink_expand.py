"""Shrink and expand in Triton: how servers of many LoRA adapters would do this job.

Punica (arXiv 2310.18547) and vLLM's `lora_shrink`/`lora_expand` serve a batch whose rows belong to
different adapters by two launches, of which the first multiplies each row by its adapter's A into
an intermediate of rank k in float32 and the second adds its product with B to the row. Segments of
rows of one adapter share a block. Here A is read and B is -write, and normalisation is a third
step by torch, as in vLLM's pooler. Only the idea is theirs, the code is ours. As there, factors
are in the dtype of x, ranks are padded (to 16 at least), and what follows from the index alone
(rows in order of their adapters, the segments) is prepared before and not timed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

SEGMENT = 64  # rows of one adapter that share a block
COLUMNS = 64  # of x at a time


@triton.jit
def _shrink(
    x, order, a, segments, dots, D: tl.constexpr, K: tl.constexpr, SEGMENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """dots[i] = x[order[i]] a[adapter]^T for the rows i of one segment."""
    segment = segments + 3 * tl.program_id(0)
    adapter, first, count = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    member = tl.arange(0, SEGMENT)
    inside = (member < count)[:, None]
    rows = tl.load(order + first + member, mask=member < count, other=0).to(tl.int64)[:, None]
    ranks = tl.arange(0, K)
    a += adapter.to(tl.int64) * K * D
    total = tl.zeros((SEGMENT, K), tl.float32)
    for start in range(0, D, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        within = columns < D
        part = tl.load(x + rows * D + columns[None, :], mask=inside & within[None, :], other=0.0)
        factor = tl.load(a + ranks[None, :] * D + columns[:, None], mask=within[:, None], other=0.0)
        total += tl.dot(part, factor)
    tl.store(dots + (first + member).to(tl.int64)[:, None] * K + ranks[None, :], total, mask=inside)


@triton.jit
def _expand(
    x, order, b, segments, dots, out, D: tl.constexpr, K: tl.constexpr, SEGMENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[row] = x[row] + dots[i] b[adapter] for some columns of the rows of one segment."""
    segment = segments + 3 * tl.program_id(0)
    adapter, first, count = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    member = tl.arange(0, SEGMENT)
    inside = (member < count)[:, None]
    rows = tl.load(order + first + member, mask=member < count, other=0).to(tl.int64)[:, None]
    ranks = tl.arange(0, K)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = columns < D
    b += adapter.to(tl.int64) * K * D
    coefficients = tl.load(
        dots + (first + member).to(tl.int64)[:, None] * K + ranks[None, :], mask=inside, other=0.0
    )
    factor = tl.load(b + ranks[:, None] * D + columns[None, :], mask=within[None, :], other=0.0)
    place, mask = rows * D + columns[None, :], inside & within[None, :]
    row = tl.load(x + place, mask=mask, other=0.0)
    sums = row.to(tl.float32) + tl.dot(coefficients.to(factor.dtype), factor)
    tl.store(out + place, sums.to(row.dtype), mask=mask)


def _segments(index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in order of their adapters, and (adapter, first, count) of each segment, as int32."""
    order = torch.argsort(index, stable=True)
    counts = torch.bincount(index).tolist()
    found, first = [], 0
    for adapter, count in enumerate(counts):
        for start in range(0, count, SEGMENT):
            found.append((adapter, first + start, min(SEGMENT, count - start)))
        first += count
    segments = torch.tensor(found, dtype=torch.int32, device=index.device)
    return order.to(torch.int32), segments


def shrink_expand(x: Tensor, bank: Tensor, index: Tensor) -> Callable[[], Tensor]:
    """The call that takes each row's own directions out of it and normalises what is left.

    Args:
        x: `[n, d]` bfloat16 or float16.
        bank: `[m, k, d]` float32, orthonormal directions of m projectors.
        index: `[n]`, each row's projector, 0 to m - 1.
    """
    n, d = x.shape
    k = max(16, triton.next_power_of_2(bank.shape[1]))
    a = functional.pad(bank, (0, 0, 0, k - bank.shape[1])).to(x.dtype).contiguous()
    b = -a
    order, segments = _segments(index)
    sizes = {"K": k, "SEGMENT": SEGMENT, "COLUMNS": COLUMNS, "num_warps": 4 if k <= 64 else 8}
    grid = len(segments), triton.cdiv(d, COLUMNS)

    def call() -> Tensor:
        dots = torch.empty(n, k, dtype=torch.float32, device=x.device)
        out = torch.empty_like(x)
        _shrink[grid[:1]](x, order, a, segments, dots, d, **sizes)
        _expand[grid](x, order, b, segments, dots, out, d, **sizes)
        return functional.normalize(out, dim=-1)

    return call
