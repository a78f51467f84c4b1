"""Every operator on one set of inputs, for tests of what they all must keep to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from cases import features, orthonormal
from torch import Tensor

from clipproj import ops

WIDTH = 96  # of the features that go through a head
CLASSES = 40


@dataclass
class Inputs:
    """What operators take; a bank of five projectors, of ranks k, k // 2, the rest, 0 and 1; the
    second and the last of them one-sided in `sided`.
    """

    x: Tensor  # [n, d]
    read: Tensor  # [k, d]
    write: Tensor  # [k, d]
    offset: Tensor  # [k]
    strength: Tensor  # [n]
    one_strength: Tensor  # 0-dim
    spans: Tensor  # [5, 2]
    index: Tensor  # [n]
    wide: Tensor  # [n, WIDTH], what a head projects
    weight: Tensor  # [d, WIDTH]
    bias: Tensor  # [d]
    classes: Tensor  # [CLASSES, d]
    scale: Tensor  # 0-dim
    gram: Tensor  # [k, k], of the projector, and in its first columns of any that begins with it
    sided: Tensor  # [5, 2], spans

    def renew(self, *names: str) -> None:
        """Other values in the same memory; of all fields where none is named."""
        n, d = self.x.shape
        other = inputs(n, d, len(self.read), self.x.dtype, self.x.device)
        other.spans, other.sided = self.spans.flip(0), self.sided.flip(0)
        for name in names or vars(self):
            getattr(self, name).copy_(getattr(other, name))

    def repeated(self, times: int) -> Inputs:
        """The same rows again and again."""
        rows = ("x", "strength", "index", "wide")
        again = {name: torch.cat([getattr(self, name)] * times) for name in rows}
        return replace(self, **again)


def inputs(
    n: int, d: int, k: int, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cuda"
) -> Inputs:
    def single(*shape: int) -> Tensor:
        return torch.rand(shape).to(device)

    spans = [[0, k], [0, k // 2], [k // 2, k - k // 2], [k, 0], [0, min(k, 1)]]
    sided = [[start, -rank if i in (1, 4) else rank] for i, (start, rank) in enumerate(spans)]
    place = torch.arange(k)
    return Inputs(
        x=features(n, d, dtype, device),
        read=orthonormal(k, d, device=device),
        write=features(k, d, device=device) / d**0.5,
        offset=features(1, k, device=device)[0],
        strength=2 * single(n),
        one_strength=single(),
        spans=torch.tensor(spans, dtype=torch.int32, device=device),
        index=torch.randint(-1, len(spans), (n,), dtype=torch.int32).to(device),
        wide=features(n, WIDTH, dtype, device),
        weight=features(d, WIDTH, dtype, device) / WIDTH**0.5,
        bias=features(1, d, dtype, device)[0],
        classes=torch.nn.functional.normalize(features(CLASSES, d, dtype, device), dim=-1),
        scale=10 + single(),
        gram=(0.4 ** (place[:, None] - place).abs()).to(device),
        sided=torch.tensor(sided, dtype=torch.int32, device=device),
    )


# Those that write get a copy, so that each call starts from the same inputs.
OPERATORS: dict[str, Callable[[Inputs], Tensor]] = {
    "project": lambda g: ops.project(g.x, g.read, g.write, g.offset, g.strength, normalize=True),
    "project, one-sided": lambda g: ops.project(
        g.x, g.read, g.write, g.offset, g.strength, normalize=True, gram=g.gram
    ),
    "project_": lambda g: ops.project_(g.x.clone(), g.read, g.write, g.offset, g.strength),
    "project_out": lambda g: ops.project_out(
        g.x, g.read, g.read, None, g.one_strength, out=torch.full_like(g.x, torch.nan)
    ),
    "fold_ of a Linear": lambda g: ops.fold_(
        g.weight.clone(), g.read, g.write, strength=g.one_strength, dim=0
    ),
    "fold_ of a matrix": lambda g: ops.fold_(
        g.weight.T.contiguous(), g.read, g.write, strength=g.one_strength, dim=1
    ),
    "fold_ of a bias": lambda g: ops.fold_(g.bias.clone(), g.read, g.write, g.offset, dim=0),
    "projected_norm": lambda g: ops.projected_norm(g.x, g.read, g.write, g.offset, g.strength),
    "project_rows": lambda g: ops.project_rows(
        g.x, g.read, g.write, g.offset, g.spans, g.index, g.strength, normalize=True
    ),
    "project_rows, both kinds": lambda g: ops.project_rows(
        g.x, g.read, g.write, g.offset, g.sided, g.index, g.strength, normalize=True, gram=g.gram
    ),
    "linear": lambda g: ops.linear(
        g.wide, g.weight, g.bias, g.read, g.write, g.offset, g.one_strength, normalize=True
    ),
    "linear, per row": lambda g: ops.linear(
        g.wide,
        g.weight,
        g.bias,
        g.read,
        g.write,
        g.offset,
        g.strength,
        normalize=True,
        spans=g.spans,
        index=g.index,
    ),
    "logits": lambda g: ops.logits(
        g.x, g.classes, g.read, g.write, g.offset, g.one_strength, g.scale
    ),
    "logits, per row": lambda g: ops.logits(
        g.x,
        g.classes,
        g.read,
        g.write,
        g.offset,
        g.strength,
        g.scale,
        spans=g.spans,
        index=g.index,
    ),
}
