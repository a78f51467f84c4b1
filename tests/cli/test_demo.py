"""The embedded model: it is small, it is open_clip's, it works, and its images have authors."""

from __future__ import annotations

from pathlib import Path

import pytest

open_clip = pytest.importorskip("open_clip")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402

from clipproj import demo  # noqa: E402

IMAGES = sorted(demo.images_dir().glob("*/*.png"))
DOMAINS = {
    "flat colour": {"twemoji", "fluent-emoji-flat", "fxemoji"},
    "shaded colour": {"noto", "noto-v1", "fluent-emoji", "emojione"},
    "line drawing": {"noto-mono", "symbola"},
    "stencil": {"fluent-emoji-high-contrast", "emojione-monotone"},
    "outlined colour": {"streamline-emojis"},
}


def style(image: Path) -> str:
    return image.stem.split("-", 1)[1]


@pytest.fixture(scope="module")
def right() -> torch.Tensor:
    """[n] bool: which images a zero-shot classifier names correctly."""
    source = f"local-dir:{demo.model_dir()}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    model.eval()
    names = demo.class_names()
    labels = torch.tensor([names.index(p.parent.name) for p in IMAGES])
    images = torch.stack([preprocess(Image.open(p)) for p in IMAGES])
    with torch.inference_mode():
        texts = open_clip.build_zero_shot_classifier(
            model, open_clip.get_tokenizer(source), names, open_clip.OPENAI_IMAGENET_TEMPLATES
        )
        features = F.normalize(model.encode_image(images), dim=-1)
    return (features @ texts).argmax(1) == labels


def test_fits_in_the_package() -> None:
    files = [f for f in demo.model_dir().rglob("*") if f.is_file() and f.suffix != ".pyc"]
    assert sum(f.stat().st_size for f in files) <= 15e6


def test_has_classes_and_domains() -> None:
    assert len(demo.class_names()) >= 39
    assert "cat" in demo.class_names()
    shown = {style(p) for p in IMAGES}
    assert shown <= set().union(*DOMAINS.values())
    assert all(shown & styles for styles in DOMAINS.values())


def test_names_held_out_images(right: torch.Tensor) -> None:
    assert right.float().mean() >= 0.70


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_domain_is_lost(right: torch.Tensor, domain: str) -> None:
    rows = torch.tensor([style(p) in DOMAINS[domain] for p in IMAGES])
    assert right[rows].float().mean() >= 0.5


def test_every_style_is_attributed() -> None:
    text = (demo.model_dir() / "ATTRIBUTION.md").read_text()
    assert [s for s in {style(p) for p in IMAGES} if f"| `{s}` |" not in text] == []
