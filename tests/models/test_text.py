"""Text embeddings: the same as open_clip's own, for every family of model and tokenizer."""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipproj.models.text import Embeddings, embed_classes, expand_names, generic_keep
from clipproj.models.words import imagenet_names, openai_templates

open_clip = pytest.importorskip("open_clip", reason="needs open_clip")

NAMES = ["cat", "dog", "sports car", "teapot"]
TEMPLATES = ["a photo of a {}.", "art of the {}.", "{}"]
VOCABULARY = ["a", "photo", "of", "art", "the", ".", "cat", "dog", "sports", "car", "teapot"]


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(16, vision, text).eval()


@pytest.fixture(scope="module")
def tokenize() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


@pytest.fixture(scope="module")
def forget(clip, tokenize) -> Embeddings:
    return embed_classes(clip, tokenize, NAMES, TEMPLATES)


# ---- open_clip ----


@pytest.mark.parametrize("templates", [TEMPLATES, None], ids=["three", "openai"])
def test_equals_open_clips_builder(clip, tokenize, templates):
    ours = embed_classes(clip, tokenize, NAMES, templates)
    theirs = open_clip.build_zero_shot_classifier(
        clip, tokenize, NAMES, templates or open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    torch.testing.assert_close(ours.tensor, theirs.T, atol=1e-6, rtol=0)
    assert ours.names == tuple(NAMES)
    assert ours.templates == tuple(templates or openai_templates())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 12])
