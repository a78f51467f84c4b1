"""`clipproj serve`: the service on this machine, from the first request to the last."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Annotated, Any

import typer

from clipproj.cli import terminal
from clipproj.refusal import Refusal
from clipproj_command import ENDS

# What needs Ray is imported where it is used: --help must not wait for it.

MODEL, SERVICE, LIMITS = "Model", "Service", "Limits"
APP = "clipproj"
STORE = 256 << 20  # bytes of shared memory for Ray: what it moves is small
_ERROR = re.compile(r"^[\w.]*(Error|Exception): ")  # how a traceback ends
PROXY_WAIT = 5.0  # seconds beyond a request's grace that stopping may take


def serve(
    model: Annotated[
        str | None,
        typer.Option(help="As for erase. Default: the embedded model.", rich_help_panel=MODEL),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="As for erase.", rich_help_panel=MODEL)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Default: cuda where there is one.", rich_help_panel=MODEL),
    ] = None,
    replicas: Annotated[int, typer.Option(help="Copies of the model.", rich_help_panel=MODEL)] = 1,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 for all interfaces.", rich_help_panel=SERVICE)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of HTTP.", rich_help_panel=SERVICE)] = 8000,
    data: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Keeps the tenants.", rich_help_panel=SERVICE)
    ] = Path("clipproj-tenants"),
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Holds the token for changing tenants. Default: CLIPPROJ_ADMIN_TOKEN; without "
            "either nobody can.",
            rich_help_panel=SERVICE,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Of Prometheus metrics. Default: none.", rich_help_panel=SERVICE),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="Rows in a batch, inputs in a request.", rich_help_panel=LIMITS)
    ] = 256,
    batch_wait: Annotated[
        float,
        typer.Option(help="Seconds a batch waits for more requests.", rich_help_panel=LIMITS),
    ] = 0.005,
    queue: Annotated[
        int, typer.Option(help="Requests that may wait; then 429.", rich_help_panel=LIMITS)
    ] = 256,
    max_body: Annotated[
        int, typer.Option(help="Bytes of a request; then 413.", rich_help_panel=LIMITS)
    ] = 16 << 20,
    timeout: Annotated[
        float, typer.Option(help="Seconds to answer; then 504.", rich_help_panel=LIMITS)
    ] = 30.0,
    upload_timeout: Annotated[
        float, typer.Option(help="Seconds to send; then 408.", rich_help_panel=LIMITS)
    ] = 30.0,
    grace: Annotated[
        float,
        typer.Option(
            help="Seconds that requests in hand have to finish at the end.", rich_help_panel=LIMITS
        ),
    ] = 30.0,
    capacity: Annotated[
        int, typer.Option(help="Directions over all tenants; then 507.", rich_help_panel=LIMITS)
    ] = 4096,
    one_sided: Annotated[
        int,
        typer.Option(
            help="Directions of a one-sided tenant; of more names they are folded.",
            rich_help_panel=LIMITS,
        ),
    ] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error comes from.")
    ] = False,
) -> None:
    """Serve embeddings and classes over HTTP, each request with its tenant's projector.

    OpenAI-style: POST /v1/embeddings, /v1/classify; GET, PUT, POST, DELETE /v1/tenants/NAME.

    Ctrl-C, SIGTERM or SIGHUP stops it; requests in hand finish. More in docs/serving.md.
    """
    settings = {
        "model": model,
        "pretrained": pretrained,
        "device": device,
        "replicas": replicas,
        "data": str(data),
        "token_file": token_file,
        "max_batch": max_batch,
        "batch_wait": batch_wait,
        "queue": queue,
        "max_body": max_body,
        "timeout": timeout,
        "upload_timeout": upload_timeout,
        "grace": grace,
        "capacity": capacity,
        "one_sided": one_sided,
    }
    run(settings, host, port, metrics_port, as_json)


def run(
    settings: dict[str, Any], host: str, port: int, metrics_port: int | None, as_json: bool
) -> None:
    """Start it, say where it is, wait for a signal to end, and let requests in hand finish.

    Args:
        settings: as `clipproj.serve.build` takes them.

    Raises:
        ImportError: without Ray Serve. ValueError: for settings out of range.
        RuntimeError: when a part does not start; it says which, and Ray's log says why.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ImportError(
            'serve: the service needs Ray Serve: pip install "clipproj[serve]"'
        ) from error

    from clipproj.checkpoints.checkpoint import check_model
    from clipproj.serve.app import build
    from clipproj.serve.settings import Settings

    made = Settings.of(settings)
    _check_address(host, port)
    with terminal.quiet(as_json):  # before a replica says it in Ray's log
        check_model(made.model, made.pretrained)
    stop: SimpleQueue[int] = SimpleQueue()
    handlers = _handlers(stop)
    cores = max(os.cpu_count() or 1, made.replicas)
    ray.init(
        address="local",  # not a cluster that an environment variable names
        num_cpus=cores,
        include_dashboard=False,
        object_store_memory=STORE,
        log_to_driver=False,
        logging_level="error",
        _metrics_export_port=metrics_port,
    )
    try:
        for number, handler in handlers.items():  # not before: Ray sets its own
            signal.signal(number, handler)
        quiet = logging.getLogger("ray.serve")
        quiet.addFilter(lambda record: record.levelno >= logging.WARNING)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config={"log_level": "WARNING"},
        )
        try:
            gateway = serve.run(build(made), name=APP, route_prefix="/")
        except RuntimeError as error:
            raise RuntimeError(f"serve: {_reason(serve.status(), error)}") from error
        if stop.empty():
            _say(made, host, port, metrics_port, as_json)
        while stop.empty():  # a signal that another of Ray's threads takes does not wake this one
            with suppress(Empty):
                stop.get(timeout=1.0)
                break
        print("clipproj serve: stopping, requests in hand finish", file=sys.stderr, flush=True)
        cut = sum(gateway.broadcast("drain").results(timeout_s=made.grace + PROXY_WAIT))
        if cut:
            print(f"clipproj serve: {cut} requests did not finish", file=sys.stderr, flush=True)
        serve.delete(APP)
        serve.shutdown()
    finally:
        ray.shutdown()


