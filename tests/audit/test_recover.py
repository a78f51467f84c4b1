"""Recover: probes find what is there, old and new, and find nothing where nothing is."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj import Embeddings, Projector
from clipproj.audit import stats
from clipproj.audit.recover import PROBES, ProbeResult, RecoverResult, recover
from clipproj.audit.samples import Samples
from clipproj.audit.stats import share
from clipproj.report.sections import recover as section

NAMES = ("cat", "dog", "car")


def _samples(
    per_class: int = 30, look: float = 1.0, near: float = 0.4, noise: float = 0.1
) -> Samples:
    """Axis i is the text of class i, axis 3 + i what else its images share.

    They are a little like the next class too, which takes them over once the text is gone.
    """
    labels = torch.arange(3).repeat_interleave(per_class)
    eye = torch.eye(16)
    features = (
        eye[labels]
        + look * eye[labels + 3]
        + near * eye[(labels + 1) % 3]
        + noise * torch.randn(len(labels), 16)
    )
    return Samples(features, labels, Embeddings(eye[:3], NAMES, ("{}",), "planted"))


CAT = Projector(torch.eye(16)[:1], strength=1.0)


def test_what_no_text_shows_is_found_by_every_probe() -> None:
    result = recover(_samples(), CAT, ["cat"], width=200)
    assert result.zero_shot_before == 1
    assert result.zero_shot_after == 0
    assert [one.probe for one in result.probes] == list(PROBES)
    for one in result.probes:
        assert one.before == one.after == 1
        assert one.after.n == 30
        assert one.after.low == pytest.approx(0.886, abs=1e-3)  # Wilson
        assert one.alarms_after == 0
        assert one.alarms_after.n == 60
    assert "The information is not gone" in section.page(result).lead
    json.dumps(stats.plain(result), allow_nan=False)


def test_nothing_is_found_where_the_edit_takes_all_that_differs() -> None:
    samples = _samples(150, look=0.0, near=0.0, noise=0.3)
    two = samples.take(samples.labels < 2)
    # The means differ along one line only; without it the two classes are the same noise.
    apart = Projector(F.normalize(torch.tensor([[1.0, -1.0] + 14 * [0.0]]), dim=1))
    result = recover(two, apart, ["cat"], width=200)
    for one in result.probes:
        assert one.before > 0.9
        assert one.after.low <= one.alarms_after.high
    assert "not gone" not in section.lead(result)
    assert "A stronger probe may find more" in section.lead(result)


class _Turn:
    """A change of coordinates: nothing is lost, nothing is where it was."""

    side = "image"

    def __call__(self, rows: Tensor) -> Tensor:
        return rows.roll(1, dims=1)


def test_an_old_probe_may_fail_where_a_new_one_does_not() -> None:
    result = recover(_samples(), _Turn(), ["cat", "dog"], width=200)
    for one in result.probes:
        assert one.before == one.after == 1
        assert one.old < 0.6  # the cats and dogs lie where other classes or none lay
    known = recover(_samples(), lambda rows: rows, ["cat"], width=50)
    assert all(one.old == one.before for one in known.probes)


def test_an_edit_of_texts_changes_no_probe_and_the_page_says_so() -> None:
    text = Projector(torch.eye(16)[:1], side="text")
    result = recover(_samples(noise=0.4), text, ["cat"], width=50)
    for one in result.probes:
        assert one.before == one.after == one.old
        assert one.alarms_before == one.alarms_after
    assert result.zero_shot_after < result.zero_shot_before
    assert "no image’s feature changes" in section.lead(result)


def test_the_owner_of_a_probe_forgets_exactly() -> None:
    forgotten = recover(_samples(noise=0.5), CAT, ["cat"], width=100).removal
    assert forgotten.difference < 1e-10
    assert forgotten.before_without.n == forgotten.after_without.n == 60
    # One class less to be mistaken for: others are named at least as well.
    assert forgotten.before_without >= forgotten.before_with > 0.6
    assert forgotten.after_without >= forgotten.after_with > 0.6


def test_what_cannot_be_measured_is_told() -> None:
    samples = _samples(5)
    rows = torch.tensor([0, *range(5, 15)])
    result = recover(samples.take(rows), CAT, ["cat"])
    assert result.probes == ()
    assert result.removal is None
    assert "a single image" in section.page(result).lead
    none = recover(samples.take(rows[1:]), CAT, ["cat"])
    assert math.isnan(none.zero_shot_after)
    assert "no image of a forgotten class" in section.lead(none)
    assert stats.plain(none)["zero_shot_after"]["value"] is None


def test_seeds_repeat_and_probes_can_be_chosen() -> None:
    samples = _samples(noise=0.6)
    one, same = (stats.plain(recover(samples, CAT, ["cat"], width=30, seed=2)) for _ in range(2))
    assert one == same
    assert one != stats.plain(recover(samples, CAT, ["cat"], width=30, seed=3))
    cheap = recover(samples, CAT, ["cat"], probes=("mean",))
    assert [found.probe for found in cheap.probes] == ["mean"]
    assert cheap.removal is None
    assert len(section.page(cheap).tables) == 1


@pytest.mark.parametrize(
    ("forget", "options", "why"),
    [
        (["cow"], {}, "got 'cow'"),
        ([], {}, "recover: forget must be some of the 3 classes, got 0"),
        (list(NAMES), {}, "recover: forget must be some of the 3 classes, got 3"),
        (["cat"], {"probes": ("forest",)}, "recover: probes must be some of ridge, ranpac, mean"),
        (["cat"], {"width": 0}, "recover: width must be at least 1"),
    ],
)
def test_bad_calls_say_what_they_wanted(forget: list[str], options: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        recover(_samples(3), CAT, forget, **options)


def test_what_was_not_measured_has_no_table_without_rows() -> None:
    samples = _samples(12)
    page = section.page(recover(samples.take(samples.labels > 0), CAT, ["cat"]))
    assert page.tables == ()
    assert "not measured" in page.lead


def test_images_of_forgotten_classes_alone_are_told_and_not_probed() -> None:
    samples = _samples(12)
    result = recover(samples.take(samples.labels < 2), CAT, ["cat", "dog"])
    assert result.probes == ()
    assert "no other class" in section.lead(result)


def test_one_image_found_is_no_finding() -> None:
    hit, alarm = share([True, False, False, False]), share([False] * 200)
    none, two = share([False] * 4), share([True, True, False, False])
    assert hit.low > alarm.high
    for after, said in ((hit, False), (two, True)):
        one = ProbeResult("ridge", two, after, none, alarm, alarm, alarm, alarm)
        result = RecoverResult(("cat",), "image", two, none, 0.1, (one,), None, "")
        assert ("The information is not gone" in section.lead(result)) == said
