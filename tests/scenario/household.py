"""A home directory and a temporary directory of a test's own, and what runs and lies there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcviews.testing.wait import wait_until

COMMAND_S = 60.0


class Household:
    """All clusters of one test. Every process of theirs has inherited HPCVIEWS_HOME, and is found by that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Not tmp_path: the path of a socket must be short.
        self.root = Path(tempfile.mkdtemp(prefix="hv"))
        self.home = self.root / "home"
        self.temporary = self.root / "tmp"
        self.work = self.root / "work"
        self.temporary.mkdir()
        self.work.mkdir()
        monkeypatch.setenv("HPCVIEWS_HOME", str(self.home))
        monkeypatch.setenv("TMPDIR", str(self.temporary))
        monkeypatch.delenv("HPCVIEWS_CLUSTER", raising=False)
        monkeypatch.delenv("HPCVIEWS_DEBUG", raising=False)
        monkeypatch.chdir(self.work)
        self._started: list[subprocess.Popen[str]] = []

    # ------------------------------------------------------------ commands

    def run(self, *args: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "hpcviews.cli", *args],
            capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def ask(self, *args: str) -> Any:
        """What a command prints with --json."""
        done = self.run(*args, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def start(self, *args: str, name: str = "one") -> str:
        """`hpcviews start`; the cluster's name."""
        done = self.run("start", "--name", name, *args)
        assert done.returncode == 0, done.stderr
        return name

    def begin(self, *args: str) -> subprocess.Popen[str]:
        """Start a command line in a process group of its own, and go on."""
        return self.begin_python("-m", "hpcviews.cli", *args)

    def begin_python(self, *args: str) -> subprocess.Popen[str]:
        """Start Python in a process group of its own, and go on."""
        process = subprocess.Popen(
            [sys.executable, "-u", *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    def write(self, name: str, text: str) -> str:
        """A script in the working directory."""
        (self.work / name).write_text(text)
        return name

    # ------------------------------------------------------------ what there is

    def find_processes(self) -> dict[int, str]:
        """Processes of this test's clusters and commands: pid -> command line. Zombies do not count."""
        mark = f"HPCVIEWS_HOME={self.home}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if command:
                        found[int(entry.name)] = command
            except OSError:
                continue
        return found

    def find_clusters(self) -> list[str]:
        """Directories of clusters that have not ended."""
        directory = self.home / "clusters"
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []

    def find_shared_memory(self) -> set[Path]:
        """Files under /dev/shm that the clusters' processes have mapped."""
        found = set()
        for pid in self.find_processes():
            try:
                lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            except OSError:
                continue
            found |= {Path(line.split(None, 5)[5]) for line in lines if "/dev/shm/" in line and "(deleted)" not in line}
        return found

    def wait_until_empty(self, timeout_s: float) -> None:
        """Wait until no process is left."""

        def look() -> bool | Telling:
            found = self.find_processes()
            return not found or Telling(found)

        wait_until(look, timeout_s, "the end of all processes")

    def assert_nothing_left(self) -> None:
        """No process, no record of a running cluster, no socket, no temporary file, no secret."""
        assert self.find_processes() == {}
        assert self.find_clusters() == []
        assert sorted(self.temporary.rglob("*")) == []
        if self.home.exists():
            assert [path for path in self.home.rglob("*.json") if path.name != "cluster.json"] == []

    def close(self) -> None:
        """Kill whatever is left, and remove everything."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for pid in self.find_processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        shutil.rmtree(self.root, ignore_errors=True)


class Telling(str):
    """False to `wait_until`, and tells in its message what is the case."""

    def __bool__(self) -> bool:
        return False


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line a process prints; its errors, when it has ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        _, errors = process.communicate(timeout=COMMAND_S)
        raise AssertionError(f"ended with {process.returncode}: {errors}")
    return line.rstrip("\n")


def find_pids(processes: dict[int, str], *words: str) -> Sequence[int]:
    """Those whose command line has all the words."""
    return sorted(pid for pid, command in processes.items() if all(word in command for word in words))
