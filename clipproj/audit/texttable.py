"""What an edit did to the class texts: the measure that needs no picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from clipproj.projector import Projector
from clipproj.text import Embeddings
from clipproj.words import name_key

_NOTHING_LEFT = 1e-3  # share of a unit row's length


@dataclass(frozen=True)
class TextRow:
    """One class, its unedited text standing in for the feature of a perfect picture of it.

    Args:
        cosine: of the text before and after the edit; 1 is untouched.
        before, after: cosine of such a picture to the nearest forgotten text.
        answer: the class whose text is nearest to such a picture after the edit; None where the
            edit leaves less than 0.1 % of the picture's length, so that what is left is rounding.
    """

    name: str
    forgotten: bool
    cosine: float
    before: float
    after: float
    answer: str | None


@dataclass(frozen=True)
class TextTable:
    """Forgotten texts first, then the kept ones, nearest to a forgotten text first."""

    rows: tuple[TextRow, ...]

    @property
    def kept(self) -> tuple[TextRow, ...]:
        """The rows of kept texts."""
        return tuple(row for row in self.rows if not row.forgotten)

    @property
    def cosine(self) -> float:
        """Mean cosine of the kept texts, NaN without any."""
        return sum(row.cosine for row in self.kept) / len(self.kept) if self.kept else float("nan")

    @property
    def true_to_name(self) -> int:
        """How many kept classes are still answered by their own name."""
        return sum(row.answer == row.name for row in self.kept)

    def shown(self, kept: int) -> tuple[TextRow, ...]:
        """The forgotten texts and the `kept` nearest others."""
        forgotten = tuple(row for row in self.rows if row.forgotten)
        return forgotten + self.kept[:kept]


def text_table(forget: Embeddings, keep: Embeddings, projector: Projector) -> TextTable:
    """What an edit of the projector's tower does to the classes, for want of pictures.

    Kept names that are forgotten as well count as forgotten. ValueError for another width.
    """
    gone = {name_key(name) for name in forget.names}
    kept = [name for name in keep.names if name_key(name) not in gone]
    names, m = (*forget.names, *kept), len(forget)
    texts = [forget.tensor.cpu()] + ([keep.select(kept).tensor.cpu()] if kept else [])
    rows = torch.cat(texts)
    edited = projector(rows.to(projector.read.device)).cpu()
    gone = edited.norm(dim=1) < _NOTHING_LEFT
    edited = F.normalize(edited, dim=1)
    on_pictures = projector.side == "image"
    similarity = edited @ rows.T if on_pictures else rows @ edited.T  # picture i, text j
    before = (rows @ rows[:m].T).amax(dim=1)
    after = similarity[:, :m].amax(dim=1).tolist()
    answers: list[str | None] = [names[j] for j in similarity.argmax(dim=1).tolist()]
    if on_pictures:
        answers = [None if g else a for a, g in zip(answers, gone.tolist(), strict=True)]
    cosine = (rows * edited).sum(dim=1).tolist()
    order = [*range(m), *(m + before[m:].argsort(descending=True, stable=True)).tolist()]
    return TextTable(
        tuple(
            TextRow(names[i], i < m, cosine[i], float(before[i]), after[i], answers[i])
            for i in order
        )
    )
