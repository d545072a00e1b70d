"""A controller's core with scripted peers around it, for tests without sockets."""

from __future__ import annotations

from typing import Any

from hpcviews.controller import dispatch
from hpcviews.controller.core import Core, Identity
from hpcviews.controller.events import SetExited, SetStarted
from hpcviews.controller.state import Frames, Route
from hpcviews.ids import SetId
from hpcviews.testing.recorder import RecorderOutbox
from hpcviews.wire import messages as m

VERSION, PYTHON = "0.1.0", "3.11"


def make_info(index: int, *, set_id: int = 0, engine_id: int = -1, uuid: str = "") -> m.EngineInfo:
    return m.EngineInfo(
        engine_id, uuid or f"u{set_id}.{index}", set_id, index, index, 4, index, "node", 100 + index, PYTHON, "", 0.0
    )


class World:
    """Drives a Core; the clock stands still unless told."""

    def __init__(self) -> None:
        self.out = RecorderOutbox()
        self.core = Core(Identity("test", "g1", VERSION, PYTHON, "node", 1, 0.0))
        self.now = 0.0

    def settle(self) -> None:
        while self.out.wants_scheduling:
            self.out.wants_scheduling = False
            dispatch.on_schedule(self.core, self.out, self.now)
        self.core.check()

    def say(self, route: Route, *messages: m.Message, frames: Frames | None = None, role: str = "any") -> None:
        for message in messages:
            dispatch.on_message(self.core, self.out, route, role, message, frames or [], self.now)
            self.core.check()
            self.settle()

    def tick(self, seconds: float) -> None:
        self.now += seconds
        dispatch.on_tick(self.core, self.out, self.now)
        self.settle()

    def disconnect(self, route: Route, why: str = "lost its connection") -> None:
        dispatch.on_disconnect(self.core, self.out, route, why)
        self.out.inboxes.pop(route, None)
        self.settle()

    def start_set(self, n: int, set_id: int = 0) -> None:
        dispatch.on_event(self.core, self.out, SetStarted(SetId(set_id), "local", n, False, "set.log"))
        self.settle()

    def end_set(self, set_id: int = 0, why: str = "exit code 1", error: str = "NoShow") -> None:
        dispatch.on_event(self.core, self.out, SetExited(SetId(set_id), why, error))
        self.settle()

    def add_client(self, name: str = "A") -> Route:
        route = f"client-{name}".encode()
        self.say(route, m.ClientHello(VERSION, PYTHON, name * 16, "node", 2))
        self.out.take(route, m.Welcome)
        return route

    def add_engine(self, index: int, *, set_id: int = 0, life: int = 0, engine_id: int = -1) -> Route:
        route = f"engine-{set_id}.{index}.{life}".encode()
        info = make_info(index, set_id=set_id, engine_id=engine_id)
        self.say(route, m.EngineHello(VERSION, PYTHON, info, ""))
        self.out.take(route, m.EngineWelcome)
        return route

    def add_engines(self, n: int) -> list[Route]:
        self.start_set(n)
        return [self.add_engine(i) for i in range(n)]

    def forget_news(self, *routes: Route) -> None:
        """Drop the notices about engines and sets, which most tests are not about."""
        notices = (m.EnginesJoined, m.EnginesLeft, m.SetChanged)
        for route in routes:
            inbox = self.out.inboxes.get(route, [])
            inbox[:] = [entry for entry in inbox if not isinstance(entry[0], notices)]


def task(
    seq: int,
    *,
    targets: list[int] | None = None,
    retries: int = 0,
    data: bytes = b"x",
    after: m.DependencyInfo | None = None,
    follow: m.DependencyInfo | None = None,
    timeout_s: float = 0.0,
) -> m.Task:
    conditions = m.Conditions(after, follow, timeout_s) if after or follow or timeout_s else None
    return m.Task(data, 0, seq, "apply", b"", targets, retries, "", conditions)


def on(*seqs: int | str, name: str = "A", all: bool = True, success: bool = True, failure: bool = False) -> Any:
    """A dependency on requests of a client; as texts, whatever they are."""
    texts = [seq if isinstance(seq, str) else f"{name * 16}-{seq}" for seq in seqs]
    return m.DependencyInfo(texts, all, success, failure)


def request(seq: int, targets: list[int], *, data: bytes = b"x") -> m.Request:
    return m.Request(data, 0, seq, targets, "apply", b"")


def done(key: int, *, took: float = 0.0, error: str = "") -> m.Done:
    info = m.ErrorInfo(error, "text", "", error == "UnmetDependency") if error else None
    return m.Done(b"value", 0, key, 0.0, took, info)
