"""Leak: a memory that still knows the class brings it back, one that does not does not."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from clipproj import Embeddings, Projector
from clipproj.audit import stats
from clipproj.audit.leak import GAMMAS, leak
from clipproj.audit.samples import Samples
from clipproj.report.sections import leak as section

NAMES = ("cat", "dog", "car", "key")


def _samples(per_class: int = 12, look: float = 1.0, near: float = 0.4) -> Samples:
    """Axis i is the text of class i, axis 4 + i what else its images share.

    They are a little like the next class too, which takes them over once the text is gone.
    """
    labels = torch.arange(4).repeat_interleave(per_class)
    eye = torch.eye(16)
    features = (
        eye[labels]
        + look * eye[labels + 4]
        + near * eye[(labels + 1) % 4]
        + 0.05 * torch.randn(len(labels), 16)
    )
    return Samples(features, labels, Embeddings(eye[:4], NAMES, ("{}",), "planted"))


CAT = Projector(torch.eye(16)[:1])


def test_a_leak_is_measured_and_gone_after_the_purge() -> None:
    result = leak(_samples(), CAT, ["cat"])
    assert result.before.forget == result.before_memory.forget == 1
    assert result.none.forget == 0
    assert result.unedited.forget == 1
    assert result.unedited.forget.n == 12
    assert result.purged.forget == 0
    assert result.edited.forget == 0  # its entries say nothing of cats
    for one in (result.none, result.unedited, result.edited, result.purged):
        assert one.keep == 1
        assert one.keep.n == 36
    assert (result.entries, result.entries_forget, result.left_out) == (47, 12, True)
    page = section.page(result)
    assert page.lead.startswith("An unedited retrieval memory leaks “cat”")
    assert len(page.tables[0].rows) == 6
    json.dumps(stats.plain(result), allow_nan=False)


def test_the_weight_of_the_memory_decides_and_the_curve_shows_it() -> None:
    result = leak(_samples(), CAT, ["cat"], gamma=0.001)
    assert [point.gamma for point in result.curve] == list(GAMMAS)
    assert result.curve[0].unedited == result.none.forget
    assert result.curve[-1].unedited == 1
    assert result.unedited.forget == result.none.forget
    assert "At this weight no leak of “cat”" in section.lead(result)
    assert "but to 100.0" in section.lead(result)  # at a larger weight it does


def test_an_image_never_finds_itself() -> None:
    eye = torch.eye(16)
    labels = torch.arange(4)
    # One image a class, each with a look of its own: only its own entry could name it.
    samples = Samples(
        eye[labels] + eye[labels + 4], labels, Embeddings(eye[:4], NAMES, ("{}",), "planted")
    )
    assert leak(samples, CAT, ["cat"], k=1).unedited.forget == 0
    other = Samples(samples.features, labels, samples.classes)
    known = leak(samples, CAT, ["cat"], memory=other, k=1)
    assert known.unedited.forget == 1  # somebody else's copy of the image does
    assert known.purged.forget == 0
    assert (known.entries, known.left_out) == (4, False)


def test_the_fusion_is_the_formula() -> None:
    beta, gamma, k = 7.0, 1.5, 4
    texts = F.normalize(torch.randn(7, 16), dim=1)
    samples = Samples(
        torch.randn(240, 16), torch.arange(240) % 4,
        Embeddings(texts[:4], NAMES, ("{}",), "random"),
    )  # fmt: skip
    store = Samples(
        torch.randn(30, 16), torch.arange(30) % 4,
        Embeddings(texts[[0, 4, 2, 3]], ("cat", "cow", "car", "key"), ("{}",), "random"),
    )  # fmt: skip
    apart = Projector(F.normalize(torch.randn(1, 16), dim=1), strength=1.5)
    result = leak(samples, apart, ["cat"], memory=store, k=k, beta=beta, gamma=gamma)
    edited = apart(samples.features)
    for name, features, of_class, kept in (
        ("unedited", store.features, store.texts, range(30)),
        ("edited", apart(store.features), apart(store.texts), range(30)),
        ("purged", store.features, store.texts, [i for i in range(30) if i % 4]),
    ):
        hits = []
        for z, label in zip(F.normalize(edited, dim=1), samples.labels, strict=True):
            near = sorted((float(z @ F.normalize(features[i], dim=0)), i) for i in kept)[-k:]
            weight = torch.softmax(beta * torch.tensor([cosine for cosine, _ in near]), dim=0)
            values = F.normalize(of_class, dim=1)[[i % 4 for _, i in near]]
            fused = z + gamma * F.normalize(weight @ values, dim=0)
            hits.append(bool((samples.texts @ fused).argmax() == label))
        right = torch.tensor(hits)
        got = getattr(result, name)
        assert got.forget == pytest.approx(float(right[samples.labels == 0].double().mean()))
        assert got.keep == pytest.approx(float(right[samples.labels > 0].double().mean()))
    assert result.entries_forget == 8


def test_an_edit_of_texts_goes_through_the_texts_of_the_memory() -> None:
    # Texts of cats now say what dogs' do: an unedited memory adds what no text asks for.
    text = Projector(torch.eye(16)[:1], torch.eye(16)[:1] - torch.eye(16)[8:9], side="text")
    result = leak(_samples(), text, ["cat"], gamma=5.0)
    assert result.none.forget == 0
    assert result.unedited.forget == 0
    assert result.edited.forget == 1  # both sides of the comparison were moved alike


def test_a_memory_without_the_class_measures_no_leak_and_says_so() -> None:
    samples = _samples()
    store = samples.take(samples.labels > 0)
    result = leak(samples, CAT, ["cat"], memory=store)
    assert result.entries_forget == 0
    assert result.unedited == result.purged
    assert "was not measured" in section.lead(result)
    images = leak(store, CAT, ["cat"], memory=samples)
    assert math.isnan(images.unedited.forget)
    assert "No image of “cat” was given" in section.page(images).lead


def test_purging_all_there_is_leaves_the_edited_model() -> None:
    samples = _samples()
    cats = samples.take(samples.labels == 0)
    result = leak(samples, CAT, ["cat"], memory=cats, k=50)
    assert result.unedited.forget == 1
    assert result.purged == result.none


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"k": 0}, "leak: k must be at least 1, got 0"),
        ({"beta": -1.0}, "leak: beta must be finite and at least 0, got -1"),
        ({"gamma": 0.0}, "leak: gamma must be finite and above 0, got 0"),
        ({"forget": ["cow"]}, "got 'cow'"),
        ({"forget": []}, "leak: forget must be some of the 4 classes, got 0"),
        (
            {
                "memory": Samples(
                    torch.ones(1, 3), torch.tensor([0]),
                    Embeddings(torch.eye(3)[:1], ("cat",), ("{}",), "narrow"),
                )
            },
            r"leak: memory must be \[m, 16\] with m >= 1, got \[1, 3\]",
        ),
    ],
)  # fmt: skip
def test_bad_calls_say_what_they_wanted(options: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        leak(_samples(), CAT, **({"forget": ["cat"]} | options))


def test_a_memory_without_another_image_of_the_class_measures_no_leak() -> None:
    samples = _samples()
    single = samples.take(torch.arange(48) > 10)
    result = leak(single, CAT, ["cat"])
    assert (result.entries, result.entries_forget) == (36, 0)
    assert "was not measured" in section.lead(result)
    nothing = leak(samples.take(torch.arange(0)), CAT, ["cat"])
    assert nothing.entries == 0
    assert "No image of “cat”" in section.page(nothing).lead
    with pytest.raises(ValueError, match="memory must be"):
        leak(samples, CAT, ["cat"], memory=samples.take(torch.arange(0)))


def test_a_purge_that_leaves_fewer_than_k_takes_all_of_them_alike() -> None:
    samples = _samples(3)
    for k in (6, 50):
        result = leak(samples, lambda rows: rows, ["cat"], k=k, beta=0.0, gamma=5.0)
        few = samples.take(samples.labels > 0)
        want = leak(samples, lambda rows: rows, ["cat"], memory=few, k=k, beta=0.0, gamma=5.0)
        assert result.purged.forget == want.unedited.forget
    # without its own entry an image has fewer of its class than of others, all counted alike
    assert result.before_memory.keep == result.purged.keep == 0
