"""What clients want run: from the request to its result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hpcviews.controller import answers, sharing, tasks
from hpcviews.controller.core import Core
from hpcviews.controller.kept_output import KeptOutput
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import Client, Engine, Frames, Route, Work, WorkPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import Digest, EngineId, RunKey, parse_msg_id
from hpcviews.wire import messages as m

SEQ_MAX = 2**62
"""msgpack integers end at 2**64: an answer to a request beyond it could not be written."""

UNIX_TIME_MAX_S = 253_402_300_800.0
"""The year 10000, where Python's datetime ends."""

TIMEOUT_MAX_S = 1e9
"""Thirty years; poll() takes no more than some weeks anyway."""

# ---------------------------------------------------------------- from clients


def on_request(core: Core, out: Outbox, client: Client, message: m.Request, frames: Frames, now: float) -> None:
    """Queue a request on all its engines, in one step: two clients' requests have the same order on every engine."""
    check_numbers(client, message.seq, len(message.targets))
    share = len(message.targets)
    digest = Digest(message.function)
    for offset, target in enumerate(message.targets):
        seq = message.seq + offset
        engine = core.engines.get(EngineId(target))
        if engine is None:
            answers.refuse(core, out, client, message, seq, target, now)
            continue
        if digest and not core.functions.use(digest):
            answers.refuse_unknown_function(core, out, client, message, seq, now)
            continue
        work = Work(client, seq, message.op, digest, message.data, frames, False, None, 0, message.label, now)
        work.may_share, work.share = message.may_share, share
        core.add_work(work)
        if core.early.waiting:
            answers.note_arrival(core, out, work)
        hand_out(core, out, work, engine, now)


def on_task(core: Core, out: Outbox, client: Client, message: m.Task, frames: Frames, now: float) -> None:
    """Queue a task for the scheduler."""
    check_numbers(client, message.seq, 1)
    conditions = message.conditions
    # Written so that NaN is refused too: the heap of deadlines would lose its order.
    if conditions is not None and not 0.0 <= conditions.timeout_s <= TIMEOUT_MAX_S:
        raise ProtocolError(f"a timeout of {conditions.timeout_s} s")
    digest = Digest(message.function)
    if digest and not core.functions.use(digest):
        answers.refuse_unknown_function(core, out, client, message, message.seq, now)
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
        may_share=message.may_share,
    )
    if core.early.waiting:
        answers.note_arrival(core, out, work)
    if conditions is None or core.stopping:
        tasks.submit(core, out, work)
    else:
        tasks.join(core, out, work, conditions, now)


def on_abort(core: Core, out: Outbox, client: Client, message: m.Abort, frames: Frames, now: float) -> None:
    """End requests that have not started; what an engine holds is asked back first."""
    handed_out: list[Work] = []
    engines = None if message.engines is None else frozenset(map(EngineId, message.engines))
    for work in find_works(core, client, message.seqs, message.msg_ids):
        if engines is not None and (work.engine is None or work.engine.id not in engines):
            continue
        if work.phase is WorkPhase.ENDED:
            continue  # named twice
        work.is_aborting = True
        if work.phase in (WorkPhase.WAITING, WorkPhase.QUEUED):
            answers.fail(core, out, work, "TaskAborted", "withdrawn before it started")
        elif work.phase is WorkPhase.SENT:
            handed_out.append(work)
    recall(out, handed_out)
    if message.seq is not None:
        out.send(client.route, m.Acknowledged(message.seq))


def find_works(core: Core, client: Client, seqs: Iterable[int], msg_ids: Iterable[str] = ()) -> list[Work]:
    """Unfinished requests, each once: by a client's numbers, also of those of others that it follows, or by msg_id.

    Raises:
        ProtocolError: One of the msg_ids cannot be.
    """
    found: dict[Work, None] = {}
    for seq in seqs:
        # The last, for what it submitted before it lost its connection.
        work = client.works.get(seq) or client.following.get(seq) or core.find_work(client.session, seq)
        if work is not None:
            found[work] = None
    for msg_id in msg_ids:
        try:
            session, number = parse_msg_id(msg_id)
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        work = core.find_work(session, number)
        if work is not None:
            found[work] = None
    return list(found)


# ---------------------------------------------------------------- from engines


