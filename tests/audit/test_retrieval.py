"""Search by hand, with ties; the identity of both sides; the two traps of text-side edits."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit import stats
from clipproj.audit.retrieval import RetrievalResult, Search, retrieval, wrong_side
from clipproj.audit.samples import Samples
from clipproj.audit.search import search
from clipproj.methods import ccup, nullspace
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.report.sections import retrieval as section

NAMES = ("ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen")
CAT = {"forgotten": torch.tensor([2])}


def samples_of(features: Tensor, labels: list[int] | Tensor, texts: Tensor) -> Samples:
    classes = Embeddings(F.normalize(texts, dim=1), NAMES[: len(texts)], ("{}",), "made up")
    return Samples(features, torch.as_tensor(labels, dtype=torch.int64), classes)


def noisy(per_class: int = 12, spread: float = 0.6, cone: float = 2.0) -> Samples:
    """A narrow cone of texts, as CLIP's, and images about them, of different lengths."""
    texts = F.normalize(torch.randn(8, 32) + cone * torch.randn(32), dim=1)
    labels = torch.arange(8).repeat_interleave(per_class)
    features = 5 * texts[labels] + spread * torch.randn(len(labels), 32)
    return samples_of(features * torch.rand(len(labels), 1).add(0.5), labels, texts)


def found(result: RetrievalResult, side: str, again: bool) -> Search:
    (one,) = [s.search for s in result.after if (s.side, s.renormalized) == (side, again)]
    return one


def swapped(p: Projector) -> Projector:
    return Projector(p.write, p.read, strength=p.strength, side=p.side)


def test_search_by_hand() -> None:
    images = torch.tensor([[4.0, 0], [3, 1], [2, 0], [1, 0], [0, 0]], dtype=torch.float64)
    texts = torch.eye(3, 2, dtype=torch.float64)[[1, 1, 0]]  # the first two are one
    labels = torch.tensor([2, 0, 2, 1, 2])
    got = search(images, texts, labels, CAT, [1, 2, 10])
    # by the text of cat: 4, 3, 2, 1, 0, of which the first, third and last are cats
    assert got.images_recall["forgotten"] == pytest.approx({1: 1 / 3, 2: 1 / 3, 5: 1.0})
    assert got.images_precision["forgotten"] == pytest.approx({1: 1.0, 2: 0.5, 5: 0.6})
    assert got.images_recall["forgotten"][1].n == 3
    # of the cats two have their text first; the row of zeros finds nothing at any k
    assert got.texts_recall["forgotten"] == pytest.approx({1: 2 / 3, 2: 2 / 3, 3: 2 / 3})


def test_search_of_several_classes_is_a_mean_over_them() -> None:
    images = torch.tensor([[4.0, 0], [3, 1], [2, 0], [0, 1]], dtype=torch.float64)
    got = search(
        images, torch.eye(2, dtype=torch.float64), torch.tensor([0, 0, 0, 1]),
        {"forgotten": torch.tensor([0, 1])}, [2],
    )  # fmt: skip
    # text 0 finds two of its three; text 1 finds its one and one of text 0
    assert got.images_recall["forgotten"] == pytest.approx({2: 5 / 6})
    assert got.images_precision["forgotten"] == {2: 0.75}
    assert got.images_recall["forgotten"][2].n == 2  # classes
    assert got.texts_recall["forgotten"][2].n == 4  # images


def test_equal_scores_count_as_in_random_order_wherever_they_stand() -> None:
    images = torch.ones(10, 2, dtype=torch.float64)
    texts = torch.ones(3, 2, dtype=torch.float64)
    for labels in (torch.tensor([2, 2] + [0] * 8), torch.tensor([0] * 8 + [2, 2])):
        got = search(images, texts, labels, CAT, [1, 5])
        assert got.images_recall["forgotten"] == pytest.approx({1: 0.1, 5: 0.5})
        assert got.images_precision["forgotten"] == pytest.approx({1: 0.2, 5: 0.2})
        assert got.texts_recall["forgotten"] == pytest.approx({1: 1 / 3, 3: 1.0})


