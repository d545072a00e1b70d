"""What one request ended in: a value that nobody has read yet, a value, or a failure."""

from __future__ import annotations

from typing import Any

from hpcviews.client.outgoing import Frames
from hpcviews.errors import EngineInfoDict, RemoteError, SerializationError, find_error_class
from hpcviews.wire import messages as m
from hpcviews.wire.payload import loads

UNREAD: Any = object()
"""Stands for a value that has not been unpickled."""


class Failure:
    """The error of a request; a class of its own, because user code may return exceptions as values."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException):
        self.error = error


def make_error(result: m.Result, told: m.ErrorInfo, frames: Frames) -> BaseException:
    """The exception that a failed request is raised as."""
    if told.local:
        kind = find_error_class(told.ename)
        # RemoteError and its subclass are made from other things than a text.
        if kind is not None and not issubclass(kind, RemoteError):
            return kind(told.evalue)
    info: EngineInfoDict = {"rank": told.rank, "host": told.host, "pid": told.pid, "method": told.method}
    if result.engine >= 0:
        info["engine_id"] = result.engine
    error = RemoteError(told.ename, told.evalue, told.traceback, info)
    if result.data or frames:
        try:
            cause = loads(result.data, frames)
        except SerializationError:
            cause = None  # its class is not importable here; its name, text and traceback are known
        if isinstance(cause, BaseException):
            error.__cause__ = cause
    return error
