"""What every audit looks at: labelled image features and the texts that compete for them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipproj import files
from clipproj._tensors import as_tensor
from clipproj.audit.images import Images
from clipproj.models.heads import unwrap
from clipproj.models.text import Embeddings
from clipproj.models.words import name_key
from clipproj.refusal import Refusal

NO_ANSWER = -1
_CHUNK = 8192  # rows compared with the class texts at once

RowEdit = Callable[[Tensor], Tensor]
"""A Projector, or anything else that edits [n, d] rows; its `side` ("image" without one) says
which tower's rows those are."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Images as features, labelled, and the class texts.

    Args:
        features: [n, d] float32 on the CPU, finite, as the model gives them (not normalised).
        labels: [n] int64, rows of `classes`.
        classes: the unedited text of each class that competes; kept on the CPU.
        texts: [C, d] float32, the texts as they are now; None: those of `classes`. An edit of the
            text tower changes these, not `classes`.
        domains: for each image the style or source it comes from, or None.
        paths: for each image its file, or None.
        scale: what cosines are multiplied by for probabilities; CLIP's exp(logit_scale).

    Raises:
        TypeError, ValueError: for another dtype, shape or count, features with a NaN or inf,
            labels that are no rows of classes.
    """

    features: Tensor
    labels: Tensor
    classes: Embeddings
    texts: Tensor | None = None
    domains: tuple[str, ...] | None = None
    paths: tuple[Path, ...] | None = None
    scale: float = 100.0

    def __post_init__(self) -> None:
        op = "Samples"
        if not isinstance(self.classes, Embeddings):
            raise TypeError(f"{op}: classes must be Embeddings, got {type(self.classes).__name__}")
        if self.classes.tensor.device.type != "cpu":  # beside features on the CPU
            kept = replace(self.classes, tensor=self.classes.tensor.cpu())
            object.__setattr__(self, "classes", kept)
        d, count = self.classes.dim, len(self.classes)
        texts = self.classes.tensor if self.texts is None else self.texts
        for name, rows, shape in (
            ("features", self.features, (None, d)), ("texts", texts, (count, d)),
        ):  # fmt: skip
            rows = as_tensor(op, name, rows)
            if not isinstance(rows, Tensor) or not rows.is_floating_point():
                got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
                raise TypeError(f"{op}: {name} must be a floating point tensor, got {got}")
            if rows.ndim != 2 or any(
                w not in (None, g) for w, g in zip(shape, rows.shape, strict=True)
            ):
                want = ", ".join("n" if w is None else str(w) for w in shape)
                raise Refusal(op, name, f"must be [{want}], got {list(rows.shape)}")
            bad = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()
            if bad:
                raise Refusal(op, name, f"must be finite, got a NaN or inf in row {bad[0]}")
            object.__setattr__(self, name, rows.detach().float().cpu())
        n = len(self.features)
        labels = torch.as_tensor(self.labels, device="cpu")
        if labels.dtype != torch.int64 or labels.shape != (n,):
            raise Refusal(
                op, "labels", f"must be int64 [{n}], got {labels.dtype} {list(labels.shape)}"
            )
        if n and not ((labels >= 0) & (labels < count)).all():
            raise Refusal(
                op,
                "labels",
                f"must be rows of the {count} classes, got {int(labels.min())} to "
                f"{int(labels.max())}",
            )
        object.__setattr__(self, "labels", labels)
        for name in ("domains", "paths"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise Refusal(op, name, f"must be {n}, one an image, got {len(value)}")
        if not self.scale > 0:
            raise Refusal(op, "scale", f"must be above 0, got {self.scale}")

    @classmethod
    def of_images(
        cls, features: Tensor, images: Images, classes: Embeddings, **more: Any
    ) -> Samples:
        """The features of an image folder; labels are matched to the texts by name (`name_key`).

        Raises ValueError for an image class without a text, and as `Samples`.
        """
        row = {name_key(name): i for i, name in enumerate(classes.names)}
        row |= {name: i for i, name in enumerate(classes.names)}  # of two spellings the same one
        rows = {name: row.get(name, row.get(name_key(name))) for name in images.classes}
        missing = [name for name, i in rows.items() if i is None]
        if missing:
            raise Refusal(
                "Samples",
                "classes",
                "must have a text for every class of the images, got none for "
                f"{', '.join(map(repr, missing[:3]))}",
            )
        labels = torch.tensor(list(rows.values()), device="cpu")[images.labels]
        return cls(features, labels, classes, paths=images.paths, **more)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, in the order of the rows of `texts`."""
        return self.classes.names

    def edited(self, edit: RowEdit) -> Samples:
        """The same images and classes after an edit of one tower; lengths are left as they are.

        Raises ValueError where the edit gives other shapes, or what is not finite.
        """
        if getattr(edit, "side", "image") == "text":
            return replace(self, texts=applied(edit, self.texts))
        return replace(self, features=applied(edit, self.features))

    def take(self, rows: Tensor) -> Samples:
        """The images of these rows, int64 or bool; all classes stay."""
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        picked = rows.tolist()
        return replace(
            self,
            features=self.features[rows],
            labels=self.labels[rows],
            domains=self.domains and tuple(self.domains[i] for i in picked),
            paths=self.paths and tuple(self.paths[i] for i in picked),
        )

    def of(self, names: Sequence[str]) -> Tensor:
        """[n] bool: images of these classes. ValueError for a name that is no class."""
        wanted = self.classes.select(names).names
        rows = [self.names.index(name) for name in wanted]
        return torch.isin(self.labels, torch.tensor(rows, dtype=torch.int64, device="cpu"))

    def cosines(self, renormalize: bool = True) -> Tensor:
        """[n, C] float32: of unit images with unit texts, NaN nowhere (a zero row gives zeros).

        Args:
            renormalize: False leaves the texts at the length an edit left them, as a service does
                that stores class texts and does not divide again.
        """
        texts = F.normalize(self.texts, dim=1) if renormalize else self.texts
        return F.normalize(self.features, dim=1) @ texts.T

    def answers(self, renormalize: bool = True) -> Tensor:
        """[n] int64: the nearest class of each image; NO_ANSWER (-1) for a row of zeros."""
        texts = F.normalize(self.texts, dim=1) if renormalize else self.texts
        out = [torch.empty(0, dtype=torch.int64, device="cpu")]
        for rows in self.features.split(_CHUNK):
            best = (rows @ texts.T).argmax(dim=1)  # a row's length does not change what is nearest
            out.append(best.masked_fill((rows == 0).all(dim=1), NO_ANSWER))
        return torch.cat(out)

    def correct(self, renormalize: bool = True) -> Tensor:
        """[n] bool: images answered by their class."""
        return self.answers(renormalize) == self.labels

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file, atomically. OSError when it cannot be written."""
        c = self.classes
        tensors = {"features": self.features, "labels": self.labels, "classes": c.tensor}
        if not torch.equal(self.texts, c.tensor):
            tensors["texts"] = self.texts
        meta = {
            "names": c.names, "templates": c.templates, "model": c.model, "head_hash": c.head_hash,
            "domains": self.domains, "paths": self.paths and [str(p) for p in self.paths],
            "scale": self.scale,
        }  # fmt: skip
        files.write(path, "samples", tensors, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Samples:
        """Read what `save` wrote. FileNotFoundError; ValueError for a damaged or foreign file."""
        found = files.read(path, "samples")
        t, m = found.tensors, found.meta
        classes = Embeddings(t["classes"], m["names"], m["templates"], m["model"], m["head_hash"])
        return cls(
            t["features"], t["labels"], classes, t.get("texts"),
            m["domains"] and tuple(m["domains"]),
            m["paths"] and tuple(Path(p) for p in m["paths"]), m["scale"],
        )  # fmt: skip


def applied(edit: RowEdit, rows: Tensor) -> Tensor:
    """Rows [n, d] through an edit of their tower. ValueError where it gives another shape."""
    with torch.no_grad():
        read = getattr(edit, "read", None)
        # a copy: an edit that works in place must not change what comes next
        edit = getattr(edit, "edit_features", edit)
        out = edit(rows.clone() if read is None else rows.to(read.device).clone())
    if not isinstance(out, Tensor) or out.shape != rows.shape:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise Refusal("Samples", "edit", f"must give rows {list(rows.shape)}, got {got}")
    return out


def logit_scale(model: nn.Module) -> float:
    """What a model multiplies cosines by, exp(logit_scale); 100, CLIP's, where it has none."""
    scale = getattr(unwrap(model), "logit_scale", None)
    return 100.0 if scale is None else math.exp(float(scale.detach()))