def test_both_sides_are_one_edit_where_lengths_stay() -> None:
    samples = noisy()
    edit = ccup(samples.classes.select(["cat"]), samples.classes.drop(["cat"]))
    result = retrieval(samples, edit, ["cat"])
    assert [(s.side, s.renormalized) for s in result.after] == [
        ("image", True), ("image", False), ("text", True), ("text", False),
    ]  # fmt: skip
    assert found(result, "image", False) == found(result, "text", False)
    # a query's own length never counts
    assert found(result, "image", True).texts_recall == found(result, "image", False).texts_recall
    text = [found(result, "text", again).images_recall for again in (True, False)]
    assert text[0] == text[1]
    assert retrieval(samples, edit.T, ["cat"]).after[1].search == found(result, "image", False)


def test_an_edit_of_the_texts_vanishes_when_it_is_normalised_again() -> None:
    samples = noisy(cone=1.0)
    cat = samples.classes.select(["cat"])
    partial = nullspace(cat, contrast="none", strength=0.95, side="text")
    result = retrieval(samples, partial, ["cat"])
    before = result.before.texts_recall["forgotten"][1]
    assert before > 0.9
    assert found(result, "text", False).texts_recall["forgotten"][1] < 0.3
    # the text of cat is back where it was, those of the others have given way
    assert found(result, "text", True).texts_recall["forgotten"][1] >= before
    assert result.text_cosine == pytest.approx(1, abs=1e-6)
    assert result.text_length == pytest.approx(0.05, abs=1e-6)
    (told,) = section.warnings(result)
    assert "undoes most of this edit on the text side" in told
    # and search by text never saw it: one text ranks by order alone
    recall = found(result, "text", False).images_recall["forgotten"]
    assert recall == result.before.images_recall["forgotten"]
    assert "can still be searched with" in section.page(result).lead


def test_a_text_that_keeps_its_direction_is_told_however_few_images_there_are() -> None:
    samples = noisy(per_class=1)
    partial = nullspace(samples.classes.select(["cat"]), contrast="none", strength=0.5)
    (told,) = section.warnings(retrieval(samples, partial, ["cat"]))
    assert "length of 0.500 and a cosine of 1.0000" in told
    none = retrieval(samples, partial.scaled(0.0), ["cat"])  # no edit is nothing to undo
    assert section.warnings(none) == ()


def test_an_edit_that_leaves_nothing_of_a_text_leaves_noise() -> None:
    samples = noisy()
    edit = nullspace(samples.classes.select(["cat"]), contrast="none", strength=1, side="text")
    (told,) = section.warnings(retrieval(samples, edit, ["cat"]))
    assert "noise" in told


@pytest.mark.parametrize("forget", [["cat"], ["cat", "dog"]])
def test_swapped_factors_are_found(forget: list[str]) -> None:
    samples = noisy()
    texts = samples.classes.select(forget)
    edit = ccup(texts, samples.classes.drop(forget))
    for right in (edit, edit.T):
        check = wrong_side(right, texts)
        assert (check.side, check.wrong) == (right.side, False)
        assert check.left < 0.5 < 1 < check.left_swapped
        assert wrong_side(swapped(right), texts).wrong
        assert wrong_side(swapped(right), texts).left == pytest.approx(check.left_swapped)
        good = retrieval(samples, right, forget)
        assert not any("swapped" in told for told in section.warnings(good))
        bad = retrieval(samples, swapped(right), forget)
        assert any(f"swapped for the {right.side} side" in told for told in section.warnings(bad))
        assert bad.side.wrong
        assert bad.swapped < found(bad, right.side, False).texts_recall["forgotten"][1]
        assert bad.swapped == found(good, right.side, False).texts_recall["forgotten"][1]


def test_the_forgotten_texts_themselves_cannot_tell_the_side() -> None:
    samples = noisy()
    cat = samples.classes.select(["cat"])
    edit = ccup(cat, samples.classes.drop(["cat"]))
    left = [float((p(cat.tensor) * cat.tensor).sum()) for p in (edit, swapped(edit))]
    assert left[0] == pytest.approx(left[1], abs=1e-5)


