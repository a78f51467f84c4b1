"""Tiny random-weight models of every family that `find_heads` knows, and a way to encode with them.

The real classes with shrunken configurations: no weights are downloaded. `FAMILIES[name].build()`
gives a model in eval mode, always the same one, with biases that are not zero (their default), so
that an edit that forgets a bias shows.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import torch
import transformers
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from clipproj import ops
from clipproj.models.encoder import features
from clipproj.models.heads import find_heads, head_tensors

WIDTH = 32  # the embedding width of all models here, unless a family fixes it
ROWS = 3


@dataclass(frozen=True)
class Family:
    """How to build one family's model, and what it eats."""

    make: Callable[[], nn.Module]
    image_size: int = 32
    patches: bool = False  # SigLIP2 takes patches with a mask instead of images

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.make().eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
        return model

    def inputs(self, tower: str) -> dict[str, Tensor]:
        """One batch for a tower, under the names that transformers gives its arguments."""
        generator = torch.Generator().manual_seed(1)
        if tower == "text":
            return {"input_ids": torch.randint(3, 64, (ROWS, 8), generator=generator)}
        if self.patches:
            return {
                "pixel_values": torch.randn(ROWS, 4, 3 * 16 * 16, generator=generator),
                "pixel_attention_mask": torch.ones(ROWS, 4, dtype=torch.int64),
                "spatial_shapes": torch.tensor([[2, 2]] * ROWS),
            }
        size = (ROWS, 3, self.image_size, self.image_size)
        return {"pixel_values": torch.randn(size, generator=generator)}

    @torch.no_grad()
    def encode(self, model: nn.Module, tower: str) -> Tensor:
        """Features [ROWS, ..., d] of one tower, not normalised, in the model's dtype."""
        dtype = next(model.parameters()).dtype
        inputs = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in self.inputs(tower).items()
        }
        if encode := getattr(model, f"encode_{tower}", None):
            takes = inspect.signature(encode).parameters  # CoCa normalises unless told otherwise
            raw = {"normalize": False} if "normalize" in takes else {}
            return encode(*inputs.values(), **raw)
        return features(getattr(model, f"get_{tower}_features", model)(**inputs))


def fold_matches(family: Family, model: nn.Module, tower: str, rank: int = 3) -> None:
    """Fold a random null-space edit into a head of `model`: it must do what it does to features."""
    head = find_heads(model)[tower]
    weight, bias = head_tensors(model, head)
    generator = torch.Generator().manual_seed(2)
    read = torch.linalg.qr(torch.randn(head.width, rank, generator=generator))[0].T.contiguous()
    before = family.encode(model, tower).double()
    want = before - (before @ read.T.double()) @ read.double()
    with torch.no_grad():
        ops.fold_(weight, read, read, dim=head.dim)
        if bias is not None:
            ops.fold_(bias, read, read, dim=0)
    got = family.encode(model, tower).double()
    scale = before.norm(dim=-1).max()
    assert (want - before).norm(dim=-1).max() > 1e-2 * scale, "the edit hardly changes a feature"
    assert (got - want).norm(dim=-1).max() < 1e-5 * scale


