"""Models of Hugging Face transformers in folders: load, save, and use them in open_clip's way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipproj.encoder import context_length, default_device, masks_texts, padded
from clipproj.heads import SINGLE_TOWERS, TRANSFORMERS, which_class
from clipproj.state import HF_CONFIG, logged


def load(folder: Path, device: torch.device | str) -> tuple[nn.Module, Any]:
    """The model in eval mode, in the dtype of its weights, and its processor (or tokenizer).

    Nothing is downloaded and no code in the folder is run.

    Raises:
        ImportError: without transformers.
        ValueError: for weights that leave a part of the model as it was initialised, at random;
            for a folder without a tokenizer, its vocabulary, or with that of another model.
        Whatever else transformers raises for a folder that it cannot load.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "load_model: folders with config.json are loaded by transformers: pip install "
            '"clipproj[plugins]"'
        ) from error

    here = {"local_files_only": True, "trust_remote_code": False}  # None would ask, and run it
    config = transformers.AutoConfig.from_pretrained(folder, **here)
    # AutoModel would build a *WithProjection model without its projection
    known = next((name for name in config.architectures or () if name in TRANSFORMERS), "AutoModel")
    with default_device("cpu"):
        model, told = getattr(transformers, known).from_pretrained(
            folder, dtype="auto", output_loading_info=True, **here
        )
    missing = sorted([*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])])
    if missing:
        raise ValueError(
            f"load_model: {folder} must hold all weights of {type(model).__name__}, got none that "
            f"fit for {', '.join(missing[:3])}{', ...' if missing[3:] else ''}"
        )
    processor = transformers.AutoProcessor.from_pretrained(folder, **here)
    _check_words(folder, model, getattr(processor, "tokenizer", processor))
    return model.to(device).eval(), processor


def _check_words(folder: Path, model: nn.Module, tokenizer: Any) -> None:
    """ValueError for what is no tokenizer, or not of this model, or lacks its vocabulary.

    Without its files transformers builds an empty one, for which all texts are the same.
    """
    if not hasattr(tokenizer, "model_max_length"):
        got = type(tokenizer).__name__
        raise ValueError(f"load_model: {folder} must have a tokenizer, got {got} alone")
    if not hasattr(model, "get_text_features") and not which_class(
        model, "transformers", *SINGLE_TOWERS["text"]
    ):
        return  # nothing reads its texts
    size = getattr(model.config, "text_config", model.config).vocab_size
    if len(tokenizer) > size:
        raise ValueError(
            f"load_model: tokenizer of {folder} must fit the {size} tokens of its text tower, "
            f"got {len(tokenizer)}"
        )
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("cat", "dog")]
    if ids[0] == ids[1] or any(not one or tokenizer.unk_token_id in one for one in ids):
        raise ValueError(
            f"load_model: {folder} must hold its tokenizer's vocabulary, got one of "
            f"{len(tokenizer)} tokens that does not know the word cat from dog"
        )


class Tokenizer:
    """A model's tokenizer in open_clip's way: texts to tokens [n, context], cut and padded.

    Args:
        model: of transformers. tokenizer: its own, or a processor that holds one.

    Attributes:
        tokenizer: of transformers, as it takes texts itself.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.context_length = context_length(model, self.tokenizer)
        self._masked = masks_texts(model)

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Tokens [n, context] of n texts on the CPU, int64."""
        return padded(self.tokenizer, texts, context_length or self.context_length)["input_ids"]

    def inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        """What the text tower takes of these tokens: with a mask, less the padding of all rows."""
        if not self._masked:
            return {"input_ids": tokens}
        pad = self.tokenizer.pad_token_id
        lengths = tokens.shape[1] - (tokens != pad).int().flip(1).argmax(1)
        lengths = lengths + (pad == self.tokenizer.eos_token_id)  # CLIP pads with what ends a text
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        longest = int(mask.any(0).sum())
        return {
            "input_ids": tokens[:, :longest],
            "attention_mask": mask[:, :longest].to(tokens.dtype),
        }


class Pixels:
    """An image processor in open_clip's way: a PIL image to pixels [3, h, w].

    Raises ValueError for one that makes more than pixels, as SigLIP 2's with its patches does.
    """

    def __init__(self, processor: Any) -> None:
        from PIL import Image

        self.processor = processor
        made = processor(images=[Image.new("RGB", (32, 32))], return_tensors="pt")
        if set(made) != {"pixel_values"}:
            raise ValueError(
                f"serve: model must take pictures as pixel_values alone, got {', '.join(made)} of "
                f"{type(processor).__name__}"
            )

    def __call__(self, image: Any) -> Tensor:
        return self.processor(images=[image], return_tensors="pt")["pixel_values"][0]


def save(model: nn.Module, processor: Any, folder: Path, edits: list[dict[str, Any]]) -> None:
    """Write what `from_pretrained(folder)` reads, weights in one file, edits in config.json."""
    model.save_pretrained(folder, max_shard_size="1TB")
    processor.save_pretrained(folder)
    config = folder / HF_CONFIG
    config.write_text(logged(config, edits), encoding="utf-8")
