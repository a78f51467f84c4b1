"""The module in the library's own pipeline: encode, save, load, one tenant a call or many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import WIDTH
from plugin_models import bank, clip_folder, image, oblique, projector
from torch import Tensor

from clipproj import Projector, compose

st = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
from sentence_transformers.base.modules import Transformer  # noqa: E402
from sentence_transformers.sentence_transformer import modules  # noqa: E402

from clipproj.plugins.sentence_transformers import Projection, encode_rows, to_dense  # noqa: E402

IMAGES = [image(i, size) for i, size in enumerate((16, 48, 32, 64, 24))]
TEXTS = ["a cat", "a much longer text", "dogs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("plugins") / "clip")


@pytest.fixture(params=["Transformer", "CLIPModel"])
def clip(request: pytest.FixtureRequest, folder: Path) -> torch.nn.Module:
    """The library's current module for CLIP, and its older one."""
    kind = Transformer if request.param == "Transformer" else modules.CLIPModel
    return kind(str(folder))


def pipeline(*parts: torch.nn.Module) -> st.SentenceTransformer:
    return st.SentenceTransformer(modules=list(parts), device="cpu")


def encode(model: st.SentenceTransformer, inputs: list, **options: object) -> Tensor:
    return model.encode(inputs, convert_to_tensor=True, batch_size=2, **options).clone()


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).norm(dim=-1).max() < 1e-5 * want.norm(dim=-1).max()


def test_edits_images_lets_texts_pass_and_is_saved_with_the_model(
    clip: torch.nn.Module, tmp_path: Path
) -> None:
    p, plain = oblique(), pipeline(clip)
    images, texts = encode(plain, IMAGES), encode(plain, TEXTS)
    model = pipeline(clip, Projection(p))
    close(encode(model, IMAGES), p(images))
    close(encode(model, IMAGES, strength=0.25), p(images, 0.25))
    close(encode(model, IMAGES, normalize_embeddings=True), p(images, normalize=True))
    assert torch.equal(encode(model, TEXTS), texts)
    assert model.get_embedding_dimension() == WIDTH

    model = pipeline(clip, Projection(p, normalize=True))
    close(encode(model, IMAGES), p(images, normalize=True))
    close(encode(model, TEXTS), torch.nn.functional.normalize(texts, dim=-1))

    model.save_pretrained(str(tmp_path / "model"))
    loaded = st.SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    assert torch.equal(encode(loaded, IMAGES), encode(model, IMAGES))
    assert loaded[1].projector.content_hash() == p.content_hash()
    assert (loaded[1].modality, loaded[1].normalize) == ("image", True)


def test_the_text_tower_takes_the_transpose(folder: Path) -> None:
    clip, p = Transformer(str(folder)), oblique()
    images, texts = encode(pipeline(clip), IMAGES), encode(pipeline(clip), TEXTS)
    model = pipeline(clip, Projection(p, modality="text"))
    close(encode(model, TEXTS), p.T(texts))
    assert torch.equal(encode(model, IMAGES), images)


def test_a_text_pipeline_that_has_no_modality() -> None:
    words = {w: i for i, w in enumerate(("a", "cat", "dog"))}
    tokenizer = st.sentence_transformer.modules.tokenizer.WhitespaceTokenizer(words, set())
    weights = torch.randn(len(words) + 1, WIDTH)
    first = modules.WordEmbeddings(tokenizer, weights)
    parts = first, modules.Pooling(WIDTH)
    before, p = encode(pipeline(*parts), ["a cat", "dog"]), projector(side="text")
    close(encode(pipeline(*parts, Projection(p)), ["a cat", "dog"]), p(before))


def test_a_bank_takes_one_tenant_a_call(clip: torch.nn.Module, tmp_path: Path) -> None:
    b = bank()
    acme, umbrella = b.projector("acme"), b.projector("umbrella")
    before, texts = encode(pipeline(clip), IMAGES), encode(pipeline(clip), TEXTS)
    model = pipeline(clip, Projection(b))
    assert {"tenant", "strength"} <= set(model.get_model_kwargs())
    close(encode(model, IMAGES, tenant="acme"), acme(before))
    close(encode(model, IMAGES, tenant="umbrella"), umbrella(before))
    close(encode(model, IMAGES, tenant="umbrella", strength=0.5), umbrella(before, 0.5))
    close(encode(model, IMAGES, tenant=("acme", "umbrella")), compose(acme, umbrella)(before))
    assert torch.equal(encode(model, IMAGES, tenant=None), before)
    assert torch.equal(encode(model, TEXTS, tenant="acme"), texts)

    with pytest.raises(RuntimeError, match="tenant must be given"):
        encode(model, IMAGES)
    with pytest.raises(RuntimeError, match="tenant must be given"):
        encode(model, TEXTS)
    with pytest.raises(TypeError, match=r"encode\(\) reorders them, got list"):
        encode(model, IMAGES[:2], tenant=["acme", "umbrella"])
    with pytest.raises(ValueError, match="in the bank, got 'x'"):
        encode(model, IMAGES, tenant="x")

    model.save_pretrained(str(tmp_path / "model"))
    loaded = st.SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    assert torch.equal(encode(loaded, IMAGES, tenant="acme"), encode(model, IMAGES, tenant="acme"))


