"""Which texts a model would not read to their end: one rule for API, command and service.

Tokenizers of open_clip cut silently. What fills its row may have been cut, and is tokenized again
with room for all of it: an uncut text differs in padding alone.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def cut_tokens(tokenizer: Callable[..., Any], texts: Sequence[str], **options: Any) -> Any:
    """Tokens of the texts, cut to the model's context; OpenAI's `clip.tokenize` raises unasked."""
    if _takes(tokenizer, "truncate"):
        options["truncate"] = True
    return tokenizer(list(texts), **options)


def counts(tokenizer: Callable[..., Any], tokens: Tensor) -> list[int]:
    """Tokens of each text without the padding around it; inside, 0 is a "!" of CLIP's."""
    inner = getattr(tokenizer, "tokenizer", None)
    pad = getattr(inner, "pad_token_id", None) or 0
    kept = (tokens != pad).int()
    around = kept.argmax(1) + kept.flip(1).argmax(1)
    return ((tokens.shape[1] - around) * kept.amax(1)).tolist()


def too_long(
    tokenizer: Callable[..., Any], texts: Sequence[str], tokens: Tensor
) -> list[tuple[int, int]]:
    """Which texts were cut: their places, and how many tokens each has.

    Args:
        tokenizer: open_clip's, or `clip.tokenize` of OpenAI.
        tokens: [n, context] of the n texts, as `cut_tokens` gives them.

    Warns of texts that fill a row where the tokenizer cannot be asked for a longer one.
    """
    context = tokens.shape[1]
    # one less: SigLIP ends a text with the token it pads with
    full = [i for i, count in enumerate(counts(tokenizer, tokens)) if count >= context - 1]
    found: list[tuple[int, int]] = []
    for i in full:  # one at a time: a batch would be padded to its longest
        room = 2 * context + len(texts[i].encode())
        asked = _takes(tokenizer, "context_length")
        roomy = cut_tokens(tokenizer, [texts[i]], context_length=room)[0] if asked else tokens[i]
        if len(roomy) != room:
            warnings.warn(
                f"{len(full)} of {len(texts)} texts fill the {context} tokens of a row, and the "
                f"tokenizer {'heeds' if asked else 'takes'} no context_length to tell whether it "
                f"cut them, such as {texts[i]!r}",
                stacklevel=3,
            )
            return found
        if not _padded(tokens[i], roomy):
            padding = int(roomy.unique_consecutive(return_counts=True)[1].max())
            found.append((i, max(room - padding, context + 1)))
    return found


def _padded(row: Tensor, roomy: Tensor) -> bool:
    """Whether `roomy` is `row` with more of one token put in at one place."""
    more = len(roomy) - len(row)
    differs = (row != roomy[: len(row)]).nonzero()
    place = int(differs[0]) if len(differs) else len(row)
    put_in, rest = roomy[place : place + more], roomy[place + more :]
    return bool((put_in == put_in[0]).all()) and torch.equal(row[place:], rest)


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # of what has no signature
        return False
