"""What requests write, display and publish while they run: kept for whoever asks later, and handed on live."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hpcviews.client.outgoing import Frames
from hpcviews.errors import SerializationError
from hpcviews.wire.payload import loads

log = logging.getLogger("hpcviews.client.output")

OUTPUT_CHARS_MAX = 2**20
"""Text kept per stream of a request: a loop that prints must not fill the client's memory."""

DISPLAY_BYTES_MAX = 32 * 2**20
"""What is kept of the displays of a request: some hundred figures."""

OutputCallback = Callable[[int, int, str, Any], object]
"""Called with the position of a request in its AsyncResult, its engine, and what it wrote: "stdout" or "stderr" and
text, or "display" and a dict of data, metadata and transient."""


class OutputListener(NamedTuple):
    """Who wants the output of a call, or of one of its requests, as it comes."""

    fn: OutputCallback
    only: int | None
    """Which request of the call; None: all of them."""
    start: int
    """The position, for `fn`, of the first of them."""

    def find_position(self, index: int) -> int | None:
        """The position for `fn` of a request of the call; None if it is not for `fn`."""
        if self.only is None:
            return self.start + index
        return self.start if self.only == index else None


class Display:
    """Something that was displayed. Unpickled by whoever looks at it first, never in the I/O thread."""

    __slots__ = ("_content", "_data", "_frames", "size")

    def __init__(self, data: bytes, frames: Frames):
        self._data = data
        self._frames = frames
        self._content: dict[str, Any] | None = None
        self.size = len(data) + sum(len(frame) for frame in frames)
        """Bytes."""

    def read(self) -> dict[str, Any]:
        """It as a dict of data and metadata (MIME types to contents), and transient."""
        content = self._content
        if content is None:
            try:
                content = loads(self._data, self._frames)
            except SerializationError as error:
                content = {"data": {"text/plain": f"[this display cannot be unpickled: {error}]"}, "metadata": {}}
            # Two threads may both come here, and then both have the same.
            self._content, self._data, self._frames = content, b"", []
        return content


class RequestOutput:
    """What one request has written, displayed and published so far. The I/O thread adds, any thread looks.

    Text and displays are bounded; of published data the latest value of each name is kept.
    """

    __slots__ = ("_data", "_dropped", "_entries", "_sizes", "_unread", "engine")

    def __init__(self) -> None:
        self.engine = -1
        self._entries: list[tuple[str, str | Display]] = []
        """In the order they came."""
        self._sizes: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._data: dict[str, Any] = {}
        self._unread: list[tuple[bytes, Frames]] = []

    # ------------------------------------------------------------ the I/O thread

    def add_text(self, stream: str, text: str) -> None:
        """More text of a stream."""
        size = self._sizes.get(stream, 0)
        kept = text[: OUTPUT_CHARS_MAX - size]
        if kept:
            self._entries.append((stream, kept))
            self._sizes[stream] = size + len(kept)
        if len(kept) < len(text):
            self._dropped[stream] = self._dropped.get(stream, 0) + len(text) - len(kept)

    def add_display(self, display: Display) -> None:
        """Something was displayed."""
        size = self._sizes.get("display", 0) + display.size
        if size > DISPLAY_BYTES_MAX:
            self._dropped["display"] = self._dropped.get("display", 0) + 1
            return
        self._sizes["display"] = size
        self._entries.append(("display", display))

    def add_data(self, data: bytes, frames: Frames) -> bool:
        """A dict was published. True: somebody must `merge_data` soon, in a thread that may unpickle."""
        self._unread.append((data, frames))
        return len(self._unread) == 1

    # ------------------------------------------------------------ any thread

    def merge_data(self) -> dict[str, Any]:
        """What has been published until now: the latest value of each name."""
        while self._unread:
            try:
                published = loads(*self._unread[0])
            except SerializationError as error:
                log.warning("what engine %d published cannot be unpickled here: %s", self.engine, error)
                published = {}
            self._data.update(published)
            del self._unread[0]
        return dict(self._data)

    def get_text(self, stream: str) -> str:
        """The text of a stream."""
        text = "".join(content for kind, content in list(self._entries) if kind == stream)  # type: ignore[misc]
        dropped = self._dropped.get(stream, 0)
        return f"{text}\n[{dropped} more characters were dropped]\n" if dropped else text

    def get_displays(self) -> list[dict[str, Any]]:
        """What was displayed: dicts of data and metadata (MIME types to contents)."""
        found = [entry.read() for _, entry in list(self._entries) if isinstance(entry, Display)]
        dropped = self._dropped.get("display", 0)
        if dropped:
            text = f"[{dropped} more displays were dropped: {DISPLAY_BYTES_MAX} bytes are kept of a request]"
            found.append({"data": {"text/plain": text}, "metadata": {}})
        return found

    def iterate(self) -> Iterator[tuple[str, str | Display]]:
        """Text and displays in the order they came, neighbours of one stream joined."""
        texts: list[str] = []
        stream = ""
        for kind, content in list(self._entries):
            if texts and kind != stream:
                yield stream, "".join(texts)
                texts = []
            if isinstance(content, Display):
                yield kind, content
            else:
                stream = kind
                texts.append(content)
        if texts:
            yield stream, "".join(texts)
        for kind in ("stdout", "stderr"):
            if self._dropped.get(kind):
                yield kind, f"\n[{self._dropped[kind]} more characters were dropped]\n"
