"""When a recipe has a certificate, and when there is nothing to certify."""

from __future__ import annotations

from dataclasses import replace

import torch
from embeddings import texts

from clipproj import Embeddings, nullspace
from clipproj.recipe.run import certified


def test_an_edit_against_what_it_was_made_from_is_certified() -> None:
    forget, keep = texts(2), texts(9, offset=2)
    halves = nullspace(forget, keep, "hull", keep_weight=3, one_sided=True, dtype=torch.bfloat16)
    proven = certified(keep, halves)
    assert proven is not None
    assert (proven.certified, proven.dtype, proven.kept) == (True, "bfloat16", 9)


def test_what_cannot_be_certified_has_none() -> None:
    forget, keep = texts(2), texts(9, offset=2)
    p = nullspace(forget, keep, "hull")
    assert certified(keep, p) is not None
    assert certified(replace(keep, head_hash="1" * 64), p) is None
    both = torch.cat([keep.tensor, forget.tensor[:1]])
    again = Embeddings(both, (*keep.names, "its other name"), keep.templates, keep.model)
    assert certified(replace(again, head_hash=keep.head_hash), p) is None
    assert certified(keep, nullspace(forget, keep, "hull", side="text")) is None
