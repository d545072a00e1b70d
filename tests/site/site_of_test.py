"""A user's account on the testbed: a home that all nodes see, commands on its hosts, jobs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from household import Telling

from hpcviews.testing.wait import wait_until

ROOT = Path(__file__).parent.parent.parent
COMMAND_S = 90.0
JOB_S = 90.0

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


class Site:
    """All clusters and jobs of one test. Every process of theirs has inherited HPCVIEWS_HOME, and is found by that."""

    def __init__(self, bed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.bed = bed
        subprocess.run([*bed, "up", "--nodes", "3"], check=True, capture_output=True)  # what the last test broke
        self.root = Path(tempfile.mkdtemp(prefix="hvsite", dir="/var/tmp"))
        self.home = self.root / "home"
        self.work = self.root / "work"
        self.work.mkdir()
        monkeypatch.chdir(self.work)
        monkeypatch.setenv("HPCVIEWS_HOME", str(self.home))
        # The commands of this installation first, as after `source venv/bin/activate`.
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        for name in ("HPCVIEWS_CLUSTER", "HPCVIEWS_DEBUG", "SLURM_CONF"):
            monkeypatch.delenv(name, raising=False)
        self._started: list[subprocess.Popen[str]] = []

    # ------------------------------------------------------------ commands

    def act(self, what: str, host: str) -> None:
        """kill, start, cut, join or crash a host."""
        subprocess.run([*self.bed, what, host], check=True, capture_output=True)

    def on(self, host: str, *argv: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end."""
        return subprocess.run(
            [*self.bed, "exec", host, *argv],
            capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def run(self, *args: str, host: str = "head", timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        """Run a command line of hpcviews on a host, the login node by default."""
        return self.on(host, sys.executable, "-m", "hpcviews.cli", *args, timeout_s=timeout_s)

    def ask(self, *args: str, host: str = "head") -> Any:
        """What a command prints with --json."""
        done = self.run(*args, "--json", host=host)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def python(self, code: str, host: str = "head") -> str:
        """What a program prints; it must end well."""
        done = self.on(host, sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def begin(self, *args: str, host: str = "head") -> subprocess.Popen[str]:
        """Start a command line of hpcviews on a host, and go on."""
        process = subprocess.Popen(
            [*self.bed, "exec", host, sys.executable, "-u", "-m", "hpcviews.cli", *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    # ------------------------------------------------------------ jobs

    def submit(self, *args: str) -> str:
        """sbatch; the job's id."""
        done = self.on("head", "sbatch", "--parsable", *args)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit_lines(self, *lines: str, options: tuple[str, ...] = ("-N2", "-n4")) -> str:
        """A job of these lines of bash; its output is in `read_output`."""
        script = self.work / "job.sh"
        script.write_text("#!/bin/bash\n" + "\n".join(lines) + "\n")
        return self.submit("-t", "5", "-o", "%j.out", *options, str(script))

    def get_state(self, job: str) -> str:
        """State of a job, as SLURM calls it; "" when it is forgotten."""
        words = self.on("head", "squeue", "-h", "-t", "all", "-j", job, "-o", "%T").stdout.split()
        return words[0] if words else ""

    def wait_for_job(self, job: str, *states: str, timeout_s: float = JOB_S) -> str:
        """Wait until the job has one of the states (or has ended); which."""

        def look() -> str | Telling:
            state = self.get_state(job)
            return state if state in (states or ENDED) else Telling(f"{state}; output: {self.read_output(job)[-2000:]}")

        return wait_until(look, timeout_s, f"job {job}")

    def list_jobs(self) -> list[str]:
        """Jobs that wait or run. Not COMPLETING ones: slurmctld may wait long for a report that it missed."""
        return self.on("head", "squeue", "-h", "-t", "PD,R,S,CF", "-o", "%i %T %j").stdout.splitlines()

    def read_output(self, job: str) -> str:
        """What the job has printed."""
        path = self.work / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def write_script(self, name: str, text: str) -> str:
        """A Python program in the working directory."""
        (self.work / name).write_text(text)
        return shlex.quote(name)

    # ------------------------------------------------------------ what there is

    def find_processes(self) -> dict[int, str]:
        """Processes of this test's clusters and jobs on all nodes: pid (as this machine counts) -> command line."""
        mark = f"HPCVIEWS_HOME={self.home}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    # The bed's own daemons and hosts that were started again by this test have its environment.
                    if command and not command.startswith(("slurm", "munged", "testbed-", "unshare", "sleep 3600")):
                        found[int(entry.name)] = command
            except OSError:
                continue
        return found

    def find_clusters(self) -> list[str]:
        """Directories of clusters that have not ended."""
        directory = self.home / "clusters"
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []

    def assert_nothing_left(self) -> None:
        """No job, no process on any node, no record of a running cluster, no secret."""

        def look() -> bool | Telling:
            left = [*self.list_jobs(), *self.find_processes().values(), *self.find_clusters()]
            return not left or Telling(left)

        wait_until(look, 45, "the end of all jobs and processes")
        if self.home.exists():
            assert [path for path in self.home.rglob("*.json") if path.name in ("client.json", "engine.json")] == []

    def close(self) -> None:
        """Kill whatever is left, and remove everything."""
        self.on("head", "scancel", "-u", "root")
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
