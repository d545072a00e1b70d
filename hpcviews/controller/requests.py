"""What clients want run: from the request to its result. Every request ends, in exactly one Result."""

from __future__ import annotations

import heapq

from hpcviews.controller.core import Core
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import NO_KEY, Client, Engine, Frames, Work, WorkPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import Digest, EngineId, RunKey
from hpcviews.wire import messages as m

SEQ_MAX = 2**62
"""msgpack integers end at 2**64: an answer to a request beyond it could not be written."""

UNIX_TIME_MAX_S = 253_402_300_800.0
"""The year 10000, where Python's datetime ends."""

IDS_SHOWN_MAX = 20
"""How many engine ids an error message lists; it may go out once for each of thousands of targets."""

# ---------------------------------------------------------------- from clients


def on_request(core: Core, out: Outbox, client: Client, message: m.Request, frames: Frames, now: float) -> None:
    """Queue a request on all its engines, in one step: two clients' requests have the same order on every engine."""
    _check_numbers(client, message.seq, len(message.targets))
    digest = Digest(message.function)
    for offset, target in enumerate(message.targets):
        seq = message.seq + offset
        engine = core.engines.get(EngineId(target))
        if engine is None:
            _refuse(core, out, client, seq, target)
            continue
        if digest and not core.functions.use(digest):
            _refuse_unknown_function(out, client, seq)
            continue
        work = Work(client, seq, message.op, digest, message.data, frames, False, None, 0, message.label, now)
        client.works[seq] = work
        hand_out(core, out, work, engine, now)


def on_task(core: Core, out: Outbox, client: Client, message: m.Task, frames: Frames, now: float) -> None:
    """Queue a task for the scheduler."""
    _check_numbers(client, message.seq, 1)
    digest = Digest(message.function)
    if digest and not core.functions.use(digest):
        _refuse_unknown_function(out, client, message.seq)
        return
    targets = None if message.targets is None else frozenset(map(EngineId, message.targets))
    work = Work(
        client,
        message.seq,
        message.op,
        digest,
        message.data,
        frames,
        True,
        targets,
        message.retries,
        message.label,
        now,
    )
    client.works[message.seq] = work
    core.scheduler.put(work)
    if core.stopping:
        fail(core, out, work, "TaskAborted", f"the cluster is stopping: {core.stopping}")
        return
    if not core.engines or targets is not None:
        end_stranded(core, out)
    out.ask_for_scheduling()


def on_abort(core: Core, out: Outbox, client: Client, message: m.Abort, frames: Frames, now: float) -> None:
    """End requests that have not started; what an engine holds is asked back first."""
    handed_out: list[Work] = []
    for seq in message.seqs:
        work = client.works.get(seq)
        if work is None:
            continue
        work.is_aborting = True
        if work.phase is WorkPhase.QUEUED:
            fail(core, out, work, "TaskAborted", "withdrawn before it started")
        elif work.phase is WorkPhase.SENT:
            handed_out.append(work)
    recall(out, handed_out)


# ---------------------------------------------------------------- from engines


def on_done(core: Core, out: Outbox, engine: Engine, message: m.Done, frames: Frames, now: float) -> None:
    """An attempt ended."""
    # Written so that NaN is refused too: it would spoil the measured run time, which int() of credit stumbles over.
    if not (0.0 <= message.started < UNIX_TIME_MAX_S and 0.0 <= message.completed < UNIX_TIME_MAX_S):
        raise ProtocolError(f"an attempt that ran from {message.started} to {message.completed}")
    work = engine.take(RunKey(message.key))
    if work is None:
        core.late_replies += 1
        return
    engine.completed += 1
    engine.moved_at = now
    scheduler = core.scheduler
    if work.is_task:
        scheduler.learn(engine, message.completed - message.started)
    scheduler.update_load(engine)
    out.ask_for_scheduling()
    if message.error is not None and work.is_task and work.retries > 0 and not work.is_aborting:
        retry(core, out, work)
        return
    result = m.Result(
        message.data, message.frames, work.seq, engine.id, message.started, message.completed, message.error
    )
    _end(core, out, work, result, frames)


