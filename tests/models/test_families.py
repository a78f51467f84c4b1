"""Every family that `find_heads` knows goes through every helper: edits, texts and images.

What a model gives is held against its own `forward()`, the way its logits are made; a tower that a
model does not have is refused by the model's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from editing import bits, projector
from families import FAMILIES, Family
from PIL import Image
from torch import Tensor, nn
from word_tokenizers import NAMES, hugging_face_tokenizer, one_tensor

import clipproj
from clipproj.audit.images import Images, image_features
from clipproj.models.encoder import encode, image_inputs
from clipproj.models.families import TRANSFORMERS
from clipproj.models.heads import find_heads


def build(family: Family) -> nn.Module:
    """Its model with weights so large that no two inputs give one feature."""
    model = family.build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter += 0.1 * torch.randn_like(parameter)
            elif parameter.ndim and not parameter.any():  # layers that begin as nothing
                parameter.fill_(1)
    return model


def to_pixels(image: Image.Image) -> Tensor:
    data = torch.tensor(list(image.tobytes()), dtype=torch.float32)
    return data.view(*image.size, 3).permute(2, 0, 1) / 128 - 1


def readers(family: Family, model: nn.Module) -> tuple[Any, Callable[..., Any]]:
    """The tokenizer and the preprocessing that belong to a model."""
    if hasattr(model, "encode_text"):
        return one_tensor, to_pixels
    if family.patches:
        return hugging_face_tokenizer(), transformers.Siglip2ImageProcessor(
            patch_size=16, max_num_patches=4
        )
    size = {"height": family.image_size, "width": family.image_size}
    processor = transformers.CLIPImageProcessor(size=size, crop_size=size)
    return hugging_face_tokenizer(), processor


@pytest.fixture
def images(tmp_path: Path) -> Callable[[Family], Images]:
    def make(family: Family) -> Images:
        size = family.image_size
        paths = []
        for i in range(3):
            wide = size + (8 * i if family.patches else 0)  # these keep their shapes
            blocks = Image.fromarray(torch.randint(0, 256, (2, 2, 3), dtype=torch.uint8).numpy())
            paths.append(tmp_path / f"{i}.png")
            blocks.resize((wide, size), Image.Resampling.NEAREST).save(paths[-1])
        return Images(tuple(paths), torch.zeros(3, dtype=torch.int64), ("a",))

    return make


def own_tokens(model: nn.Module, tokenizer: Any, name: str) -> dict[str, Tensor]:
    """One text, so that there is no padding to get wrong, but for SigLIP, trained on it."""
    if hasattr(model, "encode_text"):
        return {"input_ids": one_tensor([name])}
    kind = "max_length" if model.config.model_type.startswith("siglip") else False
    tokens = tokenizer([name], padding=kind, max_length=16, return_tensors="pt")
    return {"input_ids": tokens["input_ids"]}


@torch.no_grad()
def forward(model: nn.Module, texts: dict[str, Tensor], pixels: dict[str, Tensor]) -> Any:
    """Unit rows of texts and images by the model's own forward(), or their cosines alone."""
    if isinstance(model, transformers.FlavaModel):  # its forward() does not project
        whole = transformers.FlavaForPreTraining(model.config, image_codebook=nn.Identity()).eval()
        whole.flava = model
        ids = {"input_ids": texts["input_ids"], "input_ids_masked": texts["input_ids"]}
        out = whole(**ids, **pixels, return_loss=False, skip_unmasked_multimodal_encoder=True)
        return out.contrastive_logits_per_text / model.logit_scale.exp()
    if not hasattr(model, "encode_text"):
        towers = {"text": texts, "image": pixels}
        if "Text" in type(model).__name__.replace("VisionText", ""):
            towers.pop("image")
        elif "VisionModelWith" in type(model).__name__:
            towers.pop("text")
        out = model(**{key: value for one in towers.values() for key, value in one.items()})
        return tuple(F.normalize(out[f"{tower}_embeds"], dim=1) for tower in towers)
    out = model(*pixels.values(), *texts.values())
    if isinstance(out, dict):
        return out["text_features"], out["image_features"]
    if len(out) == 2:  # OpenAI's
        return out[1] / model.logit_scale.exp()
    return out[1], out[0]


def has(model: nn.Module, tower: str) -> bool:
    return not (find_heads(model)[tower].reason or "").startswith("the model has no")


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_and_images_are_those_of_the_models_forward(
    name: str, images: Callable[[Family], Images]
) -> None:
    family = FAMILIES[name]
    model, shown = build(family), images(family)
    tokenizer, preprocess = readers(family, model)
    got = {}
    for tower, give in (
        ("text", lambda: clipproj.embed_classes(model, tokenizer, NAMES, ["{}"]).tensor),
        ("image", lambda: F.normalize(image_features(model, preprocess, shown), dim=1)),
    ):
        if has(model, tower):
            got[tower] = give()
            assert len(got[tower]) == 3
            assert F.pdist(got[tower]).min() > 1e-3, "inputs look alike"
        else:
            refusal = rf": model must have encode_{tower} .*, got {type(model).__name__}$"
            with pytest.raises(TypeError, match=refusal):
                give()
    opened = [Image.open(path) for path in shown.paths]
    pixels = image_inputs(model, preprocess, opened) if "image" in got else {}
    for row in range(3):
        texts = own_tokens(model, tokenizer, NAMES[row]) if "text" in got else {}
        one = {key: value[row : row + 1] for key, value in pixels.items()}
        mine = [rows[row : row + 1] for rows in got.values()]
        wanted = forward(model, texts, one)
        if isinstance(wanted, Tensor):
            mine, wanted = [mine[0] @ mine[1].T], [wanted]
        for ours, theirs in zip(mine, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:edit. .*text")
@pytest.mark.parametrize("name", FAMILIES)
def test_an_edit_shows_in_texts_and_images_is_verified_and_undone(
    name: str, images: Callable[[Family], Images]
) -> None:
    family = FAMILIES[name]
    model, shown = build(family), images(family)
    tokenizer, preprocess = readers(family, model)

    def rows(tower: str) -> Tensor:
        if tower == "image":
            return image_features(model, preprocess, shown)
        with torch.no_grad():
            return encode(model, tokenizer, NAMES, torch.device("cpu"))

    original = bits(model)
    for head in find_heads(model):
        p = projector(side=head.tower)
        if not head.foldable:
            with pytest.raises(ValueError, match=re.escape(head.reason)):
                clipproj.edit(model, p, tower=head.tower)
            continue
        before = rows(head.tower)
        edit = clipproj.edit(model, p, tower=head.tower)
        assert clipproj.verify(model, edit.receipt)
        want = p(before)
        assert (want - before).norm() > 1e-2 * before.norm(), "the edit hardly changes a feature"
        assert (rows(head.tower) - want).norm() < 1e-5 * before.norm()
        edit.undo()
        assert bits(model) == original
        assert torch.equal(rows(head.tower), before)


def test_the_table_of_the_docs_is_the_table_of_find_heads() -> None:
    page = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| tr")]
    table = {name: [image, text] for names, image, text in lines
             for name in re.findall(r"`(\w+)`", names)}  # fmt: skip
    assert set(table) == set(TRANSFORMERS)
    for name, family in TRANSFORMERS.items():
        for cell, site in zip(table[name], (family.image, family.text), strict=True):
            assert (f"`{site}`" in cell) == isinstance(site, str), (name, cell)
            assert ("none" in cell) == (not isinstance(site, str)), (name, cell)
