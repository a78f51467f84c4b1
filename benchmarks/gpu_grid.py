"""Which problems the GPU suite runs, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator

from gpu_cases import FEW, Case, fold_case, norm_case, one_sided_case, project_case
from gpu_fused import linear_case, logits_case, rows_case
from shapes import FOLDS, Shape

MANY, MOST = 65536, 1 << 20  # rows: a page of an embedding store, a shard of one
DIMS, RANKS = (768, 512, 1024, 1152), (16, 64, 8, 1, 256)
BANKS = ((100, "sorted"), (100, "unsorted"), (1, "sorted"), (1000, "sorted"), (1000, "unsorted"))
# Of the time; what a section leaves is for those after it.
SHARES = {
    "project": 0.6,
    "project_rows": 0.12,
    "linear": 0.06,
    "logits": 0.06,
    "projected_norm": 0.08,
    "fold_": 0.08,
}


def _projects(
    device: str,
    dtype: str,
    rows: tuple[int, ...],
    dims: tuple[int, ...] = (768,),
    ranks: tuple[int, ...] = (16, 64, 1),
) -> Iterator[Case]:
    for n in rows:
        for k in ranks:
            for d in dims:
                compiled = n >= MANY or d == 768  # where it matters, as far as there is time
                yield project_case(device, dtype, Shape(n, d, k), compiled=compiled)


def _one_sided(device: str, dtype: str, rows: tuple[int, ...]) -> Iterator[Case]:
    """A clamp, and solutions for a few names and for many."""
    for n in rows:
        for k in (1, 16, 100):
            yield one_sided_case(device, dtype, Shape(n, 768, k))


def quick(device: str) -> dict[str, list[Case]]:
    half = "bfloat16"
    return {
        "project": [*_projects(device, half, (MANY, FEW)), *_one_sided(device, half, (MANY,))],
        "project_rows": [rows_case(device, half, Shape(MANY, 768, 8), 100, "sorted")],
        "linear": [linear_case(device, half, Shape(MANY, 512, 8), 768, 100)],
        "logits": [logits_case(device, half, Shape(MANY, 768, 16), 1000)],
        "projected_norm": [norm_case(device, half, Shape(MANY, 768, 16))],
        "fold_": [fold_case(device, half, FOLDS["small"][0], dim) for dim in (-1, 0)],
    }


def full(device: str) -> dict[str, list[Case]]:
    half, both = "bfloat16", ("bfloat16", "float32")
    project = [*_projects(device, half, (MANY, MOST, FEW, 1, 1024), DIMS, RANKS)]
    for dtype in ("float32", "float16"):
        project += _projects(device, dtype, (MANY, FEW))
    for dtype in both:
        project += _one_sided(device, dtype, (MANY, FEW))
    return {
        "project": project,
        "project_rows": [
            rows_case(device, half, Shape(n, d, 8), *bank)
            for n, d in ((MANY, 768), (MOST, 512), (FEW, 768))
            for bank in BANKS
        ],
        "linear": [
            linear_case(device, dtype, Shape(MANY, 512, 8), 768, m)
            for dtype in both
            for m in (100, 0)
        ],
        "logits": [
            logits_case(device, dtype, Shape(MANY, 768, k), 1000)
            for dtype in both
            for k in (16, 64)
        ],
        "projected_norm": [
            norm_case(device, dtype, Shape(n, 768, k))
            for dtype in both
            for n in (MANY, MOST)
            for k in (16, 64, 1)
        ],
        "fold_": [
            fold_case(device, dtype, shape, dim)
            for dtype in both
            for shape in FOLDS["full"]
            for dim in (-1, 0)
        ],
    }
