"""Pictures as they come, and their features."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clipproj import audit


def save(path: Path, mode: str = "RGB", color: object = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), color).save(path)
    return path


def test_load_pictures_reads_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "red_panda" / "b.PNG")
    save(tmp_path / "red_panda" / "a.jpg")
    save(tmp_path / "Bear" / "c.webp")
    save(tmp_path / ".cache" / "d.png")
    save(tmp_path / "Bear" / ".hidden.png")
    (tmp_path / "Bear" / "notes.txt").write_text("not looked at")
    pictures = audit.load_pictures(tmp_path)
    assert pictures.classes == ("Bear", "red panda")
    assert [path.name for path in pictures.paths] == ["c.webp", "a.jpg", "b.PNG"]
    assert pictures.labels.tolist() == [0, 1, 1]
    assert len(pictures) == 3


def test_load_pictures_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a folder"):
        audit.load_pictures(tmp_path / "absent")
    with pytest.raises(ValueError, match="a folder for each class"):
        audit.load_pictures(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"got none in .*cat"):
        audit.load_pictures(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        audit.load_pictures(tmp_path)
    save(tmp_path / "cat" / "broken.png")
    save(tmp_path / "a_b" / "x.png")
    save(tmp_path / "a b" / "x.png")
    with pytest.raises(ValueError, match="two folders 'a b'"):
        audit.load_pictures(tmp_path)


def test_load_pictures_refuses_classes_that_differ_in_case_alone(tmp_path: Path) -> None:
    save(tmp_path / "Red_panda" / "x.png")
    save(tmp_path / "red panda" / "x.png")
    with pytest.raises(ValueError, match="'Red_panda' and 'red panda'"):
        audit.load_pictures(tmp_path)


def test_large_pictures_are_read_up_to_what_pillow_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    path = save(tmp_path / "cat" / "vast.png")  # 64 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # Pillow would warn
    assert len(audit.load_pictures(tmp_path)) == 1
    assert audit.open_picture(path).size == (8, 8)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)  # and refuse
    for read in (lambda: audit.load_pictures(tmp_path), lambda: audit.open_picture(path)):
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
    ],
)
def test_open_picture_gives_rgb_with_white_behind(
    mode: str, color: object, expected: tuple, tmp_path: Path
) -> None:
    image = audit.open_picture(save(tmp_path / "x.png", mode, color))
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == expected


def test_open_picture_takes_palettes_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "x.gif", transparency=1)
    assert audit.open_picture(tmp_path / "x.gif").getpixel((0, 0)) == (255, 255, 255)


def test_open_picture_names_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"cut\.png"):
        audit.open_picture(path)


class Means(nn.Module):
    """Image features that are the channel means, by open_clip's or Hugging Face's call."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.conv = nn.Conv2d(3, 3, 1, bias=False, dtype=dtype)
        self.conv.weight.data.copy_(torch.eye(3)[:, :, None, None])

    def means(self, pixels: Tensor) -> Tensor:
        return self.drop(self.conv(pixels)).mean(dim=(2, 3))


class OpenClip(Means):
    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.means(pixels)


class HuggingFace(Means):
    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.means(pixel_values)


def to_tensor(image: Image.Image) -> Tensor:
    return torch.tensor(image.getpixel((0, 0)), dtype=torch.float32).div(255)[:, None, None]


def processor(images: list[Image.Image], return_tensors: str) -> dict[str, Tensor]:
    assert return_tensors == "pt"
    return {"pixel_values": torch.stack([to_tensor(image) for image in images])}


@pytest.mark.parametrize(
    ("model", "preprocess"),
    [
        (OpenClip(), to_tensor),
        (OpenClip(torch.bfloat16), to_tensor),
        (HuggingFace(), processor),
    ],
)
def test_image_features(model: nn.Module, preprocess: object, tmp_path: Path) -> None:
    for i, color in enumerate(["red", "lime", "blue"]):
        save(tmp_path / color / f"{i}.png", "RGB", color)
    pictures = audit.load_pictures(tmp_path)
    seen = []
    with torch.inference_mode():
        features = audit.image_features(
            model, preprocess, pictures, batch_size=2, progress=lambda *a: seen.append(a)
        )
    assert torch.equal(features, torch.eye(3)[[2, 1, 0]])  # blue, lime, red
    assert features.dtype == torch.float32
    assert not features.is_inference()
    assert not features.requires_grad
    assert model.training  # as it was
    assert seen == [(2, 3), (3, 3)]


def test_image_features_refuses(tmp_path: Path) -> None:
    path = save(tmp_path / "cat" / "x.png")
    pictures = audit.load_pictures(tmp_path)
    with pytest.raises(TypeError, match="encode_image"):
        audit.image_features(nn.Linear(2, 2), to_tensor, pictures)
    with pytest.raises(ValueError, match="batch_size"):
        audit.image_features(OpenClip(), to_tensor, pictures, batch_size=0)
    broken = OpenClip()
    broken.conv.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match=str(path)):
        audit.image_features(broken, to_tensor, pictures)
