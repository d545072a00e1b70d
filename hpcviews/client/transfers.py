"""What travelled for a call, which way, and how fast."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hpcviews.wire import messages as m
from hpcviews.wire.shared import count_bytes

NAMES_KEPT_MAX = 1_000
"""Names whose last transfer is remembered: more than anybody has on engines and asks about."""


@dataclass(frozen=True)
class Transfer:
    """A transfer of values between client and engines.

    Attributes:
        what: The method: "push", "scatter", "pull" or "gather"; "next" for one that has not been made.
        plane: "shm": its big buffers go through shared memory; "frames": through the controller.
        nbytes: Bytes of its buffers of 64 KiB and more; once for each engine that got or gave them.
        seconds: From the call to the last engine's answer; None while it is under way or has not begun.
    """

    what: str
    plane: str
    nbytes: int
    seconds: float | None = None

    @property
    def gb_per_s(self) -> float | None:
        """10^9 bytes per second; None without `seconds`."""
        return self.nbytes / self.seconds / 1e9 if self.seconds else None

    def __str__(self) -> str:
        text = f"{self.what}: {self.nbytes / 1e6:.1f} MB by plane {self.plane!r}"
        if self.seconds is None:
            return text
        return f"{text} in {self.seconds:.3f} s, {self.gb_per_s or 0.0:.2f} GB/s"


class Traffic:
    """The buffers that travelled beside the messages of one call, by request. Stores what others tell it."""

    __slots__ = ("_began", "_bytes", "_seconds", "_shared")

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds: float | None = None
        self._bytes: dict[int, int] = {}
        self._shared: set[int] = set()

    def add(self, indices: Iterable[int], frames: list[Any]) -> None:
        """Each of these requests was sent, or answered, with these frames."""
        total, shared = count_bytes(frames)
        for index in indices:
            self._bytes[index] = self._bytes.get(index, 0) + total
            if shared:
                self._shared.add(index)

    def add_messages(self, first: int, messages: list[m.Message], frames: list[Any]) -> None:
        """These messages are sent, with these frames; request 0 is number `first`."""
        taken = 0
        for message in messages:
            if isinstance(message, m.Carrier) and message.frames:
                own = frames[taken : taken + message.frames]
                taken += message.frames
                if isinstance(message, m.Request):
                    start = message.seq - first
                    self.add(range(start, start + len(message.targets)), own)
                elif isinstance(message, m.Task):
                    self.add((message.seq - first,), own)

    def get_bytes(self, index: int) -> int:
        """Of one request, there and back."""
        return self._bytes.get(index, 0)

    def get_plane(self, index: int) -> str:
        """How they travelled."""
        return "shm" if index in self._shared else "frames"

    def begin(self, began: float) -> None:
        """The call began then (time.perf_counter()), before its arguments were pickled."""
        self._began = began

    def end(self) -> None:
        """The call has ended."""
        self._seconds = time.perf_counter() - self._began

    def describe(self, what: str) -> Transfer:
        """The whole call."""
        plane = "shm" if self._shared else "frames"
        return Transfer(what, plane, sum(list(self._bytes.values())), self._seconds)


class TransferLog:
    """The last transfer of each name, for any thread. It keeps no calls: those have the values."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, tuple[str, Traffic]] = {}

    def note(self, what: str, names: Iterable[str], traffic: Traffic, began: float) -> None:
        """A call that began then (time.perf_counter()) moves the values of these names."""
        traffic.begin(began)
        with self._lock:
            for name in names:
                self._by_name.pop(name, None)
                self._by_name[name] = what, traffic
            while len(self._by_name) > NAMES_KEPT_MAX:
                del self._by_name[next(iter(self._by_name))]

    def find(self, name: str) -> Transfer | None:
        """The last transfer of a name; None if there was none."""
        with self._lock:
            found = self._by_name.get(name)
        return found[1].describe(found[0]) if found is not None else None
