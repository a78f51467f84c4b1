"""What the service can be told when it starts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clipproj import demo
from clipproj._factors import MOST_ONE_SIDED
from clipproj.refusal import Refusal

TOKEN = "CLIPPROJ_ADMIN_TOKEN"  # environment variable
SHORTEST_TOKEN = 16  # a shorter one could be guessed, and its digest be reversed


class Settings(BaseModel):
    """Settings of the service; strings are taken for numbers, as `serve run NAME=VALUE` gives them.

    Attributes:
        model, pretrained: as `load_model` takes them; None: the embedded model.
        name: what requests call the model; None: as `model`.
        device: of each replica; None: cuda where the starting machine has it.
        replicas: copies of the model. gateways: processes that speak HTTP.
        threads: of torch in a replica on the CPU; None: the machine's cores over the replicas.
        gpus: share of a GPU that a replica takes, when the device is one.
        max_batch: rows (images, texts, features) in one forward pass, and inputs in a request.
        batch_wait: seconds that a batch waits for more requests.
        ongoing: requests that a replica has in hand; queue: requests that wait for a replica at
            each gateway. Beyond both: 429.
        connections: requests that a gateway has in hand, slow uploads too. Beyond: 429.
        max_body: bytes of a request. max_pixels: of an image.
        timeout: seconds that an answer may take; upload_timeout: that a request may take to
            arrive; admin_timeout: that making a projector may take.
        grace: seconds that requests in hand have to finish at the end.
        capacity: directions over all tenants. combine: names in one request's `projector`.
        one_sided: the most directions of a one-sided tenant, or of several in one request; 0: all
            are folded. Tenants of more names are made folded; a file of more is refused.
        max_classes: names in a request. max_prompts: names times templates in a request.
        data: folder that keeps the tenants. Wherever the store may run must see it.
        access_log: whether each request gets a line in Serve's log.
        token_digest: SHA-256 hex of the admin token, in place of the token itself, which would
            show in Ray's state; None: nobody can change tenants.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str | None = None
    pretrained: str | None = None
    name: str | None = None
    device: str | None = None
    replicas: int = Field(1, ge=1)
    gateways: int = Field(1, ge=1)
    threads: int | None = Field(None, ge=1)
    gpus: float = Field(1.0, gt=0)
    max_batch: int = Field(256, ge=1)
    batch_wait: float = Field(0.005, ge=0)
    ongoing: int = Field(256, ge=1)
    queue: int = Field(256, ge=1)
    connections: int = Field(1024, ge=1)
    max_body: int = Field(16 << 20, ge=1)
    max_pixels: int = Field(50_000_000, ge=1)
    timeout: float = Field(30.0, gt=0)
    upload_timeout: float = Field(30.0, gt=0)
    admin_timeout: float = Field(300.0, gt=0)
    grace: float = Field(30.0, gt=0)
    capacity: int = Field(4096, ge=1)
    combine: int = Field(8, ge=1)
    one_sided: int = Field(MOST_ONE_SIDED, ge=0, le=MOST_ONE_SIDED)
    max_classes: int = Field(1000, ge=1)
    max_prompts: int = Field(10_000, ge=1)
    data: str = "clipproj-tenants"
    access_log: bool = False
    token_digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(Path(value).absolute())  # replicas have working folders of their own

    @property
    def served(self) -> str:
        """What requests call the model."""
        return self.name or self.model or demo.NAME

    @classmethod
    def of(cls, args: Mapping[str, Any] | Settings) -> Settings:
        """From `build`'s argument; the token from the file `token_file`, else the environment.

        Raises ValueError for unknown settings, values out of range, and a token that is too short
        or cannot be read.
        """
        if isinstance(args, Settings):
            return args
        given = dict(args)
        token_file = given.pop("token_file", None)
        token = read_token(token_file) if token_file else os.environ.get(TOKEN, "").strip()
        if token and "token_digest" not in given:
            given["token_digest"] = digest(token)
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            # a token in the wrong place must not be printed
            got = "something else" if name == "token_digest" else repr(given.get(name))
            raise Refusal("serve", None, f"{name}: {first['msg']}, got {got}") from None


def read_token(path: str | os.PathLike[str]) -> str:
    """The admin token in a file, without white space around. ValueError where there is none."""
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(
            "serve", "token-file", f"must be a readable file, got {path}: {error}"
        ) from error
    if not token:
        raise Refusal("serve", "token-file", f"must hold a token, got an empty file {path}")
    return token


def digest(token: str) -> str:
    """SHA-256 hex of a token. ValueError for one that is too short to be safe."""
    if len(token) < SHORTEST_TOKEN:
        raise Refusal(
            "serve", "token", f"must have at least {SHORTEST_TOKEN} characters, got {len(token)}"
        )
    return hashlib.sha256(token.encode()).hexdigest()
