"""stdout and stderr of user code, and what it displays and publishes: sent to the client that asked, live.

Text belongs to the request that runs when it is written. That goes for text of threads too, also of those that an
earlier request has started: whose they are cannot be known. Text written while no request runs goes to the engine's log
file, and so does what C code, child processes and forked copies of the engine write.

Everything is bounded: what one request writes beyond `REQUEST_CHARS_MAX` a stream, or displays beyond
`REQUEST_DISPLAY_BYTES_MAX`, is dropped, with a note; of data published in a loop only the latest are sent.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TextIO

import zmq

from hpcviews.wire import messages as m
from hpcviews.wire.payload import Payload, dumps

REQUEST_CHARS_MAX = 4 * 2**20
"""Characters one request may write per stream: more than anyone reads, less than what hurts a controller."""

REQUEST_DISPLAY_BYTES_MAX = 64 * 2**20
"""Figures and the like one request may display: some hundreds."""

LIVE_PERIOD_S = 0.05
"""Output of a running request leaves at most this often: fast enough for the eye, 20 messages a second an engine."""


class Waker(Protocol):
    """The part of the I/O thread that this file needs."""

    def expect_output(self) -> None:
        """Collect output in LIVE_PERIOD_S at the latest."""


Put = Callable[[m.Message, list[Any]], None]
"""Queues a message and its frames for the controller."""


class OutputCapture:
    """Replaces sys.stdout and sys.stderr."""

    def __init__(self) -> None:
        # Reentrant: a signal handler of user code may print while the main thread is in here.
        self._lock = threading.RLock()
        self._parts: list[tuple[str, str | Payload]] = []
        """Text by stream and displays, in order."""
        self._data: dict[str, Payload] = {}
        """Published data that wait to be sent, by name."""
        self._is_expected = False
        self._written = {"stdout": 0, "stderr": 0}
        self._displayed = 0
        self._key: int | None = None
        self._waker: Waker | None = None
        _captures.add(self)

    def attach(self, waker: Waker) -> None:
        """Begin to capture."""
        self._waker = waker
        sys.stdout = _Stream(self, "stdout", sys.__stdout__)
        sys.stderr = _Stream(self, "stderr", sys.__stderr__)

    def begin(self, key: int) -> None:
        """A request starts to run."""
        with self._lock:
            self._written["stdout"] = self._written["stderr"] = self._displayed = 0
            self._is_expected = False
            self._key = key

    def end(self, put: Put) -> None:
        """It ended: hand on what it wrote and has not been handed on."""
        with self._lock:
            self.drain(put)
            self._key = None

    def write(self, stream: str, text: str) -> bool:
        """Take text of user code. False: no request runs."""
        with self._lock:
            if self._key is None:
                return False
            room = REQUEST_CHARS_MAX - self._written[stream]
            self._written[stream] += len(text)
            if room <= 0:
                return True
            if len(text) > room:
                note = f"\n[hpcviews: {stream} of this request is cut after {REQUEST_CHARS_MAX} characters]\n"
                text = text[:room] + note
            self._parts.append((stream, text))
            self._expect()
        return True

    def publish(self, kind: str, content: dict[str, Any]) -> None:
        """Take what user code displays ("display"), or publishes ("data"). Nothing happens if no request runs.

        Raises:
            SerializationError: It cannot be pickled.
        """
        if kind == "data":
            # Name by name: what is published in a loop replaces what waits, as it does at the client.
            pickled = {name: _pickle({name: value}) for name, value in content.items()}
            with self._lock:
                if self._key is None:
                    return
                self._data.update(pickled)
                self._expect()
            return
        payload = _pickle(content)
        with self._lock:
            if self._key is None:
                return
            before = self._displayed
            self._displayed += payload.nbytes
            if self._displayed <= REQUEST_DISPLAY_BYTES_MAX:
                self._parts.append((kind, payload))
                self._expect()
            elif before <= REQUEST_DISPLAY_BYTES_MAX:
                self.write("stderr", f"[hpcviews: displays of this request are cut after {before} bytes]\n")

    def on_fork(self) -> None:
        """This is a forked copy of the engine: nobody collects here, and another thread may have held the lock."""
        self._lock = threading.RLock()
        self._parts, self._data, self._key = [], {}, None

    def _expect(self) -> None:
        must_wake, self._is_expected = not self._is_expected, True
        if must_wake and self._waker is not None:
            self._waker.expect_output()

    def drain(self, put: Put) -> None:
        """Hand on what was written since the last time, neighbours of one stream joined.

        All under the lock: who hands on the end of the request waits for it, so the end overtakes nothing.
        """
        with self._lock:
            key, parts, data = self._key, self._parts, self._data
            self._parts, self._data, self._is_expected = [], {}, False
            if key is None:
                return
            texts: list[str] = []
            stream = ""
            for kind, content in [*parts, *(("data", payload) for payload in data.values())]:
                if texts and (kind != stream or isinstance(content, Payload)):
                    put(m.RunOutput(key, stream, "".join(texts)), [])
                    texts = []
                if isinstance(content, Payload):
                    put(m.RunPublished(content.data, len(content.frames), key, kind), content.frames)
                else:
                    stream = kind
                    texts.append(content)
            if texts:
                put(m.RunOutput(key, stream, "".join(texts)), [])


def _pickle(content: dict[str, Any]) -> Payload:
    """A copy: it leaves later, and user code may change arrays in it right away."""
    payload = dumps(content)
    return Payload(payload.data, [zmq.Frame(bytes(frame.buffer)) for frame in payload.frames])


_captures: weakref.WeakSet[OutputCapture] = weakref.WeakSet()


def _on_fork() -> None:
    for capture in _captures:
        capture.on_fork()


os.register_at_fork(after_in_child=_on_fork)


class _Stream(io.TextIOBase):
    """A text stream that writes to the client while a request runs, else to the log file."""

    def __init__(self, capture: OutputCapture, name: str, log: TextIO | None):
        self._capture = capture
        self._name = name
        self._log = log

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "replace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        # Programs that user code starts write to the log file; their text cannot be told apart by request.
        if self._log is None:
            raise io.UnsupportedOperation("fileno")
        return self._log.fileno()

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text and not self._capture.write(self._name, text) and self._log is not None:
            self._log.write(text)
        return len(text)

    def flush(self) -> None:
        if self._log is not None:
            self._log.flush()
