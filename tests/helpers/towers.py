"""Small towers of every family with maps, that do see differences, and images for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clipproj.audit.images import Images, image_features
from clipproj.audit.samples import Samples
from clipproj.models.text import Embeddings

VIT = families.VIT | {"patch_size": 8, "layers": 2}
VITS: dict[str, Callable[[], nn.Module]] = {
    "open_clip": lambda: families.native(VIT),
    "open_clip, average": lambda: families.native(VIT | {"pool_type": "avg"}),
    "open_clip, norm after the average": lambda: families.native(
        VIT | {"pool_type": "avg", "final_ln_after_pool": True}
    ),
    "open_clip, not square": lambda: families.custom(VIT | {"image_size": (32, 16)}),
    "OpenAI": lambda: families.openai(2, 64),
    "CLIPModel": lambda: families.hugging_face(
        "CLIPModel",
        families._hf(max_position_embeddings=16),
        families._pixels(num_hidden_layers=2, patch_size=8),
        projection_dim=families.WIDTH,
    ),
    "ChineseCLIPModel": families.FAMILIES["ChineseCLIPModel"].make,
    "MetaClip2Model": families.FAMILIES["MetaClip2Model"].make,
}
RESNETS: dict[str, Callable[[], nn.Module]] = {
    "open_clip ResNet": lambda: families.native(families.RESNET | {"image_size": 64}),
    "OpenAI ResNet": families.FAMILIES["OpenAI ModifiedResNet"].make,
}
ALL = VITS | RESNETS
NAMES = ("ant", "bee", "cow")


@dataclass
class Setting:
    model: nn.Module
    preprocess: Callable[..., Any]
    images: Images

    def samples(self) -> Samples:
        features = image_features(self.model, self.preprocess, self.images)
        rows = F.normalize(torch.randn(3, features.shape[1]) + F.normalize(features[[0, 2, 4]]))
        classes = Embeddings(rows, NAMES, ("{}",), "random")
        return Samples(features, self.images.labels, classes, paths=self.images.paths)


def preprocess_for(model: nn.Module, size: tuple[int, int]) -> Callable[..., Any]:
    def one(image: Image.Image) -> Tensor:
        data = torch.tensor(list(image.resize(size[::-1]).tobytes()), dtype=torch.float32)
        return (data.view(*size, 3).permute(2, 0, 1) / 255 - 0.5) / 0.25

    if hasattr(model, "encode_image"):
        return one
    return lambda images, return_tensors: {"pixel_values": torch.stack([one(i) for i in images])}


def settings(folder: Path) -> Callable[[str], Setting]:
    """A random model of a family that does see differences, and two images of each class."""

    def make(name: str) -> Setting:
        torch.manual_seed(0)
        model = ALL[name]().eval()
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
            if key.endswith("bn3.weight"):  # zero by default: layers that do nothing
                nn.init.ones_(parameter)
        size = (
            (32, 16)
            if "square" in name
            else (64, 64)
            if name.startswith("open_clip R")
            else (32, 32)
        )
        paths = []
        for i in range(6):
            colours = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8).numpy()
            paths.append(folder / f"{i}.png")
            Image.fromarray(colours).resize((40, 40), Image.Resampling.NEAREST).save(paths[-1])
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        return Setting(model, preprocess_for(model, size), Images(tuple(paths), labels, NAMES))

    return make