def on_done(core: Core, out: Outbox, engine: Engine, message: m.Done, frames: Frames, now: float) -> None:
    """An attempt ended."""
    # Written so that NaN is refused too: it would spoil the measured run time, which int() of credit stumbles over.
    if not (0.0 <= message.started < UNIX_TIME_MAX_S and 0.0 <= message.completed < UNIX_TIME_MAX_S):
        raise ProtocolError(f"an attempt that ran from {message.started} to {message.completed}")
    key = RunKey(message.key)
    work = engine.take(key)
    if work is None:
        core.late_replies += 1
        sharing.end_delivery(core, out, engine, key, frames)
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
            if tasks.pass_on(core, work, engine.id, f"{error.ename}: {error.evalue}"):
                sharing.end_delivery(core, out, engine, key, frames)
                return
        elif work.retries > 0:
            tasks.retry(core, out, work, engine.id, f"{error.ename}: {error.evalue}")
            sharing.end_delivery(core, out, engine, key, frames)
            return
    result = m.Result(
        message.data, message.frames, work.seq, engine.id, message.started, message.completed, message.error
    )
    answers.end(core, out, work, result, frames)


def on_run_output(core: Core, out: Outbox, engine: Engine, message: m.RunOutput, frames: Frames, now: float) -> None:
    """Text that a running request wrote."""
    work = engine.in_flight.get(RunKey(message.key))
    if work is None:
        core.late_replies += 1
        return
    if work.output is None:
        work.output = KeptOutput()
    work.output.add(message.stream, message.text)
    for route, seq in _iterate_listeners(work):
        out.send(route, m.Output(seq, engine.id, message.stream, message.text))


def on_run_published(
    core: Core, out: Outbox, engine: Engine, message: m.RunPublished, frames: Frames, now: float
) -> None:
    """Something that a running request displayed, or data that it published."""
    work = engine.in_flight.get(RunKey(message.key))
    if work is None:
        core.late_replies += 1
        return
    for route, seq in _iterate_listeners(work):
        published = m.Published(message.data, message.frames, seq, engine.id, message.kind)
        out.send(route, published, frames)


def _iterate_listeners(work: Work) -> Iterator[tuple[Route, int]]:
    """Who is to be told what a running request shows, and under which number."""
    if work.client.is_listening:
        yield work.client.route, work.seq
    for client, seq in work.followers or ():
        yield client.route, seq


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
            answers.fail(core, out, work, "TaskAborted", "withdrawn before it started")
        elif work.terms is not None and work.terms.is_late:
            tasks.end_late(core, out, work)
        else:
            # Also when its client has left: what that one asked for runs.
            tasks.queue_again(core, work)
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
    run = m.Run(work.data, len(work.frames), key, work.op, work.function, sharing.may_share(work, engine))
    out.send(engine.route, run, sharing.carry(work.frames, work.client.room, engine.info.room))
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


def lose_engine(core: Core, out: Outbox, engine: Engine, why: str) -> int:
    """What a lost engine held: tried again where allowed, else failed. Returns how many were requeued."""
    requeued = 0
    for work in engine.take_all():
        if work.is_task and work.retries > 0 and not work.is_aborting:
            tasks.retry(core, out, work, engine.id, f"{why} before it answered")
            requeued += 1
        else:
            text = f"engine {engine.id} {why} before it answered"
            if not engine.ending:
                text += f"; `hpcviews logs {core.identity.cluster}` may tell why"
            answers.fail(core, out, work, "EngineError", text)
    return requeued


def drop_client(client: Client) -> None:
    """A client is gone. What it asked for goes on, and the results are kept for whoever asks for them."""
    client.is_listening = False
    for work in client.following.values():
        if work is not None and work.followers is not None:
            work.followers = [follower for follower in work.followers if follower[0] is not client] or None
    client.following.clear()


def check_numbers(client: Client, seq: int, count: int) -> None:
    """Raise ProtocolError unless a client may use these numbers for requests."""
    if not 0 <= seq <= SEQ_MAX - count:
        raise ProtocolError(f"{count} requests numbered from {seq}")
    numbers = range(seq, seq + count)
    if not client.works.keys().isdisjoint(numbers) or not client.following.keys().isdisjoint(numbers):
        raise ProtocolError(f"requests numbered from {seq}: a number is under way already")
