"""Who belongs to the cluster: clients, engines and engine sets come, go and are lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from hpcviews.controller import requests, sharing, tasks
from hpcviews.controller.core import Core
from hpcviews.controller.events import EndSets, SetExited, SetStarted
from hpcviews.controller.news import move_set, settle_set, tell_clients
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import Client, Engine, EngineSet, Route, SetPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import EngineId, Session, SetId
from hpcviews.wire import messages as m

log = logging.getLogger("hpcviews.controller.members")


# ---------------------------------------------------------------- clients


def on_client_hello(core: Core, out: Outbox, route: Route, hello: m.ClientHello) -> None:
    """A client connects, or connects again."""
    refusal = _compare_versions(core, "this client", hello.version, hello.python)
    if refusal:
        log.warning("client on %s (pid %d) refused: %s", hello.host, hello.pid, refusal)
        out.send(route, m.Refused("VersionMismatch", refusal))
        return
    if route in core.clients:
        raise ProtocolError("a second hello on one connection")
    core.add_client(Client(route, Session(hello.session), hello.host, hello.pid, room=hello.room, party=hello.party))
    log.info("client %s: connected from %s, pid %d", hello.session, hello.host, hello.pid)
    identity = core.identity
    engines = [engine.info for _, engine in sorted(core.engines.items())]
    sets = [engine_set.info() for engine_set in core.sets.values()]
    out.send(route, m.Welcome(identity.cluster, identity.generation, engines, sets, identity.room))


def on_client_leave(core: Core, out: Outbox, client: Client) -> None:
    """A client closes; what it has asked for runs, and the results are kept."""
    log.info("client %s: left, %d requests go on", client.session, len(client.works))
    _forget_client(core, out, client)


def on_client_lost(core: Core, out: Outbox, client: Client) -> None:
    """A client's connection is gone without a word."""
    log.info("client %s: lost, %d requests go on", client.session, len(client.works))
    _forget_client(core, out, client)


def _forget_client(core: Core, out: Outbox, client: Client) -> None:
    requests.drop_client(client)
    core.functions.forget_all_of(out, client)
    sharing.on_client_gone(core, out, client)
    del core.clients[client.route]
    core.forget_if_over(client)


# ---------------------------------------------------------------- engines


def on_engine_hello(core: Core, out: Outbox, route: Route, hello: m.EngineHello, now: float) -> None:
    """An engine registers, or connects again."""
    refusal = _compare_versions(core, "this engine", hello.version, hello.python)
    error = "VersionMismatch" if refusal else "MpiMismatch"
    refusal = refusal or hello.failure
    engine_set = core.sets.get(SetId(hello.info.set_id))
    if refusal:
        log.error("engine on %s (pid %d) refused: %s", hello.info.host, hello.info.pid, refusal)
        out.send(route, m.Refused(error, refusal))
        if engine_set is not None:
            _give_up_set(core, out, engine_set, refusal, error)
        return
    if core.stopping or (engine_set is not None and engine_set.phase in (SetPhase.STOPPING, SetPhase.FAILED)):
        out.send(route, m.EngineStop(core.stopping or "its engine set ends", False))
        return
    if engine_set is not None and _find_wanted_id(engine_set, hello.info) in engine_set.released:
        out.send(route, m.EngineStop("a client has ended this engine", False))  # it had lost its connection before
        return
    if route in core.engine_by_route:
        raise ProtocolError("a second hello on one connection")
    for other in core.engines.values() if hello.info.id >= 0 else ():
        if other.info.uuid == hello.info.uuid:
            # It reconnected before we noticed that its old connection is gone.
            on_engine_lost(core, out, other, "connected anew")
            break
    engine_id = _choose_engine_id(core, engine_set, hello.info)
    info = msgspec.structs.replace(hello.info, id=engine_id)
    engine = Engine(engine_id, route, info, party=hello.party)
    core.engines[engine_id] = engine
    core.engine_by_route[route] = engine
    sharing.on_engine_joined(core, engine)
    before = core.gone.pop(engine_id, None)
    core.scheduler.add_engine(engine)
    if before is not None and before.info.uuid != info.uuid:
        tasks.readmit(core, engine_id)
    log.info("engine %d: registered from %s, pid %d, rank %s", engine_id, info.host, info.pid, info.rank)
    out.send(route, m.EngineWelcome(engine_id))
    tell_clients(core, out, m.EnginesJoined([info]))
    if engine_set is not None:
        engine_set.engines.add(engine_id)
        settle_set(core, out, engine_set)
        tasks.end_stranded(core, out)  # who waited for an engine of it that is not among these waits no more
    out.ask_for_scheduling()


def on_engine_lost(core: Core, out: Outbox, engine: Engine, why: str) -> None:
    """An engine's connection is gone, or it left: what it held is tried again or fails."""
    why = engine.ending or why
    del core.engines[engine.id]
    del core.engine_by_route[engine.route]
    core.remember_gone(engine, why)
    core.scheduler.remove_engine(engine)
    held = engine.load
    requeued = requests.lose_engine(core, out, engine, why)
    core.functions.engine_gone(engine)
    sharing.on_engine_gone(core, out, engine)
    level = logging.INFO if core.stopping or engine.ending else logging.WARNING
    log.log(level, "engine %d: %s; %d requests failed, %d requeued", engine.id, why, held - requeued, requeued)
    tell_clients(core, out, m.EnginesLeft([m.EngineLeft(engine.id, why)]))
    engine_set = core.sets.get(SetId(engine.info.set_id))
    if engine_set is not None:
        engine_set.engines.discard(engine.id)
        if engine.id not in engine_set.released and engine_set.phase in (SetPhase.STARTING, SetPhase.READY):
            move_set(core, out, engine_set, SetPhase.DEGRADED, f"engine {engine.id} was lost: {why}")
    tasks.end_stranded(core, out)


