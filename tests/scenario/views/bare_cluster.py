"""A controller and engines as processes of the test, without launchers; engines can be killed and added one by one."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from hpcviews.client.client import Client
from hpcviews.testing.wait import wait_until
from hpcviews.wire.access import read_access
from hpcviews.wire.room import sweep_rooms
from hpcviews.wire.shared import SHARED_MEMORY, render_room_name

HERE = Path(__file__).parent


def list_shared_memory(generation: str) -> list[str]:
    """Names of a cluster's files under /dev/shm."""
    return sorted(path.name for path in SHARED_MEMORY.glob(f"{render_room_name(generation)}*"))


class BareCluster:
    """Starts a controller at once, engines when asked."""

    def __init__(self, records_in_memory: int = 50_000) -> None:
        # Not pytest's directory: the path of a socket must be short.
        self._directory = tempfile.TemporaryDirectory(prefix="hv")
        self.path = Path(self._directory.name)
        self.log = (self.path / "controller.log").open("w")
        self.controller = subprocess.Popen(
            [sys.executable, HERE / "bare_controller.py", self.path, str(records_in_memory)],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        self.engines: list[subprocess.Popen[bytes]] = []
        self.clients: list[Client] = []
        wait_until(lambda: self.access.exists() or self.controller.poll() is not None, 30, "the controller")

    @property
    def generation(self) -> str:
        return read_access(self.path / "client.json", "client").generation

    @property
    def access(self) -> Path:
        return self.path / "client.json"

    def connect(self, engines: int = 0) -> Client:
        client = Client(access=self.access)
        self.clients.append(client)
        client.wait_for_engines(engines, timeout=60)
        return client

    def start_engines(self, n: int, prefix: Sequence[str] = ()) -> None:
        """Start engines; with `prefix` by way of another program: a container's, say."""
        for _ in range(n):
            argv: list[str | Path] = [
                *prefix,
                sys.executable,
                "-m",
                "hpcviews.engine",
                "--access",
                self.path / "engine.json",
            ]
            argv += ["--index", str(len(self.engines)), "--logs", self.path]
            argv += ["--path", str(HERE)]  # functions of the test files are found there
            self.engines.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(10)

    def __enter__(self) -> BareCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self.clients:
            client.close()
        generation = self.generation
        processes = [*self.engines, self.controller]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait(10)
        self.log.close()
        logs = {path.name: path.read_text() for path in self.path.glob("*.log")}
        self._directory.cleanup()
        # Everybody was killed: what is left is found by the next one who looks, and by nothing else.
        sweep_rooms()
        left = list_shared_memory(generation)
        assert not left, f"left in shared memory: {left}"
        noisy = {name: text for name, text in logs.items() if "Traceback" in text}
        assert not noisy, noisy
