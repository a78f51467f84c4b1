"""A tenant for each request of an infinity engine that serves CLIP.

infinity batches requests of many callers and runs them in threads of its own, so the tenant travels
with each image or text, and the rows are projected where they leave the encoder, in one launch a
batch. With transformers 5, whose `get_*_features` return an object that infinity 0.0.78 does not
know, it also hands on the tensor in it.

    served = install(AsyncEmbeddingEngine.from_args(args), bank)
    async with served.engine:
        vectors, usage = await served.image_embed(images=[...], tenant="acme", strength=1.5)

An exception in one of infinity's threads would leave every request waiting for ever. Requests are
therefore checked before they are queued; an image that comes without a tenant (around this module,
from infinity's own server) or whose tenant was removed in the meantime gets a row of NaN, never an
unedited one, and `served.image_embed` raises for it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipproj.bank import ProjectorBank
from clipproj.models.encoder import features
from clipproj.models.heads import TOWERS, find_heads
from clipproj.plugins._rows import Asked, Name, check_projector, on_tower, serve, strengths
from clipproj.projector import Projector
from clipproj.refusal import Refusal


class _Text(str):
    """A text with its tenant; images carry theirs as an attribute too."""

    clipproj: Asked


class Installed:
    """A projector or a bank in an engine that is not running.

    Attributes:
        engine: the engine, to be started and stopped as ever.
    """

    def __init__(self, engine: Any, projector: Projector | ProjectorBank, tower: str) -> None:
        self.engine = engine
        self.projector = projector
        self.tower = tower

    async def image_embed(
        self,
        *,
        images: Sequence[Any],
        tenant: Name,
        strength: float | None = None,
        **options: Any,
    ) -> tuple[list[np.ndarray], int]:
        """`engine.image_embed` for one tenant: vectors [d] of unit length, and the usage.

        Args:
            images: as infinity takes them: PIL images, bytes, or URLs.
            tenant: the bank's entry; a tuple of names for several erasures at once; None for rows
                that stay as they are.
            strength: a number in place of the entry's own.
            options: `matryoshka_dim`, which infinity cuts to after normalising.

        Raises:
            ValueError: a tenant that the bank does not have, a strength out of [0, 2].
            TypeError: there is no bank for images.
            RuntimeError: the tenant was removed before the rows were projected.
        """
        from infinity_emb.transformer.vision.utils import resolve_images

        said = self._say("image", tenant, strength)
        tagged = []
        for item in await resolve_images(list(images)):
            image = item.image.copy()  # the same image may be on its way for another tenant
            image.clipproj = said
            tagged.append(image)
        return self._whole(tenant, *await self.engine.image_embed(images=tagged, **options))

    async def embed(
        self,
        sentences: Sequence[str],
        *,
        tenant: Name,
        strength: float | None = None,
        **options: Any,
    ) -> tuple[list[np.ndarray], int]:
        """`engine.embed` for one tenant, where the bank is for texts; see `image_embed`."""
        said = self._say("text", tenant, strength)
        tagged = []
        for sentence in sentences:
            text = _Text(sentence)
            text.clipproj = said
            tagged.append(text)
        return self._whole(tenant, *await self.engine.embed(tagged, **options))

    def remove(self) -> None:
        """Give the engine's models their own methods back. RuntimeError while it is running."""
        _check_stopped(self.engine)
        for replica in self.engine._model_replicas:
            del replica.encode_pre, replica.encode_core

    def _say(self, tower: str, tenant: Name, strength: float | None) -> Asked:
        bank = self.projector
        if not isinstance(bank, ProjectorBank) or tower != self.tower:
            got = f"a {type(bank).__name__} for {self.tower} features"
            raise TypeError(
                f"{tower}: tenant must come with a bank for {tower} features, got {got}"
            )
        index = bank.index([tenant])
        strengths(strength, index[0])
        return Asked(tenant, None if strength is None else float(strength))

    @staticmethod
    def _whole(tenant: Name, vectors: list[Any], usage: int) -> tuple[list[Any], int]:
        if any(np.isnan(vector).any() for vector in vectors):
            raise RuntimeError(
                f"embed: tenant must stay in the bank until its rows are done, got {tenant!r} "
                "removed, or a model that gives NaN"
            )
        return vectors, usage

    def _install(self, replica: Any) -> None:
        pre, core = replica.encode_pre, replica.encode_core
        place = 0 if self.tower == "text" else 1  # in what encode_core returns
        projector = self.projector
        if isinstance(projector, Projector):
            projector = copy.deepcopy(projector).to(replica.model.device)

        def encode_pre(inputs: list[Any]) -> tuple[Any, list[Asked | None]]:
            mine = [item for item in inputs if isinstance(item, str) == (self.tower == "text")]
            return pre(inputs), [getattr(item, "clipproj", None) for item in mine]

        @torch.no_grad()
        def encode_core(prepared: tuple[Any, list[Asked | None]]) -> tuple[Any, ...]:
            inputs, said = prepared
            *rows, types = core(inputs)
            rows = [None if out is None else features(out) for out in rows]
            if rows[place] is not None:
                rows[place] = _project(projector, rows[place], said)
            return (*rows, types)

        replica.encode_pre, replica.encode_core = encode_pre, encode_core


