"""The service on Ray Serve: gateways speak HTTP, replicas hold the model, one store the tenants."""

from __future__ import annotations

import asyncio
import functools
import os
from collections import Counter as Counts
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

try:
    from ray import serve
    from ray.serve.handle import DeploymentHandle
    from ray.serve.metrics import Counter, Gauge, Histogram
except ImportError as error:
    raise ImportError(
        'serve: the service needs Ray Serve: pip install "clipproj[serve]"'
    ) from error

import torch

from clipproj.checkpoints.checkpoint import load_model
from clipproj.recipe import Recipe
from clipproj.serve import make
from clipproj.serve.batching import Batcher
from clipproj.serve.engine import Answer, Engine
from clipproj.serve.errors import ServiceError
from clipproj.serve.http import SECONDS, Gateway, awaited, make_api
from clipproj.serve.inputs import Job, Prepared
from clipproj.serve.settings import Settings
from clipproj.serve.store import Changes, Store, to_bytes

FAILURES = 3  # batches in a row whose every request failed in the model, until a replica is ill
HEALTH_PERIOD = 2.0  # seconds; without the store every request fails, so its end is noticed soon
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


class StoreActor:
    """`Store` as a deployment of one replica: Serve starts it again when it dies."""

    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings.data, settings.capacity)
        self.gauge = Gauge("clipproj_tenants", "Tenants in the store.")
        self.gauge.set(len(self.store))

    async def changes(self, epoch: int, version: int) -> Changes:
        """See `Store.changes`."""
        return self.store.changes(epoch, version)

    async def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Any other method of the store; an error of the client's is returned, not raised."""
        try:  # in a thread: it may wait for a disk
            out = await asyncio.to_thread(getattr(self.store, method), *args, **options)
        except ServiceError as error:
            return error
        self.gauge.set(len(self.store))
        return out

    def __del__(self) -> None:
        store = getattr(self, "store", None)
        if store is not None:
            store.close()


