"""A client's part in the shared memory of its node: a room and a pool for each connection, one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from hpcviews.errors import SerializationError
from hpcviews.ids import Seq
from hpcviews.wire import messages as m
from hpcviews.wire.pool import Pool, lend
from hpcviews.wire.room import KILLED_S, Room, join_room
from hpcviews.wire.shared import has_handles, map_handles

log = logging.getLogger("hpcviews.client.sharing")


class Sharing:
    """Joined anew with each connection: whatever a lost one had lent is never written again.

    Attributes:
        pool: What big buffers are written into; None without shared memory.
        controller_room: Whom the controller shares memory with.
    """

    def __init__(self, generation: str, wake: Callable[[], object]):
        self._generation = generation
        self._wake = wake
        self.pool: Pool | None = None
        self.controller_room = ""
        self._left: Room | None = None
        """That of a lost connection."""
        self._leave_at = 0.0

    # ------------------------------------------------------------ connections

    def join(self) -> tuple[str, str]:
        """Begin; gives the tokens of room and party for the hello, empty without shared memory."""
        self.leave()
        room = join_room(self._generation)
        if room is None:
            return "", ""
        self.pool = Pool(room, self._wake)
        return room.token, self.pool.party

    def on_lost(self) -> None:
        """The connection broke. The room is left a moment later, when a killed controller has left it for sure."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.close()
            self._left = pool.room
            self._leave_at = time.monotonic() + KILLED_S

    def leave(self, *, leave_lent: bool = False) -> None:
        """The connection is closed. With `leave_lent`, requests run on, and the controller sees to their segments."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.close(leave_lent=leave_lent)
            pool.room.leave()
        left, self._left = self._left, None
        if left is not None:
            left.leave()

    # ------------------------------------------------------------ requests

    @staticmethod
    def lend(messages: list[m.Message], frames: list[Any]) -> None:
        """These requests are being sent, with these frames."""
        if not has_handles(frames):
            return
        taken = 0
        for message in messages:
            if isinstance(message, m.Carrier) and message.frames:
                own = frames[taken : taken + message.frames]
                taken += message.frames
                if isinstance(message, m.Request):
                    lend(range(message.seq, message.seq + len(message.targets)), own)
                elif isinstance(message, m.Task):
                    lend((message.seq,), own)

    def give_back(self, results: list[tuple[m.Result, list[Any]]]) -> None:
        """Requests have ended."""
        pool = self.pool
        if pool is not None and pool.is_lending:
            for result, _ in results:
                pool.give_back(result.seq)

    def expire(self) -> float | None:
        """Remove what is not used any more; in how many seconds to be called again, None for not at all."""
        if self._left is not None:
            wait = self._leave_at - time.monotonic()
            if wait > 0:
                return wait
            self.leave()
        return self.pool.expire() if self.pool is not None else None


def map_result(frames: list[Any], seq: int, mapped: list[Seq]) -> list[Any]:
    """The payload frames of a result, with what is in shared memory mapped; adds `seq` to `mapped` then.

    At once, not when the value is asked for: the engine may be gone by then, and its segments with it. What cannot be
    mapped is left, and says why when the value is asked for.
    """
    if not has_handles(frames):
        return frames
    mapped.append(Seq(seq))
    try:
        return map_handles(frames)
    except SerializationError as error:
        log.warning("%s", error)
        return frames
