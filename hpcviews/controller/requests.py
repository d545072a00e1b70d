"""What clients want run: from the request to its result. Every request ends, in exactly one Result."""

from __future__ import annotations

import heapq
from collections.abc import Collection

import msgspec

from hpcviews.controller.attempts import NOBODY, Attempts
from hpcviews.controller.core import Core
from hpcviews.controller.dependencies import Doomed
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.outcomes import OK, classify
from hpcviews.controller.state import NO_KEY, Client, Engine, Frames, SetPhase, Work, WorkPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import Digest, EngineId, RunKey
from hpcviews.wire import messages as m

SEQ_MAX = 2**62
"""msgpack integers end at 2**64: an answer to a request beyond it could not be written."""

UNIX_TIME_MAX_S = 253_402_300_800.0
"""The year 10000, where Python's datetime ends."""

TIMEOUT_MAX_S = 1e9
"""Thirty years; poll() takes no more than some weeks anyway."""

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
            _refuse_unknown_function(core, out, client, seq)
            continue
        work = Work(client, seq, message.op, digest, message.data, frames, False, None, 0, message.label, now)
        client.works[seq] = work
        hand_out(core, out, work, engine, now)


def on_task(core: Core, out: Outbox, client: Client, message: m.Task, frames: Frames, now: float) -> None:
    """Queue a task for the scheduler."""
    _check_numbers(client, message.seq, 1)
    conditions = message.conditions
    # Written so that NaN is refused too: the heap of deadlines would lose its order.
    if conditions is not None and not 0.0 <= conditions.timeout_s <= TIMEOUT_MAX_S:
        raise ProtocolError(f"a timeout of {conditions.timeout_s} s")
    digest = Digest(message.function)
    if digest and not core.functions.use(digest):
        _refuse_unknown_function(core, out, client, message.seq)
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
    if core.stopping:
        client.works[message.seq] = work
        text = f"the cluster is stopping: {core.stopping}"
        _end(core, out, work, _failure(work.seq, -1, "TaskAborted", text))
    elif conditions is None:
        client.works[message.seq] = work
        _queue(core, out, work)
    else:
        _join(core, out, work, conditions, now)


def _join(core: Core, out: Outbox, work: Work, conditions: m.Conditions, now: float) -> None:
    """A task that does not wait for an engine alone."""
    work.phase = WorkPhase.WAITING  # it begins there
    try:
        # Before it is among its client's: a task that names itself names nobody.
        is_ready = core.dependencies.join(work, conditions, core.outcomes, core.find_work)
    except Doomed as doomed:
        work.client.works[work.seq] = work
        _end(core, out, work, _failure(work.seq, -1, doomed.error, doomed.text))
        return
    work.client.works[work.seq] = work
    if conditions.timeout_s:
        assert work.terms is not None
        work.terms.due = now + conditions.timeout_s
        core.deadlines.arm(work, work.terms.due)
    if is_ready:
        release(core, out, work)


def on_abort(core: Core, out: Outbox, client: Client, message: m.Abort, frames: Frames, now: float) -> None:
    """End requests that have not started; what an engine holds is asked back first."""
    handed_out: list[Work] = []
    for seq in message.seqs:
        work = client.works.get(seq)
        if work is None:
            continue
        work.is_aborting = True
        if work.phase in (WorkPhase.WAITING, WorkPhase.QUEUED):
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
    error = message.error
    if error is not None and work.is_task and not work.is_aborting:
        if error.local and error.ename == "UnmetDependency":
            if pass_on(core, work, engine.id, f"{error.ename}: {error.evalue}"):
                return
        elif work.retries > 0:
            retry(core, out, work, engine.id, f"{error.ename}: {error.evalue}")
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
            if work.terms is not None and work.terms.timeout_s:
                work.terms.due = now + work.terms.timeout_s  # it had been handed out in time
            _queue_again(core, work)
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
    if work.terms is not None:
        core.deadlines.disarm(work)
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


