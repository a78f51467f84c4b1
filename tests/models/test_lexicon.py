"""Names in general: the list itself, and their texts, made once for each model and kept."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import clipproj
from clipproj import files
from clipproj.models import lexicon as module
from clipproj.models.lexicon import TEMPLATE, lexicon, lexicon_names
from clipproj.models.text import embed_classes
from clipproj.models.words import canonical, imagenet_names, name_fault, name_key, repeated

open_clip = pytest.importorskip("open_clip", reason="needs open_clip")

VISION = {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def clip(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return open_clip.CLIP(16, VISION, TEXT).eval()


@pytest.fixture(scope="module")
def tokenize() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=20)


@pytest.fixture
def silent():
    """Any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Calls(list):
    def __call__(self, done: int, total: int) -> None:
        self.append((done, total))

    @property
    def made(self) -> bool:
        """Whether texts were made, and not read from a file."""
        return len(self) > 1


# ---- the list ----


def test_the_list_is_of_clean_distinct_names_in_order():
    names = lexicon_names()
    assert 3000 <= len(names) <= 4000
    assert repeated(names) is None
    assert list(names) == sorted(names, key=name_key)
    assert [name for name in names if name_fault(name) or canonical(name) != name] == []


def test_the_list_holds_what_classes_are_made_of():
    known = set(map(name_key, lexicon_names()))
    some = "dog, pizza, beach, nurse, wedding, kitchen, ice cream, oak, tennis, hand, rain, city"
    assert set(some.split(", ")) <= known
    assert set(map(name_key, imagenet_names())) <= known


