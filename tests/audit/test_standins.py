"""Mixtures of class texts: what they are, and that they see what an edit ruins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipproj import Embeddings, Projector, nullspace
from clipproj.audit import compare, stand_ins
from clipproj.audit.samples import Samples

DATA = Path(__file__).parents[3] / "shared/data"


def embed(rows: torch.Tensor, word: str = "class") -> Embeddings:
    names = tuple(f"{word} {i}" for i in range(len(rows)))
    return Embeddings(F.normalize(rows.float(), dim=1), names, ("a {}",), "model")


def test_each_text_is_mixed_with_others_and_labelled_by_the_larger() -> None:
    forget, keep = embed(torch.eye(8)[:2], "gone"), embed(torch.eye(8)[2:])
    samples = stand_ins(forget, keep)
    assert samples.names == (*forget.names, *keep.names)
    assert len(samples) == 2 * 6 + 6 * 5  # a kept text is not mixed with itself
    own = samples.features[torch.arange(len(samples)), samples.labels]
    gone = samples.labels < 2
    torch.testing.assert_close(own[gone], torch.full((12,), 0.75))
    torch.testing.assert_close(own[~gone], torch.full((30,), 0.6))
    assert len(samples.features.unique(dim=0)) == len(samples)
    torch.testing.assert_close(samples.features.sum(dim=1), torch.ones(len(samples)))
    assert samples.correct().all()


def test_of_many_pairs_every_text_gets_as_many() -> None:
    torch.manual_seed(0)
    forget, keep = embed(torch.randn(3, 16), "gone"), embed(torch.randn(50, 16))
    samples = stand_ins(forget, keep, most=100)
    counts = samples.labels.bincount()
    assert counts.tolist() == [33] * 3 + [2] * 50
    assert len(samples.features.unique(dim=0)) == len(samples)
    again = stand_ins(forget, keep, most=100)
    assert torch.equal(samples.features, again.features)


def test_a_single_kept_text_stands_for_itself() -> None:
    samples = stand_ins(embed(torch.eye(4)[:1], "gone"), embed(torch.eye(4)[1:2]))
    assert samples.labels.tolist() == [0, 1]
    torch.testing.assert_close(samples.features[1], torch.eye(4)[1])


def test_what_is_kept_and_forgotten_counts_as_forgotten() -> None:
    both = embed(torch.eye(4)[:3])
    samples = stand_ins(both.select(["class 0"]), both)
    assert samples.names == both.names
    with pytest.raises(ValueError, match=r"keep must hold other names of width 4, got 0 other"):
        stand_ins(both, both)
    with pytest.raises(ValueError, match="of width 4, got 2 other names of width 5"):
        stand_ins(both.select(["class 0"]), embed(torch.eye(5)[1:3], "wide"))


def found(samples: Samples, edit: Any, forget: Embeddings) -> float:
    return compare(samples, samples.edited(edit), forget.names, probe=False).after.found


def test_found_is_any_forgotten_answer() -> None:
    forget, keep = embed(torch.eye(4)[:2], "gone"), embed(torch.eye(4)[2:])
    swap = torch.eye(4)[[1, 0, 2, 3]]
    samples = stand_ins(forget, keep)
    moved = compare(samples, samples.edited(lambda x: x @ swap), forget.names, probe=False)
    assert (moved.after.forget, moved.after.found) == (0, 1)  # each answers for the other
    half = compare(samples, samples.edited(Projector(torch.eye(4)[:1])), forget.names, probe=False)
    assert half.after.found == 0.5
    assert half.after.found_of == {"gone 0": 0, "gone 1": 1}
    assert half.after.found_among(["gone 0"]).n == 2
    assert half.after.found_among(["gone 0", "gone 1", "nobody"]) == 0.5


def test_on_real_features_mixtures_see_what_whole_texts_do_not() -> None:
    files = "vitb32_text.npz", "oxford_pets_test_vitb32.npz"
    for name in files:
        if not (DATA / name).exists():
            pytest.skip(f"needs shared/data/{name}, real CLIP features")
    texts, pets = np.load(DATA / files[0]), np.load(DATA / files[1])
    generic = embed(torch.from_numpy(texts["imagenet_photo"]), "generic")
    classes = embed(torch.from_numpy(pets["text"]))
    row = {int(c): i for i, c in enumerate(pets["text_class"])}
    own = np.isin(pets["label"], list(row))
    labels = torch.tensor([row[int(label)] for label in pets["label"][own]])
    images = Samples(torch.from_numpy(pets["image"][own]), labels, classes)
    forget = classes.select(classes.names[::2][:10])
    near = (generic.tensor @ forget.tensor.T).amax(dim=1) > 0.97
    generic = generic.drop([generic.names[i] for i in near.nonzero().flatten().tolist()])

    edit = nullspace(forget, generic, "mean").scaled(1.5)
    mixed = stand_ins(forget, generic)
    lost = []
    for samples in (images, mixed):
        seen = compare(samples, samples.edited(edit), forget.names, probe=False)
        assert seen.after.found < 0.2
        lost.append(seen.before.keep - seen.after.keep)
    assert min(lost) > 0.05
    whole = Samples(generic.tensor, torch.arange(len(generic)), generic)
    blind = whole.edited(edit).correct().float().mean()
    assert lost[1] > 3 * (1 - blind)

    kept = classes.drop(forget.names)
    gentle = nullspace(forget, kept, "hull")
    seen = compare(images, images.edited(gentle), forget.names, probe=False)
    assert (seen.after.found, found(stand_ins(forget, kept), gentle, forget)) == (0, 0)
    assert seen.before.keep - seen.after.keep < 0.05
