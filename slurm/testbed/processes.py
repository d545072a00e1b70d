"""Processes of the testbed, remembered by number and start time, so that no other is ever hit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

STOP_S = 5.0
PERIOD_S = 0.05


def find_start(pid: int) -> str | None:
    """When the process started, in ticks since boot; None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def find_children(pid: int) -> list[int]:
    """Its direct children."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Registry:
    """Which processes were started, one small file each."""

    def __init__(self, directory: Path):
        self._directory = directory

    def find(self, name: str) -> int | None:
        """The pid of a process that runs."""
        try:
            pid, start = (self._directory / name).read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if find_start(int(pid)) == start else None

    def list_names(self) -> list[str]:
        """All that were ever started and not stopped."""
        return sorted(path.name for path in self._directory.iterdir())

    def start(self, name: str, argv: Sequence[str], log: Path, *, forks: bool = False) -> int:
        """Start a process that goes on without us; its pid.

        Args:
            forks: The program (unshare, nsenter) has the one that is meant as its child.
        """
        with log.open("ab") as out:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, close_fds=True
            )
        pid = process.pid
        if forks:
            deadline = time.monotonic() + STOP_S
            while not (children := find_children(pid)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise OSError(f"{name} did not start: {log.read_text(errors='replace')[-500:]}")
                time.sleep(PERIOD_S)
            pid = children[0]
        start = find_start(pid)
        if start is None:
            raise OSError(f"{name} ended at once: {log.read_text(errors='replace')[-500:]}")
        (self._directory / name).write_text(f"{pid} {start}")
        return pid

    def stop(self, name: str, signum: int = signal.SIGTERM) -> None:
        """End a process, by force if it takes long."""
        deadline = time.monotonic() + STOP_S
        while (pid := self.find(name)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
            signum = 0 if time.monotonic() < deadline else signal.SIGKILL
            time.sleep(PERIOD_S)
        (self._directory / name).unlink(missing_ok=True)


def kill_marked(mark: bytes) -> None:
    """Kill every process with this variable in its environment, except ourselves and who started us."""
    spared = {os.getpid(), os.getppid()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in spared:
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