def _choose_engine_id(core: Core, engine_set: EngineSet | None, info: m.EngineInfo) -> EngineId:
    wanted = _find_wanted_id(engine_set, info)
    if wanted is not None and wanted not in core.engines and wanted < core.next_engine_id:
        return wanted
    core.next_engine_id += 1
    return EngineId(core.next_engine_id - 1)


def _find_wanted_id(engine_set: EngineSet | None, info: m.EngineInfo) -> EngineId | None:
    """The id it had, or the one for its place in its set."""
    if info.id >= 0:
        return EngineId(info.id)
    if engine_set is not None and 0 <= info.index < len(engine_set.ids):
        return engine_set.ids[info.index]
    return None


# ---------------------------------------------------------------- engine sets


def on_set_started(core: Core, out: Outbox, event: SetStarted) -> None:
    """The process that starts a set runs."""
    ids: Sequence[EngineId] = event.ids
    if not ids:
        # Ids follow the index inside the set, so engine 3 of the first set is rank 3 whoever registers first.
        ids = [EngineId(core.next_engine_id + index) for index in range(event.n)]
        core.next_engine_id += event.n
    engine_set = EngineSet(event.set_id, event.launcher, ids, event.is_world, event.log)
    core.sets[event.set_id] = engine_set
    log.info("engine set %d: %d engines by %s", event.set_id, event.n, event.launcher)
    tell_clients(core, out, m.SetChanged(engine_set.info()))


def on_set_exited(core: Core, out: Outbox, event: SetExited) -> None:
    """The process of a set, and everything it started, is gone."""
    engine_set = core.sets[event.set_id]
    for engine_id in sorted(engine_set.engines):
        on_engine_lost(core, out, core.engines[engine_id], "died with the process that started it")
    if engine_set.phase is SetPhase.STOPPING:
        # A set that was given up is not "ended as asked": it keeps the error it was given up for.
        to = SetPhase.FAILED if engine_set.error else SetPhase.ENDED
        move_set(core, out, engine_set, to, engine_set.why, engine_set.error)
    else:
        move_set(core, out, engine_set, SetPhase.FAILED, event.why, event.error)
    tasks.end_stranded(core, out)
    _finish_if_over(core, out)


def _give_up_set(core: Core, out: Outbox, engine_set: EngineSet, why: str, error: str) -> None:
    """One of its engines can never serve, so the set cannot be what was asked for: end it."""
    if engine_set.phase is SetPhase.STOPPING or engine_set.is_over:
        return
    move_set(core, out, engine_set, SetPhase.STOPPING, why, error)
    for engine_id in sorted(engine_set.engines):
        out.send(core.engines[engine_id].route, m.EngineStop(why, False))
    out.order(EndSets((engine_set.id,), why))


def describe_state(core: Core) -> str:
    """The cluster's state in one word."""
    if core.stopping:
        return "stopping"
    phases = {engine_set.phase for engine_set in core.sets.values()}
    for phase in (SetPhase.STARTING, SetPhase.FAILED, SetPhase.DEGRADED, SetPhase.STOPPING):
        if phase in phases:
            return "running" if phase is SetPhase.STOPPING else phase.value
    return "running"


# ---------------------------------------------------------------- the end


def on_stop(core: Core, out: Outbox, why: str) -> None:
    """End everything: the engines over the wire, their processes by order, then this process."""
    if core.stopping:
        return
    core.stopping = why
    log.info("stopping: %s", why)
    ending = []
    for engine_set in core.sets.values():
        if engine_set.phase is not SetPhase.STOPPING and not engine_set.is_over:
            move_set(core, out, engine_set, SetPhase.STOPPING, why)
        if not engine_set.is_over:
            ending.append(engine_set.id)
    for engine in core.engines.values():
        owner = core.sets.get(SetId(engine.info.set_id))
        out.send(engine.route, m.EngineStop(why, owner is not None and owner.is_whole_world))
    tasks.end_stranded(core, out)
    if ending:
        out.order(EndSets(tuple(ending), why))
    _finish_if_over(core, out)


def _finish_if_over(core: Core, out: Outbox) -> None:
    if core.stopping and all(engine_set.is_over for engine_set in core.sets.values()):
        out.finish()


def _compare_versions(core: Core, who: str, version: str, python: str) -> str:
    """Why a peer's versions do not fit; "" if they do."""
    ours = core.identity
    if version != ours.version:
        return (
            f"{who} has hpcviews {version}, the controller of cluster {ours.cluster!r} has {ours.version}; "
            "install the same version on both sides, or start the cluster from this environment"
        )
    if python != ours.python:
        return (
            f"{who} runs Python {python}, the controller of cluster {ours.cluster!r} runs Python {ours.python}; "
            "functions cannot travel between Python versions, so start the cluster from this environment"
        )
    return ""
