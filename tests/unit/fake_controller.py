"""A controller that does what a test says: the real codec on a real socket, driven by the test's own thread."""

from __future__ import annotations

import gc
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest
import zmq

import hpcviews
from hpcviews.client.client import Client
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m
from hpcviews.wire.access import Access, get_python_version, read_host_id, write_access
from hpcviews.wire.codec import controller_decoder, encode
from hpcviews.wire.payload import EMPTY, dumps

M = TypeVar("M", bound=m.Message)
TIMEOUT_MS = 10_000
GENERATION = "g1"


def make_engine(number: int, set_id: int = 0) -> m.EngineInfo:
    return m.EngineInfo(number, f"uuid-{number}", set_id, number, number, 2, 0, "node1", 42, "3", "", 1.0)


def make_set(state: str = "ready", n: int = 2, why: str = "", error: str = "", set_id: int = 0) -> m.SetInfo:
    return m.SetInfo(set_id, "local", n, state, why, error, "")


class FakeController:
    """Binds when made; `connect` gives a client that it has welcomed."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="hv")
        self.path = Path(self._directory.name)
        self.endpoint = f"ipc://{self.path}/k"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._decoder = controller_decoder()
        self._received: list[tuple[Any, list[zmq.Frame]]] = []
        self._route = b""
        self._clients: list[Client] = []
        self.zmq_messages = 0
        self.bind()
        access = Access(
            "client", "fake", GENERATION, hpcviews.__version__, get_python_version(), "node0", read_host_id(),
            [self.endpoint], "", "", "",
        )  # fmt: skip
        write_access(self.path / "client.json", access)

    def __enter__(self) -> FakeController:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        self._context.destroy(0)
        self._directory.cleanup()

    def bind(self, hwm: int = 0) -> None:
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set_hwm(hwm)
        self._socket.bind(self.endpoint)

    def die(self) -> None:
        """All connections break; `bind` brings it back."""
        self._socket.close(0)
        self._received.clear()

    # ------------------------------------------------------------ handshake

    def connect(self, engines: int = 2, sets: Sequence[m.SetInfo] = (), **kwargs: Any) -> Client:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(Client, access=self.path / "client.json", **kwargs)
            self.take(m.Probe)
            self.send(m.ProbeReply("fake", GENERATION))
            self.welcome(engines, sets)
            client = future.result(10)
        self._clients.append(client)
        return client

    def welcome(self, engines: int = 2, sets: Sequence[m.SetInfo] = (), generation: str = GENERATION) -> m.ClientHello:
        hello = self.take(m.ClientHello)
        self.send(m.Welcome("fake", generation, [make_engine(i) for i in range(engines)], list(sets)))
        return hello

    # ------------------------------------------------------------ messages

    def send(self, *messages: m.Message, frames: Sequence[Any] = ()) -> None:
        self._socket.send_multipart([self._route, encode(messages), *frames])

    def take_any(self) -> tuple[Any, list[zmq.Frame]]:
        """The next message of the client and its frames, in order."""
        if not self._received:
            assert self._socket.poll(TIMEOUT_MS), "the client sent nothing"
            route, header, *frames = self._socket.recv_multipart(copy=False)
            self._route = route.bytes
            self.zmq_messages += 1
            for message in self._decoder.decode(header.buffer, len(frames)):
                count = message.frames if isinstance(message, m.Carrier) else 0
                self._received.append((message, frames[:count]))
                frames = frames[count:]
        return self._received.pop(0)

    def take(self, kind: type[M]) -> M:
        message, _ = self.take_any()
        assert isinstance(message, kind), message
        return message

    def take_call(self, kind: type[M]) -> M:
        """The next message of that kind; functions before it are skipped."""
        while True:
            message, _ = self.take_any()
            if not isinstance(message, m.Function):
                assert isinstance(message, kind), message
                return message

    def has_message(self, wait_ms: int = 50) -> bool:
        return bool(self._received) or bool(self._socket.poll(wait_ms))

    # ------------------------------------------------------------ answers

    def answer(self, seq: int, value: Any = None, engine: int = 0) -> None:
        payload = dumps(value)
        result = m.Result(payload.data, len(payload.frames), seq, engine, 100.0, 103.0, None)
        self.send(result, frames=payload.frames)

    def fail(self, seq: int, error: BaseException, engine: int = 0, *, can_pickle: bool = True) -> None:
        """User code raised `error`."""
        payload = dumps(error) if can_pickle else EMPTY
        told = m.ErrorInfo(type(error).__name__, str(error), "Traceback: line 1", False, 1, "node1", 42, "apply")
        self.send(m.Result(payload.data, 0, seq, engine, 1.0, 2.0, told))

    def refuse(self, seq: int, name: str, text: str, engine: int = -1) -> None:
        """An error of ours."""
        self.send(m.Result(b"", 0, seq, engine, 0.0, 0.0, m.ErrorInfo(name, text, "", True)))


# ---------------------------------------------------------------- fixtures, by way of conftest.py


@pytest.fixture
def fake() -> Iterator[FakeController]:
    zmq.Frame(bytes(10), copy=False)  # pyzmq starts a thread of its own at the first of these, and keeps it
    threads = threading.active_count()
    files = count_files()
    with FakeController() as controller:
        yield controller
    gc.collect()
    wait_until(lambda: threading.active_count() <= threads, 5, "threads to end")
    assert count_files() <= files, "a file descriptor was left open"


@pytest.fixture
def rc(fake: FakeController) -> Client:
    return fake.connect()


def count_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
