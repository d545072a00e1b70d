"""Engines that clients end, and start again: told or killed first, answered for when they are really gone.

An engine that is ended on purpose is *released* from its set, which goes on without it and is not degraded. When it is
the last one, the whole set ends. Others take its place as a new engine set, with its ids.
"""

from __future__ import annotations

import logging
import signal

from hpcviews.controller import members, tasks
from hpcviews.controller.core import Core
from hpcviews.controller.events import EndEngines, EndSets, EnginesEnded, Order, SetNotStarted, SetStarted, StartEngines
from hpcviews.controller.news import move_set, settle_set, tell_clients
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.signals import find_engines, locate
from hpcviews.controller.state import Client, Ending, EndingPhase, Engine, EngineSet, Frames, SetPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import EngineId, SetId
from hpcviews.wire import messages as m

log = logging.getLogger("hpcviews.controller.endings")

PAST_TENSE = {
    "stop": "was stopped by a client",
    "kill": "was killed by a client",
    "restart": "was restarted by a client",
}


def on_end_engines(core: Core, out: Outbox, client: Client, message: m.EndEngines, frames: Frames, now: float) -> None:
    """A client wants engines to end."""
    if message.how not in PAST_TENSE:
        raise ProtocolError(f"engines cannot be ended by {message.how!r}")
    engines = find_engines(core, message.targets)
    error = engines if isinstance(engines, m.ErrorInfo) else _find_objection(core, message.how, engines)
    if error is not None or isinstance(engines, m.ErrorInfo):
        out.send(client.route, m.Acknowledged(message.seq, error))
        return
    log.info("client %s: engines %s: %s", client.session, [engine.id for engine in engines], message.how)
    ending = Ending(client, message.seq, {engine.id for engine in engines}, set(), set())
    core.endings.append(ending)
    orders: list[Order] = []
    by_set: dict[SetId, list[Engine]] = {}
    for engine in engines:
        by_set.setdefault(SetId(engine.info.set_id), []).append(engine)
    for set_id, own in by_set.items():
        engine_set = core.sets.get(set_id)
        is_finalizing = engine_set is not None and engine_set.is_whole_world and len(own) == len(engine_set.ids)
        if engine_set is not None and not engine_set.is_over:
            orders += _end_in_set(core, out, ending, engine_set, own, message.how)
        for engine in own:
            engine.ending = PAST_TENSE[message.how]
            if message.how == "kill":
                out.send(engine.route, m.EngineSignal(signal.SIGKILL))
            else:
                out.send(engine.route, m.EngineStop(engine.ending, is_finalizing))
    # Last: answers may come at once, and find everything as it is to be.
    for order in orders:
        out.order(order)
    advance(core, out)


def _end_in_set(
    core: Core, out: Outbox, ending: Ending, engine_set: EngineSet, engines: list[Engine], how: str
) -> list[Order]:
    """What to order so that some engines of a set, or all, end; and what to start then."""
    ids = {engine.id for engine in engines}
    why = f"its engines {PAST_TENSE[how].replace('was', 'were')}"
    at_once = how == "kill"
    is_all = _is_all(engine_set, ids)
    if how == "restart":
        # With all that there are, those that were lost come back too.
        again = [i for i in engine_set.ids if i in ids or (is_all and i not in engine_set.released)]
        ending.starts.append((engine_set.id, tuple(again)))
    if is_all:
        ending.sets.add(engine_set.id)
        if engine_set.phase is not SetPhase.STOPPING:
            move_set(core, out, engine_set, SetPhase.STOPPING, why)
        return [EndSets((engine_set.id,), why, at_once)]
    ending.processes |= ids
    engine_set.released |= ids.intersection(engine_set.ids)
    tell_clients(core, out, m.SetChanged(engine_set.info()))
    settle_set(core, out, engine_set)
    return [EndEngines(locate(core, engines), why, at_once)]