def on_run_output(core: Core, out: Outbox, engine: Engine, message: m.RunOutput, frames: Frames, now: float) -> None:
    """Text that a running request wrote."""
    work = engine.in_flight.get(RunKey(message.key))
    if work is None:
        core.late_replies += 1
    elif work.client.is_listening:
        out.send(work.client.route, m.Output(work.seq, engine.id, message.stream, message.text))


def on_run_published(
    core: Core, out: Outbox, engine: Engine, message: m.RunPublished, frames: Frames, now: float
) -> None:
    """Something that a running request displayed, or data that it published."""
    work = engine.in_flight.get(RunKey(message.key))
    if work is None:
        core.late_replies += 1
    elif work.client.is_listening:
        published = m.Published(message.data, message.frames, work.seq, engine.id, message.kind)
        out.send(work.client.route, published, frames)


def on_withdrawn(core: Core, out: Outbox, engine: Engine, message: m.Withdrawn, frames: Frames, now: float) -> None:
    """An engine gave attempts back, or says that they have started."""
    for number in message.keys:
        held = engine.in_flight.get(RunKey(number))
        if held is not None and held.phase is not WorkPhase.RECALLED:
            # A request is for this engine alone; queued again, it would run on any.
            raise ProtocolError(f"attempt {number} was given back unasked")
    for number in message.keys:
        work = engine.take(RunKey(number))
        if work is None:
            core.late_replies += 1
        elif work.is_aborting:
            fail(core, out, work, "TaskAborted", "withdrawn before it started")
        else:
            # Also when its client has left: what that one asked for runs.
            _queue_again(core, work, in_front=True)
    for number in message.refused:
        work = engine.in_flight.get(RunKey(number))
        if work is not None and work.phase is WorkPhase.RECALLED:
            work.move(WorkPhase.SENT)
    engine.moved_at = now
    core.scheduler.update_load(engine)
    out.ask_for_scheduling()


# ---------------------------------------------------------------- moves


def hand_out(core: Core, out: Outbox, work: Work, engine: Engine, now: float) -> None:
    """Send a request or task to its engine."""
    if work.function:
        core.functions.provide(out, engine, work.function)
    if not engine.in_flight:
        engine.moved_at = now
    key = core.take_key()
    work.move(WorkPhase.SENT)
    work.engine, work.key = engine, key
    engine.hold(work)
    out.send(engine.route, m.Run(work.data, len(work.frames), key, work.op, work.function), work.frames)
    core.scheduler.update_load(engine)


def recall(out: Outbox, works: list[Work]) -> None:
    """Ask works back from their engines, each engine once; those that have started there will be refused."""
    asked: dict[Engine, list[int]] = {}
    for work in works:
        assert work.engine is not None
        work.move(WorkPhase.RECALLED)
        asked.setdefault(work.engine, []).append(work.key)
    for engine, keys in asked.items():
        out.send(engine.route, m.Withdraw(keys))


def retry(core: Core, out: Outbox, work: Work) -> None:
    """Queue a task again after its attempt failed; it is no longer in flight."""
    assert work.engine is not None
    work.retries -= 1
    if work.tried is None:
        work.tried = set()
    work.tried.add(work.engine.id)
    _queue_again(core, work, in_front=True)
    out.ask_for_scheduling()


def fail(core: Core, out: Outbox, work: Work, error: str, text: str) -> None:
    """End a request with an error of ours."""
    engine_id = work.engine.id if work.engine is not None and work.phase is not WorkPhase.QUEUED else -1
    if work.phase is WorkPhase.QUEUED:
        core.scheduler.drop(work)
    _end(core, out, work, _failure(work.seq, engine_id, error, text))


def lose_engine(core: Core, out: Outbox, engine: Engine, why: str) -> int:
    """What a lost engine held: tried again where allowed, else failed. Returns how many were requeued."""
    requeued = 0
    for work in engine.take_all():
        if work.is_task and work.retries > 0 and not work.is_aborting:
            retry(core, out, work)
            requeued += 1
        else:
            hint = f"`hpcviews logs {core.identity.cluster}` may tell why"
            fail(core, out, work, "EngineError", f"engine {engine.id} {why} before it answered; {hint}")
    return requeued


