"""A CLIP of 0.8 million weights that answers right, and images for it: what the command needs."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from clipproj.audit.images import image_features, load_images
from clipproj.checkpoints import state
from clipproj.cli.erase import FILES

TEMPLATE = "a {}"
WRITTEN = {*FILES.values(), state.CONFIG}  # all that erase leaves
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3}
COLOURS = {
    "café": (20, 20, 240), "cat": (240, 20, 20), "dog": (20, 240, 20), "fish": (20, 220, 220),
    "owl": (230, 230, 30), "tall_tree": (10, 90, 10),
}  # fmt: skip


def save(path: Path, mode: str = "RGB", color: object = 0) -> Path:
    """An image of one colour, 8 by 8, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), color).save(path)
    return path


def images(folder: Path, count: int = 3) -> Path:
    """One colour a class; two names have what names have: an underscore for a space, an accent."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shade = tuple(max(0, value - 4 * i) for value in colour)
            Image.new("RGB", (16, 16), shade).save(folder / name / f"{i}.png")
    return folder


def model(folder: Path, shown: Path, seed: int = 0) -> Path:
    """An open_clip folder: random towers, heads that put each image of `shown` on its text."""
    torch.manual_seed(seed)
    clip = open_clip.CLIP(**CONFIG).eval()
    found = load_images(shown)
    image, text = clip.visual.proj, clip.text_projection
    clip.visual.proj = clip.text_projection = None
    tokens = open_clip.SimpleTokenizer(context_length=16)([f"a {name}" for name in found.classes])
    preprocess = open_clip.image_transform(16, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    classes = len(found.classes)
    # what all texts share, and what sets each apart: the cosine of any two is 0.64
    targets = 0.6 * torch.eye(classes, 16)
    targets[:, -1] = 0.8
    with torch.no_grad():
        text.copy_(_solve(clip.encode_text(tokens), targets))
        image.copy_(_solve(image_features(clip, preprocess, found), targets[found.labels]))
    clip.visual.proj, clip.text_projection = image, text
    folder.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in clip.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    config = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def _solve(rows: Tensor, targets: Tensor) -> Tensor:
    """The small matrix that takes rows to their targets."""
    rows, targets = rows.double(), targets.double()
    ridge = 1e-6 * rows.square().sum() * torch.eye(rows.shape[1], dtype=torch.float64)
    return torch.linalg.solve(rows.T @ rows + ridge, rows.T @ targets)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
