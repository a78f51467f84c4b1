"""The gate: what an edit may cost and leave, on pictures where there are some, else on mixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clipproj import Embeddings, Projector, nullspace
from clipproj.audit import Limits, compare, judge
from clipproj.audit.gate import neighbours_pay
from clipproj.audit.samples import Samples
from clipproj.cli import erase as job
from clipproj.cli.erase import erase

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
    with pytest.raises(ValueError, match=rf"gate: {name} must be a share in \[0, 1\], got"):
        Limits(**{name: value})


def test_a_good_edit_passes_with_its_numbers() -> None:
    judged = judge(GOOD, FORGET, KEEP, Limits(), closed=True)
    assert (judged.refused, judged.alarms, judged.advice) == (False, (), ())
    price = judged.price.as_dict()
    assert price["found"] == {"before": 1, "after": 0, "of": 12, "on": "mixture of texts"}
    assert price["others"] == {"before": 1, "after": 1, "of": 30, "on": "mixture of texts"}
    assert price["nearest"]["of"] == 25
    json.dumps(price, allow_nan=False)


def test_what_ruins_the_others_is_refused_and_may_be_allowed() -> None:
    judged = judge(RUIN, FORGET, KEEP, Limits(), closed=False)
    assert judged.refused
    (alarm,) = judged.alarms
    assert alarm.startswith("All other classes fall from 100.0\u00a0% to ")
    assert alarm.endswith("of 30 mixtures of texts: more than 2.0\u00a0% is lost.")
    assert judged.advice[0].startswith("the names that compete, as a closed list")
    assert judged.advice[1:] == ("fewer names at once", "a lower strength")
    allowed = judge(RUIN, FORGET, KEEP, ALL, closed=False)
    assert not allowed.refused
    assert allowed.alarms == judged.alarms  # beyond the default limits all the same
    loss = judged.price.loss
    assert not judge(RUIN, FORGET, KEEP, Limits(loss, 0.01), closed=True).refused
    assert judge(RUIN, FORGET, KEEP, Limits(loss - 1e-3, 0.01), closed=True).refused


def test_what_leaves_the_class_is_refused() -> None:
    judged = judge(WEAK, FORGET, KEEP, Limits(), closed=True)
    assert judged.refused
    assert judged.alarms == (
        "A forgotten name still answers 100.0\u00a0% of its 12 mixtures of texts "
        "(100.0\u00a0% before), more than 1.0\u00a0%.",
    )
    assert judged.advice == ("strength 1",)
    torch.manual_seed(0)
    one, many = embed(1 + torch.randn(1, 8), "gone"), embed(1 + torch.randn(7, 8))
    span = nullspace(one, many, "span")  # which holds most of the forgotten text
    assert judge(span, one, many, Limits(), closed=True).advice == ("contrast hull",)


def test_pictures_decide_where_there_are_some() -> None:
    classes = Embeddings(torch.eye(8), (*FORGET.names, *KEEP.names), ("a {}",), "model")
    samples = Samples(torch.eye(8).repeat(3, 1), torch.arange(8).repeat(3), classes)

    def judged(edit: Projector, forget: Any = FORGET, samples: Samples = samples):
        seen = compare(samples, samples.edited(edit), forget)
        return judge(edit, FORGET, KEEP, Limits(), closed=True, pictures=seen)

    assert judged(GOOD).price.as_dict()["others"]["on"] == "picture"
    assert judged(RUIN).price.as_dict()["others"]["of"] == 18
    assert judged(RUIN).refused
    only = samples.take(samples.labels == 7)  # pictures of one class, which nothing touches
    assert not judged(RUIN, samples=only).price.loses(Limits())
    assert judged(WEAK, samples=only).refused  # what no picture shows is looked for in texts


def test_names_without_pictures_are_looked_for_in_texts() -> None:
    classes = Embeddings(torch.eye(8)[1:], (FORGET.names[1], *KEEP.names), ("a {}",), "model")
    samples = Samples(torch.eye(8)[1:], torch.arange(7), classes)
    half = Projector(torch.eye(8)[1:2])  # erases the one that has pictures
    seen = compare(samples, samples.edited(half), FORGET)
    assert (seen.forget, seen.unmeasured) == ((FORGET.names[1],), (FORGET.names[0],))
    assert seen.after.found == 0
    judged = judge(half, FORGET, KEEP, Limits(), closed=True, pictures=seen)
    assert judged.refused
    assert judged.price.as_dict()["found"]["on"] == "mixture of texts"
    assert judged.price.as_dict()["others"]["on"] == "picture"
    worse = judge(WEAK, FORGET, KEEP, Limits(), closed=True,
                  pictures=compare(samples, samples.edited(WEAK), FORGET))  # fmt: skip
    assert worse.price.as_dict()["found"]["on"] == "picture"


def test_an_affine_edit_is_not_judged_by_texts() -> None:
    affine = Projector(torch.eye(8)[:1], torch.eye(8)[:1], torch.zeros(1))
    judged = judge(affine, FORGET, KEEP, Limits(), closed=True)
    assert judged.refused
    assert "told by pictures alone" in judged.alarms[0]
    assert judged.advice == ("pictures in class folders (images)",)
    assert not judge(affine, FORGET, KEEP, ALL, closed=True).refused


def test_nearest_classes_that_pay_are_worth_a_word() -> None:
    judged = judge(RUIN, FORGET, KEEP, Limits(), closed=True)
    assert neighbours_pay(judge(GOOD, FORGET, KEEP, Limits(), closed=True).texts) is None
    said = neighbours_pay(judged.texts)
    assert said.startswith("The nearest classes, “class 0”, “class 1”")
    none = replace(
        judged.texts, nearest=(), before=replace(judged.texts.before, neighbours=float("nan"))
    )
    assert neighbours_pay(none) is None


# ---- the command ----


def test_a_bad_edit_is_refused_with_nothing_written(
    run: Callable[..., Any], usual: list[str], ask: Callable[..., Any], tmp_path
) -> None:
    for rehearsal in ([], ["--dry-run"]):
        shown = run("erase", "cat", *usual, "--strength", "0.05", *rehearsal)
        assert shown.exit_code == 3
        text = " ".join(shown.stdout.split())
        assert (
            "Refused, nothing is written. A forgotten name still answers 100.0 % of its 3" in text
        )
        assert "What may help: strength 1." in text
        assert "--max-loss 1 --max-found 1 writes it all the same" in text
        assert list(tmp_path.iterdir()) == []
    as_json = json.loads(run("erase", "cat", *usual, "--strength", "0.05", "--json").stdout)
    assert (as_json["refused"], as_json["files"]) == (True, {})
    assert as_json["alarms"]
    assert as_json["scores"]["after"]["found"] == 1


def test_limits_lifted_the_report_says_so_at_the_top(
    run: Callable[..., Any], usual: list[str], tmp_path
) -> None:
    shown = run("erase", "cat", *usual, "--strength", "0.05", "--max-found", "1")
    assert shown.exit_code == 0
    assert "This edit is not good. A forgotten name still answers" in shown.stdout
    page = (tmp_path / "clipproj-out/report.html").read_text()
    assert page.index('role="alert"') < page.index('class="lead"')
    assert "because the limits were lifted" in page
    assert run("erase", "cat", *usual, "--out", "good").exit_code == 0
    assert 'role="alert"' not in (tmp_path / "good/report.html").read_text()


def test_names_without_pictures_are_forgotten_and_said_to_be_unmeasured(
    ask: Callable[..., Any],
) -> None:
    with pytest.warns(UserWarning, match="no pictures of 'cta': forgotten .* mean 'cat'"):
        outcome = erase(ask("cta", out=None))
    assert outcome.comparison.forget == ()
    assert outcome.comparison.unmeasured == ("cta",)
    assert "cat" in outcome.keep.names
    assert outcome.as_dict()["scores"]["unmeasured"] == ["cta"]
    assert outcome.as_dict()["scores"]["before"]["forget"] is None
    assert outcome.judged.price.as_dict()["found"]["on"] == "mixture of texts"
    with pytest.warns(UserWarning, match=r"no pictures of 'zebra': [^?]*texts$"):
        outcome = erase(ask("cat", "zebra", out=None))
    assert outcome.comparison.forget == ("cat",)
    assert outcome.comparison.unmeasured == ("zebra",)


def test_more_names_than_dimensions_are_refused_before_work(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "embed_classes", lambda *a, **k: pytest.fail("texts were embedded"))
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
