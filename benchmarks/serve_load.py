"""Loads the service with mixed tenants and holds every returned row against the float64 reference.

    python benchmarks/serve_load.py --rows 100000 --out load.json

It starts `clipproj serve` with the embedded model, or takes `--url` of one that runs (and the token
from CLIPPROJ_ADMIN_TOKEN). Then, over loopback, a bounded number of requests in three phases: no
projector, the projector of one tenant, of a hundred tenants, a random one for each input. The
phases take turns, so that a machine that slows down slows all of them. Requests hold texts,
images and features. What came back is checked after each turn, outside the time that is measured:
each row against `clipproj.reference` on the unedited row of the same input, with the tenant's
projector, within float32 rounding.

Exit code 1 when a row is wrong, a request failed, or the bounds are so wide that more than one
mix-up of two tenants in ten thousand would pass.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch

from clipproj import Projector, demo, nullspace, reference
from clipproj.serve.store import to_bytes

PHASES = ("none", "one", "hundred")
# A model's features depend on the batch they are computed in: units of float32 rounding that an
# element of a unit row may differ by. Given features do not go through the model.
MODEL_ROUNDING = 32 * torch.finfo(torch.float32).eps
MIX_UPS = 1e-4
COMMAND = [sys.executable, "-c", "from clipproj.cli import main; main()", "serve", "--json"]


@dataclass
class Phase:
    """What was measured: seconds of all turns, of each request, rows a second of each turn."""

    rows: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """What each input must come back as: [tenants + 1, inputs, d] float64, the last unedited."""

    want: torch.Tensor
    bound: torch.Tensor
    erased: torch.Tensor  # [tenants + 1, inputs] bool: too little is left for a direction


@dataclass
class Check:
    """What the check of all rows has found."""

    rows: int = 0
    wrong: int = 0
    unbounded: int = 0
    worst: float = 0.0  # of an error over its bound
    failed: list[str] = field(default_factory=list)


def inputs(seed: int, dim: int) -> list[dict[str, Any]]:
    """Texts, images and features, as requests hold them."""
    rng = np.random.default_rng(seed)
    names = demo.class_names()
    made = [{"text": f"a drawing of a {name}"} for name in names] + [{"text": n} for n in names]
    for path in sorted(demo.images_dir().glob("*/*.png"))[::13]:
        made.append({"image": base64.b64encode(path.read_bytes()).decode()})
    for row in rng.standard_normal((54, dim)).astype("<f4"):
        made.append({"embedding": base64.b64encode(row.tobytes()).decode()})
    return made


def projectors(count: int, dim: int, seed: int) -> dict[str, Projector]:
    """Tenants of ranks 1 to 8 and strengths 0.5, 1, 1.5; one in four oblique."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for i in range(count):
        rows = torch.randn(1 + i % 8, dim, generator=generator)
        if i % 4 == 3:
            write = torch.randn(1 + i % 8, dim, generator=generator)
            projector = Projector(rows / dim**0.5, write / dim**0.5, strength=0.5)
        else:
            projector = nullspace(rows, contrast="none").scaled((0.5, 1.0, 1.5)[i % 3])
        made[f"load-{i:03}"] = projector
    return made


def table(
    plain: torch.Tensor, given: Sequence[dict[str, Any]], tenants: Sequence[Projector]
) -> Table:
    """From the unedited rows [inputs, d], float32."""
    text = torch.tensor(["text" in one for one in given])
    through = torch.tensor(["embedding" not in one for one in given])
    n, d = plain.shape
    want = torch.empty(len(tenants) + 1, n, d, dtype=torch.float64)
    bound = torch.empty_like(want)
    for i, projector in enumerate([*tenants, None]):
        for rows, form in ((text, projector and projector.T), (~text, projector)):
            factors = (form or Projector(torch.zeros(0, d))).factors()
            x = plain[rows]
            want[i, rows] = reference.project(x, **factors, normalize=True)
            length = reference.projected_norm(x, **factors)[:, None].clamp_min(1e-9)
            model = MODEL_ROUNDING * through[rows, None] / length
            bound[i, rows] = reference.tolerance(x, **factors, normalize=True) + model
    return Table(want, bound, bound.isinf().any(2))


