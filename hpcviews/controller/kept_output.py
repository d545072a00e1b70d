"""What a request has written: the end of it, for whoever asks for it later."""

from __future__ import annotations

TEXT_CHARS_MAX = 64 * 1024
"""Kept per stream and request. The end, which is where errors and summaries are."""

PIECES_MAX = 256
"""A `print` in a loop comes in many small pieces, each as costly as a kilobyte."""


class _Tail:
    """The end of a text that grows."""

    __slots__ = ("_chars", "_pieces", "cut")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._chars = 0
        self.cut = 0
        """How many characters are not kept."""

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self._chars += len(text)
        if self._chars > 2 * TEXT_CHARS_MAX or len(self._pieces) > PIECES_MAX:
            self.read()

    def read(self) -> str:
        text = "".join(self._pieces)
        if len(text) > TEXT_CHARS_MAX:
            self.cut += len(text) - TEXT_CHARS_MAX
            text = text[-TEXT_CHARS_MAX:]
        self._pieces, self._chars = [text], len(text)
        return text


class KeptOutput:
    """Both streams of one request."""

    __slots__ = ("_tails",)

    def __init__(self) -> None:
        self._tails: dict[str, _Tail] = {}

    def add(self, stream: str, text: str) -> None:
        """It wrote text."""
        tail = self._tails.get(stream)
        if tail is None:
            tail = self._tails[stream] = _Tail()
        tail.add(text)

    def read(self, stream: str) -> str:
        """What it has written, or the end of it behind a line that says so."""
        tail = self._tails.get(stream)
        if tail is None:
            return ""
        text = tail.read()
        return f"[{tail.cut} characters before this were not kept]\n{text}" if tail.cut else text

    @property
    def nbytes(self) -> int:
        """What it counts, at least."""
        return sum(len(tail.read()) for tail in self._tails.values())
