"""Errors as the service answers them: OpenAI's shape, one class, safe to send between processes."""

from __future__ import annotations

from typing import Any

TYPES = {  # OpenAI's words for a status
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
    507: "capacity_error",
}


class ServiceError(Exception):
    """What a client is told instead of an answer.

    Args:
        status: HTTP status.
        message: what is wrong, for a person.
        param: the part of the request that is, such as "input[3].image"; None for none.
        code: what a program tells errors apart by.
        retry_after: seconds after which to try again, sent as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(status, message, param, code, retry_after)  # all of it, for pickle
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        shown = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": shown}


def invalid(param: str | None, why: str, code: str = "invalid_value") -> ServiceError:
    """A request that can't be met as it is: which part of it, None for all, and why."""
    return ServiceError(400, why if param is None else f"{param} {why}", param, code)


def shown(value: Any, most: int = 80) -> str:
    """What was given, for a message: at most so many characters of it."""
    if isinstance(value, list | tuple | dict):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    whole = repr(value[:most] if isinstance(value, str) else value)
    return whole if len(whole) <= most else f"{whole[: most - 3]}..."
