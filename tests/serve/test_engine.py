"""The engine of the service, without Ray or HTTP: mixed tenants, bad requests, receipts."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip")
pytest.importorskip("pydantic")

from PIL import Image
from serving import D

import clipproj
from clipproj import reference
from clipproj.checkpoints.checkpoint import load_model
from clipproj.serve.engine import Answer, Engine
from clipproj.serve.errors import ServiceError
from clipproj.serve.inputs import Item, Job
from clipproj.serve.store import Changes, to_bytes


def png(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def given(seed: int) -> np.ndarray:
    return torch.randn(D, generator=torch.Generator().manual_seed(seed)).numpy()


def expected(raw: torch.Tensor, p: clipproj.Projector | None, strength: float | None) -> Any:
    """(unit row in float64, bound) of a raw row [1, d]."""
    if p is None:
        p = clipproj.Projector(torch.zeros(0, D))
    factors = p.factors()
    if strength is not None:
        factors["strength"] = torch.tensor(strength)
    made = reference.project(raw, **factors, normalize=True)
    return made[0], reference.tolerance(raw, **factors, normalize=True)[0]


def test_each_row_of_a_mixed_batch_has_its_own_projector(
    engine: Engine, projectors: dict[str, clipproj.Projector]
) -> None:
    p = projectors
    both = clipproj.union(p["sym1"], p["sym5"])
    mixed = clipproj.compose(clipproj.compose(p["sym1"], p["oblique"]), p["sym2"])
    rows = [  # an input, and what it must be edited by
        (Item("embedding", given(0), ("sym1",)), p["sym1"]),
        (Item("embedding", given(1)), None),
        (Item("text", "a red circle", ("sym2",)), p["sym2"].T),
        (Item("image", png((250, 10, 10)), ("oblique",)), p["oblique"]),
        (Item("text", "a fish", ("oblique",), 0.5), p["oblique"].T),
        (Item("image", png((10, 10, 250)), ("affine",)), p["affine"]),
        (Item("embedding", given(2), ("sym5",), 0.25), p["sym5"]),
        (Item("embedding", given(2), ("oblique",), side="text"), p["oblique"].T),
        (Item("image", png((10, 200, 10))), None),
        (Item("embedding", given(3), ("sym1", "sym5")), both),
        (Item("embedding", given(3), ("sym1", "oblique", "sym2")), mixed),
        (Item("text", "a cat", ("sym1", "oblique", "sym2")), mixed.T),
    ]
    # three requests whose kinds and sides are interleaved
    requests = [Job(tuple(one for one, _ in rows[i::3])) for i in range(3)]
    raw = engine.forward([engine.prepare(request) for request in requests])
    answers = engine.answer(requests)
    for i, answer in enumerate(answers):
        assert isinstance(answer, Answer)
        assert answer.rows.dtype == np.float32
        for j, (one, projector) in enumerate(rows[i::3]):
            want, bound = expected(raw[i][j : j + 1], projector, one.strength)
            got = torch.from_numpy(answer.rows[j]).double()
            # a combination's own factors are rounded to float32, in another basis
            allowed = bound + 1e-5 if isinstance(one.projector, tuple) else bound
            assert bool(((got - want).abs() <= allowed).all()), one


def test_logits_and_probabilities(
    engine: Engine, projectors: dict[str, clipproj.Projector]
) -> None:
    classes, templates = ("cat", "dog", "whale"), ("a {}",)
    inputs = (
        Item("embedding", given(0), ("sym1",)),
        Item("text", "a cat", ("oblique",), 0.5),
        Item("image", png((250, 10, 10))),
    )
    request = Job(inputs, True, classes, templates)
    other = Job(inputs[::-1], False, ("owl", "cat"), templates)
    same = Job(inputs[1:], False, classes, templates)
    texts = clipproj.embed_classes(engine.model, engine.loaded.tokenizer, classes, templates)
    (raw,) = engine.forward([engine.prepare(request)])
    answer, reversed_, shared = engine.answer([request, other, same])
    forms = [projectors["sym1"], projectors["oblique"].T, None]
    scale = engine.model.logit_scale.detach().exp()
    for j, (one, projector) in enumerate(zip(inputs, forms, strict=True)):
        projector = projector or clipproj.Projector(torch.zeros(0, D))
        factors = list(projector.factors().values())
        if one.strength is not None:
            factors[3] = torch.tensor(one.strength)
        row = raw[j : j + 1]
        want = reference.logits(row, texts.tensor, *factors, scale)[0]
        bound = reference.logits_tolerance(row, texts.tensor, *factors, scale)[0]
        got = torch.from_numpy(answer.rows[j]).double()
        assert bool(((got - want).abs() <= bound).all())
        torch.testing.assert_close(
            torch.from_numpy(answer.probabilities[j]).double(), want.softmax(0), atol=1e-5, rtol=0
        )
        # "cat" is the second of the other list, whose rows come the other way round
        assert abs(reversed_.rows[2 - j][1] - answer.rows[j][0]) < 1e-4
    np.testing.assert_allclose(shared.rows, answer.rows[1:], atol=1e-4)
    assert [r["projector"] for r in answer.receipts] == ["sym1", "oblique", None]


def test_a_model_with_a_bias_answers_with_sigmoids(engine: Engine) -> None:
    request = Job((Item("embedding", given(0)),), False, ("cat", "dog"), ("a {}",))
    (plain,) = engine.answer([request])
    engine.model.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
    try:
        (answer,) = engine.answer([request])
    finally:
        del engine.model.logit_bias
    np.testing.assert_allclose(answer.rows, plain.rows - 10, atol=1e-4)
    np.testing.assert_allclose(answer.probabilities, 1 / (1 + np.exp(-answer.rows)), rtol=1e-5)


BAD = {
    "nan": (Item("embedding", np.full(D, np.nan, np.float32)), 400, "invalid_value"),
    "one inf": (Item("embedding", np.r_[given(0)[1:], np.float32("inf")]), 400, "invalid_value"),
    "zero": (Item("embedding", np.zeros(D, np.float32)), 400, "invalid_value"),
    "width": (Item("embedding", given(0)[1:]), 400, "wrong_dimension"),
    "not an image": (Item("image", b"GIF89a?"), 400, "invalid_image"),
    "cut image": (Item("image", png((1, 2, 3), (200, 200))[:-60]), 400, "invalid_image"),
    "format": (Item("image", png((1, 2, 3), form="TIFF")), 400, "invalid_image"),
    "bomb": (Item("image", png((0, 0, 0), (9000, 9000))), 400, "image_too_large"),
    # more than twice the pixels that Pillow opens
    "vast bomb": (Item("image", png((0, 0, 0), (14000, 14000))), 400, "image_too_large"),
    "strip": (Item("image", png((0, 0, 0), (2000, 1))), 400, "invalid_image"),
    "long text": (Item("text", "cat " * 60), 400, "text_too_long"),
    # the token of this "!" is 0, which is also what texts are padded with
    "long text of zeros": (Item("text", "!$ " * 60), 400, "text_too_long"),
    "no tenant": (Item("embedding", given(0), ("nobody",)), 404, "tenant_not_found"),
    "one of two": (Item("embedding", given(0), ("sym1", "nobody")), 404, "tenant_not_found"),
    "affine text": (Item("text", "a cat", ("affine",)), 400, "no_text_form"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_fails_alone(engine: Engine, case: str) -> None:
    bad, status, code = BAD[case]
    good = Job((Item("embedding", given(7), ("sym1",)), Item("embedding", given(8))))
    (alone,) = engine.answer([good])
    before, failed, after = engine.answer([good, Job((good.inputs[0], bad)), good])
    assert isinstance(failed, ServiceError)
    assert (failed.status, failed.code) == (status, code)
    assert failed.message.startswith("input[1]")  # the input is named
    assert failed.param.startswith("input[1]")
    for answer in (before, after):
        assert np.array_equal(answer.rows, alone.rows)


def test_an_image_is_embedded_as_it_is_shown(engine: Engine) -> None:
    shown, stored = io.BytesIO(), io.BytesIO()
    image = Image.linear_gradient("L").crop((0, 0, 40, 90))
    image.save(shown, "PNG")
    tags = Image.Exif()
    tags[0x112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(stored, "PNG", exif=tags)
    inputs = tuple(Item("image", file.getvalue()) for file in (shown, stored))
    (answer,) = engine.answer([Job(inputs)])
    np.testing.assert_allclose(answer.rows[0], answer.rows[1], atol=1e-6)


def test_a_long_text_can_be_cut(engine: Engine) -> None:
    inputs = (Item("text", "cat " * 60), Item("text", "cat " * 40))
    (answer,) = engine.answer([Job(inputs, truncate=True)])
    assert np.array_equal(answer.rows[0], answer.rows[1])
    assert answer.tokens == 48


def test_a_request_that_breaks_the_model_fails_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = engine.model.encode_image

    def breaks(pixels: torch.Tensor) -> torch.Tensor:
        if bool((pixels[:, 0] > pixels[:, 2] + 1).any()):
            raise RuntimeError("out of memory")
        return encode(pixels)

    monkeypatch.setattr(engine.model, "encode_image", breaks)
    red, blue = (Job((Item("image", png(c)),)) for c in ((255, 0, 0), (0, 0, 255)))
    first, failed, last = engine.answer([blue, red, blue])
    assert isinstance(failed, ServiceError)
    assert (failed.status, failed.code) == (500, "model_failed")
    assert isinstance(first, Answer)
    np.testing.assert_allclose(first.rows, last.rows, atol=1e-6)


def test_receipts_say_what_was_applied(
    engine: Engine, projectors: dict[str, clipproj.Projector]
) -> None:
    inputs = (
        Item("embedding", given(0), ("sym1",)),
        Item("text", "a cat", ("sym2",), 1.0),
        Item("embedding", given(1), ("sym1",), 0.5),
        Item("embedding", given(1)),
        Item("embedding", given(1), ("oblique", "sym5")),
    )
    (answer,) = engine.answer([Job(inputs, receipt=True)])
    first, text, half, none, both = answer.receipts
    p = projectors["sym1"]
    left = float(p.residual(torch.from_numpy(answer.rows[0])))
    assert first["residual"] == pytest.approx(left, abs=1e-12)
    assert left < 1e-6
    before = float(p.residual(torch.from_numpy(given(0))))
    assert first["before"] == pytest.approx(before, abs=1e-12)
    assert before > 1e-3
    del first["residual"], first["before"]
    shown = {"projector": "sym1", "hash": p.content_hash(), "side": "image", "strength": 1.0}
    assert first == shown
    assert text["hash"] == projectors["sym2"].T.content_hash()
    assert (text["side"], text["strength"]) == ("text", 1.0)
    assert text["residual"] < 1e-6
    assert half["strength"] == 0.5
    assert 0.4 < half["residual"] / half["before"] < 0.6  # half a projection leaves half of it
    assert none["projector"] is None
    assert none["hash"] is none["residual"] is none["before"] is None
    assert both["projector"] == ["oblique", "sym5"]
    assert both["hash"] == [projectors[name].content_hash() for name in both["projector"]]
    assert len(both["before"]) == 2
    assert both["residual"][1] < 1e-6 < both["residual"][0]  # CCUP leaves what its weights leave


def test_changes_replace_and_remove(projectors: dict[str, clipproj.Projector]) -> None:
    engine = Engine(load_model(), capacity=8)
    request = Job((Item("embedding", given(0), ("a",)),))

    def hash_of() -> str:
        (answer,) = engine.answer([Job(request.inputs, receipt=True)])
        return answer.receipts[0]["hash"]

    p, q = projectors["sym1"], projectors["sym5"]
    engine.apply(Changes(1, 1, {"a": to_bytes(p), "b": to_bytes(p)}))
    assert hash_of() == p.content_hash()
    for version in range(2, 60):  # many more directions, one after the other, than there is room
        one = (p, q)[version % 2]
        engine.apply(Changes(1, version, {"a": to_bytes(one)}))
        assert hash_of() == one.content_hash()
    engine.apply(Changes(1, 60, {"a": None}))
    assert engine.answer([request])[0].status == 404
    engine.apply(Changes(2, 1, {"c": to_bytes(p)}, full=True))
    assert len(engine.tenants) == 1
    wrong = clipproj.nullspace(torch.randn(1, D + 1), contrast="none")
    with pytest.raises(ValueError, match="width 128"):
        engine.apply(Changes(2, 2, {"d": to_bytes(wrong)}))
    assert (engine.tenants.epoch, engine.tenants.version) == (2, 1)


def test_news_that_comes_late_puts_nothing_back(
    projectors: dict[str, clipproj.Projector],
) -> None:
    """Batches ask the store one after the other, and may hear from it in another order."""
    engine = Engine(load_model(), capacity=8)
    p, q = projectors["sym1"], projectors["sym5"]
    engine.apply(Changes(1, 1, {"a": to_bytes(p)}, full=True))
    engine.apply(Changes(1, 3, {"a": to_bytes(q), "b": to_bytes(p)}))
    late = (
        Changes(1, 2, {"a": to_bytes(p), "b": None}),
        Changes(1, 3, {"a": to_bytes(p)}),
        Changes(1, 1, {}, full=True),
    )
    for changes in late:
        engine.apply(changes)
        assert len(engine.tenants) == 2
    engine.apply(Changes(2, 0, {"a": to_bytes(q)}, full=True))
    engine.apply(Changes(1, 4, {"a": to_bytes(p)}))  # from the store before the present one
    request = Job((Item("embedding", given(0), ("a",)),), receipt=True)
    (answer,) = engine.answer([request])
    assert answer.receipts[0]["hash"] == q.content_hash()
    assert (engine.tenants.epoch, engine.tenants.version) == (2, 0)


def test_combinations_that_fill_the_bank_make_room(
    projectors: dict[str, clipproj.Projector],
) -> None:
    engine = Engine(load_model(), capacity=12)
    torch.manual_seed(3)
    tenants = {f"t{i}": clipproj.nullspace(torch.randn(2, D), contrast="none") for i in range(6)}
    engine.apply(Changes(1, 1, {n: to_bytes(p) for n, p in tenants.items()}))
    for i in range(6):
        for j in range(6):
            if i == j:
                continue
            pair = (f"t{i}", f"t{j}")
            (answer,) = engine.answer([Job((Item("embedding", given(0), pair),))])
            both = clipproj.union(*(tenants[name] for name in pair))
            want, _ = expected(torch.from_numpy(given(0))[None], both, None)
            np.testing.assert_allclose(answer.rows[0], want.numpy(), atol=2e-6)


def test_classes_are_embedded_in_one_spelling(engine: Engine) -> None:
    spelt, plain = ("red_panda", " owl"), ("red panda", "owl")
    requests = [Job((Item("text", "a"),), classes=names) for names in (spelt, plain)]
    one, other = (engine.classes(request) for request in requests)
    assert torch.equal(one, other)
    assert requests[0].classes == spelt  # as the answer has them


def test_a_strength_replaces_that_of_each_part_or_is_refused(engine: Engine) -> None:
    x = given(3)
    for names in (("sym1", "sym2"), ("sym1", "oblique")):  # of strengths 1 and 1.5; of two kinds
        (refused,) = engine.answer([Job((Item("embedding", x, names, 1.0),))])
        assert (refused.status, refused.param) == (400, "input[0].strength")
    (answer,) = engine.answer([Job((Item("embedding", x, ("sym1", "sym5"), 0.5),))])
    both = clipproj.union(*(engine.tenants._forms["image"][n].projector for n in ("sym1", "sym5")))
    want, _ = expected(torch.from_numpy(x)[None], both, 0.5)
    np.testing.assert_allclose(answer.rows[0], want.numpy(), atol=2e-6)


def test_a_strength_above_one_is_for_one_direction(engine: Engine) -> None:
    for names, fine in ((("sym1",), True), (("sym2",), False), (("sym1", "sym5"), False)):
        (answer,) = engine.answer([Job((Item("embedding", given(3), names, 1.5),))])
        assert isinstance(answer, Answer) == fine
        if not fine:
            assert (answer.status, answer.param) == (400, "input[0].strength")
            assert "where reflections cross, got 1.5" in answer.message
    both = ("namesa", "namesb")  # of a single name each, and 1.5, as against names in general
    (refused,) = engine.answer([Job((Item("embedding", given(3), both),))])
    assert "at most 1 for the 2 directions of namesa, namesb" in refused.message
    (answer,) = engine.answer([Job((Item("embedding", given(3), both, 1.0),))])
    assert isinstance(answer, Answer)


def test_receipts_of_affine_projectors_claim_nothing(engine: Engine) -> None:
    request = Job((Item("embedding", given(4), ("affine",)),), receipt=True)
    (answer,) = engine.answer([request])
    assert answer.receipts[0]["residual"] is answer.receipts[0]["before"] is None
    assert answer.receipts[0]["hash"]


def test_tenants_that_fit_are_taken_in_whatever_was_there_before() -> None:
    """Gone and new ones at once, in a bank whose free rows are in small pieces."""
    engine, version = Engine(load_model(), capacity=64), 0

    def rank(k: int, seed: int) -> bytes:
        torch.manual_seed(seed)
        return to_bytes(clipproj.nullspace(torch.randn(k, D), contrast="none"))

    def apply(tenants: dict[str, bytes | None]) -> None:
        nonlocal version
        version += 1
        engine.apply(Changes(1, version, tenants))

    small = {f"s{i}": rank(4 + i % 2, i) for i in range(14)}
    apply(small)
    apply(dict.fromkeys(list(small)[::2]))
    apply({f"t{i}": rank(5, 50 + i) for i in range(5)})
    gone: dict[str, bytes | None] = dict.fromkeys(engine.tenants._forms["image"])
    large = {f"b{i}": rank(31, 90 + i) for i in range(2)}
    apply(large | gone)  # those to come before those to go
    request = Job((Item("embedding", given(0), ("b1",)), Item("embedding", given(1), ("b0",))))
    (answer,) = engine.answer([request])
    assert isinstance(answer, Answer)
    assert len(engine.tenants) == 2


def test_dimensions_other_than_the_models_are_refused(engine: Engine) -> None:
    inputs = (Item("embedding", given(0), ("sym1",)), Item("text", "a cat"))
    plain, same, fewer, more = engine.answer(
        [Job(inputs, dimensions=n) for n in (None, D, D // 2, 2 * D)]
    )
    assert np.array_equal(same.rows, plain.rows)
    for refused in (fewer, more):
        assert (refused.status, refused.code, refused.param) == (400, "invalid_value", "dimensions")
        assert f"dimensions must be left out or {D}" in refused.message


def halves(k: int, seed: int = 0, strength: float = 1.0) -> clipproj.Projector:
    """Half-spaces that unit rows are on either side of, in a metric that all of them share."""
    torch.manual_seed(seed)
    metric = torch.linspace(0.5, 1.5, D)
    read = torch.randn(k, D)
    read = read / (read.square() @ metric).sqrt()[:, None]
    write = read * metric
    return clipproj.Projector(
        read, write, torch.full((k,), 0.02), strength, gram=read @ write.T, forget=read
    )


def test_one_sided_tenants_edit_images_and_refuse_texts() -> None:
    engine, p, q = Engine(load_model(), capacity=64), halves(3), halves(2, seed=4)
    made = {"half": p, "other": q, "plain": clipproj.nullspace(torch.randn(1, D), contrast="none")}
    engine.apply(Changes(1, 1, {name: to_bytes(one) for name, one in made.items()}))
    x = 30 * given(0)  # of a length that thresholds are not for
    unit = torch.from_numpy(x)[None]
    unit = unit / unit.norm()
    inputs = (Item("embedding", x, ("half",)), Item("embedding", x, ("plain",)),
              Item("embedding", x), Item("embedding", x, ("half",), 2.0))  # fmt: skip
    (answer,) = engine.answer([Job(inputs, receipt=True)])
    assert np.array_equal(answer.rows[0], p(unit, normalize=True)[0].numpy())
    assert np.array_equal(answer.rows[3], p(unit, 2.0, normalize=True)[0].numpy())
    assert answer.receipts[0]["hash"] == p.content_hash()
    before = float(p.residual(unit)[0])
    assert answer.receipts[0]["before"] == pytest.approx(before, abs=1e-9)
    assert answer.receipts[0]["residual"] < before / 10
    both = clipproj.union(p, q)
    (answer,) = engine.answer([Job((Item("embedding", x, ("half", "other"), 1.5),))])
    want = both(unit, 1.5, normalize=True)[0].numpy()
    np.testing.assert_allclose(answer.rows[0], want, atol=2e-5)
    logits = Job((inputs[0],), classes=("cat", "dog"), templates=("a {}",))
    (answer,) = engine.answer([logits])
    texts = engine.classes(logits)
    want = engine.scale()[0] * p(unit, normalize=True) @ texts.T
    np.testing.assert_allclose(answer.rows, want.numpy(), atol=1e-3)
    for one in (Item("text", "a cat", ("half",)), Item("embedding", x, ("half",), side="text")):
        (refused,) = engine.answer([Job((one,))])
        assert (refused.status, refused.code) == (400, "no_text_form")
        assert "got the one-sided one of 'half'" in refused.message
    (refused,) = engine.answer([Job((Item("embedding", x, ("half", "plain")),))])
    assert (refused.status, refused.param) == (400, "input[0].projector")
    (refused,) = engine.answer([Job((Item("embedding", x, ("nobody",)),))])
    assert refused.status == 404


def test_a_service_without_room_for_one_sided_tenants_says_what_to_set() -> None:
    engine = Engine(load_model(), capacity=64, one_sided=2)
    with pytest.raises(ValueError, match=r"at most 2 directions one-sided.*set one_sided=3"):
        engine.check(halves(3), "the projector")
    engine.check(halves(2), "the projector")
    engine.check(halves(3).linear(), "the projector")
