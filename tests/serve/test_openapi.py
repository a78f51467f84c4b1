"""The document that `/openapi.json` serves says what `parse` takes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("ray", reason="the service needs Ray: pip install clipproj[serve]")
pytest.importorskip("jsonschema")  # Ray needs it

from jsonschema import Draft202012Validator

from clipproj.checkpoints.checkpoint import Loaded, load_model
from clipproj.serve import openapi, parse
from clipproj.serve.errors import ServiceError
from clipproj.serve.http import ROUTES, make_api
from clipproj.serve.make import from_names
from clipproj.serve.schema import SPECS
from clipproj.serve.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own

DOCUMENT = make_api().openapi()
READ: dict[str, Callable[[bytes, Settings], Any]] = {
    "/v1/embeddings": parse.embeddings,
    "/v1/classify": parse.classify,
    "/v1/tenants/{name}": parse.spec,
}
NUMBERS = (0, -1, 3, 1e9, 0.5)
ODD = (None, True, *NUMBERS, "", " ", "a", "a {}", [], [1], ["a"], ["a {}"], {}, {"a": 1})
EXAMPLES = [(path, body) for path, asked in openapi.ASKED.items() for body in asked.values()]
METHOD = {path: "put" if "{name}" in path else "post" for path in READ}


def is_allowed(path: str, body: Any) -> bool:
    """Whether a body is what the document says of this path."""
    content = DOCUMENT["paths"][path][METHOD[path]]["requestBody"]["content"]
    schema = content["application/json"]["schema"] | {"components": DOCUMENT["components"]}
    return Draft202012Validator(schema).is_valid(body)


def is_taken(path: str, body: Any) -> bool:
    """Whether the service takes it."""
    try:
        READ[path](json.dumps(body).encode(), Settings())
    except ServiceError:
        return False
    return True


def test_every_route_is_shown() -> None:
    shown = {(m.upper(), path) for path, own in DOCUMENT["paths"].items() for m in own}
    assert shown == {(method, path) for method, path, _, _ in ROUTES}
    for path, methods in DOCUMENT["paths"].items():
        for one in methods.values():
            assert one["description"]
            assert ("security" in one) == path.startswith("/v1/tenants")
            assert ("parameters" in one) == ("{name}" in path)
            error = one["responses"]["4XX"]["content"]["application/json"]
            schema = error["schema"] | {"components": DOCUMENT["components"]}
            Draft202012Validator(schema).validate(error["example"])


@pytest.mark.parametrize(("path", "body"), EXAMPLES)
def test_every_example_is_taken(path: str, body: Any) -> None:
    assert is_allowed(path, body)
    assert is_taken(path, body)


@pytest.mark.parametrize(("path", "body"), EXAMPLES)
def test_what_the_document_forbids_is_refused(path: str, body: Any) -> None:
    """Each field of each example in turn, left out, renamed or with a value of each kind."""
    for name in body:
        rest = {own: value for own, value in body.items() if own != name}
        others = [rest, rest | {f"{name}_": body[name]}, *(rest | {name: value} for value in ODD)]
        for other in others:
            if not is_allowed(path, other):
                assert not is_taken(path, other), other
    schemas = DOCUMENT["components"]["schemas"]
    for model in openapi.BODIES[path]:
        for name in schemas[model.__name__]["properties"].keys() - body.keys():
            for value in ODD:
                other = body | {name: value}
                if not is_allowed(path, other):
                    assert not is_taken(path, other), other
                elif value is None:
                    assert is_taken(path, other), other


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model()


@pytest.mark.filterwarnings("ignore")  # what methods say of so short a list
@pytest.mark.parametrize("method", SPECS)
def test_every_method_makes_a_tenant_of_its_example(loaded: Loaded, method: str) -> None:
    asked = openapi.ASKED["/v1/tenants/{name}"][method] | {"max_loss": 1, "max_found": 1}
    made = from_names(loaded, parse.spec(json.dumps(asked).encode(), Settings()), 10_000)
    assert made.provenance["method"].startswith(method)
    assert made.provenance["forget"]["names"] == ["cat"]


def test_a_refusal_of_a_method_names_the_field(loaded: Loaded) -> None:
    asked = {"forget": ["cat"], "keep": ["dog"], "method": "redirect", "target": "nobody"}
    recipe = parse.spec(json.dumps(asked).encode(), Settings())
    with pytest.raises(ServiceError, match="target must be self, empty or a kept name") as refused:
        from_names(loaded, recipe, 10_000)
    assert (refused.value.status, refused.value.param) == (400, "target")


def test_models_stand_in_the_document_with_a_word_on_each_field() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for models in openapi.BODIES.values():
        for model in models:
            shown = schemas[model.__name__]
            assert shown["properties"].keys() == model.model_fields.keys()
            assert shown["additionalProperties"] is False
            assert shown["description"]
            for name, field in shown["properties"].items():
                assert field.get("description") or name == "method", (model, name)
    assert (schemas["CcupSpec"]["properties"]["method"]["const"]) == "ccup"
    rank = schemas["NullspaceSpec"]["properties"]["rank"]["anyOf"][0]
    assert rank == {"type": "integer", "minimum": 1}
