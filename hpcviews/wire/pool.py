"""The segments that a party sends big buffers in: written once, lent to requests, written again when they are free.

A segment is a file under /dev/shm, and belongs to who made it. Its life::

    being written ──► lent: handles of it are under way ──► kept: nobody can come to map it any more ──► removed
          ▲                                                    │
          └──────────────── no receiver has a map of it ───────┘

*Lent* is as long as somebody refers to its `Lease`: the frames of the payload, and every request whose payload it is,
until the request has ended (`lend`, `give_back`). Kept segments make the next transfer two to three times faster,
because their pages need not be made anew. They are few and for seconds; a removed one loses its name at once, and its
memory when the last map of it goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import mmap
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from hpcviews.wire.room import Room
from hpcviews.wire.shared import PAGE_BYTES, Handle, map_file

log = logging.getLogger("hpcviews.wire.pool")

SHARED_BYTES_MIN = 2**20
"""Buffers from this size on go into shared memory. Below, opening and mapping at every receiver costs what the copies
through the sockets do."""

KEPT_BYTES_MAX = 512 * 2**20
"""Bytes of segments that are kept to be written again; what a party costs beside what is under way."""

KEPT_MAX = 32
"""And how many: each costs a descriptor, and a look whether it is free."""

KEPT_S = 3.0
"""A segment that was not used again for so long is removed: loops are faster than that, memory is dear."""

SPARE_SHARE = 8
"""An eighth of /dev/shm is left to others: an MPI that finds it full dies."""

_MADV_POPULATE_WRITE = 23
"""Maps all pages at once, several times faster than by a fault for each when they are first written."""

_WRITE_BYTES_MAX = 2**30
"""One write() takes at most 2 GiB."""


class Segment:
    """A file in shared memory."""

    __slots__ = ("fd", "kept_since", "map", "name", "number", "size")

    def __init__(self, name: str, number: int, fd: int):
        self.name = name
        self.number = number
        self.fd = fd
        self.size = 0
        """Bytes that have been written, ever: its pages up to there exist."""
        self.map: mmap.mmap | None = None
        self.kept_since = 0.0

    def is_mapped(self) -> bool:
        """Whether a receiver has a map of it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return False

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes; where there were bytes before, through a map that is kept: no page is made or looked up.

        Raises:
            OSError: There is no room. (A map alone would end the process by SIGBUS.)
        """
        if offset + len(data) <= self.size:
            if self.map is None:
                self.map = map_file(self.fd, 0, self.size, mmap.MAP_SHARED)
                with contextlib.suppress(OSError):  # Linux before 5.14
                    self.map.madvise(_MADV_POPULATE_WRITE)
            _copy(self.map, offset, data)
            return
        self.map = None
        done = 0
        while done < len(data):
            done += os.pwrite(self.fd, data[done : done + _WRITE_BYTES_MAX], offset + done)
        self.size = offset + done


def _copy(target: mmap.mmap, offset: int, data: memoryview) -> None:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        target[offset : offset + len(data)] = data
        return
    # numpy lets other threads run meanwhile.
    ours = numpy.frombuffer(target, numpy.uint8, len(data), offset)
    numpy.copyto(ours, numpy.frombuffer(data, numpy.uint8))


class Lease:
    """Keeps a segment from being written again or removed. It ends when nobody refers to it any more."""

    def __init__(self, pool: Pool, segment: Segment):
        self._pool = pool
        self._segment = segment
        self._end = 0

    @property
    def number(self) -> int:
        """The segment's."""
        return self._segment.number

    @property
    def is_empty(self) -> bool:
        """Whether no buffer was written under it."""
        return not self._end

    def write(self, parts: Iterable[memoryview], nbytes: int) -> Handle | None:
        """Append a buffer, whose bytes come in parts. None if there is no room for it; that is logged once.

        When it returns, the caller may change the buffer.
        """
        start = offset = self._end
        try:
            if start + nbytes > self._segment.size:
                self._pool.check_space(start + nbytes - self._segment.size)
            for part in parts:
                self._segment.write(part, offset)
                offset += len(part)
        except OSError as error:
            self._pool.note_full(nbytes, error)
            return None
        self._end = -(-offset // PAGE_BYTES) * PAGE_BYTES
        return Handle(self._segment.name, self._segment.number, start, nbytes)

    def lend(self, keys: Iterable[int]) -> None:
        """It stays until each of these requests was given back to the pool."""
        self._pool._lent.update(dict.fromkeys(keys, self))

    def __del__(self) -> None:
        self._pool._on_end(self._segment)


class LeasedFrame(zmq.Frame):
    """The handle of a buffer. Who has it has the lease: no handle can outlive what it names by an oversight."""

    lease: Lease

    def __init__(self, handle: Handle, lease: Lease):
        super().__init__(handle.render())
        object.__setattr__(self, "lease", lease)  # zmq's own takes attributes for options of its message


def lend(keys: Iterable[int], frames: Iterable[Any]) -> None:
    """Requests `keys` have this payload: its segment stays until each is given back (`Pool.give_back`)."""
    for frame in frames:
        if isinstance(frame, LeasedFrame):
            frame.lease.lend(keys)
            return  # all of a payload are in one segment


class Pool:
    """The segments of one party. All methods may be called from any thread.

    Attributes:
        party: Name of the party, new for each connection: the controller clears away what has that name.
        room: The room it is in.
    """

    def __init__(
        self, room: Room, wake: Callable[[], object] | None = None, clock: Callable[[], float] = time.monotonic
    ):
        """Open an empty pool.

        Args:
            room: Where the segments are.
            wake: Called when a segment has come to be kept, from any thread: `expire` then has something to do.
            clock: For tests.
        """
        self.room = room
        self.party = os.urandom(8).hex()
        self._wake = wake
        self._clock = clock
        self._pid = os.getpid()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._kept: list[Segment] = []
        """The one that was used last is the last."""
        self._ended: deque[Segment] = deque()
        self._all: set[Segment] = set()
        self._lent: dict[int, Lease] = {}
        self._is_closed = False
        self._has_complained = False

    # ------------------------------------------------------------ writing

    def take(self, nbytes: int) -> Lease | None:
        """A segment to write into, warm if there is one; None if there can be none now.

        Args:
            nbytes: How much the first buffer has. More may follow; a segment grows.
        """
        if os.getpid() != self._pid:
            return None  # in a forked child: the segments are the parent's
        with self._lock:
            self._settle()
            if self._is_closed:
                return None
            segment = self._take_kept(nbytes)
            if segment is None:
                try:
                    segment = self._make(nbytes)
                except OSError as error:
                    self.note_full(nbytes, error)
                    return None
            return Lease(self, segment)

    def _take_kept(self, nbytes: int) -> Segment | None:
        # Not one that is far too big: a small array that somebody keeps would keep all of its pages.
        fitting = [s for s in self._kept if nbytes <= s.size <= 2 * nbytes + PAGE_BYTES]
        for segment in sorted(fitting, key=lambda s: s.size):
            if not segment.is_mapped():
                self._kept.remove(segment)
                return segment
        return None

    def _make(self, nbytes: int) -> Segment:
        self.check_space(nbytes)
        number = next(self._numbers)
        name = f"{self.room.name}-{self.party}-{number}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        segment = Segment(name, number, os.open(self.room.directory / name, flags, 0o600))
        self._all.add(segment)
        return segment

    def check_space(self, nbytes: int) -> None:
        """Raise OSError unless there is room for so much more, and something to spare for others."""
        found = os.statvfs(self.room.directory)
        spare = found.f_blocks // SPARE_SHARE * found.f_frsize
        if found.f_blocks and found.f_bavail * found.f_frsize < nbytes + spare:
            raise OSError(28, "it is too full or too small")

    def note_full(self, nbytes: int, error: OSError) -> None:
        """A buffer cannot go into shared memory; said once."""
        if not self._has_complained:
            self._has_complained = True
            log.warning(
                "no room in %s for a buffer of %d MB (%s): it travels through the controller, slower. "
                "Containers get more by --shm-size; `df -h %s` shows what is used",
                self.room.directory,
                nbytes // 2**20,
                error.strerror,
                self.room.directory,
            )

    # ------------------------------------------------------------ lending

    @property
    def is_lending(self) -> bool:
        """Whether any request has segments of this pool."""
        return bool(self._lent)

    def give_back(self, key: int) -> None:
        """A request has ended, and nobody will map its payload any more."""
        self._lent.pop(key, None)

    def _on_end(self, segment: Segment) -> None:
        # From a destructor: in any thread, also within a locked section of this one. So without waiting.
        if os.getpid() != self._pid:
            return
        self._ended.append(segment)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()
        if self._wake is not None:
            self._wake()

    # ------------------------------------------------------------ keeping and removing

    def _settle(self) -> None:
        """Keep, or remove, what is not lent any more. With the lock held."""
        while self._ended:
            segment = self._ended.popleft()
            if segment.fd < 0:
                continue  # it was removed, or left to the controller, when the pool was closed
            if self._is_closed or segment.size > KEPT_BYTES_MAX or not segment.size:
                self._remove(segment)
                continue
            segment.kept_since = self._clock()
            self._kept.append(segment)
        total = sum(segment.size for segment in self._kept)
        while self._kept and (total > KEPT_BYTES_MAX or len(self._kept) > KEPT_MAX):
            total -= self._kept[0].size
            self._remove(self._kept.pop(0))

    def expire(self) -> float | None:
        """Remove what was kept too long; in how many seconds to be called again, None for not at all."""
        if not self._kept and not self._ended:
            return None
        with self._lock:
            self._settle()
            now = self._clock()
            while self._kept and now - self._kept[0].kept_since >= KEPT_S:
                self._remove(self._kept.pop(0))
            return self._kept[0].kept_since + KEPT_S - now if self._kept else None

    def _remove(self, segment: Segment) -> None:
        segment.map = None
        with contextlib.suppress(OSError):
            os.unlink(self.room.directory / segment.name)  # noqa: PTH108 - in a destructor, maybe at the very end
        self._forget(segment)

    def _forget(self, segment: Segment) -> None:
        segment.map = None
        self._all.discard(segment)
        fd, segment.fd = segment.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self, *, leave_lent: bool = False) -> None:
        """Remove the segments. Again is fine.

        Args:
            leave_lent: Requests run on, and the controller sees to their segments when they have ended.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._is_closed = True
            lent = {lease.number for lease in self._lent.values()} if leave_lent else set()
            for segment in list(self._all):
                if segment.number in lent:
                    self._forget(segment)
                else:
                    self._remove(segment)
            self._kept.clear()
        # Their leases end: what was left to the controller must not be unlinked by that.
        self._lent.clear()

    def check(self) -> None:
        """Assert the invariants; for tests."""
        with self._lock:
            kept = {segment.number for segment in self._kept}
            lent = {lease.number for lease in self._lent.values()}
            assert len(kept) == len(self._kept), "kept twice"
            assert not kept & lent, "lent and kept"
            assert kept <= {segment.number for segment in self._all}
            assert sum(segment.size for segment in self._kept) <= KEPT_BYTES_MAX
