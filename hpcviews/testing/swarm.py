"""``python -m hpcviews.testing.swarm``: a real controller with thousands of engines, on one machine.

    python -m hpcviews.testing.swarm --engines 10000
    python -m hpcviews.testing.swarm --engines 10 10000

The engines are real to the controller: each has a connection of its own, registers, gets functions and requests, runs
them, answers, dies. But a few processes host all of them, without a namespace, threads or MPI of their own. Measured
are registration, a call on all engines, balanced tasks, the death of half of the engines at once, and their return.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import resource
import select
import socket as sockets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

import hpcviews
from hpcviews import prctl
from hpcviews.controller.app import Controller
from hpcviews.engine.operations import Operations
from hpcviews.errors import EngineError, HpcviewsError, RemoteError
from hpcviews.testing.services import NoProcesses
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m
from hpcviews.wire.access import get_python_version, read_access, write_access
from hpcviews.wire.codec import encode, engine_decoder
from hpcviews.wire.payload import dumps, loads
from hpcviews.wire.sockets import set_common_options

if TYPE_CHECKING:
    from hpcviews.client.client import Client

HOSTS = 4
"""Processes that host the engines. Each takes a few file descriptors an engine."""

FILES_FIXED = 1024
"""Open files of a process beside its engines' connections; engines connect by ipc, so one each at the controller."""

FILES_PER_HOSTED_ENGINE = 3
"""Its connection, libzmq's mailbox, and one to spare."""

TIMEOUT_S = 120.0

_fork = multiprocessing.get_context("fork")
"""Before any ZeroMQ context exists: the processes start in milliseconds and need no importable main module."""


# ---------------------------------------------------------------- the hosts of engines


class HostedEngine:
    """One engine: its connection and the functions it was sent."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, index: int):
        self.index = index
        self.functions: dict[bytes, Any] = {}
        self.socket = context.socket(zmq.DEALER)
        set_common_options(self.socket)
        self.socket.connect(endpoint)
        self.fd: int = self.socket.FD
        info = m.EngineInfo(
            -1, os.urandom(8).hex(), 0, index, None, None, index, sockets.gethostname(), os.getpid(),
            get_python_version(), "", time.time(),
        )  # fmt: skip
        self.socket.send(encode([m.EngineHello(hpcviews.__version__, get_python_version(), info, "")]))


class Host:
    """Serves many engines in one thread.

    Args:
        endpoint: The controller's ipc address.
        order: Engines to make, lose and make again come through this pipe as (word, count); it answers each with True.
    """

    def __init__(self, endpoint: str, order: Connection):
        self._endpoint = endpoint
        self._order = order
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65_000)
        self._engines: dict[int, HostedEngine] = {}
        self._epoll = select.epoll()
        self._epoll.register(order.fileno(), select.EPOLLIN)
        self._decoder = engine_decoder()
        self._operations = Operations({}, _make_remote_error, lambda kind, content: None)
        self._made = 0

    def run(self) -> None:
        """Serve until the pipe closes."""
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._order.fileno():
                    if not self._obey():
                        self._context.destroy(0)
                        return
                elif (engine := self._engines.get(fd)) is not None:
                    self._serve(engine)

    def _obey(self) -> bool:
        try:
            word, count = self._order.recv()
        except EOFError:
            return False
        if word == "join":
            for _ in range(count):
                engine = HostedEngine(self._context, self._endpoint, self._made)
                self._made += 1
                self._engines[engine.fd] = engine
                # Edge-triggered, and looked at once now: libzmq's descriptor tells of changes only.
                self._epoll.register(engine.fd, select.EPOLLIN | select.EPOLLET)
                self._serve(engine)
        else:
            for fd in list(self._engines)[:count]:
                self._epoll.unregister(fd)
                self._engines.pop(fd).socket.close(0)
        self._order.send(True)
        return True

    def _serve(self, engine: HostedEngine) -> None:
        while int(engine.socket.EVENTS) & zmq.POLLIN:
            parts = engine.socket.recv_multipart(copy=False)
            frames = parts[1:]
            answers: list[m.Message] = []
            answer_frames: list[Any] = []
            for message in self._decoder.decode(parts[0].buffer, len(frames)):
                own: list[Any] = []
                if isinstance(message, m.Carrier) and message.frames:
                    own, frames = frames[: message.frames], frames[message.frames :]
                if isinstance(message, m.Function):
                    engine.functions[message.digest] = loads(message.data, own)
                elif isinstance(message, m.ForgetFunction):
                    engine.functions.pop(message.digest, None)
                elif isinstance(message, m.Run):
                    done, more = self._run(engine, message, own)
                    answers.append(done)
                    answer_frames += more
                elif isinstance(message, m.Withdraw):
                    answers.append(m.Withdrawn([], message.keys))  # what came has run already
            if answers:
                engine.socket.send_multipart([encode(answers), *answer_frames], copy=False)

    def _run(self, engine: HostedEngine, run: m.Run, frames: list[Any]) -> tuple[m.Done, list[Any]]:
        started = time.time()
        try:
            function = engine.functions[run.function] if run.function else None
            payload = dumps(self._operations.run(run.op, function, loads(run.data, frames)))
        except Exception as error:  # noqa: BLE001 - the boundary around user code
            told = m.ErrorInfo(type(error).__name__, str(error), "", False)
            return m.Done(b"", 0, run.key, started, time.time(), told), []
        return m.Done(payload.data, len(payload.frames), run.key, started, time.time(), None), payload.frames


def _make_remote_error(error: BaseException) -> RemoteError:
    return RemoteError(type(error).__name__, str(error))


def _be_host(endpoint: str, order: Connection, files: int) -> None:
    prctl.set_parent_death_signal(9)
    _raise_limit(files)
    with contextlib.suppress(KeyboardInterrupt):
        Host(endpoint, order).run()


def _be_controller(directory: Path) -> None:
    prctl.set_parent_death_signal(9)
    logging.getLogger("hpcviews").setLevel(logging.ERROR)  # thousands of losses are what is asked for
    controller = Controller(
        "swarm", hpcviews.__version__, ipc_path=str(directory / "k"), tcp_addresses=[], services=[NoProcesses()]
    )
    write_access(directory / "engine.json", controller.make_access("engine"))
    write_access(directory / "client.json", controller.make_access("client"))
    with contextlib.suppress(KeyboardInterrupt):
        controller.run()


def _raise_limit(files: int) -> None:
    """Allow this process and its children so many open files; beyond the hard limit if this is root.

    Raises:
        SystemExit: It may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(files, soft)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), max(hard, files)))
    except ValueError:
        raise SystemExit(
            f"{files} open files are needed in one process, and `ulimit -Hn` is {hard}: fewer --engines, or as root"
        ) from None