class Replica:
    """The model and the banks. Nothing that takes long runs on the event loop."""

    async def __init__(self, settings: Settings, device: str, store: DeploymentHandle) -> None:
        self.settings, self.store = settings, store
        if device == "cpu":
            threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.replicas)
            torch.set_num_threads(threads)
        loaded = load_model(settings.model, settings.pretrained, device)
        self.engine = Engine(
            loaded,
            capacity=settings.capacity,
            max_pixels=settings.max_pixels,
            one_sided=settings.one_sided,
        )
        # One thread for batches: they come one after the other. One for the texts of classes and
        # new tenants, so that a long list does not hold up the batches. Some to read images.
        self.batches, self.texts = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.readers = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self.failed = 0
        self.batcher = Batcher(
            self._batch, lambda one: len(one[0]), settings.max_batch, settings.batch_wait
        )
        self.rows = Counter("clipproj_rows", "Rows answered.", tag_keys=("kind", "edited"))
        self.sizes = Histogram("clipproj_batch_rows", "Rows in a batch.", boundaries=ROWS)
        self.seconds = Histogram(
            "clipproj_batch_seconds", "Of a batch.", boundaries=SECONDS, tag_keys=("part",)
        )
        self.known = Gauge("clipproj_replica_tenants", "Tenants in a replica's bank.")
        # Tenants that this model cannot have: better known now than at their first request.
        self.engine.apply(await store.changes.remote(0, 0))

    async def answer(self, job: Job) -> Answer | ServiceError:
        """One job, answered in a batch with others."""
        try:
            prepared = await self._in(self.readers, self.engine.prepare, job)
            classes = None
            if job.classes is not None:
                classes = await self._in(self.texts, self.engine.classes, job)
            return await self.batcher((prepared, classes))
        except ServiceError as error:
            return error

    async def _batch(
        self, batch: Sequence[tuple[Prepared, torch.Tensor | None]]
    ) -> list[Answer | ServiceError]:
        requests = [prepared for prepared, _ in batch]
        clock = asyncio.get_running_loop().time
        start = clock()
        # Asked before the model runs and after the last request came in: it costs no time, and
        # what was changed before a request was sent is known when its rows are edited.
        tenants = self.engine.tenants
        response = self.store.changes.remote(tenants.epoch, tenants.version)
        rows, changes = await asyncio.gather(
            self._in(self.batches, self.engine.forward, requests),
            asyncio.wait_for(awaited(response), self.settings.timeout),
            return_exceptions=True,
        )
        forwarded = clock()
        if isinstance(rows, BaseException):
            raise rows
        if isinstance(changes, BaseException):
            # not what the bank last knew: a tenant may be removed or changed since
            text = f"the store of tenants cannot be reached: {type(changes).__name__}"
            return [ServiceError(503, text, None, "store_unreachable", 1)] * len(batch)
        texts = [classes for _, classes in batch]
        try:
            out = await self._in(self.batches, self.engine.finish, requests, texts, rows, changes)
        except Exception:
            self.failed += 1  # what the store knows does not fit this replica: start it again
            raise

        self.seconds.observe(forwarded - start, tags={"part": "model"})
        self.seconds.observe(clock() - forwarded, tags={"part": "projectors"})
        self.sizes.observe(sum(map(len, requests)))
        self.known.set(len(tenants))
        for prepared, one in zip(requests, out, strict=True):
            if isinstance(one, Answer):
                kinds = Counts((i.kind, bool(i.projector)) for i in prepared.job.inputs)
                for (kind, edited), count in kinds.items():
                    self.rows.inc(count, tags={"kind": kind, "edited": str(edited).lower()})
        broken = [isinstance(o, ServiceError) and o.code == "model_failed" for o in out]
        self.failed = self.failed + 1 if all(broken) else 0
        return out

    async def make(self, given: Recipe | bytes) -> bytes | ServiceError:
        """A projector's file from names, or from another file, after its checks."""
        try:
            return await self._in(self.texts, self._make, given)
        except ServiceError as error:
            return error

    def _make(self, given: Recipe | bytes) -> bytes:
        if isinstance(given, bytes):
            return to_bytes(make.from_file(self.engine, given))
        engine, most = self.engine, self.settings.max_prompts
        return to_bytes(make.from_names(engine.loaded, given, most, engine.one_sided))

    async def status(self) -> dict[str, Any]:
        """What runs here."""
        tenants = self.engine.tenants
        return {
            "model": self.settings.served,
            "device": str(self.engine.device),
            "dim": self.engine.dim,
            "replica": serve.get_replica_context().replica_id.unique_id,
            "tenants": len(tenants),
            "version": tenants.version,
        }

    def check_health(self) -> None:
        """Serve asks now and then, and starts a replica again that raises."""
        if self.failed >= FAILURES:
            raise RuntimeError(f"serve: the model failed on the last {self.failed} batches")

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, functools.partial(work, *args))


def build(args: Mapping[str, Any] | Settings) -> serve.Application:
    """See `clipproj.serve.build`."""
    settings = Settings.of(args)
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    patient = {
        "graceful_shutdown_timeout_s": settings.grace,
        "health_check_period_s": HEALTH_PERIOD,
        "max_constructor_retry_count": 2,  # what fails twice, a setting most likely, fails again
        "logging_config": {"enable_access_log": settings.access_log},
    }
    store = serve.deployment(
        StoreActor,
        name="store",
        num_replicas=1,
        max_ongoing_requests=1024,
        ray_actor_options={"num_cpus": 0},
        **patient,
    ).bind(settings)
    gpu = device.startswith("cuda")
    replica = serve.deployment(
        Replica,
        name="model",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.ongoing,
        max_queued_requests=settings.queue,
        ray_actor_options={"num_gpus": settings.gpus, "num_cpus": 1} if gpu else {"num_cpus": 1},
        **patient,
    ).bind(settings, device, store)
    return serve.deployment(
        serve.ingress(make_api)(Gateway),
        name="gateway",
        num_replicas=settings.gateways,
        max_ongoing_requests=settings.connections,
        max_queued_requests=settings.connections,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        ray_actor_options={"num_cpus": 0},
        **patient,
    ).bind(settings, replica, store)
