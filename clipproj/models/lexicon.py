"""Names in general: a few thousand common nouns, embedded with a model once and kept on the disk.

What an edit is told apart from where nobody says which names compete with the forgotten ones.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from functools import cache as once
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipproj import files
from clipproj.models.heads import check_module, find_heads, head_hash, unwrap
from clipproj.models.text import Embeddings, Progress, embed_classes
from clipproj.models.words import template_strings
from clipproj.refusal import Refusal

TEMPLATE = "a photo of a {}."
_ASKED_AGAIN = 8  # names whose texts a kept file must have as the model makes them now
_ALIKE = 1e-3  # how far from 1 their cosines may be: bfloat16 rounds by less


@once
def lexicon_names() -> tuple[str, ...]:
    """The names of `lexicon`, in alphabetical order: common nouns of what can be seen.

    From WordNet 3.1 and the class names of ImageNet and COCO; the file's first line, and
    `models/lexicon_ATTRIBUTION.md` beside it, say how and under which licences.

    Example:
        >>> names = clipproj.lexicon_names()
        >>> len(names), names[:2], "ice cream" in names
        (3746, ('abacus', 'abaya'), True)
    """
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def lexicon(
    model: nn.Module,
    tokenizer: Callable[..., Any],
    template: str = TEMPLATE,
    *,
    cache: bool | str | os.PathLike[str] = True,
    batch_size: int = 256,
    model_name: str | None = None,
    truncate: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """Texts of `lexicon_names`: the keep of those who have no list of the names that compete.

    For `nullspace(forget, lexicon, "neighbours")`, which leaves out what names the forgotten
    itself (cosine .95). Forgotten names are still among them.

    On two cores ViT-B/32 takes five minutes to make them, so they are kept in a file: under what
    makes them, which is the text head's weights, the template and the names. A file is used where
    the model makes the same of eight of the names as is kept (which tells towers of one head, and
    tokenizers, apart); else, and where the file is damaged, they are made again, with a warning.
    Models whose text head has no weights of its own, or with forward hooks, are not kept.

    Args:
        model, tokenizer, batch_size, model_name, truncate: as for `embed_classes`.
        template: one prompt with one `{}`: several are more text than somebody waits for.
        cache: the folder of the files; True: `clipproj` in `$XDG_CACHE_HOME`, else in `~/.cache`;
            False: nothing is read or written. Where it can't be written a warning says so.
        progress: called with (prompts done, prompts in all) after each batch.

    Returns:
        Embeddings [3746, d] float32, on the model's device.

    Raises:
        TypeError, ValueError: as `embed_classes`; also for a template that is no string with one
            `{}`, or a cache that is neither a path nor true or false.

    Example:
        >>> texts = clipproj.lexicon(model, tokenizer, cache=False)
        >>> list(texts.tensor.shape)
        [3746, 128]
    """
    op = "lexicon"
    check_module(op, model)
    if not isinstance(template, str):
        raise TypeError(f"{op}: template must be a string, got {type(template).__name__}")
    template_strings(op, [template], ())
    if not isinstance(cache, bool | str | os.PathLike):
        raise TypeError(f"{op}: cache must be a path, True or False, got {type(cache).__name__}")
    if not isinstance(cache, bool) and not os.fspath(cache):
        raise Refusal(op, "cache", f"must be a folder, True or False, got {cache!r}")
    names = lexicon_names()

    def embed(some: tuple[str, ...], tell: Progress | None = None) -> Embeddings:
        return embed_classes(
            model,
            tokenizer,
            some,
            [template],
            batch_size=batch_size,
            model_name=model_name,
            truncate=truncate,
            progress=tell,
        )

    key = _key(model, template, truncate) if cache is not False else None
    if key is None:
        return embed(names, progress)
    path = _folder(cache) / f"lexicon-{key[:24]}.safetensors"
    asked = embed(names[:: len(names) // _ASKED_AGAIN])
    rows = _kept(path, key, asked, len(names))
    if rows is not None:
        if progress is not None:
            progress(len(names), len(names))
        on = asked.tensor.device
        return Embeddings(rows.to(on), names, asked.templates, asked.model, asked.head_hash)
    made = embed(names, progress)
    _keep(path, key, made)
    return made


def _key(model: nn.Module, template: str, truncate: bool) -> str | None:
    """What a file of texts is kept under; None where the weights do not tell what makes them."""
    plain = unwrap(model)
    try:
        head = head_hash(plain, "text") if find_heads(plain).text is not None else None
    except ValueError:  # a model too unusual to be edited can still be embedded
        return None
    if head is None or any(module._forward_hooks for module in plain.modules()):
        return None
    told = "\n".join([head, template, str(truncate), *lexicon_names()])
    return hashlib.sha256(told.encode()).hexdigest()


def _folder(cache: bool | str | os.PathLike[str]) -> Path:
    if not isinstance(cache, bool):
        return Path(cache)
    home = os.environ.get("XDG_CACHE_HOME", "")  # one that is not absolute is to be ignored
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "clipproj"


def _kept(path: Path, key: str, asked: Embeddings, count: int) -> Tensor | None:
    """The rows in a file, where they are this model's; None, with a warning, for another file."""
    try:
        if not path.exists():
            return None
        found = files.read(path, "texts")
        rows = found.tensors["texts"]
        if found.meta["key"] != key or rows.shape != (count, asked.dim):
            raise Refusal("lexicon", "cache", f"must hold the texts of {key[:8]}, got others")
        if rows.dtype != torch.float32 or not bool(((rows.norm(dim=1) - 1).abs() <= 1e-4).all()):
            raise Refusal("lexicon", "cache", "must hold unit rows in float32, got others")
    except (ValueError, OSError) as error:
        warnings.warn(f"lexicon: made again, the kept texts can't be used: {error}", stacklevel=3)
        return None
    alike = (rows[:: count // _ASKED_AGAIN] * asked.tensor.cpu()).sum(dim=1)
    if float(alike.min()) < 1 - _ALIKE:
        warnings.warn(
            f"lexicon: made again, the kept texts are those of another model with the same head "
            f"or of another tokenizer: {path}",
            stacklevel=3,
        )
        return None
    return rows


def _keep(path: Path, key: str, made: Embeddings) -> None:
    meta = {"key": key, "model": made.model, "template": made.templates[0]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, "texts", {"texts": made.tensor}, meta)
    except OSError as error:
        warnings.warn(f"lexicon: not kept for the next time: {error}", stacklevel=3)
