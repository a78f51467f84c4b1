"""Labelled images in class folders, and the features a model gives them."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipproj.models.encoder import check_tower, evaluating, image_inputs, tower_features
from clipproj.models.heads import unwrap
from clipproj.models.image_files import PHONE, image_size, open_image, readable_suffixes
from clipproj.models.words import canonical, name_fault, name_key
from clipproj.refusal import Refusal

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Images:
    """Images and what they show.

    Args:
        paths: n files.
        labels: [n] int64, indices into `classes`.
        classes: distinct class names, sorted.
        skipped: how many other files the folder holds that are not read, by kind.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)


def load_images(folder: str | os.PathLike[str]) -> Images:
    """The images of a folder that has one folder per class, as torchvision's ImageFolder.

    They may lie in folders below that of their class, behind links too, but not where another
    class has its own. A class is named as its
    folder, in the one spelling of `canonical`. Hidden files are not looked at; those
    of another suffix than `readable_suffixes` are left out with a warning, as are images beside
    the class folders. Images are opened here and decoded later.

    Raises:
        ValueError: for no folder, no class folders, a class folder without images, two folders
            of one name (`name_key`), a link to another class or to all of them, a name that
            `name_fault` finds fault with, or a file that `open_image` refuses by
            its header.
        OSError: for a folder that cannot be read.
        ImportError: without Pillow.
    """
    root = Path(folder)
    if not root.is_dir():
        raise Refusal("load_images", "folder", f"must be a folder, got {root}")
    entries = sorted(path for path in root.iterdir() if _visible(path.name))
    folders = [path for path in entries if path.is_dir()]
    if not folders:
        raise Refusal("load_images", "folder", f"must hold a folder for each class, got {root}")
    readable = readable_suffixes()
    beside = sum(_kind(path) in readable | PHONE and path.is_file() for path in entries)
    skipped = Counter({"in no class folder": beside} if beside else {})
    # of two that are one place the link is the other's
    reals = {path.resolve(): path for path in sorted(folders, key=lambda one: not one.is_symlink())}
    by_name: dict[str, list[Path]] = {}
    taken: dict[str, Path] = {}  # "cat" and "Cat" have one text: their images could only tie
    for path in folders:
        name = _class_name(path)
        other = taken.setdefault(name_key(name), path)
        if other is not path:
            raise Refusal(
                "load_images",
                "classes",
                f"must be distinct, got two folders {name!r}: {other.name!r} and {path.name!r}",
            )
        files = sorted(_files(path, reals))
        by_name[name] = [file for file in files if _kind(file) in readable]
        others = Counter(kind for kind in map(_kind, files) if kind not in readable)
        if not by_name[name]:
            only = f", only {_listed(others)}" if others else ""
            raise Refusal(
                "load_images", None, f"a class must have images, got none in {path}{only}"
            )
        skipped += others
    if skipped:
        left = skipped.total()
        warnings.warn(
            f"load_images: left out {left} file{'s' * (left != 1)} of {root}: {_listed(skipped)}",
            stacklevel=2,
        )
    classes = tuple(sorted(by_name))
    paths = tuple(path for name in classes for path in by_name[name])
    for path in paths:
        image_size(path)
    counts = torch.tensor([len(by_name[name]) for name in classes], device="cpu")
    labels = torch.arange(len(classes), device="cpu").repeat_interleave(counts)
    return Images(paths, labels, classes, dict(skipped))


def image_features(
    model: nn.Module,
    preprocess: Callable[..., Any],
    images: Images,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """[n, d] float32 features of the images as the model gives them, not normalised, on the CPU.

    Args:
        model: open_clip or OpenAI CLIP (`encode_image`), or Hugging Face (`get_image_features`, or
            a `*VisionModelWithProjection`). Dropout and the like are off meanwhile.
        preprocess: open_clip's transform from an image to a tensor, or a Hugging Face processor.
        progress: called with (images done, images in all) after each batch.

    Raises:
        TypeError: for an unknown model.
        ValueError: for an image that cannot be decoded, a model that gives anything but one row
            for each image, or features that are not finite.
        ImportError: without Pillow.
    """
    if batch_size < 1:
        raise Refusal("image_features", "batch_size", f"must be at least 1, got {batch_size}")
    model = unwrap(model)
    check_tower("image_features", model, "image")
    rows: list[Tensor] = []
    # inference_mode(False): a caller's inference mode must not make tensors that autograd refuses
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        for start in range(0, len(images), batch_size):
            paths = images.paths[start : start + batch_size]
            opened = [open_image(path) for path in paths]
            inputs = image_inputs(model, preprocess, opened)
            batch = tower_features("image_features", model, "image", inputs).float().cpu()
            for path, finite in zip(paths, batch.isfinite().all(dim=1).tolist(), strict=True):
                if not finite:
                    raise Refusal(
                        "image_features", "features", f"must be finite, got NaN for {path}"
                    )
            rows.append(batch)
            if progress is not None:
                progress(start + len(paths), len(images))
        return torch.cat(rows)


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _class_name(folder: Path) -> str:
    if fault := name_fault(folder.name):
        raise Refusal(
            "load_images",
            None,
            f"the name of a class folder {fault}, got {folder.name!r} in "
            f"{folder.parent}; rename it",
        )
    return canonical(folder.name)


def _files(folder: Path, reals: Mapping[Path, Path]) -> Iterator[Path]:
    """All files below a class folder; what links lead to twice, or round in a circle, once.

    Args:
        reals: the folders of all classes by where they are without links.

    Raises ValueError where a link leads to another class: its images would be labelled as this.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    root = folder.parent.resolve()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        place = Path(real)
        owner = next((reals[one] for one in (place, *place.parents) if one in reals), folder)
        if owner != folder or place == root:
            raise Refusal(
                "load_images",
                None,
                f"a class must have images of its own, got {here}, a link into "
                f"{root if place == root else owner}",
            )
        seen.add(real)
        folders[:] = sorted(filter(_visible, folders))
        yield from (Path(here, name) for name in files if _visible(name))


def _kind(file: Path) -> str:
    return file.suffix.lower() or "without a suffix"


def _listed(skipped: Counter[str]) -> str:
    shown = [f"{number} {kind}" for kind, number in skipped.most_common(5)]
    text = ", ".join(shown) + (", ..." if len(skipped) > 5 else "")
    if PHONE & skipped.keys():
        text += " (convert what is .heic, or register pillow-heif with Pillow)"
    return text