def confusable(made: Table) -> float:
    """The share of (input, two tenants) where the row of one could pass for that of the other.

    Some must: a row that has nothing in the span of either tenant is left alone by both.
    """
    count, tenants = 0, made.want.shape[0]
    for n in range(made.want.shape[1]):
        rows, bound = made.want[:, n], made.bound[:, n]
        near = (rows[:, None] - rows[None]).abs() <= bound[:, None] + bound[None]
        near = near.all(2) & ~made.erased[:, n, None] & ~made.erased[None, :, n]
        count += (int(near.sum()) - int(near.diagonal().sum())) // 2
    return count / (made.want.shape[1] * tenants * (tenants - 1) / 2)


def compare(
    made: Table, found: Check, tenants: np.ndarray, which: np.ndarray, rows: np.ndarray
) -> None:
    """Counts rows [n, d] of inputs `which` that were edited by `tenants` (-1: by none)."""
    row = torch.from_numpy(rows).double()
    want, bound = made.want[tenants, which], made.bound[tenants, which]
    error = (row - want).abs()
    erased = made.erased[tenants, which]
    unit = (row.norm(dim=1) - 1).abs() <= 1e-5
    right = torch.where(erased, unit, (error <= bound).all(1) & unit)  # NaN is not
    found.rows += len(rows)
    found.wrong += int((~right).sum())
    found.unbounded += int(erased.sum())
    ratios = (error / bound).amax(1)[~erased]
    found.worst = max(found.worst, float(ratios.max()) if len(ratios) else 0.0)


def body(given: Sequence[dict[str, Any]], names: Sequence[str | None]) -> bytes:
    """A request for these inputs, each with its own tenant."""
    rows = [one | {"projector": name} for one, name in zip(given, names, strict=True)]
    return json.dumps({"input": rows, "encoding_format": "base64"}).encode()


def decode(answer: bytes) -> np.ndarray:
    """[n, d] float32 of an answer."""
    data = json.loads(answer)["data"]
    return np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data])


async def turn(
    session: aiohttp.ClientSession, url: str, bodies: Sequence[bytes], clients: int, phase: Phase
) -> list[tuple[int, bytes]]:
    """All requests, so many at once; (status, answer) of each, in order."""
    answers: list[tuple[int, bytes]] = [(0, b"")] * len(bodies)
    waiting = iter(range(len(bodies)))

    async def client() -> None:
        for i in waiting:
            start = time.perf_counter()
            async with session.post(f"{url}/v1/embeddings", data=bodies[i]) as response:
                answers[i] = response.status, await response.read()
            phase.latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    phase.seconds += time.perf_counter() - start
    return answers


