"""The shared memory that the parties of one cluster on one node have in common, and what becomes of it.

A *party* is a client, an engine or the controller, for the length of one connection. Those that can open the same
file under /dev/shm are in one *room*: the file has a random token, each party says at its hello which token it read,
and parties with the same one share memory. So another node, another user and a container with a /dev/shm of its own
are told apart without asking for any of them.

::

    /dev/shm/hpcviews-UID-GENERATION             the room: its token; every party that lives holds a flock on it
    /dev/shm/hpcviews-UID-GENERATION-PARTY-N     a segment

Who finds a room that nobody holds a lock on knows that all its parties are dead, however they died, and removes what
they left: no process ids, no records, and it works across containers that do not see each other's processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

from hpcviews.wire.shared import PREFIX, SHARED_MEMORY, render_room_name

TOKEN_BYTES = 16

KILLED_S = 0.3
"""A killed process of some gigabytes is gone after this long."""

PATIENCE_PERIOD_S = 0.01


class Room:
    """A room this process is in.

    Attributes:
        token: What tells it from all other rooms.
        directory: Where the files are.
        name: Of its own file; the names of the segments begin with it.
    """

    def __init__(self, directory: Path, name: str, fd: int, token: str):
        self.directory = directory
        self.name = name
        self.token = token
        self._fd = fd

    def clear(self, party: str) -> int:
        """Remove the segments of a party that is gone; maps of them live on. Gives how many there were."""
        return _unlink_all(self.directory, f"{self.name}-{party}-")

    def leave(self, patience_s: float = 0.0) -> None:
        """This party ends. The last one removes everything. Again is fine.

        Args:
            patience_s: How long others that are just being killed may take to be gone. The kernel closes their
                connections, which is how we learn of it, a moment before it drops their locks.
        """
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        deadline = time.monotonic() + patience_s
        try:
            while not _clear_if_empty(self.directory, self.name, fd) and time.monotonic() < deadline:
                time.sleep(PATIENCE_PERIOD_S)
        finally:
            os.close(fd)


def join_room(generation: str, directory: Path = SHARED_MEMORY) -> Room | None:
    """Enter the room of a cluster on this node, made if this is the first party here; None if there can be none.

    Sweeps away what dead clusters of this user have left.

    Args:
        generation: The controller's random name for this life of the cluster.
        directory: Where shared memory is.
    """
    try:
        sweep_rooms(directory)
        name = render_room_name(generation)
        while True:
            fd = _open_or_make(directory, name)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                status = os.fstat(fd)
                if status.st_uid != os.geteuid():
                    raise PermissionError(f"{name} belongs to user {status.st_uid}")
                if status.st_nlink:
                    return Room(directory, name, fd, os.pread(fd, 2 * TOKEN_BYTES, 0).decode("ascii"))
            except BaseException:
                os.close(fd)
                raise
            # The last party of an earlier company was just removing it.
            os.close(fd)
    except (OSError, ValueError):
        return None  # no /dev/shm, a full one, one that may not be written: other planes do


def sweep_rooms(directory: Path = SHARED_MEMORY) -> int:
    """Remove the rooms of this user in which nobody lives. Gives how many files that were.

    Raises:
        OSError: The directory cannot be read.
    """
    prefix = f"{PREFIX}-{os.geteuid()}-"
    ours = [name for name in os.listdir(directory) if name.startswith(prefix)]  # noqa: PTH208 - twice as fast
    if not ours:
        return 0
    removed = 0
    room = re.compile(re.escape(prefix) + r"[0-9a-f]{16}")
    for name in ours:
        match = room.match(name)
        if match is None:
            continue
        if match[0] != name:
            # A segment; while a room has any, it has its file, which is removed last.
            if not (directory / match[0]).exists():
                removed += _unlink(directory / name)
            continue
        with contextlib.suppress(OSError):
            fd = os.open(directory / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                removed += _clear_if_empty(directory, name, fd)
            finally:
                os.close(fd)
    return removed


def _clear_if_empty(directory: Path, name: str, fd: int) -> int:
    """Remove a room and its segments unless somebody else is in it. Takes over the lock of `fd`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return 0
    if not os.fstat(fd).st_nlink:
        return 0
    # Who comes in now waits for the lock, and then sees that this is no room any more.
    return _unlink_all(directory, f"{name}-") + _unlink(directory / name)


def _open_or_make(directory: Path, name: str) -> int:
    path = directory / name
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        # Nameless until it is complete: others never read half a token, and nothing is left if we are killed.
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, os.urandom(TOKEN_BYTES).hex().encode())
            parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # With a directory given, Python takes the call that follows the link in /proc to the file.
                os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=parent, follow_symlinks=True)
            finally:
                os.close(parent)
            return fd
        except FileExistsError:
            os.close(fd)
        except BaseException:
            os.close(fd)
            raise


def _unlink_all(directory: Path, prefix: str) -> int:
    return sum(_unlink(directory / name) for name in os.listdir(directory) if name.startswith(prefix))  # noqa: PTH208


def _unlink(path: Path) -> int:
    try:
        path.unlink()
    except OSError:
        return 0
    return 1
