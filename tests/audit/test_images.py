"""Images in class folders, and their features."""

from __future__ import annotations

import math
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save
from torch import Tensor, nn

from clipproj import audit


def test_load_images_reads_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "red_panda" / "b.PNG")
    save(tmp_path / "red_panda" / "a.jpg")
    save(tmp_path / "Bear" / "c.webp")
    save(tmp_path / ".cache" / "d.png")
    save(tmp_path / "Bear" / ".hidden.png")
    images = audit.load_images(tmp_path)
    assert images.classes == ("Bear", "red panda")
    assert [path.name for path in images.paths] == ["c.webp", "a.jpg", "b.PNG"]
    assert images.labels.tolist() == [0, 1, 1]
    assert len(images) == 3
    assert images.skipped == {}


def test_load_images_reads_what_imagefolder_reads(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    root = tmp_path / "root"
    for i, suffix in enumerate(("png", "JPG", "tif", "tiff", "ppm", "pgm", "bmp", "webp")):
        mode = "L" if suffix == "pgm" else "RGB"
        save(root / "cat" / ("2024/may" if i % 2 else "") / f"{i}.{suffix}", mode)
    save(tmp_path / "elsewhere" / "far.png")
    save(root / "dog" / "album.png" / "x.png")  # a folder with the name of an image
    (root / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    images = audit.load_images(root)
    theirs = datasets.ImageFolder(root)
    assert {str(path) for path in images.paths} == {path for path, _ in theirs.imgs}
    assert images.labels.bincount().tolist() == np.bincount(theirs.targets).tolist()
    assert not recwarn.list


def test_links_in_a_circle_are_walked_once(tmp_path: Path) -> None:
    path = save(tmp_path / "cat" / "tabby" / "x.png")
    (tmp_path / "cat" / "tabby" / "up").symlink_to(tmp_path / "cat")
    assert audit.load_images(tmp_path).paths == (path,)


@pytest.mark.parametrize(
    ("link", "to", "shown"),
    [
        ("cat/all", "..", "got .*/cat/all, a link into .*/images$"),
        ("cat/more", "../..", "got .*/cat/more/images, a link into .*/images$"),
        ("cat/other", "../dog", "got .*/cat/other, a link into .*/dog$"),
        ("cat/young", "../dog/puppy", "got .*/cat/young, a link into .*/dog$"),
        ("a_cat", "cat", "got .*/a_cat, a link into .*/cat$"),
        ("puppy", "dog/puppy", "got .*/dog/puppy, a link into .*/puppy$"),
    ],
)
def test_a_link_to_another_class_is_refused(tmp_path: Path, link: str, to: str, shown: str) -> None:
    root = tmp_path / "images"
    for name in ("cat/x.png", "dog/x.png", "dog/puppy/x.png"):
        save(root / name)
    assert len(audit.load_images(root)) == 3
    (root / link).symlink_to(to)
    with pytest.raises(ValueError, match=f"images of its own, {shown}"):
        audit.load_images(root)


def test_classes_may_be_links_to_one_pool(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save(tmp_path / "pool" / name / "x.png")
        (tmp_path / "root").mkdir(exist_ok=True)
        (tmp_path / "root" / name).symlink_to(tmp_path / "pool" / name)
    assert audit.load_images(tmp_path / "root").labels.tolist() == [0, 1]


def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "cat" / "x.png")
    save(tmp_path / "cat" / "closed" / "y.png")
    scandir = os.scandir

    def refuses(path: str | os.PathLike[str]) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(PermissionError, match="closed"):
        audit.load_images(tmp_path)


def test_what_is_left_out_is_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "cat" / "x.png")
    for name in ("cat/a.HEIC", "cat/deep/b.heic", "cat/notes.txt", "cat/LICENSE", "cat/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    save(tmp_path / "stray.jpg")
    (tmp_path / "README.md").write_text("of no class, and no image")
    with pytest.warns(UserWarning, match="left out 5 files of .*: .*2 .heic.*pillow-heif") as said:
        images = audit.load_images(tmp_path)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert len(images) == 1
    assert images.skipped == {
        "in no class folder": 1, ".heic": 2, ".txt": 1, "without a suffix": 1,
    }  # fmt: skip
    (tmp_path / "cat" / "x.png").unlink()
    with pytest.raises(ValueError, match=r"got none in .*cat, only 2 \.heic, .* register pillow-h"):
        audit.load_images(tmp_path)
    # as pillow-heif registers itself
    monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "a.HEIC", "PNG")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "deep" / "b.heic", "PNG")
    with pytest.warns(UserWarning, match="left out 3 files"):
        assert len(audit.load_images(tmp_path)) == 2