def openai_package() -> ModuleType:
    """`clip.model` of OpenAI's package, without `clip/__init__.py`.

    That one imports pkg_resources, which setuptools 81 dropped; the model itself needs torch only.
    """
    package = importlib.util.find_spec("clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("OpenAI's CLIP is missing: pip install openai-clip")
    path = Path(package.origin).with_name("model.py")
    spec = importlib.util.spec_from_file_location("clip.model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# open_clip

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
SIGLIP_TEXT = TEXT | {"proj_bias": True, "pool_type": "last", "no_causal_mask": True}
VIT = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}


def timm_tower(name: str, pool: str, proj: str | None, bias: bool = False) -> dict[str, Any]:
    return {
        "timm_model_name": name,
        "timm_pool": pool,
        "timm_proj": proj,
        "timm_proj_bias": bias,
        "timm_model_pretrained": False,
    }


def native(vision: dict[str, Any], text: dict[str, Any] = TEXT) -> open_clip.CLIP:
    return open_clip.CLIP(WIDTH, vision, text)


def custom(vision: dict[str, Any], text: dict[str, Any] = TEXT) -> open_clip.CustomTextCLIP:
    return open_clip.CustomTextCLIP(WIDTH, vision, text)


def coca() -> open_clip.CoCa:
    pooled = {"attentional_pool": True, "attn_pooler_queries": 4, "output_tokens": True}
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    decoder = TEXT | {"attn_pooler_heads": 2}
    return open_clip.CoCa(WIDTH, decoder, text, VIT | pooled)


def hugging_face_text(proj: str | None, width: int = 24) -> open_clip.CustomTextCLIP:
    """A ViT beside a text tower of transformers; its configuration is here, not on a hub."""
    config = transformers.RobertaConfig(**_hf(width=width, max_position_embeddings=16))
    model = custom(VIT)
    known = None if proj == "clap_mlp" else proj
    model.text = HFTextEncoder(
        "tiny", WIDTH, config=config, pooler_type="mean_pooler", proj_type=known or "linear"
    )
    if proj is None:
        model.text.proj = nn.Identity()  # what open_clip does when the widths agree
    elif proj == "clap_mlp":  # the layout that later versions of open_clip build by this name
        model.text.proj = nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    return model


# OpenAI


def openai(layers: int | tuple[int, ...], width: int) -> nn.Module:
    return openai_package().CLIP(WIDTH, 32, layers, width, 16, 8, 64, 64, 1, 1)


# transformers


def _hf(width: int = 32, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 64,
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "bos_token_id": 0,
        "sep_token_id": 2,
    } | more


def _pixels(**more: Any) -> dict[str, Any]:
    return _hf() | {"image_size": 32, "patch_size": 16} | more


def hugging_face(name: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> nn.Module:
    """The model class of transformers by its name, with a configuration of two towers."""
    cls = getattr(transformers, name)
    return cls(cls.config_class(text_config=text, vision_config=vision, **more))


def single_tower(name: str, tower: dict[str, Any]) -> nn.Module:
    cls = getattr(transformers, name)
    return cls(cls.config_class(**tower, projection_dim=WIDTH))


def flava() -> nn.Module:
    towers = {f"{tower}_config": _pixels() for tower in ("image", "text", "multimodal")}
    config = transformers.FlavaConfig(**towers, projection_dim=WIDTH, hidden_size=32)
    return transformers.FlavaModel(config)


def dual_encoder() -> nn.Module:
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**_pixels()),
        transformers.BertConfig(**_hf()),
        projection_dim=WIDTH,
    )
    return transformers.VisionTextDualEncoderModel(config)


_LENGTH = {"max_position_embeddings": 16}
_PROJECTED = {"projection_dim": WIDTH}
_SIGLIP_TEXT = _hf(projection_size=WIDTH, **_LENGTH)
_GROUPS = {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 2]}
_EFFICIENTNET = {
    "image_size": 32,
    "kernel_sizes": [3],
    "in_channels": [32],
    "out_channels": [32],
    "depthwise_padding": [],
    "strides": [1],
    "num_block_repeats": [1],
    "expand_ratios": [1],
    "hidden_dim": WIDTH,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
}


def _two(name: str, **more: Any) -> Family:
    """The plain case: a text and a vision configuration with CLIP's names, one projection width."""
    return Family(lambda: hugging_face(name, _hf(**_LENGTH), _pixels(), **_PROJECTED, **more))


