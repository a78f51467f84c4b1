"""Tokenizers of a handful of words, as transformers and open_clip have them."""

from __future__ import annotations

import tokenizers
import torch
import transformers
from torch import Tensor

NAMES = ["cat", "small sports car", "teapot"]  # of different lengths: some are padded
WORDS = ["<bos>", "<pad>", "<eos>", "<unk>", *" ".join(NAMES).split()]


def hugging_face_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A real one over a handful of words, with the special tokens of families.py."""
    ids = {word: i for i, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 2)]
    )
    special = {f"{kind}_token": f"<{kind}>" for kind in ("pad", "bos", "eos", "unk")}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=16, **special
    )


def one_tensor(texts: list[str]) -> Tensor:
    """As open_clip's tokenizers: of one length, the end has the highest number."""
    rows = [[62, *(WORDS.index(word) for word in text.split()), 63] for text in texts]
    return torch.tensor([row + [0] * (8 - len(row)) for row in rows])
