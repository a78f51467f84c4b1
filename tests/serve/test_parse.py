"""From JSON to requests, without a model: what OpenAI's clients send, what is taken, what not."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydantic")

from clipproj.audit import Limits
from clipproj.recipe import Recipe
from clipproj.serve import parse
from clipproj.serve.errors import ServiceError
from clipproj.serve.inputs import Job
from clipproj.serve.settings import Settings

SETTINGS = Settings()
DATA = bytes(range(256)) + b"\xff\xfe"  # as base64 with + and /, and one digit of padding
TWO = bytes.fromhex("fbff")  # "+/8="


def embeddings(**body: Any) -> tuple[Job, str]:
    return parse.embeddings(json.dumps({"input": "a cat"} | body).encode(), SETTINGS)


def spec(**body: Any) -> Recipe:
    return parse.spec(json.dumps({"forget": ["cat"]} | body).encode(), SETTINGS)


def classify(**body: Any) -> tuple[Job, int | None]:
    return parse.classify(json.dumps({"input": "a"} | body).encode(), SETTINGS)


def image(value: str) -> bytes:
    """What is taken for an image's file."""
    return embeddings(input=[{"image": value}])[0].inputs[0].value


def refusal(call: Any, *args: Any, **body: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        call(*args, **body)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ([320, 2368, 269], 0),
        ([[320, 2368, 269]], 0),
        ([[320], [2368]], 0),
        (["a cat", [320, 2368]], 1),
        ([{"text": "a cat"}, "a dog", 320], 2),
        (320, 0),
        ([320] * (SETTINGS.max_batch + 1), 0),  # one text of many tokens, not too many inputs
    ],
)
def test_token_ids_are_refused_with_what_to_set(given: Any, place: int) -> None:
    refused = refusal(embeddings, input=given)
    assert (refused.code, refused.param) == ("token_ids", f"input[{place}]")
    assert "another model's tokenizer" in refused.message
    assert "check_embedding_ctx_length=False" in refused.message
    assert refused.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("given", [[[]], [["a"]], [[0.5, 1]], [True], [[True]], [1.5]])
def test_other_lists_are_not_called_token_ids(given: Any) -> None:
    refused = refusal(embeddings, input=given)
    assert (refused.code, refused.param) == ("invalid_value", "input[0]")


def test_what_the_openai_client_sends_is_taken() -> None:
    sent = {"model": SETTINGS.served, "encoding_format": "base64", "dimensions": 128, "user": "u"}
    request, form = embeddings(input=["a cat", "a dog"], **sent)
    assert (len(request), form, request.dimensions) == (2, "base64", 128)
    request, form = embeddings(encoding_format=None, dimensions=None, user=None, model=None)
    assert (form, request.dimensions) == ("float", None)


@pytest.mark.parametrize("value", [0, -1, 128.0, "128", True, [], {}])
def test_dimensions_are_a_whole_number(value: Any) -> None:
    assert refusal(embeddings, dimensions=value).param == "dimensions"


@pytest.mark.parametrize("value", ["", 0, False, {}, [], "Float", 1])
def test_only_null_means_the_default(value: Any) -> None:
    """An empty value is a mistake of the client's, not a wish for the default."""
    assert refusal(embeddings, encoding_format=value).param == "encoding_format"
    assert refusal(spec, method=value).param == "method"
    assert refusal(spec, contrast=value).param == "contrast"
    assert refusal(spec, templates=value).param == "templates"
    assert refusal(spec, keep=value).param == "keep"
    if value is not False:
        assert refusal(embeddings, receipt=value).param == "receipt"
        assert refusal(embeddings, truncate=value).param == "truncate"
    one = {"embedding": [1.0], "side": value}
    assert refusal(embeddings, input=[one]).param == "input[0].side"


def test_null_means_the_default() -> None:
    defaults = dict.fromkeys(("method", "contrast", "templates", "keep", "rank", "strength"))
    assert spec(**defaults) == spec()
    one = {"embedding": [1.0], "side": None, "strength": None, "projector": None}
    assert embeddings(input=[one], receipt=None)[0].inputs[0].side == "image"


SAME = [("cat", "cat"), ("cat", "Cat"), ("polar bear", "polar_bear"), ("é", "E\u0301"),
        ("polar bear", " Polar  bear")]  # fmt: skip


@pytest.mark.parametrize("pair", SAME)
def test_two_spellings_of_a_name_are_refused(pair: tuple[str, str]) -> None:
    first, second = pair
    for call, name in ((spec, "forget"), (spec, "keep"), (classify, "classes")):
        refused = refusal(call, **{name: ["dog", *pair]})
        assert refused.param == name
        assert refused.message == f"{name} must be distinct, got {first!r} and {second!r}"
    refused = refusal(spec, forget=["dog", first], keep=["owl", second])
    assert (refused.param, repr(second) in refused.message) == ("keep", True)
    assert "dog" not in refused.message
    # a template is no name: its case is its own
    assert len(spec(templates=["a photo of a {}", "A photo of a {}"]).templates) == 2
    assert refusal(spec, templates=["a {}", "a {}"]).param == "templates"