def test_a_tenant_for_each_input_in_the_callers_order(folder: Path) -> None:
    """encode() sorts by length, so this is where tenants would get each other's rows."""
    clip, b = Transformer(str(folder)), bank()
    before = encode(pipeline(clip), IMAGES)
    model = pipeline(clip, Projection(b, normalize=True))
    names = ["acme", None, "umbrella", "acme", ("acme", "umbrella")]
    strength = [1.0, 1.0, 0.5, 2.0, 1.0]
    ps = [
        None if n is None else compose(*map(b.projector, n)) if type(n) is tuple else b.projector(n)
        for n in names
    ]
    want = [z if p is None else p(z) for z, p in zip(before, ps, strict=True)]
    unit = torch.nn.functional.normalize
    close(encode_rows(model, IMAGES, names, batch_size=2), unit(torch.stack(want), dim=-1))
    want = [z if p is None else p(z, s) for z, p, s in zip(before, ps, strength, strict=True)]
    close(encode_rows(model, IMAGES, names, strength), unit(torch.stack(want), dim=-1))

    with pytest.raises(ValueError, match="one name for each of 5 inputs, got 1"):
        encode_rows(model, IMAGES, ["acme"])
    with pytest.raises(ValueError, match="in the bank, got 'x'"):
        encode_rows(model, IMAGES, ["x"] * 5)
    with pytest.raises(ValueError, match="all be of modality 'image', got 'text'"):
        encode_rows(model, TEXTS, ["acme"] * 3)
    with pytest.raises(TypeError, match=r"for speed alone, got \['tenant'\]"):
        encode_rows(model, IMAGES, names, tenant="acme")
    with pytest.raises(TypeError, match="must end with a Projection of a bank, got Projection"):
        encode_rows(pipeline(clip, Projection(projector())), IMAGES, names)
    with pytest.raises(RuntimeError, match="tenant must be given"):  # nothing is left behind
        encode(model, IMAGES)


@pytest.mark.parametrize("affine", [False, True])
def test_as_the_librarys_own_dense(folder: Path, tmp_path: Path, affine: bool) -> None:
    p = oblique()
    if affine:
        p = Projector(p.read, p.write, torch.tensor([0.3, -0.2]), 0.5)
    clip = Transformer(str(folder))
    model = pipeline(clip, to_dense(p))
    close(encode(model, IMAGES), p(encode(pipeline(clip), IMAGES)))
    model.save_pretrained(str(tmp_path / "model"))
    loaded = st.SentenceTransformer(str(tmp_path / "model"), device="cpu")  # no trust needed
    assert torch.equal(encode(loaded, IMAGES), encode(model, IMAGES))
    # what text-embeddings-inference looks for
    config = json.loads((tmp_path / "model" / "1_Dense" / "config.json").read_text())
    assert config["activation_function"] == "torch.nn.modules.linear.Identity"
    assert (config["in_features"], config["out_features"], config["bias"]) == (WIDTH, WIDTH, affine)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be a Projector or a ProjectorBank, got Tensor"):
        Projection(torch.eye(WIDTH))
    with pytest.raises(ValueError, match="bank must be of side 'text', got 'image'"):
        Projection(bank(), modality="text")
    with pytest.raises(ValueError, match='must be "image" or "text"'):
        Projection(projector(), modality="audio")
    with pytest.raises(ValueError, match="no offset on the text tower"):
        Projection(Projector(torch.eye(WIDTH)[:1], offset=torch.ones(1)), modality="text")
    with pytest.raises(TypeError, match="to_dense: projector must be a Projector"):
        to_dense(bank())
    rows = {"sentence_embedding": torch.randn(2, WIDTH), "modality": "message"}
    with pytest.raises(ValueError, match="got 'message'"):
        Projection(projector())(rows)
    with pytest.raises(ValueError, match=r"must be \[n, 8\], got \[2, 32\]"):
        Projection(projector(dim=8))(rows | {"modality": "image"})
    with pytest.raises(TypeError, match="tenant must come with a bank"):
        Projection(projector())(rows | {"modality": "image"}, tenant="acme")
    Projection(projector()).save(str(tmp_path))
    (tmp_path / "projector.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"projector.safetensors is missing"):
        Projection.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="must name a projector or a bank, got kind None"):
        Projection.load(str(tmp_path))
