"""A default device of the caller's moves nothing: tensors are made where what they belong to is.

"meta" stands in for a GPU: what is made there by mistake has no values, and mixes with nothing.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Run
from editing import bits, projector
from families import FAMILIES, ROWS, WIDTH
from plugin_models import clip_folder
from torch import Tensor

import clipproj
from clipproj import audit, demo
from clipproj.algebra import compose, union
from clipproj.audit import audits as every_audit
from clipproj.checkpoints.checkpoint import load_model
from clipproj.plugins.hugging_face import attach

FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal",
    "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros",
}  # fmt: skip


@pytest.fixture
def elsewhere() -> Iterator[Callable[[], Any]]:
    """Sets the default device; it is set back after the test."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


def rows(count: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, device="cpu"), dim=1)


def test_every_tensor_names_its_device() -> None:
    missing = []
    for path in sorted(Path(clipproj.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("torch"), attr=name)):
                    named = {keyword.arg for keyword in node.keywords}
                    if name in FACTORIES and not named & {"device", None}:
                        missing.append(f"{path.name}:{node.lineno}: torch.{name}")
    assert missing == []


def test_every_float_tensor_names_its_dtype() -> None:
    floats = {"empty", "eye", "linspace", "logspace", "normal", "ones", "rand", "randn", "zeros"}
    missing = []
    for path in sorted(Path(clipproj.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("torch"), attr=name)):
                    named = {keyword.arg for keyword in node.keywords}
                    if name in floats and not named & {"dtype", None}:
                        missing.append(f"{path.name}:{node.lineno}: torch.{name}")
    assert missing == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_default_dtype_changes_no_model_and_no_feature(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    from clipproj.audit.images import image_features

    folder = clip_folder(tmp_path / "clip")
    images, p = audit.load_images(demo.images_dir()), projector().scaled(0.3)

    def made() -> list[Tensor]:
        rows, bank = [], clipproj.ProjectorBank(WIDTH, capacity=8)
        for name in (None, str(folder)):
            loaded = load_model(name)
            rows += loaded.model.state_dict().values()
            few = replace(images, paths=images.paths[:3], labels=images.labels[:3])
            rows.append(image_features(loaded.model, loaded.preprocess, few))
            rows.append(
                clipproj.embed_classes(loaded.model, loaded.tokenizer, ["cat"], ["a {}"]).tensor
            )
        bank.add("acme", p)
        return [*rows, bank(torch.ones(1, WIDTH, dtype=torch.float32), bank.index(["acme"]))]

    wanted = made()
    torch.set_default_dtype(dtype)
    try:
        got = made()
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    for one, want in zip(got, wanted, strict=True):
        assert one.dtype == want.dtype
        assert torch.equal(one, want)


def test_projectors(elsewhere: Callable[[], Any], tmp_path: Path) -> None:
    x = torch.randn(4, WIDTH)
    p, q, other = projector(), projector("affine"), projector(seed=5)
    wanted = [one(x, 0.5, normalize=True) for one in (p, q)]
    elsewhere()
    for one, want in zip((p, q), wanted, strict=True):
        one.save(tmp_path / "p.safetensors")
        again = clipproj.load(tmp_path / "p.safetensors")
        again.load_state_dict(one.state_dict())
        assert torch.equal(again(x, 0.5, normalize=True), want)
        assert torch.equal(one.scaled(0.5)(x, normalize=True), want)
        moved = x @ one.dense() + one.shift()
        torch.testing.assert_close(moved, one(x), atol=1e-5, rtol=0)
        assert one.residual(x).shape == (4,)
        assert compose(one, p)(x).isfinite().all()
    assert union(p, other)(x).isfinite().all()


def test_methods(elsewhere: Callable[[], Any]) -> None:
    forget, keep, target = rows(2), rows(20), rows(1)
    elsewhere()
    made = [
        clipproj.nullspace(forget, keep),
        clipproj.nullspace(forget, keep, "hull"),
        clipproj.ccup(forget, keep),
        clipproj.redirect(forget, target, keep),
        clipproj.redirect(forget, "self", keep),
        clipproj.rotate(forget, keep=keep),
        clipproj.subgroup(forget, keep),
    ]
    for one in made:
        assert one(rows(3)).isfinite().all()
    assert clipproj.coreset(rows(30)) is not None


def test_banks(elsewhere: Callable[[], Any], tmp_path: Path) -> None:
    x, names = torch.randn(5, WIDTH), ["acme", None, ("acme", "beta"), "beta", "acme"]
    p, q, r = projector(), projector(seed=4), projector("affine", seed=5)

    def made() -> clipproj.ProjectorBank:
        bank = clipproj.ProjectorBank(WIDTH, capacity=64)  # where a Projector is: on the CPU
        bank.add("acme", p)
        bank.add("beta", p)
        bank.replace("beta", q)
        bank.add("gone", r)
        bank.remove("gone")
        return bank

    def edited(bank: clipproj.ProjectorBank) -> Tensor:
        return bank(x, bank.index(names), 0.5, normalize=True)

    want = edited(made())
    elsewhere()
    bank = made()
    assert bank.index(names).device.type == "cpu"
    assert torch.equal(edited(bank), want)
    bank.compact()
    bank.save(tmp_path / "b.safetensors")
    again = clipproj.ProjectorBank.load(tmp_path / "b.safetensors")
    assert torch.equal(edited(again), want)
    again.load_state_dict(bank.state_dict())
    assert torch.equal(edited(again), want)
    head = clipproj.ZeroShotHead(rows(7), bank, scale=100.0, bias=-10.0)
    assert head(x, bank.index(names)).isfinite().all()


def test_edits_and_plugins(elsewhere: Callable[[], Any], tmp_path: Path) -> None:
    family = FAMILIES["CLIPModel"]
    model, bank = family.build(), clipproj.ProjectorBank(WIDTH, capacity=8)
    inputs, p = family.inputs("image"), projector()
    bank.add("acme", p)
    original = bits(model)
    with torch.no_grad():
        want = p(model.get_image_features(**inputs).pooler_output)
    elsewhere()
    edit = clipproj.edit(model, p)
    edit.receipt.save(tmp_path / "r.safetensors")
    assert clipproj.verify(model, clipproj.Receipt.load(tmp_path / "r.safetensors"))
    edit.undo()
    assert bits(model) == original
    with attach(model, bank).rows(["acme"] * ROWS, strength=[1.0] * ROWS), torch.no_grad():
        got = model.get_image_features(**inputs).pooler_output
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_texts_and_images(elsewhere: Callable[[], Any], images: Path) -> None:
    def made() -> list[Tensor]:
        loaded = load_model()
        shown = audit.load_images(images)
        texts = clipproj.embed_classes(loaded.model, loaded.tokenizer, ["cat", "dog"], ["a {}."])
        seen = audit.image_features(loaded.model, loaded.preprocess, shown)
        return [shown.labels, texts.tensor, seen]

    wanted = made()
    elsewhere()
    for got, want in zip(made(), wanted, strict=True):
        assert got.device.type == "cpu"
        assert torch.equal(got, want)
    assert len(audit.load_images(demo.images_dir()).labels) > 0


def test_the_service(elsewhere: Callable[[], Any]) -> None:
    pytest.importorskip("pydantic")
    from clipproj.serve.engine import Engine
    from clipproj.serve.inputs import Item, Job
    from clipproj.serve.store import Changes, to_bytes

    store = {"acme": to_bytes(projector(dim=128))}
    requests = [
        Job((Item("text", "a cat", ("acme",), strength=0.5),), receipt=True),
        Job((Item("text", "a dog"),), classes=("cat", "dog"), templates=("a {}.",)),
    ]

    def answers() -> list[Any]:
        engine = Engine(load_model(), capacity=8)
        engine.apply(Changes(1, 1, store))
        return engine.answer(requests)

    wanted = answers()
    elsewhere()
    for got, want in zip(answers(), wanted, strict=True):
        assert (got.rows == want.rows).all()


def test_commands(elsewhere: Callable[[], Any], run: Run, usual: list[str]) -> None:
    elsewhere()
    assert run("erase", "cat", *usual).exit_code == 0
    result = run("audit", "cat", *usual, "--truncate", "--json")  # it reads 16 tokens
    assert result.exit_code == 0, result.output
    audits = json.loads(result.stdout)["audits"]
    assert [key for key in every_audit() if not audits[key]["numbers"]] == ["domains"]
    result = run("compare", "cat", "dog", *usual, "--json")
    assert result.exit_code == 0, result.output
