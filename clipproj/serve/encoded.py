"""Image files and embeddings out of base64, as a JSON body holds them."""

from __future__ import annotations

import base64
import binascii
import re

import numpy as np
from pydantic_core import PydanticCustomError

# Base64 as RFC 4648 has it: either alphabet, the padding whole or left out; RFC 2045 adds lines.
URL_SAFE = bytes.maketrans(b"-_", b"+/")
BETWEEN = b" \t\r\n"
FOREIGN = re.compile(r"[^A-Za-z0-9+/_ \t\r\n-]")


def image_bytes(value: str) -> bytes:
    """An image's file from a data URL or base64. PydanticCustomError for anything else."""
    scheme = value[:6].lower()
    if scheme.startswith("data:"):
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64") or "%" in value:
            text = "must be a data URL data:TYPE;base64,DATA that is not percent-encoded"
            raise PydanticCustomError("invalid_value", text)
    elif scheme.startswith(("http:", "https:")):
        text = "must be the image itself, got a URL, which the service does not fetch"
        raise PydanticCustomError("invalid_value", text)
    return base64_bytes(value)


def base64_bytes(value: str) -> bytes:
    """Bytes from base64 in either alphabet, in lines or not, padded or not.

    PydanticCustomError "invalid_base64", with what stands where, for anything else.
    """

    def refusal(why: str) -> PydanticCustomError:
        wrong = FOREIGN.search(text)
        why = f"{wrong[0]!r} at {wrong.start()}" if wrong else why
        return PydanticCustomError("invalid_base64", f"must be base64, got {why}")

    text = value.rstrip("= \t\r\n")
    digits = text.encode("ascii", "replace").translate(None, BETWEEN)  # "?" for a foreign letter
    if any(c in digits for c in b"-_"):
        if any(c in digits for c in b"+/"):
            raise refusal("what mixes the alphabet of + and / with the URL-safe one of - and _")
        digits = digits.translate(URL_SAFE)
    missing, padding = -len(digits) % 4, value.count("=", len(text))
    if missing == 3 or padding not in (0, missing):
        raise refusal(f"{len(digits)} digits and {padding} of =, cut off or wrongly padded")
    try:
        return base64.b64decode(digits + b"=" * missing, validate=True)
    except binascii.Error as error:
        raise refusal(str(error)) from error


def float32_row(value: str | list[float]) -> np.ndarray:
    """[d] float32 from numbers, or from base64 of little-endian float32."""
    if isinstance(value, str):
        data = base64_bytes(value)
        if not data or len(data) % 4:
            text = f"must be base64 of whole float32 numbers, got {len(data)} bytes"
            raise PydanticCustomError("invalid_value", text)
        return np.frombuffer(data, "<f4").astype(np.float32)
    with np.errstate(over="ignore"):  # becomes inf, which is refused with the model's width
        return np.array(value, np.float64).astype(np.float32)