@pytest.mark.parametrize(
    "name", ["___", " ", "cat\u200b", "cat\u0000", "\u001b[2Jcat", "\u200dcat", "ca\u00adt", 5]
)
def test_a_name_that_erase_would_refuse_is_named_by_its_place(name: Any) -> None:
    for call, field in ((spec, "forget"), (spec, "keep"), (classify, "classes")):
        assert refusal(call, **{field: ["dog", name]}).param == f"{field}[1]"


def test_names_have_one_spelling_but_in_answers() -> None:
    made = spec(forget=[" red_panda"], keep=["polar  bear"])
    assert (made.names, made.keep) == (("red panda",), ("polar bear",))
    assert classify(classes=["red_panda", "owl"])[0].classes == ("red_panda", "owl")


def test_an_item_of_a_list_is_named_by_its_place() -> None:
    assert refusal(classify, classes=["cat", "x" * 2049]).param == "classes[1]"
    assert refusal(classify, classes=["cat"], templates=["a {}", "a"]).param == "templates[1]"
    assert refusal(spec, templates=["a {}", " "]).param == "templates[1]"


@pytest.mark.parametrize(
    ("body", "twice"),
    [
        ('{"input": "a cat", "input": "a dog"}', "input"),
        ('{"input": "a cat", "\\u0069nput": "a cat"}', "input"),
        ('{"input": [{"image": "data:image/png;base64,AAAA"}], "input": "a"}', "input"),
        ('{"input": [{"image": "\\"data:"}], "user": "\\u003a", "user": "b"}', "user"),
        ('{"data:": 1, "data:": 1}', "data:"),
        (
            '{"input": [{"text": "a cat", "projector": "a", "projector": "b"}]}',
            "input[0].projector",
        ),
        ('{"input": ["a", {"embedding": [1], "side": {"x": 1, "x": 2}}]}', "input[1].side.x"),
    ],
)
def test_a_field_that_stands_twice_is_refused(body: str, twice: str) -> None:
    refused = refusal(parse.embeddings, body.encode(), SETTINGS)
    assert (refused.code, refused.param) == ("duplicate_field", twice)
    assert repr(twice.rpartition(".")[2]) in refused.message


def test_a_field_of_each_input_stands_once_in_each() -> None:
    body = b'{"input": [{"text": "text"}, {"text": "text"}, "text"], "user": "input"}'
    assert len(parse.embeddings(body, SETTINGS)[0]) == 3


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": "\\ud800"}',  # half of a surrogate pair
        b'{"input": "\xff"}',
        b'\xef\xbb\xbf{"input": "a"}',
        '{"input": "a"}'.encode("utf-16"),
        b'{"input": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"input": ' + b"[" * 100_000,
        b'{"input": "a",}',
        b'{"input": "a"} {}',
    ],
)
def test_what_is_not_json_or_too_deep(body: bytes) -> None:
    assert refusal(parse.embeddings, body, SETTINGS).code == "invalid_json"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_named_by_its_place(number: str) -> None:
    body = '{"input": ["a", {"text": "b", "projector": "p", "strength": ' + number + "}]}"
    refused = refusal(parse.embeddings, body.encode(), SETTINGS)
    assert refused.param == "input[1].strength"


def test_base64_of_every_kind_is_the_same_bytes() -> None:
    plain = base64.b64encode(DATA).decode()
    assert {"+", "/"} <= set(plain)
    url_safe = base64.urlsafe_b64encode(DATA).decode()
    assert url_safe != plain
    lines = base64.encodebytes(DATA).decode()  # of 76 letters, as MIME has them
    assert lines.count("\n") > 1
    for value in (plain, url_safe, lines, lines.replace("\n", "\r\n"), f"\t {url_safe} \n"):
        assert image(value) == image(value.replace("=", "")) == DATA
        for head in ("data:image/png;base64,", "DATA:;BASE64,", "data:image/png;charset=utf-8;"
                     "base64,"):  # fmt: skip
            assert image(head + value) == DATA
    for value, data in (
        ("+/8=", TWO),
        ("-_8=", TWO),
        ("-_8", TWO),
        ("-w==", TWO[:1]),
        ("-w= =\r\n", TWO[:1]),
    ):
        assert image(value) == data
    row = np.array([-1.5, 3e-9, 0.1], np.float32)
    packed = base64.urlsafe_b64encode(row.tobytes()).decode()
    for value in (packed, packed.rstrip("="), packed[:5] + "\r\n" + packed[5:]):
        (one,) = embeddings(input=[{"embedding": value}])[0].inputs
        assert np.array_equal(one.value, row)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("aGVs@bG8=", "'@' at 4"),
        ("aGVs\r\nbG@8=", "'@' at 8"),
        ("aGVsbG8\u00a0", "'\\xa0' at 7"),
        ("aGVsbG\u00e9", "'é' at 6"),
        ("YQ==YQ==", "'=' at 2"),
        ("=YQ=", "'=' at 0"),
        ("a+b-", "mixes"),
        ("a/b_", "mixes"),
        ("YQ=", "2 digits and 1 of ="),  # half of its padding
        ("YQ===", "2 digits and 3 of ="),
        ("YWJj=", "4 digits and 1 of ="),
        ("YWJjZ", "5 digits and 0 of ="),
        ("YWJjZ===", "5 digits and 3 of ="),
    ],
)
def test_what_is_not_base64_is_named_by_its_place(value: str, words: str) -> None:
    for kind in ("image", "embedding"):
        refused = refusal(embeddings, input=["a", {kind: value}])
        assert (refused.code, refused.param) == ("invalid_base64", f"input[1].{kind}")
        assert words in refused.message


