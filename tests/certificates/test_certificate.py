"""What a certificate says, and what it is kept as."""

import json
from dataclasses import replace

import pytest

from clipproj.certificates import Certificate

GIVEN = Certificate(
    leads={"cat": -2e-4, "dog": -1e-3},
    eps={"cat": 1e-5, "dog": 9e-4},
    witnesses={"cat": [("fox", 0.75), ("owl", 0.25)], "dog": [("wolf", 1.0)]},
    kept=7, form="one-sided", strength=1.0, length=1.25, dtype="bfloat16", projector="a" * 64,
)  # fmt: skip


def test_the_name_that_comes_nearest_is_the_one_with_its_rounding():
    assert GIVEN.nearest == "dog"
    assert (GIVEN.lead, GIVEN.certified) == (-1e-3, True)
    worse = replace(GIVEN, eps=dict(GIVEN.eps, cat=2e-4))
    assert (worse.nearest, worse.certified) == ("cat", False)


def test_json_is_the_same_certificate():
    text = json.dumps(GIVEN.to_json())
    assert Certificate.from_json(json.loads(text)) == GIVEN
    assert json.loads(text)["certified"] is True


@pytest.mark.parametrize(
    "change",
    [
        {"certified": False}, {"lead": 0.5}, {"covers": "every row"}, {"kept": "7"}, {"leads": {}},
        {"witnesses": {"cat": [["fox"]]}}, {"eps": {"cat": 0.0}}, {"more": 1}, {"leads": [1]},
        {"dtype": "int8"},
    ],
)  # fmt: skip
def test_json_that_is_none_is_refused(change):
    with pytest.raises(ValueError, match="from_json: data must be a certificate"):
        Certificate.from_json({**GIVEN.to_json(), **change})


def test_what_it_says():
    assert str(GIVEN).startswith(
        "Certified: no row is answered by a forgotten name. Whatever the row of length 1, edited "
        "at strength 1 and stored in bfloat16, each scores at least 8.0e-05 below the highest of "
        "7 kept names. What 'dog' is held by: wolf 1.00. Not covered: names outside the list"
    )
    tie = replace(GIVEN, leads={"cat": 1e-8}, eps={"cat": 1e-6})
    assert str(tie).startswith(
        "Not certified: rounding may decide. No forgotten name leads the highest of 7 kept names "
        "by more than 1.0e-06"
    )
    led = replace(GIVEN, leads={"cat": 0.31}, eps={"cat": 1e-6})
    assert str(led).startswith(
        "Not certified: on some row 'cat' may lead the highest of 7 kept names, by at most 0.31"
    )
    assert "outside the list" in led.does_not_cover[0]
