"""Features out of a model, whichever family it and its tokenizer come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from clipproj.models.families import NORMALISING, TRANSFORMERS, UNMASKED
from clipproj.models.heads import family_of, which_class
from clipproj.models.tokens import cut_tokens, too_long
from clipproj.refusal import Refusal


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
def pinned(device: torch.device | str) -> Iterator[None]:
    """Inside, what others make without saying where or as what is made on `device` in float32, not
    as the caller's defaults say: open_clip's towers, tokenizers and images are made like that."""
    device, dtype = torch.device(device), torch.get_default_dtype()
    try:
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
        with nullcontext() if torch.get_default_device() == device else device:
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)


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
    model: nn.Module,
    tokenizer: Callable[..., Any],
    prompts: list[str],
    device: torch.device,
    cut: list[str] | None = None,
) -> Tensor:
    """[len(prompts), d] text features as the model gives them, in its dtype.

    Takes `cut` and raises as `tokenize`.
    """
    return encode_tokens(model, tokenize(model, tokenizer, prompts, cut), device)


def encode_tokens(model: nn.Module, tokens: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """`encode` of what `tokenize` gave."""
    tokens = {key: value.to(device) for key, value in tokens.items()}
    return tower_features("embed_classes", model, "text", tokens)


def tokenize(
    model: nn.Module,
    tokenizer: Callable[..., Any],
    prompts: list[str],
    cut: list[str] | None = None,
) -> dict[str, Tensor]:
    """What the text tower takes of these prompts, on the CPU.

    Args:
        cut: takes the prompts that are longer than the model reads, which are cut; None: they are
            a ValueError.
    """
    check_tower("embed_classes", model, "text")
    with pinned("cpu"):
        if hasattr(model, "encode_text"):
            return _tokens(tokenizer, prompts, cut)
        return _hugging_face_tokens(model, tokenizer, prompts, cut)


def image_inputs(
    model: nn.Module, preprocess: Callable[..., Any], images: Sequence[Any]
) -> dict[str, Tensor]:
    """What the image tower takes of these PIL images, on the model's device.

    All that a Hugging Face processor makes: SigLIP 2 also wants a mask and the shapes of its
    patches.
    """
    with pinned("cpu"):
        if hasattr(model, "encode_image"):
            made = {"pixel_values": torch.stack([preprocess(image) for image in images])}
        else:
            made = preprocess(images=images, return_tensors="pt")
    device, dtype = next(model.parameters()).device, pixel_dtype(model)
    return {
        key: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for key, value in made.items()
    }


def pixel_dtype(model: nn.Module) -> torch.dtype:
    """That of the first convolution: open_clip keeps other parameters wider."""
    kernels = (p.dtype for p in model.parameters() if p.ndim == 4)
    return next(kernels, next(model.parameters()).dtype)


def check_tower(op: str, model: nn.Module, tower: str) -> None:
    """TypeError, in the name of `op`, for a model whose tower `tower_features` cannot ask."""
    names = (f"encode_{tower}", f"get_{tower}_features")
    family = family_of(model)
    if any(hasattr(model, name) for name in names) or (family and family.single(tower)):
        return
    single = [name for name, known in TRANSFORMERS.items() if known.single(tower)]
    raise TypeError(
        f"{op}: model must have {names[0]} (open_clip, OpenAI CLIP) or {names[1]} (Hugging Face), "
        f"or be {' or '.join(single)}, got {type(model).__name__}"
    )


def tower_features(op: str, model: nn.Module, tower: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """[n, d] features of one tower, not normalised, in the model's dtype.

    Args:
        op: for errors. model: unwrapped. tower: "image" or "text".
        inputs: n of each, by the names that transformers gives them, on the model's device; for
            `encode_*` the tokens or the pixels alone.

    Raises TypeError for an unknown model, ValueError for anything but one row for each input.
    """
    check_tower(op, model, tower)
    first = next(iter(inputs.values()))
    with pinned(first.device):
        if encode := getattr(model, f"encode_{tower}", None):
            raw = {"normalize": False} if which_class(model, "open_clip", *NORMALISING) else {}
            rows = features(encode(*inputs.values(), **raw))
        else:
            rows = features(getattr(model, f"get_{tower}_features", model)(**inputs))
    family = family_of(model)
    if family and family.every_token:
        rows = rows[:, 0]
    n = len(first)
    if rows.ndim != 2 or len(rows) != n:
        what = "prompts" if tower == "text" else "images"
        raise Refusal(
            op, "model", f"must give one feature row for each of {n} {what}, got {list(rows.shape)}"
        )
    return rows


def _check_length(long: list[tuple[str, int]], limit: int, cut: list[str] | None) -> None:
    if long and cut is None:
        prompt, count = long[0]
        raise Refusal(
            "embed_classes",
            "prompts",
            f"must fit the model's {limit} tokens, got {count} in "
            f"{prompt!r}; give truncate to cut them",
        )
    if cut is not None:
        cut += [prompt for prompt, _ in long]


def _tokens(
    tokenizer: Callable[..., Any], prompts: list[str], cut: list[str] | None
) -> dict[str, Tensor]:
    if not callable(tokenizer):
        got = type(tokenizer).__name__
        raise TypeError(f"embed_classes: tokenizer must be callable, got {got}")
    tokens = cut_tokens(tokenizer, prompts)
    if not isinstance(tokens, Tensor):
        raise TypeError(
            "embed_classes: tokenizer must return a tensor for a model with encode_text, as "
            f"open_clip.get_tokenizer's do, got {type(tokens).__name__}"
        )
    if tokens.ndim == 2:
        long = [(prompts[i], count) for i, count in too_long(tokenizer, prompts, tokens)]
        _check_length(long, tokens.shape[1], cut)
    return {"input_ids": tokens}


def _hugging_face_tokens(
    model: nn.Module, tokenizer: Callable[..., Any], prompts: list[str], cut: list[str] | None
) -> dict[str, Tensor]:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds one
    if not hasattr(tokenizer, "model_max_length"):
        raise TypeError(
            "embed_classes: tokenizer must be a Hugging Face tokenizer or processor for a model "
            f"of transformers, got {type(tokenizer).__name__}"
        )
    limit = context_length(model, tokenizer)
    told = zip(prompts, map(len, tokenizer(prompts)["input_ids"]), strict=True)
    _check_length([(prompt, count) for prompt, count in told if count > limit], limit, cut)
    if not masks_texts(model):
        return {"input_ids": padded(tokenizer, prompts, limit)["input_ids"]}
    tokens = padded(tokenizer, prompts, limit, padding=True)
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def padded(
    tokenizer: Any, texts: Sequence[str], length: int, padding: bool | str = "max_length"
) -> Mapping[str, Tensor]:
    """What a tokenizer of transformers makes of texts: cut to `length`, padded on the right.

    A tokenizer saved with padding_side="left", for generation, pads on the left unless told: the
    towers count positions from the first token, and would give other features.
    """
    room = {"truncation": True, "max_length": length, "return_tensors": "pt"}
    return tokenizer(list(texts), padding=padding, padding_side="right", **room)


def context_length(model: nn.Module, tokenizer: Any) -> int:
    """Tokens that a model of transformers reads of a text, with its tokenizer."""
    config: Any = getattr(model.config, "text_config", model.config)
    # of positions that begin after that of the padding, as RoBERTa's do, these are never used
    unused: int = next(
        (
            module.padding_idx + 1
            for name, module in model.named_modules()
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None)
        ),
        0,
    )
    return min(config.max_position_embeddings - unused, tokenizer.model_max_length)


def masks_texts(model: nn.Module) -> bool:
    """Whether a model of transformers takes a mask with its texts."""
    config: Any = model.config
    return not config.model_type.startswith(UNMASKED)
