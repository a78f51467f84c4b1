"""A service on this machine for tests: Ray, Serve, and clients that do as they should or not."""

from __future__ import annotations

import base64
import io
import os
import select
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

D = 128  # of the embedded model
TOKEN = "a token that only tests know"
ADMIN = {"authorization": f"Bearer {TOKEN}"}


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def cluster(metrics_port: int) -> Iterator[str]:
    """A small Ray with Serve on it; the URL of its HTTP proxy. Nothing of it is left afterwards."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    port = free_port()
    ray.init(
        address="local",
        num_cpus=4,  # of bookkeeping: one for each copy of a model
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        logging_level="error",
        _metrics_export_port=metrics_port,
    )
    try:
        options = {"host": "127.0.0.1", "port": port}
        serve.start(
            proxy_location="HeadOnly",
            http_options=options,
            logging_config={"log_level": "ERROR"},
        )
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def run_apps(apps: Mapping[str, Mapping[str, Any]]) -> None:
    """Services by name, each with its settings, all started at once, at /NAME."""
    from ray import serve

    from clipproj.serve import build

    targets = [
        serve.RunTarget(build(settings), name=name, route_prefix=f"/{name}")
        for name, settings in apps.items()
    ]
    serve.run_many(targets, wait_for_applications_running=True)


class Client:
    """Requests to one service, alone or at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=60, headers=ADMIN)

    def embed(self, *inputs: Any, **options: Any) -> httpx.Response:
        return self.http.post("/v1/embeddings", json={"input": list(inputs)} | options)

    def classify(self, *inputs: Any, **options: Any) -> httpx.Response:
        return self.http.post("/v1/classify", json={"input": list(inputs)} | options)

    def upload(self, name: str, data: bytes, method: str = "PUT") -> httpx.Response:
        headers = {"content-type": "application/octet-stream"}
        return self.http.request(method, f"/v1/tenants/{name}", content=data, headers=headers)

    def at_once(self, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
        """Answers to embedding requests that are all under way together, in order."""

        def one(body: dict[str, Any]) -> httpx.Response:
            return httpx.post(f"{self.url}/v1/embeddings", json=body, timeout=60)

        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(one, bodies))

    def slow(self, promised: int = 1000, sent: bytes = b'{"input": ["a c') -> socket.socket:
        """A client that has sent some of its request, and sends no more."""
        url = httpx.URL(self.url)
        one = socket.create_connection((url.host, url.port))
        head = f"POST {url.path}/v1/embeddings HTTP/1.1\r\nHost: {url.host}\r\n"
        one.sendall(f"{head}Content-Length: {promised}\r\n\r\n".encode() + sent)
        return one


def answered(one: socket.socket, within: float = 0.0) -> bytes:
    """What a socket has been sent by then: b"" for nothing."""
    if not select.select([one], [], [], within)[0]:
        return b""
    return one.recv(65536)


def rows(response: httpx.Response) -> np.ndarray:
    """[n, d] of an answer with embeddings."""
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return np.array([one["embedding"] for one in data], np.float32)


def error(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, whose shape is always the same."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def png(image: Image.Image | Path) -> str:
    """An image as the base64 of a PNG."""
    if isinstance(image, Path):
        return base64.b64encode(image.read_bytes()).decode()
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
