"""Real CLIP sizes: embedding widths, batches and ranks that the operators meet."""

from __future__ import annotations

from typing import NamedTuple


class Head(NamedTuple):
    """A final projection: the width of its tower and of the embedding space."""

    tower: int
    d: int


HEADS = {
    "ViT-B-32": Head(768, 512),
    "ViT-L-14": Head(1024, 768),
    "ViT-H-14": Head(1280, 1024),
    "ViT-bigG-14": Head(1664, 1280),
    "ViT-SO400M-14-SigLIP": Head(1152, 1152),
}
BATCHES = (1, 256, 4096)  # one query, a serving batch, a page of an embedding store
RANKS = (1, 16, 64)  # a name; a class with its synonyms; a small union of classes
