"""Image files as they come, opened: upright, on white, the first page."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base
from tiny import save

from clipproj import audit


def test_every_suffix_of_a_format_that_is_read(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for suffix in ("jfif", "jpe", "pnm", "apng"):
        save(tmp_path / "cat" / f"x.{suffix}")
    save(tmp_path / "cat" / "x.pbm", "1")
    assert len(audit.load_images(tmp_path)) == 5
    assert not recwarn.list
    (tmp_path / "cat" / "x.pfm").touch()  # of floating point, which has no white
    with pytest.warns(UserWarning, match=r"left out 1 file .*: 1 \.pfm"):
        audit.load_images(tmp_path)


def test_large_images_are_read_up_to_what_pillow_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    path = save(tmp_path / "cat" / "vast.png")  # 64 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # Pillow would warn
    assert len(audit.load_images(tmp_path)) == 1
    assert audit.open_image(path).size == (8, 8)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)  # and refuse
    for read in (lambda: audit.load_images(tmp_path), lambda: audit.open_image(path)):
        with pytest.raises(ValueError, match=r"vast\.png: Image size \(64 pixels\)"):
            read()


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (10, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("I;16", 256 * 77, (77, 77, 77)),
        ("I;16 tif", 256 * 77 + 255, (77, 77, 77)),
        ("I;16B tif", 256 * 77, (77, 77, 77)),
        ("I pgm", 256 * 77, (77, 77, 77)),
        ("CMYK jpg", (0, 0, 0, 255), (0, 0, 0)),
        ("CMYK tif", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBA webp", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA tif", (10, 20, 30, 0), (255, 255, 255)),
    ],
)
def test_open_image_gives_rgb_with_white_behind(
    mode: str, color: object, expected: tuple, tmp_path: Path
) -> None:
    mode, _, suffix = mode.partition(" ")
    image = audit.open_image(save(tmp_path / f"x.{suffix or 'png'}", mode, color))
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == expected


def png(bits: int, colours: int, pixels: Sequence[int], clear: Sequence[int]) -> io.BytesIO:
    """A row of pixels with numbers of so many bits, one of them transparent by a tRNS chunk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    width = len(pixels) // colours
    packed = "".join(f"{value:0{bits}b}" for value in pixels)
    row = int(packed.ljust(-len(packed) % 8 + len(packed), "0"), 2)
    data = b"\0" + row.to_bytes(-(-len(packed) // 8), "big")
    kind = {1: 0, 3: 2}[colours]
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0))
        + chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in clear))
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("bits", "pixels", "clear", "other"),
    [
        (1, [0, 1], [0], 255),
        (2, [2, 1], [2], 85),
        (4, [5, 10], [5], 170),
        (8, [117, 118], [117], 118),
        (16, [30000, 30001], [30000], 30001 >> 8),
        (8, [1, 2, 3, 9, 9, 9], [1, 2, 3], 9),
        (16, [30000, 20000, 100, 2304, 2304, 2304], [30000, 20000, 100], 9),
    ],
)
def test_the_transparent_colour_of_a_png_is_white_at_any_depth(
    bits: int, pixels: list[int], clear: list[int], other: int
) -> None:
    image = audit.open_image(png(bits, len(clear), pixels, clear))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (other, other, other)]


# how a camera stores an upright image under each EXIF orientation
STORED = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def upright() -> Image.Image:
    rows = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    return Image.fromarray(rows)


