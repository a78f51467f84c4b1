"""`project` beside its peers, in one run: time, and error against float64 in `extra_info`.

    pytest benchmarks                                # a table; --benchmark-json=FILE keeps it
    CLIPPROJ_BENCH_THREADS=2 pytest benchmarks -k "B-32 and 256-16"

One thread unless CLIPPROJ_BENCH_THREADS says otherwise. Peers of one problem share a group.
"""

from __future__ import annotations

import os

import pytest
import torch
from peers import PEERS
from pytest_benchmark.fixture import BenchmarkFixture
from shapes import HEADS

from clipproj import _C, reference

THREADS = int(os.environ.get("CLIPPROJ_BENCH_THREADS", "1"))
PROBLEMS = [  # (head, n, k)
    ("ViT-B-32", 1, 16),
    ("ViT-B-32", 256, 1),
    ("ViT-B-32", 256, 16),
    ("ViT-B-32", 256, 64),
    ("ViT-B-32", 4096, 16),
    ("ViT-L-14", 256, 16),
    ("ViT-bigG-14", 256, 16),
]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("head", "n", "k"), PROBLEMS)
def test_project(
    benchmark: BenchmarkFixture, head: str, n: int, k: int, dtype: torch.dtype, peer: str
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    d = HEADS[head].d
    x = torch.nn.functional.normalize(torch.randn(n, d), dim=-1).to(dtype)
    read = torch.linalg.qr(torch.randn(d, k))[0].T.contiguous()
    call = PEERS[peer](x, read, read, True)
    benchmark.group = f"{head} d={d} n={n} k={k} {dtype} threads={THREADS}"
    with torch.inference_mode():
        out = benchmark(call)
    want = reference.project(x, read, read, normalize=True)
    benchmark.extra_info |= {
        "max_error": (out.double() - want).abs().max().item(),
        "left_in_span": (out.double() @ read.double().T).abs().max().item(),
        "threads": THREADS,
        "cpu_isa": _C.cpu_isa(),
        "torch": torch.__version__,
        **_C.build_info(),
    }
