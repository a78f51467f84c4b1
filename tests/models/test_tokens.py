"""Texts that do not fit: found for every kind of tokenizer, refused or cut as asked."""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import packaging.version
import pytest
import tiny
import tokenizers
import torch
import transformers
from torch import nn

from clipproj import ZeroShotHead, embed_classes, generic_keep
from clipproj.checkpoints.checkpoint import load_model
from clipproj.models.tokens import counts, cut_tokens, too_long

Run = Callable[..., Any]
CONTEXT = 12
LONG = "very " * 30  # a name's difference lies beyond


def words(folder: Path, form: str, pad: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of a few words, in a folder; `form` says what it puts around them."""
    ids = {word: i for i, word in enumerate(("<pad>", "<bos>", "<eos>", "<cls>", "cat", "dog"))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="dog"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(word, i) for word, i in ids.items() if word.startswith("<")]
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=form, special_tokens=special
    )
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "cls_token": "<cls>", "unk_token": "dog"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=pad, **named)
    made.save_pretrained(folder)
    return made


def openai(_: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    old = types.SimpleNamespace(packaging=packaging)  # what setuptools dropped
    monkeypatch.setitem(sys.modules, "pkg_resources", old)
    for name in [name for name in sys.modules if name.partition(".")[0] == "clip"]:
        monkeypatch.delitem(sys.modules, name)
    tokenize = pytest.importorskip("clip").tokenize
    return lambda texts, context_length=CONTEXT, truncate=False: tokenize(
        texts, context_length, truncate
    )


def plain_function(*_: Any) -> Callable[..., torch.Tensor]:
    return lambda texts, context_length=CONTEXT: open_clip.tokenize(texts, context_length)


def hugging_face(form: str, pad: str, **more: Any) -> Callable[..., Any]:
    def make(folder: Path, _: Any) -> open_clip.tokenizer.HFTokenizer:
        words(folder, form, pad)
        return open_clip.tokenizer.HFTokenizer(str(folder), context_length=CONTEXT, **more)

    return make


KINDS: dict[str, tuple[Callable[..., Any], int]] = {  # and how many tokens stand around a text
    "SimpleTokenizer": (lambda *_: open_clip.SimpleTokenizer(context_length=CONTEXT), 2),
    "open_clip.tokenize": (plain_function, 2),
    "clip.tokenize": (openai, 2),
    "HFTokenizer": (hugging_face("<bos> $A <eos>", "<pad>"), 2),
    "as SigLIP's, padded with the end": (hugging_face("$A <eos>", "<eos>"), 1),
    "without marks": (hugging_face("$A", "<pad>"), 0),
    "CLIPS": (hugging_face("$A", "<pad>", tokenizer_mode="clips"), 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_found(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, around = KINDS[kind]
    tokenizer = make(tmp_path, monkeypatch)
    texts = ["cat " * n for n in range(1, CONTEXT + 8)]
    texts += [("cat dog " * n)[: 4 * n] for n in range(1, CONTEXT + 8)]
    tokens = cut_tokens(tokenizer, texts)
    assert tokens.shape == (len(texts), CONTEXT)
    whole = {i: len(text.split()) + around for i, text in enumerate(texts)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dict(too_long(tokenizer, texts, tokens))
    assert set(found) == {i for i, count in whole.items() if count > CONTEXT}
    off = int("padded" in kind)  # the end cannot be told from the padding
    assert all(found[i] == max(whole[i] - off, CONTEXT + 1) for i in found)


def test_tokens_that_look_like_padding() -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)  # a "!" in a word is token 0
    for n in range(1, 12):
        for text in ("!$ " * n, "!" * n + "$", "cat " * 10 + "!$ " * n, "!$ " * n + "cat " * 10):
            tokens = tokenizer([text])
            long = len(tokenizer.encode(text)) + 2 > CONTEXT
            assert bool(too_long(tokenizer, [text], tokens)) == long, text


def test_only_full_rows_are_tokenized_again() -> None:
    tokenizer, asked = open_clip.SimpleTokenizer(context_length=CONTEXT), []

    def counting(texts: list[str], context_length: int = CONTEXT) -> torch.Tensor:
        asked.append(len(texts))
        return tokenizer(texts, context_length)

    texts = ["a cat"] * 500 + ["cat " * 40]
    assert too_long(counting, texts, cut_tokens(counting, texts)) == [(500, 42)]
    assert asked == [501, 1]


def test_a_tokenizer_that_cannot_be_asked_is_named() -> None:
    def rows(texts: list[str]) -> torch.Tensor:
        return torch.ones(len(texts), 4, dtype=torch.int64)

    with pytest.warns(UserWarning, match=r"2 of 2 texts fill the 4 tokens .* such as 'a cat'"):
        assert too_long(rows, ["a cat", "a dog"], rows(["a cat", "a dog"])) == []
    assert counts(rows, rows(["a cat"])) == [4]


def test_a_tokenizer_that_does_not_heed_what_it_is_asked_is_named(clip: nn.Module) -> None:
    own = open_clip.SimpleTokenizer(context_length=16)

    def ignores(texts: list[str], context_length: int = 16) -> torch.Tensor:
        return own(texts)

    with pytest.warns(
        UserWarning, match="1 of 1 texts fill the 16 .* tokenizer heeds no context_l"
    ):
        embed_classes(clip, ignores, ["cat " * 30], ["{}"])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    torch.manual_seed(0)
    return open_clip.CLIP(**tiny.CONFIG).eval()


def test_names_beyond_the_context_are_refused_or_cut(clip: nn.Module) -> None:
    tokenizer, read = open_clip.SimpleTokenizer(context_length=16), []
    names = [f"{LONG}cat", f"{LONG}dog", "fox"]
    says = r"prompts must fit the model's 16 tokens, got 34 in 'a very .*give truncate"
    with pytest.raises(ValueError, match=rf"^embed_classes: {says}"):
        embed_classes(clip, tokenizer, ["fox", *names[:2]], ["a {}"], batch_size=1,
                      progress=lambda *call: read.append(call))  # fmt: skip
    assert read == []  # before any is encoded
    with pytest.warns(UserWarning, match=r"4 of 6 prompts are longer .* such as 'a very "):
        rows = embed_classes(clip, tokenizer, names, ["a {}", "the {}"], truncate=True).tensor
    assert torch.equal(rows[0], rows[1])
    assert not torch.allclose(rows[0], rows[2])
    with pytest.raises(ValueError, match=says):
        ZeroShotHead.from_model(clip, tokenizer, names, ["a {}"])
    with pytest.warns(UserWarning, match="2 of 3"):
        ZeroShotHead.from_model(clip, tokenizer, names, ["a {}"], truncate=True)


def test_the_generic_list_too(clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipproj.models.text.imagenet_names", lambda: ("tench", "goldfish"))
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    forget = embed_classes(clip, tokenizer, ["cat"], ["a {}"])
    assert generic_keep(clip, tokenizer, forget, threshold=1).names == ("tench", "goldfish")
    with pytest.raises(ValueError, match="must fit the model's 16 tokens"):
        generic_keep(clip, tokenizer, forget, templates=[f"{LONG}{{}}"])
    with pytest.warns(UserWarning, match="are longer than the model reads and are cut"):
        generic_keep(clip, tokenizer, forget, templates=[f"{LONG}{{}}"], truncate=True, threshold=1)


def test_tokenizers_of_transformers_cut_when_asked(tmp_path: Path) -> None:
    tokenizer = words(tmp_path, "<bos> $A <eos>", "<pad>")
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    shape["num_attention_heads"] = 2
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 6}
    torch.manual_seed(0)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=shape | ids | {"max_position_embeddings": CONTEXT},
            vision_config=shape | {"image_size": 32, "patch_size": 16},
        )
    ).eval()
    names = ["cat " * 10 + "dog", "cat " * 10 + "cat", "dog"]
    with pytest.raises(ValueError, match=r"the model's 12 tokens, got 13 in 'cat .*give truncate"):
        embed_classes(model, tokenizer, names, ["{}"])
    with pytest.warns(UserWarning, match="2 of 3 prompts are longer"):
        rows = embed_classes(model, tokenizer, names, ["{}"], truncate=True).tensor
    assert torch.equal(rows[0], rows[1])
    whole = embed_classes(model, tokenizer, ["cat " * 10], ["{}"]).tensor
    torch.testing.assert_close(rows[:1], whole)


def test_the_command_refuses_or_cuts(run: Run, usual: list[str]) -> None:
    asked = ["erase", f"{LONG}cat", *usual[:2], "--keep", "dog", "--template", "a {}", "--json"]
    refused = run(*asked, "--dry-run")
    assert refused.exit_code == 2
    error = json.loads(refused.stdout)["error"]
    assert error.startswith("erase: prompts must fit the model's 16 tokens, got 34")
    assert error.endswith("; give truncate to cut them")
    cut = run(*asked, "--dry-run", "--truncate")
    assert cut.exit_code == 0, cut.stdout
    assert any("1 of 2 prompts are longer" in note for note in json.loads(cut.stdout)["notes"])


def test_the_audit_refuses_or_cuts(run: Run, usual: list[str]) -> None:
    audit = ["audit", "cat", *usual, "--only", "paraphrase", "--json"]
    audit += ["--synonym", f"cat={LONG}kitten"]
    found = json.loads(run(*audit).stdout)["audits"]["paraphrase"]
    assert found["lead"].startswith("Not made: embed_classes: prompts must fit the model's 16")
    cut = json.loads(run(*audit, "--truncate").stdout)  # not the finding of the run before
    assert cut["audits"]["paraphrase"]["numbers"] is not None
    assert any(note.startswith("audit: prompts are cut") for note in cut["notes"])


def test_the_embedded_models_own_names_fit() -> None:
    from clipproj import demo

    loaded = load_model()
    names = demo.class_names()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(embed_classes(loaded.model, loaded.tokenizer, names, ["a photo of a {}."])) > 50
