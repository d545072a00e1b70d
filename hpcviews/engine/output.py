"""stdout and stderr of user code: sent to the client that asked, live, attributed to its request.

Text written while no request runs goes to the engine's log file. Bounded: what one request writes beyond
`REQUEST_CHARS_MAX` a stream is dropped, with a note.
"""

from __future__ import annotations

import io
import sys
import threading
from typing import Any, Protocol, TextIO

from hpcviews.wire import messages as m
from hpcviews.wire.payload import dumps

REQUEST_CHARS_MAX = 4 * 2**20
"""Characters one request may write per stream: more than anyone reads, less than what hurts a controller."""

REQUEST_PUBLISHED_BYTES_MAX = 64 * 2**20
"""Figures and the like one request may display: some hundreds."""

LIVE_PERIOD_S = 0.05
"""Text of a running request leaves at most this often: fast enough for the eye, 20 messages a second an engine."""


class Waker(Protocol):
    """The part of the I/O thread that this file needs."""

    def expect_output(self) -> None:
        """Collect output in LIVE_PERIOD_S at the latest."""

    def put(self, message: m.Message, frames: list[Any], flush: bool) -> None:
        """Queue a message for the controller."""


class OutputCapture:
    """Replaces sys.stdout and sys.stderr."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: list[tuple[str, str]] = []
        self._is_expected = False
        self._written = {"stdout": 0, "stderr": 0}
        self._published = 0
        self._key: int | None = None
        self._waker: Waker | None = None

    def attach(self, waker: Waker) -> None:
        """Begin to capture."""
        self._waker = waker
        sys.stdout = _Stream(self, "stdout", sys.__stdout__)
        sys.stderr = _Stream(self, "stderr", sys.__stderr__)

    def begin(self, key: int) -> None:
        """A request starts to run."""
        self._written["stdout"] = self._written["stderr"] = self._published = 0
        self._key = key

    def end(self) -> list[m.RunOutput]:
        """It ended; returns what it wrote and was not collected yet."""
        rest = self.collect() if self._parts else []
        self._key = None
        return rest

    def write(self, stream: str, text: str) -> bool:
        """Take text of user code. False: no request runs."""
        if self._key is None:
            return False
        room = REQUEST_CHARS_MAX - self._written[stream]
        self._written[stream] += len(text)
        if room <= 0:
            return True
        if len(text) > room:
            text = text[:room] + f"\n[hpcviews: {stream} of this request is cut after {REQUEST_CHARS_MAX} characters]\n"
        with self._lock:
            self._parts.append((stream, text))
            must_wake, self._is_expected = not self._is_expected, True
        if must_wake and self._waker is not None:
            self._waker.expect_output()
        return True

    def publish(self, kind: str, content: dict[str, Any]) -> None:
        """Send something beside text, behind the text that was written before it. Nothing if no request runs.

        Raises:
            SerializationError: It cannot be pickled.
        """
        key = self._key
        if key is None or self._waker is None:
            return
        payload = dumps(content)
        self._published += payload.nbytes
        if kind == "display" and self._published > REQUEST_PUBLISHED_BYTES_MAX:
            self.write("stderr", f"[hpcviews: displays of this request are cut after {self._published} bytes]\n")
            return
        for text in self.collect():
            self._waker.put(text, [], flush=False)
        self._waker.put(m.RunPublished(payload.data, len(payload.frames), key, kind), payload.frames, flush=True)

    def collect(self) -> list[m.RunOutput]:
        """Take what was written since the last call, neighbours of one stream joined."""
        with self._lock:
            key, parts = self._key, self._parts
            self._parts, self._is_expected = [], False
        if key is None:
            return []
        joined: list[tuple[str, list[str]]] = []
        for stream, text in parts:
            if joined and joined[-1][0] == stream:
                joined[-1][1].append(text)
            else:
                joined.append((stream, [text]))
        return [m.RunOutput(key, stream, "".join(texts)) for stream, texts in joined]


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
