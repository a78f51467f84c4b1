"""HTTP: OpenAI's embeddings, classes, and the tenants; limits, deadlines, one shape of error."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Histogram
from starlette.exceptions import HTTPException

from clipproj.serve import openapi, parse
from clipproj.serve.engine import Answer
from clipproj.serve.errors import ServiceError, invalid, shown
from clipproj.serve.openapi import PROJECTOR
from clipproj.serve.settings import TOKEN, Settings
from clipproj.serve.store import check_name

SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
HEALTH_TIMEOUT = 5.0  # seconds
LONG = 64 << 10  # bytes of a body whose reading would hold up other requests

logger = logging.getLogger("ray.serve")  # Serve keeps it, with the request's id
ROUTES = (  # method, path, the endpoint it is counted as, Gateway's method
    ("POST", "/v1/embeddings", "embeddings", "_embeddings"),
    ("POST", "/v1/classify", "classify", "_classify"),
    ("GET", "/v1/models", "models", "_models"),
    ("GET", "/v1/tenants", "tenants", "_list"),
    ("GET", "/v1/tenants/{name}", "tenants", "_get"),
    ("PUT", "/v1/tenants/{name}", "tenants", "_put"),
    ("POST", "/v1/tenants/{name}", "tenants", "_put"),
    ("DELETE", "/v1/tenants/{name}", "tenants", "_delete"),
    ("GET", "/health", "health", "_health"),
)


def make_api() -> FastAPI:
    """The routes; called in each gateway's process."""
    api = FastAPI(
        title="clipproj",
        description="Embeddings and classes, each request with its tenant's projector.",
        redoc_url=None,
        redirect_slashes=False,  # they have no error, and lose a POST's body in some clients
    )
    for method, path, endpoint, name in ROUTES:
        api.add_api_route(
            path,
            _endpoint(endpoint, name),
            methods=[method],
            name=name.strip("_"),
            description=getattr(Gateway, name).__doc__,
            tags=[endpoint],
            response_model=None,
            **openapi.route(method, path),
        )
    api.openapi = functools.partial(openapi.document, api)
    api.add_exception_handler(HTTPException, _no_route)
    return api