def test_a_redirect_leaves_a_long_text_and_is_not_called_swapped() -> None:
    texts = torch.eye(8)
    images = texts[[2, 2, 3]] + 0.2 * texts[0] + 0.1 * texts[3]
    samples = samples_of(images, [2, 2, 3], texts)
    cat, dog = texts[2:3], texts[3:4]
    redirect = Projector(cat - dog, cat)  # <z', cat> = <z, dog>
    assert wrong_side(redirect, cat).wrong  # its text alone cannot tell it from an erasure
    assert not wrong_side(redirect, cat, samples.classes.drop(["cat"])).wrong
    result = retrieval(samples, redirect, ["cat"])
    assert result.after[0].search.texts_recall["forgotten"][1] == 0
    assert not section.warnings(result)


def test_only_a_projector_without_an_offset_has_another_side() -> None:
    samples = noisy()
    rows = samples.texts[2:3]
    for edit in (Projector(rows, rows.clone(), torch.tensor([0.1])), lambda z: z - 1.0):
        result = retrieval(samples, edit, ["cat"])
        assert [s.side for s in result.after] == ["image", "image"]
        assert (result.side, result.swapped) == (None, None)
        assert math.isnan(result.text_length)
    with pytest.raises(ValueError, match="wrong_side: projector must have no offset"):
        wrong_side(Projector(rows, rows.clone(), torch.tensor([0.1])), rows)
    with pytest.raises(ValueError, match=r"wrong_side: forget_texts must be \[m, 32\]"):
        wrong_side(Projector(rows), rows[:, :8])
    with pytest.raises(TypeError, match="wrong_side: projector must be a Projector"):
        wrong_side(lambda z: z, rows)


def test_strong_oblique_edits_do_not_warn_again() -> None:
    samples = noisy()
    with pytest.warns(UserWarning, match="strength 1.5"):
        edit = ccup(samples.classes.select(["cat"]), samples.classes.drop(["cat"]), strength=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retrieval(samples, edit, ["cat"])


def test_small_indexes_and_classes_without_images() -> None:
    samples = samples_of(torch.eye(4)[[0, 2, 3]], [0, 2, 3], torch.eye(4))
    result = retrieval(samples, lambda z: z, ["cat"])
    assert list(result.before.images_recall["forgotten"]) == [1, 3]
    assert list(result.before.texts_recall["forgotten"]) == [1, 4]
    assert result.before.images_recall["forgotten"][1] == 1
    assert "others" not in result.before.texts_recall
    nobody = retrieval(samples, lambda z: z, ["bee"])
    assert math.isnan(nobody.before.texts_recall["forgotten"][1])
    assert math.isnan(nobody.before.images_recall["forgotten"][1])
    assert "not measured" in section.page(nobody).lead
    empty = samples.take(torch.zeros(3, dtype=torch.bool))
    assert retrieval(empty, lambda z: z, ["bee"]).before.texts_recall["forgotten"][1].n == 0
    with pytest.raises(ValueError, match="retrieval: ks must be integers of at least 1"):
        retrieval(samples, lambda z: z, ["cat"], ks=[0])
    with pytest.raises(ValueError, match="retrieval: forget must be some of the 4 classes, got 4"):
        retrieval(samples, lambda z: z, NAMES[:4])


def test_result_is_json_and_a_page() -> None:
    samples = noisy()
    edit = ccup(samples.classes.select(["cat"]), samples.classes.drop(["cat"]))
    result = retrieval(samples, edit, ["cat"])
    told = json.loads(json.dumps(stats.plain(result), allow_nan=False))
    assert told["before"]["texts_recall"]["forgotten"]["1"]["n"] == 12
    page = section.page(result)
    assert page.key == "retrieval"
    assert [len(table.rows) for table in page.tables] == [15, 15]
    assert {row[0] for row in page.tables[0].rows} == {
        "none", "images, unit", "images, as left", "texts, unit", "texts, as left",
    }  # fmt: skip
