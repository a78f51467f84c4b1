"""The work of the service without Ray or HTTP: batches of mixed tenants through one model."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipproj._factors import MOST_ONE_SIDED
from clipproj.checkpoints.checkpoint import Loaded
from clipproj.checkpoints.hugging_face import Pixels
from clipproj.models.encoder import encode, pixel_dtype, tower_features
from clipproj.models.heads import head_hash
from clipproj.models.text import embed_classes
from clipproj.models.words import canonical, simple_templates
from clipproj.projector import Projector
from clipproj.refusal import Refusal
from clipproj.serve.errors import ServiceError
from clipproj.serve.inputs import Job, Prepared, Preparer, check_prompts
from clipproj.serve.store import Changes, from_bytes
from clipproj.serve.tenants import Plan, Tenants


@dataclass(frozen=True)
class Answer:
    """Rows for the inputs of one request, in their order, on the CPU.

    Attributes:
        rows: [n, d] float32 unit rows, or logits [n, C] float32.
        probabilities: of logits, [n, C]: softmax over the classes, or each class's own (sigmoid)
            where the model has a logit_bias; None for embeddings.
        receipts: one for each row where asked for: `projector` (name, list of names or None),
            `hash` of what was applied, `side`, `strength`, and `Projector.residual` of the
            returned row and, as `before`, of the unedited one; of each for several names.
        tokens: in the request's texts.
    """

    rows: np.ndarray
    probabilities: np.ndarray | None
    receipts: list[dict[str, Any]] | None
    tokens: int


class Engine:
    """One model and the projectors of all tenants.

    Args:
        loaded: the model.
        capacity: directions over all tenants. max_pixels: of an image.
        class_rows: class texts that are kept.
        one_sided: the most directions of a one-sided projector, at most capacity.

    Raises ValueError for a model without a logit_scale, or whose images are more than pixels.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        capacity: int = 4096,
        max_pixels: int = 50_000_000,
        class_rows: int = 65_536,
        one_sided: int = MOST_ONE_SIDED,
    ) -> None:
        self.loaded, self.model = loaded, loaded.model
        self.device = next(self.model.parameters()).device
        self.dtype = pixel_dtype(self.model)
        if not hasattr(self.model, "logit_scale"):
            got = type(self.model).__name__
            raise Refusal("serve", "model", f"must have a logit_scale, got {got} without")
        context = getattr(loaded.tokenizer, "context_length", None)
        preprocess = loaded.preprocess
        if not hasattr(self.model, "encode_image"):
            preprocess = Pixels(preprocess)
        with torch.no_grad():
            self.dim = encode(self.model, loaded.tokenizer, ["a"], self.device).shape[1]
        self.prepare = Preparer(preprocess, loaded.tokenizer, self.dim, context, max_pixels)
        try:
            self.head = head_hash(self.model)
        except ValueError:  # a head that cannot be edited can be served
            self.head = None
        self.one_sided = min(one_sided, capacity)
        self.tenants = Tenants(self.dim, capacity, self.device, self.one_sided)
        self._class_rows = class_rows
        self._classes: OrderedDict[tuple[Any, Any], Tensor] = OrderedDict()
        self._classes_lock = threading.Lock()

    def apply(self, changes: Changes) -> None:
        """Know what the store knew. ValueError for a projector that does not fit the model."""
        files = {n: f if f is None else from_bytes(f) for n, f in changes.tenants.items()}
        for name, projector in files.items():
            if projector is not None:
                self.check(projector, f"tenant {name!r}")
        self.tenants.apply(changes.epoch, changes.version, files, changes.full)

    def check(self, projector: Projector, what: str) -> None:
        """Raises ValueError for a projector that this model's features cannot have."""
        if projector.dim != self.dim:
            got = projector.dim
            raise Refusal("serve", what, f"must be of width {self.dim} as the model, got {got}")
        if projector.side != "image":
            raise Refusal("serve", what, "must be of side image, got text; save its .T")
        if projector.one_sided and projector.rank > self.one_sided:
            most = f"must have at most {self.one_sided} directions one-sided, as the service is set"
            raise Refusal(
                "serve",
                what,
                f"{most}, got {projector.rank}; set one_sided={projector.rank} or more, or save "
                "its linear()",
            )
        projector.require_model("serve", self.head, argument=what)

    def classes(self, job: Job) -> Tensor | None:
        """[C, d] float32 unit rows for a job's classes, or None; kept, the oldest go first."""
        if job.classes is None:
            return None
        templates = job.templates or simple_templates()
        names = tuple(map(canonical, job.classes))  # the answer has them as they were spelt
        key = (names, templates)
        with self._classes_lock:
            if key in self._classes:
                self._classes.move_to_end(key)
                return self._classes[key]
        check_prompts(self.loaded.tokenizer, names, templates, "classes")
        try:
            made = embed_classes(self.model, self.loaded.tokenizer, names, templates)
        except ValueError as error:
            raise ServiceError(400, str(error), "classes", "invalid_value") from error
        with self._classes_lock:
            self._classes[key] = made.tensor
            while len(self._classes) > 1 and self._kept_rows() > self._class_rows:
                self._classes.popitem(last=False)
        return made.tensor

    def _kept_rows(self) -> int:
        return sum(len(rows) for rows in self._classes.values())

    def answer(self, jobs: Sequence[Job]) -> list[Answer | ServiceError]:
        """All of it for a batch of jobs; a bad one has its error in its place."""
        out: list[Any] = []
        for job in jobs:
            try:
                out.append((self.prepare(job), self.classes(job)))
            except ServiceError as error:
                out.append(error)
        live = [i for i, one in enumerate(out) if not isinstance(one, ServiceError)]
        batch = [out[i][0] for i in live]
        texts = [out[i][1] for i in live]
        for i, answer in zip(live, self.finish(batch, texts, self.forward(batch)), strict=True):
            out[i] = answer
        return out

    @torch.no_grad()
    def forward(self, batch: Sequence[Prepared]) -> list[Tensor | Exception]:
        """Features of each request, [n, d] float32, as the model gives them: not edited, not
        normalised. One pass for each kind of input; what fails is tried again by itself.
        """
        if not batch:
            return []
        try:
            return self._forward(batch)
        except Exception as error:  # whatever a model raises: out of memory, a CUDA error
            if len(batch) == 1:
                return [error]
            return [self.forward([one])[0] for one in batch]

    def _forward(self, batch: Sequence[Prepared]) -> list[Tensor]:
        out = [
            torch.empty(len(one), self.dim, dtype=torch.float32, device=self.device)
            for one in batch
        ]
        encoders = {"text": self._encode_text, "image": self._encode_image, "embedding": self._move}
        for kind, give in encoders.items():
            whose = [i for i, one in enumerate(batch) if kind in one.places]
            if not whose:
                continue
            rows = give(torch.cat([batch[i].tensors[kind] for i in whose])).float()
            for i, part in zip(
                whose, rows.split([len(batch[i].places[kind]) for i in whose]), strict=True
            ):
                out[i][batch[i].places[kind]] = part
        return out

    def _encode_text(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.device)
        mask = getattr(self.loaded.tokenizer, "inputs", None)  # of transformers' tokenizers
        inputs = {"input_ids": tokens} if mask is None else mask(tokens)
        return tower_features("serve", self.model, "text", inputs)

    def _encode_image(self, pixels: Tensor) -> Tensor:
        inputs = {"pixel_values": pixels.to(self.device, self.dtype)}
        return tower_features("serve", self.model, "image", inputs)

    def _move(self, rows: Tensor) -> Tensor:
        return rows.to(self.device)

    @torch.no_grad()
    def finish(
        self,
        batch: Sequence[Prepared],
        texts: Sequence[Tensor | None],
        rows: Sequence[Tensor | Exception],
        changes: Changes | None = None,
    ) -> list[Answer | ServiceError]:
        """Edit each row by its own projector, as the store knows it now, in one call for a side.

        Args:
            batch: requests. texts: of each, what `classes` gave. rows: of each, from `forward`.
            changes: what the store knew after the last request of the batch had come in.
        """
        with self.tenants.lock:  # nobody changes a tenant between its look-up and its use
            if changes is not None:
                self.apply(changes)
            try:
                return self._finish(batch, texts, rows)
            except Exception as error:
                if len(batch) == 1:
                    return [error if isinstance(error, ServiceError) else _failed(error)]
                each = zip(batch, texts, rows, strict=True)
                return [self.finish(*([part] for part in one))[0] for one in each]

    def _finish(
        self,
        batch: Sequence[Prepared],
        texts: Sequence[Tensor | None],
        rows: Sequence[Tensor | Exception],
    ) -> list[Answer | ServiceError]:
        out: list[Any] = [_failed(r) if isinstance(r, Exception) else None for r in rows]
        plans: dict[int, list[Plan]] = {}
        for i, one in enumerate(batch):
            if out[i] is None:
                try:
                    plans[i] = self.tenants.find(one.job.inputs)
                except ServiceError as error:
                    out[i] = error
        edited = self._edited(
            [i for i in plans if texts[i] is None or batch[i].job.receipt], batch, rows, plans
        )
        logits = self._logits([i for i in plans if texts[i] is not None], batch, texts, rows, plans)
        sigmoid = self.scale()[1] is not None
        for i, plan in plans.items():
            shown = None
            if i in logits:
                shown = logits[i].sigmoid() if sigmoid else logits[i].softmax(1)
            receipts = None
            if batch[i].job.receipt:
                inputs = batch[i].job.inputs
                receipts = self.tenants.receipts(inputs, plan, edited[i], rows[i].cpu())
            out[i] = _answer(batch[i], logits.get(i, edited.get(i)), shown, receipts)
        return out

    def _edited(
        self,
        which: Sequence[int],
        batch: Sequence[Prepared],
        rows: Sequence[Any],
        plans: Mapping[int, list[Plan]],
    ) -> dict[int, Tensor]:
        """Edited unit rows of these requests, on the CPU."""
        if not which:
            return {}
        x = torch.cat([rows[i] for i in which])
        plan = [one for i in which for one in plans[i]]
        sides = [one.side for i in which for one in batch[i].job.inputs]
        out = torch.empty_like(x)
        for side in sorted(set(sides)):
            where = [n for n, own in enumerate(sides) if own == side]
            out[where] = self.tenants.project(side, x[where], [plan[n] for n in where])
        parts = out.cpu().split([len(batch[i]) for i in which])
        return dict(zip(which, parts, strict=True))

    def _logits(
        self,
        which: Sequence[int],
        batch: Sequence[Prepared],
        texts: Sequence[Tensor | None],
        rows: Sequence[Any],
        plans: Mapping[int, list[Plan]],
    ) -> dict[int, Tensor]:
        """Logits of these requests, on the CPU: one call for each list of classes and each side.

        Requests with the same list share its tensor, which `classes` keeps.
        """
        out = {
            i: torch.empty(len(batch[i]), len(texts[i]), dtype=torch.float32, device="cpu")
            for i in which
        }
        groups: dict[tuple[int, str], dict[int, list[int]]] = {}
        for i in which:
            for j, one in enumerate(batch[i].job.inputs):
                group = groups.setdefault((id(texts[i]), one.side), {})
                group.setdefault(i, []).append(j)
        for (_, side), group in groups.items():
            x = torch.cat([rows[i][own] for i, own in group.items()])
            plan = [plans[i][j] for i, own in group.items() for j in own]
            classes = texts[next(iter(group))]
            made = self.tenants.logits(side, x, plan, classes, *self.scale()).cpu()
            parts = made.split([len(own) for own in group.values()])
            for (i, own), part in zip(group.items(), parts, strict=True):
                out[i][own] = part
        return out

    def scale(self) -> tuple[Tensor, Tensor | None]:
        """What multiplies cosines, exponentiated, and SigLIP's bias: 0-dim float32."""
        bias = getattr(self.model, "logit_bias", None)
        bias = None if bias is None else bias.detach().float().reshape(())
        return self.model.logit_scale.detach().float().exp().reshape(()), bias


def _answer(
    prepared: Prepared,
    rows: Tensor,
    probabilities: Tensor | None,
    receipts: list[dict[str, Any]] | None,
) -> Answer | ServiceError:
    if not bool(rows.isfinite().all()):
        return ServiceError(500, "the model's features are not finite", None, "not_finite")
    shown = None if probabilities is None else probabilities.numpy()
    return Answer(rows.numpy(), shown, receipts, prepared.tokens)


def _failed(error: Exception) -> ServiceError:
    text = f"the model failed on this request: {type(error).__name__}: {error}"
    return ServiceError(500, text, None, "model_failed")
