"""What MPI libraries leave behind when they are killed: shared memory and temporary files, found and removed."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

CREATED_WITHIN_S = 10.0
"""A starter makes its temporary files in the first moments; later ones of the same name are somebody else's."""


class Litter:
    """Of one engine set. Removes only what is this set's beyond doubt.

    Shared memory is taken to be the set's when one of its processes was seen to map it: the names say nothing
    of their owner. Temporary files, which nobody maps, when they are this user's and appeared right after
    the set's start.
    """

    def __init__(self, shared_memory: Sequence[str], temporary: Sequence[str], wall_time: float):
        self._shared_memory = tuple(shared_memory)
        self._temporary = tuple(temporary)
        self._started = wall_time
        self._earlier = frozenset(self._find_temporary())
        self._mapped: set[Path] = set()

    @property
    def is_expected(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._shared_memory)

    def note(self, pids: Iterable[int]) -> None:
        """Look at what these processes have mapped; to be called while they live."""
        if not self._shared_memory:
            return
        for pid in pids:
            for path in _read_mapped(pid):
                if any(fnmatch.fnmatch(path.name, pattern) for pattern in self._shared_memory):
                    self._mapped.add(path)

    def sweep(self) -> list[Path]:
        """Remove it; to be called when all processes of the set are gone. Gives what there was."""
        temporary = (path for path in self._find_temporary() if path not in self._earlier)
        found = sorted(self._mapped) + [path for path in temporary if self._is_ours(path)]
        removed = []
        for path in found:
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
        self._mapped.clear()
        return removed

    def _find_temporary(self) -> list[Path]:
        patterns = [Path(pattern) for pattern in self._temporary]
        return [path for pattern in patterns for path in pattern.parent.glob(pattern.name)]

    def _is_ours(self, path: Path) -> bool:
        try:
            status = path.lstat()
        except OSError:
            return False
        # One second of slack: file systems take their time from a coarser clock.
        age = status.st_mtime - self._started
        return status.st_uid == os.geteuid() and -1.0 <= age <= CREATED_WITHIN_S


def _read_mapped(pid: int) -> set[Path]:
    try:
        text = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
    except OSError:
        return set()
    prefix = f"{SHARED_MEMORY}/"
    found = set()
    for line in text.splitlines():
        start = line.find(prefix)
        if start >= 0 and not line.endswith(" (deleted)"):
            found.add(Path(line[start:]))
    return found
