"""Class names and their other forms, and the lists that come from open_clip."""

from __future__ import annotations

import open_clip
import pytest

from clipproj.models.text import expand_names
from clipproj.models.words import (
    canonical,
    imagenet_names,
    name_fault,
    name_key,
    on_both,
    openai_templates,
    repeated,
    strings,
)


def test_lists_of_open_clip():
    assert len(openai_templates()) == 80
    assert all(t.count("{}") == 1 for t in openai_templates())
    assert len(open_clip.IMAGENET_CLASSNAMES) == 1000
    assert len(imagenet_names()) == 998  # two names are given to two classes
    assert set(imagenet_names()) == set(open_clip.IMAGENET_CLASSNAMES)


def test_spellings_of_one_name():
    assert repeated(["cat", "dog", "Cat", "DOG"]) == ("cat", "Cat")
    assert repeated(name for name in ("ice_cream", "Ice  cream")) == ("ice_cream", "Ice  cream")
    assert repeated(["é", "cat", "E\u0301"]) == ("é", "E\u0301")
    assert repeated(["cat", "cats", "wild cat"]) is None
    assert repeated(["cat", "Cat"], str) is None
    assert repeated(["cat"] * 2, str) == ("cat", "cat")
    assert on_both(["ice cream", "dog"], ["cat", "Ice_cream", "hot dog"]) == ["Ice_cream"]


APART = "cre\u0300me_ bru\u0302le\u0301e "  # as a Mac's folder has it


def test_a_name_has_one_spelling():
    assert canonical(APART) == "crème brûlée"
    assert name_key(APART) == name_key("CRÈME BRÛLÉE") == "crème brûlée"
    assert canonical("_") == canonical("\u00a0") == ""
    assert expand_names([APART, "crème brûlée", "Crème_Brûlée"]) == [APART]
    words = {"crème brûlée": ["custard"], "CRÈME_BRÛLÉE": ["flan", "Custard"]}
    assert expand_names([APART], synonyms=words) == [APART, "custard", "flan"]


@pytest.mark.parametrize("name", ["", "___", " \u00a0", "\n"])
def test_a_blank_name_has_a_fault(name):
    assert name_fault(name) == "must not be blank"


@pytest.mark.parametrize(
    "name",
    ["cat\0", "\x1b[2Jcat", "caf\udce9", "cat\u200b", "\u200bcat", "\u202ecat", "ca\u00adt",
     "cat\ufeff", "cat\u200d", "\u200d", "a \u200cb", "a\u200d\u200db"],
)  # fmt: skip
def test_a_name_with_letters_that_nobody_sees_has_a_fault(name):
    assert "control characters and invisible ones" in name_fault(name)


@pytest.mark.parametrize(
    "name",
    ["cat", "hot\ndog", " red_panda", "crème brûlée", APART, "C++", "猫", "می\u200cخواهم",
     "क्\u200dष", "👩\u200d💻", "👩🏽\u200d💻", "❤️\u200d🔥"],
)  # fmt: skip
def test_names_of_every_script_are_names(name):
    assert name_fault(name) is None


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(
        ValueError, match=r"^op: names must be UTF-8 text, got 'caf\\udce9' at i.* 1"
    ):
        strings("op", "names", ["café", "caf\udce9"])


def test_expand_names():
    names = ["mouse", "tabby cat", "bus"]
    assert expand_names(names) == names
    more = expand_names(names, synonyms={"Mouse": ["rodent", "mouse"], "bus": ["coach"]})
    assert more == ["mouse", "rodent", "tabby cat", "bus", "coach"]
    assert expand_names(["cat", "Cat", "dog"]) == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"^expand_names: synonyms must belong .* got 'moose'"):
        expand_names(names, synonyms={"moose": ["elk"]})
    with pytest.raises(TypeError, match=r"synonyms of 'bus' must be a list .* string 'coach'"):
        expand_names(names, synonyms={"bus": "coach"})
    for wrong in (["rodent"], "rodent"):
        with pytest.raises(TypeError, match=r"^expand_names: synonyms must be a mapping .* got "):
            expand_names(names, synonyms=wrong)
    with pytest.raises(TypeError, match=r"^expand_names: names must be a list"):
        expand_names("mouse")


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("mouse", "mice"),
        ("tabby cat", "tabby cats"),
        ("bus", "buses"),
        ("lens", "lenses"),
        ("leaf", "leaves"),
        ("church", "churches"),
        ("person", "people"),
        ("hen of the woods", "hens of the woods"),
        ("sheep", None),
        ("cats", None),
        ("sunglasses", None),
        ("mice", None),
        ("NASA", "NASAs"),
        ("vitamin C", "vitamin Cs"),
        ("AT&T", "AT&Ts"),
        ("café", "cafés"),
        ("3", None),
        ("iPhone 12", None),
        ("C++", None),
        ("猫", None),
    ],
)
def test_plurals(name, plural):
    pytest.importorskip("inflect", reason="needs inflect")
    assert expand_names([name], plurals=True) == [name] + [plural] * (plural is not None)


def test_plurals_of_synonyms_follow_them():
    pytest.importorskip("inflect", reason="needs inflect")
    out = expand_names(["mouse", "cat"], plurals=True, synonyms={"mouse": ["rodent"]})
    assert out == ["mouse", "mice", "rodent", "rodents", "cat", "cats"]
