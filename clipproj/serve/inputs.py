"""What a request holds, and how texts and images become tensors; no model runs here."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipproj.models.encoder import pinned
from clipproj.models.image_files import image_size, open_image
from clipproj.models.tokens import counts, cut_tokens, too_long
from clipproj.serve.errors import ServiceError, invalid, shown

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # what is served, of the many that Pillow reads
MAX_ASPECT = 100  # a row of pixels, resized to the model's height, would be millions wide
IMAGES = 4  # times max_pixels in one request
SHORTEST = 1e-6  # length of an embedding; below, float32 loses its direction on the way


@dataclass(frozen=True)
class Item:
    """One input of a request: a row to come.

    Attributes:
        kind: "text", "image" or "embedding".
        value: a string; the bytes of an image file; or numbers, an array [d] float32.
        projector: names of the tenants whose projectors are applied together; none for nothing.
        strength: in place of the projector's own, or None.
        side: "image" or "text", which of a tenant's two forms is applied; None: that of the kind,
            and of images for an embedding.
    """

    kind: str
    value: Any
    projector: tuple[str, ...] = ()
    strength: float | None = None
    side: str | None = None

    def __post_init__(self) -> None:
        if self.side is None:
            object.__setattr__(self, "side", "text" if self.kind == "text" else "image")


@dataclass(frozen=True)
class Job:
    """What one request asks the engine for.

    Attributes:
        inputs: at least one.
        receipt: whether each row comes with one.
        classes: names to choose from, or None for embeddings. templates: prompts with one `{}`,
            None for open_clip's seven simple ones.
        truncate: whether a text that is too long for the model is cut; else it is an error.
        dimensions: numbers asked for in a row, which must be those the model has; None: these.
    """

    inputs: tuple[Item, ...]
    receipt: bool = False
    classes: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    truncate: bool = False
    dimensions: int | None = None

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Prepared:
    """A job as tensors: of each kind the places of its inputs, and their rows, on the CPU.

    Attributes:
        places: kind to positions in `job.inputs`.
        tensors: kind to tensors: tokens [n, context], pixels [n, 3, h, w], features [n, d].
        tokens: tokens in all texts, without padding.
    """

    job: Job
    places: dict[str, list[int]]
    tensors: dict[str, Tensor]
    tokens: int

    def __len__(self) -> int:
        return len(self.job)


class Preparer:
    """Texts to tokens, image files to pixels, numbers to checked rows. Safe in threads.

    Args:
        preprocess, tokenizer: of open_clip.
        dim: width of features. context: tokens the model reads, or None where it has no limit.
        max_pixels: of an image.
    """

    def __init__(
        self,
        preprocess: Callable[..., Tensor],
        tokenizer: Callable[..., Tensor],
        dim: int,
        context: int | None,
        max_pixels: int = 50_000_000,
    ) -> None:
        self.preprocess, self.tokenizer = preprocess, tokenizer
        self.dim, self.context, self.max_pixels = dim, context, max_pixels

    def __call__(self, job: Job) -> Prepared:
        """Raises ServiceError, naming the input, for one that cannot be read; for `dimensions`
        that are not the model's."""
        if job.dimensions not in (None, self.dim):
            why = f"must be left out or {self.dim}, the width of the model, got {job.dimensions}; "
            why += "the model's numbers are not in order of importance, and what is erased from "
            why += "all of them is not erased from some"
            raise invalid("dimensions", why)
        places: dict[str, list[int]] = {}
        for i, one in enumerate(job.inputs):
            places.setdefault(one.kind, []).append(i)
        tensors: dict[str, Tensor] = {}
        tokens = 0
        for kind, where in places.items():
            values = [job.inputs[i].value for i in where]
            if kind == "text":
                with pinned("cpu"):
                    tensors[kind] = cut_tokens(self.tokenizer, values)
                    cut = [] if job.truncate else too_long(self.tokenizer, values, tensors[kind])
                tokens = sum(counts(self.tokenizer, tensors[kind]))
                for place, whole in cut:
                    why = f"must have at most {self.context} tokens, got {whole}; shorten it or "
                    why += 'send "truncate": true'
                    raise invalid(f"input[{where[place]}]", why, "text_too_long")
            elif kind == "image":
                sizes = [self._size(v, i) for v, i in zip(values, where, strict=True)]
                if sum(sizes) > IMAGES * self.max_pixels:  # a small file may hold many
                    why = f"must have at most {IMAGES} times {self.max_pixels} pixels in all "
                    raise invalid("input", f"{why}images, got {sum(sizes)}", "image_too_large")
                pixels = [self._pixels(v, i) for v, i in zip(values, where, strict=True)]
                tensors[kind] = torch.stack(pixels)
            else:
                rows = [self._given(v, i) for v, i in zip(values, where, strict=True)]
                tensors[kind] = torch.stack(rows)
        return Prepared(job, places, tensors, tokens)

    def _size(self, data: bytes, i: int) -> int:
        """Pixels of an image, from its header."""
        from PIL.Image import DecompressionBombError

        param = f"input[{i}].image"
        try:
            width, height = image_size(io.BytesIO(data), FORMATS)
        except ValueError as error:
            if isinstance(error.__cause__, DecompressionBombError):
                raise self._too_large(param, "more than twice what Pillow opens") from error
            why = f"must be one of {', '.join(FORMATS)}, got another or a damaged header"
            raise invalid(param, why, "invalid_image") from error
        if width * height > self.max_pixels:
            raise self._too_large(param, f"{width} x {height}")
        if max(width, height) > MAX_ASPECT * min(width, height):
            why = f"must be at most {MAX_ASPECT} times as long as wide, got {width} x {height}"
            raise invalid(param, why, "invalid_image")
        return width * height

    def _pixels(self, data: bytes, i: int) -> Tensor:
        try:
            with pinned("cpu"):
                return self.preprocess(open_image(io.BytesIO(data), FORMATS))
        except Exception as error:
            why = "must be whole, got one that is damaged or cut off"
            raise invalid(f"input[{i}].image", why, "invalid_image") from error

    def _too_large(self, param: str, got: str) -> ServiceError:
        why = f"must have at most {self.max_pixels} pixels, got {got}"
        return invalid(param, why, "image_too_large")

    def _given(self, value: np.ndarray, i: int) -> Tensor:
        row = torch.from_numpy(value.copy())  # what came from another process is read-only
        param = f"input[{i}].embedding"
        if len(row) != self.dim:
            why = f"must have {self.dim} numbers, got {len(row)}"
            raise invalid(param, why, "wrong_dimension")
        if not bool(row.isfinite().all()):
            raise invalid(param, "must be finite, got a NaN or inf")
        if not (length := float(row.double().norm())) > SHORTEST:
            raise invalid(param, f"must be longer than {SHORTEST:g}, a direction, got {length:g}")
        return row


def check_prompts(
    tokenizer: Callable[..., Tensor], names: Sequence[str], templates: Sequence[str], what: str
) -> None:
    """Raises ServiceError, naming the name, for a prompt that the model would not read to its end.

    Args:
        what: the field of the request that holds the names.
    """
    for template in templates:
        prompts = [template.replace("{}", name) for name in names]
        with pinned("cpu"):
            tokens = cut_tokens(tokenizer, prompts)
            cut = too_long(tokenizer, prompts, tokens)
        for i, whole in cut:
            why = f"in {shown(template)} must have at most {tokens.shape[1]} tokens, got {whole}"
            raise invalid(f"{what}[{i}]", why, "text_too_long")
