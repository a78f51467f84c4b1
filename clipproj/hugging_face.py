"""Folders of Hugging Face transformers: load a dual encoder with its processor, save it edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipproj.encoder import default_device
from clipproj.heads import TRANSFORMERS
from clipproj.state import HF_CONFIG, logged


def load(folder: Path, device: torch.device | str) -> tuple[nn.Module, Any]:
    """The model in eval mode, in the dtype of its weights, and its processor (or tokenizer).

    Nothing is downloaded and no code in the folder is run.

    Raises:
        ImportError: without transformers.
        ValueError: for weights that leave a part of the model as it was initialised, at random.
        Whatever else transformers raises for a folder that it cannot load.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "load_model: folders with config.json are loaded by transformers: pip install "
            '"clipproj[plugins]"'
        ) from error

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    # AutoModel would build a *WithProjection model without its projection
    known = next((name for name in config.architectures or () if name in TRANSFORMERS), "AutoModel")
    with default_device("cpu"):
        model, told = getattr(transformers, known).from_pretrained(
            folder, local_files_only=True, dtype="auto", output_loading_info=True
        )
    missing = sorted([*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])])
    if missing:
        raise ValueError(
            f"load_model: {folder} must hold all weights of {type(model).__name__}, got none that "
            f"fit for {', '.join(missing[:3])}{', ...' if missing[3:] else ''}"
        )
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    return model.to(device).eval(), processor


def save(model: nn.Module, processor: Any, folder: Path, edits: list[dict[str, Any]]) -> None:
    """Write what `from_pretrained(folder)` reads, weights in one file, edits in config.json."""
    model.save_pretrained(folder, max_shard_size="1TB")
    processor.save_pretrained(folder)
    config = folder / HF_CONFIG
    config.write_text(logged(config, edits), encoding="utf-8")
