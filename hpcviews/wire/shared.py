"""Buffers in shared memory: how a segment and a part of it are named on the wire, and how a receiver maps it.

The sender writes a big buffer once into a segment, a file under /dev/shm (see pool.py). What travels in place of its
zmq frame is a *handle*, a short frame with the segment's name. Frames that are buffers themselves are never that short
(`ZERO_COPY_BYTES_MIN` in payload.py), so nothing has to say which is which.

A receiver maps the segment privately: its array is writable, and what it writes stays its own, page by page
(copy-on-write). While a map lives it holds a shared flock on the segment: the lock belongs to the open file, and the
map keeps that open when its descriptor is closed. So the sender can ask the kernel, and needs nobody's word, whether a
segment may be written again; and a receiver that is killed cannot forget to give one back.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hpcviews.errors import SerializationError

SHARED_MEMORY = Path("/dev/shm")

PREFIX = "hpcviews"

HANDLE_BYTES_MAX = 256
"""A frame up to this length is a handle. They have about 90 bytes."""

PAGE_BYTES = mmap.ALLOCATIONGRANULARITY
"""Every buffer in a segment begins at a multiple of this, so that each can be mapped, and unmapped, alone."""

_HANDLE = re.compile(rb"(hpcviews-\d+-[0-9a-f]{16}-[0-9a-f]{16}-(\d+)) (\d{1,18}) (\d{1,18})")
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]


def render_room_name(generation: str) -> str:
    """What the names of a cluster's files under /dev/shm begin with, for this user."""
    return f"{PREFIX}-{os.geteuid()}-{generation}"


class Handle(NamedTuple):
    """A buffer in a segment."""

    segment: str
    """Name of the file."""
    number: int
    """Of the segment, among those of its owner."""
    offset: int
    length: int

    def render(self) -> bytes:
        """As it travels."""
        return f"{self.segment} {self.offset} {self.length}".encode()


def is_handle(frame: Any) -> bool:
    """Whether a payload frame stands for a buffer in shared memory. Does not read it."""
    return len(frame) <= HANDLE_BYTES_MAX


def has_handles(frames: Sequence[Any]) -> bool:
    """Whether a payload has buffers in shared memory, which live no longer than the request they belong to."""
    return bool(frames) and any(map(is_handle, frames))


def parse_handle(frame: Any) -> Handle:
    """Read a handle.

    Raises:
        SerializationError: It is none, or of another user.
    """
    match = _HANDLE.fullmatch(bytes(frame.buffer))
    if match is None or not match[1].startswith(f"{PREFIX}-{os.geteuid()}-".encode()):
        raise SerializationError("a payload frame names no shared memory of ours (a bug in the sender)")
    return Handle(match[1].decode(), int(match[2]), int(match[3]), int(match[4]))


def count_bytes(frames: Iterable[Any]) -> tuple[int, int]:
    """Bytes that payload frames stand for, and how many of them are in shared memory."""
    total = shared = 0
    for frame in frames:
        if isinstance(frame, MappedBuffer):
            size = len(frame.buffer)
            shared += size
        elif is_handle(frame):
            size = parse_handle(frame).length
            shared += size
        else:
            size = len(frame)
        total += size
    return total, shared


class MappedBuffer:
    """A buffer in a segment, mapped here; stands where its handle stood among the payload's frames.

    Attributes:
        buffer: The bytes: writable, private. Whatever refers to them keeps the map.
    """

    __slots__ = ("buffer",)

    def __init__(self, buffer: memoryview):
        self.buffer = buffer

    def __len__(self) -> int:
        return len(self.buffer)


def map_handles(frames: Sequence[Any]) -> list[Any]:
    """Payload frames, with a MappedBuffer in place of every handle.

    Raises:
        SerializationError: A segment is not there any more, or cannot be mapped.
    """
    opened: dict[str, int] = {}
    try:
        return [_map_handle(parse_handle(frame), opened) if is_handle(frame) else frame for frame in frames]
    finally:
        for fd in opened.values():
            os.close(fd)


def _map_handle(handle: Handle, opened: dict[str, int]) -> MappedBuffer:
    try:
        fd = opened.get(handle.segment)
        if fd is None:
            fd = os.open(SHARED_MEMORY / handle.segment, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            opened[handle.segment] = fd
            fcntl.flock(fd, fcntl.LOCK_SH)
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_size < handle.offset + handle.length:
            # Reading behind the end of a file would end this process by SIGBUS.
            raise SerializationError(f"the segment {handle.segment} is not what its sender says (a bug there)")
        return MappedBuffer(memoryview(map_file(fd, handle.offset, handle.length, mmap.MAP_PRIVATE)))
    except FileNotFoundError:
        raise SerializationError(
            f"the shared memory {handle.segment} is gone: its sender was lost, or this request had been given up"
        ) from None
    except OSError as error:
        raise SerializationError(
            f"{handle.length} bytes of shared memory cannot be mapped: {error.strerror}; "
            "with plane='frames' they travel without"
        ) from None


def map_file(fd: int, offset: int, length: int, flags: int) -> mmap.mmap:
    """Map a part of a file, readable and writable, without keeping a descriptor.

    Python's own mmap keeps a copy of the descriptor for the life of the map (before 3.13 always), and a program with
    a thousand arrays would run out of them. So it makes an anonymous map, whose life it manages, and the file's
    pages are mapped over that.

    Raises:
        OSError: The kernel will not.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    made = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, prot=protection)
    address = ctypes.addressof(ctypes.c_char.from_buffer(made))
    if _libc.mmap(address, length, protection, flags | _MAP_FIXED | _MAP_NORESERVE, fd, offset) != address:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return made
