"""The gate: what an edit may cost and leave, on images where there are some, else on mixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clipproj import Embeddings, Projector, load, nullspace
from clipproj.audit import Judgement, Limits, compare, judge
from clipproj.audit.samples import Samples
from clipproj.checkpoints.state import WEIGHTS, read_edits
from clipproj.cli.erase import erase
from clipproj.recipe import resolve, run
from clipproj.report.sections import gate

ALL = Limits(1, 1)


def embed(rows: torch.Tensor, word: str = "class") -> Embeddings:
    names = tuple(f"{word} {i}" for i in range(len(rows)))
    return Embeddings(F.normalize(rows.float(), dim=1), names, ("a {}",), "model")


FORGET, KEEP = embed(torch.eye(8)[:2], "gone"), embed(torch.eye(8)[2:])
GOOD = nullspace(FORGET, KEEP, "hull")
WEAK = nullspace(FORGET, KEEP, "hull", strength=0.1)
# the second kept text goes with the forgotten ones
RUIN = Projector(torch.eye(8)[:4])


@pytest.mark.parametrize("name", ["max_loss", "max_found"])
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_limits_are_shares(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^Limits: {name} must be a share in \[0, 1\], got"):
        Limits(**{name: value})


def test_a_good_edit_passes_with_its_numbers() -> None:
    judged = judge(GOOD, FORGET, KEEP, Limits(), closed=True)
    assert (judged.refused, gate.alarms(judged), gate.advice(judged)) == (False, (), ())
    price = judged.price.as_dict()
    assert price["found"] == {"before": 1, "after": 0, "of": 12, "on": "mixture of texts"}
    assert price["others"] == {"before": 1, "after": 1, "of": 30, "on": "mixture of texts"}
    assert price["nearest"]["of"] == 25
    json.dumps(price, allow_nan=False)


def test_what_ruins_the_others_is_refused_and_may_be_allowed() -> None:
    judged = judge(RUIN, FORGET, KEEP, Limits(), closed=False)
    assert judged.refused
    (alarm,) = gate.alarms(judged)
    assert alarm.startswith("All other classes fall from 100.0\u00a0% to ")
    assert alarm.endswith("of 30 mixtures of texts: more than 2.0\u00a0% is lost.")
    assert gate.advice(judged) == (
        "the names that compete, or images of them in class folders", "fewer names at once",
    )  # fmt: skip
    allowed = judge(RUIN, FORGET, KEEP, ALL, closed=False)
    assert not allowed.refused
    assert gate.alarms(allowed) == gate.alarms(judged)  # beyond the default limits all the same
    loss = judged.price.loss
    assert not judge(RUIN, FORGET, KEEP, Limits(loss, 0.01), closed=True).refused
    assert judge(RUIN, FORGET, KEEP, Limits(loss - 1e-3, 0.01), closed=True).refused


def test_what_leaves_the_class_is_refused() -> None:
    judged = judge(WEAK, FORGET, KEEP, Limits(), closed=True)
    assert judged.refused
    assert gate.alarms(judged) == (
        "Of the forgotten names 100.0\u00a0% of 12 mixtures of texts are still answered by a "
        "forgotten name (100.0\u00a0% before), more than 1.0\u00a0%.",
    )
    assert gate.advice(judged) == ("strength 1",)
    torch.manual_seed(0)
    one, many = embed(1 + torch.randn(1, 8), "gone"), embed(1 + torch.randn(7, 8))
    span = nullspace(one, many, "span")  # which holds most of the forgotten text
    assert gate.advice(judge(span, one, many, Limits(), closed=True)) == ("contrast hull",)


def imaged(edit: Projector, labels: list[int], names: Embeddings = FORGET) -> Judgement:
    """The edit on an image for each of these classes, the first two of which are forgotten."""
    classes = Embeddings(torch.eye(8), (*FORGET.names, *KEEP.names), ("a {}",), "model")
    samples = Samples(torch.eye(8)[labels], torch.tensor(labels), classes)
    seen = compare(samples, samples.edited(edit), names)
    return judge(edit, names, KEEP, closed=True, images=seen)


def test_images_of_all_classes_decide() -> None:
    judged = imaged(GOOD, [*range(8)] * 3)
    assert not judged.refused
    assert judged.price.as_dict()["others"] == {
        "before": 1, "after": 1, "of": 18, "on": "image"
    }  # fmt: skip
    assert imaged(RUIN, [*range(8)] * 3).refused


def test_images_of_some_classes_do_not_speak_for_the_others() -> None:
    judged = imaged(RUIN, [0, 1, 7])  # of the kept classes one, which nothing touches
    assert judged.refused
    assert judged.price.as_dict()["others"]["on"] == "mixture of texts"
    assert judged.price.as_dict()["found"]["on"] == "image"
    judged = imaged(WEAK, [2, 3, 4, 5, 6, 7])
    assert judged.price.as_dict()["found"]["on"] == "mixture of texts"
    assert judged.refused


def test_forms_without_images_are_looked_for_in_texts() -> None:
    half = Projector(torch.eye(8)[:1])  # erases the one that has images
    judged = imaged(half, [0, 2, 3, 4, 5, 6, 7] * 2)
    assert judged.price.as_dict()["found"]["on"] == "mixture of texts"
    assert judged.price.as_dict()["found"]["after"] == 0.5
    assert judged.refused
    assert gate.alarms(judged)[0].startswith(
        "Of the forgotten names 50.0\u00a0% of 12 mixtures of texts"
    )


def test_what_earlier_edits_lost_counts() -> None:
    rows = torch.eye(128)
    forget, keep = embed(rows[:1], "gone"), embed(rows[1:], "kept")
    edit = Projector(rows[:2])  # loses one of the 127 others
    assert not judge(edit, forget, keep, closed=True, spent=0.01).refused
    judged = judge(edit, forget, keep, closed=True, spent=0.015)
    assert judged.refused
    assert ", and fell by 1.5\u00a0% before: more than 2.0\u00a0% is lost" in gate.alarms(judged)[0]


def test_one_name_that_stays_whole_among_many_is_refused() -> None:
    rows = torch.eye(128)
    forget, keep = embed(rows[:101], "gone"), embed(rows[101:])
    all_but_one = Projector(rows[:100])
    judged = judge(all_but_one, forget, keep, closed=True)
    assert judged.price.most.after.found < 0.01
    assert judged.refused
    assert gate.alarms(judged)[0].startswith(
        "Of “gone 100” 100.0\u00a0% of 27 mixtures of texts are still"
    )
    assert gate.alarms(judged)[0].endswith("more than 10.0\u00a0%.")


def test_names_in_general_are_asked_where_few_are_kept() -> None:
    rows = torch.eye(32)
    forget, keep, general = embed(rows[:1], "gone"), embed(rows[1:3]), embed(rows[3:], "general")
    wide = Projector(torch.cat([rows[:1], rows[3:12]]))
    assert not judge(wide, forget, keep, closed=True).refused  # the two kept ones stay
    judged = judge(wide, forget, keep, closed=True, general=general)
    assert judged.refused
    assert gate.advice(judged) == ("more of the names that compete",)
    assert not judge(Projector(rows[:1]), forget, keep, closed=True, general=general).refused
    blur = embed(torch.ones(29, 32) + 1e-9 * rows[3:], "general")  # the model knows none of them
    judged = judge(wide, forget, keep, closed=True, general=blur)
    assert not judged.refused
    assert "this model does not tell them apart" in gate.notes(judged)[-1]


def test_several_names_against_names_in_general_are_measured_on_the_nearest() -> None:
    g = torch.Generator().manual_seed(0)
    near = torch.randn(202, 64, generator=g) * 0.3 + torch.eye(64)[0] * 2
    far = torch.randn(900, 64, generator=g) * 0.3 - torch.eye(64)[0] * 2
    forget, keep = embed(near[:2], "gone"), embed(torch.cat([near[2:], far]))
    edit = nullspace(forget, keep, "mean")
    alone = judge(edit.scaled(0.5), forget.select(forget.names[:1]), keep, ALL, closed=False)
    several = judge(edit.scaled(0.5), forget, keep, ALL, closed=False)
    assert len(alone.price.others) == 1
    diluted, nearest = several.price.others
    assert (diluted.unit, nearest.unit) == ("mixture of texts", "mixture of names in general")
    assert set(nearest.after.per_class) - set(forget.names) <= set(keep.names[:200])


def test_an_edit_must_be_within_its_limits_on_everything() -> None:
    classes = Embeddings(torch.eye(8), (*FORGET.names, *KEEP.names), ("a {}",), "model")
    labels = torch.tensor([0, 1, 3, 4, 5, 6, 7])  # wrong from the third on, and of some classes
    samples = Samples(torch.eye(8)[[0, 1, 2, 3, 4, 5, 6]], labels, classes)
    slight = Projector(torch.eye(8)[:3], strength=0.3)
    seen = compare(samples, samples.edited(slight), FORGET)
    judged = judge(slight, FORGET, KEEP, Limits(0.9, 1), closed=True, images=seen)
    assert len(judged.price.others) == 2
    assert gate.alarms(judged)[0].startswith(
        "Before the edit 0.0\u00a0% of 5 images of other classes"
    )


def test_what_earlier_edits_forgot_does_not_dilute_what_is_found() -> None:
    rows = torch.eye(32)
    names = tuple(f"c {i}" for i in range(32))
    classes = Embeddings(rows, names, ("a {}",), "model")
    labels = torch.cat([torch.zeros(20), torch.arange(1, 32).repeat_interleave(20)]).long()
    features = rows[labels].clone()
    features[20:420] = rows[31]  # of twenty classes forgotten before, found no more
    samples = Samples(features, labels, classes)
    seen = compare(samples, samples, classes.select(names[:21]))
    forget, keep = classes.select(names[:1]), classes.select(names[21:])
    left = judge(Projector(rows[:1], strength=0.0), forget, keep, closed=True, images=seen)
    assert seen.after.found < 0.05
    assert gate.alarms(left)[0].startswith("Of the forgotten names 100.0\u00a0% of 20 images")


def test_where_nothing_was_right_before_no_loss_is_told() -> None:
    classes = Embeddings(torch.eye(8), (*FORGET.names, *KEEP.names), ("a {}",), "model")
    labels = torch.tensor([0, 1, 3, 4, 5, 6, 7, 2])  # folders named as nobody calls the classes
    samples = Samples(torch.eye(8), labels, classes)
    seen = compare(samples, samples.edited(GOOD), FORGET)
    judged = judge(GOOD, FORGET, KEEP, closed=True, images=seen)
    assert judged.refused
    assert gate.alarms(judged)[0].startswith(
        "Before the edit 0.0\u00a0% of 6 images of other classes"
    )
    assert "other names for this model" in gate.alarms(judged)[0]


def test_others_that_keep_their_answers_may_not_be_turned_away() -> None:
    forget, keep = embed(torch.eye(32)[:28], "gone"), embed(torch.eye(32)[28:30] + 2)
    judged = judge(Projector(torch.eye(32)[:28]), forget, keep, closed=True)
    assert judged.price.loss == 0
    assert judged.refused
    assert "turned to a mean cosine of 0." in gate.alarms(judged)[0]


def test_an_affine_edit_is_not_judged_by_texts() -> None:
    affine = Projector(torch.eye(8)[:1], torch.eye(8)[:1], torch.zeros(1))
    one = FORGET.select(FORGET.names[:1])
    judged = judge(affine, one, KEEP, closed=True)
    assert judged.refused
    assert gate.alarms(judged) == (
        "What an affine edit costs is told by images alone, of all classes.",
    )
    assert gate.advice(judged) == ("images in class folders",)
    assert not judge(affine, one, KEEP, ALL, closed=True).refused
    assert imaged(affine, [2, 3, 4, 5, 6, 7], one).refused
    assert not imaged(affine, [0, 2, 3, 4, 5, 6, 7], one).refused


def test_classes_that_fall_are_worth_a_word() -> None:
    rows = torch.eye(128)
    forget, keep = embed(rows[:1], "gone"), embed(rows[1:], "kept")
    assert gate.notes(judge(Projector(rows[:1]), forget, keep, closed=False)) == ()
    judged = judge(Projector(rows[:2]), forget, keep, closed=False)
    assert not judged.refused
    assert gate.notes(judged) == (
        "“kept 0” falls from 100.0\u00a0% to 0.0\u00a0% of 39 mixtures of texts.",
    )
    (said,) = gate.notes(judge(Projector(rows[:3]), forget, keep, closed=False))
    assert said.startswith("“kept 0”, “kept 1”, ")
    assert "fall from 100.0\u00a0% to 60.0\u00a0% of 195 mixtures" in said


# ---- the command ----


def test_a_bad_edit_is_refused_with_nothing_written(
    run: Callable[..., Any], usual: list[str], ask: Callable[..., Any], tmp_path
) -> None:
    for rehearsal in ([], ["--dry-run"]):
        shown = run("erase", "cat", *usual, "--strength", "0.05", *rehearsal)
        assert shown.exit_code == 3
        text = " ".join(shown.stdout.split())
        assert "Refused. Of the forgotten names 100.0 % of 3 images are still" in text
        assert "What may help: strength 1." in text
        assert "nothing written; --max-loss 1 --max-found 1 lift the limits" in text
        assert list(tmp_path.iterdir()) == []
    as_json = json.loads(run("erase", "cat", *usual, "--strength", "0.05", "--json").stdout)
    assert (as_json["refused"], as_json["files"]) == (True, {})
    assert as_json["measured"]["alarms"]
    assert as_json["measured"]["limits"] == {"max_loss": 0.02, "max_found": 0.01}
    assert as_json["scores"]["after"]["found"] == 1


def test_limits_lifted_the_report_says_so_at_the_top(
    run: Callable[..., Any], usual: list[str], tmp_path
) -> None:
    shown = run("erase", "cat", *usual, "--strength", "0.05", "--max-found", "1")
    assert shown.exit_code == 0
    assert "This edit is not good. Of the forgotten names" in shown.stdout
    page = (tmp_path / "clipproj-out/report.html").read_text()
    assert page.index('role="alert"') < page.index('class="lead"')
    assert "because the limits were lifted" in page
    assert run("erase", "cat", *usual, "--out", "good").exit_code == 0
    assert 'role="alert"' not in (tmp_path / "good/report.html").read_text()


def test_names_without_images_are_forgotten_and_said_to_be_unmeasured(
    ask: Callable[..., Any],
) -> None:
    with pytest.warns(UserWarning, match="no images of 'zebra': forgotten all the same, "):
        outcome = erase(ask("zebra", out=None))
    assert outcome.comparison.forget == ()
    assert outcome.comparison.unmeasured == ("zebra",)
    assert outcome.as_dict()["scores"]["unmeasured"] == ["zebra"]
    assert outcome.as_dict()["scores"]["before"]["forget"] is None
    assert outcome.judged.price.as_dict()["found"]["on"] == "mixture of texts"
    with pytest.warns(UserWarning, match="no images of 'zebra'"):
        outcome = erase(ask("cat", "zebra", out=None))
    assert outcome.comparison.forget == ("cat",)
    assert outcome.comparison.unmeasured == ("zebra",)


def test_a_name_spelt_much_like_a_folder_is_no_other_class(ask: Callable[..., Any]) -> None:
    for name in ("cats", "fishh"):
        with pytest.raises(ValueError, match=f"got '{name}', which is close to '{name[:-1]}'; wh"):
            erase(ask(name, out=None))
    with pytest.warns(UserWarning, match="no images of 'cats'"):
        outcome = erase(ask("cats", keep=["cat", "dog"], out=None))
    assert outcome.forget.names == ("cats",)
    with pytest.raises(ValueError, match="got 'cats', which is close to 'Cat'"):
        resolve(ask("cats"), None, ("Cat", "Dog"))


def test_what_an_earlier_edit_forgot_is_not_kept(ask: Callable[..., Any], tmp_path) -> None:
    erase(ask("cat", out=tmp_path / "one"))
    with pytest.warns(UserWarning, match="forgotten by an earlier edit and not kept: 'cat'"):
        outcome = erase(ask("dog", model=str(tmp_path / "one"), out=None))
    assert "cat" not in outcome.keep.names
    assert outcome.forget.names == ("dog",)
    assert outcome.comparison.forget == ("dog", "cat")  # looked for again
    assert outcome.comparison.after.found == 0
    assert [one["loss"] for one in read_edits(tmp_path / "one" / WEIGHTS)] == [0]
    generic = erase(ask("dog", model=str(tmp_path / "one"), images=None, out=None))
    assert "cat" not in generic.keep.names


def test_a_saved_projector_tells_what_was_measured_last(ask: Callable[..., Any], tmp_path) -> None:
    erase(ask("cat", out=tmp_path / "one"))
    saved = tmp_path / "one" / "projector.safetensors"
    assert load(saved).provenance["measured"]["found"]["after"] == 0
    weaker = {"projector": saved, "strength": 0.05, "limits": ALL}
    erase(ask(**weaker, out=tmp_path / "two"))
    measured = load(tmp_path / "two" / "projector.safetensors").provenance["measured"]
    assert measured["found"]["after"] == 1
    assert measured["limits"] == {"max_loss": 1, "max_found": 1}
    assert measured["alarms"]


def test_forms_of_a_name_are_looked_for_in_texts(ask: Callable[..., Any]) -> None:
    outcome = erase(
        ask("cat", synonyms={"cat": ["feline", "mouser"]}, options={"rank": 1}, out=None)
    )
    assert outcome.comparison.forget == ("cat",)
    assert outcome.judged.texts.forget == ("cat", "feline", "mouser")
    on = outcome.comparison.after.found, outcome.judged.texts.after.found
    assert outcome.judged.price.most.after.found == max(on) > 0.01
    assert outcome.judged.refused


def test_more_names_than_dimensions_are_refused_before_work(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "embed", lambda *a, **k: pytest.fail("texts were embedded"))
    names = [f"thing {i}" for i in range(16)]
    with pytest.raises(ValueError, match=r"names must be fewer than the 16 dimensions .* got 16"):
        erase(ask(*names, images=None, out=None))


def test_names_come_from_a_file_too(run: Callable[..., Any], usual: list[str], tmp_path) -> None:
    (tmp_path / "names.txt").write_text("# two\ncat\n\n dog \n", encoding="utf-8")
    options = ["--names-file", "names.txt", *usual, "--dry-run", "--json", "--max-loss", "1"]
    shown = json.loads(run("erase", *options).stdout)
    assert shown["forget"] == ["cat", "dog"]
    both = json.loads(run("erase", "owl", *options).stdout)
    assert both["forget"] == ["owl", "cat", "dog"]
    wrong = run("erase", "--names-file", "none.txt", *usual)
    assert (wrong.exit_code, wrong.stderr) == (
        2,
        "erase: names-file must be a file, got none.txt\n",
    )
