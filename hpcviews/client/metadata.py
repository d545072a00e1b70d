"""What is known about one request: a dict whose keys are attributes too."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from hpcviews.client.output import RequestOutput
from hpcviews.ids import MsgId
from hpcviews.wire import messages as m


class Metadata(dict[str, Any]):
    """Metadata of one request.

    Keys: msg_id, submitted, started, completed, received (timezone-aware datetimes or None), engine_id,
    engine_uuid, rank, host, status (None while it runs, then "ok", "error" or "aborted"), error, label;
    plane ("shm" if buffers of it went through shared memory, else "frames") and bytes (of its buffers of 64 KiB and
    more, there and back); stdout and
    stderr (text), outputs (what was displayed, in order: dicts of data and metadata) and data (what `publish_data`
    published) as far as they have come; of executed code execute_input and execute_result; after and follow, the
    msg_ids of the requests that it depends on.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"metadata has no {name!r}; it has {', '.join(self)}") from None


def make_metadata(
    msg_id: MsgId,
    submitted: float,
    received: float,
    result: m.Result | None,
    output: RequestOutput | None,
    info: m.EngineInfo | None,
    label: str | None = None,
    code: str | None = None,
    after: Iterable[str] = (),
    follow: Iterable[str] = (),
    plane: str = "frames",
    nbytes: int = 0,
) -> Metadata:
    """Put together what is known of a request; `result` is None while it has not ended."""
    error = result.error if result is not None else None
    status = None
    if result is not None:
        status = "ok" if error is None else "aborted" if error.local and error.ename == "TaskAborted" else "error"
    return Metadata(
        msg_id=msg_id,
        submitted=_as_datetime(submitted),
        started=_as_datetime(result.started) if result is not None else None,
        completed=_as_datetime(result.completed) if result is not None else None,
        received=_as_datetime(received),
        engine_id=info.id if info is not None else None,
        engine_uuid=info.uuid if info is not None else None,
        rank=info.rank if info is not None else None,
        host=info.host if info is not None else None,
        status=status,
        error=None if error is None else f"{error.ename}: {error.evalue}",
        stdout=output.get_text("stdout") if output is not None else "",
        stderr=output.get_text("stderr") if output is not None else "",
        follow=list(follow),
        after=list(after),
        execute_input=code,
        execute_result=None,
        outputs=output.get_displays() if output is not None else [],
        data=output.merge_data() if output is not None else {},
        label=label,
        plane=plane,
        bytes=nbytes,
    )


def _as_datetime(unix_s: float) -> datetime | None:
    """None for a request that never got so far."""
    return datetime.fromtimestamp(unix_s, timezone.utc) if unix_s > 0 else None
