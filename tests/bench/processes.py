"""What the processes of one run cost, read from /proc.

Everything that a run starts inherits a variable with the run's token, so nothing escapes the count by having
been daemonized, put into another session or started by an mpiexec. Standard library only: peers run this too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

MARK = "HPCVIEWS_BENCH_RUN"
"""Environment variable that holds the token."""


def find_marked(token: str) -> list[int]:
    """Pids of all live processes of the run, this one included if it belongs to it."""
    mark = f"{MARK}={token}".encode()
    return [pid for pid in _all_pids() if mark in _read(pid, "environ").split(b"\0") and not _is_zombie(pid)]


def select_by_command(pids: Iterable[int], word: str) -> list[int]:
    """Those whose command line contains `word`."""
    return [pid for pid in pids if word.encode() in _read(pid, "cmdline")]


def read_cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU that they have used so far.

    From schedstat, which counts nanoseconds: /proc/PID/stat counts ticks of 10 ms, too coarse when idle.
    """
    total_ns = 0
    for pid in pids:
        for thread in _threads(pid):
            fields = _read(pid, f"task/{thread}/schedstat").split()
            total_ns += int(fields[0]) if fields else 0
    return total_ns / 1e9


def read_pss_mb(pid: int) -> float:
    """Proportional set size: its own pages, and its share of those it has in common; 10^6 bytes."""
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def end_all(token: str, grace_s: float) -> int:
    """Wait until the run's processes are gone, kill those that are not; say how many had to be killed."""
    deadline = time.monotonic() + grace_s
    while (left := find_marked(token)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return len(left)


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _threads(pid: int) -> list[str]:
    try:
        return [entry.name for entry in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []


def _read(pid: int, name: str) -> bytes:
    # A process may end between the listing and the reading, and another user's is not ours to read.
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _is_zombie(pid: int) -> bool:
    return _read(pid, "stat").rpartition(b")")[2].split()[:1] == [b"Z"]
