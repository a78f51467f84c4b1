"""TIA, text-image space adaptation (Kravets and Namboodiri, TMLR 2025): edits the text tower alone.

A low-rank change of the text projection sends the class's text to the text of the empty prompt and
leaves kept texts where they are:

    W' = W + B A / 5,   loss = lf |p0 - h_f W'| + lp |h_p W - h_p W'| + |B A|

From the authors' code: rank 5, 2000 Adam steps at rate 0.01, lf = 1.3 and lp = 0.4 (those of RN50),
a new try with lf + 0.05 while |p0 - h_f W'| fell by less than 0.7 of itself, p0 with noise of 0.5 a
component added until no text to forget is nearest to it. Kept texts need only be similar ones: the
authors' lists have about 100 for each data set; here the 100 nearest of `task.keep`.

Simplified: h, the hidden state before the projection, is taken to be the text embedding itself, so
W is the identity, at the length 10 that CLIP's texts have before they are normalised (8 to 13 in
ViT-B/32). That length matters: against unit rows |B A| wins and nothing is learned. p0 has length
1, as in the code, so the forgotten text ends ten times shorter than the others as well as turned.
Ten tries, not 100, and the last one is given: where it did not forget, the measures show it.

Judge it with and without normalising texts again. Without, the short text answers nothing. With, it
is the empty prompt that competes in the class's place; where that is near every image, as in the
embedded model (mean cosine 0.42), the class keeps its own images and takes those of others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.refusal import Refusal

from .dense import Dense

if TYPE_CHECKING:
    from clipproj.methods.method import Task

RANK, STEPS, RATE = 5, 2000, 0.01
FORGET, PRESERVE = 1.3, 0.4  # lf, lp
SIMILAR = 100
LENGTH = 10.0
_FALL, _MORE, _TRIES = 0.7, 0.05, 10  # the code tries 100 times


def make(task: Task, renormalize: bool = True) -> Dense:
    """The map of text features that TIA trains. Refusal without the text of the empty prompt."""
    if task.empty is None:
        raise Refusal("tia", "task.empty", "must be the empty prompt's text, got None")
    forget, keep = task.forget.tensor.float().cpu(), task.keep.tensor.float().cpu()
    generator = torch.Generator().manual_seed(task.seed)
    target = _away(task.empty.float().cpu(), forget, keep, generator)
    near = (keep @ forget.T).amax(1).argsort(descending=True, stable=True)[:SIMILAR]
    weight = FORGET
    for trial in range(_TRIES):
        matrix, fall = _train(task, target, forget, keep[near], weight, trial)
        if fall >= _FALL:
            break
        weight += _MORE
    return Dense(matrix, side="text", renormalize=renormalize)


def losses(matrix: Tensor, target: Tensor, forget: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """|p0 - h_f W'| and |h_p - h_p W'| for unit texts, before their weights."""
    missed = torch.linalg.vector_norm(target - LENGTH * forget @ matrix)
    return missed, torch.linalg.vector_norm(LENGTH * (keep @ matrix - keep))


def _train(
    task: Task, target: Tensor, forget: Tensor, keep: Tensor, weight: float, trial: int
) -> tuple[Tensor, float]:
    """The matrix, and by which share of itself |p0 - h_f W'| fell."""
    d = forget.shape[1]
    identity = torch.eye(d)
    generator = torch.Generator().manual_seed(task.seed + 1)
    a = (torch.rand(RANK, d, generator=generator) * 2 - 1) / d**0.5  # kaiming_uniform_(a=sqrt(5))
    a.requires_grad_()
    b = torch.zeros(d, RANK, requires_grad=True)
    optimizer = torch.optim.Adam([a, b], lr=RATE)
    with torch.no_grad():
        first, _ = losses(identity, target, forget, keep)
    for step in range(STEPS):
        product = b @ a
        missed, moved = losses(identity + product / RANK, target, forget, keep)
        loss = weight * missed + PRESERVE * moved + torch.linalg.vector_norm(product)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if task.progress is not None and step % 100 == 99:
            task.progress(trial * STEPS + step + 1, _TRIES * STEPS)
    with torch.no_grad():
        matrix = identity + b @ a / RANK
        missed, _ = losses(matrix, target, forget, keep)
    return matrix, float(1 - missed / first)


def _away(empty: Tensor, forget: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
    """[m, d] unit: the empty prompt for each text, with noise while a text to forget is nearest."""
    texts = torch.cat([forget, keep])
    target = F.normalize(empty, dim=0).repeat(len(forget), 1)
    for _ in range(100):
        bad = (target @ texts.T).argmax(1) < len(forget)
        if not bad.any():
            return target
        # on an embedding at its own length, as in the code
        noise = 0.5 * torch.randn(int(bad.sum()), len(empty), generator=generator)
        target[bad] = F.normalize(LENGTH * F.normalize(empty, dim=0) + noise, dim=1)
    raise RuntimeError("tia: no noise on the empty prompt takes it away from the texts to forget")
