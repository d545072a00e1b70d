"""What MPI libraries leave behind when they are killed: shared memory and temporary files, found and removed."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from hpcviews.cluster.spec import TemporaryFiles
from hpcviews.procfs import read_all_stats

SHARED_MEMORY = Path("/dev/shm")

TEMPORARY_WITHIN_S = 10.0
"""A starter makes its temporary files in the first moments; later ones of the same name are somebody else's."""

SHARED_MEMORY_WITHIN_S = 20.0
"""Segments are made in MPI_Init, soon after the start."""


class Litter:
    """Of one engine set. The names of these files say nothing of their owner, so it is careful.

    Shared memory is the set's when one of its processes was seen to map it; or, for a set that ended before
    anybody looked, when it is this user's, was made right after the set's start, and no living process maps it.
    Temporary files, which nobody maps, when they are this user's, appeared right after the set's start, and no
    living process is there that may have made them.
    """

    def __init__(
        self,
        shared_memory: Sequence[str],
        temporary: Sequence[TemporaryFiles],
        wall_time: float,
        *,
        is_late: bool = False,
    ):
        """For a set that starts now, or `is_late`: that started at `wall_time`, and whose controller is dead."""
        self.patterns = tuple(shared_memory)
        self._shared_memory = [SHARED_MEMORY / pattern for pattern in shared_memory]
        self._temporary = tuple(temporary)
        self._started = wall_time
        everywhere = [*self._shared_memory, *(Path(files.pattern) for files in self._temporary)]
        self._earlier = set() if is_late else set(_find(everywhere))
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
        found = set(self._mapped)
        for files in self._temporary:
            new = self._find_new([Path(files.pattern)], TEMPORARY_WITHIN_S)
            if new:
                starts = _read_start_times(files.made_by)
                found |= {path for path in new if not _may_be_of(path, starts)}
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


def _read_start_times(name: str) -> list[float]:
    """When the living processes of that name were started (Unix time)."""
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = os.sysconf("SC_CLK_TCK")
    starts = []
    for stat in read_all_stats().values():
        with contextlib.suppress(OSError):
            if stat.is_alive and Path(f"/proc/{stat.pid}/comm").read_text().rstrip("\n") == name:
                starts.append(boot + stat.start / ticks)
    return starts


def _may_be_of(path: Path, starts: Iterable[float]) -> bool:
    """Whether a process that started at one of these times may have made it."""
    try:
        made = path.lstat().st_mtime
    except OSError:
        return False
    return any(-1.0 <= made - start <= TEMPORARY_WITHIN_S for start in starts)


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
