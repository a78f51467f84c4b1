"""One-sided projectors of random texts, and the rows that try them hardest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj import Projector
from clipproj.methods.hull import nearest_mixture


def one_sided(
    forget: Tensor,
    keep: Tensor,
    margin: float = 1e-4,
    keep_weight: float = 3.0,
    strength: float = 1.0,
) -> Projector:
    """The half-spaces "forgotten scores `margin` of the contrast's length below its nearest mixture
    of keep", in the metric of what is kept."""
    forget, keep = (rows.float().double() for rows in (forget, keep))
    rows = torch.stack([text - nearest_mixture(text, keep) @ keep for text in forget])
    rows = F.normalize(rows, dim=1)
    centred = keep - keep.mean(0)
    eye = torch.eye(keep.shape[1], dtype=torch.float64)
    written = torch.linalg.solve(eye + keep_weight * centred.T @ centred, rows.T).T
    lengths = (rows * written).sum(1).sqrt()
    read, write = rows / lengths[:, None], written / lengths[:, None]
    gram = read.float().double() @ write.float().double().T
    gram = ((gram + gram.T) / 2).float().fill_diagonal_(1.0)
    offset = -margin / lengths
    return Projector(read, write, offset, strength, gram=gram, forget=forget.float())


def hard_rows(p: Projector, keep: Tensor, n: int = 100, steps: int = 30) -> Tensor:
    """Unit rows [., d] float64: random ones, along reads, writes and texts and against them,
    mixtures, and those that gradient ascent on the lead makes of all these."""
    g = torch.Generator().manual_seed(1)
    k, d = p.read.shape
    known = torch.cat([p.read, p.write, p.forget, keep.float()]).double()
    rows = torch.cat(
        [
            torch.randn(n, d, generator=g, dtype=torch.float64),
            known,
            -known,
            torch.rand(n, len(known), generator=g, dtype=torch.float64) @ known,
            torch.randn(n, k, generator=g, dtype=torch.float64) @ p.read.double(),
        ]
    )
    rows = F.normalize(rows, dim=1)
    return torch.cat([rows, ascended(p, keep, rows, steps)])


def ascended(p: Projector, keep: Tensor, rows: Tensor, steps: int) -> Tensor:
    """Rows after steps along the gradient of the lead, made unit again after each."""
    for step in range(steps):
        rows = rows.detach().requires_grad_()
        lead = leads(p(rows), p.forget.double(), keep).amax(1)
        (slope,) = torch.autograd.grad(lead.sum(), rows)
        slope = F.normalize(slope.nan_to_num(0), dim=1)
        rows = F.normalize(rows.detach() + 0.5 * 0.85**step * slope, dim=1)
    return rows.detach()


def leads(rows: Tensor, forget: Tensor, keep: Tensor) -> Tensor:
    """[n, m]: how far each forgotten text scores above the highest kept one, in float64."""
    rows = rows.double()
    return rows @ forget.double().T - (rows @ keep.double().T).amax(1, keepdim=True)
