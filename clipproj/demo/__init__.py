"""The embedded model: a small CLIP trained on emoji drawings, and images it has never seen.

It is an ordinary open_clip checkpoint in a folder, so the code path of the demo is the one of any
model: `open_clip.create_model_and_transforms(f"local-dir:{model_dir()}")`. How it was made is in
`tools/README.md`; who drew the images is in `ATTRIBUTION.md`.
"""

from __future__ import annotations

from pathlib import Path

NAME = "clipproj-demo-rn"

__all__ = ["NAME", "class_names", "images_dir", "model_dir"]


def model_dir() -> Path:
    """The folder with the weights and the configuration, as open_clip's `local-dir:` wants it."""
    return Path(__file__).parent


def images_dir() -> Path:
    """The held-out images: one folder per class, `<class>/<code point>-<drawing style>.png`."""
    return model_dir() / "images"


def class_names() -> list[str]:
    """The classes that have held-out images, sorted."""
    return sorted(folder.name for folder in images_dir().iterdir() if folder.is_dir())