def drop_client(core: Core, out: Outbox, client: Client, keep_running: bool) -> None:
    """A client is gone. Unless it left politely, what it queued is dropped and what has not started is asked back."""
    client.is_listening = False
    handed_out: list[Work] = []
    for work in [] if keep_running else list(client.works.values()):
        work.is_aborting = True
        if work.phase is WorkPhase.QUEUED:
            fail(core, out, work, "TaskAborted", "its client is gone")
        elif work.phase is WorkPhase.SENT:
            handed_out.append(work)
    recall(out, handed_out)


def end_stranded(core: Core, out: Outbox) -> None:
    """Fail the tasks that no engine will ever run: nothing waits for ever for engines that cannot come."""
    is_more_to_come = any(s.phase.value == "starting" for s in core.sets.values()) or any(
        ending.restart or ending.starts for ending in core.endings
    )
    if is_more_to_come and not core.stopping:
        return
    for work in core.scheduler.take_stranded():
        if work.targets is None:
            told = ("NoEnginesRegistered", _describe_no_engines(core))
        elif not work.targets:
            told = ("NoSuchEngine", "the list of engines that may run this task is empty")
        else:
            told = describe_missing(core, min(work.targets))
        _end(core, out, work, _failure(work.seq, -1, *told))


def _check_numbers(client: Client, seq: int, count: int) -> None:
    if not 0 <= seq <= SEQ_MAX - count:
        raise ProtocolError(f"{count} requests numbered from {seq}")
    if not client.works.keys().isdisjoint(range(seq, seq + count)):
        raise ProtocolError(f"requests numbered from {seq}: a number is under way already")


def _queue_again(core: Core, work: Work, in_front: bool) -> None:
    work.move(WorkPhase.QUEUED)
    work.engine, work.key = None, NO_KEY
    core.scheduler.put(work, in_front)


def _end(core: Core, out: Outbox, work: Work, result: m.Result, frames: Frames | None = None) -> None:
    """The one place where a request ends: whoever waits for it is told."""
    work.move(WorkPhase.ENDED)
    client = work.client
    client.works.pop(work.seq, None)
    if work.function:
        core.functions.unuse(out, work.function)
    if client.is_listening:
        out.send(client.route, result, frames)
    # An ended task may stay in its queue until its turn comes; its payload must not.
    work.data, work.frames = b"", []


def _refuse(core: Core, out: Outbox, client: Client, seq: int, target: int) -> None:
    out.send(client.route, _failure(seq, target, *describe_missing(core, EngineId(target))))


def _refuse_unknown_function(out: Outbox, client: Client, seq: int) -> None:
    text = "the request names a function that was not sent (a bug in the client)"
    out.send(client.route, _failure(seq, -1, "ProtocolError", text))


def describe_missing(core: Core, engine_id: EngineId) -> tuple[str, str]:
    """Name and text of the error for a target that is not there."""
    if engine_id in core.gone:
        return "EngineError", f"engine {engine_id} {core.gone[engine_id].why}"
    if not core.engines:
        return "NoSuchEngine", f"no engine {engine_id}; engines now: none"
    shown = ", ".join(map(str, heapq.nsmallest(IDS_SHOWN_MAX, core.engines)))
    more = f", … {len(core.engines) - IDS_SHOWN_MAX} more" if len(core.engines) > IDS_SHOWN_MAX else ""
    return "NoSuchEngine", f"no engine {engine_id}; engines now: [{shown}{more}]"


def _describe_no_engines(core: Core) -> str:
    reasons = [f"engine set {s.id} {s.phase.value}: {s.why}" for s in core.sets.values() if s.why]
    return "no engine is there and none is being started" + ("; " + "; ".join(reasons) if reasons else "")


def _failure(seq: int, engine_id: int, error: str, text: str) -> m.Result:
    return m.Result(b"", 0, seq, engine_id, 0.0, 0.0, m.ErrorInfo(error, text, "", True))
