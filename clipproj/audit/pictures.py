"""Labelled pictures in class folders, and the features a model gives them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipproj.encoder import check_tower, evaluating, picture_inputs, tower_features
from clipproj.heads import unwrap

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures and what they show.

    Args:
        paths: n files.
        labels: [n] int64, indices into `classes`.
        classes: distinct class names, sorted.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


def load_pictures(folder: str | os.PathLike[str]) -> Pictures:
    """The pictures of a folder that has one folder per class, as torchvision's ImageFolder.

    A class is named as its folder, with spaces for underscores. Files with another suffix than
    `SUFFIXES` and hidden ones are not looked at. Pictures are opened here and decoded later.

    Raises:
        ValueError: for no folder, no class folders, a class folder without pictures, two folders
            of one name, upper and lower case alike, or a file that is no picture or one larger
            than Pillow opens (twice its MAX_IMAGE_PIXELS).
        ImportError: without Pillow.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"load_pictures: folder must be a folder, got {root}")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and _visible(path))
    if not folders:
        raise ValueError(f"load_pictures: folder must hold a folder for each class, got {root}")
    by_name: dict[str, list[Path]] = {}
    taken: dict[str, Path] = {}  # "cat" and "Cat" have one text: their pictures could only tie
    for path in folders:
        name = path.name.replace("_", " ").strip()
        other = taken.setdefault(name.casefold(), path)
        if other is not path:
            raise ValueError(
                f"load_pictures: classes must be distinct, got two folders {name!r}: "
                f"{other.name!r} and {path.name!r}"
            )
        by_name[name] = sorted(
            file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and _visible(file)
        )
        if not by_name[name]:
            raise ValueError(f"load_pictures: a class must have pictures, got none in {path}")
    classes = tuple(sorted(by_name))
    paths = tuple(path for name in classes for path in by_name[name])
    for path in paths:
        _open(path).close()
    counts = torch.tensor([len(by_name[name]) for name in classes], device="cpu")
    return Pictures(
        paths, torch.arange(len(classes), device="cpu").repeat_interleave(counts), classes
    )


def open_picture(path: str | os.PathLike[str]) -> Image:
    """A decoded RGB picture: transparency on white, the first frame of an animation.

    Raises ValueError, naming the file, for what cannot be read; ImportError without Pillow.
    """
    from PIL import Image

    with _open(path) as image:
        try:
            if image.mode.startswith("I"):  # 16 bits of grey: convert() would clip it to white
                image = image.convert("I").point(lambda value: value / 256).convert("L")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"open_picture: cannot decode {path}: {error}") from error


def image_features(
    model: nn.Module,
    preprocess: Callable[..., Any],
    pictures: Pictures,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """[n, d] float32 features of the pictures as the model gives them, not normalised, on the CPU.

    Args:
        model: open_clip or OpenAI CLIP (`encode_image`), or Hugging Face (`get_image_features`, or
            a `*VisionModelWithProjection`). Dropout and the like are off meanwhile.
        preprocess: open_clip's transform from a picture to a tensor, or a Hugging Face processor.
        progress: called with (pictures done, pictures in all) after each batch.

    Raises:
        TypeError: for an unknown model.
        ValueError: for a picture that cannot be decoded, a model that gives anything but one row
            for each picture, or features that are not finite.
        ImportError: without Pillow.
    """
    if batch_size < 1:
        raise ValueError(f"image_features: batch_size must be at least 1, got {batch_size}")
    model = unwrap(model)
    check_tower("image_features", model, "image")
    rows: list[Tensor] = []
    # inference_mode(False): a caller's inference mode must not make tensors that autograd refuses
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        for start in range(0, len(pictures), batch_size):
            paths = pictures.paths[start : start + batch_size]
            images = [open_picture(path) for path in paths]
            inputs = picture_inputs(model, preprocess, images)
            batch = tower_features("image_features", model, "image", inputs).float().cpu()
            for path, finite in zip(paths, batch.isfinite().all(dim=1).tolist(), strict=True):
                if not finite:
                    raise ValueError(f"image_features: features must be finite, got NaN for {path}")
            rows.append(batch)
            if progress is not None:
                progress(start + len(paths), len(pictures))
        return torch.cat(rows)


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _open(path: str | os.PathLike[str]) -> Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures are read by Pillow: install clipproj[cli]") from error
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is large and refuses what is twice as large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:  # OSError: a foreign file as well
        raise ValueError(
            f"load_pictures: a picture must be readable, got {path}: {error}"
        ) from error