def test_the_file_says_where_its_names_are_from_and_the_licences_lie_beside_it():
    file = Path(module.__file__).with_suffix(".txt")
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert "WordNet 3.1" in first
    assert "make_lexicon.py" in first
    told = file.with_name("lexicon_ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "Princeton University" in told
    assert "Permission to use, copy, modify" in told


def test_wheels_hold_the_list():
    package = Path(clipproj.__file__).parent
    if not (package.parent / "pyproject.toml").is_file():
        pytest.skip("an installed package has no pyproject.toml")
    text = (package.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^clipproj = (\[.*\])$", text, re.MULTILINE)[1]
    found = {path.name for pattern in json.loads(listed) for path in package.glob(pattern)}
    assert {"lexicon.txt", "lexicon_ATTRIBUTION.md"} <= found


# ---- its texts ----


def test_texts_are_those_of_embed_classes_in_one_template(tokenize, silent):
    model = clip()
    made = lexicon(model, tokenize, cache=False, model_name="mine")
    theirs = embed_classes(model, tokenize, lexicon_names(), [TEMPLATE], model_name="mine")
    assert torch.equal(made.tensor, theirs.tensor)
    assert (made.names, made.templates, made.model) == (theirs.names, (TEMPLATE,), "mine")
    assert made.head_hash == theirs.head_hash


def test_they_are_made_once(tokenize, tmp_path, silent):
    model, first, then = clip(), Calls(), Calls()
    made = lexicon(model, tokenize, cache=tmp_path, progress=first)
    again = lexicon(model, tokenize, cache=tmp_path, progress=then, model_name="another name")
    assert first.made
    assert first[-1] == (len(made), len(made))
    assert then == [(len(made), len(made))]
    assert torch.equal(again.tensor, made.tensor)
    assert again.names == made.names
    assert again.model == "another name"
    assert again.head_hash == made.head_hash
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_is_where_caches_belong(tokenize, tmp_path, monkeypatch, silent):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    lexicon(clip(), tokenize)
    assert len(list((tmp_path / "xdg" / "clipproj").glob("lexicon-*.safetensors"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    lexicon(clip(), tokenize)
    assert len(list((tmp_path / "home" / ".cache" / "clipproj").iterdir())) == 1
    assert not Path("relative").exists()


def test_another_head_template_or_tokenizer_has_texts_of_its_own(tokenize, tmp_path):
    model = clip()
    lexicon(model, tokenize, cache=tmp_path)
    for other, template in ((clip(1), TEMPLATE), (model, "a {}")):
        calls = Calls()
        made = lexicon(other, tokenize, template, cache=tmp_path, progress=calls)
        assert calls.made
        assert made.templates == (template,)
    assert len(list(tmp_path.iterdir())) == 3
    with torch.no_grad():
        model.text_projection.mul_(2)  # the same signs: one embedding space, other weights
    calls = Calls()
    lexicon(model, tokenize, cache=tmp_path, progress=calls)
    assert calls.made

    def shifted(texts):
        return tokenize([f"not {text}" for text in texts])

    calls = Calls()
    with pytest.warns(UserWarning, match="of another tokenizer"):
        lexicon(model, shifted, cache=tmp_path, progress=calls)
    assert calls.made


def test_another_tower_under_the_same_head_is_noticed(tokenize, tmp_path):
    model = clip()
    lexicon(model, tokenize, cache=tmp_path)
    with torch.no_grad():
        model.token_embedding.weight.normal_()
    with pytest.warns(UserWarning, match="another model with the same head"):
        made = lexicon(model, tokenize, cache=tmp_path)
    assert torch.equal(made.tensor, lexicon(model, tokenize, cache=False).tensor)
    assert torch.equal(made.tensor, lexicon(model, tokenize, cache=tmp_path).tensor)


def test_a_model_with_hooks_is_not_kept(tokenize, tmp_path, silent):
    model = clip()
    model.transformer.register_forward_hook(lambda module, given, out: out)
    lexicon(model, tokenize, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _foreign(path: Path) -> None:
    path.write_text("not a tensor")


def _another_kind(path: Path) -> None:
    files.write(path, "samples", {"texts": torch.eye(3)}, {"key": "k"})


def _another_key(path: Path) -> None:
    found = files.read(path)
    files.write(path, "texts", found.tensors, {**found.meta, "key": "another"})


def _not_unit(path: Path) -> None:
    found = files.read(path)
    files.write(path, "texts", {"texts": found.tensors["texts"] * 2}, found.meta)


def _without(path: Path) -> None:
    files.write(path, "texts", {"rows": torch.eye(3)}, files.read(path).meta)


@pytest.mark.parametrize(
    "damage", [_cut, _foreign, _another_kind, _another_key, _not_unit, _without]
)
def test_a_file_that_cannot_be_used_is_made_again(tokenize, tmp_path, damage):
    model = clip()
    made = lexicon(model, tokenize, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    damage(file)
    with pytest.warns(UserWarning, match="made again, the kept texts can't be used"):
        again = lexicon(model, tokenize, cache=tmp_path)
    assert torch.equal(again.tensor, made.tensor)
    calls = Calls()
    lexicon(model, tokenize, cache=tmp_path, progress=calls)
    assert not calls.made


@pytest.mark.parametrize("where", ["a file", "a folder that is a file"])
def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(tokenize, tmp_path, where):
    taken = tmp_path / "taken"
    taken.write_text("")
    folder = taken if where == "a file" else taken / "below"
    with pytest.warns(UserWarning, match="not kept for the next time"):
        made = lexicon(clip(), tokenize, cache=folder)
    assert len(made) == len(lexicon_names())


def test_a_full_disk_is_said(tokenize, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        lexicon(clip(), tokenize, cache=tmp_path)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"template": "a photo"}, ValueError, "must hold {} exactly once"),
        ({"template": ["{}"]}, TypeError, "template must be a string, got list"),
        ({"cache": 3}, TypeError, "cache must be a path, True or False, got int"),
        ({"cache": None}, TypeError, "cache must be a path, True or False, got NoneType"),
        ({"cache": ""}, ValueError, "cache must be a folder, True or False, got ''"),
        ({"batch_size": 0, "cache": False}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_refusals(tokenize, given, error, words):
    with pytest.raises(error, match=words):
        lexicon(clip(), tokenize, **given)


def test_no_model_is_refused(tokenize):
    with pytest.raises(TypeError, match="lexicon: model must be"):
        lexicon("ViT-B-32", tokenize)


# ---- what makes the list ----


def test_the_list_is_what_its_script_makes(monkeypatch):
    """Where WordNet's files are at hand, as `WORDNET_DICT` says."""
    folder = os.environ.get("WORDNET_DICT")
    if not folder or importlib.util.find_spec("timm") is None:
        pytest.skip("needs WORDNET_DICT, the folder with WordNet 3.1's data.noun, and timm")
    path = Path(clipproj.__file__).parents[1] / "tools" / "make_lexicon.py"
    spec = importlib.util.spec_from_file_location("make_lexicon", path)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_lexicon", script)  # where its dataclasses look
    spec.loader.exec_module(script)
    assert tuple(script.names(script.WordNet(Path(folder)))) == lexicon_names()
