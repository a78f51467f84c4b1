"""From class names to unit text embeddings, the material every projector is built from."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipproj._tensors import as_tensor
from clipproj.models.encoder import encode_tokens, evaluating, tokenize
from clipproj.models.heads import check_module, head_hash, unwrap
from clipproj.models.words import (
    Template,
    distinct,
    expand_names,
    imagenet_names,
    name_key,
    openai_templates,
    simple_templates,
    strings,
    template_strings,
)
from clipproj.refusal import Refusal

__all__ = ["Embeddings", "embed_classes", "expand_names", "generic_keep"]

Progress = Callable[[int, int], None]

# More templates than this on a thousand generic names take a CPU minutes to encode.
_GENERIC_TEMPLATES_MAX = 8


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings:
    """Unit text embeddings that remember what they embed and which model made them.

    Args:
        tensor: [m, d] float32, unit rows, m >= 1; kept detached, on the device it comes on. Of
            numpy also float64 and float16.
        names: m distinct class names, in row order.
        templates: the prompts each row is an average over, each with one `{}`.
        model: what the model is called.
        head_hash: identity of the embedding space (`head_hash`), None if unknown.

    Raises:
        TypeError, ValueError: for a tensor of another dtype or shape, rows that are not finite or
            not of length 1, names that are blank, repeated, or not one per row.

    Example:
        >>> texts = clipproj.Embeddings(torch.eye(2), ("cat", "dog"), ("{}",), "my model")
        >>> texts.select(["dog"]).tensor
        tensor([[0., 1.]])
    """

    tensor: Tensor
    names: tuple[str, ...]
    templates: tuple[str, ...]
    model: str
    head_hash: str | None = None

    def __post_init__(self) -> None:
        rows = self.tensor
        if isinstance(rows, np.ndarray):
            rows = as_tensor("Embeddings", "tensor", rows).float()
        if not isinstance(rows, Tensor) or rows.dtype != torch.float32:
            got = getattr(rows, "dtype", type(rows).__name__)
            raise TypeError(f"Embeddings: tensor must be a float32 tensor, got {got}")
        rows = rows.detach()
        names = distinct("Embeddings", strings("Embeddings", "names", self.names))
        if rows.ndim != 2 or rows.shape[0] != len(names):
            raise Refusal(
                "Embeddings",
                "tensor",
                f"must be [m, d] with a row for each of the {len(names)} names, "
                f"got {list(rows.shape)}",
            )
        off = (rows.norm(dim=1) - 1).abs()
        bad = (~(off <= 1e-4)).nonzero().flatten().tolist()  # NaN too
        if bad:
            row, length = bad[0], float(rows[bad[0]].norm())
            raise Refusal(
                "Embeddings",
                "tensor",
                f"must have unit rows, got length {length:.4g} in row {row} ({names[row]!r})",
            )
        object.__setattr__(self, "tensor", rows)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "templates", strings("Embeddings", "templates", self.templates))

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.names[:3])) + (", ..." if len(self) > 3 else "")
        return (
            f"Embeddings({len(self)} x {self.dim}, names=({shown}), "
            f"templates={len(self.templates)}, model={self.model!r})"
        )

    @property
    def dim(self) -> int:
        """d, the width of the embedding."""
        return self.tensor.shape[1]

    def select(self, names: Iterable[str]) -> Embeddings:
        """The rows of these names, in the order asked for. ValueError for a name not embedded."""
        names = strings("select", "names", names)
        return self._rows(self._indices("select", names))

    def drop(self, names: Iterable[str]) -> Embeddings:
        """All other rows, order kept. ValueError for a name not embedded, or when none is left."""
        gone = set(self._indices("drop", strings("drop", "names", names)))
        if len(gone) == len(self):
            raise Refusal("drop", "names", f"must leave at least one row, got all {len(self)}")
        return self._rows([i for i in range(len(self)) if i not in gone])

    def to(self, device: torch.device | str) -> Embeddings:
        """The same embeddings on another device."""
        return replace(self, tensor=self.tensor.to(device))

    def _indices(self, op: str, names: Iterable[str]) -> list[int]:
        index = {name: i for i, name in enumerate(self.names)}
        for name in names:
            if name not in index:
                close = ", ".join(map(repr, difflib.get_close_matches(name, self.names)))
                hint = f"; close: {close}" if close else ""
                raise Refusal(
                    op, "names", f"must be among the {len(self)} embedded, got {name!r}{hint}"
                )
        return [index[name] for name in names]

    def _rows(self, indices: list[int]) -> Embeddings:
        return replace(
            self, tensor=self.tensor[indices], names=tuple(self.names[i] for i in indices)
        )


def embed_classes(
    model: nn.Module,
    tokenizer: Callable[..., Any],
    names: Iterable[str],
    templates: Iterable[Template] | None = None,
    *,
    batch_size: int = 256,
    model_name: str | None = None,
    truncate: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """One unit text embedding per class name, averaged over prompt templates.

    As open_clip's `build_zero_shot_classifier`: unit features of every prompt, their mean, unit
    again; in float32 whatever the model's dtype. Dropout and the like are off meanwhile.

    Args:
        model: open_clip or OpenAI CLIP (`encode_text`), or Hugging Face (`get_text_features`, or a
            `*TextModelWithProjection`).
        tokenizer: of the same family: `open_clip.get_tokenizer(...)`, `clip.tokenize`, or a Hugging
            Face tokenizer or processor.
        names: distinct class names.
        templates: strings with one `{}`, or callables such as open_clip's, recorded as what they
            give for "{}". None: the 80 that OpenAI used on ImageNet.
        batch_size: prompts (names x templates) per forward pass.
        model_name: recorded; None: the Hugging Face name, else the class of the model.
        truncate: cut prompts that are longer than the model's context, and warn how many; else
            they are an error, before any is encoded: the name may stand in what is cut off.
        progress: called with (prompts done, prompts in all) after each batch.

    Returns:
        Embeddings [len(names), d] on the model's device.

    Raises:
        TypeError: for a bare string as names or templates, an unknown model, a foreign tokenizer,
            a batch_size that is no integer.
        ValueError: for empty, blank or repeated names, a template without exactly one `{}`, a
            prompt too long and no truncate, a model without parameters, or features that are zero
            or not finite.
        ImportError: for templates=None without open_clip.

    Example:
        >>> texts = clipproj.embed_classes(model, tokenizer, ["cat", "dog"], ["a photo of a {}"])
        >>> texts.names, list(texts.tensor.shape)
        (('cat', 'dog'), [2, 128])
    """
    op = "embed_classes"
    check_module(op, model)
    names = distinct(op, strings(op, "names", names))
    templates = openai_templates() if templates is None else template_strings(op, templates, names)
    if not isinstance(batch_size, int):
        raise TypeError(f"{op}: batch_size must be an integer, got {batch_size!r}")
    if batch_size < 1:
        raise Refusal(op, "batch_size", f"must be at least 1, got {batch_size}")
    model = unwrap(model)
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise Refusal(op, "model", f"must have parameters, got {type(model).__name__} with none")
    device = parameter.device
    at_once = max(1, batch_size // len(templates))
    blocks = [names[start : start + at_once] for start in range(0, len(names), at_once)]
    batches = [_batches(block, templates, batch_size) for block in blocks]
    in_all, done = len(names) * len(templates), 0
    cut: list[str] | None = [] if truncate else None
    tokens = [[tokenize(model, tokenizer, batch, cut) for batch in some] for some in batches]
    if cut:
        warnings.warn(
            f"{op}: {len(cut)} of {in_all} prompts are longer than the model reads and are cut, "
            f"such as {cut[0]!r}",
            stacklevel=2,
        )
    means: list[Tensor] = []
    # inference_mode(False): a caller's inference mode must not make tensors that autograd refuses
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        for block, prompts, ids in zip(blocks, batches, tokens, strict=True):
            rows = []
            for batch, inputs in zip(prompts, ids, strict=True):
                rows.append(_unit(encode_tokens(model, inputs, device).float(), batch))
                done += len(batch)
                if progress is not None:
                    progress(done, in_all)
            mean = torch.cat(rows).view(len(block), len(templates), -1).mean(dim=1)
            means.append(_unit(mean, block))
        tensor = torch.cat(means)
    name = model_name or getattr(model, "name_or_path", "") or type(model).__name__
    return Embeddings(tensor, names, templates, name, _space(model))


def generic_keep(
    model: nn.Module,
    tokenizer: Callable[..., Any],
    forget: Embeddings,
    *,
    templates: Iterable[Template] | None = None,
    threshold: float = 0.97,
    batch_size: int = 256,
    truncate: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """A keep list for those who have none: ImageNet's class names, less what `forget` means too.

    Dropped are names equal to a forget name (`name_key`), and near-synonyms: cosine with a forget
    text above `threshold`, both embedded with the same templates.

    Args:
        model, tokenizer, batch_size, truncate, progress: as for `embed_classes`.
        forget: what will be erased, embedded by the same model.
        templates: None: those of `forget` if there are at most 8, else open_clip's 7 simple ones:
            1000 names times 80 templates is more text than a CPU encodes while somebody waits.
        threshold: cosine in [-1, 1]; CLIP texts of different classes lie near 0.85.

    Raises:
        TypeError, ValueError: as `embed_classes`; also for embeddings of another model, and when no
            name is left.
        ImportError: without open_clip.
    """
    op = "generic_keep"
    check_module(op, model)
    if not isinstance(forget, Embeddings):
        raise TypeError(f"{op}: forget must be Embeddings, got {type(forget).__name__}")
    if not -1 <= threshold <= 1:
        raise Refusal(op, "threshold", f"must be a cosine in [-1, 1], got {threshold}")
    known = {forget.head_hash, _space(model)} - {None}
    if len(known) > 1:
        raise Refusal(
            op,
            "forget",
            f"must be embedded by this model, got embeddings of {forget.model!r}, "
            "whose text head differs",
        )
    if templates is None:
        few = len(forget.templates) <= _GENERIC_TEMPLATES_MAX
        templates = forget.templates if few else simple_templates()
    own = {name_key(name) for name in forget.names}
    names = [name for name in imagenet_names() if name_key(name) not in own]
    keep = embed_classes(
        model,
        tokenizer,
        names,
        templates,
        batch_size=batch_size,
        model_name=forget.model,
        truncate=truncate,
        progress=progress,
    )
    if keep.templates != forget.templates:
        forget = embed_classes(
            model,
            tokenizer,
            forget.names,
            keep.templates,
            batch_size=batch_size,
            truncate=truncate,
        )
    # in float64 and on the CPU: autocast would round cosines to bfloat16's steps of 0.004
    nearest = (keep.tensor.cpu().double() @ forget.tensor.cpu().double().T).amax(dim=1)
    close = [name for name, near in zip(names, nearest.tolist(), strict=True) if near > threshold]
    if len(close) == len(names):
        raise Refusal(
            op,
            "threshold",
            f"must leave at least one of {len(names)} names, got {threshold} and a "
            f"lowest cosine of {float(nearest.min()):.3f}",
        )
    return keep.drop(close) if close else keep


def _batches(names: Sequence[str], templates: Sequence[str], batch_size: int) -> list[list[str]]:
    prompts = [template.replace("{}", name) for name in names for template in templates]
    return [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]


def _space(model: nn.Module) -> str | None:
    """The head hash, or None: a model too unusual to be edited can still be embedded."""
    try:
        return head_hash(model)
    except ValueError:
        return None


def _unit(rows: Tensor, texts: Sequence[str]) -> Tensor:
    """Rows divided by their length; texts say whose they are when that can't be done."""
    lengths = rows.norm(dim=1)
    bad = (~(lengths > 0) | lengths.isinf()).nonzero().flatten().tolist()
    if bad:
        raise Refusal(
            "embed_classes",
            "features",
            "must be finite and not zero, got length "
            f"{float(lengths[bad[0]]):g} for {texts[bad[0]]!r}",
        )
    return F.normalize(rows, dim=1)
