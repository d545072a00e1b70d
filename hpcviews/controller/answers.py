"""How requests end: each in exactly one Result, and the texts of its errors."""

from __future__ import annotations

import heapq
from collections.abc import Collection

import msgspec

from hpcviews.controller import sharing
from hpcviews.controller.core import Core
from hpcviews.controller.finished import RECORD_BYTES, Record
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.outcomes import OK, classify
from hpcviews.controller.state import Client, Frames, Work, WorkPhase
from hpcviews.ids import EngineId
from hpcviews.wire import messages as m

IDS_SHOWN_MAX = 20
"""How many engine ids an error message lists; it may go out once for each of thousands of targets."""


def end(core: Core, out: Outbox, work: Work, result: m.Result, frames: Frames | None = None) -> None:
    """The one place where a request ends: whoever waits for it is told."""
    work.move(WorkPhase.ENDED)
    client = work.client
    client.works.pop(work.seq, None)
    entry = core.functions.unuse(out, work.function) if work.function else None
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
        sharing.send_result(core, out, client, result, frames or [], work)
    else:
        core.forget_if_over(client)
    is_delivered = client.is_listening or work.followers is not None
    core.finished.add_work(core, out, work, entry, result, frames or [], is_delivered)
    if work.followers is not None:
        _tell_followers(core, out, work, result, frames or [])
    if frames and work.engine is not None:
        sharing.end_delivery(core, out, work.engine, work.key, frames)
    sharing.on_work_ended(core, out, client)
    # An ended task may stay in its queue until its turn comes; its payload must not.
    work.data, work.frames = b"", []


def _tell_followers(core: Core, out: Outbox, work: Work, result: m.Result, frames: Frames) -> None:
    for client, seq in work.followers or ():
        del client.following[seq]
        sharing.send_result(core, out, client, msgspec.structs.replace(result, seq=seq), frames, work)
    work.followers = None


def follow(core: Core, out: Outbox, client: Client, seq: int, work: Work) -> None:
    """Tell a client, under a number of its own, what comes of a request, and what has been written."""
    client.following[seq] = work
    if work.followers is None:
        work.followers = []
    work.followers.append((client, seq))
    out.send(client.route, m.Followed(seq, core.identity.render_time(work.submitted), work.label))
    if work.output is not None:
        engine_id = work.engine.id if work.engine is not None else -1
        for stream in ("stdout", "stderr"):
            text = work.output.read(stream)
            if text:
                out.send(client.route, m.Output(seq, engine_id, stream, text))


def note_arrival(core: Core, out: Outbox, work: Work) -> None:
    """A request came that somebody has asked for already; called while there are any such."""
    for client, seq in core.early.take((work.client.session, work.seq)):
        if client.is_listening:
            follow(core, out, client, seq, work)


def fail(core: Core, out: Outbox, work: Work, error: str, text: str) -> None:
    """End a request with an error of ours."""
    engine_id = work.engine.id if work.engine is not None else -1
    if work.phase is WorkPhase.QUEUED:
        core.scheduler.drop(work)
    elif work.phase is WorkPhase.WAITING:
        core.dependencies.leave(work)
    end(core, out, work, make_failure(work.seq, engine_id, error, text))


def refuse(core: Core, out: Outbox, client: Client, message: m.Request, seq: int, target: int, now: float) -> None:
    """Answer a request for an engine that is not there."""
    _answer(core, out, client, message, make_failure(seq, target, *describe_missing(core, EngineId(target))), now)


def refuse_unknown_function(
    core: Core, out: Outbox, client: Client, message: m.Request | m.Task, seq: int, now: float
) -> None:
    """Answer a request whose function the controller does not have."""
    text = "the request names a function that was not sent (a bug in the client)"
    _answer(core, out, client, message, make_failure(seq, -1, "ProtocolError", text), now)


def _answer(
    core: Core, out: Outbox, client: Client, message: m.Request | m.Task, failure: m.Result, now: float
) -> None:
    """A request ends before it was one."""
    core.outcomes.note(client.session, failure.seq, classify(failure.error), failure.engine)
    if core.dependencies.expected:
        core.dependencies.on_refused(client.session, failure)
    out.send(client.route, failure)
    record = Record(
        session=client.session,
        seq=failure.seq,
        op=message.op,
        is_task=isinstance(message, m.Task),
        targets=None,
        retries=0,
        label=message.label,
        submitted=core.identity.render_time(now),
        result=failure,
        frames=[],
        engine_uuid="",
        function=None,
        data=b"",
        request_frames=[],
        output=None,
        nbytes=RECORD_BYTES,
        why_no_request="it was refused, so its arguments were not kept",
    )
    core.finished.add(out, record)
    for follower, seq in core.early.take((client.session, failure.seq)) if core.early.waiting else ():
        if follower.is_listening:
            del follower.following[seq]
            out.send(follower.route, msgspec.structs.replace(failure, seq=seq))


def make_failure(seq: int, engine_id: int, error: str, text: str) -> m.Result:
    """A Result with an error of ours."""
    return m.Result(b"", 0, seq, engine_id, 0.0, 0.0, m.ErrorInfo(error, text, "", True))


def describe_missing(core: Core, engine_id: EngineId) -> tuple[str, str]:
    """Name and text of the error for a target that is not there."""
    if engine_id in core.gone:
        return "EngineError", f"engine {engine_id} {core.gone[engine_id].why}"
    if not core.engines:
        return "NoSuchEngine", f"no engine {engine_id}; engines now: none"
    shown = ", ".join(map(str, heapq.nsmallest(IDS_SHOWN_MAX, core.engines)))
    more = f", … {len(core.engines) - IDS_SHOWN_MAX} more" if len(core.engines) > IDS_SHOWN_MAX else ""
    return "NoSuchEngine", f"no engine {engine_id}; engines now: [{shown}{more}]"


def describe_no_engines(core: Core) -> str:
    """Why there are none, in words."""
    reasons = [f"engine set {s.id} {s.phase.value}: {s.why}" for s in core.sets.values() if s.why]
    return "no engine is there and none is being started" + ("; " + "; ".join(reasons) if reasons else "")


def render_engines(ids: Collection[EngineId]) -> str:
    """Engines in words."""
    shown = ", ".join(map(str, heapq.nsmallest(IDS_SHOWN_MAX, ids)))
    more = f", … {len(ids) - IDS_SHOWN_MAX} more" if len(ids) > IDS_SHOWN_MAX else ""
    return f"engine{'s' if len(ids) > 1 else ''} {shown}{more}"