def _handlers(stop: SimpleQueue[int]) -> dict[int, Any]:
    """What is to handle each signal that ends us; one that the caller has ignored stays so.

    A queue of this kind, unlike an event, may be told while it is being told or waited for.
    """

    def end(number: int, _: FrameType | None) -> None:
        stop.put(number)

    ignored = signal.SIG_IGN
    return {one: ignored if signal.getsignal(one) == ignored else end for one in ENDS}


def _reason(status: Any, error: Exception) -> str:
    """The error in the part that did not start: its last line, without where it was raised."""
    for app in status.applications.values():
        for name, part in app.deployments.items():
            lines = [line for line in part.message.splitlines() if _ERROR.match(line)]
            if lines:
                return f"{name} does not start: {_ERROR.sub('', lines[-1])}"
    return str(error)


def _check_address(host: str, port: int) -> None:
    """Raises ValueError for an address that cannot be listened on: Ray would only log it."""
    if not 0 < port < 65536:
        raise Refusal("serve", "port", f"must be in [1, 65535], got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
    except OSError as error:
        reason = error.strerror or error
        raise Refusal(
            "serve", None, f"host and port must be free, got {host}:{port}: {reason}"
        ) from error


def _say(settings: Any, host: str, port: int, metrics_port: int | None, as_json: bool) -> None:
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    facts = {"url": url, "model": settings.served, "tenants": settings.data}
    if metrics_port is not None:
        facts["metrics"] = f"http://127.0.0.1:{metrics_port}/metrics"
    if as_json:
        print(json.dumps(facts), flush=True)
        return
    print(f"serving {settings.served} on {url}, tenants in {settings.data}; Ctrl-C stops")
    if settings.token_digest is None:
        print("tenants cannot be changed: no CLIPPROJ_ADMIN_TOKEN and no --token-file")
    if metrics_port is not None:
        print(f"metrics on {facts['metrics']}")
    sys.stdout.flush()