async def measure(
    url: str,
    token: str,
    *,
    rows: int = 100_000,
    per_request: int = 32,
    clients: int = 8,
    rounds: int = 4,
    tenants: int = 100,
    seconds: float = 600.0,
    seed: int = 0,
) -> dict[str, Any]:
    """The whole test; its numbers, as JSON has them. RuntimeError when it cannot be set up."""
    rng = random.Random(seed)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async with session.get(f"{url}/health") as response:
            health = await response.json()
        if response.status != 200:
            raise RuntimeError(f"serve_load: url must be a service that is well, got {health}")
        given = inputs(seed, health["dim"])
        made = projectors(tenants, health["dim"], seed)
        admin = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
        for name, projector in made.items():
            path = f"{url}/v1/tenants/{name}"
            async with session.put(path, data=to_bytes(projector), headers=admin) as response:
                if response.status not in (200, 201):
                    raise RuntimeError(f"serve_load: {name} refused: {await response.text()}")
        warm = Phase()
        parts = [given[i : i + per_request] for i in range(0, len(given), per_request)]
        fetched = await turn(session, url, [body(p, [None] * len(p)) for p in parts], 1, warm)
        if {status for status, _ in fetched} != {200}:
            raise RuntimeError(f"serve_load: the unedited rows were refused: {fetched[0][1][:200]}")
        plain = torch.from_numpy(np.concatenate([decode(answer) for _, answer in fetched]))
        wanted = table(plain, given, list(made.values()))

        names = list(made)
        found, phases = Check(), {name: Phase() for name in PHASES}
        turns = [name for i in range(rounds) for name in PHASES[i % 3 :] + PHASES[: i % 3]]
        started, left = time.perf_counter(), -(-rows // per_request)
        for i, name in enumerate(turns):
            count = -(-left // (len(turns) - i))
            left -= count
            picks = [rng.choices(range(len(given)), k=per_request) for _ in range(count)]
            who = {
                "none": lambda: -1,
                "one": lambda: 0,
                "hundred": lambda: rng.randrange(tenants),
            }[name]
            own = [[who() for _ in range(per_request)] for _ in range(count)]
            bodies = [
                body([given[n] for n in p], [None if t < 0 else names[t] for t in o])
                for p, o in zip(picks, own, strict=True)
            ]
            phase, before = phases[name], phases[name].seconds
            answers = await turn(session, url, bodies, clients, phase)
            phase.rows += count * per_request
            phase.turns.append(count * per_request / (phase.seconds - before))
            for (status, answer), p, o in zip(answers, picks, own, strict=True):
                if status != 200:
                    found.failed.append(f"{status}: {answer[:200]!r}")
                else:
                    compare(wanted, found, np.array(o), np.array(p), decode(answer))
            if time.perf_counter() - started > seconds:
                break
        for name in made:
            async with session.delete(f"{url}/v1/tenants/{name}", headers=admin) as response:
                response.raise_for_status()
    base = summary(phases["none"], None)
    return {
        "model": health["model"],
        "device": health["device"],
        "dim": health["dim"],
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "inputs per request": per_request,
        "clients": clients,
        "tenants": tenants,
        "phases": {n: summary(p, base) for n, p in phases.items()},
        "rows checked": found.rows,
        "wrong rows": found.wrong,
        "rows without a bound": found.unbounded,
        "largest error over its bound": round(found.worst, 4),
        "share of mix-ups that would pass": confusable(wanted),
        "failed requests": len(found.failed),
        "first failures": found.failed[:3],
    }


def summary(phase: Phase, base: dict[str, Any] | None) -> dict[str, Any]:
    """Rows a second and latencies of a phase, and how they compare with `base`."""
    if not phase.latencies:
        return {"rows": 0}
    p50, p99 = (float(np.percentile(phase.latencies, q)) * 1e3 for q in (50, 99))
    out = {
        "rows": phase.rows,
        "rows per second": round(phase.rows / phase.seconds, 1),
        "p50 ms": round(p50, 2),
        "p99 ms": round(p99, 2),
        "rows per second of each turn": [round(rate, 1) for rate in phase.turns],
    }
    if base and base["rows"]:
        keys = ("rows per second", "p50 ms", "p99 ms")
        out["over none"] = {key: round(out[key] / base[key], 3) for key in keys}
    return out


@contextlib.contextmanager
def service(replicas: int) -> Iterator[tuple[str, str]]:
    """A service on this machine, on a free port: its URL and its token."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--data", folder, "--replicas", str(replicas)]
        environment = os.environ | {"CLIPPROJ_ADMIN_TOKEN": token}
        with subprocess.Popen(
            [*COMMAND, *options], stdout=subprocess.PIPE, env=environment
        ) as process:
            try:
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError("serve_load: the service did not start, see above")
                said = json.loads(line)
                if "error" in said:
                    raise RuntimeError(said["error"])
                yield said["url"], token
            finally:
                process.terminate()
                process.wait(120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="of a service; without it one is started")
    parser.add_argument("--rows", type=int, default=100_000, help="over all phases")
    parser.add_argument("--inputs", type=int, default=32, help="in a request")
    parser.add_argument("--clients", type=int, default=8, help="requests at once")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each phase")
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=1, help="of the service that is started")
    parser.add_argument("--seconds", type=float, default=600, help="no new turn after so many")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if given.url:
            url, token = given.url, os.environ.get("CLIPPROJ_ADMIN_TOKEN", "")
        else:
            url, token = stack.enter_context(service(given.replicas))
        numbers = asyncio.run(
            measure(
                url,
                token,
                rows=given.rows,
                per_request=given.inputs,
                clients=given.clients,
                rounds=given.rounds,
                tenants=given.tenants,
                seconds=given.seconds,
            )
        )
    text = json.dumps(numbers, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    wrong = numbers["wrong rows"] + numbers["failed requests"]
    blind = numbers["share of mix-ups that would pass"] > MIX_UPS or not numbers["rows checked"]
    return int(bool(wrong) or blind)


if __name__ == "__main__":
    sys.exit(main())
