"""The controller's decisions: pure handlers ``on_x(core, out, …)`` over one Core. No sockets, clock, files or threads.

Messages of peers are dispatched by `on_message`; what clients ask for is in requests.py, who comes and goes in
members.py, placing of tasks in scheduler.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hpcviews.controller import members, requests
from hpcviews.controller.events import SetEvent, SetExited, SetStarted, StopRequested
from hpcviews.controller.functions import FunctionTable
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.scheduler import Scheduler
from hpcviews.controller.state import Client, Engine, EngineSet, Frames, Route, WorkPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import Digest, EngineId, RunKey, SetId
from hpcviews.wire import messages as m

GONE_ENGINES_KEPT = 10_000
"""How many lost engines are remembered by id and reason, for clients that have not heard of the loss yet."""


@dataclass(frozen=True)
class Identity:
    """Who this controller is; constant during its life."""

    cluster: str
    generation: str
    version: str
    python: str
    host: str
    pid: int
    started: float
    endpoints: tuple[str, ...] = ()


@dataclass
class Core:
    """Everything the controller knows."""

    identity: Identity
    clients: dict[Route, Client] = field(default_factory=dict)
    engines: dict[EngineId, Engine] = field(default_factory=dict)
    engine_by_route: dict[Route, Engine] = field(default_factory=dict)
    sets: dict[SetId, EngineSet] = field(default_factory=dict)
    gone: dict[EngineId, str] = field(default_factory=dict)
    """Why engines that are not there any more are not."""
    functions: FunctionTable = field(default_factory=FunctionTable)
    scheduler: Scheduler = field(default_factory=Scheduler)
    next_engine_id: int = 0
    next_key: int = 0
    stopping: str = ""
    """Why the cluster is ending; "" while it is not."""
    late_replies: int = 0
    malformed: int = 0

    def take_key(self) -> RunKey:
        """A run key never used before."""
        self.next_key += 1
        return RunKey(self.next_key)

    def check(self) -> None:
        """Assert every invariant. O(everything); for tests and HPCVIEWS_DEBUG."""
        self.scheduler.check()
        assert self.scheduler.engines == self.engines
        assert {e.route: e for e in self.engines.values()} == self.engine_by_route
        uses: dict[bytes, int] = {}
        for engine in self.engines.values():
            for key, work in engine.in_flight.items():
                assert work.key == key and work.engine is engine
                assert work.phase in (WorkPhase.SENT, WorkPhase.RECALLED), work.phase
                assert work.targets is None or engine.id in work.targets
        for client in self.clients.values():
            for seq, work in client.works.items():
                assert work.seq == seq and work.client is client
                assert work.phase is not WorkPhase.ENDED, f"ended work {seq} is still waited for"
                if work.phase is not WorkPhase.QUEUED:
                    assert work.engine is not None and work.engine.in_flight.get(work.key) is work
        for work in requests.iterate_unfinished(self):
            if work.function:
                uses[work.function] = uses.get(work.function, 0) + 1
        for digest, entry in self.functions.entries.items():
            assert entry.uses == uses.pop(digest, 0), "function use count is off"
            assert entry.uses or entry.holders, "an unused function was kept"
            for engine in entry.engines:
                assert digest in engine.functions
        assert not uses, "a request names a function that is gone"
        for engine_set in self.sets.values():
            for engine_id in engine_set.engines:
                assert self.engines[engine_id].info.set_id == engine_set.id


# ---------------------------------------------------------------- events


def on_message(
    core: Core, out: Outbox, route: Route, role: str, message: m.Message, frames: Frames, now: float
) -> None:
    """A message of a peer. `role` is what its key allows: "client", "engine" or "any" (the ipc socket).

    Raises:
        ProtocolError: It must not send this, or not now; nothing has changed.
    """
    kind = type(message)
    client = core.clients.get(route)
    if client is not None:
        handle = _FROM_CLIENT.get(kind)
        if handle is not None:
            handle(core, out, client, message, frames, now)
            return
    engine = core.engine_by_route.get(route)
    if engine is not None:
        handle = _FROM_ENGINE.get(kind)
        if handle is not None:
            handle(core, out, engine, message, frames, now)
            return
    if kind is m.Probe:
        out.send(route, m.ProbeReply(core.identity.cluster, core.identity.generation))
    elif isinstance(message, m.ClientHello) and role != "engine" and engine is None:
        members.on_client_hello(core, out, route, message)
    elif isinstance(message, m.EngineHello) and role != "client" and client is None:
        members.on_engine_hello(core, out, route, message, now)
    elif client is None and engine is None and kind in _FROM_ENGINE:
        # An engine that was given up while its answer was under way; it will notice and say hello again.
        core.late_replies += 1
    else:
        who = "a client" if client else "an engine" if engine else f"a peer that has not said hello (key: {role})"
        raise ProtocolError(f"{kind.__name__} from {who}")


def on_disconnect(core: Core, out: Outbox, route: Route, why: str) -> None:
    """The connection of a peer is gone."""
    client = core.clients.get(route)
    if client is not None:
        members.on_client_lost(core, out, client)
    engine = core.engine_by_route.get(route)
    if engine is not None:
        members.on_engine_lost(core, out, engine, why)


def on_set_event(core: Core, out: Outbox, event: SetEvent) -> None:
    """Something happened to the processes of an engine set."""
    if isinstance(event, SetStarted):
        members.on_set_started(core, out, event)
    elif isinstance(event, SetExited):
        members.on_set_exited(core, out, event)
    elif isinstance(event, StopRequested):
        members.on_stop(core, out, event.why)


def on_schedule(core: Core, out: Outbox, now: float) -> None:
    """Place what can be placed. The shell calls it once a turn when it was asked for."""
    take_placement = core.scheduler.take_placement
    while (placement := take_placement()) is not None:
        requests.hand_out(core, out, *placement, now)


def on_tick(core: Core, out: Outbox, now: float) -> None:
    """Time passes while `core.scheduler.may_recall`: take work back from engines that are stuck."""
    chosen = core.scheduler.choose_recall(now)
    if chosen is not None:
        requests.recall(core, out, *chosen)


def _on_status_query(
    core: Core, out: Outbox, client: Client, message: m.StatusQuery, frames: Frames, now: float
) -> None:
    identity = core.identity
    engines = [
        m.EngineStatus(e.info, "busy" if e.in_flight else "idle", e.load, e.completed)
        for _, e in sorted(core.engines.items())
    ]
    out.send(
        client.route,
        m.Status(
            seq=message.seq,
            state=members.describe_state(core),
            host=identity.host,
            pid=identity.pid,
            version=identity.version,
            started=identity.started,
            endpoints=list(identity.endpoints),
            clients=len(core.clients),
            waiting_tasks=core.scheduler.waiting,
            malformed=core.malformed,
            engines=engines,
            sets=[s.info() for s in core.sets.values()],
        ),
    )


def _on_stop_cluster(
    core: Core, out: Outbox, client: Client, message: m.StopCluster, frames: Frames, now: float
) -> None:
    members.on_stop(core, out, "a client asked for it")


def _on_client_leave(
    core: Core, out: Outbox, client: Client, message: m.ClientLeave, frames: Frames, now: float
) -> None:
    members.on_client_leave(core, out, client)


def _on_engine_leave(
    core: Core, out: Outbox, engine: Engine, message: m.EngineLeave, frames: Frames, now: float
) -> None:
    members.on_engine_lost(core, out, engine, message.why or "it left")


def _on_function(core: Core, out: Outbox, client: Client, message: m.Function, frames: Frames, now: float) -> None:
    core.functions.add(client, message, frames)


def _on_forget_function(
    core: Core, out: Outbox, client: Client, message: m.ForgetFunction, frames: Frames, now: float
) -> None:
    core.functions.forget(out, client, Digest(message.digest))


_FROM_CLIENT: dict[type[m.Message], Callable[..., Any]] = {
    m.Task: requests.on_task,
    m.Request: requests.on_request,
    m.Abort: requests.on_abort,
    m.Function: _on_function,
    m.ForgetFunction: _on_forget_function,
    m.StatusQuery: _on_status_query,
    m.StopCluster: _on_stop_cluster,
    m.ClientLeave: _on_client_leave,
}
_FROM_ENGINE: dict[type[m.Message], Callable[..., Any]] = {
    m.Done: requests.on_done,
    m.RunOutput: requests.on_run_output,
    m.Withdrawn: requests.on_withdrawn,
    m.EngineLeave: _on_engine_leave,
}
