"""Heat maps: of the real pass, of nothing where the text is erased, and the model as it was."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from towers import ALL, NAMES, Setting, settings

from clipproj import demo, nullspace
from clipproj.audit.images import Images, image_features, load_images
from clipproj.audit.patches import (
    attention_maps,
)  # fmt: skip
from clipproj.audit.relevance import _correlation, _kept, relevance
from clipproj.audit.samples import Samples
from clipproj.audit.stats import plain
from clipproj.checkpoints.checkpoint import Loaded, load_model
from clipproj.models.text import embed_classes
from clipproj.projector import Projector
from clipproj.report.sections import relevance as section


@pytest.fixture
def setting(tmp_path: Path) -> Callable[[str], Setting]:
    return settings(tmp_path)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", ["image", "text"])
def test_an_erased_text_has_no_heat_anywhere(name: str, side: str, setting: Callable) -> None:
    s = setting(name)
    one = s.samples()
    with pytest.warns(UserWarning, match="without keep"):
        edit = nullspace(one.classes.select(["bee"]), side=side)
    result = relevance(one, edit, ["bee"], s.model, s.preprocess, attention=True)
    (bee,) = result.forgotten
    assert bee.before > 0.01
    assert bee.after < 1e-5 * bee.before
    assert bee.kept < 1e-5
    assert bee.turned < 1e-5
    assert bee.before.n == 2
    assert result.kept.before.n == 4
    assert result.kept.kept > 0.3
    assert result.kept.attended > 0.3
    assert {heat.name for heat in result.nearest} == {"ant", "cow"}
    by_text = [
        lambda z, i: (z * one.texts[1]).sum(dim=1),
        lambda z, i: (Projector(one.texts[1:2])(z) * one.texts[1]).sum(dim=1),
    ]
    before, after = attention_maps(s.model, s.preprocess, s.images, by_text, batch_size=4)
    assert before.shape == (6, *result.grid)
    assert before.amax() > 1e-4
    assert after.amax() < 1e-5 * before.amax()


def test_heat_is_what_the_edit_leaves_and_what_it_turns(setting: Callable) -> None:
    s = setting("open_clip")
    one = s.samples()
    direction = one.texts[1:2]
    for strength in (0.0, 0.25, 1.0, 2.0):
        edit = Projector(direction, strength=strength)
        (bee,) = relevance(one, edit, ["bee"], s.model, s.preprocess).forgotten
        # z.t goes to (1 - s) z.t at every position; at 2 what was cold is hot, and the reverse
        if strength <= 1:
            assert bee.kept == pytest.approx(1 - strength, abs=1e-5)
        else:
            assert bee.turned == pytest.approx(1 - bee.kept, abs=1e-5)
        if strength == 0:
            assert bee.turned == pytest.approx(0, abs=1e-5)
        assert math.isnan(bee.attended)
    unchanged = relevance(one, lambda rows: rows, ["bee"], s.model, s.preprocess)
    assert unchanged.kept.correlation == pytest.approx(1)
    assert unchanged.forgotten[0].answered_before == unchanged.forgotten[0].answered_after


@pytest.mark.parametrize("name", ["open_clip", "OpenAI ResNet", "CLIPModel"])
def test_the_model_is_left_as_it_was(name: str, setting: Callable) -> None:
    s = setting(name)
    one = s.samples()
    s.model.train()
    next(s.model.children()).eval()
    modes = [module.training for module in s.model.modules()]
    before = {key: value.clone() for key, value in s.model.state_dict().items()}

    def breaks(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no more images")

    edit = Projector(one.texts[:1])
    relevance(one, edit, ["ant"], s.model, s.preprocess, attention=True)
    with pytest.raises(OSError, match="no more images"):
        relevance(one, edit, ["ant"], s.model, breaks, attention=True)
    with pytest.raises(OSError, match="no more images"):
        attention_maps(s.model, breaks, s.images, [lambda z, _: z[:, 0]])
    assert [module.training for module in s.model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in s.model.modules())
    assert all(parameter.grad is None for parameter in s.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in s.model.state_dict().items())


def test_relevance_refuses(setting: Callable) -> None:
    s = setting("open_clip")
    one = s.samples()
    edit = Projector(one.texts[:1])

    def call(
        samples: Samples = one, forget: Any = ("ant",), model: Any = s.model, **more: Any
    ) -> None:
        relevance(samples, edit, forget, model, s.preprocess, **more)

    without = Samples(one.features, one.labels, one.classes)
    other = Samples(1.1 * one.features, one.labels, one.classes, paths=one.paths)
    for text, options in (
        ("paths, got features without", {"samples": without}),
        ("must have an image, got none", {"samples": one.take(one.labels < 0)}),
        ("forget must be some of the", {"forget": NAMES}),
        ("close: 'ant'", {"forget": ["aunt"]}),
        ("per_class must be at least 1", {"per_class": 0}),
        ("off by 0.0", {"samples": other}),
    ):
        with pytest.raises(ValueError, match=text):
            call(**options)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module"):
        call(model="clip")


def test_shares_and_correlations_by_hand() -> None:
    before = torch.tensor([[1.0, 2, 3], [0, 0, 0], [2, 2, 2]]).double()
    after = torch.tensor([[2.0, 4, 6], [1, 2, 3], [1, 1, 0]]).double()
    assert _kept(before, after) == pytest.approx(20 / 12)
    assert _kept(before, 0 * after) == 0
    assert math.isnan(_kept(0 * before, after))
    assert _correlation(before, after)[0] == pytest.approx(1)
    assert _correlation(before, after)[1:].isnan().all()  # a flat map has no correlation
    assert _correlation(before[:1], -after[:1]) == pytest.approx(-1)


@pytest.fixture(scope="module")
def embedded() -> tuple[Loaded, Samples]:
    loaded = load_model()
    found = load_images(demo.images_dir())
    names = ("cat", "dog", "house", "tiger")
    keep = [i for i in range(len(found)) if found.classes[found.labels[i]] in names]
    labels = [names.index(found.classes[found.labels[i]]) for i in keep]
    some = Images(tuple(found.paths[i] for i in keep), torch.tensor(labels), names)
    features = image_features(loaded.model, loaded.preprocess, some)
    templates = ["a photo of a {}."]
    classes = embed_classes(loaded.model, loaded.tokenizer, found.classes, templates)
    labels = torch.tensor([found.classes.index(names[label]) for label in labels])
    return loaded, Samples(features, labels, classes, paths=some.paths)


def test_the_embedded_model_loses_the_cat_and_keeps_the_others(embedded: tuple) -> None:
    loaded, one = embedded
    edit = nullspace(one.classes.select(["cat"]), one.classes.drop(["cat"]), "mean", strength=1.5)
    result = relevance(
        one, edit, ["cat"], loaded.model, loaded.preprocess, per_class=5, attention=True
    )
    (cat,) = result.forgotten
    assert result.grid == (2, 2)
    assert result.images == 20
    assert cat.answered_before > 0.5 > cat.answered_after
    assert max(cat.kept, cat.apart, cat.attended) < 0.2
    assert cat.turned > 0.1
    assert result.kept.correlation > 0.85
    assert min(result.kept.apart, result.kept.attended) > 0.7
    page = section.page(result)
    assert "turned against them" in page.lead
    assert page.tables[0].rows[0][0] == "cat"
    assert json.loads(json.dumps(plain(result), allow_nan=False))["grid"] == [2, 2]
    data = base64.b64decode(page.figures[0].source.split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (3 * 116, len(result.drawn) * 116)
    assert result.drawn[:2] == ("cat", "cat")
    # what the model sees, heat before, and none of it after
    seen, before, after = result.image[:116].float().split(116, dim=1)
    colour = [float((one.amax(dim=2) - one.amin(dim=2)).mean()) for one in (before, after)]
    assert colour[0] > 20 > 5 > colour[1]
    assert seen.std() > 10


def test_nothing_is_drawn_when_nothing_is_asked_for(embedded: tuple) -> None:
    loaded, one = embedded
    edit = Projector(one.texts[:1])
    result = relevance(one, edit, ["cat"], loaded.model, loaded.preprocess, per_class=1, drawn=0)
    assert result.drawn == ()
    assert section.page(result).figures == ()
    assert len(section.page(result).tables[0].columns) == 9


def test_a_forgotten_class_without_images_is_told_and_has_no_map(setting: Callable) -> None:
    s = setting("open_clip")
    one = s.samples()
    some = one.take(one.labels > 0)
    result = relevance(some, Projector(one.texts[:1]), [NAMES[0], NAMES[1]], s.model, s.preprocess)
    assert [heat.name for heat in result.forgotten] == [NAMES[1]]
    assert f"There is no image of “{NAMES[0]}”, so no map." in section.page(result).lead