def exif(orientation: int, **more: str) -> bytes:
    tags = Image.Exif()
    tags[Base.Orientation] = orientation
    for name, value in more.items():
        tags[Base[name]] = value
    return tags.tobytes()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("png", "RGB"),
        ("png", "I;16"),
        ("webp", "RGB"),
        ("jpg", "RGB"),
        *(("tif", mode) for mode in ("RGB", "L", "RGBA", "CMYK", "P", "I;16", "I;16B")),
    ],
)
def test_an_image_is_read_upright(suffix: str, mode: str, orientation: int, tmp_path: Path) -> None:
    shown = upright().convert("L" if mode.startswith("I;16") else mode)
    stored = shown
    if mode.startswith("I;16"):
        words = np.asarray(shown).astype(np.uint16) << 8
        end = ">u2" if mode == "I;16B" else "<u2"
        stored = Image.frombytes(mode, shown.size, words.astype(end).tobytes())
    shown = shown.convert("RGB")
    if STORED[orientation] is not None:
        stored = stored.transpose(STORED[orientation])
    path, options = tmp_path / f"x.{suffix}", {"jpg": {"quality": 100, "subsampling": 0}}
    stored.save(path, exif=exif(orientation), **options.get(suffix, {"lossless": True}))
    off = np.asarray(audit.open_image(path), int) - np.asarray(shown, int)
    assert np.abs(off).max() <= (3 if suffix == "jpg" else 0)


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
@pytest.mark.parametrize(
    "damaged",
    [b"Exif\0\0garbage garbage", b"Exif\0\0II*\0", b"Exif\0\0", exif(6)[:-8], exif(9)],
    ids=["garbage", "cut header", "empty", "cut tag", "no such orientation"],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_orientation_that_cannot_be_read_is_none(
    damaged: bytes, suffix: str, tmp_path: Path
) -> None:
    upright().save(tmp_path / f"x.{suffix}", exif=damaged)
    assert audit.open_image(tmp_path / f"x.{suffix}").size == (8, 5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Tag data larger than file")
def test_an_orientation_counts_whatever_else_is_damaged(tmp_path: Path) -> None:
    upright().save(tmp_path / "x.png", exif=exif(6, Make="maker" * 10)[:40])
    assert audit.open_image(tmp_path / "x.png").size == (5, 8)


def test_an_orientation_in_xmp_counts(tmp_path: Path) -> None:
    upright().save(tmp_path / "x.jpg", xmp=b'<x tiff:Orientation="8"/>')
    assert audit.open_image(tmp_path / "x.jpg").size == (5, 8)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_the_first_of_several_pages_is_read(suffix: str, tmp_path: Path) -> None:
    pages = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    pages[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=pages[1:], lossless=True)
    assert audit.open_image(tmp_path / f"x.{suffix}").getpixel((0, 0)) == (255, 0, 0)


def tag(path: Path, number: int, value: int) -> None:
    """Write another value over that of a little-endian TIFF's tag."""
    data, entry = path.read_bytes(), struct.pack("<HHI", number, 3, 1)
    place = data.index(entry) + len(entry)
    path.write_bytes(data[:place] + struct.pack("<I", value) + data[place + 4 :])


def test_numbers_whose_white_is_not_known_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / "x.tif"
    for kind in (np.float32, np.int32, np.uint16):
        Image.fromarray(np.ones((8, 8), kind)).save(path)
        if kind == np.uint16:  # which is read, but for this
            assert len(audit.load_images(tmp_path)) == 1
            tag(path, 262, 0)  # 0 is white
        for read in (lambda: audit.load_images(tmp_path), lambda: audit.open_image(path)):
            with pytest.raises(ValueError, match=r"8 bits a channel, .* got .*x\.tif of .* mode"):
                read()


def test_premultiplied_grey_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.tif", "LA", (60, 100))
    tag(path, 338, 1)  # its alpha is in its grey already
    with Image.open(path) as image:
        assert image.mode == "La"
    (value,) = set(audit.open_image(path).getpixel((0, 0)))
    assert abs(value - (60 + 255 - 100)) <= 1


def test_open_image_takes_palettes_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "x.gif", transparency=1)
    assert audit.open_image(tmp_path / "x.gif").getpixel((0, 0)) == (255, 255, 255)


def test_open_image_names_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"cut\.png"):
        audit.open_image(path)
