"""Orthogonal null space of the forgotten texts (arXiv 2512.14137), relative to what must stay."""

from __future__ import annotations

import warnings

from torch import Tensor

from clipproj.methods.contrast import CONTRASTS, SPAN_UP_TO, contrasted, row_basis
from clipproj.methods.inputs import forget_and_keep, provenance, rank_and_tol
from clipproj.methods.method import Method, Option, Setting, Task
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal


def nullspace(
    forget: Embeddings | Tensor,
    keep: Embeddings | Tensor | None = None,
    contrast: str = "auto",
    strength: float = 1.0,
    rank: int | None = None,
    tol: float = 1e-4,
    side: str = "image",
) -> Projector:
    """Project out the directions of the forgotten texts: `P = I - s U^T U`, symmetric.

    All CLIP texts share one large direction, so their plain null space (the paper's) leaves about
    half of a class in place and costs every class the shared part. `contrast` takes out what sets
    the class apart instead:

    - "span": forget minus its projection on span(keep), so that kept texts do not move at all. For
      a closed list of candidates. A long list spans the class too (ViT-B/32: with 39 keeps 0.41 of
      its accuracy survives, with 209 0.81).
    - "hull": forget minus the nearest mixture (weights >= 0 of sum 1) of kept texts. For a closed
      list of any length. At strength 1 and at full rank an edited image scores for each forgotten
      text what it scores for its mixture, and an average is never above the highest: some kept text
      scores at least as high, so no image is answered by a forgotten class. Where the mixture is
      one text alone (the only keep, or a near-synonym) both score the same, and rounding decides.
      At other strengths, or where `rank` or a large `tol` drops directions, it need not be so; nor
      where edited texts (side "text") are divided by their length again. Every mixture has that
      property; the nearest moves kept texts less than their mean or the best single one of them
      would in 25 of 36 random lists of 10 to 200 of ViT-B/32's texts.
    - "mean": forget minus mean(keep), the mixture of equal weights. For generic lists, which do not
      hold the names that compete, with strength 1.5 for one direction.
    - "none": the texts themselves.
    - "auto": none without keep (with a warning), span up to 16 keeps, else mean.

    Args:
        forget: [m, d], texts to forget; any row lengths.
        keep: [m, d], texts to keep.
        strength: 0 leaves rows alone, 1 projects, 2 reflects. Above 1 with several directions
            warns: reflections cross, and other classes pay (10 names of ViT-B/32 at 1.5 cost the
            rest half of its accuracy, at 1 a tenth).
        rank: at most so many directions, the strongest first; None for all.
        tol: directions with a singular value below tol times the largest are dropped; a forget row
            with less than this length of its own lies in the span, hull or mean of keep.
        side: "image" or "text", whose features the projector edits.

    Returns:
        A symmetric Projector of rank <= m; its provenance tells contrast, rank, the singular values
        and how many directions were dropped.

    Raises:
        ValueError: for NaN, inf or zero rows, for texts on both lists, for a forget row inside
            span(keep) or hull(keep) or equal to mean(keep), for rows that span everything, for
            options out of range.

    Example:
        >>> forget, keep = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]])
        >>> p = nullspace(forget, keep, "span")
        >>> p.rank, p(torch.tensor([[3.0, 4.0]]))
        (1, tensor([[0., 4.]]))
    """
    f, k = forget_and_keep("nullspace", forget, keep)
    rank, tol = rank_and_tol("nullspace", rank, tol)
    if contrast == "hull" and rank is None and len(f) >= f.shape[1]:  # before minutes of mixtures
        raise Refusal(
            "nullspace",
            "forget",
            f"must be fewer than the {f.shape[1]} dimensions with contrast hull, "
            f"got {len(f)} rows; give rank",
        )
    rows, contrast = contrasted(
        "nullspace", f, k, contrast, tol, forget,
        "the direction that all texts share is erased too, and half of a real class survives",
    )  # fmt: skip
    basis, singular, found = row_basis(rows, tol)
    basis = basis[:rank]
    if len(basis) == f.shape[1]:
        raise Refusal(
            "nullspace",
            "forget",
            f"must leave something of the {f.shape[1]} dimensions, got rows that "
            "span all of them; give rank",
        )
    if 2 * len(basis) > f.shape[1]:
        warnings.warn(
            f"nullspace: {len(basis)} directions are most of the {f.shape[1]} dimensions: little "
            "is left to tell other classes apart by; give fewer texts, or rank",
            stacklevel=2,
        )
    if len(basis) > 1 and float(strength) > 1:
        warnings.warn(
            f"nullspace: strength {float(strength):g} above 1 with {len(basis)} directions lets "
            "reflections cross, which other classes pay for",
            stacklevel=2,
        )
    parameters = {
        "contrast": contrast,
        "tol": tol,
        "rank": rank,
        "kept_directions": len(basis),
        "dropped_by_tol": len(f) - found,
        "dropped_by_rank": found - len(basis),
        "singular_values": [round(value, 6) for value in singular.tolist()],
    }
    history = provenance("nullspace", parameters, forget, keep)
    return Projector(basis, strength=strength, side=side, provenance=history)


MEAN_STRENGTH = 1.5  # of one direction less a mean of many names; 1 leaves up to a third of a class


def make(
    task: Task, contrast: str = "auto", rank: int | None = None
) -> Projector | tuple[Projector, ...]:
    """`nullspace` of names, at the contrast and strength that suit them.

    Against a closed list "auto" is span where that leaves nothing of the class, for it moves no
    kept text; of long lists it does not, and hull leaves nothing by construction, but for a tie
    where the nearest mixture is one kept text. Against names in general it is mean, of which the
    strength is 1.5 for one direction, where less leaves some of the class; of several 1, for
    reflections cross.
    """

    def made(contrast: str) -> Projector:
        return nullspace(task.forget, task.keep, contrast, rank=rank, side=task.side)

    if task.closed and contrast == "auto":
        hull = made("hull")
        if len(task.keep) > SPAN_UP_TO:
            return hull
        try:
            return made("span"), hull
        except ValueError:  # the kept names span the forgotten one
            return hull
    one = made(contrast)
    mean = one.provenance["parameters"]["contrast"] == "mean"
    return one.scaled(MEAN_STRENGTH) if mean and one.rank == 1 else one


METHOD = Method(
    "nullspace",
    "projects out what sets the names apart from the kept ones",
    make,
    options=(
        Option(
            "contrast", str, "what the names are told apart from",
            "span(keep) up to 16 names where that suffices, else hull(keep), or mean(keep) of the "
            "generic list",
            choices=(*CONTRASTS, "auto"),
        ),
        Option("rank", int, "at most so many directions, the strongest first", "all", low=1),
    ),
    symmetric=True,
    promise="hull: no image is answered by a forgotten name; span: kept texts do not move",
    paper="arXiv 2512.14137",
    settings=(
        Setting(
            "nullspace, plain",
            "arXiv 2512.14137's projector: the class's text itself, strength 1",
            {"contrast": "none"},
        ),
        Setting("nullspace, span", "less span(keep), strength 1", {"contrast": "span"}),
        Setting("nullspace, mean", "less mean(keep), strength 1", {"contrast": "mean"}, 1.0),
        Setting("nullspace, mean 1.5", "less mean(keep), strength 1.5", {"contrast": "mean"}, 1.5),
        Setting(
            "nullspace, hull",
            "less the nearest mixture of kept texts, strength 1: the default for closed lists",
            {"contrast": "hull"},
        ),
        Setting("nullspace, hull 0.85", "the same at strength 0.85", {"contrast": "hull"}, 0.85),
    ),
)  # fmt: skip