def test_a_class_has_one_name_however_its_folder_spells_it(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "crème_brûlée")
    save(tmp_path / apart / "x.png")
    save(tmp_path / "hot\ndog " / "x.png")
    assert audit.load_images(tmp_path).classes == ("crème brûlée", "hot dog")
    save(tmp_path / "Crème Brûlée" / "x.png")
    with pytest.raises(ValueError, match="two folders 'crème brûlée'"):
        audit.load_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xe9", r"UTF-8 .*, got 'caf\\udce9'"),
        (b"\x1b[2J", r"control .*, got '\\x1b\[2J'"),
        ("cat\u200b".encode(), r"invisible .*, got 'cat\\u200b'"),
        (b"_", "not be blank, got '_'"),
    ],
)
def test_a_class_name_that_no_report_can_show_is_refused(
    tmp_path: Path, name: bytes, shown: str
) -> None:
    save(tmp_path / os.fsdecode(name) / "x.png")
    with pytest.raises(ValueError, match=f"class folder must .*{shown} in .*; rename it"):
        audit.load_images(tmp_path)


def test_names_of_files_may_be_any_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "cat" / os.fsdecode(b"caf\xe9.png"), "RGB", "red")
    assert audit.load_images(tmp_path).paths == (path,)
    assert audit.open_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_load_images_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a folder"):
        audit.load_images(tmp_path / "absent")
    with pytest.raises(ValueError, match="a folder for each class"):
        audit.load_images(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"got none in .*cat"):
        audit.load_images(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        audit.load_images(tmp_path)
    save(tmp_path / "cat" / "broken.png")
    save(tmp_path / "a_b" / "x.png")
    save(tmp_path / "a b" / "x.png")
    with pytest.raises(ValueError, match="two folders 'a b'"):
        audit.load_images(tmp_path)


def test_load_images_refuses_classes_that_differ_in_case_alone(tmp_path: Path) -> None:
    save(tmp_path / "Red_panda" / "x.png")
    save(tmp_path / "red panda" / "x.png")
    with pytest.raises(ValueError, match="'Red_panda' and 'red panda'"):
        audit.load_images(tmp_path)


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
    images = audit.load_images(tmp_path)
    seen = []
    with torch.inference_mode():
        features = audit.image_features(
            model, preprocess, images, batch_size=2, progress=lambda *a: seen.append(a)
        )
    assert torch.equal(features, torch.eye(3)[[2, 1, 0]])  # blue, lime, red
    assert features.dtype == torch.float32
    assert not features.is_inference()
    assert not features.requires_grad
    assert model.training  # as it was
    assert seen == [(2, 3), (3, 3)]


def test_image_features_refuses(tmp_path: Path) -> None:
    path = save(tmp_path / "cat" / "x.png")
    images = audit.load_images(tmp_path)
    with pytest.raises(TypeError, match="encode_image"):
        audit.image_features(nn.Linear(2, 2), to_tensor, images)
    with pytest.raises(ValueError, match="batch_size"):
        audit.image_features(OpenClip(), to_tensor, images, batch_size=0)
    broken = OpenClip()
    broken.conv.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match=str(path)):
        audit.image_features(broken, to_tensor, images)
