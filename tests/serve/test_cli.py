"""`clipproj serve`: what it says, what it refuses before it starts, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

pytest.importorskip("ray", reason="the service needs Ray: pip install clipproj[serve]")
pytest.importorskip("open_clip")
pytest.importorskip("httpx")

import httpx
import serving

from clipproj import demo
from clipproj.cli import app, serve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own

COMMAND = [sys.executable, "-c", "from clipproj.cli import main; main()", "serve"]


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (["--replicas", "0"], {}, "replicas"),
        (["--timeout", "-1"], {}, "timeout"),
        (["--token-file", "/nowhere/token"], {}, "token-file must be a readable file"),
        ([], {"CLIPPROJ_ADMIN_TOKEN": "short"}, "at least 16 characters"),
        (["--port", "99999"], {}, "port must be"),
        (["--model", "ViT-B-23", "--pretrained", "openai"], {}, "close: "),
    ],
)
def test_what_it_refuses(
    options: list[str],
    environment: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        app.app(["serve", *options])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("serve: ")
    assert words in line


def test_a_signal_that_the_caller_ignores_does_not_stop_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop: SimpleQueue[int] = SimpleQueue()
        handlers = serve._handlers(stop)
        assert handlers.keys() == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        assert handlers.pop(signal.SIGHUP) == signal.SIG_IGN
        for number, handler in handlers.items():
            handler(number, None)
            assert stop.get_nowait() == number
    finally:
        signal.signal(signal.SIGHUP, before)


def test_requests_in_hand_finish(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{serving.TOKEN}\n")
    port = serving.free_port()
    # a batch waits long: there is a request in hand when the signal comes
    options = ["--port", str(port), "--data", str(tmp_path / "data"), "--batch-wait", "3"]
    options += ["--token-file", str(token), "--json"]
    errors = (tmp_path / "errors").open("w")
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=errors) as process:
        try:
            said = json.loads(process.stdout.readline())
            assert said["url"] == f"http://127.0.0.1:{port}"
            assert said["model"] == demo.NAME
            client = serving.Client(said["url"])
            assert client.http.get("/v1/tenants").json() == {"object": "list", "data": []}

            answers: list[Any] = []
            body = {"input": ["a cat"]}
            ask = threading.Thread(
                target=lambda: answers.append(
                    httpx.post(f"{said['url']}/v1/embeddings", json=body, timeout=60)
                )
            )
            ask.start()
            while client.http.get("/health").json()["open"] < 2:  # itself and the one that waits
                assert ask.is_alive()
            for number in (signal.SIGHUP, signal.SIGTERM):  # as a terminal that closes
                process.send_signal(number)
            ask.join(60)
            assert serving.rows(answers[0]).shape == (1, 128)
            assert process.wait(60) == 0
        finally:
            process.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(said["url"], timeout=5)
