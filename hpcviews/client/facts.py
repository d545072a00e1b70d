"""What is known about a call beside its values: metadata, times, what was sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from hpcviews.client.metadata import make_metadata
from hpcviews.client.output import OutputCallback, OutputListener
from hpcviews.client.slots import Slots
from hpcviews.ids import MsgId

if TYPE_CHECKING:
    import zmq


class Facts:
    """Base of AsyncResult: what it knows without waiting for it."""

    slots: Slots
    _is_single: bool
    _tracker: zmq.MessageTracker | None

    if TYPE_CHECKING:

        def done(self) -> bool: ...

    @property
    def msg_ids(self) -> list[MsgId]:
        """The msg_ids of its requests."""
        return [call.get_msg_id(index) for call, index in self.slots]

    @property
    def metadata(self) -> Any:
        """Metadata of its request, or the list of them."""
        every = [call.make_metadata(index) for call, index in self.slots]
        return every[0] if self._is_single else every

    def _get_metadata(self, key: str) -> Any:
        """One entry of the metadata, or the list of them."""
        return self.metadata[key] if self._is_single else [entry[key] for entry in self.metadata]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in _METADATA_NAMES:
            return self._get_metadata(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # ------------------------------------------------------------ output

    def add_output_callback(self, fn: OutputCallback) -> None:
        """Call ``fn(index, engine_id, kind, content)`` with what its requests write and display: first with what has
        come already, then as it comes.

        In order, in the client's thread for callbacks. An exception of `fn` is logged. What `fn` gets is not bounded,
        other than what is kept here.

        Args:
            fn: Gets the position of the request in this call, the engine it runs on, and either "stdout" or "stderr"
                and a piece of text, or "display" and a dict of data and metadata (MIME types to contents).
        """
        start = 0
        for part in self.slots.parts:
            part.call.add_output_listener(OutputListener(fn, part.only, start))
            start += len(part.indices)

    def remove_output_callback(self, fn: OutputCallback) -> None:
        """Undo `add_output_callback`: `fn` is not called any more, but may be running right now."""
        for call in self.slots.calls:
            call.remove_output_listeners(fn)

    # ------------------------------------------------------------ times

    @property
    def progress(self) -> int:
        """How many of `len(self)` are done."""
        return self.slots.ended

    @property
    def elapsed(self) -> float:
        """Seconds since it was submitted, until now or until the last result came."""
        return self._get_duration() if self.done() else time.time() - self._get_submission()

    @property
    def wall_time(self) -> float:
        """Seconds from the submission to the last result.

        Raises:
            TimeoutError: Not done.
        """
        self._check_done()
        return self._get_duration()

    @property
    def serial_time(self) -> float:
        """Seconds that the engines worked on it, added up.

        Raises:
            TimeoutError: Not done.
        """
        self._check_done()
        results = [call.get_result(index) for call, index in self.slots.get_ended()]
        return sum(result.completed - result.started for result in results)

    def timedelta(
        self,
        start: datetime | Iterable[datetime],
        end: datetime | Iterable[datetime],
        start_key: Callable[[Iterable[datetime]], datetime] = min,
        end_key: Callable[[Iterable[datetime]], datetime] = max,
    ) -> float:
        """Seconds between two times of its metadata, as in ``ar.timedelta(ar.submitted, ar.received)``."""
        first = start if isinstance(start, datetime) else start_key(start)
        last = end if isinstance(end, datetime) else end_key(end)
        return (last - first).total_seconds()

    def _get_submission(self) -> float:
        return min(part.submitted for part in self.slots.parts)

    def _get_duration(self) -> float:
        last = max((call.get_times(index)[1] for call, index in self.slots), default=0.0)
        # Without any result (cancelled, or a call of no engines) it took no time.
        return max(0.0, last - self._get_submission())

    def _check_done(self) -> None:
        if not self.done():
            raise TimeoutError("Result not ready.")

    # ------------------------------------------------------------ sending

    @property
    def tracker(self) -> zmq.MessageTracker | None:
        """pyzmq's MessageTracker of the buffers that were sent uncopied; None without ``track=True`` or big buffers."""
        return self._tracker

    def set_tracker(self, tracker: zmq.MessageTracker | None) -> None:
        """For calls whose buffers are known only when the last of them is queued."""
        self._tracker = tracker

    @property
    def sent(self) -> bool:
        """Whether the buffers of the arguments may be changed again. Always True without ``track=True``."""
        return self._tracker is None or self._tracker.done

    def wait_for_send(self, timeout: float | None = -1) -> None:
        """Wait until the buffers of the arguments may be changed again.

        Args:
            timeout: Give up after this many seconds; None or negative waits for ever.
        Raises:
            TimeoutError: Not sent yet.
        """
        if self._tracker is None:
            return
        import zmq

        for call in self.slots.calls:
            call.connection.check_process()
        try:
            # MessageTracker takes -1 for ever, and None as well.
            self._tracker.wait(-1 if timeout is None or timeout < 0 else timeout)
        except zmq.NotDone:
            raise TimeoutError("Still waiting to be sent") from None


def join_trackers(trackers: Iterable[zmq.MessageTracker | None]) -> zmq.MessageTracker | None:
    """One tracker for several; None if there is none."""
    known = [tracker for tracker in trackers if tracker is not None]
    if len(known) <= 1:
        return known[0] if known else None
    import zmq

    return zmq.MessageTracker(*known)


_METADATA_NAMES = frozenset(make_metadata(MsgId(""), 0.0, 0.0, None, None, None))
