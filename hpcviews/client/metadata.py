"""What is known about one request: a dict whose keys are attributes too."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from hpcviews.ids import MsgId
from hpcviews.wire import messages as m

OUTPUT_CHARS_MAX = 2**20
"""Text kept per stream of a request: a loop that prints must not fill the client's memory."""


class Metadata(dict[str, Any]):
    """Metadata of one request.

    Keys: msg_id, submitted, started, completed, received (timezone-aware datetimes or None), engine_id,
    engine_uuid, rank, host, status (None while it runs, then "ok", "error" or "aborted"), error, stdout, stderr,
    and, for programs written for IPython.parallel, follow, after, execute_input, execute_result, outputs, data
    and label.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"metadata has no {name!r}; it has {', '.join(self)}") from None


class Texts:
    """What one request wrote, bounded."""

    __slots__ = ("_dropped", "_parts", "_sizes", "engine")

    def __init__(self) -> None:
        self.engine = -1
        self._parts: dict[str, list[str]] = {}
        self._sizes: dict[str, int] = {}
        self._dropped: dict[str, int] = {}

    def add(self, stream: str, text: str) -> None:
        """More text of a stream."""
        size = self._sizes.get(stream, 0)
        kept = text[: OUTPUT_CHARS_MAX - size]
        if kept:
            self._parts.setdefault(stream, []).append(kept)
            self._sizes[stream] = size + len(kept)
        if len(kept) < len(text):
            self._dropped[stream] = self._dropped.get(stream, 0) + len(text) - len(kept)

    def get(self, stream: str) -> str:
        """The text of a stream so far."""
        text = "".join(self._parts.get(stream, ()))
        dropped = self._dropped.get(stream, 0)
        return f"{text}\n[{dropped} more characters were dropped]\n" if dropped else text


def make_metadata(
    msg_id: MsgId,
    submitted: float,
    received: float,
    result: m.Result | None,
    texts: Texts | None,
    info: m.EngineInfo | None,
    label: str | None = None,
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
        stdout=texts.get("stdout") if texts is not None else "",
        stderr=texts.get("stderr") if texts is not None else "",
        follow=[],
        after=[],
        execute_input=None,
        execute_result=None,
        outputs=[],
        data={},
        label=label,
    )


def _as_datetime(unix_s: float) -> datetime | None:
    """None for a request that never got so far."""
    return datetime.fromtimestamp(unix_s, timezone.utc) if unix_s > 0 else None