def _is_all(engine_set: EngineSet, ids: set[EngineId]) -> bool:
    """Whether nothing of a set is left, or to come, without these engines."""
    if engine_set.phase is SetPhase.STARTING and len(engine_set.engines) < engine_set.n:
        return False
    return engine_set.engines <= ids | engine_set.released


def _find_objection(core: Core, how: str, engines: list[Engine]) -> m.ErrorInfo | None:
    """Why these engines cannot be restarted."""
    if how != "restart":
        return None
    if core.stopping:
        return m.ErrorInfo("UsageError", f"the cluster is stopping: {core.stopping}", "", True)
    ids = {engine.id for engine in engines}
    for engine in engines:
        engine_set = core.sets.get(SetId(engine.info.set_id))
        if engine_set is None:
            text = f"engine {engine.id} was not started by this cluster, so it cannot be started again: shut it down"
            return m.ErrorInfo("UsageError", text, "", True)
        if engine_set.phase is SetPhase.STOPPING:
            text = f"engine {engine.id} ends already, with its engine set: {engine_set.why}"
            return m.ErrorInfo("UsageError", text, "", True)
        if engine.ending:
            return m.ErrorInfo("UsageError", f"engine {engine.id} ends already: it {engine.ending}", "", True)
        if engine_set.is_world and not engine_set.engines <= ids | engine_set.released:
            every = ", ".join(map(str, sorted(engine_set.engines)))
            text = (
                f"engine {engine.id} is a rank of an MPI world, which cannot get a new rank: "
                f"restart all engines of its engine set together ({every})"
            )
            return m.ErrorInfo("UsageError", text, "", True)
    return None


def on_engines_ended(core: Core, out: Outbox, event: EnginesEnded) -> None:
    """The processes of these engines are gone, or cannot be reached."""
    for engine_id in event.ids:
        for ending in core.endings:
            ending.processes.discard(engine_id)
            engine = core.engines.get(engine_id)
            if event.why and engine is not None and engine_id in ending.engines:
                # Its connection may stand; but nobody is to wait for it any longer.
                ending.note_error("EngineError", f"engine {engine_id} does not end: {event.why}")
                engine.ending = f"{engine.ending} and does not end: {event.why}"
                members.on_engine_lost(core, out, engine, engine.ending)


def on_set_answer(core: Core, event: SetStarted | SetNotStarted) -> None:
    """What was ordered to take the place of engines has been started, or cannot be."""
    for ending in core.endings:
        if event.ids in ending.starting:
            ending.starting.discard(event.ids)
            if isinstance(event, SetNotStarted):
                ending.note_error(event.error, event.why)


def advance(core: Core, out: Outbox) -> None:
    """Engines, processes or sets are gone, or others were started: go on with whatever has waited for that."""
    for ending in core.endings:
        ending.engines = {i for i in ending.engines if i in core.engines and core.engines[i].ending}
        ending.sets = {i for i in ending.sets if not core.sets[i].is_over}
    for ending in list(core.endings):
        if ending.phase is not EndingPhase.ENDING or ending.is_waiting:
            continue
        if ending.starts and not core.stopping:
            ending.move(EndingPhase.STARTING)
            ending.starting = {ids for _, ids in ending.starts}
            starts, ending.starts = ending.starts, []
            for like, ids in starts:
                out.order(StartEngines(like, ids))  # may be answered at once, and come here again
        elif ending.starts:
            ending.note_error("UsageError", f"the engines are gone, and the cluster is stopping: {core.stopping}")
            ending.starts = []
    for ending in list(core.endings):
        if ending.phase is not EndingPhase.OVER and not (ending.is_waiting or ending.starting or ending.starts):
            _answer(core, out, ending)


def _answer(core: Core, out: Outbox, ending: Ending) -> None:
    ending.move(EndingPhase.OVER)
    core.endings.remove(ending)
    tasks.end_stranded(core, out)  # what waited for engines that have not been started
    if ending.client.is_listening:
        error = m.ErrorInfo(ending.error, ending.why, "", True) if ending.error else None
        out.send(ending.client.route, m.Acknowledged(ending.seq, error))
