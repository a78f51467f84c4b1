"""What `audit` and `compare` measure on: a model's images, or features from a file."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from clipproj import demo
from clipproj.audit.images import Images, load_images
from clipproj.audit.samples import Samples, logit_scale
from clipproj.checkpoints.checkpoint import Loaded, load_model
from clipproj.models.encoder import encode, evaluating
from clipproj.models.words import utf8
from clipproj.recipe import Embedder, Progress, Recipe, image_rows, silent
from clipproj.refusal import Refusal
from clipproj.report.formatting import count


@dataclass(frozen=True, eq=False)
class Unedited:
    """Unedited samples, with the model where there is one.

    Attributes:
        samples: images and the texts of all their classes.
        loaded: None for features from a file.
        about: what they come from, for the report.
    """

    samples: Samples
    loaded: Loaded | None
    about: dict[str, str]


def load(
    recipe: Recipe,
    features: Path | None = None,
    say: Progress = silent,
    *,
    loaded: Loaded | None = None,
    prepared: Callable[[Images], Images] | None = None,
) -> Unedited:
    """Samples of the recipe's images under its model, or of a file that `Samples.save` wrote.

    Args:
        loaded: the model, where it has been loaded before.
        prepared: what to make of the images before they are embedded; None: nothing.

    Raises:
        ValueError: for options that exclude each other, no images, and as `load_images`,
            `embed_classes` and `Samples`; FileNotFoundError, RuntimeError: as `Samples.load` and
            `load_model`.
    """
    images = recipe.images
    if features is not None:
        for option, value in (
            ("model", recipe.model), ("pretrained", recipe.pretrained), ("images", images),
            ("template", recipe.templates or None),
        ):  # fmt: skip
            if value is not None:
                why = f"must be left out with features, got {value}"
                raise Refusal(recipe.command, option, why)
        samples = Samples.load(features)
        return Unedited(samples, None, _about(samples, samples.classes.model, features))
    if images is None:
        if recipe.model is not None:
            raise Refusal(recipe.command, "images", "must be a folder of class folders, got none")
        images = demo.images_dir()
    found = load_images(images)
    if prepared is not None:
        found = prepared(found)
    if loaded is None:
        say("model", 0, 1)
        loaded = load_model(recipe.model, recipe.pretrained, recipe.device)
        say("model", 1, 1)
    classes = Embedder(loaded, say, recipe.truncate)(found.classes, recipe.templates or None)
    rows = image_rows(loaded, found, "images", say)
    samples = Samples.of_images(rows, found, classes, scale=logit_scale(loaded.model))
    skipped = sum(found.skipped.values())
    return Unedited(samples, loaded, _about(samples, loaded.name, images, skipped))


def prompt_embedder(loaded: Loaded, truncate: bool = False) -> Callable[[Sequence[str]], Tensor]:
    """From prompts to the model's text features [m, d] on the CPU, 256 at a time.

    ValueError for a prompt that the model would not read to its end, unless `truncate` cuts it.
    """
    device = next(loaded.model.parameters()).device

    def embed(prompts: Sequence[str]) -> Tensor:
        rows = []
        with evaluating(loaded.model), torch.inference_mode(False), torch.no_grad():
            for start in range(0, len(prompts), 256):
                some = list(prompts[start : start + 256])
                cut = [] if truncate else None
                made = encode(loaded.model, loaded.tokenizer, some, device, cut)
                rows.append(made.float().cpu())
                if cut:
                    warnings.warn(f"audit: prompts are cut, such as {cut[0]!r}", stacklevel=2)
        return torch.cat(rows)

    return embed


def in_domains(samples: Samples, patterns: Mapping[str, str]) -> Samples:
    """The samples with the domain of the first pattern that each file name fits.

    Raises ValueError for samples without paths, or a file that fits none.
    """
    if samples.paths is None:
        raise Refusal("audit", "domain", "must come with images, got features without file names")
    nfc = partial(unicodedata.normalize, "NFC")  # as a keyboard types what a Mac took apart
    found = []
    for path in samples.paths:
        file = nfc(path.name)
        name = next((d for p, d in patterns.items() if fnmatchcase(file, nfc(p))), None)
        if name is None:
            raise Refusal(
                "audit",
                "domain",
                f"must cover every image, got none for {path.parent.name}/"
                f"{path.name}; '*=other' covers the rest",
            )
        found.append(name)
    return replace(samples, domains=tuple(found))


def _about(samples: Samples, model: str, source: Path, skipped: int = 0) -> dict[str, str]:
    others = f"; {count(skipped, 'other file')} left out" if skipped else ""
    return {
        "model": model,
        "images": f"{len(samples)} from {source.name}{others}",
        "classes": str(len(samples.names)),
    }


def writable(command: str, out: Path, save_features: Path | None) -> None:
    """Make the output folder; refuse now what could not be written after an hour of measuring.

    Raises ValueError, in the name of `command`, for a file in its place, a missing folder, a path
    that is not UTF-8.
    """
    if out.exists() and not out.is_dir():
        raise Refusal(command, "out", f"must be a folder, got the file {out}")
    if save_features is not None:
        check_utf8(command, "save-features", save_features)
        if not save_features.resolve().parent.is_dir():
            raise Refusal(command, "save-features", f"must be in a folder, got {save_features}")
    out.mkdir(parents=True, exist_ok=True)


def check_utf8(command: str, option: str, path: Path) -> None:
    """Refusal, in the name of `command`, for a path that is not UTF-8."""
    if not utf8(os.path.realpath(path)):  # safetensors would write it and not read it back
        raise Refusal(command, option, f"must be a path in UTF-8, got {str(path)!r}")
