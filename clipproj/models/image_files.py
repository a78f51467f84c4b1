"""How an image file is read: the one reader of the command line, the audits and the service."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from clipproj.refusal import Refusal

if TYPE_CHECKING:
    from PIL.Image import Image

    Source = str | PathLike[str] | IO[bytes]

# Pillow's formats of photographs and drawings, of the many that it reads.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PHONE = frozenset({".heic", ".heif"})  # which Pillow reads with a plug-in alone

# Pillow's pixels have 8 bits, but a PNG's transparent colour those of the file: by its raw mode.
_TO_8_BITS = {
    "L;2": lambda grey: grey * 85,
    "L;4": lambda grey: grey * 17,
    "RGB;16B": lambda rgb: tuple(value >> 8 for value in rgb),
}


def readable_suffixes() -> set[str]:
    """Those of `FORMATS` that Pillow has a reader for here. ImportError without Pillow."""
    pillow = _pillow()
    named = pillow.registered_extensions().items()  # first: until then it knows few readers
    read = {suffix for suffix, name in named if name in FORMATS and name in pillow.OPEN}
    return read - {".pfm"}  # of floating point


def image_size(source: Source, formats: Sequence[str] | None = None) -> tuple[int, int]:
    """Width and height as they are stored, from the header alone. Raises as `open_image`."""
    with _opened(source, formats) as image:
        return image.size


def open_image(source: Source, formats: Sequence[str] | None = None) -> Image:
    """A decoded RGB image as a viewer shows it: upright, without transparency, one frame.

    Its EXIF orientation is applied (one that is damaged is none); what is transparent is white; of
    an animation or several pages it is the first. A colour profile is not applied.

    Args:
        source: a path, or a binary file.
        formats: of Pillow's names for formats those that are read; None: all.

    Raises:
        ValueError: naming the file, for one that cannot be read or decoded, one larger than Pillow
            opens (twice its MAX_IMAGE_PIXELS), or pixels whose white is not known: floating point,
            32 bits.
        ImportError: without Pillow.
    """
    with _opened(source, formats) as image:
        try:
            clear = image.info.get("transparency")
            if image.format == "PNG" and clear is not None and image.tile[0][3] in _TO_8_BITS:
                image.info["transparency"] = _TO_8_BITS[image.tile[0][3]](clear)
            image.load()
            return _upright(_on_white(image), _orientation(image))
        except Exception as error:  # Pillow's decoders raise what they like on damaged data
            raise Refusal("open_image", None, f"cannot decode {source}: {error}") from error


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images are read by Pillow: install clipproj[cli]") from error
    return Image


@contextmanager
def _opened(source: Source, formats: Sequence[str] | None) -> Iterator[Any]:
    pillow = _pillow()
    with warnings.catch_warnings(), ExitStack() as ours:
        # Pillow warns of what is large and refuses what is twice as large.
        warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
        try:
            # A file that Pillow opens itself may be mapped into memory, a TIFF to be turned at the
            # stride of the turned one: its pixels come out scrambled.
            file = source if hasattr(source, "read") else ours.enter_context(open(source, "rb"))
            image = pillow.open(file, formats=formats)
        except Exception as error:  # OSError for a foreign file, anything for a damaged header
            foreign = isinstance(error, pillow.UnidentifiedImageError)
            why = "Pillow cannot identify it" if foreign else error
            raise Refusal(
                "open_image", None, f"an image must be readable, got {source}: {why}"
            ) from error
        with image:
            if not _white_is_known(image):
                raise Refusal(
                    "open_image",
                    None,
                    "an image must have 8 bits a channel, or 16 with black at 0, "
                    f"got {source} of Pillow's mode {image.mode}; convert it",
                )
            yield image


def _white_is_known(image: Any) -> bool:
    """False for numbers of any range, which Pillow would clip at 255."""
    if image.mode.startswith("I;16") and image.format == "TIFF":
        bits, photometric = image.tag_v2.get(258), image.tag_v2.get(262)
        return bits == (16,) and photometric == 1
    if image.mode == "I":  # signed or of 32 bits, but for these
        return image.format in ("PNG", "PPM")
    return image.mode != "F"


def _on_white(image: Image) -> Image:
    """A new RGB image."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = _grey_of_16_bits(image)
    if image.mode == "La":  # premultiplied, from which Pillow has no other way
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey_of_16_bits(image: Image) -> Image:
    """In 8 bits, with alpha where one grey is transparent; convert() would clip it to white."""
    from PIL import Image

    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _orientation(image: Image) -> int | None:
    """Of a decoded image, for its EXIF may follow the pixels; TIFFs are upright already."""
    from PIL.ExifTags import Base

    try:
        return image.getexif().get(Base.Orientation)
    except Exception:  # damaged in any way: viewers show such an image as it is stored
        return None


def _upright(image: Image, orientation: int | None) -> Image:
    from PIL import ImageOps
    from PIL.ExifTags import Base

    # Pillow would write the rest of the EXIF anew, which fails where it is damaged.
    image.info.clear()
    image.getexif()[Base.Orientation] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return image