def _endpoint(endpoint: str, name: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        gateway = serve.get_replica_context().servable_object
        return await gateway.answered(endpoint, request, getattr(gateway, name))

    return answer


async def _no_route(request: Request, error: HTTPException) -> Response:
    """Starlette's own 404 and 405, in the shape of all errors."""
    text = f"{request.method} {shown(request.url.path)}: {error.detail}"
    code = "no_such_route" if error.status_code == 404 else "method_not_allowed"
    return _refusal(ServiceError(error.status_code, text, None, code), error.headers)


class Gateway:
    """Reads and checks requests, has replicas answer them, and writes what they say."""

    def __init__(
        self, settings: Settings, model: DeploymentHandle, store: DeploymentHandle
    ) -> None:
        self.settings, self.model, self.store = settings, model, store
        self.open, self.draining = 0, False
        self.count = Counter(
            "clipproj_requests", "Requests answered.", tag_keys=("endpoint", "status")
        )
        self.latency = Histogram(
            "clipproj_request_seconds", "From the first byte read to the answer.",
            boundaries=SECONDS, tag_keys=("endpoint",),
        )  # fmt: skip

    async def drain(self) -> int:
        """Take nothing new, wait for what is in hand; how many requests the end of `grace` cuts."""
        self.draining = True
        end = time.monotonic() + self.settings.grace
        while self.open and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return self.open

    async def _embeddings(self, request: Request) -> Response:
        """A unit row for each text, image and embedding, in OpenAI's shape."""
        asked, form = await self._parsed(parse.embeddings, request)
        answer: Answer = await self._ask(self.model.answer, asked)
        rows = answer.rows
        if form == "base64":
            shown = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
        else:
            shown = rows.tolist()
        data = [
            {"object": "embedding", "index": i, "embedding": row} | _receipt(answer, i)
            for i, row in enumerate(shown)
        ]
        return self._shown(data, answer)

    async def _classify(self, request: Request) -> Response:
        """For each input the classes, the likeliest first, with logits and probabilities."""
        asked, top = await self._parsed(parse.classify, request)
        answer: Answer = await self._ask(self.model.answer, asked)
        data = await asyncio.to_thread(_ranked, answer, asked.classes, top)
        return self._shown(data, answer)

    async def _parsed(self, read: Callable[..., Any], request: Request) -> Any:
        body = await self._body(request)
        if len(body) < LONG:
            return read(body, self.settings)
        return await asyncio.to_thread(read, body, self.settings)

    def _shown(self, data: list[dict[str, Any]], answer: Answer) -> Response:
        usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
        return _json(
            {"object": "list", "data": data, "model": self.settings.served, "usage": usage}
        )

    async def _models(self, request: Request) -> Response:
        """The one model that is served."""
        one = {"id": self.settings.served, "object": "model", "owned_by": "clipproj"}
        return _json({"object": "list", "data": [one]})

    async def _list(self, request: Request) -> Response:
        """The names of all tenants."""
        self._admin(request)
        names = await self._ask(self.store.call, "names")
        data = [{"object": "tenant", "name": name} for name in names]
        return _json({"object": "list", "data": data})

    async def _get(self, request: Request) -> Response:
        """A tenant: its projector in words or, with Accept: application/octet-stream, its file."""
        self._admin(request)
        name = request.path_params["name"]
        if PROJECTOR in request.headers.get("accept", ""):
            data = await self._ask(self.store.call, "file", name)
            return Response(data, media_type=PROJECTOR)
        return _json({"object": "tenant"} | await self._ask(self.store.call, "about", name))

    async def _put(self, request: Request) -> Response:
        """A tenant's projector, from names or as a file; PUT replaces one, POST refuses to."""
        self._admin(request)
        name = check_name(request.path_params["name"])
        create = request.method == "POST"
        body = await self._body(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        given = body if kind == PROJECTOR else parse.spec(body, self.settings)
        if create and name in await self._ask(self.store.call, "names"):  # before the work of it
            raise ServiceError(409, f"there is a tenant {name!r}", "name", "tenant_exists")
        limit = self.settings.admin_timeout
        made = await self._ask(self.model.make, given, timeout=limit)
        about = await self._ask(self.store.call, "put", name, made, create=create, timeout=limit)
        status = 201 if about.pop("new") else 200
        return _json({"object": "tenant"} | about, status)

    async def _delete(self, request: Request) -> Response:
        """No later request has this tenant's projector."""
        self._admin(request)
        name = request.path_params["name"]
        await self._ask(self.store.call, "remove", name)
        return _json({"object": "tenant", "name": name, "deleted": True})

    async def _health(self, request: Request) -> Response:
        """200 where the store and a replica answer, and what they say."""
        stored = await self._ask(self.store.call, "status", timeout=HEALTH_TIMEOUT)
        try:
            status = await self._ask(self.model.status, timeout=HEALTH_TIMEOUT)
        except BackPressureError:  # alive, and no time to say so
            status = {"model": self.settings.served, "busy": True}
        return _json({"status": "ok", "open": self.open} | stored | status)

    async def answered(
        self, endpoint: str, request: Request, work: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """The work's answer, or an error in the one shape that errors have; both are counted."""
        start = time.perf_counter()
        self.open += 1
        try:
            if self.draining:
                raise ServiceError(503, "the service is shutting down", None, "draining", 5)
            response = await work(request)
        except ServiceError as error:
            response = _refusal(error)
        except BackPressureError:
            text = "too many requests are waiting; try again later"
            response = _refusal(ServiceError(429, text, None, "queue_full", 1))
        except RayTaskError:
            logger.exception("%s failed", endpoint)
            text = "internal error; the service's log has it"
            response = _refusal(ServiceError(500, text, None, "internal_error"))
        except (RayError, RayServeException) as error:
            logger.exception("%s: a replica is gone", endpoint)
            text = f"a part of the service cannot be reached: {type(error).__name__}"
            response = _refusal(ServiceError(503, text, None, "unavailable", 1))
        except Exception:
            logger.exception("%s failed", endpoint)
            text = "internal error; the service's log has it"
            response = _refusal(ServiceError(500, text, None, "internal_error"))
        finally:
            self.open -= 1
        self.count.inc(tags={"endpoint": endpoint, "status": str(response.status_code)})
        self.latency.observe(time.perf_counter() - start, tags={"endpoint": endpoint})
        return response

    async def _ask(
        self, method: Any, *args: Any, timeout: float | None = None, **options: Any
    ) -> Any:
        """What another part of the service answers in time. ServiceError 504 for none."""
        timeout = timeout or self.settings.timeout
        response = method.remote(*args, **options)
        try:
            out = await asyncio.wait_for(awaited(response), timeout)
        except asyncio.TimeoutError:
            response.cancel()
            text = f"no answer within {timeout:g} seconds"
            raise ServiceError(504, text, None, "deadline_exceeded") from None
        if isinstance(out, ServiceError):
            raise out
        return out

    async def _body(self, request: Request) -> bytes:
        """All of a request's body, if it is not too long and does not take too long."""
        limit = self.settings.max_body
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ServiceError(415, "the body must not be compressed", None, "compressed")
        told = request.headers.get("content-length", "0")
        if not told.isdecimal():
            raise invalid(None, f"Content-Length must be a number, got {shown(told)}")
        if int(told) > limit:
            raise _too_long(limit)

        async def read() -> bytes:
            parts, size = [], 0
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_long(limit)
                parts.append(part)
            return b"".join(parts)

        try:
            return await asyncio.wait_for(read(), self.settings.upload_timeout)
        except asyncio.TimeoutError:
            text = f"the request took longer than {self.settings.upload_timeout:g} s to arrive"
            raise ServiceError(408, text, None, "upload_timeout") from None

    def _admin(self, request: Request) -> None:
        """Raises ServiceError: 403 where nobody may change tenants, 401 for a wrong token."""
        if self.settings.token_digest is None:
            text = f"tenants cannot be seen or changed: the service was started without {TOKEN}"
            raise ServiceError(403, text, None, "no_admin_token")
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        if kind.lower() != "bearer" or not hmac.compare_digest(digest, self.settings.token_digest):
            text = "the admin token must be sent as Authorization: Bearer TOKEN"
            raise ServiceError(401, text, None, "invalid_token")


def _too_long(limit: int) -> ServiceError:
    return ServiceError(413, f"the body must be at most {limit} bytes", None, "body_too_large")


def _ranked(answer: Answer, names: tuple[str, ...], top: int | None) -> list[dict[str, Any]]:
    """For each input its classes, the likeliest first, at most `top` of them."""
    data = []
    for i, (logits, probabilities) in enumerate(
        zip(answer.rows, answer.probabilities, strict=True)
    ):
        order = np.argsort(-logits, kind="stable")[:top].tolist()
        classes = [
            {"class": names[j], "probability": float(probabilities[j]), "logit": float(logits[j])}
            for j in order
        ]
        one = {"object": "classification", "index": i, "classes": classes}
        data.append(one | _receipt(answer, i))
    return data


def _receipt(answer: Answer, i: int) -> dict[str, Any]:
    return {} if answer.receipts is None else {"receipt": answer.receipts[i]}


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


def _refusal(error: ServiceError, headers: Any = None) -> Response:
    headers = dict(headers or {})
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not read
    response = _json(error.body(), error.status)
    response.headers.update(headers)
    return response


async def awaited(response: Any) -> Any:
    """What a handle's response comes to; a coroutine, which `asyncio.wait_for` wants."""
    return await response
