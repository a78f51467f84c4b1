"""An edit that is good one-sided and ruins the model folded: what is written and said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command import Run

from clipproj import demo, load
from clipproj.cli.erase import FILES, OF_A_CHECKPOINT, erase
from clipproj.recipe import Outcome, Recipe

NAMES = demo.class_names()[:25]  # of the embedded model's 54


@pytest.fixture(scope="module")
def unfolded(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return erase(Recipe(NAMES, fold=True, out=tmp_path_factory.mktemp("unfolded") / "out"))


def test_the_projector_is_written_and_no_checkpoint(unfolded: Outcome) -> None:
    out = unfolded.files["projector"].parent
    written = {path.name for path in out.iterdir()}
    assert written == {name for what, name in FILES.items() if what not in OF_A_CHECKPOINT}
    assert load(out / FILES["projector"]).one_sided
    assert unfolded.undo_command is None
    page = (out / FILES["report"]).read_text(encoding="utf-8")
    assert "is beyond the limits here: not written" in page
    assert "Folded into weights it is refused: All other classes fall" in page
    numbers = json.loads((out / FILES["numbers"]).read_text(encoding="utf-8"))
    assert (numbers["refused"], numbers["folded"]["refused"]) == (False, True)
    one_sided, folded = (of["scores"]["after"]["keep"] for of in (numbers, numbers["folded"]))
    before = numbers["scores"]["before"]["keep"]
    assert folded < before - 0.02 < one_sided


def test_fold_makes_it_a_failure(unfolded: Outcome) -> None:
    assert not unfolded.refused
    assert unfolded.fails
    assert not replace(unfolded, fold=False).fails


def test_the_exit_code_and_the_screen(run: Run, unfolded: Outcome, monkeypatch) -> None:
    from clipproj.cli import erase as job

    for flags, code in (([], 0), (["--fold"], 3)):
        asked = replace(unfolded, fold=bool(flags))
        monkeypatch.setattr(job, "erase", lambda recipe, say, asked=asked: asked)
        result = run("erase", *NAMES, *flags)
        assert result.exit_code == code, result.stderr
        assert "Folded into weights it is refused" in result.stdout
        assert "one-sided %" in result.stdout
        assert "undo with" not in result.stdout
        assert "receipt" not in result.stdout


def test_an_earlier_checkpoint_must_not_stand_beside_it(unfolded: Outcome, tmp_path: Path) -> None:
    out = tmp_path / "out"
    erase(Recipe(["cat"], out=out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(
        ValueError, match="out must hold no checkpoint where the edit is not folded"
    ):
        erase(Recipe(NAMES, out=out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    own = unfolded.files["projector"].parent  # an output without a checkpoint may be replaced
    again = erase(Recipe(["cat"], out=own))
    assert again.files["checkpoint"].exists()


def test_where_the_one_sided_form_is_refused_nothing_is_written(tmp_path: Path) -> None:
    outcome = erase(Recipe(["cat"], strength=0.1, out=tmp_path / "out"))
    assert outcome.one_sided is not None
    assert outcome.refused
    assert outcome.fails
    assert outcome.files == {}
    assert not (tmp_path / "out").exists()
