"""Give a class another's score: UCE-like targets, Partial Model Collapse, the empty prompt."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipproj.methods.ccup import pull
from clipproj.methods.inputs import (
    above_zero,
    apart,
    at_least_zero,
    forget_and_keep,
    integer,
    number,
    one_model,
    provenance,
    unit_rows,
    whose,
)
from clipproj.methods.method import Method, Option, Setting, Task
from clipproj.models.encoder import encode, evaluating
from clipproj.models.heads import check_module, unwrap
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

LOGIT_SCALE = 100.0  # CLIP's, at which the model's own answers are drawn


def redirect(
    forget: Embeddings | Tensor,
    target: Embeddings | Tensor | str,
    keep: Embeddings | Tensor | None = None,
    *,
    forget_weight: float = 100.0,
    keep_weight: float | None = None,
    margin: float = 0.5,
    samples: int = 5,
    temperature: float = 1.25,
    rounds: int = 10,
    seed: int = 0,
    strength: float = 1.0,
    side: str = "image",
) -> Projector:
    """The minimiser M of `|M - I|^2 + lam |M F - C|^2 + mu |M K - K|^2` (Frobenius norms).

    F, C and K hold forgotten texts, what each becomes, and kept texts as columns. The minimiser is
    `M = I - (F - C) V^T` with the V of `ccup`, which is this with C = 0:

        V = lam B (I + lam F^T B)^-1,   B = F - mu K (I + mu K^T K)^-1 K^T F.

    M acts on texts. On image features it is M^T, rows `z' = z - (z (F - C)) V^T`, so that an edited
    image scores for a text t what it scored for M t: for a forgotten name what it scored for C,
    for a kept one what it did. C is `1 - margin` times the target. Without margin, when the target
    is itself a candidate, an image scores the same for both names and rounding decides. On the
    text side lengths are normalised away and a forgotten name becomes its target.

    The target decides what the edit is:

    - rows: one for each forgotten text or one for all, as Unified Concept Editing does. They must
      score low on the class's images, so no synonym. The empty prompt (`empty_text`; the target
      of TIA, which trains the text tower) does not do so in every model: in the embedded one all
      images score 0.42 for it and 0.47 for their own name, and it leaves 0.26 of a class where
      "self" leaves 0.002.
    - "self": Partial Model Collapse (arXiv 2507.04219). The model's own labels: `samples` kept
      names are drawn from what it thinks of the forgotten text, and the one least like it is the
      target, while no better comes. M is solved and the text moved; this repeats until its nearest
      name is a kept one, or for `rounds`, with a warning.

    Args:
        forget: [m_f, d], any row lengths; m_f <= d.
        target: [m_f, d] or [1, d], any row lengths; or "self", which needs keep.
        keep: [m_k, d].
        forget_weight: lam > 0; M f misses its C by 1 / (1 + lam f . b) of the way, for one text.
        keep_weight: mu >= 0; the kept texts move by at most sqrt(lam / mu) |F - C|. None shares 100
            among them, since more on a long list would protect the class with it.
        margin: in [0, 1]. With 1 the target does not matter, and this is `ccup`. A half forgets on
            the embedded model and among ViT-B/32's texts, a tenth with few names only.
        samples, temperature, rounds, seed: of "self"; the temperature divides 100 x cosine.
        strength: in [0, 1].
        side: "image" or "text", whose features the projector edits.

    Returns:
        An oblique Projector of rank m_f. Its provenance tells the target: names where known, and
        for "self" the label of each forgotten text (its row without names) and the rounds.

    Raises:
        TypeError, ValueError: for NaN, inf or zero rows, other widths or models, texts on both
            lists, a target that is forgotten too, "self" without keep, options out of range.

    Example:
        >>> forget, keep = texts.select(["cat"]), texts.drop(["cat"])
        >>> p = clipproj.redirect(forget, "self", keep)
        >>> p.form, p.rank
        ('oblique', 1)
    """
    f, k = forget_and_keep("redirect", forget, keep)
    if len(f) > f.shape[1]:
        raise Refusal("redirect", "forget", f"must be [m, d] with m <= d, got {list(f.shape)}")
    lam = above_zero("redirect", "forget_weight", forget_weight)
    share = 0.0 if k is None else 100.0 / len(k)
    mu = share if keep_weight is None else at_least_zero("redirect", "keep_weight", keep_weight)
    margin = number("redirect", "margin", margin)
    if not 0 <= margin <= 1:
        raise Refusal("redirect", "margin", f"must be in [0, 1], got {margin:g}")
    length = 1 - margin
    parameters: dict[str, Any] = {"forget_weight": lam, "keep_weight": mu, "margin": margin}

    if isinstance(target, str):
        if target != "self":
            raise Refusal("redirect", "target", f'must be rows or "self", got {target!r}')
        if k is None:
            raise Refusal("redirect", "keep", 'must be given for the target "self", got None')
        if length == 0:
            raise Refusal("redirect", "margin", 'must be below 1 for the target "self", got 1')
        temperature = above_zero("redirect", "temperature", temperature)
        if not math.isfinite(2 * LOGIT_SCALE / temperature):  # no cosine is above 2
            why = f"must leave 100 x cosine / temperature finite, got {temperature:g}"
            raise Refusal("redirect", "temperature", why)
        drawing: dict[str, Any] = {
            "samples": integer("redirect", "samples", samples, least=1),
            "temperature": temperature,
            "rounds": integer("redirect", "rounds", rounds, least=1),
            "seed": integer("redirect", "seed", seed),
        }
        v = pull(f, k, lam, mu)
        picks, used, left = _collapse(f, k, v, length, **drawing)
        stuck = [forget.names[i] if isinstance(forget, Embeddings) else i for i in left]
        if stuck:
            warnings.warn(
                f"redirect: after {used} rounds {stuck} still lie nearest to what is forgotten; "
                "raise forget_weight or samples",
                stacklevel=2,
            )
        labels = [keep.names[i] if isinstance(keep, Embeddings) else i for i in picks]
        told = {"kind": "self", "labels": labels, **drawing, "rounds": used, "stayed": stuck}
        c = length * k[picks]
    else:
        c = length * _targets(target, f, forget)
        v = pull(f, k, lam, mu)
        told = {"kind": "given"} | whose(target, c)
        c = c.expand(len(f), -1)
    history = provenance("redirect", parameters | {"target": told}, forget, keep)
    read, write = (f - c, v) if side == "image" else (v, f - c)
    return Projector(read, write, strength=strength, side=side, provenance=history, forget=f)


def empty_text(model: nn.Module, tokenizer: Callable[..., Any]) -> Tensor:
    """[1, d] float32 unit row: what the model makes of the empty prompt, a target for `redirect`.

    Takes the models and tokenizers that `embed_classes` takes. Raises TypeError for others, and
    ValueError for a model without parameters or a feature that is zero or not finite.
    """
    check_module("empty_text", model)
    model = unwrap(model)
    parameter = next(model.parameters(), None)
    if parameter is None:
        got = type(model).__name__
        raise Refusal("empty_text", "model", f"must have parameters, got {got} with none")
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        row = encode(model, tokenizer, [""], parameter.device)
        return unit_rows("empty_text", "the feature", row).float()


def _collapse(
    f: Tensor,
    k: Tensor,
    v: Tensor,
    length: float,
    samples: int,
    temperature: float,
    rounds: int,
    seed: int,
) -> tuple[list[int], int, list[int]]:
    """The kept row that each forgotten text becomes, the rounds it took, and who did not leave."""
    generator = torch.Generator().manual_seed(seed)
    likeness = (f @ k.T).cpu()  # drawn on the CPU: the same labels on every device
    every = F.normalize(torch.cat([k, f]))
    best = torch.empty(len(f), 0, dtype=torch.long, device="cpu")
    now, used, left = f, 0, list(range(len(f)))
    while left and used < rounds:
        p = torch.softmax(LOGIT_SCALE * F.normalize(now).cpu() @ k.cpu().T / temperature, dim=1)
        drawn = torch.multinomial(p, samples, replacement=True, generator=generator)
        drawn = torch.cat([best, drawn], dim=1)
        best = drawn.gather(1, likeness.gather(1, drawn).argmin(1, keepdim=True))
        c = length * k[best[:, 0].to(k.device)]
        now = f - f @ v.T @ (f - c)
        nearest = (now @ every.T).argmax(1)
        left = (nearest >= len(k)).nonzero().flatten().tolist()
        used += 1
    return best[:, 0].tolist(), used, left


def _targets(target: Embeddings | Tensor, f: Tensor, forget: Embeddings | Tensor) -> Tensor:
    """Unit rows [m_f or 1, d] that fit what is forgotten."""
    rows = unit_rows("redirect", "target", target).to(f.device)
    if len(rows) not in (1, len(f)) or rows.shape[1] != f.shape[1]:
        wanted = f"[{len(f)}, {f.shape[1]}]" + (f" or [1, {f.shape[1]}]" if len(f) > 1 else "")
        raise Refusal("redirect", "target", f"must be {wanted}, got {list(rows.shape)}")
    one_model("redirect", "target", target, forget)
    apart("redirect", "target", rows, f)
    return rows


def make(task: Task, target: str = "self", **options: Any) -> Projector:
    """`redirect` of names, to a kept name where the target is one."""
    to: Embeddings | Tensor | str = target
    if target == "empty":
        assert task.empty is not None
        to = task.empty[None]
    elif target in task.keep.names:
        to = task.keep.select([target])
    elif target != "self":
        raise Refusal("redirect", "target", f"must be self, empty or a kept name, got {target!r}")
    return redirect(task.forget, to, task.keep, seed=task.seed, side=task.side, **options)


METHOD = Method(
    "redirect",
    "gives the names the score of something else, less a margin",
    make,
    options=(
        Option(
            "target", str, "self (the model's own likely kept labels), empty (the empty prompt) or "
            "a kept name", "self", needs={"empty": "empty"},
        ),
        Option("forget_weight", float, "lambda; larger forgets more", "100", above=0),
        Option(
            "keep_weight", float, "mu; larger moves kept texts less",
            "100 shared among the kept names", low=0,
        ),
        Option("margin", float, "by which share the score is lowered", "0.5", 0, 1),
        Option("samples", int, "labels drawn a round, of self", "5", low=1, high=10_000),
        Option("temperature", float, "of the draw, of self", "1.25", above=0),
        Option("rounds", int, "at most, of self", "10", low=1, high=10_000),
    ),
    paper="arXiv 2507.04219; UCE, 2308.14761",
    settings=(
        Setting(
            "redirect, self", "to the model's own likely kept labels (Partial Model Collapse)",
            {"target": "self"},
        ),
        Setting(
            "redirect, empty", "to the empty prompt (TIA's target, in closed form)",
            {"target": "empty"},
        ),
    ),
)  # fmt: skip
