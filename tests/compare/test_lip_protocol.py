"""Lip's protocol: its lists, how they meet folders on a disk, and its score."""

from __future__ import annotations

import math

import pytest

from clipproj.compare.lip_protocol import BACKBONES, DATASETS, Accuracies, find_datasets, score

# PAPERS' "mean of 3" column, which the code computes instead of storing: catches a mistyped class.
MEANS = {
    "stanford_dogs": (59.29, 67.28),
    "stanford_cars": (39.68, 59.52),
    "caltech101": (83.85, 97.10),
    "oxford_flowers": (84.83, 78.43),
}
BEFORE = Accuracies(0.6, 0.5, {"a": 0.8, "b": 0.4, "c": 0.9})


@pytest.mark.parametrize("name", DATASETS)
def test_reference_numbers_are_consistent(name):
    one = DATASETS[name]
    assert tuple(one.reference) == tuple(BACKBONES)
    for reference, mean in zip(one.reference.values(), MEANS[name], strict=True):
        assert reference.mean == pytest.approx(mean / 100, abs=1e-4)
        # a share of few images is a fraction of their count
        for accuracy, n in zip(reference.forget, one.images, strict=True):
            assert round(accuracy * n) / n == pytest.approx(accuracy, abs=6e-5)
        assert abs(reference.keep - reference.full) < 0.005
    assert all(template.count("{}") == 1 for template in one.templates)


def test_forgotten_classes_are_found_in_the_spelling_that_is_there():
    dogs, cars = DATASETS["stanford_dogs"], DATASETS["stanford_cars"]
    there = ("n02113624-toy_poodle", "n02086079-Pekinese", "scotch-terrier", "n02113712-poodle")
    assert dogs.find(there) == ("n02086079-Pekinese", "n02113624-toy_poodle", "scotch-terrier")
    own = ["Ford Ranger SuperCab 2011", "Spyker C8 Coupe 2009", cars.forget[1].upper()]
    assert cars.find(own) == (own[1], own[2], own[0])


def test_a_class_that_is_not_there_is_not_guessed():
    cars = DATASETS["stanford_cars"]
    there = ["2009 Spyker C8 Convertible", *cars.forget[1:]]
    with pytest.raises(ValueError, match="'2009 Spyker C8 Coupe', got 3 others; close: '2009 Spyk"):
        cars.find(there)
    with pytest.raises(ValueError, match=r"'gazania', got 2 others$"):
        DATASETS["oxford_flowers"].find(["1", "2"])
    with pytest.raises(ValueError, match="once, got"):
        DATASETS["caltech101"].find(["minaret", "Minaret", "euphonium", "platypus"])


def test_data_sets_are_found_by_their_folders(tmp_path):
    for folder in ("Stanford-Dogs/Images/x", "caltech101/euphonium", "Flowers102/gazania", "cats"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "stanford_cars").write_text("a file")
    found = find_datasets(tmp_path)
    assert found == {
        "stanford_dogs": tmp_path / "Stanford-Dogs/Images",
        "caltech101": tmp_path / "caltech101",
        "oxford_flowers": tmp_path / "Flowers102",
    }
    (tmp_path / "oxford_flowers").mkdir()
    with pytest.raises(ValueError, match="once, got 'Flowers102' and 'oxford_flowers' for oxford"):
        find_datasets(tmp_path)
    with pytest.raises(ValueError, match="root must be a folder"):
        find_datasets(tmp_path / "nowhere")


def test_score_is_the_formula_of_the_paper():
    after = Accuracies(0.15, 0.4, {"a": 0.6, "b": 0.44, "c": 0.9})
    got = score(BEFORE, after)
    assert got.forget == pytest.approx(0.25)
    assert got.keep == pytest.approx(0.2)
    assert got.others == pytest.approx({"a": 0.25, "b": 0.0, "c": 0.0})  # a gain is no merit
    assert got.value == pytest.approx((0.25 + 0.2 + 0.25) / 5)
    assert got.reason == ""
    assert score(BEFORE, BEFORE).value == pytest.approx(0.2)  # forgot nothing, lost nothing
    perfect = score(BEFORE, Accuracies(0, 0.5, BEFORE.others))
    assert perfect.value == 0


def test_score_that_cannot_be_measured_is_nan_and_says_why():
    unknown = Accuracies(0.0, 0.5, BEFORE.others)
    got = score(unknown, unknown)
    assert math.isnan(got.value)
    assert math.isnan(got.forget)
    assert got.keep == 0
    assert got.reason == "the class: accuracy 0 before the edit"
    two = Accuracies(0.6, math.nan, {"a": 0.8, "b": 0.0})
    got = score(two, two)
    assert math.isnan(got.value)
    assert got.forget == 1
    assert got.reason == (
        "kept: not measured; b: accuracy 0 before the edit; needs 3 other data sets, got 2"
    )


def test_accuracies_of_other_data_sets_or_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"score: after must be of the data sets \['a', 'b', 'c'"):
        score(BEFORE, Accuracies(0.6, 0.5, {"a": 0.8}))
    with pytest.raises(ValueError, match=r"Accuracies: a must be a share in \[0, 1\], got 80"):
        Accuracies(0.6, 0.5, {"a": 80})