def release(core: Core, out: Outbox, work: Work) -> None:
    """A new task, or one that waited for others, waits only for an engine from now on."""
    terms = work.terms
    assert terms is not None
    if terms.follow is not None:
        assert terms.follow.engines is not None
        followed = frozenset(terms.follow.engines)
        allowed = followed if work.targets is None else followed & work.targets
        if not allowed:
            text = f"`follow` wants {render_engines(followed)}, and `targets` does not allow it"
            _end(core, out, work, _failure(work.seq, -1, "ImpossibleDependency", text))
            return
        work.targets = allowed
    terms.after = None
    if terms.follow is None and not terms.timeout_s:
        work.terms = None
    work.move(WorkPhase.QUEUED)
    _queue(core, out, work)


def _queue(core: Core, out: Outbox, work: Work) -> None:
    """A task waits for an engine, unless none can come."""
    if (not core.engines or work.targets is not None) and (
        not core.scheduler.has_engine(work.targets, NOBODY) and not _are_engines_coming(core)
    ):
        _end(core, out, work, _failure(work.seq, -1, *_describe_stranded(core, work)))
        return
    core.scheduler.put(work)
    out.ask_for_scheduling()


def _queue_again(core: Core, work: Work) -> None:
    """A task comes back from an engine: it goes in front of those that have never been out."""
    work.move(WorkPhase.QUEUED)
    work.engine, work.key = None, NO_KEY
    if work.terms is not None and work.terms.timeout_s:
        core.deadlines.arm(work, work.terms.due)
    core.scheduler.put(work, in_front=True)


def retry(core: Core, out: Outbox, work: Work, engine_id: EngineId, what: str) -> None:
    """Queue a task again after its attempt failed; it is no longer in flight."""
    work.retries -= 1
    if work.attempts is None:
        work.attempts = Attempts()
    work.attempts.note_failure(engine_id, what)
    if work.terms is not None:
        work.terms.timeout_s = 0.0  # an engine had it, which is what the timeout is about
    _choose_engines(core, work)
    _queue_again(core, work)
    out.ask_for_scheduling()


def pass_on(core: Core, work: Work, engine_id: EngineId, what: str) -> bool:
    """Queue a task for other engines after one refused it. Returns False if there is no other to wait for."""
    if work.attempts is None:
        work.attempts = Attempts()
    work.attempts.refused |= {engine_id}
    if not _choose_engines(core, work) and not _may_wait_for_new_engines(work):
        return False
    work.attempts.note(engine_id, what)
    _queue_again(core, work)
    return True


def _choose_engines(core: Core, work: Work) -> bool:
    """Bar a task from engines that it has been on in vain; returns whether there are others.

    From those that refused it for ever. From those that failed it while there are others, although one of them may be
    idle now and the others are not: an engine with a broken node would be the first to be idle, and would eat up all
    retries. When it has been on all of them, only from the last.
    """
    attempts = work.attempts
    assert attempts is not None
    for tried in (attempts.tried, attempts.last, NOBODY):
        barred = attempts.refused | tried
        if core.scheduler.has_engine(work.targets, barred):
            attempts.tried = tried
            work.barred = barred or None
            return True
    work.barred = attempts.refused or None
    return False


def _may_wait_for_new_engines(work: Work) -> bool:
    """Whether a task that all engines refused is to wait for others, which its timeout ends."""
    return work.terms is not None and work.terms.timeout_s > 0


def fail(core: Core, out: Outbox, work: Work, error: str, text: str) -> None:
    """End a request with an error of ours."""
    engine_id = work.engine.id if work.engine is not None else -1
    if work.phase is WorkPhase.QUEUED:
        core.scheduler.drop(work)
    elif work.phase is WorkPhase.WAITING:
        core.dependencies.leave(work)
    _end(core, out, work, _failure(work.seq, engine_id, error, text))


def lose_engine(core: Core, out: Outbox, engine: Engine, why: str) -> int:
    """What a lost engine held: tried again where allowed, else failed. Returns how many were requeued."""
    requeued = 0
    for work in engine.take_all():
        if work.is_task and work.retries > 0 and not work.is_aborting:
            retry(core, out, work, engine.id, f"{why} before it answered")
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
        if work.phase in (WorkPhase.WAITING, WorkPhase.QUEUED):
            fail(core, out, work, "TaskAborted", "its client is gone")
        elif work.phase is WorkPhase.SENT:
            handed_out.append(work)
    recall(out, handed_out)


