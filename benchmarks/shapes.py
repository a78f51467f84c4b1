"""Real CLIP sizes, the grids that the suites run, and the problem that every call gets."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import clipproj
from clipproj import reference

HEADS = {  # the width of a tower and of the embedding space behind its final projection
    "ViT-B-32": (768, 512),
    "ViT-L-14": (1024, 768),
    "ViT-H-14": (1280, 1024),
    "ViT-bigG-14": (1664, 1280),
    "ViT-SO400M-14-SigLIP": (1152, 1152),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TENANTS = 100  # projectors of a bank, each wanted by as many rows as any other
REFERENCE_ROWS = 4096  # so many rows of a result are held against float64


class Shape(NamedTuple):
    """n rows of width d (features, or the rows of a head's weight), k directions."""

    n: int
    d: int
    k: int

    def __str__(self) -> str:
        return f"{self.n}x{self.d}-k{self.k}"


# One query; a user's handful; serving batches; a page of an embedding store; a shard of one.
BATCHES = (1, 8, 32, 256, 4096, 65536)
# A name, a class with its synonyms, a small union of classes.
RANKS = ((512, 1), (512, 8), (512, 16), (768, 64), (1024, 8), (1152, 32))
FOLD_HEADS = ("ViT-B-32", "ViT-L-14", "ViT-bigG-14")
FOLD_RANKS = (1, 16, 64)

# Of a bank each row wants the directions of its own tenant: k is that of each.
BANKS = {
    "full": [
        *(Shape(n, 512, 8) for n in BATCHES),
        *(Shape(n, d, k) for d, k in ((512, 1), (768, 64)) for n in (256, 4096)),
    ],
    "small": [Shape(256, 512, 8)],
}
ROWS = {
    "full": [Shape(n, d, k) for d, k in RANKS for n in BATCHES],
    "small": [Shape(n, 512, 16) for n in (1, 256)],
}
# A head's product of a batch; the towers in front of d = 512 and 768 are those of ViT-B and ViT-L.
PRODUCTS = {
    "full": [Shape(n, d, k) for d, k in ((512, 8), (768, 16)) for n in (1, 32, 256, 4096, 65536)],
    "small": [Shape(n, 512, 8) for n in (1, 256)],
}
# Of half-spaces: a name; a class with its synonyms; trademarks; as many as are taken at once.
HALF_SPACES = {
    "full": [Shape(n, 512, k) for k in (1, 16, 100, 256) for n in (1, 32, 256, 4096)],
    "small": [Shape(n, 512, k) for k in (1, 16) for n in (1, 256)],
}
TOWERS = {512: 768, 768: 1024}  # the width of x in front of `linear`
CLASSES, SCALE = 1000, 100.0  # of `logits`: ImageNet's, CLIP's
FOLDS = {
    "full": [Shape(*HEADS[head], k) for head in FOLD_HEADS for k in FOLD_RANKS],
    "small": [Shape(*HEADS["ViT-B-32"], 16)],
}


@dataclass(frozen=True)
class Problem:
    """The update `x - (x read^T) write` with an orthogonal projector: `read` is `write`.

    `x` is `[n, d]`; where `dim` is 0 it is the weight of an `nn.Linear`, `[d, n]`. Applied twice it
    changes nothing more, so that timing an in-place call again and again keeps its numbers alive.
    """

    x: Tensor
    read: Tensor
    dim: int = -1

    @property
    def write(self) -> Tensor:
        return self.read

    @property
    def directions(self) -> tuple[Tensor, Tensor]:
        """`read^T` and `write` in the dtype of x, as torch's products need them."""
        return self.read.T.to(self.x.dtype).contiguous(), self.write.to(self.x.dtype)


@dataclass(frozen=True)
class Bank(Problem):
    """Row i by the k directions `read[index[i] * k:][:k]`: as many for each of TENANTS projectors.

    `index`, int32 `[n]`, is in random order; `spans`, int32 `[TENANTS, 2]`: see `project_rows`.
    """

    index: Tensor = field(kw_only=True)
    spans: Tensor = field(kw_only=True)

    @property
    def directions(self) -> tuple[Tensor, Tensor]:
        """Of each tenant: `read^T` `[TENANTS, d, k]` and `write` `[TENANTS, k, d]` as x's dtype."""
        write = self.write.to(self.x.dtype).view(len(self.spans), -1, self.write.shape[1])
        return write.mT.contiguous(), write


@dataclass(frozen=True)
class Product(Problem):
    """Features times `matrix`: the weight `[d, in]` before they are projected (x is `[n, in]`), or
    the class embeddings `[C, d]` after it."""

    matrix: Tensor | None = None


@dataclass(frozen=True)
class HalfSpaces(Problem):
    """The one-sided update: rows come among the half-spaces `{z : z read^T <= offset}`."""

    written: Tensor = field(kw_only=True)
    offset: Tensor = field(kw_only=True)
    gram: Tensor = field(kw_only=True)

    @property
    def write(self) -> Tensor:
        return self.written


@functools.lru_cache(maxsize=2)
def _rows(n: int, d: int, device: str) -> Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(n, d, device=device), dim=-1)


