"""The archive beside the core: a thread that writes records to a file and reads them again.

The thread starts, and SQLite is loaded, with the first record that has no room in memory; most clusters never get
so far. It works a twentieth of the time, so that a flood of tasks is not slowed by it; what it cannot take, the core
drops.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from hpcviews.controller.events import (
    ArchiveAnswer,
    ArchiveFailed,
    ArchiveWrote,
    Event,
    FindRecords,
    ForgetRecords,
    KeepRecords,
    Order,
    Post,
    QueryRecords,
)

if TYPE_CHECKING:
    from hpcviews.controller.archive_file import ArchiveFile

log = logging.getLogger("hpcviews.controller.archive")

BUSY_SHARE = 0.05
"""How much of the time the thread works when nobody waits for it: while it runs Python, the controller's thread does
not. It writes some 5,000 records a second so, more than tasks that do anything come to; of a flood of no-op tasks, at
0.2, it took a tenth."""

RECORDS_MAX = 2_000_000
BYTES_MAX = 2 * 2**30
"""On disk, and at most a quarter of what is free there."""


class Archive:
    """A service of the controller; see events.Service."""

    def __init__(self, path: Path, *, records_max: int = RECORDS_MAX, bytes_max: int = BYTES_MAX):
        """Prepare to write to `path`, which is made when it is needed."""
        self._path = path
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._post: Post | None = None
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._orders: SimpleQueue[Order | None] = SimpleQueue()
        self._events: deque[Event] = deque()
        """What the thread has to say, for the controller's thread."""
        self._hurry = threading.Event()
        """Somebody waits for an answer, or for the end: no pauses."""
        self._questions = 0
        self._thread: threading.Thread | None = None
        self._file: ArchiveFile | None = None
        self._is_broken = False
        self._is_closing = False

    # ------------------------------------------------------------ the controller's thread

    def attach(self, post: Post) -> None:
        """Take note of whom to tell."""
        self._post = post

    def fds(self) -> frozenset[int]:
        """The eventfd that the thread writes to."""
        return frozenset({self._fd})

    def on_readable(self, fd: int, now: float) -> None:
        """The thread has said something."""
        os.eventfd_read(self._fd)
        assert self._post is not None
        while self._events:
            event = self._events.popleft()
            if isinstance(event, ArchiveAnswer):
                self._questions -= 1
                if not self._questions and not self._is_closing:
                    self._hurry.clear()
            self._post(event)

    def on_tick(self, now: float) -> float | None:
        """Nothing is ever due."""
        return None

    def on_order(self, order: Order, now: float) -> None:
        """Hand it to the thread."""
        if not isinstance(order, KeepRecords | FindRecords | QueryRecords | ForgetRecords):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="hpcviews-archive", daemon=True)
            self._thread.start()
        if not isinstance(order, KeepRecords):
            self._questions += 1
            self._hurry.set()
        self._orders.put(order)

    def close(self) -> None:
        """End the thread, and remove the file. What has not been written is dropped."""
        self._is_closing = True
        self._hurry.set()
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._path.unlink(missing_ok=True)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while (order := self._orders.get()) is not None:
                if not self._is_closing:
                    self._events.append(self._obey(order))
                    os.eventfd_write(self._fd, 1)
        finally:
            if self._file is not None:
                self._file.close()

    def _obey(self, order: Order) -> Event:
        if isinstance(order, KeepRecords):
            return self._keep(order)
        assert isinstance(order, FindRecords | QueryRecords | ForgetRecords)
        answer = ArchiveAnswer(order.question, [])
        if self._file is None:
            return answer
        try:
            if isinstance(order, FindRecords):
                answer.found.extend(self._file.find(order.keys))
            elif isinstance(order, QueryRecords):
                answer.found.extend(self._file.query(order.wanted, order.limit))
            else:
                self._file.forget(order.keys, order.engines)
        except Exception:  # a thread's top: whoever asked must be answered
            log.exception("the archive of records, %s, cannot be read", self._path)
        return answer

    def _keep(self, order: KeepRecords) -> ArchiveWrote:
        if self._is_broken:
            return ArchiveWrote(order.nbytes, len(order.records))
        self._started = time.thread_time()
        try:
            if self._file is None:
                from hpcviews.controller.archive_file import ArchiveFile

                self._file = ArchiveFile(self._path, self._records_max, self._bytes_max)
            return ArchiveWrote(order.nbytes, self._file.keep(order.records, self._pause))
        except Exception as error:  # noqa: BLE001 - a thread's top: the core counts on an answer
            self._is_broken = True
            log.warning(
                "records of finished requests cannot be written to %s: %s; from now on only the latest are kept, in "
                "memory, and older results cannot be fetched by msg_id. Free space there, or set TMPDIR to another "
                "local disk before the next cluster is started.",
                self._path.parent,
                error,
            )
            self._events.append(ArchiveFailed(str(error)))
            return ArchiveWrote(order.nbytes, len(order.records))

    def _pause(self) -> None:
        """Sleep in proportion to the work since the last time."""
        worked_s = time.thread_time() - self._started
        self._hurry.wait(worked_s * (1 / BUSY_SHARE - 1))
        self._started = time.thread_time()
