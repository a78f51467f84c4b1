"""Features out of a model, whichever family it and its tokenizer come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def features(output: object) -> Tensor:
    """The feature tensor in what a tower's encode function returned.

    Takes a tensor (`encode_image`, `get_image_features` of transformers 4), or the output object
    of transformers 5, where `get_*_features` puts the projected features in `pooler_output` and a
    `*WithProjection` model in `image_embeds` or `text_embeds`. TypeError for anything else; tuples
    and the output of a whole model's `forward` hold several tensors, so they are refused.
    """
    if isinstance(output, Tensor):
        return output
    names = ("image_embeds", "text_embeds", "pooler_output")
    found = [value for name in names if isinstance(value := getattr(output, name, None), Tensor)]
    if len(found) != 1:
        raise TypeError(
            "features: output must be a tensor or hold exactly one of image_embeds, text_embeds "
            f"and pooler_output, got {type(output).__name__} with {len(found)}"
        )
    return found[0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """eval() inside; afterwards every submodule has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def encode(
    model: nn.Module, tokenizer: Callable[..., Any], prompts: list[str], device: torch.device
) -> Tensor:
    """[len(prompts), d] text features as the model gives them, in its dtype."""
    rows = _encode(model, tokenizer, prompts, device)
    if rows.ndim != 2 or len(rows) != len(prompts):
        raise ValueError(
            f"embed_classes: model must give one feature row for each of {len(prompts)} prompts, "
            f"got {list(rows.shape)}"
        )
    return rows


def _encode(
    model: nn.Module, tokenizer: Callable[..., Any], prompts: list[str], device: torch.device
) -> Tensor:
    if hasattr(model, "encode_text"):
        if not callable(tokenizer):
            got = type(tokenizer).__name__
            raise TypeError(f"embed_classes: tokenizer must be callable, got {got}")
        tokens = tokenizer(prompts)
        if not isinstance(tokens, Tensor):
            raise TypeError(
                "embed_classes: tokenizer must return a tensor for a model with encode_text, as "
                f"open_clip.get_tokenizer's do, got {type(tokens).__name__}"
            )
        return model.encode_text(tokens.to(device))
    if hasattr(model, "get_text_features"):
        tokens = _hugging_face_tokens(model, tokenizer, prompts)
        return features(
            model.get_text_features(**{key: value.to(device) for key, value in tokens.items()})
        )
    raise TypeError(
        "embed_classes: model must have encode_text (open_clip, OpenAI CLIP) or get_text_features "
        f"(Hugging Face), got {type(model).__name__}"
    )


def _hugging_face_tokens(
    model: nn.Module, tokenizer: Callable[..., Any], prompts: list[str]
) -> dict[str, Tensor]:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds one
    if not hasattr(tokenizer, "model_max_length"):
        raise TypeError(
            "embed_classes: tokenizer must be a Hugging Face tokenizer or processor for a model "
            f"with get_text_features, got {type(tokenizer).__name__}"
        )
    config = getattr(model.config, "text_config", model.config)
    limit = min(config.max_position_embeddings, tokenizer.model_max_length)
    for prompt, ids in zip(prompts, tokenizer(prompts)["input_ids"], strict=True):
        if len(ids) > limit:
            raise ValueError(
                f"embed_classes: prompts must fit the model's {limit} tokens, got {len(ids)} in "
                f"{prompt!r}"
            )
    if model.config.model_type.startswith("siglip"):
        # Trained on texts padded to the full length and no mask: anything else is another feature.
        tokens = tokenizer(prompts, padding="max_length", max_length=limit, return_tensors="pt")
        return {"input_ids": tokens["input_ids"]}
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
