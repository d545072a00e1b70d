"""The one line by which a new controller tells the process that started it whether it serves."""

from __future__ import annotations

import os
import select
import time

import msgspec

from hpcviews.errors import HpcviewsError, LaunchError, find_error_class

LINE_BYTES_MAX = 64 * 2**10


class Readiness(msgspec.Struct, frozen=True):
    """Sent once, as JSON. `error` names a class of errors.py, and is "" when the controller is bound."""

    error: str = ""
    text: str = ""


def send_readiness(fd: int, readiness: Readiness) -> None:
    """Tell, and close the pipe. A starter that is gone is no error: the lifeline reports it."""
    try:
        os.write(fd, msgspec.json.encode(readiness)[: LINE_BYTES_MAX - 1] + b"\n")
    except BrokenPipeError:
        pass
    finally:
        os.close(fd)


def wait_readiness(fd: int, timeout_s: float) -> None:
    """Return when the controller serves.

    Raises:
        HpcviewsError: It does not; the class is the one that the controller named.
        EOFError: It ended without a word; its log may tell why.
        TimeoutError: It said nothing within `timeout_s`.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        piece = os.read(fd, LINE_BYTES_MAX)
        if not piece:
            raise EOFError
        line += piece
    readiness = msgspec.json.decode(line, type=Readiness)
    if readiness.error:
        raise make_error(readiness)


def make_error(readiness: Readiness) -> HpcviewsError:
    """The error that a controller told of."""
    return (find_error_class(readiness.error) or LaunchError)(readiness.text)
