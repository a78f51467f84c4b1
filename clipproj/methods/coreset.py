"""The core of a list of prompts: what a projector is built from, without the outliers (UPCORE)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipproj.methods.inputs import integer, number, provenance, unit_rows
from clipproj.methods.method import Method, Option, Setting, Task
from clipproj.methods.nullspace import nullspace
from clipproj.models.text import Embeddings
from clipproj.models.words import Template, openai_templates, strings, template_strings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

_COMPONENTS = 2  # as UPCORE's; more of them are noise in a hundred prompts


@dataclass(frozen=True, eq=False)
class Coreset:
    """What pruning kept, what it dropped, and how far apart the rows were.

    Attributes:
        kept: rows of what was given, of its kind, in its order.
        dropped: numbers of the other rows, farthest out first.
        names: the names of those rows; () for a tensor.
        scores: [m] float64 on the CPU, of every row; higher is farther out.
        variance_before, variance_after: trace of the covariance of unit rows, of all and of the
            kept ones.
    """

    kept: Embeddings | Tensor
    dropped: tuple[int, ...]
    names: tuple[str, ...]
    scores: Tensor
    variance_before: float
    variance_after: float


def prompts(names: Iterable[str], templates: Iterable[Template] | None = None) -> list[str]:
    """Every name in every template, doubles left out: a list to embed with `templates=["{}"]`.

    `embed_classes` averages a name's templates into one row; this gives each prompt its own:

        rows = embed_classes(model, tokenizer, prompts(["cat", "tabby cat"]), ["{}"])
        p = nullspace(coreset(rows).kept, keep, rank=1)

    Args:
        names: class names.
        templates: as `embed_classes` takes them; None: OpenAI's 80.

    Raises:
        TypeError, ValueError, ImportError: as `embed_classes` does for names and templates.
    """
    names = strings("prompts", "names", names)
    if templates is None:
        templates = openai_templates()
    templates = template_strings("prompts", templates, names)
    return list(dict.fromkeys(t.replace("{}", name) for name in names for t in templates))


def coreset(
    forget: Embeddings | Tensor,
    *,
    share: float = 0.1,
    level: float | None = None,
    method: str = "mahalanobis",
    seed: int = 0,
) -> Coreset:
    """Drop the outliers of a list of prompts before a projector is built (arXiv 2502.15082).

    A prompt far from the others adds directions that belong to other things, and erasing those
    costs what should stay; the dropped prompts are mostly forgotten with the core. Of ViT-B/32's
    118 dog names at rank 2, the core leaves other classes at cosine 0.940 where all names leave
    0.931, and turns the dropped 12 away from dogs as far. Among prompts that say one thing in 80
    templates there is nothing to gain. One stray prompt that stays is enough to erase another
    class from rank 2 on, so a `level` is safer than a tight `share`.

    Args:
        forget: [m, d] prompts, a row each (see `prompts`), m >= 3; any row lengths.
        share: of the rows, in [0, 0.5]: as scikit-learn's contamination, the
            ceil(share (m - 1)) rows farthest out go.
        level: drop instead the rows beyond this chi-square quantile, in (0, 1), such as 0.975: as
            many as are far out, none perhaps. For "mahalanobis".
        method: "mahalanobis": squared distance from the mean in the first two principal
            components, in units of their variances. "isolation_forest": UPCORE's choice, over all
            dimensions; from scikit-learn.
        seed: of the forest, at least 0.

    Raises:
        TypeError, ValueError: for NaN, inf or zero rows, fewer than 3 of them or all the same,
            options out of range, a level that leaves fewer than 2 rows.
        ImportError: for "isolation_forest" without scikit-learn.
    """
    op = "coreset"
    rows = unit_rows(op, "forget", forget).cpu()
    m, share = len(rows), number(op, "share", share)
    if m < 3:
        raise Refusal(op, "forget", f"must have at least 3 rows, got {m}")
    if not 0 <= share <= 0.5:
        raise Refusal(op, "share", f"must be in [0, 0.5], got {share}")
    if method not in ("mahalanobis", "isolation_forest"):
        options = '"mahalanobis" or "isolation_forest"'
        raise Refusal(op, "method", f"must be {options}, got {method!r}")
    level = None if level is None else number(op, "level", level)
    if level is not None and not (method == "mahalanobis" and 0 < level < 1):
        raise Refusal(op, "level", f'must be in (0, 1) with "mahalanobis", got {level}')
    seed = integer(op, "seed", seed, least=0)
    if torch.linalg.vector_norm(rows - rows.mean(0), dim=1).max() < 1e-7:  # float32's rounding
        raise Refusal(op, "forget", f"must have rows that differ, got {m} equal ones")

    scores = _forest(rows, seed) if method == "isolation_forest" else _distances(rows)
    order = scores.argsort(descending=True, stable=True)
    if level is None:
        count = math.ceil(round(share * (m - 1), 9))
    else:
        count = int((scores > -2 * math.log1p(-level)).sum())  # two degrees of freedom
        if m - count < 2:
            raise Refusal(op, "level", f"must leave at least 2 of {m} rows, got {level}")
    dropped = order[:count].tolist()
    stay = order[count:].sort().values
    names: tuple[str, ...] = ()
    kept: Embeddings | Tensor
    if isinstance(forget, Embeddings):
        kept = forget.select([forget.names[i] for i in stay.tolist()])
        names = tuple(forget.names[i] for i in dropped)
    else:
        kept = forget[stay]
    variances = (float(part.var(0).sum()) for part in (rows, rows[stay]))
    return Coreset(kept, tuple(dropped), names, scores, *variances)


def _distances(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    live = singular[:_COMPONENTS] > 1e-6 * singular[0]  # rows on a line have one component
    return left[:, :_COMPONENTS][:, live].square().sum(1) * (len(rows) - 1)


def _forest(rows: Tensor, seed: int) -> Tensor:
    try:
        from sklearn.ensemble import IsolationForest
    except ImportError as error:
        raise ImportError(
            'coreset: method "isolation_forest" comes from scikit-learn: pip install '
            'scikit-learn, or take "mahalanobis"'
        ) from error
    fitted = IsolationForest(random_state=seed).fit(rows.numpy())
    return -torch.from_numpy(fitted.score_samples(rows.numpy()))


def make(task: Task, share: float = 0.1, rank: int | None = None) -> Projector:
    """The null space, less the hull of kept texts, of the core of the forgotten names' prompts."""
    assert task.prompts is not None
    core = coreset(task.prompts, share=share, seed=task.seed)
    rank = len(task.forget) if rank is None else rank
    assert isinstance(core.kept, Embeddings)  # as prompts are
    made = nullspace(core.kept.tensor, task.keep.tensor, "hull", rank=rank, side=task.side)
    told = made.provenance["parameters"] | {"share": share, "dropped_prompts": len(core.dropped)}
    made.provenance = provenance("coreset", told, task.forget, task.keep)
    return made


METHOD = Method(
    "coreset",
    "nullspace with contrast hull of the names' prompts, each by itself, without the outliers",
    make,
    options=(
        Option("share", float, "of the prompts that goes, those farthest out", "0.1", 0, 0.5),
        Option("rank", int, "at most so many directions", "one a name", low=1),
    ),
    needs=frozenset({"prompts"}),
    symmetric=True,
    paper="arXiv 2502.15082",
    settings=(
        Setting("coreset, hull", "hull on UPCORE's core of the class's prompts, rank 1"),
    ),
)  # fmt: skip
