"""Asking the controller about requests that were made before, by anybody: what Client has for it, and views use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from hpcviews.client.call import Call
from hpcviews.client.results import AsyncResult
from hpcviews.client.slots import Slots
from hpcviews.client.targets import parse_targets
from hpcviews.errors import NoEnginesRegistered, NoSuchRequest, OutstandingRequests
from hpcviews.ids import MsgId, parse_msg_id
from hpcviews.wire import messages as m

if TYPE_CHECKING:
    from hpcviews.client.client import Client
    from hpcviews.client.history import History

ANSWER_S = 60.0
"""How long the controller may take: reading a million records from disk takes seconds."""

TIMES = frozenset({"submitted", "started", "completed"})
"""Fields of records that are times: datetimes here, Unix seconds on the wire."""


def render_msg_ids(jobs: Any, history: History) -> list[MsgId]:
    """The msg_ids that are meant by positions in a history, msg_ids, AsyncResults, or any iterable of those.

    Raises:
        TypeError: It is something else.
        IndexError: There is no such position.
    """
    if isinstance(jobs, AsyncResult):
        return jobs.msg_ids
    if isinstance(jobs, str):
        return [MsgId(jobs)]
    if isinstance(jobs, int) and not isinstance(jobs, bool):
        return [history[jobs]]
    if isinstance(jobs, Iterable) and not isinstance(jobs, bytes):
        return [msg_id for job in jobs for msg_id in render_msg_ids(job, history)]
    raise TypeError(f"msg_ids, positions in the history or AsyncResults are needed, not {jobs!r}")


def get_result(client: Client, jobs: Any, history: History, block: bool | None) -> AsyncResult:
    """The AsyncResult of earlier requests, of this client or another; asked for at the controller if it is not here.

    A position in the history gives the whole call that it belongs to, as long as somebody holds that.
    """
    wanted = -1 if jobs is None else jobs
    if isinstance(wanted, float | bool):
        raise TypeError(f"a msg_id or a position in the history is needed, not {wanted!r}")
    result = _find_or_follow(client, wanted, history)
    if client.block if block is None else block:
        result.wait()
    return result


def _find_or_follow(client: Client, wanted: Any, history: History) -> AsyncResult:
    if isinstance(wanted, AsyncResult):
        return wanted
    if isinstance(wanted, int | str):
        (msg_id,) = render_msg_ids(wanted, history)
        held = client.find_call(msg_id)
        if held is None:
            return _follow(client, [msg_id], True)
        return held if isinstance(wanted, int) else held.pick(msg_id)
    msg_ids = render_msg_ids(wanted, history)
    held_by_id = {msg_id: held for msg_id in msg_ids if (held := client.find_call(msg_id)) is not None}
    missing = [msg_id for msg_id in msg_ids if msg_id not in held_by_id]
    if not held_by_id:
        return _follow(client, msg_ids, False)
    followed = dict(zip(missing, _follow(client, missing, False).split(), strict=True))
    return AsyncResult.join(
        *(followed[msg_id] if msg_id in followed else held_by_id[msg_id].pick(msg_id) for msg_id in msg_ids)
    )


def _follow(client: Client, msg_ids: Sequence[MsgId], is_single: bool) -> AsyncResult:
    connection = client._connection
    first = connection.reserve(len(msg_ids))
    call = Call(client, "get_result", first, len(msg_ids), msg_ids=msg_ids)
    result = AsyncResult(Slots.of_call(call), targets=None, is_single=is_single)
    if msg_ids:
        connection.post(call, range(first, first + len(msg_ids)), [m.Follow(first, list(msg_ids))], [])
    return result


def resubmit(client: Client, jobs: Any, history: History, block: bool | None) -> AsyncResult:
    """Run earlier requests once more, as tasks of this client."""
    wanted = -1 if jobs is None else jobs
    msg_ids = render_msg_ids(wanted, history)
    connection = client._connection
    first = connection.reserve(len(msg_ids))
    call = Call(client, "resubmit", first, len(msg_ids))
    result = AsyncResult(Slots.of_call(call), targets=None, is_single=isinstance(wanted, int | str))
    seqs = range(first, first + len(msg_ids))
    if msg_ids:
        connection.post(call, seqs, [m.Resubmit(first, list(msg_ids))], [])
    client._remember(result)
    if client.block if block is None else block:
        result.wait()
    return result


def get_result_status(client: Client, jobs: Any, history: History, status_only: bool) -> dict[str, Any]:
    """Which of these requests have ended; and the values of those, unless `status_only`."""
    msg_ids = render_msg_ids(jobs, history)
    has_ended: dict[str, bool] = {}
    for msg_id in msg_ids:
        held = client.find_call(msg_id)
        found = None if held is None else held.slots.find(msg_id)
        if found is not None:
            has_ended[msg_id] = found[0].has_ended(found[1])
    others = [msg_id for msg_id in msg_ids if msg_id not in has_ended]
    if others:
        records = query_records(client, {"msg_id": {"$in": others}}, ["status"])
        has_ended.update((record["msg_id"], record["status"] is not None) for record in records)
    missing = [msg_id for msg_id in msg_ids if msg_id not in has_ended]
    if missing:
        raise NoSuchRequest(f"No such message: {missing[0]}; it was never submitted, or its record is not kept")
    completed = [msg_id for msg_id in msg_ids if has_ended[msg_id]]
    pending = [msg_id for msg_id in msg_ids if not has_ended[msg_id]]
    told: dict[str, Any] = {"pending": pending, "completed": completed, "status": "ok"}
    if not status_only and completed:
        values = get_result(client, completed, history, False).get(ANSWER_S, return_exceptions=True)
        told.update(zip(completed, values, strict=True))
    return told


def get_queue_status(client: Client, targets: Any, verbose: bool) -> dict[Any, Any]:
    """What waits on engines, and what they have done."""
    try:
        chosen = parse_targets(targets, client._connection.registry.ids)
        ids, is_single = [int(engine_id) for engine_id in chosen.ids], chosen.is_single
    except NoEnginesRegistered:
        ids, is_single = [], False  # what waits for engines can be asked for without any
    answer = client._connection.ask(lambda seq: m.QueueQuery(seq, ids, verbose), m.QueueStatus, ANSWER_S)
    by_engine: dict[Any, Any] = {}
    for queue in answer.engines:
        if verbose:
            by_engine[queue.id] = {
                "queue": queue.queue_ids,
                "completed": queue.completed_ids,
                "tasks": queue.task_ids,
            }
        else:
            by_engine[queue.id] = {"queue": queue.queue, "completed": queue.completed, "tasks": queue.tasks}
    if is_single:
        entry: dict[Any, Any] = by_engine[ids[0]]
        return entry
    by_engine["unassigned"] = answer.unassigned_ids if verbose else answer.unassigned
    return by_engine


def purge(client: Client, jobs: Any, targets: Any, history: History) -> None:
    """Have the controller forget records of requests that have ended."""
    msg_ids, engines = _parse_purge(client, jobs, targets, history)
    client._connection.ask(lambda seq: m.Purge(seq, msg_ids, engines), m.Acknowledged, ANSWER_S)


def _parse_purge(client: Client, jobs: Any, targets: Any, history: History) -> tuple[list[str] | None, list[int]]:
    is_all = isinstance(jobs, str) and jobs.lower() == "all"
    has_jobs = is_all or isinstance(jobs, AsyncResult | int) or bool(jobs)
    has_targets = isinstance(targets, int | slice) or bool(targets)
    if not has_jobs and not has_targets:
        raise ValueError("Must specify at least one of `targets` and `jobs`; jobs='all' forgets everything")
    engines = _parse_engines(client, targets) if has_targets else []
    if is_all:
        return None, engines
    return ([str(msg_id) for msg_id in render_msg_ids(jobs, history)] if has_jobs else []), engines


def _parse_engines(client: Client, targets: Any) -> list[int]:
    return [int(engine_id) for engine_id in parse_targets(targets, client._connection.registry.ids).ids]


def query_records(client: Client, query: Mapping[str, Any], keys: Iterable[str] | None) -> list[dict[str, Any]]:
    """The records that match, in the order they were submitted."""
    if not isinstance(query, Mapping):
        raise TypeError(f"a query is a dict, not {query!r}; {{}} matches every record")
    if isinstance(keys, str):
        raise TypeError(f"keys are a list of field names, not the str {keys!r}")
    wanted = None if keys is None else list(keys)
    on_wire = {str(name): _to_wire(value) for name, value in query.items()}
    answer = client._connection.ask(lambda seq: m.RecordQuery(seq, on_wire, wanted), m.Records, ANSWER_S)
    return [{name: _from_wire(name, value) for name, value in record.items()} for record in answer.records]


def _to_wire(value: Any) -> Any:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            value = value.astimezone()  # as everywhere in Python, a naive time is local
        return value.timestamp()
    if isinstance(value, Mapping):
        return {str(name): _to_wire(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_to_wire(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Integral | Real):  # numpy's
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(f"a query compares with strings, numbers, datetimes, None and lists of those, not {value!r}")


def _from_wire(name: str, value: Any) -> Any:
    if name in TIMES and isinstance(value, int | float):
        return datetime.fromtimestamp(value, timezone.utc) if value > 0 else None
    return value


def make_abort(client: Client, jobs: Any, history: History, targets: Any) -> Callable[[int], m.Abort]:
    """The question that withdraws requests that have not started, of whatever client."""
    seqs: list[int] = []
    foreign: list[str] = []
    for msg_id in _list_unfinished(client, jobs, history):
        session, seq = parse_msg_id(msg_id)
        if session == client.session:
            seqs.append(seq)
        else:
            foreign.append(msg_id)
    engines = None if targets is None else _parse_engines(client, targets)
    return lambda number: m.Abort(seqs, foreign, engines, number)


def _list_unfinished(client: Client, jobs: Any, history: History) -> list[MsgId]:
    if isinstance(jobs, AsyncResult):
        return [call.get_msg_id(index) for call, index in jobs.slots.get_unfinished()]
    if isinstance(jobs, str):
        parse_msg_id(jobs)  # says what msg_ids look like
        return [MsgId(jobs)]
    if isinstance(jobs, int) and not isinstance(jobs, bool):
        return [history[jobs]]
    if isinstance(jobs, Iterable) and not isinstance(jobs, bytes):
        return [msg_id for job in jobs for msg_id in _list_unfinished(client, job, history)]
    raise TypeError(f"Invalid msg_id type {type(jobs)}, expected str or AsyncResult")


def check_purge(client: Client, jobs: Any, targets: Any, history: History) -> None:
    """Raise if requests of this client that are to be forgotten have not ended, or nothing is named."""
    msg_ids, _ = _parse_purge(client, jobs, targets, history)
    outstanding = client.outstanding
    waiting = sorted(outstanding if msg_ids is None else outstanding.intersection(msg_ids))
    if waiting:
        raise OutstandingRequests(
            f"Can't purge outstanding tasks: {', '.join(waiting[:5])}; wait for them, or abort them first"
        )


def render_jobs(jobs: Any, history: History) -> Any:
    """What names requests by positions in a view's history, by msg_ids instead; "all" and nothing stay as they are."""
    if isinstance(jobs, str) or (not isinstance(jobs, int | AsyncResult) and not jobs):
        return jobs
    return render_msg_ids(jobs, history)
