"""Zero-shot classification of features that are projected on the way, each row in its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipproj import ops
from clipproj._tensors import as_tensor
from clipproj.bank import ProjectorBank
from clipproj.models.heads import unwrap
from clipproj.models.text import Embeddings, embed_classes
from clipproj.projector import Projector
from clipproj.refusal import Refusal


class ZeroShotHead(nn.Module):
    """Class logits `scale * normalize(project(x)) @ classes.T + bias`, in one operator.

    On features of an unedited model it gives what the folded model's features give without a
    projector. `.to(dtype)` casts the classes, never scale, bias or the projector's factors.

    Args:
        classes: [C, d] unit rows, of floating point, or `Embeddings`, whose names are kept.
        projector: the default of calls; None leaves features alone. With a bank each call says by
            `index` which rows take what.
        scale: CLIP's `logit_scale.exp()`, a number or 0-dim.
        bias: SigLIP's `logit_bias`, a number or 0-dim, or [C]; None for none.

    Attributes:
        names: of the classes, or None.

    Raises:
        TypeError, ValueError: for classes that are not [C, d], finite and of unit length; for a
            scale or bias that is not finite or of another shape; for a projector of another width,
            or for text features.

    Example:
        >>> p = clipproj.Projector(torch.tensor([[1.0, 0.0]]))
        >>> head = clipproj.ZeroShotHead(torch.eye(2), p, scale=10.0)
        >>> head(torch.tensor([[3.0, 4.0]]))
        tensor([[ 0., 10.]])
    """

    classes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        classes: Tensor | Embeddings,
        projector: Projector | ProjectorBank | None = None,
        scale: float | Tensor = 1.0,
        bias: float | Tensor | None = None,
    ) -> None:
        super().__init__()
        self.names = classes.names if isinstance(classes, Embeddings) else None
        rows = classes.tensor if isinstance(classes, Embeddings) else classes
        rows = as_tensor("ZeroShotHead", "classes", rows)
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"ZeroShotHead: classes must be a floating point tensor, got {got}")
        if rows.ndim != 2 or rows.shape[1] < 1:
            raise Refusal("ZeroShotHead", "classes", f"must be [C, d], got {list(rows.shape)}")
        lengths = rows.detach().float().norm(dim=1)
        bad = (~((lengths - 1).abs() <= 0.01)).nonzero().flatten().tolist()  # NaN too
        if bad:
            raise Refusal(
                "ZeroShotHead",
                "classes",
                f"must have rows of length 1, got {float(lengths[bad[0]]):.4g} in row {bad[0]}",
            )
        with torch.inference_mode(False):
            self.register_buffer("classes", rows.detach().clone())
        if projector is None:
            projector = Projector(rows.new_zeros(0, rows.shape[1]))
        self.register_buffer("scale", _number("scale", scale, rows))
        self.register_buffer("bias", None if bias is None else _number("bias", bias, rows))
        self._check(projector)
        self.projector = projector

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        tokenizer: Callable[..., Any],
        names: Sequence[str],
        templates: Sequence[str] | None = None,
        projector: Projector | ProjectorBank | None = None,
        *,
        truncate: bool = False,
    ) -> ZeroShotHead:
        """A model's own classifier of these names: text embeddings, logit scale and logit bias.

        Args:
            model, tokenizer, names, templates, truncate: as `clipproj.embed_classes` takes them.
            projector: as the constructor's.

        Raises:
            TypeError, ValueError: as `embed_classes`; for a model without `logit_scale`.
        """
        inner = unwrap(model)
        scale, bias = getattr(inner, "logit_scale", None), getattr(inner, "logit_bias", None)
        if not isinstance(scale, Tensor) or scale.numel() != 1:
            raise Refusal(
                "ZeroShotHead",
                "model",
                f"must have a logit_scale, got {type(inner).__name__} without",
            )
        classes = embed_classes(model, tokenizer, names, templates, truncate=truncate)
        exponentiated = scale.detach().float().exp().reshape(())
        bias = None if bias is None else bias.detach().float().reshape(())
        return cls(classes, projector, exponentiated, bias)

    def forward(
        self,
        x: Tensor | np.ndarray,
        index: Tensor | None = None,
        *,
        projector: Projector | ProjectorBank | None = None,
        strength: float | Tensor | np.ndarray | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor | np.ndarray:
        """Logits [..., C] of features x [..., d], which need not be normalised.

        Args:
            x: in the dtype of `classes`; of an array of numpy come logits of numpy.
            index: [n] int32 from `bank.index`, with a bank; None without one.
            projector: in place of the head's own.
            strength: as `Projector` or `ProjectorBank` takes it.
            dtype: of the result; None means that of x, and torch.float32 is there for half types.

        Raises:
            TypeError, ValueError: for a bank without index, or an index without bank; else as the
                constructor and the projector's own call.
            RuntimeError: as `clipproj.ops.logits`.
        """
        if type(x) is not Tensor and isinstance(x, np.ndarray):
            x = as_tensor("ZeroShotHead", "x", x, self.classes.device)
            options: dict[str, Any] = {"projector": projector, "strength": strength}
            return self(x, index, dtype=dtype, **options).numpy(force=True)
        if projector is None:
            projector = self.projector
        else:
            self._check(projector)
        banked = isinstance(projector, ProjectorBank)
        if banked != (index is not None):
            want, got = ("given", "None") if banked else ("None", "one")
            kind = "with" if banked else "without"
            raise Refusal("ZeroShotHead", "index", f"must be {want} {kind} a bank, got {got}")
        taken: tuple[Any, ...] = (index, strength) if banked else (strength,)
        operands: Any = projector.operands(x, *taken)
        wide = operands["read"].dtype
        return ops.logits(
            projector.as_measured(x, *taken[:-1]),
            self.classes,
            **operands,
            scale=self.scale.to(wide),
            bias=None if self.bias is None else self.bias.to(wide),
            dtype=dtype,
        )

    def _check(self, projector: object) -> None:
        if not isinstance(projector, Projector | ProjectorBank):
            raise TypeError(
                "ZeroShotHead: projector must be a Projector or a ProjectorBank, got "
                f"{type(projector).__name__}"
            )
        d = self.classes.shape[1]
        if projector.dim != d:
            raise Refusal(
                "ZeroShotHead",
                "projector",
                f"must be of width {d} as the classes are, got {projector.dim}",
            )
        if projector.side != "image":
            raise Refusal(
                "ZeroShotHead",
                "projector",
                f"must be for image features, got one for {projector.side}; pass projector.T",
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ZeroShotHead:
        scale, bias = self.scale, self.bias
        super()._apply(fn, recurse)
        self.scale = scale.to(self.scale.device)
        self.bias = None if bias is None else bias.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        bias = "" if self.bias is None else ", with bias"
        return f"{len(self.classes)} classes, dim={self.classes.shape[1]}{bias}"


def _number(name: str, value: float | Tensor, classes: Tensor) -> Tensor:
    """0-dim float32 (a bias also [C]) on the device of the classes."""
    with torch.inference_mode(False):
        given = torch.as_tensor(value, device=classes.device)
        number = given.detach().to(torch.float32, copy=True)
    per_class = name == "bias" and number.shape == classes.shape[:1]
    if number.ndim and not per_class:
        want = "0-dim or [C]" if name == "bias" else "0-dim"
        raise Refusal("ZeroShotHead", name, f"must be {want}, got {list(number.shape)}")
    if not number.isfinite().all():
        raise Refusal("ZeroShotHead", name, "must be finite, got NaN or inf")
    return number