def test_batch_size_does_not_matter(clip, tokenize, forget, batch_size):
    calls = []
    out = embed_classes(
        clip,
        tokenize,
        NAMES,
        TEMPLATES,
        batch_size=batch_size,
        progress=lambda *call: calls.append(call),
    )
    torch.testing.assert_close(out.tensor, forget.tensor, atol=1e-6, rtol=0)
    steps = [done for done, _ in calls]
    assert steps == sorted(set(steps))
    assert calls[-1] == (12, 12)
    assert max(b - a for a, b in zip([0, *steps], steps, strict=False)) <= batch_size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_float32_unit_rows_from_any_model_dtype(tokenize, clip, forget, dtype):
    class Typed(nn.Module):
        """Features in `dtype`, as a converted model gives them."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = clip

        def encode_text(self, tokens):
            return self.inner.encode_text(tokens).to(dtype)

    out = embed_classes(Typed(), tokenize, NAMES, TEMPLATES)
    assert out.tensor.dtype == torch.float32
    torch.testing.assert_close(out.tensor.norm(dim=1), torch.ones(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.tensor, forget.tensor, atol=1e-2, rtol=0)


def test_every_submodule_keeps_its_mode(clip, tokenize, forget):
    dropout = nn.Dropout(0.5)

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.dropout = clip, dropout

        def encode_text(self, tokens):
            return self.dropout(self.inner.encode_text(tokens))

    noisy = Noisy().train()
    clip.visual.eval()
    before = [m.training for m in noisy.modules()]
    out = embed_classes(noisy, tokenize, NAMES, TEMPLATES)
    after = [m.training for m in noisy.modules()]
    with pytest.raises(ValueError, match="templates"):
        embed_classes(noisy, tokenize, NAMES, ["no place"])
    clip.eval()
    assert after == before
    assert any(before)
    assert not all(before)
    torch.testing.assert_close(out.tensor, forget.tensor)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_result_is_a_plain_tensor(clip, tokenize, mode):
    with mode():
        out = embed_classes(clip, tokenize, NAMES, TEMPLATES).tensor
    assert not out.requires_grad
    assert not out.is_inference()
    (out * torch.ones(16, requires_grad=True)).sum().backward()


def test_templates_may_be_callables(clip, tokenize, forget):
    makers = [lambda c: f"a photo of a {c}.", "art of the {}.", lambda c: c]
    out = embed_classes(clip, tokenize, NAMES, makers)
    assert out.templates == tuple(TEMPLATES)
    assert torch.equal(out.tensor, forget.tensor)


def test_remembers_the_model(clip, forget, tokenize):
    from clipproj.models.heads import head_hash

    assert forget.model == "CLIP"
    assert forget.head_hash == head_hash(clip) is not None
    assert embed_classes(clip, tokenize, ["cat"], ["{}"], model_name="tiny").model == "tiny"


def test_wrapped_models_are_embedded_as_what_they_wrap(clip, tokenize, forget):
    for model in (torch.compile(clip), nn.DataParallel(clip)):
        out = embed_classes(model, tokenize, NAMES, TEMPLATES)
        assert torch.equal(out.tensor, forget.tensor)
        assert (out.model, out.head_hash) == (forget.model, forget.head_hash)


@pytest.mark.parametrize(
    ("names", "templates", "error", "text"),
    [
        ("cat", TEMPLATES, TypeError, "names must be a list of strings, got the string 'cat'"),
        (None, TEMPLATES, TypeError, "names must be a list of strings, got NoneType"),
        (["cat", 3], TEMPLATES, TypeError, "names must be a list of strings, got int at index 1"),
        ([], TEMPLATES, ValueError, "names must hold at least one string, got none"),
        (["cat", " "], TEMPLATES, ValueError, "names must not be blank, got ' ' at index 1"),
        (["cat", "dog", "cat"], TEMPLATES, ValueError, "names must be distinct, got 'cat' twice"),
        (["cat"], "a {}", TypeError, "templates must be a list, got the string 'a {}'"),
        (["cat"], [], ValueError, "templates must hold at least one string, got none"),
        (["cat"], ["a photo"], ValueError, "templates must hold {} exactly once, got 'a photo'"),
        (["cat"], ["{} {}"], ValueError, "templates must hold {} exactly once, got '{} {}'"),
        (["Cat"], [str.lower], ValueError, "templates must put the name in unchanged, got '{}'"),
        (["cat"], [len], TypeError, "templates must be a list of strings, got int at index 0"),
    ],
)
def test_refuses_bad_words(clip, tokenize, names, templates, error, text):
    with pytest.raises(error, match=r"^embed_classes: " + re.escape(text)):
        embed_classes(clip, tokenize, names, templates)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_refuses_features_without_direction(tokenize, value):
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def encode_text(self, tokens):
            rows = torch.ones(len(tokens), 8)
            rows[1] = value
            return rows

    text = "features must be finite and not zero, got length .* for 'a photo of a dog'"
    with pytest.raises(ValueError, match=text):
        embed_classes(Broken(), tokenize, ["cat", "dog"], ["a photo of a {}"])


def test_refuses_features_per_token(tokenize):
    class PerToken(nn.Linear):
        def encode_text(self, tokens):
            return torch.ones(*tokens.shape, 8)

    with pytest.raises(ValueError, match=r"one feature row for each of 3 .*, got \[3, 77, 8\]"):
        embed_classes(PerToken(2, 2), tokenize, ["cat"], TEMPLATES)


def test_refuses_foreign_models_tokenizers_and_batch_sizes(clip, tokenize):
    with pytest.raises(TypeError, match=r"model must have encode_text .* got Linear"):
        embed_classes(nn.Linear(2, 2), tokenize, NAMES, TEMPLATES)
    with pytest.raises(TypeError, match=r"tokenizer must return a tensor .* got list"):
        embed_classes(clip, list, NAMES, TEMPLATES)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        embed_classes(clip, tokenize, NAMES, TEMPLATES, batch_size=0)
    with pytest.raises(TypeError, match=r"batch_size must be an integer, got 2\.5"):
        embed_classes(clip, tokenize, NAMES, TEMPLATES, batch_size=2.5)
    with pytest.raises(
        TypeError, match=r"^embed_classes: tokenizer must be callable, got NoneType"
    ):
        embed_classes(clip, None, NAMES, TEMPLATES)
    with pytest.raises(ValueError, match="model must have parameters, got Identity with none"):
        embed_classes(nn.Identity(), tokenize, NAMES, TEMPLATES)
    with pytest.raises(TypeError, match=r"^embed_classes: model must be an nn\.Module, got str$"):
        embed_classes("ViT-B-32", tokenize, NAMES, TEMPLATES)
    with pytest.raises(
        TypeError, match="got tuple; unpack what create_model_and_transforms returns"
    ):
        embed_classes((clip, None, None), tokenize, NAMES, TEMPLATES)


# ---- Hugging Face ----


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs transformers")


@pytest.fixture(scope="module")
def words(transformers):
    """A real fast tokenizer over a handful of words."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    vocabulary = ["<pad>", "<bos>", "<unk>", *VOCABULARY, "<eos>"]
    ids = {word: i for i, word in enumerate(vocabulary)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[(w, ids[w]) for w in ("<bos>", "<eos>")]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{f"{kind}_token": f"<{kind}>" for kind in ("pad", "bos", "eos", "unk")},
    )


