"""The service as its clients see it: a small Ray, two replicas, every answer and every refusal."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="the service needs Ray: pip install clipproj[serve]")
pytest.importorskip("open_clip")
pytest.importorskip("httpx")

import httpx
import serving
from PIL import Image
from serving import ADMIN, Client, answered, error, png, rows

from clipproj import Projector, demo, nullspace, reference
from clipproj.checkpoints.checkpoint import load_model
from clipproj.serve import openapi
from clipproj.serve.engine import Engine
from clipproj.serve.http import make_api
from clipproj.serve.inputs import Item, Job
from clipproj.serve.settings import Settings, digest
from clipproj.serve.store import Changes, from_bytes, to_bytes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own

D = 128  # of the embedded model
BODY, INPUTS, CAPACITY, UPLOAD = 300_000, 32, 64, 4.0
METRICS = serving.free_port()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tenants are kept."""
    return tmp_path_factory.mktemp("tenants")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Two services: `main`, and `slow`, whose batches wait longer than its requests may take."""
    main = {
        "replicas": 2,
        "data": str(folder / "main"),
        "token_digest": digest(serving.TOKEN),
        "max_body": BODY,
        "max_batch": INPUTS,
        "capacity": CAPACITY,
        "upload_timeout": UPLOAD,
        "threads": 1,
    }
    slow = {
        "data": str(folder / "slow"),
        "batch_wait": 1.5,
        "max_batch": 4,
        "ongoing": 2,
        "queue": 1,
        "timeout": 1.0,
        "threads": 1,
    }
    with serving.cluster(METRICS) as url:
        serving.run_apps({"main": main, "slow": slow})
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(f"{url}/main")


@pytest.fixture(scope="module")
def tenants(client: Client) -> dict[str, Projector]:
    """Six projectors that the service has, of two forms and four ranks."""
    torch.manual_seed(0)
    made = {f"t{k}": nullspace(torch.randn(k, D), contrast="none") for k in (1, 2, 3, 4)}
    made["half"] = made["t2"].scaled(0.5)
    made["oblique"] = Projector(torch.randn(2, D) / D**0.5, torch.randn(2, D) / D**0.5)
    for name, projector in made.items():
        assert client.upload(name, to_bytes(projector)).status_code == 201
    return made


def drawing(name: str = "cat") -> str:
    return png(sorted((demo.images_dir() / name).glob("*.png"))[0])


def numbers(seed: int) -> list[float]:
    return torch.randn(D, generator=torch.Generator().manual_seed(seed)).tolist()


def check(row: np.ndarray, plain: np.ndarray, projector: Projector | None, slack: float) -> None:
    """A row against the float64 reference on its unedited row."""
    x = torch.from_numpy(plain)[None]
    projector = projector or Projector(torch.zeros(0, D))
    want = reference.project(x, **projector.factors(), normalize=True)
    bound = reference.tolerance(x, **projector.factors(), normalize=True) + slack
    assert bool(((torch.from_numpy(row)[None].double() - want).abs() <= bound).all())


def test_mixed_requests_at_once_have_each_row_right(
    client: Client, tenants: dict[str, Projector]
) -> None:
    inputs = [{"embedding": numbers(i)} for i in range(12)]
    inputs += [{"text": f"a {name}"} for name in demo.class_names()[:12]]
    inputs += [{"image": drawing(name)} for name in demo.class_names()[:6]]
    plain = rows(client.embed(*inputs))
    names = [None, *tenants]
    bodies, wanted = [], []
    for i in range(21):
        picked = [(7 * i + 5 * j) % len(inputs) for j in range(4)]
        own = [names[(i + j) % len(names)] for j in range(4)]
        given = [inputs[n] | {"projector": name} for n, name in zip(picked, own, strict=True)]
        bodies.append({"input": given})
        wanted.append(list(zip(picked, own, strict=True)))
    for response, pairs in zip(client.at_once(bodies), wanted, strict=True):
        for row, (n, name) in zip(rows(response), pairs, strict=True):
            projector = tenants.get(name)
            if projector is not None and "text" in inputs[n]:
                projector = projector.T
            # a model's features depend on the batch, by rounding
            check(row, plain[n], projector, 0.0 if "embedding" in inputs[n] else 2e-5)


def test_openai_shape(client: Client, tenants: dict[str, Projector]) -> None:
    alone = client.http.post("/v1/embeddings", json={"input": "a cat", "model": demo.NAME}).json()
    assert (alone["object"], alone["model"]) == ("list", demo.NAME)
    assert alone["usage"] == {"prompt_tokens": 4, "total_tokens": 4}  # two words, start and end
    assert set(alone["data"][0]) == {"object", "index", "embedding"}
    options = {"model": demo.NAME, "encoding_format": "base64", "dimensions": D, "user": "me"}
    packed = client.embed("a cat", **options).json()["data"][0]["embedding"]
    got = np.frombuffer(base64.b64decode(packed), "<f4")
    np.testing.assert_allclose(got, alone["data"][0]["embedding"], atol=1e-6)
    assert abs(np.linalg.norm(got) - 1) < 1e-6
    # what came out goes in again
    again = rows(client.embed({"embedding": packed}))
    np.testing.assert_allclose(again[0], got, atol=1e-6)
    assert client.http.get("/v1/models").json()["data"][0]["id"] == demo.NAME


def keys(value: Any) -> Any:
    """The names of the fields of an answer, and of the first item of its lists."""
    if isinstance(value, dict):
        return {name: keys(one) for name, one in value.items()}
    return [keys(value[0])] if isinstance(value, list) else None


def test_the_documents_show_what_is_answered(client: Client, tenants: dict[str, Projector]) -> None:
    served, own = client.http.get("/openapi.json").json(), make_api().openapi()
    assert (served["paths"], served["components"]) == (own["paths"], own["components"])
    assert "/main/openapi.json" in client.http.get("/docs").text
    assert client.upload("acme", to_bytes(tenants["t1"])).status_code == 201
    sent = {("POST", path): next(iter(asked.values())) for path, asked in openapi.ASKED.items()}
    for (method, path), shown in openapi.ANSWERED.items():
        body = sent.get((method, path))
        answer = client.http.request(method, path.replace("{name}", "acme"), json=body)
        assert answer.status_code == 200
        assert keys(answer.json()) == keys(shown)


def test_receipts(client: Client, tenants: dict[str, Projector]) -> None:
    response = client.embed(
        {"embedding": numbers(0)}, {"text": "a cat"}, {"embedding": numbers(1), "projector": None},
        {"embedding": numbers(2), "projector": ["t1", "t4"]}, projector="t2", strength=1,
        receipt=True,
    )  # fmt: skip
    first, text, none, both = (one["receipt"] for one in response.json()["data"])
    assert first["projector"] == "t2"
    assert first["hash"] == tenants["t2"].content_hash()
    assert first["strength"] == 1
    assert first["residual"] < 1e-6
    assert (text["side"], text["hash"]) == ("text", tenants["t2"].T.content_hash())
    assert none["projector"] is None
    assert both["hash"] == [tenants[name].content_hash() for name in ("t1", "t4")]
    assert max(both["residual"]) < 1e-6


def test_a_class_is_erased_from_its_name(client: Client) -> None:
    spec = {"forget": ["cat"], "templates": ["a {}"]}
    made = client.http.put("/v1/tenants/no-cats", json=spec)
    assert made.status_code == 201
    about = made.json()
    assert (about["forget"], about["keep"], about["strength"]) == (["cat"], 53, 1.0)
    assert (about["form"], about["half_spaces"], about["text_hash"]) == ("one-sided", 1, None)
    assert about["threshold"] == about["parameters"]["threshold"]
    text = client.embed("a cat", projector="no-cats")
    assert (text.status_code, error(text)["code"]) == (400, "no_text_form")
    options = {"classes": ["cat", "dog", "whale"], "templates": ["a {}"]}
    image = {"image": f"data:image/png;base64,{drawing()}"}
    response = client.classify(image, image | {"projector": "no-cats"}, receipt=True, **options)
    before, after = response.json()["data"]
    assert before["classes"][0]["class"] == "cat"
    assert after["classes"][0]["class"] != "cat"
    assert after["receipt"]["hash"] == about["hash"]
    for one in (before, after):
        assert sum(c["probability"] for c in one["classes"]) == pytest.approx(1, abs=1e-5)
        logits = [c["logit"] for c in one["classes"]]
        assert logits == sorted(logits, reverse=True)
    (first,) = client.classify(image, top=1, **options).json()["data"]
    assert first["classes"] == before["classes"][:1]
    assert client.http.get("/v1/tenants/no-cats").json()["hash"] == about["hash"]
    headers = {"accept": "application/octet-stream"}
    file = client.http.get("/v1/tenants/no-cats", headers=headers).content
    assert from_bytes(file).content_hash() == about["hash"]
    weak = spec | {"strength": 0.05}
    refused = client.http.put("/v1/tenants/no-cats", json=weak)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "edit_refused")
    assert client.http.get("/v1/tenants/no-cats").json()["hash"] == about["hash"]
    lifted = client.http.put("/v1/tenants/no-cats", json=weak | {"max_loss": 1, "max_found": 1})
    assert lifted.json()["measured"]["found"]["after"] > 0.5
    ccup = client.http.put("/v1/tenants/no-cats", json=spec | {"method": "ccup", "keep": ["dog"]})
    assert (ccup.status_code, ccup.json()["form"]) == (200, "oblique")


def test_changes_are_seen_at_once_by_both_replicas(client: Client) -> None:
    torch.manual_seed(5)
    body = {"input": [{"embedding": numbers(0)}] * 2, "projector": "moving", "receipt": True}
    for _ in range(4):
        projector = nullspace(torch.randn(2, D), contrast="none")
        assert client.upload("moving", to_bytes(projector)).status_code in (200, 201)
        for response in client.at_once([body] * 12):
            assert response.status_code == 200
            for one in response.json()["data"]:
                assert one["receipt"]["hash"] == projector.content_hash()
    assert client.http.delete("/v1/tenants/moving").json()["deleted"] is True
    for response in client.at_once([body] * 12):
        assert (response.status_code, error(response)["code"]) == (404, "tenant_not_found")
    seen: dict[str, int] = {}
    end = time.monotonic() + 20
    while len(seen) < 2 and time.monotonic() < end:
        health = client.http.get("/health").json()
        seen[health["replica"]] = health["version"] - health["stored_version"]
    assert list(seen.values()) == [0, 0]  # both have had batches, and know what the store knows


CASES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no input": ({}, 400, "invalid_value", "input"),
    "empty input": ({"input": []}, 400, "invalid_value", "input"),
    "too many": ({"input": ["a"] * (INPUTS + 1)}, 400, "too_many", "input"),
    "blank": ({"input": ["a", " "]}, 400, "invalid_value", "input[1].text"),
    "tokens": ({"input": [[1, 2]]}, 400, "token_ids", "input[0]"),
    "model": ({"input": "a", "model": "gpt"}, 404, "model_not_found", "model"),
    "dimensions": ({"input": "a", "dimensions": 64}, 400, "invalid_value", "dimensions"),
    "field": ({"input": "a", "input_type": "query"}, 400, "unknown_field", "input_type"),
    "tenant": ({"input": "a", "projector": "nobody"}, 404, "tenant_not_found",
               "input[0].projector"),
    "tenants": ({"input": "a", "projector": ["t1", "t1"]}, 400, "invalid_value", "projector"),
    "strength": ({"input": "a", "projector": "t1", "strength": 2.5}, 400, "invalid_value",
                 "strength"),
    "no projector": ({"input": "a", "strength": 1}, 400, "invalid_value", "strength"),
    "nan": ({"input": ["a", {"embedding": [float("nan")] * D}]}, 400, "invalid_value",
            "input[1].embedding"),
    "inf": ({"input": [{"embedding": [1e300] * D}]}, 400, "invalid_value", "input[0].embedding"),
    "width": ({"input": [{"embedding": [1.0] * 7}]}, 400, "wrong_dimension",
              "input[0].embedding"),
    "words": ({"input": [{"embedding": ["1"] * D}]}, 400, "invalid_value", "input[0].embedding"),
    "base64": ({"input": [{"image": "!!!"}]}, 400, "invalid_base64", "input[0].image"),
    "no image": ({"input": ["a", {"image": "aGVsbG8="}]}, 400, "invalid_image", "input[1].image"),
    "link": ({"input": [{"image": "http://localhost/"}]}, 400, "invalid_value", "input[0].image"),
    "bomb": ({"input": [{"image": png(Image.new("1", (9000, 9000)))}]}, 400, "image_too_large",
             "input[0].image"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_request_is_refused_and_others_are_not(
    client: Client, tenants: dict[str, Projector], case: str
) -> None:
    body, status, code, param = CASES[case]
    good = {"input": [{"embedding": numbers(0)}], "projector": "t1"}
    content = json.dumps(body).encode()
    refused = client.http.post("/v1/embeddings", content=content)
    assert refused.status_code == status
    assert (error(refused)["code"], error(refused)["param"]) == (code, param)
    assert rows(client.at_once([good])[0]).shape == (1, D)


def test_malformed_bodies(client: Client) -> None:
    for content in (b"", b"{", b"[]", b'{"input": "\xff"}', b'{"input": "\\ud800"}'):
        refused = client.http.post("/v1/embeddings", content=content)
        assert (refused.status_code, error(refused)["code"]) == (400, "invalid_json")
    assert error(client.http.get("/v1/nothing"))["code"] == "no_such_route"
    assert client.http.get("/v1/embeddings").status_code == 405
    gzip = client.http.post("/v1/embeddings", content=b"x", headers={"content-encoding": "gzip"})
    assert gzip.status_code == 415


def test_a_path_that_ends_in_a_slash_is_none_of_ours(client: Client) -> None:
    for method, path in (("POST", "/v1/embeddings/"), ("GET", "/v1/tenants/"), ("GET", "/health/")):
        refused = client.http.request(method, path, content=b'{"input": "a"}')
        assert refused.status_code == 404
        assert error(refused)["code"] == "no_such_route"


def test_a_body_that_is_too_long(client: Client) -> None:
    told = client.http.post("/v1/embeddings", content=b"x" * (BODY + 1))
    streamed = client.http.post("/v1/embeddings", content=(b"x" * 1000 for _ in range(BODY // 900)))
    for refused in (told, streamed):
        assert (refused.status_code, error(refused)["code"]) == (413, "body_too_large")


def test_slow_clients_hold_nobody_up(client: Client) -> None:
    slow = [client.slow() for _ in range(20)]
    try:
        for i in range(10):
            assert rows(client.embed({"embedding": numbers(i)})).shape == (1, D)
        # the others were answered while these were still sending
        assert [answered(one) for one in slow] == [b""] * len(slow)
        for one in slow:
            assert answered(one, within=4 * UPLOAD).startswith(b"HTTP/1.1 408")
    finally:
        for one in slow:
            one.close()


def test_full_queues_and_deadlines(url: str) -> None:
    slow = Client(f"{url}/slow")
    assert rows(slow.embed(*["a cat"] * 4)).shape == (4, D)  # a full batch does not wait
    body = {"input": "a cat"}
    answers = slow.at_once([body] * 10)
    by_status = {one.status_code: one for one in answers}
    assert set(by_status) == {429, 504}
    assert by_status[429].headers["retry-after"] == "1"
    assert error(by_status[429])["code"] == "queue_full"
    assert error(by_status[504])["code"] == "deadline_exceeded"
    end = time.monotonic() + 20
    while True:  # what was given up is not computed; then there is room again
        response = slow.embed(*["a cat"] * 4)
        if response.status_code == 200 or time.monotonic() > end:
            break
    assert rows(response).shape == (4, D)


def test_who_may_change_tenants(client: Client, url: str) -> None:
    path = "/v1/tenants/x"
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic eDp5"}):
        for method in ("GET", "PUT", "POST", "DELETE"):
            refused = httpx.request(method, client.url + path, headers=headers)
            assert (refused.status_code, error(refused)["code"]) == (401, "invalid_token")
            assert refused.headers["www-authenticate"] == "Bearer"
    refused = httpx.put(f"{url}/slow{path}", headers=ADMIN, json={"forget": ["cat"]})
    assert refused.status_code == 403
    assert "CLIPPROJ_ADMIN_TOKEN" in error(refused)["message"]


def test_tenants_that_are_refused(client: Client, tenants: dict[str, Projector]) -> None:
    torch.manual_seed(9)

    def code(response: httpx.Response) -> tuple[int, str]:
        return response.status_code, error(response)["code"]

    known = client.http.get("/v1/tenants").json()
    big = to_bytes(nullspace(torch.randn(CAPACITY, D), contrast="none"))
    assert code(client.upload("t1", to_bytes(tenants["t2"]), "POST")) == (409, "tenant_exists")
    assert code(client.upload("big", big)) == (507, "bank_full")
    assert code(client.upload("bad", big[:-9])) == (400, "invalid_projector")
    other = nullspace(torch.randn(1, D + 8), contrast="none")
    assert code(client.upload("bad", to_bytes(other))) == (400, "invalid_projector")
    texts = nullspace(torch.randn(1, D), contrast="none", side="text")
    assert code(client.upload("bad", to_bytes(texts))) == (400, "invalid_projector")
    assert code(client.upload("..%2Fbad", big))[0] in (400, 404)
    put = client.http.put
    assert code(put("/v1/tenants/bad", json={"forget": []})) == (400, "invalid_value")
    assert code(put("/v1/tenants/bad", json={"forget": ["cat"], "keep": ["cat"]}))[0] == 400
    assert code(put("/v1/tenants/bad", json={"forget": ["cat", "Cat"]})) == (400, "invalid_value")
    assert code(put("/v1/tenants/bad", json={"forget": ["cat"], "x": 1})) == (400, "unknown_field")
    assert code(client.http.delete("/v1/tenants/bad")) == (404, "tenant_not_found")
    assert client.http.get("/v1/tenants").json() == known
    assert rows(client.embed({"embedding": numbers(0)}, projector="t1")).shape == (1, D)


def test_a_store_that_is_killed_comes_back_with_its_tenants(
    client: Client, tenants: dict[str, Projector], folder: Path
) -> None:
    import ray

    assert client.upload("lost", to_bytes(tenants["t1"])).status_code == 201
    body = {"input": [{"embedding": numbers(0)}], "projector": "lost", "receipt": True}
    assert client.http.post("/v1/embeddings", json=body).status_code == 200
    known = client.http.get("/v1/tenants").json()
    actors = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)]
    (store,) = [name for name in actors if "main#store#" in name]
    ray.kill(ray.get_actor(store, namespace="serve"))
    (file,) = (folder / "main").glob("lost.*.safetensors")
    file.unlink()  # while nobody looks: what the replicas last knew is not so any more
    end = time.monotonic() + 40
    while time.monotonic() < end:
        response = client.http.post("/v1/embeddings", json=body)
        error(response)
        if response.status_code == 404:
            break
        assert response.status_code in (503, 504)
        time.sleep(0.2)
    assert response.status_code == 404
    known["data"] = [one for one in known["data"] if one["name"] != "lost"]
    assert client.http.get("/v1/tenants").json() == known
    (kept,) = client.embed({"embedding": numbers(0)}, projector="t3", receipt=True).json()["data"]
    assert kept["receipt"]["hash"] == tenants["t3"].content_hash()
    assert client.upload("late", to_bytes(tenants["t1"])).status_code == 201
    assert client.http.delete("/v1/tenants/late").status_code == 200


def test_a_replica_that_does_not_hear_from_the_store_answers_nothing() -> None:
    from clipproj.serve.app import Replica

    class Gone:
        """A handle to a store whose answer fails on the way."""

        def __getattr__(self, _: str) -> Gone:
            return self

        async def remote(self, *_: Any) -> None:
            raise ConnectionError("the store died")

    replica = object.__new__(Replica)
    replica.settings, replica.store = Settings(), Gone()
    replica.batches = ThreadPoolExecutor(1)
    replica.engine = Engine(load_model())
    replica.engine.apply(Changes(1, 1, {"t": to_bytes(Projector(torch.eye(1, D)))}))
    request = Job((Item("embedding", np.ones(D, np.float32), ("t",)),))
    batch = [(replica.engine.prepare(request), None)] * 2
    answers = asyncio.run(Replica._batch(replica, batch))
    assert [(one.status, one.code) for one in answers] == [(503, "store_unreachable")] * 2


def test_the_load_test_finds_no_wrong_row(client: Client, tenants: dict[str, Projector]) -> None:
    import serve_load as load

    known = client.http.get("/v1/tenants").json()
    sizes = {"rows": 600, "per_request": 8, "clients": 4, "rounds": 2, "tenants": 8}
    found = asyncio.run(load.measure(client.url, serving.TOKEN, **sizes))
    assert found["rows checked"] >= 600
    assert found["wrong rows"] == found["failed requests"] == 0, found
    assert all(phase["rows"] >= 200 for phase in found["phases"].values())
    assert client.http.get("/v1/tenants").json() == known


def test_health_and_metrics(client: Client) -> None:
    health = client.http.get("/health")
    assert health.status_code == 200
    assert health.json().items() >= {"status": "ok", "model": demo.NAME, "dim": D}.items()
    wanted = {"ray_clipproj_requests_total", "ray_clipproj_rows_total", "ray_clipproj_tenants",
              "ray_clipproj_batch_rows_count", "ray_clipproj_request_seconds_count"}  # fmt: skip
    end = time.monotonic() + 30
    found: set[str] = set()
    while not wanted <= found and time.monotonic() < end:  # Ray reports every few seconds
        time.sleep(0.5)
        text = httpx.get(f"http://127.0.0.1:{METRICS}/metrics", timeout=10).text
        found = {line.partition("{")[0] for line in text.splitlines()}
    assert wanted <= found
    refused = [line for line in text.splitlines() if "clipproj_requests" in line]
    assert any('status="404"' in line and 'endpoint="embeddings"' in line for line in refused)
