"""`clipproj audit`: what it measures, what it writes, and how an interrupted run goes on."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from command import Page, Run

import clipproj
from clipproj.audit import AuditInput, Samples, audits, evaluate, suite
from clipproj.recipe.samples import in_domains
from clipproj.report.sections import kept, page_of

QUICK = ["--only", "accuracy", "--only", "drift", "--only", "leak"]


def test_every_audit_has_a_page_and_numbers(run: Run, usual: list[str]) -> None:
    result = run("audit", "cat", *usual, "--json")
    assert result.exit_code == 0, result.stdout
    told = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
    assert list(told["audits"]) == list(audits())
    for key, audit in told["audits"].items():
        assert audit["numbers"] or audit["lead"].startswith("Not made"), key
    accuracy = told["audits"]["accuracy"]["numbers"]
    assert (accuracy["before"]["forget"], accuracy["after"]["forget"]) == (1, 0)
    page = Page(Path("clipproj-audit/audit.html").read_text())
    assert page.ids == page.links == ["certificate", *audits()]
    assert told["certificate"]["certified"]
    assert told["certificate"]["form"] == "one-sided"
    assert page.loads == []
    assert len(page.every) == len(set(page.every))  # of all the charts too
    assert json.loads(Path("clipproj-audit/audit.json").read_text())["audits"] == told["audits"]


def test_a_saved_projector_is_audited_as_the_edited_model_behaves(
    run: Run,
    usual: list[str],
    edited: Path,
) -> None:
    told = json.loads((edited / "report.json").read_text())["scores"]
    projector = edited / "projector.safetensors"
    result = run("audit", "--projector", projector, *usual, "--only", "accuracy", "--json")
    assert result.exit_code == 0, result.stdout
    numbers = json.loads(result.stdout)["audits"]["accuracy"]["numbers"]
    for when in ("before", "after"):
        assert numbers[when]["per_class"] == told[when]["per_class"]
    assert numbers["cosine"] == pytest.approx(told["cosine"], abs=1e-5)


def test_features_of_a_file_give_the_numbers_of_the_images(
    run: Run,
    usual: list[str],
) -> None:
    first = run("audit", "cat", *usual, *QUICK, "--save-features", "f.safetensors", "--json")
    assert first.exit_code == 0, first.stdout
    args = ["audit", "cat", "--features", "f.safetensors", "--out", "again", "--json"]
    again = run(*args, *QUICK)
    assert again.exit_code == 0, again.stdout
    one, other = (json.loads(result.stdout) for result in (first, again))
    assert one["audits"] == other["audits"]
    assert Samples.load("f.safetensors").paths[0].name == "0.png"
    every = json.loads(run(*args).stdout)["audits"]
    for key in ("paraphrase", "relevance"):
        assert every[key]["numbers"] is None
        assert "needs the model" in every[key]["lead"]


def test_a_run_goes_on_where_it_was(
    run: Run,
    usual: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    want = run("audit", "cat", *usual, *QUICK, "--json", "--out", "whole")
    calls, stop = [], [True]
    made = suite._made

    def stops(given: AuditInput, key: str, words: suite.Words) -> dict:
        if key == "leak" and stop:
            stop.clear()
            raise KeyboardInterrupt
        calls.append(key)
        return made(given, key, words)

    monkeypatch.setattr(suite, "_made", stops)
    stopped = run("audit", "cat", *usual, *QUICK)
    assert stopped.exit_code == 130
    assert stopped.stderr == "interrupted: the same command goes on from here\n"
    assert not Path("clipproj-audit/audit.json").exists()
    calls.append("again")
    result = run("audit", "cat", *usual, *QUICK, "--json")
    # in their order: leak comes before drift
    assert calls == ["accuracy", "again", "leak", "drift"]
    assert json.loads(result.stdout) == json.loads(want.stdout)
    calls.clear()
    assert run("audit", "dog", *usual, *QUICK).exit_code == 0  # another edit, other results
    assert sorted(calls) == ["accuracy", "drift", "leak"]


def test_a_projector_of_another_model_is_refused(
    run: Run,
    usual: list[str],
    edited: Path,
    images: Path,
    tmp_path: Path,
) -> None:
    other = tiny.model(tmp_path / "other", images, seed=1)
    args = ["audit", "--projector", edited / "projector.safetensors", "--only", "accuracy"]
    args += ["--model", other, "--images", images, "--template", tiny.TEMPLATE]
    refused = run(*args)
    assert refused.exit_code == 2
    assert "projector must come from the model that is audited" in refused.stderr
    assert "; give force to audit it all the same" in refused.stderr
    assert run(*args, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["cta"], "audit: names must be among the 6 image folders, got 'cta'; there is cat"),
        ([], "audit: names must hold at least one class"),
        (["cat", "--only", "leek"], "audit: only must be some of accuracy, tune"),
        (["cat", "--synonym", "kitty"], "audit: synonym must be NAME=OTHER"),
        (["cat", "--tower", "both"], "audit: tower must be image or text"),
        (["cat", "--out", ""], "audit: out must be a folder"),
        (["cat", "--strength", "3"], "strength must be in [0, 2]"),
        (["cat", "--keep", "wolf"], "audit: names must be among the 6 image folders"),
        (["cat", "--save-features", "no/f"], "save-features must be in a folder"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    run: Run,
    usual: list[str],
    args: list[str],
    text: str,
) -> None:
    result = run("audit", *args, *usual)
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.split())
    assert not list(Path(".").rglob("audit.html"))


def test_options_that_exclude_each_other(run: Run, usual: list[str]) -> None:
    result = run("audit", "cat", "--features", "f", *usual)
    assert result.exit_code == 2
    assert "must be left out with features" in result.stderr
    missing = run("audit", "cat", "--features", "f")
    assert missing.exit_code == 2
    assert "path must be a file, got f" in missing.stderr


def test_the_text_tower_is_audited_on_texts(run: Run, usual: list[str]) -> None:
    result = run("audit", "cat", *usual, "--tower", "text", "--only", "drift", "--json")
    assert result.exit_code == 0, result.stdout


def test_names_are_checked_before_anything_is_computed() -> None:
    rows = torch.eye(3)
    classes = clipproj.Embeddings(rows, ("a", "b", "c"), ("{}",), "m")
    samples = Samples(rows, torch.arange(3), classes)
    p = clipproj.nullspace(classes.select(["a"]), classes.drop(["a"]))
    with pytest.raises(ValueError, match="names must be among"):
        suite.audit(AuditInput(samples, p, ("x",)))
    (found,) = suite.audit(AuditInput(samples, p, ("a",)), ["accuracy"])
    assert found.numbers == evaluate.as_dict(evaluate.compare(samples, samples.edited(p), ("a",)))


def test_domains_are_told_by_file_names(run: Run, usual: list[str]) -> None:
    args = ["audit", "cat", *usual, "--only", "domains", "--json"]
    told = json.loads(run(*args, "--domain", "0.*=first", "--domain", "*=rest").stdout)
    rows = told["audits"]["domains"]["numbers"]["domains"]
    assert [(r["name"], r["forget_before"]["n"]) for r in rows] == [("first", 1), ("rest", 2)]
    assert [r["forget_after"]["value"] for r in rows] == [0, 0]
    missing = run(*args, "--domain", "0.*=first")
    assert missing.exit_code == 2
    assert "domain must cover every image, got none for" in missing.stdout
    assert "needs to be told" in json.loads(run(*args).stdout)["audits"]["domains"]["lead"]


def test_a_domain_is_told_by_accents_however_they_are_stored() -> None:
    classes = clipproj.Embeddings(torch.eye(3), ("a", "b", "c"), ("{}",), "m")
    paths = tuple(Path("x") / unicodedata.normalize(form, "é_1.png") for form in ("NFC", "NFD"))
    samples = Samples(torch.eye(3)[:2], torch.tensor([0, 1]), classes, paths=paths)
    for form in ("NFC", "NFD"):
        found = in_domains(samples, {unicodedata.normalize(form, "é_*"): "accent"})
        assert found.domains == ("accent", "accent")


def case(*labels: int) -> AuditInput:
    classes = clipproj.Embeddings(torch.eye(3), ("a", "b", "c"), ("{}",), "m")
    samples = Samples(torch.eye(3)[list(labels)], torch.tensor(labels), classes)
    p = clipproj.nullspace(classes.select(["a"]), classes.drop(["a"]))
    return AuditInput(samples, p, ("a",))


def test_a_refusal_is_told() -> None:
    (found,) = suite.audit(case(1, 2), ["tune"], words=kept)  # no image of a
    page = page_of(found)
    assert "Not made: tune: samples must hold an image of a forgotten class" in page.lead
    assert page.title == "Tune"
    (found,) = suite.audit(case(0, 1, 2), ["paraphrase"])
    assert found.refused == "paraphrase: needs the model, features alone embed no prompt"


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: AuditInput) -> None:
        try:
            import no_such_package  # noqa: F401
        except ImportError as error:
            raise ImportError("maps need no_such_package: install clipproj[audit]") from error

    monkeypatch.setitem(audits(), "drift", replace(audits()["drift"], run=run))
    (found,) = suite.audit(case(0, 1, 2), ["drift"], words=kept)
    assert found.refused == "maps need no_such_package: install clipproj[audit]"


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("tune: what looks like a refusal"),
        ImportError("cannot import name 'x' from 'clipproj.audit': install clipproj[audit]"),
        ModuleNotFoundError("No module named 'clipproj.gone'", name="clipproj.gone"),
        RuntimeError("x"),
    ],
    ids=lambda bug: type(bug).__name__,
)
def test_a_bug_ends_the_run(monkeypatch: pytest.MonkeyPatch, bug: Exception) -> None:
    def run(_: AuditInput) -> None:
        raise bug

    monkeypatch.setitem(audits(), "tune", replace(audits()["tune"], run=run))
    with pytest.raises(type(bug)) as raised:
        suite.audit(case(0, 1, 2), ["accuracy", "tune"])
    assert raised.value is bug
