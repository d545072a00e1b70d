"""A controller and engines as processes of the test, without launchers; engines can be killed and added one by one."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from hpcviews.client.client import Client
from hpcviews.testing.wait import wait_until

HERE = Path(__file__).parent


class BareCluster:
    """Starts a controller at once, engines when asked."""

    def __init__(self) -> None:
        # Not pytest's directory: the path of a socket must be short.
        self._directory = tempfile.TemporaryDirectory(prefix="hv")
        self.path = Path(self._directory.name)
        self.log = (self.path / "controller.log").open("w")
        self.controller = subprocess.Popen(
            [sys.executable, HERE / "bare_controller.py", self.path],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        self.engines: list[subprocess.Popen[bytes]] = []
        self.clients: list[Client] = []
        wait_until(lambda: self.access.exists() or self.controller.poll() is not None, 30, "the controller")

    @property
    def access(self) -> Path:
        return self.path / "client.json"

    def connect(self, engines: int = 0) -> Client:
        client = Client(access=self.access)
        self.clients.append(client)
        client.wait_for_engines(engines, timeout=60)
        return client

    def start_engines(self, n: int) -> None:
        for _ in range(n):
            argv = [sys.executable, "-m", "hpcviews.engine", "--access", self.path / "engine.json"]
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
        processes = [*self.engines, self.controller]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait(10)
        self.log.close()
        logs = {path.name: path.read_text() for path in self.path.glob("*.log")}
        self._directory.cleanup()
        noisy = {name: text for name, text in logs.items() if "Traceback" in text}
        assert not noisy, noisy
