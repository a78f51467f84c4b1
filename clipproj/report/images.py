"""Images inside a report: data URIs, so that the file needs no other."""

from __future__ import annotations

import base64
import io
import os

from PIL import Image
from torch import Tensor

from clipproj.audit.images import open_image
from clipproj.report.page import Figure

THUMBNAIL = 96  # pixels, the longer side


def image(pixels: Tensor, *, alt: str, caption: str = "") -> Figure:
    """An image from [h, w, 3] uint8, as a PNG."""
    data = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(data, "PNG")
    return Figure(alt, caption, source=_uri("png", data))


def thumbnail(path: os.PathLike[str]) -> str:
    """An image file as a small WEBP. Raises Refusal for one that cannot be read."""
    small = open_image(path)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=85)
    return _uri("webp", data)


def _uri(kind: str, data: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