def end_stranded(core: Core, out: Outbox) -> None:
    """Engines are gone, or all that were to come are there: nothing waits for ever for engines that cannot come."""
    is_hopeful = _are_engines_coming(core)
    for work in core.scheduler.take_stranded(barred_only=is_hopeful):
        has_others = work.attempts is not None and _choose_engines(core, work)
        if has_others or is_hopeful or (work.barred and _may_wait_for_new_engines(work)):
            core.scheduler.put(work)
            out.ask_for_scheduling()
        else:
            _end(core, out, work, _failure(work.seq, -1, *_describe_stranded(core, work)))


def _are_engines_coming(core: Core) -> bool:
    if core.stopping:
        return False
    return any(s.phase is SetPhase.STARTING for s in core.sets.values()) or any(
        ending.restart or ending.starts for ending in core.endings
    )


def _check_numbers(client: Client, seq: int, count: int) -> None:
    if not 0 <= seq <= SEQ_MAX - count:
        raise ProtocolError(f"{count} requests numbered from {seq}")
    if not client.works.keys().isdisjoint(range(seq, seq + count)):
        raise ProtocolError(f"requests numbered from {seq}: a number is under way already")


def _end(core: Core, out: Outbox, work: Work, result: m.Result, frames: Frames | None = None) -> None:
    """The one place where a request ends: whoever waits for it is told."""
    work.move(WorkPhase.ENDED)
    client = work.client
    client.works.pop(work.seq, None)
    if work.function:
        core.functions.unuse(out, work.function)
    error = result.error
    core.outcomes.note(client.session, work.seq, OK if error is None else classify(error), result.engine)
    if work.dependents is not None:
        core.dependencies.on_end(work, error, result.engine)
    if work.attempts is not None and error is not None:
        result = msgspec.structs.replace(result, error=work.attempts.annotate(error))
    if work.terms is not None:
        core.deadlines.disarm(work)
        work.terms = None
    if client.is_listening:
        out.send(client.route, result, frames)
    else:
        core.forget_if_over(client)
    # An ended task may stay in its queue until its turn comes; its payload must not.
    work.data, work.frames = b"", []


def _refuse(core: Core, out: Outbox, client: Client, seq: int, target: int) -> None:
    _answer(core, out, client, _failure(seq, target, *describe_missing(core, EngineId(target))))


def _refuse_unknown_function(core: Core, out: Outbox, client: Client, seq: int) -> None:
    text = "the request names a function that was not sent (a bug in the client)"
    _answer(core, out, client, _failure(seq, -1, "ProtocolError", text))


def _answer(core: Core, out: Outbox, client: Client, failure: m.Result) -> None:
    """A request ends before it was one."""
    core.outcomes.note(client.session, failure.seq, classify(failure.error), failure.engine)
    out.send(client.route, failure)


def _describe_stranded(core: Core, work: Work) -> tuple[str, str]:
    """The error of a task that waits for engines that are not there and cannot come."""
    attempts = work.attempts
    if attempts is not None and attempts.refused and core.scheduler.has_engine(work.targets, NOBODY):
        return "UnmetDependency", f"{render_engines(attempts.refused)} refused it, and no other may run it"
    if work.terms is not None and work.terms.follow is not None:
        assert work.targets is not None
        lost = ", ".join(describe_missing(core, engine_id)[1] for engine_id in sorted(work.targets)[:IDS_SHOWN_MAX])
        return "ImpossibleDependency", f"the requests in `follow` ran on {render_engines(work.targets)}: {lost}"
    if work.targets is None:
        return "NoEnginesRegistered", _describe_no_engines(core)
    if not work.targets:
        return "NoSuchEngine", "the list of engines that may run this task is empty"
    return describe_missing(core, min(work.targets))


def render_engines(ids: Collection[EngineId]) -> str:
    """Engines in words."""
    shown = ", ".join(map(str, heapq.nsmallest(IDS_SHOWN_MAX, ids)))
    more = f", … {len(ids) - IDS_SHOWN_MAX} more" if len(ids) > IDS_SHOWN_MAX else ""
    return f"engine{'s' if len(ids) > 1 else ''} {shown}{more}"


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