def problem(shape: Shape, dtype: torch.dtype, device: str = "cpu", dim: int = -1) -> Problem:
    """Unit rows, as CLIP's features are, and orthonormal directions; the same at every call."""
    x = _rows(shape.n, shape.d, device).to(dtype)
    torch.manual_seed(1)
    read = torch.linalg.qr(torch.randn(shape.d, shape.k))[0].T.contiguous().to(device)
    return Problem(x.T.contiguous() if dim == 0 else x.clone(), read, dim)


def bank(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> Bank:
    """The same rows as `problem`'s, each of one of TENANTS projectors; the same at every call."""
    n, d, k = shape
    x = _rows(n, d, device).to(dtype).clone()
    torch.manual_seed(2)
    tenants = [torch.linalg.qr(torch.randn(d, k))[0].T for _ in range(TENANTS)]
    index = (torch.arange(n, dtype=torch.int32) % TENANTS)[torch.randperm(n)].to(device)
    first = k * torch.arange(TENANTS, dtype=torch.int32)
    spans = torch.stack([first, torch.full_like(first, k)], dim=1).to(device)
    return Bank(x, torch.cat(tenants).to(device), index=index, spans=spans)


def linear_problem(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> Product:
    n, d, k = shape
    width = TOWERS[d]
    read = problem(Shape(1, d, k), dtype, device).read
    weight = torch.randn(d, width, device=device) / width**0.5
    return Product(_rows(n, width, device).to(dtype), read, matrix=weight.to(dtype))


def logits_problem(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> Product:
    given = problem(shape, dtype, device)
    classes = torch.nn.functional.normalize(torch.randn(CLASSES, shape.d, device=device), dim=-1)
    return Product(given.x, given.read, matrix=classes.to(dtype))


def half_spaces(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> HalfSpaces:
    """k texts told apart from 400 others, in a cone as CLIP's are, and rows about all of them.

    Of 100 half-spaces a row is on the wrong side of 44, and 39 of them move it: as with hulls of
    ImageNet's names (46), more than with neighbours of them (35 and 8).
    """
    n, d, k = shape
    torch.manual_seed(3)
    texts = functional.normalize(torch.randn(1, d) + torch.randn(k + 400, d))
    forget, keep = texts[:k], texts[k:]
    p = clipproj.nullspace(forget, keep, "neighbours", keep_weight=0.3, one_sided=True)
    own = texts[torch.randint(len(texts), (n,))]
    x = functional.normalize(own + functional.normalize(torch.randn(n, d)) * 1.2)
    read, write, offset, gram = (
        one.to(device) for one in (p.read, p.write, p.offset, p.gram) if one is not None
    )
    rows = x.to(device, dtype)
    return HalfSpaces(rows, read, written=write, offset=offset, gram=gram)


def sample(rows: Tensor, dim: int = -1) -> Tensor:
    """At most about REFERENCE_ROWS of the rows, evenly spread."""
    axis = 1 if dim == 0 else 0
    step = max(1, rows.shape[axis] // REFERENCE_ROWS)
    return rows[:, ::step] if axis else rows[::step]


def expected(op: str, given: Problem) -> Tensor:
    """What the operator must compute for the sampled rows, in float64."""
    x = sample(given.x, given.dim)
    if isinstance(given, Bank):
        read = given.read.double().view(len(given.spans), -1, x.shape[1])
        index, want = sample(given.index), x.new_empty(x.shape, dtype=torch.float64)
        for tenant in index.unique().tolist():
            rows, own = index == tenant, read[tenant]
            want[rows] = reference.project(x[rows], own, own, normalize=True)
        return want
    if isinstance(given, HalfSpaces):
        factors = given.read, given.write, given.offset
        return reference.project(x, *factors, gram=given.gram, normalize=True)
    if op == "project":
        return reference.project(x, given.read, given.write, normalize=True)
    if op == "projected_norm":
        return reference.projected_norm(x, given.read, given.write)
    if isinstance(given, Product):
        matrix = given.matrix.double()
        if op == "linear":
            return reference.project(x.double() @ matrix.T, given.read, given.write, normalize=True)
        return SCALE * reference.project(x, given.read, given.write, normalize=True) @ matrix.T
    return reference.fold(x, given.read, given.write, dim=given.dim)
