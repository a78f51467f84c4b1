"""Folders of transformers, served."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from families import WIDTH
from plugin_models import clip_folder, image

from clipproj import embed_classes
from clipproj.checkpoints.checkpoint import load_model
from clipproj.checkpoints.hugging_face import Pixels, Tokenizer
from clipproj.models.encoder import features
from clipproj.serve.engine import Answer, Engine
from clipproj.serve.errors import ServiceError
from clipproj.serve.inputs import Item, Job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("hf") / "clip")


# The service


def features_of(model: torch.nn.Module, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    rows = []
    for text in texts:  # one at a time: no padding to get wrong
        told = tokenizer([text], return_tensors="pt")
        inputs = {"input_ids": told["input_ids"], "attention_mask": told["attention_mask"]}
        with torch.no_grad():
            rows.append(features(model.get_text_features(**inputs)))
    return torch.cat(rows)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(load_model(str(folder)), capacity=16)


def test_a_folder_is_served(engine: Engine, folder: Path) -> None:
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    texts = ["a cat", "an owl", "dog"]
    shown = image(3)
    data = io.BytesIO()
    shown.save(data, "PNG")
    inputs = (*(Item("text", one) for one in texts), Item("image", data.getvalue()))
    (answer,) = engine.answer([Job(inputs)])
    assert isinstance(answer, Answer), answer
    with torch.no_grad():
        pixels = processor(images=[shown], return_tensors="pt")
        seen = features(model.get_image_features(**pixels))
    want = F.normalize(torch.cat([features_of(model, processor.tokenizer, texts), seen]))
    np.testing.assert_allclose(answer.rows, want.numpy(), atol=1e-5)
    (classified,) = engine.answer([Job(inputs[-1:], classes=("cat", "dog"), templates=("a {}",))])
    classes = embed_classes(model, processor, ["cat", "dog"], ["a {}"]).tensor
    logits = model.logit_scale.detach().exp() * F.normalize(seen) @ classes.T
    np.testing.assert_allclose(classified.probabilities, logits.softmax(1).numpy(), atol=1e-4)


def test_the_service_refuses_long_texts_of_a_folder(engine: Engine) -> None:
    long = Job((Item("text", "a cat and a dog in it"),))
    (refused,) = engine.answer([long])
    assert isinstance(refused, ServiceError)
    assert (refused.status, refused.code) == (400, "text_too_long")
    (cut,) = engine.answer([Job(long.inputs, truncate=True)])
    assert isinstance(cut, Answer)
    named = {"classes": ("sailing boat",), "templates": ("a {} here",)}
    (refused,) = engine.answer([Job((Item("text", "a cat"),), **named)])
    assert (refused.code, refused.param) == ("text_too_long", "classes[0]")


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("name", ["CLIPModel", "ChineseCLIPModel"])
def test_padded_tokens_give_the_features_of_the_text_alone(
    folder: Path, name: str, pad: str
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = pad
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    ids |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "pad_token_id": tokenizer.pad_token_id}
    cls = getattr(transformers, name)
    config = cls.config_class(
        text_config=shape | ids, vision_config=shape | {"image_size": 32, "patch_size": 16},
        projection_dim=WIDTH,
    )  # fmt: skip
    model = cls(config).eval()
    texts = ["a cat", "owl", "a tall tree"]
    ours = Tokenizer(model, tokenizer)
    with torch.no_grad():
        got = features(model.get_text_features(**ours.inputs(ours(texts))))
    torch.testing.assert_close(got, features_of(model, tokenizer, texts), atol=1e-6, rtol=1e-5)


def test_images_that_are_more_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Pixels: .* pixel_values alone, got .*spatial_shapes"):
        Pixels(transformers.Siglip2ImageProcessor())
