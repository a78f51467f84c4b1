"""What `/openapi.json` and `/docs` say of each route: what it reads and answers, with examples.

The gateway reads bodies itself, so FastAPI does not know their models: they are put in here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from clipproj import __version__, demo
from clipproj.serve.errors import ServiceError, invalid
from clipproj.serve.schema import SPECS, Body, ClassifyRequest, EmbeddingsRequest
from clipproj.serve.store import NAME

PROJECTOR = "application/octet-stream"  # a tenant's file
BODIES: dict[str, tuple[type[Body], ...]] = {  # by the path that reads them
    "/v1/embeddings": (EmbeddingsRequest,),
    "/v1/classify": (ClassifyRequest,),
    "/v1/tenants/{name}": tuple(SPECS.values()),
}
DOT = (  # a PNG of one red pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
NAMES = {"forget": ["cat"], "keep": ["dog", "whale"]}
NEEDED = {"selective": {"domains": "sketch", "keep_domains": "photo"}}  # by a method
ASKED: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {
        "a text": {"input": "a cat"},
        "of a tenant": {"input": [{"text": "a cat"}, {"image": f"data:image/png;base64,{DOT}"}],
                        "projector": "acme", "receipt": True},
        "an embedding made elsewhere": {"input": [{"embedding": [0.6, 0.0, -0.8]}],
                                        "projector": ["acme", "globex"]},
        "as OpenAI's clients ask": {"input": ["a cat", "a dog"], "model": demo.NAME,
                                    "encoding_format": "base64"},
    },
    "/v1/classify": {
        "an image": {"input": {"image": DOT}, "classes": ["cat", "dog"], "top": 1},
        "half of a projector": {"input": ["a photo of a cat"], "classes": ["cat", "dog"],
                                "templates": ["a photo of a {}."], "projector": "acme",
                                "strength": 0.5},
    },
    "/v1/tenants/{name}": {
        "names": {"forget": ["cat", "kitten"]},
        **{name: NAMES | {"method": name} | NEEDED.get(name, {}) for name in SPECS},
    },
}  # fmt: skip
ANSWERED: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/embeddings"): {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.6, 0.0, -0.8]}],
        "model": demo.NAME,
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    },
    ("POST", "/v1/classify"): {
        "object": "list",
        "data": [{"object": "classification", "index": 0,
                  "classes": [{"class": "cat", "probability": 0.97, "logit": 23.1}]}],
        "model": demo.NAME,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    },
    ("GET", "/v1/models"): {
        "object": "list", "data": [{"id": demo.NAME, "object": "model", "owned_by": "clipproj"}],
    },
    ("GET", "/v1/tenants"): {"object": "list", "data": [{"object": "tenant", "name": "acme"}]},
    ("DELETE", "/v1/tenants/{name}"): {"object": "tenant", "name": "acme", "deleted": True},
}  # fmt: skip
BLANK = invalid("input[1].text", "must be a string that is not blank, got ''")
BUSY = ServiceError(504, "no answer within 30 seconds", None, "deadline_exceeded")


class _Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Every error: what is wrong, which part of the request, and a code for programs."""

    error: _Error


def route(method: str, path: str) -> dict[str, Any]:
    """FastAPI's options for a route: what it takes and what its errors look like."""
    extra: dict[str, Any] = {}
    if path.endswith("{name}"):
        name = {"type": "string", "pattern": f"^{NAME.pattern}$"}
        extra["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": name}]
    if path.startswith("/v1/tenants"):
        extra["security"] = [{"admin": []}]
    if path in BODIES and method in ("POST", "PUT"):
        refs = [{"$ref": f"#/components/schemas/{one.__name__}"} for one in BODIES[path]]
        examples = {name: {"value": value} for name, value in ASKED[path].items()}
        content = {"application/json": {"schema": {"oneOf": refs}, "examples": examples}}
        if len(refs) > 1:
            content[PROJECTOR] = {"schema": {"type": "string", "format": "binary"}}
        extra["requestBody"] = {"required": True, "content": content}
    responses = {
        200: {"description": "The answer.", "content": _json(ANSWERED.get((method, path)))},
        "4XX": {"description": "Not as asked.", "model": Error, "content": _json(BLANK.body())},
        "5XX": {"description": "Not now.", "model": Error, "content": _json(BUSY.body())},
    }
    return {"openapi_extra": extra, "responses": responses}


def _json(example: dict[str, Any] | None) -> dict[str, Any]:
    return {"application/json": {} if example is None else {"example": example}}


def document(api: FastAPI) -> dict[str, Any]:
    """All of it."""
    if api.openapi_schema is None:
        made = get_openapi(
            title=api.title, version=__version__, description=api.description, routes=api.routes
        )
        models = [(one, "validation") for some in BODIES.values() for one in some]
        _, known = models_json_schema(models, ref_template="#/components/schemas/{model}")
        made["components"]["schemas"] |= known["$defs"]
        made["components"]["securitySchemes"] = {"admin": {"type": "http", "scheme": "bearer"}}
        api.openapi_schema = made
    return api.openapi_schema