def install(engine: Any, projector: Projector | ProjectorBank, tower: str = "image") -> Installed:
    """Project what an engine's CLIP models give, before they normalise it.

    Args:
        engine: an `AsyncEmbeddingEngine` of infinity_emb with the torch engine and a dual encoder
            that `clipproj.find_heads` knows; not running.
        projector: a Projector edits every request, through infinity's own server too (folding it
            with `clipproj.edit` costs nothing per request); its transpose is taken on the other
            tower. A ProjectorBank is for `Installed.image_embed` and `embed`.
        tower: "image" or "text"; the other one's requests pass as they are.

    Raises:
        TypeError: another projector, an engine of another kind.
        ValueError: another width, side or device; an engine that caches vectors, by a key that does
            not name the tenant, or quantises them.
        RuntimeError: an engine that is running, or has been installed into.
    """
    check_projector("install", projector)
    if tower not in TOWERS:
        raise Refusal("install", "tower", f'must be "image" or "text", got {tower!r}')
    _check_stopped(engine)
    args = engine.engine_args
    if args.vector_disk_cache_path:
        raise Refusal(
            "install",
            "engine",
            "must not cache vectors, whose keys do not name the tenant, got "
            f"vector_disk_cache_path={args.vector_disk_cache_path!r}",
        )
    if args.embedding_dtype.value != "float32":
        raise Refusal(
            "install",
            "engine",
            "must give float32 vectors, whose NaN can be told, got "
            f"embedding_dtype={args.embedding_dtype.value!r}",
        )
    projector = on_tower("install", projector, tower)
    for replica in engine._model_replicas:
        _check_replica(replica, projector, tower)
    installed = Installed(engine, projector, tower)
    for replica in engine._model_replicas:
        installed._install(replica)
    return installed


def _project(
    projector: Projector | ProjectorBank, rows: Tensor, said: list[Asked | None]
) -> Tensor:
    """Each row by what was said with it; NaN where nothing was, or its tenant is gone."""
    if isinstance(projector, Projector):
        return projector.edit_features(rows)
    return serve(projector, rows, said)[0]


def _check_stopped(engine: Any) -> None:
    if not hasattr(engine, "_model_replicas") or not hasattr(engine, "is_running"):
        got = type(engine).__name__
        raise TypeError(f"install: engine must be infinity's AsyncEmbeddingEngine, got {got}")
    if engine.is_running:
        raise RuntimeError("install: engine must not be running, got one that is; stop it first")


def _check_replica(replica: Any, projector: Projector | ProjectorBank, tower: str) -> None:
    kind = type(replica)
    if kind.__name__ != "TIMM" or replica.is_colipali:
        raise TypeError(
            "install: engine must serve a CLIP-like model by infinity's TIMM, got "
            f"{kind.__module__}.{kind.__qualname__}; for a text pipeline there is "
            "clipproj.plugins.sentence_transformers"
        )
    if "encode_core" in vars(replica):
        raise RuntimeError("install: engine must be as infinity made it, got one installed into")
    width = find_heads(replica.model)[tower].width
    if projector.dim != width:
        raise Refusal("install", "projector", f"must be of width {width}, got {projector.dim}")
    if isinstance(projector, ProjectorBank):
        device = projector.index([None]).device
        if device != replica.model.device:
            raise Refusal(
                "install",
                "bank",
                f"must be on the model's device, {replica.model.device}, got {device}",
            )