def tiny(transformers, family: str, tokenizer) -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    shape["num_attention_heads"] = 2
    text = {
        **shape,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = getattr(transformers, f"{family}Config")(
        text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 16}
    )
    model = getattr(transformers, f"{family}Model")(config).eval()
    for parameter in model.parameters():  # the default start is so small that all texts are one
        nn.init.normal_(parameter, std=0.3)
    return model


def test_hugging_face_clip(transformers, words):
    model = tiny(transformers, "CLIP", words)
    out = embed_classes(model, words, NAMES, TEMPLATES)
    expected = []
    for name in NAMES:  # one prompt at a time: no padding to get wrong
        rows = []
        for template in TEMPLATES:
            ids = words([template.format(name)], return_tensors="pt")["input_ids"]
            pooled = model.text_model(input_ids=ids).pooler_output
            rows.append(F.normalize(model.text_projection(pooled), dim=1))
        expected.append(F.normalize(torch.cat(rows).mean(dim=0), dim=0))
    torch.testing.assert_close(out.tensor, torch.stack(expected), atol=1e-5, rtol=0)
    assert (out.tensor @ out.tensor.T).triu(1).max() < 0.999
    assert out.model == "CLIPModel"
    assert out.head_hash is not None


@pytest.mark.parametrize("family", ["Siglip", "Siglip2"])
def test_siglip_texts_are_padded_to_the_full_length(transformers, words, family):
    model = tiny(transformers, family, words)
    seen = []
    model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    out = embed_classes(model, words, NAMES, TEMPLATES)
    assert seen[0]["input_ids"].shape == (12, 16)
    assert seen[0].get("attention_mask") is None
    ids = words("a photo of a cat.")["input_ids"]
    ids = torch.tensor([ids + [words.pad_token_id] * (16 - len(ids))])
    one = embed_classes(model, words, ["cat"], TEMPLATES[:1])
    expected = F.normalize(model.text_model(input_ids=ids).pooler_output, dim=1)
    torch.testing.assert_close(one.tensor, expected, atol=1e-5, rtol=0)
    assert len(out) == 4


def test_the_processor_and_transformers_4_give_the_same(transformers, words):
    model = tiny(transformers, "CLIP", words)
    expected = embed_classes(model, words, NAMES, TEMPLATES)

    class Processor:
        tokenizer = words

    class Version4(transformers.CLIPModel):
        """Returns the tensor itself, as transformers 4 does."""

        def get_text_features(self, input_ids, attention_mask):
            return self.text_projection(self.text_model(input_ids, attention_mask)[1])

    old = Version4(model.config).eval()
    old.load_state_dict(model.state_dict())
    for m, t in [(model, Processor()), (old, words)]:
        assert torch.equal(embed_classes(m, t, NAMES, TEMPLATES).tensor, expected.tensor)


