"""The `clipproj` command from its first moment on: its streams, its signals, then everything else.

A module beside the package, for a part of the package would import torch before its first line ran:
a second or more in which Ctrl-C ends in a traceback.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import Any

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class OutputError(OSError):
    """Standard output cannot be written, as on a full disk."""


class _Stream(io.FileIO):
    """Standard output or error, written as long as it goes: a work that is done has succeeded.

    Nobody may read on, as in `| head`: no error. Where output that is needed fails otherwise, that
    is an OutputError, once: when Python ends it writes what is in the buffer again. Standard error
    is not needed, for there is nobody to be told.
    """

    def __init__(self, number: int, needed: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._needed, self._failed = needed, False

    def write(self, data: Any) -> int | None:
        if not self._failed:
            try:
                return super().write(data)
            except OSError as error:
                self._failed = True
                if self._needed and not isinstance(error, BrokenPipeError):
                    what = f"standard output cannot be written: {error.strerror}"
                    raise OutputError(error.errno, what) from error
        return len(data)


def _open_streams() -> None:
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`: the next file would get its number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        was = getattr(sys, name)
        unbuffered = getattr(was, "write_through", False)
        stream = _Stream(number, needed=number == 1)
        now = io.TextIOWrapper(
            stream if unbuffered else io.BufferedWriter(stream),
            encoding=getattr(was, "encoding", None),
            errors="replace",  # a name may have letters the terminal has not
            line_buffering=getattr(was, "line_buffering", False),
            write_through=unbuffered,
        )
        setattr(sys, name, now)


def _leave(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def _unwind(number: int, _: FrameType | None) -> None:
    """End as an exception does, so that nothing half written stays."""
    if os.getpid() != _process:  # a fork has nothing of its own to clean up
        _leave(number, None)
    # One more, of an impatient hand or a terminal that closes, must not end the cleaning up.
    # Not SIG_IGN: Python reports a signal that is under way already as a race.
    _handle(_go_on, (_unwind,))
    raise SystemExit(128 + number)


def _go_on(number: int, _: FrameType | None) -> None:
    """Nothing more: this process is about to end."""


_process = os.getpid()


def _handle(handler: Any, instead_of: tuple[Any, ...]) -> None:
    """Where others handle a signal, or have it ignored as nohup does, it stays theirs."""
    for number in ENDS:
        if signal.getsignal(number) in instead_of:
            signal.signal(number, handler)


def main() -> None:
    """Entry point of the `clipproj` command."""
    _open_streams()
    _handle(_leave, _DEFAULTS)
    from clipproj.cli.app import app

    _handle(_unwind, (_leave,))
    try:
        app()
    finally:
        _handle(_leave, (_unwind,))
        _handle(signal.SIG_IGN, (_go_on,))  # when Python ends it puts the default for its own


if __name__ == "__main__":
    main()
