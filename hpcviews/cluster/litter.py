"""What MPI libraries leave behind when they are killed: shared memory and temporary files, found and removed."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

TEMPORARY_WITHIN_S = 10.0
"""A starter makes its temporary files in the first moments; later ones of the same name are somebody else's."""

SHARED_MEMORY_WITHIN_S = 20.0
"""Segments are made in MPI_Init, soon after the start."""


class Litter:
    """Of one engine set. The names of these files say nothing of their owner, so it is careful.

    Shared memory is the set's when one of its processes was seen to map it; or, for a set that ended before
    anybody looked, when it is this user's, was made right after the set's start, and no living process maps it.
    Temporary files, which nobody maps, when they are this user's and appeared right after the set's start.
    """

    def __init__(
        self, shared_memory: Sequence[str], temporary: Sequence[str], wall_time: float, *, is_late: bool = False
    ):
        """For a set that starts now, or `is_late`: that started at `wall_time`, and whose controller is dead."""
        self.patterns = tuple(shared_memory)
        self._shared_memory = [SHARED_MEMORY / pattern for pattern in shared_memory]
        self._temporary = [Path(pattern) for pattern in temporary]
        self._started = wall_time
        self._earlier = set() if is_late else {*_find(self._temporary), *_find(self._shared_memory)}
        self._mapped: set[Path] = set()

    @property
    def is_expected(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._shared_memory)

    def note(self, pids: Iterable[int]) -> None:
        """Look at what these processes have mapped; to be called while they live."""
        for pid in pids:
            for path in _read_mapped(pid):
                if any(fnmatch.fnmatch(str(path), str(pattern)) for pattern in self._shared_memory):
                    self._mapped.add(path)

    def sweep(self) -> list[Path]:
        """Remove it; to be called when all processes of the set are gone. Gives what there was."""
        found = {*self._mapped, *self._find_new(self._temporary, TEMPORARY_WITHIN_S)}
        unseen = self._find_new(self._shared_memory, SHARED_MEMORY_WITHIN_S) - self._mapped
        if unseen:
            living = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
            found |= unseen.difference(*(_read_mapped(pid) for pid in living))
        removed = []
        for path in sorted(found):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
        self._mapped.clear()
        return removed

    def _find_new(self, patterns: Iterable[Path], within_s: float) -> set[Path]:
        return {p for p in _find(patterns) if p not in self._earlier and self._is_of_our_start(p, within_s)}

    def _is_of_our_start(self, path: Path, within_s: float) -> bool:
        try:
            status = path.lstat()
            # Writing to mapped memory does not change it. 1 s of slack: file systems have a coarser clock.
            age = status.st_mtime - self._started
        except OSError:
            return False
        return status.st_uid == os.geteuid() and -1.0 <= age <= within_s


def _find(patterns: Iterable[Path]) -> list[Path]:
    return [path for pattern in patterns for path in pattern.parent.glob(pattern.name)]


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
