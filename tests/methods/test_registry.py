"""What the registry says of each method is what the method does."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from embeddings import cone, texts

from clipproj import Embeddings, methods
from clipproj.methods.contrast import CONTRASTS
from clipproj.methods.registry import (
    METHODS,
    NEEDS,
    Method,
    Option,
    Task,
    check_needs,
    check_options,
    method,
)


def embed(names, templates):
    """Texts of classes in a domain: near those of the classes, and near each other."""
    rows = texts(len(names)).tensor + 0.3 * cone(1, seed=sum(map(ord, templates[0]))).float()
    rows = torch.nn.functional.normalize(rows)
    return Embeddings(rows, tuple(names), tuple(templates), "model", "0" * 64)


def task(forget=1, keep=9, **changes):
    prompts = Embeddings(
        cone(12, seed=3).float(), tuple(f"p{i}" for i in range(12)), ("{}",), "model"
    )
    usual = Task(
        texts(forget),
        texts(keep, offset=forget),
        prompts=prompts,
        empty=cone(1, seed=7)[0].float(),
        embed=embed,
    )
    return replace(usual, **changes)


GIVEN = {"selective": {"domains": "a", "keep_domains": "c"}}


def last(name, options):
    """The projector made at these options, the last where there are several."""
    made = METHODS[name].make(task(), **options)
    return made[-1] if isinstance(made, tuple) else made


def test_every_file_with_a_method_is_found_and_the_default_comes_first():
    texts = (file.read_text("utf-8") for file in Path(methods.__file__).parent.glob("*.py"))
    own = [name for text in texts for name in re.findall(r'\nMETHOD = Method\(\n    "(\w+)"', text)]
    assert set(METHODS) == set(own) > {"nullspace", "ccup", "leace"}
    assert next(iter(METHODS)) == method("op", None).name == "nullspace"
    assert all(name == one.name for name, one in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
def test_options_are_the_parameters_of_make_and_of_its_function(name):
    one = METHODS[name]
    own = dict(inspect.signature(one.make).parameters)
    if own.pop("options", None):  # passed on
        own = {**inspect.signature(getattr(methods, name)).parameters, **own}
    assert {option.name for option in one.options} <= set(own)
    for option in one.options:
        default = own[option.name].default
        if default not in (None, "", "auto"):
            assert option.default.startswith(
                f"{default:g}" if option.kind is float else str(default)
            )


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"leace"}))
def test_promises_hold(name):
    one = METHODS[name]
    made = last(name, GIVEN.get(name, {}))
    assert made.symmetric == one.symmetric
    assert (made.offset is None) == one.foldable
    assert made.provenance["method"] == name
    assert made.provenance["forget"]["names"] == ["class 0"]  # what a checkpoint's log says
    assert made.side == "image"
    text = METHODS[name].make(task(side="text"), **GIVEN.get(name, {}))
    assert (text[-1] if isinstance(text, tuple) else text).side == "text"


VALUES = {
    "nullspace": {
        "rank": [1, 3], "contrast": [*CONTRASTS, "auto"], "keep_weight": [0, 5],
        "threshold": ["0.1", "0.5 sigma"], "dtype": ["bfloat16"],
    },
    "ccup": {"forget_weight": [0.1, 50], "keep_weight": [0, 5]},
    "coreset": {"share": [0, 0.5], "rank": [1, 2]},
    "redirect": {
        "target": ["self", "empty", "class 3"], "forget_weight": [3], "keep_weight": [0, 7],
        "margin": [0, 0.9], "samples": [1], "temperature": [0.5], "rounds": [1],
    },
    "rotate": {"angle": [1, 180], "contrast": [*CONTRASTS, "auto"]},
    "selective": {
        "domains": ["a", "a, b"], "keep_domains": ["c,d"], "mode": ["complete", "domain", "global"],
        "form": ["reader", "subspace"], "depth": [2], "domain_gain": [0.3], "rank": [1],
    },
    "subgroup": {"ratio": [0, 0.5]},
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_every_option_is_one_that_the_method_takes(name):
    one = METHODS[name]
    assert set(VALUES[name]) == {option.name for option in one.options}
    for option, values in VALUES[name].items():
        for value in values:
            given = GIVEN.get(name, {}) | {option: value}
            if given.get("mode") == "global":
                del given["keep_domains"]
            assert last(name, check_options("op", one, given)).rank >= 1


def test_what_a_method_has_not_is_refused():
    ccup, rotate = method("op", "ccup"), method("op", "rotate")
    with pytest.raises(ValueError, match=r"^op: rank must be left out with method ccup, got 1$"):
        check_options("op", ccup, {"rank": 1, "keep_weight": 2})
    with pytest.raises(ValueError, match=r"^op: toy must be an option .* angle, contrast, got 1$"):
        check_options("op", rotate, {"toy": 1})
    with pytest.raises(ValueError, match=r"^op: method must be nullspace or ccup or .*, got 'toy'"):
        method("op", "toy")
    assert check_options("op", ccup, {"rank": None, "keep_weight": 2}) == {"keep_weight": 2.0}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (Option("n", int, "", "", low=1), 0, "an integer at least 1"),
        (Option("n", int, "", "", low=1), 1.0, "an integer at least 1"),
        (Option("n", int, "", "", low=1), True, "an integer at least 1"),
        (Option("n", int, "", "", low=1), 10**400, "an integer at least 1"),
        (Option("n", float, "", "", low=1), -(10**400), "a finite number at least 1"),
        (
            Option("n", float, "", "", low=0, high=1),
            1.5,
            "a finite number at least 0 and at most 1",
        ),
        (Option("n", float, "", "", above=0), 0, "a finite number above 0"),
        (Option("n", float, "", ""), float("nan"), "a finite number"),
        (Option("n", float, "", ""), "1", "a finite number"),
        (Option("n", str, "", "", choices=("a", "b")), "c", "a or b"),
        (Option("n", str, "", ""), " ", "a text that is not blank"),
        (Option("n", str, "", ""), 1, "a text that is not blank"),
    ],
)
def test_a_value_out_of_range_is_refused(option, value, words):
    with pytest.raises(ValueError, match=rf"^op: n must be {words}, got {value!r:.80}$"):
        option.check("op", value)
    if isinstance(value, str) and option.kind is not float:
        with pytest.raises(ValueError, match=f"must be {words}"):
            option.parse("op", value)


def test_a_command_line_means_numbers_by_text():
    rank, angle = Option("r", int, "", ""), Option("a", float, "", "")
    assert rank.parse("op", "3") == 3
    assert angle.parse("op", "1e2") == 100.0
    for one, text in ((rank, "3.0"), (angle, "wide")):
        with pytest.raises(ValueError, match=f"got '{text}'"):
            one.parse("op", text)


def test_what_a_method_needs_is_told_from_its_options():
    redirect, leace = METHODS["redirect"], METHODS["leace"]
    assert redirect.needed({}) == redirect.needed({"target": "self"}) == ()
    assert redirect.needed({"target": "empty"}) == ("empty",)
    check_needs("op", redirect, {}, set())
    check_needs("op", redirect, {"target": "empty"}, {"empty"})
    text = r"got 'redirect' with target empty, which needs the model's text of the empty prompt"
    with pytest.raises(ValueError, match=text):
        check_needs("op", redirect, {"target": "empty"}, {"fit"})
    with pytest.raises(ValueError, match=r"op: .* got 'leace', which needs labelled images"):
        check_needs("op", leace, {}, set(NEEDS) - {"fit"})
    with pytest.raises(ValueError, match=r"needs must be of .*, got luck"):
        Method("m", "", lambda task: None, needs=frozenset({"luck"}))


def test_a_target_is_a_kept_name():
    made = METHODS["redirect"].make(task(), target="class 4")
    assert made.provenance["parameters"]["target"] == {"kind": "given", "names": ["class 4"]}
    with pytest.raises(ValueError, match="target must be self, empty or a kept name, got 'dog'"):
        METHODS["redirect"].make(task(), target="dog")


def test_a_core_of_several_names_has_a_direction_for_each():
    assert METHODS["coreset"].make(task(2)).rank == 2


def test_selective_is_of_one_name_and_of_domains():
    with pytest.raises(ValueError, match="selective: names must be one class, got"):
        METHODS["selective"].make(task(2), domains="a")
    with pytest.raises(ValueError, match="selective: domains must hold at least one"):
        METHODS["selective"].make(task())


def test_leace_learns_from_images_of_what_is_forgotten_and_of_others():
    from clipproj.audit.samples import Samples

    own, rows = task(), cone(8, seed=9).float()
    classes = texts(10)
    for labels, whose in ((torch.ones(8), "forgotten"), (torch.zeros(8), "kept")):
        fit = Samples(rows, labels.long(), classes)
        with pytest.raises(ValueError, match=f"task.fit must have images of {whose} names"):
            METHODS["leace"].make(replace(own, fit=fit))


def test_it_loads_without_audits_and_models():
    import subprocess
    import sys

    code = (
        "import sys, clipproj.methods.registry; "
        "print([m for m in sys.modules if m.split('.')[:2] in (['clipproj', 'audit'], "
        "['clipproj', 'report'], ['clipproj', 'cli']) or m in ('open_clip', 'transformers')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
