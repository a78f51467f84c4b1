"""A tenant's projector from names or from a file."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")
pytest.importorskip("pydantic")

from PIL import Image
from serving import D

import clipproj
from clipproj.audit import Limits
from clipproj.checkpoints.checkpoint import load_model
from clipproj.recipe import Recipe
from clipproj.serve import parse
from clipproj.serve.engine import Engine
from clipproj.serve.errors import ServiceError
from clipproj.serve.inputs import Item, Job
from clipproj.serve.make import from_file, from_names
from clipproj.serve.settings import Settings
from clipproj.serve.store import Changes, describe, from_bytes, to_bytes

LIFTED = Limits(1, 1)  # of a tiny model, made for six names


def tenant(forget: str, keep: tuple[str, ...] | None = None, **options: Any) -> Recipe:
    """With one short template."""
    templates = options.pop("templates", ("a {}",))
    return Recipe((forget,), keep or (), templates, command="make", **options)


def test_a_projector_from_names_as_erase_makes_it(model: Path) -> None:
    loaded = load_model(str(model))  # tiny, and not the embedded one: it has no list of its own
    made = from_names(loaded, tenant("cat", limits=LIFTED), 10_000)
    keep = made.provenance["keep"]["names"]
    assert len(keep) > 900
    assert "cat" not in keep
    assert made.provenance["parameters"]["contrast"] == "neighbours"
    assert made.one_sided
    told = describe("acme", made)
    assert (told["form"], told["half_spaces"], told["text_hash"]) == ("one-sided", 1, None)
    assert told["threshold"] == made.provenance["parameters"]["threshold"]
    folded = from_names(loaded, tenant("cat", limits=LIFTED), 10_000, one_sided=0)
    assert not folded.one_sided  # as the bank of a service without room for others takes it
    assert folded.provenance["measured"]
    closed = tenant(
        "cat", ("dog", "owl"), method="ccup", options={"keep_weight": 1.0}, strength=0.5
    )
    made = from_names(loaded, closed, 10_000)
    assert made.provenance["parameters"] == {"forget_weight": 10.0, "keep_weight": 1.0}
    assert float(made.strength) == 0.5
    for spec in (
        tenant("cat", ("cat",)),
        tenant("cat", templates=("a {}",) * 11),  # of a thousand names
    ):
        with pytest.raises(ServiceError) as refused:
            from_names(loaded, spec, 10_000)
        assert refused.value.status == 400


@pytest.mark.filterwarnings("ignore:erase. there are no images of 'gi raffe'")
def test_a_name_makes_the_projector_of_the_command_line_however_it_is_spelt(
    engine: Engine,
) -> None:
    pytest.importorskip("rich")
    from clipproj.cli.erase import erase

    names, lifted = ["gi_raffe"], Limits(1, 1)  # of no image folder: embedded as it is given
    theirs = erase(Recipe(names, templates=("a {}",), limits=lifted)).projector
    body = {"forget": names, "templates": ["a {}"], "max_loss": 1, "max_found": 1}
    spec = parse.spec(json.dumps(body).encode(), Settings())
    made = from_names(engine.loaded, spec, 10_000)
    assert made.content_hash() == theirs.content_hash()
    assert made.provenance["forget"] == theirs.provenance["forget"]
    assert spec == parse.spec(json.dumps(body | {"forget": [" gi  raffe"]}).encode(), Settings())


def test_the_embedded_models_names_are_known_in_any_spelling(engine: Engine) -> None:
    made = from_names(engine.loaded, tenant("Ice_Cream"), 10_000)
    keep = made.provenance["keep"]["names"]
    assert "cat" in keep
    assert "ice cream" not in keep


def test_a_projector_that_costs_too_much_is_refused_and_a_good_one_tells_its_price(
    model: Path,
) -> None:
    loaded = load_model(str(model))
    weak = tenant("cat", ("dog", "owl"), strength=0.05)
    with pytest.raises(ServiceError, match=r"^refused: Of the forgotten names 100") as refused:
        from_names(loaded, weak, 10_000)
    assert (refused.value.status, refused.value.code) == (422, "edit_refused")
    assert refused.value.message.endswith(
        "What may help: strength 1. max_loss and max_found set the limits."
    )
    allowed = from_names(loaded, replace(weak, limits=LIFTED), 10_000)
    assert describe("acme", allowed)["measured"]["found"]["after"] > 0.5
    good = from_bytes(to_bytes(from_names(loaded, replace(weak, strength=None), 10_000)))
    measured = describe("acme", good)["measured"]
    assert measured["found"] == {"before": 1, "after": 0, "of": 2, "on": "mixture of texts"}


def test_what_the_served_model_forgot_before_is_not_kept(model: Path) -> None:
    loaded = load_model(str(model))
    history = {"forget": {"names": ["goldfish"]}}
    clipproj.edit(loaded.model, clipproj.Projector(torch.eye(16)[:1], provenance=history))
    made = from_names(loaded, tenant("cat", limits=LIFTED), 10_000)
    keep = made.provenance["keep"]["names"]
    assert len(keep) > 900
    assert "goldfish" not in keep


def test_a_projector_of_another_model_is_refused(
    engine: Engine, projectors: dict[str, clipproj.Projector]
) -> None:
    p = projectors["sym1"]
    foreign = clipproj.Projector(p.read, provenance={"model": "other", "head_hash": "0" * 64})
    with pytest.raises(ServiceError, match="must come from this model"):
        from_file(engine, to_bytes(foreign))
    assert from_file(engine, to_bytes(p)).content_hash() == p.content_hash()
    before = engine.tenants.version
    with pytest.raises(ValueError, match="tenant 'x' must come from this model"):
        engine.apply(Changes(1, before + 1, {"x": to_bytes(foreign)}))
    assert engine.tenants.version == before


def test_an_uploaded_projector_of_odd_provenance_is_refused(engine: Engine) -> None:
    odd = clipproj.Projector(torch.eye(1, D))
    for odd.provenance in ({"keep": {"names": 5}}, {"forget": {"names": [1, 2]}}, {"forget": []}):
        with pytest.raises(ServiceError, match="a projector's provenance") as refused:
            from_file(engine, to_bytes(odd))
        assert (refused.value.status, refused.value.code) == (400, "invalid_projector")


def test_an_integer_too_large_for_a_float_is_refused() -> None:
    body = b'{"input": "a", "projector": "b", "strength": 1' + b"0" * 400 + b"}"
    with pytest.raises(ServiceError, match="finite number") as caught:
        parse.embeddings(body, Settings())
    assert (caught.value.status, caught.value.param) == (400, "strength")


def test_prompts_that_the_model_would_cut_are_refused(engine: Engine) -> None:
    long = "dog " * 90
    request = Job((Item("text", "a cat"),), classes=("cat", long), templates=("a {}.",))
    (refused,) = engine.answer([request])
    assert (refused.status, refused.code, refused.param) == (400, "text_too_long", "classes[1]")
    for spec in (tenant(long, ("cat",)), tenant("cat", ("dog", long))):
        with pytest.raises(ServiceError, match=r"(forget.0.|keep.1.) in .* must have .* got 9\d"):
            from_names(engine.loaded, spec, 10_000)


def test_the_drawings_class_is_not_kept_in_another_spelling(engine: Engine) -> None:
    made = from_names(engine.loaded, tenant("Ice_Cream"), 10_000)
    keep = made.provenance["keep"]["names"]
    assert len(keep) == 53
    assert "ice cream" not in keep


def test_inputs_that_would_cost_too_much_or_mean_nothing(engine: Engine) -> None:
    (refused,) = engine.answer([Job((Item("embedding", np.full(D, 1e-14, np.float32)),))])
    assert refused.status == 400
    assert "longer than" in refused.message
    image = io.BytesIO()
    Image.new("L", (6000, 6000)).save(image, "PNG")  # 36 million pixels in 40 kB
    many = tuple(Item("image", image.getvalue()) for _ in range(6))
    (refused,) = engine.answer([Job(many)])
    assert (refused.status, refused.code) == (400, "image_too_large")
    with pytest.raises(ServiceError, match="at most 2048 letters"):
        parse.embeddings(json.dumps({"input": "a" * 3000}).encode(), Settings())
    body = {"input": "a", "classes": ["cat", "a" * 3000]}
    with pytest.raises(ServiceError, match=r"classes\[1\] must have at most 2048 letters"):
        parse.classify(json.dumps(body).encode(), Settings())
