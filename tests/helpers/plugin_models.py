"""A CLIP of transformers in a folder, with tokenizer and processor, as engines load it."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from families import WIDTH, hugging_face
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

from clipproj import Projector, ProjectorBank

LENGTH = 16


def infinity() -> ModuleType:
    """infinity_emb. It configures the root logger, whose lines other tests would see."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        return pytest.importorskip("infinity_emb", reason="needs infinity_emb")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def clip_folder(folder: Path) -> Path:
    """Random weights; a tokenizer without merges, so that every letter is a token."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    tower["num_attention_heads"] = 2
    ids = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text = tower | ids | {"vocab_size": len(words), "max_position_embeddings": LENGTH}
    vision = tower | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = hugging_face("CLIPModel", text, vision, projection_dim=WIDTH).eval()
    model.save_pretrained(folder)
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=LENGTH)
    size = {"shortest_edge": 32}
    images = transformers.CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def image(i: int, size: int = 32) -> Image.Image:
    """A square of noise, the i-th; its size is what engines sort images by."""
    generator = torch.Generator().manual_seed(i)
    pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def projector(
    k: int = 3, side: str = "image", strength: float = 1.0, seed: int = 0, dim: int = WIDTH
) -> Projector:
    """A random null-space projector."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.linalg.qr(torch.randn(dim, k, generator=generator))[0].T.contiguous()
    return Projector(read, strength=strength, side=side)


def oblique(k: int = 2, side: str = "image") -> Projector:
    """One whose transpose is another."""
    generator = torch.Generator().manual_seed(5)
    read, write = torch.randn(2, k, WIDTH, generator=generator) / WIDTH**0.5
    return Projector(read, write, side=side)


def bank(side: str = "image", dim: int = WIDTH, capacity: int = 64) -> ProjectorBank:
    """Of two tenants, the second with another rank and a strength of its own."""
    made = ProjectorBank(dim, capacity=capacity, side=side)
    made.add("acme", projector(3, side, seed=1, dim=dim))
    made.add("umbrella", projector(2, side, strength=1.5, seed=2, dim=dim))
    return made
