"""Which classes are forgotten, which are near them, which the rest: the same for all audits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipproj.audit.samples import Samples
from clipproj.models.text import Embeddings
from clipproj.refusal import Refusal


def nearest(
    classes: Embeddings, forget: Sequence[str] | Embeddings, count: int = 5
) -> tuple[str, ...]:
    """The `count` classes with the highest text cosine to any forgotten one, nearest first.

    Args:
        forget: names among the classes; as Embeddings others as well.

    Raises ValueError for a forgotten name that is not among the classes.
    """
    if isinstance(forget, Embeddings):
        target, known = forget.tensor.cpu(), set(classes.names)
        forget = [name for name in forget.names if name in known]
    else:
        target = classes.select(forget).tensor
    others = classes.drop(forget) if forget else classes
    similarity = (others.tensor @ target.T).amax(dim=1)
    order = similarity.argsort(descending=True, stable=True)[:count]
    return tuple(others.names[i] for i in order.tolist())


def forgotten_classes(
    op: str, samples: Samples, forget: Sequence[str]
) -> tuple[tuple[str, ...], Tensor]:
    """The forgotten names once each, and their rows among the classes, int64.

    Raises, in the name of `op`, ValueError for no name or all classes; TypeError for what is no
    list of strings, ValueError for a name that is no class.
    """
    names = tuple(dict.fromkeys(samples.classes.select(forget).names)) if forget else ()
    if not 0 < len(names) < len(samples.names):
        raise Refusal(
            op, "forget", f"must be some of the {len(samples.names)} classes, got {len(names)}"
        )
    return names, torch.tensor([samples.names.index(name) for name in names], device="cpu")


def class_groups(
    op: str, samples: Samples, forget: Sequence[str] | Embeddings, count: int = 5
) -> dict[str, Tensor]:
    """Rows of the classes that are "forgotten", "nearest" and "others", each [m] int64.

    "nearest" are the `count` kept classes nearest to a forgotten one, in that order, "others"
    all the rest. Both are of classes that have images, as there is nothing to measure of the
    rest; m may be 0.

    Args:
        forget: names of classes; as Embeddings others as well, even none of them, which then only
            say what is nearest.

    Raises TypeError, ValueError as `forgotten`.
    """
    names, target = samples.names, forget
    known = set(names)
    if isinstance(forget, Embeddings):
        forget = [name for name in forget.names if name in known]
    if forget or not isinstance(target, Embeddings):
        forgotten, rows = forgotten_classes(op, samples, forget)
    else:
        forgotten, rows = (), torch.empty(0, dtype=torch.int64, device="cpu")
    rest = sorted({names[i] for i in samples.labels.unique().tolist()}.difference(forgotten))
    near = nearest(samples.classes.select([*forgotten, *rest]), target, count) if rest else ()
    far = set(rest).difference(near)
    others = [name for name in names if name in far]
    row = {name: i for i, name in enumerate(names)}

    def of(group: Sequence[str]) -> Tensor:
        return torch.tensor([row[name] for name in group], dtype=torch.int64, device="cpu")

    return {"forgotten": rows, "nearest": of(near), "others": of(others)}
