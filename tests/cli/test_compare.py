"""`clipproj compare`: the table, the files, other data sets and Lip's protocol."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import Page, Run

from clipproj.compare import comparison
from clipproj.compare.comparison import BASE
from clipproj.compare.lip_protocol import DATASETS, Accuracies, score
from clipproj.compare.methods import settings

TWO = ["--method", "nullspace, hull", "--method", "ccup"]


def test_the_table_and_the_files(run: Run, usual: list[str]) -> None:
    result = run("compare", "CAT", "tall_tree", *usual)
    assert result.exit_code == 0, result.stderr
    for name in (BASE, *settings()):
        assert name in result.stdout
    assert "the information, whatever the texts say" in " ".join(result.stdout.split())
    told = json.loads(Path("clipproj-compare/compare.json").read_text())["Methods compared"]
    assert told["forget"] == ["cat", "tall tree"]
    assert list(told["methods"]) == [BASE, *settings()]
    assert "…" not in result.stdout  # no number is cut
    trial = told["trials"]["nullspace, hull"]["cat"]
    assert (trial["forget"]["value"], trial["forget"]["n"]) == (0, 3)
    page = Page(Path("clipproj-compare/compare.html").read_text())
    assert page.ids == page.links == ["price", "classes", "methods"]
    assert page.loads == []


def test_json_alone_on_stdout(run: Run, usual: list[str]) -> None:
    result = run("compare", "cat", *TWO, *usual, "--json")
    told = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
    assert list(told["Methods compared"]["methods"]) == [BASE, "nullspace, hull", "ccup"]


def test_an_interrupted_run_goes_on(
    run: Run,
    usual: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run("compare", "cat", "dog", *TWO, *usual, "--out", "whole", "--json")
    measure, calls = comparison.measure, []

    def stops(data: object, method: object, forget: str, seed: int = 0) -> dict:
        calls.append(forget)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(data, method, forget, seed)

    monkeypatch.setattr(comparison, "measure", stops)
    assert run("compare", "cat", "dog", *TWO, *usual).exit_code != 0
    assert not Path("clipproj-compare/compare.json").exists()
    again = run("compare", "cat", "dog", *TWO, *usual, "--json")
    assert len(calls) == 4 + 3  # six trials, of which three were there

    def timeless(text: str) -> dict:
        told = json.loads(text)["Methods compared"]
        for trials in told["trials"].values():
            for trial in trials.values():
                del trial["seconds"]
        return told["trials"]

    assert timeless(again.stdout) == timeless(whole.stdout)


def test_features_of_a_file(run: Run, usual: list[str]) -> None:
    first = run("compare", "cat", *TWO, *usual, "--save-features", "f.safetensors", "--json")
    again = run("compare", "cat", *TWO, "--features", "f.safetensors", "--out", "again", "--json")
    assert again.exit_code == 0, again.stdout
    one, other = (json.loads(r.stdout)["Methods compared"]["trials"]["ccup"]["cat"]
                  for r in (first, again))  # fmt: skip
    for key in ("forget", "keep", "probe", "ranpac", "cosine", "precision", "area"):
        assert one[key] == other[key]
    assert "prompt" in one
    assert "prompt" not in other  # there is no model to embed one


def test_other_images_that_must_not_suffer(
    run: Run,
    usual: list[str],
    images: Path,
) -> None:
    shutil.copytree(images, "others", ignore=shutil.ignore_patterns("cat", "dog"))
    result = run("compare", "cat", *TWO, *usual, "--elsewhere", "more=others", "--json")
    assert result.exit_code == 0, result.stdout
    trial = json.loads(result.stdout)["Methods compared"]["trials"][BASE]["cat"]
    assert (trial["elsewhere"]["more"]["value"], trial["elsewhere"]["more"]["n"]) == (1.0, 12)


def test_lip_s_protocol(run: Run, usual: list[str], images: Path) -> None:
    colours = sorted(images.iterdir())
    for name, one in DATASETS.items():
        folder = Path("sets", one.folders[0], *filter(None, [one.inside]))
        names = [*one.forget, "something else", *one.left_out]
        for colour, gone in zip(colours, names, strict=False):
            if name == "stanford_dogs" and gone == "Pekinese":
                gone = "n02086079-Pekinese"
            shutil.copytree(colour, folder / one.spellings.get(gone, gone))
    asked = ["compare", *TWO, *usual[:2], "--images", "sets", "--protocol", "lip", "--json"]
    result = run(*asked, "--truncate")  # the tiny model reads 16 tokens
    assert result.exit_code == 0, result.stdout
    told = json.loads(result.stdout)
    assert [one for one in told if one != "notes"] == [d.title for d in DATASETS.values()]
    dogs, cars = told["Stanford Dogs"], told["Stanford Cars"]
    assert dogs["forget"] == ["Pekinese", "toy poodle", "Scotch terrier"]
    assert cars["forget"] == list(DATASETS["stanford_cars"].forget)  # the year first
    trials = cars["trials"]
    gone = cars["forget"][0]

    def accuracies(trial: dict) -> Accuracies:
        others = {name: one["value"] for name, one in trial["elsewhere"].items()}
        return Accuracies(trial["forget"]["value"], trial["keep"]["value"], others)

    want = score(accuracies(trials[BASE][gone]), accuracies(trials["ccup"][gone])).value
    (table,) = [t for t in cars["pages"][0]["tables"] if t["columns"][0] == "method"]
    (row,) = [r for r in table["rows"] if r[0] == "ccup"]
    shown = row[1]["value"]
    assert shown is None if want != want else shown == pytest.approx(want)
    page = Page(Path("clipproj-compare/compare.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert "62.50" in page.text or "62.5" in page.text  # the published accuracy of Scotch terrier


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["cta"], "compare: names must be among the 6 image folders"),
        (["--method", "magic"], "compare: method must be known, got 'magic'"),
        (["--also", "nowhere"], "compare: also must be Python or a package folder"),
        (["--elsewhere", "x"], "compare: elsewhere must be NAME=FOLDER"),
        (["--count", "-1"], "compare: count must be at least 1"),
        (["--protocol", "pil"], "compare: protocol must be lip"),
        (["cat", "--protocol", "lip"], "must be left out with a protocol"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    run: Run,
    usual: list[str],
    args: list[str],
    text: str,
) -> None:
    result = run("compare", *args, *usual)
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.split())
    assert not list(Path(".").rglob("compare.html"))


def test_a_model_that_knows_no_class_well_is_said_so(
    run: Run,
    usual: list[str],
) -> None:
    result = run("compare", *usual)  # three images a class are too few to choose one by
    assert result.exit_code == 2
    assert "got none" in result.stderr


def test_the_published_baselines_run(run: Run, usual: list[str]) -> None:
    also = Path(__file__).parents[2] / "benchmarks/methods"
    args = ["--also", also, "--method", "pbu", "--method", "lip", "--json"]
    result = run("compare", "cat", *args, *usual)
    assert result.exit_code == 0, result.stdout
    told = json.loads(result.stdout)["Methods compared"]["methods"]
    assert told["pbu"]["about"].startswith("PBU")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("1 / 0", "also must be Python that runs, got ZeroDivisionError"),
        ("raise SystemExit(0)", "also must be Python that runs, got SystemExit"),
        ("METHODS = {'no edit': print}", "names of its own, got 'no edit'"),
        ("METHODS = {'x': 3}", "METHODS['x'] must be callable, got 3"),
        ("METHODS = {'x': lambda task: None}", "method 'x' on 'cat': TypeError"),
        ("METHODS = {'x': lambda task: lambda rows: rows / 0}", "method 'x' on 'cat': Refusal"),
    ],
)
def test_foreign_code_that_fails_is_named(
    run: Run, usual: list[str], tmp_path: Path, code: str, text: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"print('hello')\n{code}\n")
    result = run("compare", "cat", "--also", file, "--method", "x", *usual, "--json")
    assert result.exit_code == 2
    assert text in json.loads(result.stdout)["error"]  # what the file prints is not in the way


def test_a_name_with_a_dollar_is_drawn_as_it_is(run: Run, usual: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from clipproj import nullspace\n"
        "METHODS = {'$\\\\frac{a$ <b>': lambda t: nullspace(t.forget, contrast='none')}\n"
    )
    result = run("compare", "cat", "--also", file, *usual)
    assert result.exit_code == 0, result.stderr
    assert "&lt;b&gt;" in Path("clipproj-compare/compare.html").read_text()
