"""The main job: what it measures and writes, what it refuses, that nothing is left half done."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import WRITTEN

from clipproj import Projector, files, load
from clipproj.audit import Limits, image_features, load_images
from clipproj.checkpoints.checkpoint import load_model, undo
from clipproj.checkpoints.state import CONFIG, WEIGHTS, read_edits
from clipproj.cli.erase import FILES, erase
from clipproj.editing.receipt import Receipt
from clipproj.editing.verify import verify
from clipproj.models.heads import head_hash
from clipproj.recipe import Recipe, resolve, run
from clipproj.recipe.audit import audited


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / WEIGHTS)


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("method", ["nullspace", "ccup"])
def test_the_class_goes_and_the_others_stay(ask: Callable[..., Recipe], method: str) -> None:
    outcome = erase(ask("cat", method=method))
    before, after = outcome.comparison.before, outcome.comparison.after
    assert (before.forget, before.keep) == (1, 1)
    assert (after.forget, after.keep, after.nearest) == (0, 1, 1)
    assert after.probe == 1  # erased is the alignment, not the information
    assert outcome.verdict.status == "edited"
    assert outcome.verdict.exact
    assert 0 < outcome.edit_seconds < outcome.seconds
    assert outcome.keep.names == ("café", "dog", "fish", "owl", "tall tree")
    assert outcome.texts.keep_from == "images"


def test_what_is_written(ask: Callable[..., Recipe], model: Path, images: Path) -> None:
    request = ask("cat")
    outcome = erase(request)
    assert {path.name for path in request.out.iterdir()} == WRITTEN
    assert [path.name for path in request.out.parent.iterdir()] == ["out"]
    assert set(outcome.files.values()) == {request.out / name for name in FILES.values()}
    page = (request.out / FILES["report"]).read_text()
    assert page.lower().startswith("<!doctype html>")
    assert all(f"<code>{name}</code>" in page for name in set(FILES.values()) - {"report.html"})
    assert "One-sided and folded" in page
    assert outcome.undo_command in page
    numbers = json.loads((request.out / FILES["numbers"]).read_text())
    assert numbers["scores"]["after"]["forget"] == 0
    assert numbers["files"] == {what: str(path) for what, path in outcome.files.items()}
    projector = load(request.out / FILES["projector"])
    assert projector.content_hash() == outcome.projector.content_hash()
    assert projector.provenance["forget"]["names"] == ["cat"]
    assert projector.one_sided
    receipt = Receipt.load(request.out / FILES["receipt"])
    assert receipt.projector_hash == load(request.out / FILES["folded"]).content_hash()
    assert numbers["folded"]["projector"] == receipt.projector_hash
    assert verify(weights(request.out), receipt).exact
    assert verify(weights(model), receipt).status == "unedited"
    assert read_edits(request.out / WEIGHTS)[0]["forget"] == ["cat"]


def test_open_clip_loads_the_edited_model(
    ask: Callable[..., Recipe], model: Path, images: Path, tmp_path: Path
) -> None:
    request = ask("cat")
    outcome = erase(request)
    by_folder, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{request.out}")
    (tmp_path / "clipproj-erase.json").write_text(json.dumps(tiny.CONFIG))
    open_clip.add_model_config(tmp_path / "clipproj-erase.json")
    by_file = open_clip.create_model("clipproj-erase", pretrained=str(request.out / WEIGHTS))
    assert equal(dict(by_file.state_dict()), dict(by_folder.state_dict()))
    found = load_images(images)
    edited = image_features(by_folder, preprocess, found)
    original = load_model(str(model))
    folded = outcome.folded.projector
    on_the_fly = folded(image_features(original.model, original.preprocess, found))
    torch.testing.assert_close(edited, on_the_fly, rtol=1e-3, atol=1e-4)


def test_edits_in_a_row_and_back(ask: Callable[..., Recipe], model: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    erase(ask("cat", out=one))
    outcome = erase(ask("dog", model=str(one), out=two))
    assert outcome.comparison.after.per_class["cat"] == 0
    assert outcome.comparison.after.per_class["dog"] == 0
    assert [entry["forget"] for entry in read_edits(two / WEIGHTS)] == [["cat"], ["dog"]]
    undo(two / WEIGHTS, two / FILES["undo"])
    assert equal(weights(two), weights(one))
    undo(two / WEIGHTS, one / FILES["undo"])
    assert equal(weights(two), weights(model))


def test_a_rehearsal_writes_nothing(
    ask: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = erase(ask("cat", out=None))
    assert outcome.comparison.after.forget == 0
    assert outcome.verdict
    assert outcome.files == {}
    assert list(tmp_path.iterdir()) == []


def test_without_images_names_in_general_are_kept(ask: Callable[..., Recipe]) -> None:
    outcome = erase(ask("cat", images=None, out=None))
    assert outcome.texts.keep_from == "generic"
    assert 3000 < len(outcome.keep) < 3746
    assert outcome.projector.one_sided
    assert outcome.projector.provenance["parameters"]["contrast"] == "neighbours"
    assert "cat" not in outcome.keep.names
    assert outcome.comparison is None
    texts = outcome.as_dict()["texts"]
    assert texts["forget"] == ["cat"]
    assert len(texts["nearest"]) == 5
    assert texts["before"]["per_class"].keys() == {"cat", *texts["nearest"]}
    assert (texts["before"]["probe"], texts["of"]) == (None, "mixture of texts")


def test_names_are_embedded_in_one_spelling(ask: Callable[..., Recipe]) -> None:
    asked = ask(
        "Golden_Retriever", "cafe\u0301", keep=["ice__cream"], images=None,
        synonyms={"cafe\u0301": ["coffee_house"]},
    )  # fmt: skip
    names = resolve(asked)
    assert names.forms == ("Golden Retriever", "café", "coffee house")
    assert names.keep == ("ice cream",)


def test_given_names_are_kept(ask: Callable[..., Recipe]) -> None:
    outcome = erase(ask("cat", keep=["Dog", "tall_tree", "zebra"], out=None))
    assert outcome.keep.names == ("dog", "tall tree", "zebra")
    assert outcome.texts.keep_from == "given"
    assert set(outcome.comparison.after.per_class) == {
        name.replace("_", " ") for name in tiny.COLOURS
    }


@pytest.mark.parametrize(
    ("changes", "strength"),
    [({}, 1.0), ({"options": {"contrast": "mean"}}, 1.0),
     ({"options": {"contrast": "mean"}, "strength": 0.5}, 0.5),
     ({"method": "ccup"}, 1.0), ({"method": "ccup", "strength": 0.25}, 0.25)],
)  # fmt: skip
def test_strength(ask: Callable[..., Recipe], changes: dict, strength: float) -> None:
    outcome = erase(ask("cat", out=None, **changes))
    assert float(outcome.projector.strength) == pytest.approx(strength)
    assert float(outcome.projector.strength) == pytest.approx(outcome.as_dict()["strength"])


def test_other_words_for_the_class(ask: Callable[..., Recipe]) -> None:
    outcome = erase(ask("CAT", plurals=True, synonyms={"cat": ["kitty"]}, out=None))
    assert outcome.forget.names == ("cat", "cats", "kitty", "kitties")
    assert outcome.comparison.forget == ("cat",)
    assert outcome.comparison.after.forget == 0


@pytest.mark.filterwarnings("ignore:edit. an edit of the text head")
def test_the_text_tower(ask: Callable[..., Recipe], model: Path) -> None:
    outcome = erase(ask("cat", tower="text", options={"contrast": "none"}, limits=Limits(1, 1)))
    before, after = weights(model), weights(ask().out)
    assert [k for k in before if not torch.equal(before[k], after[k])] == ["text_projection"]
    assert outcome.comparison.before.forget == 1
    assert outcome.comparison.cosine == pytest.approx(1)  # images keep their features
    assert outcome.curve == []


def test_a_saved_projector_is_applied(ask: Callable[..., Recipe], tmp_path: Path) -> None:
    first = erase(ask("cat", plurals=True))
    saved = ask().out / FILES["projector"]
    again = erase(ask(projector=saved, out=tmp_path / "again"))
    assert again.comparison.forget == ("cat",)
    assert again.projector.content_hash() == first.projector.content_hash()
    assert again.folded.projector.content_hash() == first.projector.linear().content_hash()
    folded = erase(ask(projector=ask().out / FILES["folded"], out=tmp_path / "folded"))
    assert folded.one_sided is None
    assert not (tmp_path / "folded" / FILES["folded"]).exists()  # it is the projector
    assert equal(weights(tmp_path / "folded"), weights(ask().out))
    half = erase(ask(projector=saved, strength=0.5, out=None))
    assert float(half.projector.strength) == 0.5


@pytest.mark.parametrize("carry_out", [erase, audited])
def test_a_saved_projector_of_several_directions_is_not_reflected(
    carry_out: Callable[[Recipe], Any], ask: Callable[..., Recipe], tmp_path: Path
) -> None:
    Projector(torch.eye(16)[:2], provenance={"forget": {"names": ["cat"]}}).save(tmp_path / "p")
    recipe = ask(projector=tmp_path / "p", strength=1.5, command="whose")
    with pytest.raises(ValueError, match=r"whose: strength must be at most 1 for the 2 dir.* 1.5"):
        carry_out(recipe)


def test_a_projector_is_told_what_it_forgets_only_to_confirm(
    ask: Callable[..., Recipe], tmp_path: Path
) -> None:
    erase(ask("cat", "dog", plurals=True, limits=Limits(1, 1)))
    saved = ask().out / FILES["projector"]
    with pytest.raises(ValueError, match=r"what the projector forgets, \['cat', .* got 'owl'"):
        erase(ask("owl", projector=saved, out=None))
    with pytest.raises(ValueError, match=r"keep must not hold .*\['dog'\] in both"):
        erase(ask(projector=saved, keep=["dog"], out=None))
    lifted = {"projector": saved, "limits": Limits(1, 1)}
    outcome = erase(ask("Cat", **lifted, out=tmp_path / "again"))
    assert outcome.comparison.forget == ("cat", "dog")
    assert "dog" not in outcome.keep.names
    log = read_edits(tmp_path / "again" / WEIGHTS)
    assert log[0]["forget"] == ["cat", "cats", "dog", "dogs"]


def test_a_form_that_is_a_class_of_its_own_is_forgotten(ask: Callable[..., Recipe]) -> None:
    outcome = erase(ask("cat", synonyms={"cat": ["Dog", "tall_tree"]}, out=None))
    assert outcome.comparison.forget == ("cat", "dog", "tall tree")
    assert outcome.keep.names == ("café", "fish", "owl")
    assert outcome.comparison.after.forget == 0


def test_a_projector_without_names_needs_them(ask: Callable[..., Recipe], tmp_path: Path) -> None:
    Projector(torch.eye(16)[:1]).save(tmp_path / "p")
    with pytest.raises(ValueError, match="names must say what the projector forgets"):
        erase(ask(projector=tmp_path / "p"))
    assert erase(ask("cat", projector=tmp_path / "p", out=None)).comparison.forget == ("cat",)


@pytest.mark.parametrize(
    ("names", "changes", "says"),
    [
        ([], {}, "at least one class to forget"),
        (["cat", " "], {}, "names must not be blank"),
        (["cat", "Cat"], {}, "names must be distinct, got 'cat' and 'Cat'"),
        (["tall_tree", "Tall  tree"], {}, "must be distinct, got 'tall_tree' and 'Tall  tree'"),
        (["cat"], {"keep": ["dog", "dog"]}, "keep must be distinct"),
        (["tall tree"], {"keep": ["tall_tree"]}, r"keep must not hold .*\['tall_tree'\] in both"),
        (["cat"], {"device": "abacus"}, "device must be one that torch has here, .* got 'abacus'"),
        (["cat"], {"keep": ["dog", "Cat"]}, r"keep must not hold .*\['Cat'\] in both"),
        (["cat"], {"synonyms": {"cat": ["dog"]}, "keep": ["dog"]}, r"not hold .*\['dog'\] in both"),
        (["cat"], {"synonyms": {"dog": ["hound"]}}, "synonyms must belong to one of the names"),
        ([name.replace("_", " ") for name in tiny.COLOURS], {}, "leave a class to keep"),
        (["cat"], {"strength": 2.5}, r"strength must be in \[0, 2\], got 2.5"),
        (["cat"], {"strength": -1.0}, r"strength must be in \[0, 2\], got -1"),
        (["cat"], {"strength": math.nan}, r"strength must be in \[0, 2\], got nan"),
        (["cat"], {"strength": 3.0, "method": "ccup"}, r"strength must be in \[0, 1\]"),
        (["cat"], {"method": "magic"}, "method must be nullspace or ccup or .*, got 'magic'"),
        (["cat"], {"tower": "audio"}, "tower must be image or text, got 'audio'"),
        (["cat"], {"options": {"contrast": "hard"}}, "contrast must be none or span"),
        (["cat"], {"options": {"rank": 0}}, "rank must be an integer at least 1"),
        (["cat"], {"options": {"rank": 1}, "method": "ccup"}, "rank must be left out with method"),
        (["cat"], {"options": {"forget_weight": 1.0}}, "forget_weight must be left out with"),
        (["cat"], {"options": {"forget_weight": 0.0}, "method": "ccup"}, "forget_weight must be"),
        (["cat"], {"projector": Path("p"), "plurals": True}, "plurals must be left out with a"),
        (["cat"], {"templates": ["an image"]}, "templates must hold {} exactly once"),
        (["cat"], {"images": Path("nowhere")}, "folder must be a folder, got nowhere"),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense(
    ask: Callable[..., Recipe], tmp_path: Path, names: list[str], changes: dict, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        erase(ask(*names, **changes))
    assert list(tmp_path.iterdir()) == []


def empty(folder: Path) -> None:
    folder.mkdir()


def no_class_folders(folder: Path) -> None:
    folder.mkdir()
    (folder / "cat.png").write_bytes(b"")


def an_empty_class(folder: Path) -> None:
    tiny.images(folder, 1)
    (folder / "cat" / "0.png").unlink()


def an_unreadable_image(folder: Path) -> None:
    tiny.images(folder, 1)
    (folder / "dog" / "broken.png").write_bytes(b"no image")


def half_an_image(folder: Path) -> None:
    tiny.images(folder, 1)
    whole = (folder / "dog" / "0.png").read_bytes()
    (folder / "dog" / "0.png").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (empty, "a folder for each class"),
        (no_class_folders, "a folder for each class"),
        (an_empty_class, "a class must have images, got none in .*cat"),
        (an_unreadable_image, "broken.png"),
        (half_an_image, "cannot decode .*0.png"),
    ],
)
def test_images_that_cannot_be_used(
    ask: Callable[..., Recipe], tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    make(tmp_path / "images")
    with pytest.raises(ValueError, match=says):
        erase(ask("cat", images=tmp_path / "images"))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("text_projection", math.nan, "features must be finite"),
        ("text_projection", 0.0, "features must be finite and not zero"),
        ("visual.proj", math.nan, "must be finite, got NaN"),
    ],
)
def test_a_model_that_is_broken(
    ask: Callable[..., Recipe], model: Path, tmp_path: Path, name: str, value: float, says: str
) -> None:
    shutil.copytree(model, tmp_path / "m")
    save_file(weights(model) | {name: torch.full((32 if name[0] == "v" else 16, 16), value)},
              tmp_path / "m" / WEIGHTS)  # fmt: skip
    with pytest.raises(ValueError, match=says):
        erase(ask("cat", model=str(tmp_path / "m")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("projector", "says"),
    [
        (Projector(torch.eye(8)[:1]), "must be of width 16 as the image head is, got 8"),
        (
            Projector(torch.eye(16)[:1], torch.eye(16)[:1], torch.ones(1)),
            "visual.proj has no bias to hold it",
        ),
        (
            Projector(torch.eye(16)[:1], provenance={"model": "other", "head_hash": "0" * 64}),
            "must come from this model .* got one of other",
        ),
    ],
    ids=["width", "offset", "other-model"],
)
def test_a_projector_that_does_not_fit(
    ask: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    projector: Projector,
    says: str,
) -> None:
    projector.save(tmp_path / "p")
    monkeypatch.setattr(run, "embed", None)  # would be called if it came to that
    with pytest.raises(ValueError, match=says):
        erase(ask("cat", projector=tmp_path / "p"))
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_force_applies_the_projector_of_another_model(
    ask: Callable[..., Recipe], model: Path, images: Path, tmp_path: Path
) -> None:
    other = tiny.model(tmp_path / "other", images, seed=1)
    erase(ask("cat", model=str(other), out=tmp_path / "first"))
    saved = tmp_path / "first" / FILES["projector"]
    assert load(saved).provenance["head_hash"] != head_hash(load_model(str(model)).model)
    with pytest.raises(ValueError, match="must come from this model"):
        erase(ask(projector=saved))
    assert erase(ask(projector=saved, force=True)).verdict


@pytest.mark.parametrize("damage", ["nan", "bit", "kind"])
def test_a_projector_file_that_is_damaged(
    ask: Callable[..., Recipe], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "p"
    read = torch.eye(16)[:1]
    if damage == "nan":
        meta = {"side": "image", "provenance": {}, "hash": ""}
        tensors = {"read": read * math.nan, "strength": torch.tensor(1.0)}
        files.write(path, "projector", tensors, meta)
    elif damage == "kind":
        files.write(path, "undo", {"weight": read}, {})
    else:
        Projector(read).save(path)
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    says = {"nan": "read must be finite", "bit": "wrong digest", "kind": "got 'undo'"}[damage]
    with pytest.raises(ValueError, match=says):
        erase(ask("cat", projector=path))


def test_progress_counts_up_to_the_end(ask: Callable[..., Recipe]) -> None:
    seen: dict[str, list[int]] = {}
    totals: dict[str, int] = {}

    def note(stage: str, done: int, total: int) -> None:
        seen.setdefault(stage, []).append(done)
        totals[stage] = total

    erase(ask("cat", out=None), note)
    stages = ["model", "texts", "general texts", "images before", "images after"]
    assert list(seen) == stages
    for stage, counts in seen.items():
        assert counts == sorted(counts)
        assert counts[-1] == totals[stage]


def test_a_model_with_its_own_tokenizer_takes_it_along(
    ask: Callable[..., Recipe], model: Path, tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {word: i for i, word in enumerate(["<pad>", "a", "cat", "dog", "fish", "owl", "tree"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    shutil.copytree(model, tmp_path / "m")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    fast.save_pretrained(tmp_path / "m")
    config = json.loads((model / CONFIG).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "words"
    (tmp_path / "m" / CONFIG).write_text(json.dumps(config))
    request = ask("cat", model=str(tmp_path / "m"), keep=["dog", "owl"], images=None)
    erase(replace(request, limits=Limits(1, 1)))  # to this tokenizer the weights are foreign
    again = open_clip.get_tokenizer(f"local-dir:{request.out}")
    assert again(["a cat"])[0, :2].tolist() == [1, 2]


def test_the_embedded_model_forgets_a_class() -> None:
    outcome = erase(Recipe(["cat"]))
    before, after = outcome.comparison.before, outcome.comparison.after
    assert before.forget >= 0.75
    assert after.forget == 0
    assert after.keep >= before.keep - 0.02
    assert outcome.comparison.cosine > 0.95
