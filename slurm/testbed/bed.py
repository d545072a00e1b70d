"""The testbed: hosts, munge, slurmctld and slurmds, started and ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from configuration import render_configuration
from hosts import HEAD, Hosts, list_nodes
from processes import Registry, kill_marked

READY_S = 60.0
COMMAND_S = 30.0
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter")
IDLE_STATES = frozenset({"idle", "mix", "alloc", "comp"})


class TestbedError(Exception):
    """Something does not run that should."""


def find_missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _name_daemon(host: str) -> str:
    return "slurmctld" if host == HEAD else f"{host}.slurmd"


class Testbed:
    """Everything below one directory."""

    def __init__(self, directory: Path):
        self.directory = directory.absolute()
        self._registry = Registry(self.directory / "processes")
        self._hosts = Hosts(self.directory, self._registry)
        self._conf = self.directory / "slurm.conf"

    # ------------------------------------------------------------ all of it

    def up(self, count: int, cpus: int, extra: Sequence[str] = ()) -> None:
        """Start what does not run; return when all nodes are ready for jobs.

        With other nodes or another configuration than before, everything is started anew.
        """
        nodes = list_nodes(count)
        text = render_configuration(self.directory, nodes, cpus, extra)
        if self._conf.exists() and self._conf.read_text() != text:
            self.down()
        for name in ("log", "state", "processes", "munge", *(f"spool/{node}" for node in nodes)):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        for path in (self.directory, self.directory / "munge"):
            path.chmod(0o755)
        self._conf.write_text(text)
        try:
            self._hosts.make_all(nodes)
            self._start_munge()
            self._start_daemon(HEAD)
            for node in nodes:
                self._start_daemon(node)
        except (OSError, subprocess.CalledProcessError) as error:
            raise TestbedError(str(error)) from error
        self._wait_until_ready(count)

    def down(self) -> None:
        """End all daemons and namespaces, and forget all jobs. Again is fine."""
        if not (self.directory / "processes").exists():
            return
        names = self._registry.list_names()
        for name in names:
            if not name.endswith((".host", "munged")):
                self._registry.stop(name)
        # What jobs left: daemons of user code, and step managers whose slurmd was killed.
        kill_marked(f"SLURM_CONF={self._conf}".encode())
        # The first process of a namespace takes all others with it.
        for name in names:
            self._registry.stop(name, signal.SIGKILL if name.endswith(".host") else signal.SIGTERM)
        for name in ("state", "spool"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def _start_munge(self) -> None:
        if self._registry.find("munged") is not None:
            return
        munge = self.directory / "munge"
        key = munge / "key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(os.urandom(1024))
        for stale in munge.glob("socket*"):
            stale.unlink()
        argv = ["munged", "--foreground", f"--key-file={key}", f"--socket={munge / 'socket'}"]
        argv += [f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}"]
        self._registry.start("munged", argv, self.directory / "log" / "munged.log")
        self._wait((munge / "socket").exists, "munged")

    def _start_daemon(self, host: str) -> None:
        name = _name_daemon(host)
        if self._registry.find(name) is not None:
            return
        argv = ["slurmctld", "-D"] if host == HEAD else ["slurmd", "-D", "-N", host]
        # The mark by which `down` finds what the daemons' jobs leave.
        argv = ["env", f"SLURM_CONF={self._conf}", *argv]
        log = self.directory / "log" / f"{name}.out"
        self._registry.start(name, self._hosts.enter(host, argv), log, forks=host != HEAD)

    def _wait_until_ready(self, count: int) -> None:
        def is_ready() -> bool:
            answer = self._run(HEAD, ["sinfo", "-h", "-N", "-p", "main", "-o", "%N %t"])
            states = [line.split() for line in answer.splitlines()]
            for node, state in states:
                if state.startswith(("drain", "down")) and not state.endswith("*"):
                    self._run(HEAD, ["scontrol", "update", f"nodename={node}", "state=resume"])
            # A state that ends in * is what slurmctld remembers of a node that has not answered yet.
            return sum(state in IDLE_STATES for _, state in states) == count

        self._wait(is_ready, "the nodes")

    def _wait(self, is_there: object, what: str) -> None:
        assert callable(is_there)
        deadline = time.monotonic() + READY_S
        while not is_there():
            if time.monotonic() > deadline:
                raise TestbedError(f"{what} not ready after {READY_S:g} s; see {self.directory / 'log'}")
            time.sleep(0.1)

    # ------------------------------------------------------------ hosts

    def get_environment(self) -> dict[str, str]:
        """What clients of this SLURM need: where its configuration is."""
        return {**os.environ, "SLURM_CONF": str(self._conf)}

    def _run(self, host: str, argv: Sequence[str]) -> str:
        done = subprocess.run(
            self._hosts.enter(host, argv), env=self.get_environment(), capture_output=True, text=True,
            timeout=COMMAND_S, check=False,
        )  # fmt: skip
        return done.stdout

    def execute(self, host: str, argv: Sequence[str]) -> None:
        """Become a command on a host."""
        try:
            command = self._hosts.enter(host, argv or ["bash"])
        except OSError as error:
            raise TestbedError(str(error)) from error
        os.execvpe(command[0], command, self.get_environment())

    def kill_node(self, node: str) -> None:
        """Its slurmd (or, for head, slurmctld) dies; processes of jobs go on."""
        self._registry.stop(_name_daemon(node), signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Its slurmd (or, for head, slurmctld) comes back."""
        self._start_daemon(node)

    def cut_node(self, node: str) -> None:
        """Its network is gone."""
        self._hosts.set_cable(node, False)

    def join_node(self, node: str) -> None:
        """Its network is back."""
        self._hosts.set_cable(node, True)

    def crash_node(self, node: str) -> None:
        """All its processes and its network are gone at once."""
        self._hosts.set_cable(node, False)
        self._registry.stop(f"{node}.host", signal.SIGKILL)