def test_hugging_face_refuses_long_prompts_and_foreign_tokenizers(transformers, words, tokenize):
    model = tiny(transformers, "CLIP", words)
    with pytest.raises(ValueError, match="prompts must fit the model's 16 tokens, got 22 in 'cat"):
        embed_classes(model, words, ["dog", "cat " * 20], ["{}"])
    with pytest.raises(TypeError, match=r"must be a Hugging Face tokenizer .* got SimpleTokenizer"):
        embed_classes(model, tokenize, NAMES, TEMPLATES)


# ---- Embeddings ----


def test_select_and_drop(forget):
    assert len(forget) == 4
    assert forget.dim == 16
    chosen = forget.select(["teapot", "cat"])
    assert chosen.names == ("teapot", "cat")
    assert torch.equal(chosen.tensor, forget.tensor[[3, 0]])
    rest = forget.drop(["dog"])
    assert rest.names == ("cat", "sports car", "teapot")
    assert torch.equal(rest.tensor, forget.tensor[[0, 2, 3]])
    for part in (chosen, rest, forget.to("cpu")):
        assert (part.templates, part.model) == (forget.templates, forget.model)
        assert part.head_hash == forget.head_hash
    with pytest.raises(
        ValueError, match=r"^select: names must be .* got 'teapod'; close: 'teapot'"
    ):
        forget.select(["teapod"])
    with pytest.raises(ValueError, match=r"^drop: names must be among the 4 embedded, got 'xyz'$"):
        forget.drop(["xyz"])
    with pytest.raises(ValueError, match=r"^drop: names must leave at least one row, got all 4"):
        forget.drop(NAMES)
    with pytest.raises(TypeError, match=r"^select: names must be a list .* got the string 'cat'"):
        forget.select("cat")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"tensor": torch.eye(4, 16).double()}, TypeError, "float32 tensor, got torch.float64"),
        ({"tensor": [[1.0]]}, TypeError, "float32 tensor, got list"),
        ({"tensor": torch.eye(3, 16)}, ValueError, r"each of the 4 names, got \[3, 16\]"),
        ({"tensor": torch.ones(4)}, ValueError, r"got \[4\]"),
        ({"tensor": 2 * torch.eye(4)}, ValueError, "unit rows, got length 2 in row 0 .'cat'."),
        ({"tensor": torch.eye(4) / torch.tensor([1, 0, 1, 1])}, ValueError, "nan in row 0"),
        ({"names": ("a", "b", "a", "c")}, ValueError, "names must be distinct, got 'a' twice"),
        ({"names": "abcd"}, TypeError, "names must be a list of strings"),
        ({"templates": ()}, ValueError, "templates must hold at least one string"),
    ],
)
def test_embeddings_are_checked(forget, change, error, text):
    with pytest.raises(error, match=f"^Embeddings: .*{text}"):
        replace(forget, **change)


def test_embeddings_hold_no_graph(forget):
    rows = torch.eye(4, requires_grad=True)
    assert not replace(forget, tensor=rows).tensor.requires_grad
    assert repr(forget).startswith("Embeddings(4 x 16, names=('cat', 'dog', 'sports car', ...)")


# ---- the generic keep list ----


def test_generic_keep_leaves_out_what_is_forgotten(clip, tokenize):
    forget = embed_classes(clip, tokenize, ["Teapot", "beer&#32;glass"], ["a {}"])
    keep = generic_keep(clip, tokenize, forget, threshold=0.9999)
    assert "teapot" not in keep.names  # by name
    assert "beer glass" not in keep.names  # by cosine: the tokenizer reads the entity as a space
    assert 900 < len(keep) <= 996
    assert (keep.templates, keep.model) == (forget.templates, forget.model)
    assert (keep.tensor @ forget.tensor.T).max() <= 0.9999
    fewer = generic_keep(clip, tokenize, forget, threshold=0.9)
    assert set(fewer.names) < set(keep.names)