@pytest.mark.parametrize(
    "value",
    [
        "data:image/svg+xml,%3Csvg%3E",
        "data:image/png;charset=utf-8,aGVsbG8=",
        "data:image/png;base64,aGVs%2BG8%3D",
        "data:image/png;base64",
        "data:,",
    ],
)
def test_other_data_urls_are_refused_by_name(value: str) -> None:
    refused = refusal(image, value)
    assert (refused.code, refused.param) == ("invalid_value", "input[0].image")
    assert "percent-encoded" in refused.message


def test_more_inputs_than_a_request_may_hold_say_what_to_set() -> None:
    refused = refusal(embeddings, input=["a cat"] * 1000)  # LangChain's default
    assert refused.code == "too_many"
    assert "at most 256 inputs, got 1000" in refused.message
    assert "chunk_size" in refused.message


def test_limits_are_shares() -> None:
    assert spec().limits == Limits(0.02, 0.01)
    assert spec(max_loss=1, max_found=None).limits == Limits(1, 0.01)
    for name in ("max_loss", "max_found"):
        for value in (-0.1, 1.5, "1", True):
            with pytest.raises(ServiceError, match=f"^{name} must be ") as refused:
                spec(**{name: value})
            assert (refused.value.status, refused.value.param) == (400, name)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        {LONG: 1},
        {"input": {"text": "a", LONG: 1}},
        {"input": LONG},
        {"input": "a", "model": LONG},
        {"input": "a", "projector": LONG},
        {"input": "a", "encoding_format": LONG},
        {"input": "a", "encoding_format": [LONG]},
        {"input": "a", "receipt": {LONG: LONG}},
        {"input": {"image": LONG + "@"}},
        {"input": {"embedding": [LONG]}},
        {"input": "a", "dimensions": 10**4000},
        {"input": "a", "encoding_format": "\x00" * 100_000},
        {f"field {i}": 1 for i in range(100_000)},
        {"input": {"text": "a"} | {f"field {i}": 1 for i in range(100_000)}},
    ],
    ids=lambda body: f"{json.dumps(body):.30}",
)
def test_little_of_a_body_comes_back(body: dict[str, Any]) -> None:
    with pytest.raises(ServiceError) as refused:
        parse.embeddings(json.dumps(body).encode(), SETTINGS)
    assert 400 <= refused.value.status < 500
    assert len(refused.value.message) < 300
    assert len(refused.value.param or "") <= 100


def test_little_of_fields_within_fields_comes_back() -> None:
    name = "x" * 79
    body = f'{{"{name}": ' * 150 + f'{{"{name}": 1, "{name}": 2}}' + "}" * 150
    refused = refusal(parse.embeddings, body.encode(), SETTINGS)
    assert refused.code == "duplicate_field"
    assert len(refused.message) < 300
    assert len(refused.param) <= 100


def test_names_come_back_short() -> None:
    name, other = "a" * 2000, "A" * 2000
    for refused in (
        refusal(spec, forget=[name, other]),
        refusal(spec, forget=[name], keep=[other]),
        refusal(spec, templates=[name]),
        refusal(classify, classes=[f"\u200b{name}"]),
        refusal(spec, method=name),
    ):
        assert len(refused.message) < 200


def test_an_option_of_another_method_is_no_field() -> None:
    refused = refusal(spec, method="ccup", rank=1)
    assert (refused.code, refused.param) == ("unknown_field", "rank")
    assert "keep_weight" in refused.message
    assert spec(method="rotate", angle=90).options == {"angle": 90}
    assert refusal(spec, method="rotate", angle=181).param == "angle"
    assert refusal(spec, method="redirect", samples=10_001).param == "samples"
    assert refusal(spec, method="leace").param == "method"  # there are no images to fit it to
