"""What waits to be sent: parcels in order, put together into as few zmq messages as is good."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import zmq

from hpcviews.wire import messages as m

Frames = list[zmq.Frame]

MESSAGES_MAX = 2_000
"""Messages in one zmq message: the controller handles it in one turn, and a turn must stay short."""

HEADER_BYTES_MAX = 2**20
"""Small payloads in one zmq message. It is handed on only when it has arrived whole."""

ALONE_BYTES_MIN = 2**20
"""A parcel with this much in frames is sent alone, so that what was queued before it need not wait for it."""


class Parcel(NamedTuple):
    """Messages, and all their payload frames in order. Never divided between two zmq messages."""

    messages: list[m.Message]
    frames: Frames


class Outgoing:
    """A queue of parcels: any thread puts, the I/O thread takes."""

    def __init__(self) -> None:
        self._parcels: deque[Parcel] = deque()  # append and popleft are atomic

    def __bool__(self) -> bool:
        return bool(self._parcels)

    def put(self, parcel: Parcel) -> None:
        """Queue it."""
        self._parcels.append(parcel)

    def clear(self) -> None:
        """Forget what waits."""
        self._parcels.clear()

    def take(self) -> Parcel | None:
        """What goes into the next zmq message; None if nothing waits."""
        parcels = self._parcels
        try:
            messages, frames = parcels.popleft()
        except IndexError:
            return None
        if not parcels or _is_big(frames):
            return Parcel(messages, frames)
        messages, frames = list(messages), list(frames)
        size = _count_data(messages)
        while parcels and len(messages) < MESSAGES_MAX and size < HEADER_BYTES_MAX and not _is_big(parcels[0].frames):
            more, more_frames = parcels.popleft()
            messages += more
            frames += more_frames
            size += _count_data(more)
        return Parcel(messages, frames)


def _is_big(frames: Frames) -> bool:
    return bool(frames) and sum(map(len, frames)) >= ALONE_BYTES_MIN


def _count_data(messages: list[Any]) -> int:
    return sum(len(message.data) for message in messages if isinstance(message, m.Carrier))
