"""What happens for which event: the table from messages and events to the functions that decide.

What clients ask for is in requests.py, who comes and goes in members.py, whom clients end in endings.py and signal in
signals.py, what becomes of tasks before an engine has them in tasks.py, which engine that is in scheduler.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcviews.controller import endings, inquiries, members, requests, sharing, signals, tasks
from hpcviews.controller.core import Core
from hpcviews.controller.events import (
    ArchiveAnswer,
    ArchiveFailed,
    ArchiveWrote,
    EnginesEnded,
    Event,
    SetExited,
    SetNotStarted,
    SetStarted,
    StopRequested,
)
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import Client, Engine, Frames, Route
from hpcviews.errors import ProtocolError
from hpcviews.ids import Digest
from hpcviews.wire import messages as m


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
            if core.dependencies.verdicts:
                tasks.settle(core, out)
            return
    engine = core.engine_by_route.get(route)
    if engine is not None:
        handle = _FROM_ENGINE.get(kind)
        if handle is not None:
            handle(core, out, engine, message, frames, now)
            if core.dependencies.verdicts:
                tasks.settle(core, out)
            return
    if kind is m.Probe:
        out.send(route, m.ProbeReply(core.identity.cluster, core.identity.generation))
    elif isinstance(message, m.ClientHello) and role != "engine" and engine is None:
        members.on_client_hello(core, out, route, message)
    elif isinstance(message, m.EngineHello) and role != "client" and client is None:
        members.on_engine_hello(core, out, route, message, now)
        endings.advance(core, out)  # it may have connected anew, before its old connection was known to be gone
        tasks.settle(core, out)
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
        # Engines that are told to end close their connections: nothing was killed, and the log must not say so.
        members.on_engine_lost(core, out, engine, "ended with the cluster" if core.stopping else why)
        endings.advance(core, out)
    tasks.settle(core, out)


def on_event(core: Core, out: Outbox, event: Event) -> None:
    """Something happened that no peer said: to the processes of an engine set, in the archive, to the owner."""
    if isinstance(event, SetStarted):
        members.on_set_started(core, out, event)
    elif isinstance(event, SetExited):
        members.on_set_exited(core, out, event)
    elif isinstance(event, EnginesEnded):
        endings.on_engines_ended(core, out, event)
    elif isinstance(event, StopRequested):
        members.on_stop(core, out, event.why)
    elif isinstance(event, ArchiveWrote):
        core.finished.on_kept(event.nbytes, event.dropped)
    elif isinstance(event, ArchiveFailed):
        core.finished.on_archive_failed()
    elif isinstance(event, ArchiveAnswer):
        core.finished.on_answer(core, out, event)
    if isinstance(event, SetStarted | SetNotStarted):
        endings.on_set_answer(core, event)
    endings.advance(core, out)
    tasks.settle(core, out)


def on_schedule(core: Core, out: Outbox, now: float) -> None:
    """Place what can be placed. The shell calls it once a turn when it was asked for."""
    take_placement = core.scheduler.take_placement
    while (placement := take_placement()) is not None:
        requests.hand_out(core, out, *placement, now)


def on_tick(core: Core, out: Outbox, now: float) -> None:
    """Time passes: what has waited too long ends, and what waits behind a stuck engine is taken back from it."""
    inquiries.give_up(core, out, now)
    late = tasks.expire(core, out, now)
    tasks.settle(core, out)
    requests.recall(out, late)
    requests.recall(out, core.scheduler.choose_recall(now))


def _on_status_query(
    core: Core, out: Outbox, client: Client, message: m.StatusQuery, frames: Frames, now: float
) -> None:
    identity = core.identity
    engines = [
        m.EngineStatus(e.info, "busy" if e.in_flight else "idle", "", e.load, e.completed)
        for e in core.engines.values()
    ]
    engines += [m.EngineStatus(gone.info, "lost", gone.why, 0, gone.completed) for gone in core.gone.values()]
    engines.sort(key=lambda status: status.info.id)
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
            waiting_tasks=core.scheduler.waiting + core.dependencies.waiting,
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
    endings.advance(core, out)


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
    m.Mapped: sharing.on_mapped,
    m.Function: _on_function,
    m.ForgetFunction: _on_forget_function,
    m.SignalEngines: signals.on_signal_engines,
    m.InterruptRequests: signals.on_interrupt_requests,
    m.EndEngines: endings.on_end_engines,
    m.Follow: inquiries.on_follow,
    m.Resubmit: inquiries.on_resubmit,
    m.Purge: inquiries.on_purge,
    m.RecordQuery: inquiries.on_record_query,
    m.QueueQuery: inquiries.on_queue_query,
    m.StatusQuery: _on_status_query,
    m.StopCluster: _on_stop_cluster,
    m.ClientLeave: _on_client_leave,
}
_FROM_ENGINE: dict[type[m.Message], Callable[..., Any]] = {
    m.Done: requests.on_done,
    m.RunOutput: requests.on_run_output,
    m.RunPublished: requests.on_run_published,
    m.Withdrawn: requests.on_withdrawn,
    m.EngineLeave: _on_engine_leave,
}
