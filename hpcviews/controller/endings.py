"""What clients do to engines while these run: signals, interrupts; and engines that are ended or restarted on purpose.

An engine that is ended on purpose is not lost: its set has one engine less, and is not degraded by it. Where all
engines of a set go, the set goes with them, and its launcher's process. Who asked is answered when everything is gone;
for a restart, when the engines that stand in have been ordered from their launcher and it runs.
"""

from __future__ import annotations

import logging

from hpcviews.controller import answers, requests
from hpcviews.controller.core import Core
from hpcviews.controller.events import EndSets, KillEngines, StartEngines
from hpcviews.controller.news import move_set
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import Client, Ending, Engine, EngineSet, Frames, SetPhase, WorkPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import EngineId, SetId
from hpcviews.wire import messages as m

log = logging.getLogger("hpcviews.controller.endings")

WAYS = ("stop", "kill", "restart")
SIGNAL_MAX = 64
SIGKILL = 9
"""Linux' number; the core imports nothing that asks the system."""

# ---------------------------------------------------------------- signals and interrupts


def on_signal_engines(
    core: Core, out: Outbox, client: Client, message: m.SignalEngines, frames: Frames, now: float
) -> None:
    """Hand a signal on."""
    if not 1 <= message.signum <= SIGNAL_MAX:
        raise ProtocolError(f"signal {message.signum}")
    engines = _find_engines(core, out, client, message.seq, message.targets)
    if engines is None:
        return
    for engine in engines:
        out.send(engine.route, m.EngineSignal(message.signum))
    out.send(client.route, m.Acknowledged(message.seq))


def on_interrupt_requests(
    core: Core, out: Outbox, client: Client, message: m.InterruptRequests, frames: Frames, now: float
) -> None:
    """Interrupt requests where they run, and withdraw them where they do not; none of them is tried again."""
    handed_out = []
    for work in requests.find_works(core, client, message.seqs):
        work.is_aborting = True
        if work.phase in (WorkPhase.WAITING, WorkPhase.QUEUED):
            answers.fail(core, out, work, "TaskAborted", "withdrawn before it started")
        else:
            handed_out.append(work)
    requests.recall(out, [work for work in handed_out if work.phase is WorkPhase.SENT])
    keys: dict[Engine, list[int]] = {}
    for work in handed_out:
        assert work.engine is not None
        keys.setdefault(work.engine, []).append(work.key)
    for engine, own in keys.items():
        # Behind the Withdraw: what had not started has been given back by then.
        out.send(engine.route, m.InterruptRuns(own))


# ---------------------------------------------------------------- ending engines


def on_end_engines(core: Core, out: Outbox, client: Client, message: m.EndEngines, frames: Frames, now: float) -> None:
    """End engines, politely or not, and maybe start others in their place."""
    if message.how not in WAYS:
        raise ProtocolError(f"engines are ended by {', '.join(WAYS)}, not {message.how!r}")
    engines = _find_engines(core, out, client, message.seq, message.targets)
    if engines is None:
        return
    by_set: dict[SetId, list[Engine]] = {}
    for engine in engines:
        by_set.setdefault(SetId(engine.info.set_id), []).append(engine)
    if message.how == "restart" and (refusal := _find_obstacle(core, by_set)):
        out.send(client.route, m.Acknowledged(message.seq, m.ErrorInfo("UsageError", refusal, "", True)))
        return
    ending = Ending(client, message.seq, {})
    for set_id, own in by_set.items():
        engine_set = core.sets.get(set_id)
        ids = tuple(engine.id for engine in own)
        is_whole = engine_set is not None and len(own) == len(engine_set.engines)
        if message.how == "restart":
            ending.restart[set_id] = ids
        for engine in own:
            engine.ending = "was killed by a client" if message.how == "kill" else "was stopped by a client"
            ending.engines.add(engine.id)
        log.info("engines %s: %s, asked by client %s", list(ids), message.how, client.session)
        _end(out, engine_set, own, message.how, is_whole)
        if is_whole and engine_set is not None:
            _end_set(core, out, engine_set, ending)
    if ending.waits_for:
        core.endings.append(ending)
    else:
        out.send(client.route, m.Acknowledged(message.seq))


