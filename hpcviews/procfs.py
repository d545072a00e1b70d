"""What Linux tells about processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple


class Stat(NamedTuple):
    """A process, from ``/proc/PID/stat``. Together with `start` a pid is unique."""

    pid: int
    ppid: int
    state: str
    start: int
    """Clock ticks since boot."""

    @property
    def is_alive(self) -> bool:
        """Whether it can still do something; not a zombie."""
        return self.state not in "ZXx"


def read_stat(pid: int) -> Stat | None:
    """One process; None when there is none of that id."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before may hold blanks and brackets
    return Stat(pid, int(fields[1]), chr(fields[0][0]), int(fields[19]))


def read_all_stats() -> dict[int, Stat]:
    """All processes that we can see."""
    found = (read_stat(int(entry.name)) for entry in os.scandir("/proc") if entry.name.isdigit())
    return {stat.pid: stat for stat in found if stat is not None}


def find_descendants(root: int, stats: Mapping[int, Stat]) -> list[Stat]:
    """Children of `root`, their children, and so on, parents first; without `root`."""
    children: dict[int, list[Stat]] = {}
    for stat in stats.values():
        children.setdefault(stat.ppid, []).append(stat)
    found = list(children.get(root, ()))
    for stat in found:  # grows while we go
        found.extend(children.get(stat.pid, ()))
    return found
