"""What clients ask about requests that were made before, by anybody: their results, records and queues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpcviews.controller import answers, requests, tasks
from hpcviews.controller.core import Core
from hpcviews.controller.events import ForgetRecords, QueryRecords
from hpcviews.controller.finished import Finished, Key, Record
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.outcomes import Outcome
from hpcviews.controller.record_query import RecordFilter, check_key
from hpcviews.controller.record_rows import render_record, render_unfinished
from hpcviews.controller.state import Client, Frames, Work
from hpcviews.errors import UsageError
from hpcviews.ids import Digest, EngineId, Session, parse_msg_id
from hpcviews.wire import messages as m
from hpcviews.wire.shared import has_handles

IDS_SHOWN_MAX = 5


# ---------------------------------------------------------------- results


def on_follow(core: Core, out: Outbox, client: Client, message: m.Follow, frames: Frames, now: float) -> None:
    """Give a client the results of requests of others, those that have ended at once."""
    requests.check_numbers(client, message.seq, len(message.msg_ids))
    unknown: dict[Key, list[int]] = {}
    for offset, msg_id in enumerate(message.msg_ids):
        seq = message.seq + offset
        key = _find_key(core, out, client, seq, msg_id)
        if key is not None and not _follow_if_known(core, out, client, seq, key):
            client.following[seq] = None
            unknown.setdefault(key, []).append(seq)

    def deliver(core: Core, out: Outbox, found: list[Record]) -> None:
        for record in found:
            for seq in unknown.pop((record.session, record.seq)):
                if _stop_following(client, seq):
                    _deliver(out, client, seq, record)
        for key, seqs in unknown.items():
            for seq in seqs:
                # It may have come while the archive was asked; or be under way still, by another connection.
                if (
                    client.is_listening
                    and not _follow_if_known(core, out, client, seq, key)
                    and not _wait_for_arrival(core, client, seq, key, now)
                    and _stop_following(client, seq)
                ):
                    _refuse(core, out, client, seq, *key)

    core.finished.find(core, out, list(unknown), deliver)


def _follow_if_known(core: Core, out: Outbox, client: Client, seq: int, key: Key) -> bool:
    work = core.find_work(*key)
    record = core.finished.records.get(key)
    if work is not None:
        answers.follow(core, out, client, seq, work)
    elif record is not None:
        _stop_following(client, seq)
        _deliver(out, client, seq, record)
    return work is not None or record is not None


def _wait_for_arrival(core: Core, client: Client, seq: int, key: Key, now: float) -> bool:
    session, number = key
    if session == client.session or not core.is_connected(session):
        return False
    if core.outcomes.find(session, number)[0] is not Outcome.UNKNOWN:
        return False
    return core.early.put(key, client, seq, now)


def give_up(core: Core, out: Outbox, now: float) -> None:
    """Refuse what was asked for early and has not come."""
    for key, asked in core.early.take_overdue(now):
        for client, seq in asked:
            if _stop_following(client, seq):
                _refuse(core, out, client, seq, *key)


def _find_key(core: Core, out: Outbox, client: Client, seq: int, msg_id: str) -> Key | None:
    try:
        return parse_msg_id(msg_id)
    except ValueError as error:
        out.send(client.route, answers.make_failure(seq, -1, "NoSuchRequest", str(error)))
        return None


def _stop_following(client: Client, seq: int) -> bool:
    """Whether somebody still waits for the answer."""
    client.following.pop(seq, None)
    return client.is_listening


def _deliver(out: Outbox, client: Client, seq: int, record: Record) -> None:
    result = record.result
    out.send(client.route, m.Followed(seq, record.submitted, record.label))
    if record.output is not None:
        for stream in ("stdout", "stderr"):
            text = record.output.read(stream)
            if text:
                out.send(client.route, m.Output(seq, result.engine, stream, text))
    error = result.error
    if record.why_no_result and error is None:
        text = f"the value of {record.msg_id} is not kept any more: {record.why_no_result}"
        error = m.ErrorInfo("ResultNotKept", text, "", True)
    told = m.Result(result.data, len(record.frames), seq, result.engine, result.started, result.completed, error)
    out.send(client.route, told, record.frames)


def _refuse(core: Core, out: Outbox, client: Client, seq: int, session: Session, number: int) -> None:
    outcome, engine_id = core.outcomes.find(session, number)
    if outcome is Outcome.UNKNOWN:
        text = f"no request {session}-{number} is known here"
    else:
        text = f"request {session}-{number} {outcome.describe()}, and its record has been dropped"
    text = f"{text}; {describe_bounds(core.finished)}"
    out.send(client.route, answers.make_failure(seq, engine_id, "NoSuchRequest", text))


def describe_bounds(finished: Finished) -> str:
    """How long records are kept, in words."""
    bounds = finished.bounds
    where = "older ones on disk, within its bounds" if finished.has_archive else "no others"
    return (
        f"the controller keeps the last {bounds.records_max} requests in memory, up to {bounds.bytes_max >> 20} MiB, "
        f"and {where}, until the cluster ends or they are purged"
    )


# ---------------------------------------------------------------- once more


def on_resubmit(core: Core, out: Outbox, client: Client, message: m.Resubmit, frames: Frames, now: float) -> None:
    """Run requests again, as tasks."""
    requests.check_numbers(client, message.seq, len(message.msg_ids))
    unknown: dict[Key, list[int]] = {}
    for offset, msg_id in enumerate(message.msg_ids):
        seq = message.seq + offset
        key = _find_key(core, out, client, seq, msg_id)
        if key is None:
            continue
        work = core.find_work(*key)
        record = core.finished.records.get(key)
        if work is not None and has_handles(work.frames):
            text = f"{msg_id} cannot be run again: its arguments are in shared memory, which goes when it has ended"
            out.send(client.route, answers.make_failure(seq, -1, "NoSuchRequest", text))
        elif work is not None:
            if work.function:
                core.functions.use(work.function)
            _run_again(core, out, client, seq, work, now)
        elif record is not None:
            _run_recorded(core, out, client, seq, record, now)
        else:
            client.following[seq] = None
            unknown.setdefault(key, []).append(seq)

    def run(core: Core, out: Outbox, found: list[Record]) -> None:
        for record in found:
            for seq in unknown.pop((record.session, record.seq)):
                if _stop_following(client, seq):
                    _run_recorded(core, out, client, seq, record, now)
        for key, seqs in unknown.items():
            for seq in seqs:
                if _stop_following(client, seq):
                    _refuse(core, out, client, seq, *key)

    core.finished.find(core, out, list(unknown), run)


def _run_recorded(core: Core, out: Outbox, client: Client, seq: int, record: Record, now: float) -> None:
    if record.why_no_request:
        text = f"{record.msg_id} cannot be run again: {record.why_no_request}"
        out.send(client.route, answers.make_failure(seq, -1, "NoSuchRequest", text))
        return
    if record.function is not None:
        core.functions.use_again(record.function)
    _run_again(core, out, client, seq, record, now)


def _run_again(core: Core, out: Outbox, client: Client, seq: int, before: Work | Record, now: float) -> None:
    """Queue a task like an earlier request. Its function is in use already."""
    if isinstance(before, Work):
        function, request_frames = before.function, before.frames
    else:
        function = Digest(before.function.message.digest) if before.function is not None else Digest(b"")
        request_frames = before.request_frames
    work = Work(
        client,
        seq,
        before.op,
        function,
        before.data,
        request_frames,
        True,
        before.targets,
        before.retries,
        before.label,
        now,
    )
    if core.early.waiting:
        answers.note_arrival(core, out, work)
    tasks.submit(core, out, work)


# ---------------------------------------------------------------- records


def on_purge(core: Core, out: Outbox, client: Client, message: m.Purge, frames: Frames, now: float) -> None:
    """Forget records."""
    finished = core.finished
    keys: list[Key] = []
    engines = frozenset(map(EngineId, message.engines))
    try:
        keys = [parse_msg_id(msg_id) for msg_id in message.msg_ids or ()]
    except ValueError as error:
        out.send(client.route, m.Acknowledged(message.seq, m.ErrorInfo("UsageError", str(error), "", True)))
        return
    unfinished = [work.msg_id for key in keys if (work := core.find_work(*key)) is not None]
    if unfinished:
        shown = ", ".join(unfinished[:IDS_SHOWN_MAX]) + (", …" if len(unfinished) > IDS_SHOWN_MAX else "")
        text = f"Can't purge outstanding tasks: {shown}; wait for them, or abort them first"
        out.send(client.route, m.Acknowledged(message.seq, m.ErrorInfo("OutstandingRequests", text, "", True)))
        return
    if message.msg_ids is None:
        finished.forget(list(finished.records))
    else:
        finished.forget(keys)
        if engines:
            finished.forget([(r.session, r.seq) for r in finished.iterate() if r.result.engine in engines])

    def tell(core: Core, out: Outbox, found: list[Any]) -> None:
        if client.is_listening:
            out.send(client.route, m.Acknowledged(message.seq))

    if finished.may_be_archived:
        wanted = None if message.msg_ids is None else tuple(keys)
        finished.ask(out, lambda question: ForgetRecords(question, wanted, engines), tell)
    else:
        tell(core, out, [])


def on_record_query(
    core: Core, out: Outbox, client: Client, message: m.RecordQuery, frames: Frames, now: float
) -> None:
    """Answer with the records that match."""
    finished = core.finished
    limit = finished.bounds.answer_records_max

    def refuse(text: str) -> None:
        out.send(client.route, m.Records(message.seq, [], m.ErrorInfo("UsageError", text, "", True)))

    try:
        wanted = RecordFilter(message.query)
        for key in message.keys or ():
            check_key(key)
    except UsageError as error:
        refuse(str(error))
        return
    rows = [row for row in _iterate_rows(core) if wanted.matches(row)]

    def tell(core: Core, out: Outbox, found: list[dict[str, Any]]) -> None:
        if not client.is_listening:
            return
        every = rows + found
        if len(every) > limit:
            refuse(f"more than {limit} records match; narrow the query, for instance by `submitted`")
            return
        every.sort(key=_get_place)
        keys = message.keys
        if keys is not None:
            names = dict.fromkeys(["msg_id", *keys])
            every = [{name: row[name] for name in names} for row in every]
        out.send(client.route, m.Records(message.seq, every))

    if finished.may_be_archived and len(rows) <= limit:
        finished.ask(out, lambda question: QueryRecords(question, wanted, limit), tell)
    else:
        tell(core, out, [])


def _get_place(row: dict[str, Any]) -> tuple[float, str, int]:
    """When it was submitted; what came in one batch has the same time."""
    session, seq = parse_msg_id(row["msg_id"])
    return row["submitted"], session, seq


def _iterate_rows(core: Core) -> Iterator[dict[str, Any]]:
    for record in core.finished.iterate():
        yield render_record(record)
    for work in core.iterate_unfinished():
        yield render_unfinished(work, core.identity.render_time(work.submitted))


# ---------------------------------------------------------------- queues


def on_queue_query(core: Core, out: Outbox, client: Client, message: m.QueueQuery, frames: Frames, now: float) -> None:
    """Say what waits where."""
    ids = list(dict.fromkeys(map(EngineId, message.targets)))
    for engine_id in ids:
        if engine_id not in core.engines:
            error = m.ErrorInfo(*answers.describe_missing(core, engine_id), "", True)
            out.send(client.route, m.QueueStatus(message.seq, [], 0, [], error))
            return
    completed: dict[EngineId, list[str]] = {engine_id: [] for engine_id in ids}
    unassigned: list[str] = []
    if message.verbose:
        for record in core.finished.iterate():
            own = completed.get(EngineId(record.result.engine))
            if own is not None:
                own.append(record.msg_id)
        unassigned = [work.msg_id for work in core.iterate_unfinished() if work.engine is None]
    queues = []
    for engine_id in ids:
        engine = core.engines[engine_id]
        direct: list[str] = []
        held: list[str] = []
        if message.verbose:
            for work in engine.in_flight.values():
                (held if work.is_task else direct).append(work.msg_id)
        held_count = len(engine.tasks)
        queues.append(
            m.EngineQueue(
                engine_id,
                engine.load - held_count,
                engine.completed,
                held_count,
                direct,
                completed[engine_id],
                held,
            )
        )
    waiting = core.scheduler.waiting + core.dependencies.waiting
    out.send(client.route, m.QueueStatus(message.seq, queues, waiting, unassigned))