def _end(out: Outbox, engine_set: EngineSet | None, engines: list[Engine], how: str, is_whole: bool) -> None:
    if how == "kill":
        for engine in engines:
            out.send(engine.route, m.EngineSignal(SIGKILL))
        if engine_set is not None:
            # Whoever is stopped, or deaf, does not hear it over the wire.
            out.order(KillEngines(engine_set.id, tuple(engine.info.pid for engine in engines)))
        return
    # MPI_Finalize is collective: with a rank missing the others would wait for it.
    finalize = engine_set is not None and engine_set.is_world and is_whole and len(engines) == engine_set.n
    for engine in engines:
        out.send(engine.route, m.EngineStop(engine.ending, finalize))


def _end_set(core: Core, out: Outbox, engine_set: EngineSet, ending: Ending) -> None:
    if engine_set.is_over:
        return
    ending.sets.add(engine_set.id)
    if engine_set.phase is not SetPhase.STOPPING:
        move_set(core, out, engine_set, SetPhase.STOPPING, "all its engines were ended by a client")
        out.order(EndSets((engine_set.id,), engine_set.why))


def _find_obstacle(core: Core, by_set: dict[SetId, list[Engine]]) -> str:
    """Why these engines cannot be restarted; "" if they can."""
    for set_id, own in by_set.items():
        engine_set = core.sets.get(set_id)
        if engine_set is None or not engine_set.launcher:
            return f"engine {own[0].id} was not started by a launcher of this cluster, so it cannot be restarted"
        if engine_set.is_world and len(own) < len(engine_set.engines):
            members = ", ".join(map(str, sorted(engine_set.engines)[: answers.IDS_SHOWN_MAX]))
            return (
                f"engine {own[0].id} is a rank of an MPI world, whose ranks can only be restarted together: "
                f"name all of them ({members})"
            )
    return ""


def _find_engines(core: Core, out: Outbox, client: Client, seq: int, targets: list[int]) -> list[Engine] | None:
    """The engines, each once; None if one is not there, and then the client has been told."""
    engines = []
    for target in dict.fromkeys(targets):
        engine = core.engines.get(EngineId(target))
        if engine is None:
            name, text = answers.describe_missing(core, EngineId(target))
            out.send(client.route, m.Acknowledged(seq, m.ErrorInfo(name, text, "", True)))
            return None
        engines.append(engine)
    return engines


# ---------------------------------------------------------------- and when they are gone


def on_engine_gone(core: Core, out: Outbox, engine_id: EngineId) -> None:
    """An engine is not there any more."""
    for ending in list(core.endings):
        if engine_id in ending.engines:
            ending.engines.discard(engine_id)
            _go_on(core, out, ending)


def on_set_gone(core: Core, out: Outbox, set_id: SetId) -> None:
    """The processes of a set are not there any more."""
    for ending in list(core.endings):
        if set_id in ending.sets:
            ending.sets.discard(set_id)
            _go_on(core, out, ending)


def on_started(core: Core, out: Outbox, ids: tuple[EngineId, ...], why_not: str) -> None:
    """Engines that stand in for others are being started; or cannot be, for a reason."""
    for ending in list(core.endings):
        if ids in ending.starts:
            ending.starts.discard(ids)
            ending.error = ending.error or why_not
            _go_on(core, out, ending)


def forget_client(core: Core, client: Client) -> None:
    """Nobody waits for the answer any more; what was asked for goes on."""
    for ending in core.endings:
        if ending.client is client:
            ending.seq = -1


def _go_on(core: Core, out: Outbox, ending: Ending) -> None:
    if not ending.engines and not ending.sets and ending.restart:
        restart, ending.restart = ending.restart, {}
        if not core.stopping:
            ending.starts.update(restart.values())
            for like, ids in restart.items():
                out.order(StartEngines(like, ids))  # it may be answered at once
    if ending.waits_for or ending not in core.endings:
        return
    core.endings.remove(ending)
    if ending.seq >= 0 and ending.client.is_listening:
        error = m.ErrorInfo("LaunchError", ending.error, "", True) if ending.error else None
        out.send(ending.client.route, m.Acknowledged(ending.seq, error))
