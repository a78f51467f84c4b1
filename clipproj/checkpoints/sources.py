"""What open_clip is asked for: a name as an architecture, a file or a tag, and its activation."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from clipproj.checkpoints.state import CONFIG, INDEX, WEIGHTS, locate, read_state, write_state
from clipproj.refusal import Refusal

QUICK = "-quickgelu"  # how open_clip's names of architectures that use QuickGELU end


def source_of(name: str | None, pretrained: str | None) -> tuple[str, str, Path | None]:
    """What open_clip is asked for, what the model is called, and the local file it comes from."""
    import open_clip

    if name is None:
        from clipproj import demo

        if pretrained:
            raise Refusal("load_model", "pretrained", "must come with a model, got none")
        folder = demo.model_dir()
        return f"local-dir:{folder}", demo.NAME, folder / WEIGHTS
    folder = Path(name.removeprefix("local-dir:"))
    if name.startswith("local-dir:") or folder.is_dir():
        if pretrained:
            raise Refusal("load_model", "pretrained", f"must be left out with a folder, got {name}")
        if not (folder / CONFIG).is_file():
            raise Refusal(
                "load_model",
                "model",
                f"must be a folder with {CONFIG}, or of transformers with "
                f"config.json, got {folder}",
            )
        try:
            return f"local-dir:{folder}", str(folder), locate(folder)
        except FileNotFoundError:  # open_clip may still find a file of another name
            return f"local-dir:{folder}", str(folder), folder
    if name.startswith("hf-hub:"):
        if pretrained:
            raise Refusal("load_model", "pretrained", f"must be left out with hf-hub:, got {name}")
        return name, name, None
    known = open_clip.list_models()
    name = name.replace("/", "-")
    if name not in known:
        raise Refusal(
            "load_model",
            "model",
            "must be a folder, hf-hub:ORG/REPO or an open_clip architecture, got "
            f"{name!r}{_close(name, known)}",
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not pretrained:
        raise Refusal(
            "load_model",
            None,
            f"{name} needs pretrained weights, a checkpoint file or {_listed(tags)}",
        )
    if open_clip.is_pretrained_cfg(name, pretrained):  # first, as open_clip looks
        return name, f"{name} ({pretrained})", None
    if not Path(pretrained).is_file():
        raise Refusal(
            "load_model",
            "pretrained",
            f"must be a file or {_listed(tags)}, got {pretrained!r}{_close(pretrained, tags)}",
        )
    return name, f"{name} ({Path(pretrained).name})", Path(pretrained)


def model_config(source: str, tag: str | None) -> dict[str, Any]:
    """What builds the model again: the architecture's configuration, with the tag's activation."""
    import open_clip

    config = deepcopy(open_clip.get_model_config(source))
    told = {} if tag is None else open_clip.get_pretrained_cfg(source, tag)
    if "quick_gelu" in told:  # else what the architecture says: roberta-ViT-B-32 says QuickGELU
        config["quick_gelu"] = told["quick_gelu"]
    return config


@contextmanager
def whole(
    source: str, pretrained: str | None, checkpoint: Path | None
) -> Iterator[tuple[str, str | None]]:
    """(source, pretrained) as open_clip takes them: shards, which it does not read, are joined."""
    if checkpoint is None or not checkpoint.name.endswith(INDEX):
        yield source, pretrained
        return
    with tempfile.TemporaryDirectory() as made:
        joined = Path(made) / WEIGHTS
        write_state(joined, read_state(checkpoint), [])
        if pretrained:
            yield source, str(joined)
            return
        for file in checkpoint.parent.iterdir():  # the configuration and the tokenizer
            if file.is_file():
                (Path(made) / file.name).symlink_to(file.resolve())
        yield f"local-dir:{made}", None


def activation_note(source: str, shown: str, checkpoint: Path | None) -> str | None:
    """Of an architecture that is known with either activation, and a file that does not say it."""
    import open_clip

    other = f"{source}{QUICK}"
    if checkpoint is None or other not in open_clip.list_models():
        return None
    return (
        f"load_model: a file does not say its activation, {shown} is built with GELU; if it was "
        f"trained with QuickGELU, as OpenAI's weights were, its architecture is {other} "
        f"(--model {other})"
    )


def _listed(tags: list[str]) -> str:
    if not tags:
        return "a tag (open_clip knows none for it)"
    return f"one of the tags {', '.join(tags[:6])}{', ...' if len(tags) > 6 else ''}"


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f"; close: {', '.join(close)}" if close else ""
