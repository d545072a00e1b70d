"""Records of requests as clients see them: dicts with the keys of record_query.py. Times are Unix times in seconds."""

from __future__ import annotations

from typing import Any

from hpcviews.controller.finished import Record
from hpcviews.controller.state import Work
from hpcviews.wire import messages as m


def render_record(record: Record) -> dict[str, Any]:
    """A request that has ended."""
    result, output = record.result, record.output
    return {
        "msg_id": record.msg_id,
        "client_uuid": record.session,
        "submitted": record.submitted,
        "started": result.started or None,
        "completed": result.completed or None,
        "engine_id": result.engine if result.engine >= 0 else None,
        "engine_uuid": record.engine_uuid or None,
        "queue": "task" if record.is_task else "mux",
        "op": record.op,
        "label": record.label or None,
        "status": describe_status(result.error),
        "error": None if result.error is None else f"{result.error.ename}: {result.error.evalue}",
        "stdout": output.read("stdout") if output is not None else "",
        "stderr": output.read("stderr") if output is not None else "",
        "nbytes": record.nbytes,
    }


def render_unfinished(work: Work, submitted: float) -> dict[str, Any]:
    """A request that has not."""
    engine, output = work.engine, work.output
    return {
        "msg_id": work.msg_id,
        "client_uuid": work.client.session,
        "submitted": submitted,
        "started": None,
        "completed": None,
        "engine_id": engine.id if engine is not None else None,
        "engine_uuid": engine.info.uuid if engine is not None else None,
        "queue": "task" if work.is_task else "mux",
        "op": work.op,
        "label": work.label or None,
        "status": None,
        "error": None,
        "stdout": output.read("stdout") if output is not None else "",
        "stderr": output.read("stderr") if output is not None else "",
        "nbytes": None,
    }


def describe_status(error: m.ErrorInfo | None) -> str:
    """How a request ended, in one word."""
    if error is None:
        return "ok"
    return "aborted" if error.local and error.ename == "TaskAborted" else "error"