FAMILIES: dict[str, Family] = {
    "open_clip ViT": Family(lambda: native(VIT)),
    "open_clip ViT, average pool": Family(lambda: native(VIT | {"pool_type": "avg"})),
    "open_clip ModifiedResNet": Family(lambda: native(RESNET)),
    "open_clip CustomText ViT": Family(lambda: custom(VIT)),
    "open_clip text Linear": Family(lambda: native(VIT, SIGLIP_TEXT)),
    "open_clip timm linear": Family(lambda: native(timm_tower("test_convnext", "", "linear")), 64),
    "open_clip timm linear with bias": Family(
        lambda: native(timm_tower("test_convnext", "", "linear", bias=True)), 64
    ),
    "open_clip timm mlp": Family(lambda: native(timm_tower("test_convnext", "", "mlp")), 64),
    "open_clip timm attention pool": Family(
        lambda: native(timm_tower("test_convnext", "rot_attn", "")), 160
    ),
    "open_clip timm trunk, ViT": Family(lambda: custom(timm_tower("test_vit", "token", None)), 160),
    "open_clip timm trunk, ResNet": Family(
        lambda: custom(timm_tower("test_resnet", "avg", None)), 64
    ),
    "open_clip timm trunk, no head": Family(
        lambda: custom(timm_tower("test_resnet", "avg", "none")), 64
    ),
    "open_clip EVA02": Family(
        lambda: custom(timm_tower("eva02_tiny_patch14_224", "token", None)), 224
    ),
    "open_clip MobileCLIP": Family(lambda: custom(timm_tower("fastvit_t8", "avg", None)), 64),
    "open_clip PE-Core": Family(
        lambda: custom(timm_tower("vit_pe_core_tiny_patch16_384", "map", None)), 384
    ),
    "open_clip SigLIP": Family(
        lambda: custom(timm_tower("test_vit", "map", "none"), SIGLIP_TEXT), 160
    ),
    "open_clip SigLIP i18n": Family(
        lambda: custom(timm_tower("test_vit", "map", "none"), TEXT | {"proj_type": "none"}), 160
    ),
    "open_clip CoCa": Family(coca),
    "open_clip HF text, linear": Family(lambda: hugging_face_text("linear")),
    "open_clip HF text, mlp": Family(lambda: hugging_face_text("mlp")),
    "open_clip HF text, clap_mlp": Family(lambda: hugging_face_text("clap_mlp")),
    "open_clip HF text, none": Family(lambda: hugging_face_text(None, width=WIDTH)),
    "OpenAI ViT": Family(lambda: openai(1, 64)),
    "OpenAI ModifiedResNet": Family(lambda: openai((1, 1, 1, 1), 8)),
    "CLIPModel": _two("CLIPModel"),
    "CLIPVisionModelWithProjection": Family(
        lambda: single_tower("CLIPVisionModelWithProjection", _pixels())
    ),
    "CLIPTextModelWithProjection": Family(
        lambda: single_tower("CLIPTextModelWithProjection", _hf(**_LENGTH))
    ),
    "ChineseCLIPModel": _two("ChineseCLIPModel"),
    "AltCLIPModel": Family(
        lambda: hugging_face(
            "AltCLIPModel", _hf(project_dim=32, **_LENGTH), _pixels(), **_PROJECTED
        )
    ),
    "MetaClip2Model": _two("MetaClip2Model"),
    "MetaClip2VisionModelWithProjection": Family(
        lambda: single_tower("MetaClip2VisionModelWithProjection", _pixels())
    ),
    "MetaClip2TextModelWithProjection": Family(
        lambda: single_tower("MetaClip2TextModelWithProjection", _hf(**_LENGTH))
    ),
    "CLIPSegModel": _two("CLIPSegModel"),
    "OwlViTModel": _two("OwlViTModel"),
    "Owlv2Model": _two("Owlv2Model"),
    "VisionTextDualEncoderModel": Family(dual_encoder),
    "BlipModel": Family(
        lambda: hugging_face(
            "BlipModel", _hf(encoder_hidden_size=32, **_LENGTH), _pixels(), **_PROJECTED
        )
    ),
    "FlavaModel": Family(flava),
    "GroupViTModel": Family(
        lambda: hugging_face(
            "GroupViTModel",
            _hf(**_LENGTH),
            _pixels(num_hidden_layers=2, **_GROUPS),
            projection_dim=WIDTH,
            projection_intermediate_dim=32,
        )
    ),
    "SiglipModel": Family(lambda: hugging_face("SiglipModel", _SIGLIP_TEXT, _pixels())),
    "Siglip2Model": Family(
        lambda: hugging_face("Siglip2Model", _SIGLIP_TEXT, _hf(patch_size=16, num_patches=4)),
        patches=True,
    ),
    "AlignModel": Family(
        lambda: hugging_face("AlignModel", _hf(**_LENGTH), _EFFICIENTNET, **_PROJECTED), 64
    ),
}

# Those that are classes of transformers themselves: they have from_pretrained.
MODELS = {name: one for name, one in FAMILIES.items() if hasattr(transformers, name)}