@pytest.mark.usefixtures("few_names")
def test_generic_keep_leaves_out_another_spelling(clip, tokenize):
    forget = embed_classes(clip, tokenize, ["Beer_Glass"], ["a {}"])
    assert "beer glass" not in generic_keep(clip, tokenize, forget, threshold=1).names


@pytest.fixture
def few_names(monkeypatch) -> int:
    """Fifty generic names instead of a thousand, where the number does not matter."""
    monkeypatch.setattr(
        "clipproj.models.text.imagenet_names", lambda: ("beer glass", *imagenet_names()[:49])
    )
    return 50


def test_generic_keep_compares_like_with_like(clip, tokenize, few_names):
    """Many templates are replaced by seven, on both sides of the comparison."""
    forget = embed_classes(clip, tokenize, ["beer&#32;glass"])
    assert len(forget.templates) == 80
    total = []
    keep = generic_keep(
        clip, tokenize, forget, threshold=0.9999, progress=lambda _, n: total.append(n)
    )
    assert keep.templates[0] == "itap of a {}."
    assert set(total) == {7 * few_names}
    assert "beer glass" not in keep.names


@pytest.mark.usefixtures("few_names")
def test_generic_keep_refusals(clip, tokenize, forget):
    with pytest.raises(ValueError, match=r"threshold must leave at least one of .* got -1"):
        generic_keep(clip, tokenize, forget, templates=["{}"], threshold=-1)
    with pytest.raises(ValueError, match=r"threshold must be a cosine in \[-1, 1\], got 97"):
        generic_keep(clip, tokenize, forget, threshold=97)
    with pytest.raises(ValueError, match=r"forget must be embedded by this model, got .*'CLIP'"):
        generic_keep(clip, tokenize, replace(forget, head_hash="0" * 64))
    with pytest.raises(TypeError, match="forget must be Embeddings, got list"):
        generic_keep(clip, tokenize, NAMES)
    with pytest.raises(TypeError, match=r"^generic_keep: model must be an nn\.Module, got tuple"):
        generic_keep((clip,), tokenize, forget)


@pytest.mark.usefixtures("few_names")
def test_generic_keep_takes_the_model_in_another_dtype(clip, tokenize, forget):
    keep = generic_keep(copy.deepcopy(clip).bfloat16(), tokenize, forget)
    assert keep.head_hash == forget.head_hash


@pytest.mark.usefixtures("few_names")
def test_generic_keep_does_not_round_cosines_under_autocast(clip, tokenize, monkeypatch):
    forget = embed_classes(clip, tokenize, ["beer&#32;glass"], ["a {}"])
    keep = generic_keep(clip, tokenize, forget, threshold=0.9999)
    cosines = (keep.tensor @ forget.tensor.T).flatten().sort().values
    middle = len(keep) // 2
    threshold = float(cosines[middle - 1 : middle + 1].mean())
    plain = embed_classes(clip, tokenize, keep.names, ["a {}"])
    monkeypatch.setattr("clipproj.models.text.imagenet_names", lambda: keep.names)
    monkeypatch.setattr("clipproj.models.text.embed_classes", lambda *_, **__: plain)
    with torch.autocast("cpu", torch.bfloat16):
        half = generic_keep(clip, tokenize, forget, threshold=threshold)
    assert len(half) == middle


def test_a_missing_extra_is_named(clip, tokenize, forget, monkeypatch):
    monkeypatch.setitem(sys.modules, "inflect", None)
    monkeypatch.setitem(sys.modules, "open_clip.zero_shot_metadata", None)
    extra = re.escape("clipproj[cli]")
    with pytest.raises(ImportError, match=extra):
        expand_names(NAMES, plurals=True)
    with pytest.raises(ImportError, match=f"{extra}.*pass templates"):
        embed_classes(clip, tokenize, NAMES)
    with pytest.raises(ImportError, match=extra):
        generic_keep(clip, tokenize, forget)
    assert torch.equal(embed_classes(clip, tokenize, NAMES, TEMPLATES).tensor, forget.tensor)
