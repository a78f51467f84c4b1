"""What open_clip is asked for: names, tags, files, and an activation that weights do not tell."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import open_clip
import pytest
import tiny
import torch
from open_clip.transformer import QuickGELU

from clipproj.checkpoints.checkpoint import load_model, save_model
from clipproj.checkpoints.sources import model_config
from clipproj.checkpoints.state import (
    CONFIG,
    WEIGHTS,
)

# The activation: weights say nothing of it


TAGS = open_clip.list_pretrained()


@pytest.fixture
def either(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of the architecture "clipproj-act", whose one tag says QuickGELU, and of its twin."""
    for end, more in (("", {}), ("-quickgelu", {"quick_gelu": True})):
        config = tmp_path / f"clipproj-act{end}.json"
        config.write_text(json.dumps(tiny.CONFIG | more))
        open_clip.add_model_config(config)
        tags = {"openai": {"quick_gelu": True}}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, f"clipproj-act{end}", tags)
    fetch = "open_clip.factory.download_pretrained"  # no network
    monkeypatch.setattr(fetch, lambda *_, **__: str(folder / WEIGHTS))
    return folder / WEIGHTS


def quick_gelus(model: torch.nn.Module) -> int:
    return sum(isinstance(module, QuickGELU) for module in model.modules())


def test_every_tag_has_its_own_activation() -> None:
    for name, tag in TAGS:
        if open_clip.get_model_config(name) is None:
            continue  # a tag of an architecture that open_clip does not have, nor load_model
        told = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu")
        own = open_clip.get_model_config(name).get("quick_gelu", False)
        got = model_config(name, tag).get("quick_gelu", False)
        assert got == (own if told is None else told), (name, tag)
        assert model_config(name, None).get("quick_gelu", False) == own
    of = {(name, tag) for name, tag in TAGS if says_quick_gelu(name, tag)}
    assert {("ViT-B-32", "openai"), ("ViT-B-32", "metaclip_400m"), ("ViT-B-16", "dfn2b"),
            ("ViT-L-14", "dfn2b"), ("RN50", "yfcc15m"), ("ViT-B-32-quickgelu", "openai"),
            ("roberta-ViT-B-32", "laion2b_s12b_b32k")} <= of  # fmt: skip
    assert not {("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-L-14", "dfn2b_s39b")} & of


def says_quick_gelu(name: str, tag: str) -> bool:
    known = open_clip.get_model_config(name) is not None
    return known and model_config(name, tag).get("quick_gelu", False)


def test_an_architecture_with_tags_of_both_kinds_has_a_name_for_each() -> None:
    for name in open_clip.list_models():
        tags = open_clip.list_pretrained_tags_by_model(name)
        kinds = {bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu")) for tag in tags}
        own = bool(open_clip.get_model_config(name).get("quick_gelu"))
        if (
            not own and True in kinds
        ):  # its file may be of either kind, and the note names the other
            assert f"{name}-quickgelu" in open_clip.list_models()
        if name.endswith("-quickgelu"):
            assert own
            assert kinds <= {True}  # a tag of the other kind is refused, as none of its own


def test_a_tag_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of the tags openai, .* got 'laion2b_s34b_b79k'"):
        load_model("ViT-B-32-quickgelu", "laion2b_s34b_b79k")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("name", ["clipproj-act", "clipproj-act-quickgelu"])
def test_the_tag_decides_what_is_built_and_written(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = load_model(name, "OpenAI")  # as open_clip spells it, or not
    assert (quick_gelus(loaded.model), loaded.checkpoint) == (2, None)
    assert loaded.config["model_cfg"] == tiny.CONFIG | {"quick_gelu": True}
    save_model(loaded, tmp_path / "out")
    again = load_model(str(tmp_path / "out"))
    assert quick_gelus(again.model) == 2
    tokens = again.tokenizer(["a cat"])
    with torch.no_grad():
        want = loaded.model.encode_text(tokens)
        assert torch.equal(again.model.encode_text(tokens), want)


def test_a_tag_may_say_that_it_has_none(either: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"plain": {"quick_gelu": False}, "silent": {"hf_hub": "a/b"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "clipproj-act-quickgelu", tags)
    assert quick_gelus(load_model("clipproj-act-quickgelu", "plain").model) == 0
    assert quick_gelus(load_model("clipproj-act-quickgelu", "silent").model) == 2


def test_a_file_may_be_of_either_activation(either: Path) -> None:
    with pytest.warns(UserWarning, match=r"built with GELU; .*--model clipproj-act-quickgelu"):
        loaded = load_model("clipproj-act", str(either))
    assert (quick_gelus(loaded.model), loaded.checkpoint) == (0, either)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert quick_gelus(load_model("clipproj-act-quickgelu", str(either)).model) == 2


def test_a_tag_comes_before_a_file_of_its_name(
    either: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(either, "openai")
    assert load_model("clipproj-act", "openai").checkpoint is None  # as open_clip takes it


def test_names_may_have_a_slash() -> None:
    with pytest.raises(ValueError, match=r"a file or one of the tags openai, .* close: openai"):
        load_model("ViT-B/32", "opnai")


@pytest.mark.parametrize(
    ("name", "pretrained", "says"),
    [
        ("ViT-B-23", None, "got 'ViT-B-23'; close: .*ViT-B-32"),
        ("ViT-B-32", None, "needs pretrained weights, .*openai"),
        ("ViT-B-32", "opnai", "a file or one of the tags .*; close: openai"),
        ("local-dir:/nowhere", None, f"a folder with {CONFIG}"),
        ("hf-hub:a/b", "openai", "left out with hf-hub"),
        (None, "openai", "come with a model"),
    ],
)
def test_a_model_that_is_not_there(name: str | None, pretrained: str | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_model(name, pretrained)
