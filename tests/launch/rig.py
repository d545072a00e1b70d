"""A real controller with a real engine set in processes of their own, and a client that is as plain as can be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from hpcviews import __version__
from hpcviews.procfs import find_descendants, read_all_stats
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m
from hpcviews.wire.access import get_python_version, read_access
from hpcviews.wire.codec import client_decoder, encode
from hpcviews.wire.payload import dumps
from hpcviews.wire.sockets import Link, connect_first

HERE = Path(__file__).parent
SOURCES = (HERE.parent.parent, HERE.parent.parent / "launchers")
OVER = ("ended", "failed")


class Rig:
    """One controller."""

    def __init__(self, directory: Path):
        # Not under `directory`: the path of an ipc socket may have 107 bytes.
        self._short = tempfile.TemporaryDirectory(prefix="hv-")
        self.directory = Path(self._short.name)
        self.logs = self.directory / "logs"
        self.engines: dict[int, m.EngineInfo] = {}
        self.lost: dict[int, str] = {}
        self.set: m.SetInfo | None = None
        self.results: dict[int, m.Result] = {}
        self.statuses: dict[int, m.Status] = {}
        self._seq = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link: Link | None = None
        self._decoder = client_decoder()
        self._seen: dict[int, int] = {}
        """Processes of the cluster, and when they started: pids are given away again."""
        self._mapped: set[Path] = set()

    # ------------------------------------------------------------ starting

    def start(
        self, n: int, launcher: str, *options: str, python: str = sys.executable, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start the controller's process; returns when it can be connected to."""
        environment = {**os.environ, "PYTHONPATH": ":".join(map(str, SOURCES)), "HPCVIEWS_DEBUG": "1", **variables}
        with (self.directory / "controller.log").open("wb") as log:
            self._process = subprocess.Popen(
                [python, str(HERE / "controller_process.py"), str(self.directory), str(n), launcher, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,
                start_new_session=True,
            )
        return self._process

    def connect(self) -> None:
        """Connect as a client."""
        path = self.directory / "client.json"
        process = self._process
        assert process is not None
        wait_until(lambda: path.exists() or process.poll() is not None, 30, "the access file")
        assert path.exists(), self.read_log()
        self._link = connect_first(self._context, read_access(path, "client"), 10.0)
        self._send(m.ClientHello(__version__, get_python_version(), "0123456789abcdef", "here", os.getpid()))

    def start_ready(self, n: int, launcher: str, *options: str, python: str = sys.executable, **variables: str) -> None:
        """Start, connect, and wait for all engines."""
        self.start(n, launcher, *options, python=python, **variables)
        self.connect()
        self.pump_until(lambda: len(self.engines) == n or self._is_over(), 60, f"{n} engines")
        assert len(self.engines) == n, self.set
        self._seen.update((stat.pid, stat.start) for stat in self.find_descendants())
        self._mapped.update(*(find_shared_memory(pid) for pid in self._seen))

    # ------------------------------------------------------------ talking

    def _send(self, *messages: m.Message) -> None:
        assert self._link is not None
        self._link.socket.send(encode(messages))

    def pump_until(self, predicate: Callable[[], Any], timeout_s: float, what: str) -> None:
        """Take in what the controller says until `predicate` is true."""

        def look() -> Any:
            self._pump()
            return predicate()

        wait_until(look, timeout_s, what)

    def _pump(self) -> None:
        assert self._link is not None
        while self._link.socket.poll(5):
            header, *frames = self._link.socket.recv_multipart()
            for message in self._decoder.decode(header, len(frames)):
                self._take(message)

    def _take(self, message: m.Message) -> None:
        if isinstance(message, m.Welcome):
            self.engines.update((info.id, info) for info in message.engines)
            for info in message.sets:
                self.set = info
        elif isinstance(message, m.EnginesJoined):
            self.engines.update((info.id, info) for info in message.engines)
        elif isinstance(message, m.EnginesLeft):
            self.lost.update((left.id, left.why) for left in message.engines)
        elif isinstance(message, m.SetChanged):
            self.set = message.info
        elif isinstance(message, m.Result):
            self.results[message.seq] = message
        elif isinstance(message, m.Status):
            self.statuses[message.seq] = message

    def _is_over(self) -> bool:
        return self.set is not None and self.set.state in OVER

    def wait_over(self, timeout_s: float) -> m.SetInfo:
        """Wait until the set has ended."""
        self.pump_until(self._is_over, timeout_s, "the end of the engine set")
        assert self.set is not None
        return self.set

    def execute(self, code: str, *targets: int) -> list[int]:
        """Run code on engines; the numbers of the requests."""
        payload = dumps((code, False, "", False))
        first = self._seq
        self._seq += len(targets)
        self._send(m.Request(payload.data, 0, first, list(targets), "execute", b""))
        return list(range(first, self._seq))

    def run(self, code: str, *targets: int) -> list[Any]:
        """Run code on engines and wait; the texts of the last expressions."""
        from hpcviews.wire.payload import loads

        seqs = self.execute(code, *targets)
        self.pump_until(lambda: all(seq in self.results for seq in seqs), 30, f"the results of {code!r}")
        found = [self.results[seq] for seq in seqs]
        assert [r.error for r in found] == [None] * len(seqs)
        return [loads(r.data, [])["data"].get("text/plain") for r in found]

    def stop(self) -> None:
        """Have the controller end everything, and wait for its process."""
        assert self._process is not None
        self._send(m.StopCluster())
        self._process.wait(30)

    # ------------------------------------------------------------ looking

    @property
    def pid(self) -> int:
        """The controller's."""
        assert self._process is not None
        return self._process.pid

    def find_descendants(self) -> list[Any]:
        """Living processes below the controller."""
        return [stat for stat in find_descendants(self.pid, read_all_stats()) if stat.is_alive]

    def find_starter(self) -> int:
        """The controller's only child."""
        (starter,) = [stat.pid for stat in self.find_descendants() if stat.ppid == self.pid]
        return starter

    def find_left(self) -> list[int]:
        """Of the processes that were there when all was ready: those that still are."""
        stats = read_all_stats()
        return [
            pid
            for pid, start in self._seen.items()
            if pid in stats and stats[pid].is_alive and stats[pid].start == start
        ]

    def read_log(self) -> str:
        """The controller's output."""
        return (self.directory / "controller.log").read_text()

    def close(self) -> None:
        """Check that nothing is left, after ending what is."""
        process = self._process
        try:
            if process is not None:
                self._seen.update((stat.pid, stat.start) for stat in self.find_descendants())
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.wait(30)
                wait_until(lambda: not self.find_left(), 5, f"the end of {self.find_left()}")
            if process is not None and process.returncode != -signal.SIGKILL:  # who is killed cannot clean up
                assert list((self.directory / "scratch").glob("*")) == []
                assert [path for path in self._mapped if path.exists()] == []
        finally:
            for pid in self.find_left():
                os.kill(pid, signal.SIGKILL)
            for path in self._mapped:
                path.unlink(missing_ok=True)  # of a controller that was killed; there is no record to sweep it by
            if self._link is not None:
                self._link.close()
            self._context.term()
            self._short.cleanup()


def find_shared_memory(pid: int) -> set[Path]:
    """What MPI libraries leave behind under /dev/shm when they are killed."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    names = ("sm_segment", "mpich_sh", "Intel_MPI")
    found = (Path(line.split(maxsplit=5)[5]) for line in lines if "/dev/shm/" in line and "(deleted)" not in line)
    return {path for path in found if path.name.startswith(names)}
