"""infinity's own engine, batching requests of several tenants in its own threads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import plugin_models
import pytest
import torch
from plugin_models import bank, clip_folder, image, oblique, projector
from transformers import CLIPModel, CLIPProcessor

from clipproj import compose
from clipproj.models.encoder import features
from clipproj.plugins.infinity import install

infinity = plugin_models.infinity()

IMAGES = [image(i, size) for i, size in enumerate((32, 48, 40))]
TEXTS = ["a cat", "a much longer text", "dogs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("plugins") / "clip")


def engine(folder: Path, **more: Any) -> Any:
    args = {"engine": "torch", "device": "cpu", "model_warmup": False, "batch_size": 8}
    args |= {"bettertransformer": False, "compile": False} | more
    return infinity.AsyncEmbeddingEngine.from_args(
        infinity.EngineArgs(model_name_or_path=str(folder), **args)
    )


@pytest.fixture
def plain(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of IMAGES and of TEXTS, from transformers alone."""
    model, processor = (
        CLIPModel.from_pretrained(folder).eval(),
        CLIPProcessor.from_pretrained(folder),
    )
    with torch.no_grad():
        images = features(model.get_image_features(**processor(images=IMAGES, return_tensors="pt")))
        texts = processor(text=TEXTS, return_tensors="pt", padding=True, truncation=True)
        return images, features(model.get_text_features(**texts))


def close(got: list[np.ndarray], want: torch.Tensor) -> None:
    want = torch.nn.functional.normalize(want, dim=-1)
    assert (torch.from_numpy(np.stack(got)) - want).norm(dim=-1).max() < 1e-5


def test_requests_of_several_tenants_share_batches(folder: Path, plain: Any) -> None:
    images, texts = plain
    b = bank()
    acme, umbrella = b.projector("acme"), b.projector("umbrella")
    served = install(engine(folder), b)
    sizes: list[int] = []
    replica = served.engine._model_replicas[0]
    inner = replica.encode_core
    replica.encode_core = lambda prepared: (sizes.append(len(prepared[1])), inner(prepared))[1]

    async def requests() -> None:
        async with served.engine:
            jobs = [
                (("acme", None), acme(images)),
                (("umbrella", 0.5), umbrella(images, 0.5)),
                ((None, None), images),
                (("umbrella", None), umbrella(images)),
                ((("acme", "umbrella"), None), compose(acme, umbrella)(images)),
            ]
            calls = [
                served.image_embed(images=IMAGES, tenant=tenant, strength=strength)
                for (tenant, strength), _ in jobs
            ]
            *got, plain_texts = await asyncio.gather(*calls, served.engine.embed(TEXTS))
            for (vectors, _), (_, want) in zip(got, jobs, strict=True):
                close(vectors, want)
            close(plain_texts[0], texts)
            for bad, kind in (
                ({"tenant": "x"}, ValueError),
                ({"tenant": "acme", "strength": 3.0}, ValueError),
            ):
                with pytest.raises(kind):
                    await served.image_embed(images=IMAGES, **bad)
            with pytest.raises(TypeError, match="bank for text features"):
                await served.embed(TEXTS, tenant="acme")
            with pytest.raises(RuntimeError, match="must not be running"):
                served.remove()
            # around the plug-in, as infinity's server would: no vector rather than an unedited one
            unsaid, _ = await served.engine.image_embed(images=IMAGES)
            assert np.isnan(np.stack(unsaid)).all()
            vectors, _ = await served.image_embed(images=IMAGES[:1], tenant="acme")
            close(vectors, acme(images[:1]))

    asyncio.run(requests())
    assert max(sizes) > len(IMAGES), "no batch had images of two requests"


def test_a_tenant_removed_while_its_images_wait_gets_an_error(folder: Path, plain: Any) -> None:
    b = bank()
    served = install(engine(folder), b)
    replica = served.engine._model_replicas[0]
    inner = replica.encode_core

    def slow(prepared: Any) -> Any:
        if "acme" in b:
            b.remove("acme")
        return inner(prepared)

    replica.encode_core = slow

    async def requests() -> None:
        async with served.engine:
            gone = served.image_embed(images=IMAGES, tenant="acme")
            stays = served.image_embed(images=IMAGES, tenant="umbrella")
            lost, kept = await asyncio.gather(gone, stays, return_exceptions=True)
            assert isinstance(lost, RuntimeError)
            assert "got 'acme' removed" in str(lost)
            close(kept[0], b.projector("umbrella")(plain[0]))

    asyncio.run(requests())


@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_projector_for_every_request_and_out_again(
    folder: Path, plain: Any, tower: str
) -> None:
    p = oblique()
    images, texts = plain
    served = install(engine(folder), p, tower)

    async def requests() -> None:
        async with served.engine:
            got, _ = await served.engine.image_embed(images=IMAGES)
            close(got, p(images) if tower == "image" else images)
            got, _ = await served.engine.embed(TEXTS)
            close(got, p.T(texts) if tower == "text" else texts)
            with pytest.raises(TypeError, match="tenant must come with a bank"):
                await served.image_embed(images=IMAGES, tenant="acme")

    asyncio.run(requests())
    served.remove()
    assert not {"encode_pre", "encode_core"} & set(vars(served.engine._model_replicas[0]))


def test_texts_of_several_tenants(folder: Path, plain: Any) -> None:
    b = bank(side="text")
    served = install(engine(folder), b, "text")

    async def requests() -> None:
        async with served.engine:
            names = ["acme", "umbrella", None]
            got = await asyncio.gather(*(served.embed(TEXTS, tenant=name) for name in names))
            for name, (vectors, _) in zip(names, got, strict=True):
                close(vectors, plain[1] if name is None else b.projector(name)(plain[1]))

    asyncio.run(requests())


def test_refusals(folder: Path, tmp_path: Path) -> None:
    made = engine(folder)
    with pytest.raises(TypeError, match="must be infinity's AsyncEmbeddingEngine, got Linear"):
        install(torch.nn.Linear(2, 2), bank())
    with pytest.raises(ValueError, match="of width 32, got 8"):
        install(made, projector(dim=8))
    with pytest.raises(ValueError, match="of side 'text', got 'image'"):
        install(made, bank(), "text")
    with pytest.raises(TypeError, match="must be a Projector or a ProjectorBank"):
        install(made, torch.eye(32))
    install(made, bank())
    with pytest.raises(RuntimeError, match="got one installed into"):
        install(made, bank())
    with pytest.raises(ValueError, match="must give float32 vectors"):
        install(engine(folder, embedding_dtype="int8"), bank())
    with pytest.raises(ValueError, match="must not cache vectors"):
        install(engine(folder, vector_disk_cache_path=str(tmp_path)), bank())