# ---------------------------------------------------------------- the measurement


@dataclass
class Figures:
    """What one size of swarm took."""

    engines: int
    register_s: float = 0.0
    call_all_s: float = 0.0
    tasks_per_s: float = 0.0
    cpu_per_task_us: float = 0.0
    controller_rss: int = 0
    death_s: float = 0.0
    return_s: float = 0.0


class Swarm:
    """A controller, and hosts of `n` engines, as processes of this one. A context manager."""

    def __init__(self, n: int):
        self.n = n
        self._directory = tempfile.TemporaryDirectory(prefix="hpcviews-swarm-")
        self._path = Path(self._directory.name)
        self._processes: list[Any] = []
        self._orders: list[Connection] = []

    def __enter__(self) -> Swarm:
        _raise_limit(FILES_FIXED + self.n)
        files = FILES_FIXED + FILES_PER_HOSTED_ENGINE * -(-self.n // HOSTS)
        self._controller = self._start(_be_controller, self._path)
        wait_until(lambda: (self._path / "client.json").exists(), 30, "the controller")
        endpoint = read_access(self._path / "engine.json", "engine").endpoints[0]
        for _ in range(HOSTS):
            ours, theirs = _fork.Pipe()
            self._orders.append(ours)
            self._start(_be_host, endpoint, theirs, files)
            theirs.close()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for order in self._orders:
            order.close()
        for process in self._processes:
            process.kill()
            process.join()
        self._directory.cleanup()

    def _start(self, target: Callable[..., None], *args: Any) -> Any:
        process = _fork.Process(target=target, args=args, daemon=True)
        process.start()
        self._processes.append(process)
        return process

    def order(self, word: str, count: int) -> None:
        """Have `count` engines "join" or "die", spread over the hosts; returns when the hosts have done it."""
        for number, order in enumerate(self._orders):
            order.send((word, count // HOSTS + (number < count % HOSTS)))
        for order in self._orders:
            assert order.recv()

    def connect(self) -> Client:
        """A client."""
        from hpcviews.client.client import Client

        return Client(access=self._path / "client.json", timeout=60)

    @property
    def controller_cpu_s(self) -> float:
        """CPU seconds of the controller so far."""
        fields = Path(f"/proc/{self._controller.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def controller_rss(self) -> int:
        """Resident bytes of the controller."""
        return int(Path(f"/proc/{self._controller.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def measure(n: int, tasks: int) -> Figures:
    """Drive a swarm of `n` engines through everything.

    Raises:
        AssertionError: A request got no answer, or a wrong one.
    """
    figures = Figures(n)
    with Swarm(n) as swarm, swarm.connect() as client:
        with _timed(figures, "register_s"):
            swarm.order("join", n)
            client.wait_for_engines(n, timeout=TIMEOUT_S)
        everybody = client[:]
        everybody.apply_sync(abs, -1)  # the function is on all engines now
        with _timed(figures, "call_all_s"):
            assert everybody.apply_sync(abs, -2) == [2] * n
        balanced = client.load_balanced_view()
        balanced.map_sync(abs, range(max(1000, 2 * n)))  # and has been measured on each
        before, began = swarm.controller_cpu_s, time.perf_counter()
        assert balanced.map_sync(abs, range(-tasks, 0)) == list(range(tasks, 0, -1))
        figures.tasks_per_s = tasks / (time.perf_counter() - began)
        figures.cpu_per_task_us = 1e6 * (swarm.controller_cpu_s - before) / tasks
        figures.controller_rss = swarm.controller_rss
        half = n // 2
        if half:
            with _timed(figures, "death_s"):
                swarm.order("die", half)
                wait_until(lambda: len(client) == n - half, TIMEOUT_S, f"the death of {half} engines")
            outcomes = everybody_gone(everybody.targets, client)
            assert outcomes == half, f"{outcomes} of {half} dead engines are known as such"
            assert client[:].apply_sync(abs, -3) == [3] * (n - half)
            with _timed(figures, "return_s"):
                swarm.order("join", half)
                client.wait_for_engines(n, timeout=TIMEOUT_S)
            assert client[:].apply_sync(abs, -4) == [4] * n
            assert balanced.map_sync(abs, range(n)) == list(range(n))
        assert not client.outstanding, "requests without an answer"
    return figures


def everybody_gone(ids: list[int], client: Client) -> int:
    """How many of these engines are said to be gone when they are called."""
    gone = 0
    for engine_id in set(ids) - set(client.ids):
        try:
            client[engine_id]
        except HpcviewsError as error:
            gone += not isinstance(error, EngineError)
    return gone


@contextlib.contextmanager
def _timed(figures: Figures, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    setattr(figures, name, time.perf_counter() - began)


_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("engines", lambda f: f"{f.engines:,}"),
    ("all registered", lambda f: f"{f.register_s:.2f} s"),
    ("a call on all answers", lambda f: f"{f.call_all_s:.3f} s"),
    ("no-op tasks", lambda f: f"{f.tasks_per_s:,.0f}/s"),
    ("controller's CPU per task", lambda f: f"{f.cpu_per_task_us:.1f} µs"),
    ("controller's memory", lambda f: f"{f.controller_rss / 2**20:.0f} MiB"),
    ("half of them die: known", lambda f: f"{f.death_s:.2f} s"),
    ("and join again", lambda f: f"{f.return_s:.2f} s"),
)


def main(argv: list[str]) -> int:
    """Measure, and print a table with a column for each size."""
    parser = argparse.ArgumentParser("python -m hpcviews.testing.swarm", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engines", type=int, nargs="+", default=[1000])
    parser.add_argument("--tasks", type=int, default=100_000)
    arguments = parser.parse_args(argv)
    if min(arguments.engines) < 1 or arguments.tasks < 1:
        parser.error("at least one engine and one task are needed")
    columns = [measure(n, arguments.tasks) for n in arguments.engines]
    for title, render in _ROWS:
        print(f"{title:28}", *(f"{render(figures):>14}" for figures in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
