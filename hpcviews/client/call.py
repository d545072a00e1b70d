"""One call of a view: what has come for each of its requests.

The I/O thread only stores what arrives; values are unpickled in the thread that asks for them, once. A call of a
hundred thousand tasks is one object here, with lists, and no locks or futures of its own per task. AsyncResults
are views of it: one of the whole call, others of single requests, or of the requests of several calls.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hpcviews.client.metadata import Metadata, make_metadata
from hpcviews.client.outcomes import UNREAD, Failure, make_error
from hpcviews.client.outgoing import Frames
from hpcviews.client.output import Display, OutputCallback, OutputListener, RequestOutput
from hpcviews.client.transfers import Traffic
from hpcviews.errors import SerializationError
from hpcviews.ids import MsgId, Seq, render_msg_id
from hpcviews.wire import messages as m
from hpcviews.wire.payload import loads

if TYPE_CHECKING:
    from hpcviews.client.client import Client
    from hpcviews.client.connection import Connection

log = logging.getLogger("hpcviews.client.call")

Decode = Callable[[Any, Metadata], Any]
"""Makes a request's value what the user sees."""

BIG_DATA_BYTES = 256
"""Payloads above this are dropped once unpickled; for smaller ones a new record would cost as much as it frees."""

_EXPECTED_ERRORS = frozenset({"TaskAborted", "ControllerLost"})
"""What a request may end with by somebody's own wish, or with everything else: no news for whoever dropped it."""


class Watcher(Protocol):
    """Who wants to know of ends of requests. Called in the I/O thread, or at once by `Call.watch`; must not wait."""

    def on_part_end(self, part: int) -> None:
        """All requests of what was watched as `part` have ended."""

    def on_progress(self) -> None:
        """Some of them have; after `on_part_end`."""


class Call:
    """The requests `first`, `first + 1`, … of a client, and what is known of each.

    Nothing but the AsyncResults that look at it keeps it, once all have ended.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        first: Seq,
        count: int,
        *,
        decode: Decode | None = None,
        keep_arrivals: bool = False,
        msg_ids: Sequence[MsgId] | None = None,
        label: str = "",
        code: str | None = None,
        after: Sequence[str] = (),
        follow: Sequence[str] = (),
    ):
        """Make room for the results of `count` requests.

        Args:
            client: Whose numbers they have. Kept alive while they are outstanding.
            name: What error messages call it.
            first: Number of the first.
            count: How many.
            decode: Makes each value what the user sees.
            keep_arrivals: Note in `arrivals` in which order they end.
            msg_ids: Requests of others, whose results come under our numbers (`messages.Follow`).
            label: The user's own word for them.
            code: The source text they execute, if they do.
            after, follow: msg_ids of the requests they depend on.
        """
        self.client = client
        self.name = name
        self.first = first
        self.count = count
        self.pending = count
        """How many have not ended."""
        self.failed = 0
        """How many have failed."""
        self.is_let_go = False
        """Whether the values have been freed."""
        self.arrivals: list[int] | None = [] if keep_arrivals else None
        self.traffic = Traffic()
        self._decode = decode
        self._msg_ids = msg_ids
        self.label = label
        self._code = code
        self._after = after
        self._follow = follow
        self._submitted = time.time()
        self._followed: dict[int, m.Followed] = {}
        self._results: list[m.Result | None] = [None] * count
        self._received: list[float] = [0.0] * count
        self._frames: dict[int, Frames] = {}
        self._outputs: dict[int, RequestOutput] = {}
        self._output_listeners: tuple[OutputListener, ...] = ()
        # Held while output is stored and handed on, and while listeners come: so each gets everything, once, in order.
        # Reentrant: a garbage collection inside may run code of users.
        self._writing = threading.RLock()
        self._values: list[Any] = [UNREAD] * count
        # Reentrant: unpickling runs user code, which may look at this very call.
        self._reading = threading.RLock()
        self._watchers: list[tuple[Watcher, int]] = []
        self._slot_watchers: dict[int, list[tuple[Watcher, int]]] = {}
        self._is_dismissed = False
        self._unseen: m.Result | None = None
        """The first failure that nobody has looked at, if it is worth a word when the call is dropped."""

    @property
    def is_foreign(self) -> bool:
        """Whether its requests were submitted by others, or by an earlier call."""
        return self._msg_ids is not None

    @property
    def connection(self) -> Connection:
        """What it was sent on."""
        return self.client._connection

    # ------------------------------------------------------------ the I/O thread

    def on_result(self, index: int, result: m.Result, frames: Frames, received: float) -> None:
        """A request ended."""
        if frames:
            self._frames[index] = frames
            self.traffic.add((index,), frames)
        self._received[index] = received
        self._results[index] = result
        self.pending -= 1
        if result.error is not None:
            self.failed += 1
            if self._unseen is None and not (result.error.local and result.error.ename in _EXPECTED_ERRORS):
                self._unseen = result
        if self.arrivals is not None:
            self.arrivals.append(index)
        # Stored first, then looked for watchers; `watch` does it the other way round. One of the two sees the other.
        if self._slot_watchers:
            for watcher, part in tuple(self._slot_watchers.pop(index, ())):
                watcher.on_part_end(part)
                watcher.on_progress()

    def on_followed(self, index: int, followed: m.Followed) -> None:
        """What a request of others is."""
        self._followed[index] = followed

    def on_output(self, index: int, engine: int, stream: str, text: str) -> None:
        """A request wrote text."""
        with self._writing:
            self._get_output(index, engine).add_text(stream, text)
            self._tell_listeners(index, engine, stream, text)

    def on_published(self, index: int, engine: int, kind: str, data: bytes, frames: Frames) -> None:
        """A request displayed something, or published data."""
        if kind == "display":
            display = Display(data, frames)
            with self._writing:
                self._get_output(index, engine).add_display(display)
                self._tell_listeners(index, engine, kind, display)
        elif kind == "data":
            with self._writing:
                output = self._get_output(index, engine)
                if output.add_data(data, frames):
                    # Of what is published in a loop only the latest counts: the rest must not pile up unread.
                    self.connection.run_callback(lambda: self._merge_data(output))

    def _get_output(self, index: int, engine: int) -> RequestOutput:
        output = self._outputs.get(index)
        if output is None:
            output = self._outputs[index] = RequestOutput()
        output.engine = engine
        return output

    def _tell_listeners(self, index: int, engine: int, kind: str, content: str | Display) -> None:
        for listener in self._output_listeners:
            self._tell(listener, index, engine, kind, content)

    def _tell(self, listener: OutputListener, index: int, engine: int, kind: str, content: str | Display) -> None:
        position = listener.find_position(index)
        if position is None:
            return

        def tell() -> None:
            if listener in self._output_listeners:
                shown = content.read() if isinstance(content, Display) else content
                listener.fn(position, engine, kind, shown)

        self.connection.run_callback(tell)

    def on_batch_end(self) -> None:
        """All results that came together have been stored: tell who watches the whole call."""
        watchers = self._watchers
        if not self.pending:
            self.traffic.end()
            self._watchers = []  # they hold us, so that we must not hold them any longer
        for watcher, part in tuple(watchers):
            if not self.pending:
                watcher.on_part_end(part)
            watcher.on_progress()

    # ------------------------------------------------------------ any thread: output

    def add_output_listener(self, listener: OutputListener) -> None:
        """Give it what has come and what will come, in the thread for callbacks."""
        with self._writing:
            self._output_listeners = (*self._output_listeners, listener)
            for index, output in sorted(self._outputs.items()):
                for kind, content in output.iterate():
                    self._tell(listener, index, output.engine, kind, content)

    def remove_output_listeners(self, fn: OutputCallback) -> None:
        """Nothing more for `fn`."""
        with self._writing:
            self._output_listeners = tuple(listener for listener in self._output_listeners if listener.fn != fn)

    def _merge_data(self, output: RequestOutput) -> dict[str, Any]:
        with self._reading:
            return output.merge_data()

    # ------------------------------------------------------------ any thread: watching

    def watch(self, index: int | None, watcher: Watcher, part: int) -> None:
        """Tell `watcher`, which is kept until then, when a request has ended; or with None, as all of them do.

        If that has happened, it is told before this returns. It may be told twice.
        """
        if self.has_ended(index):
            watcher.on_part_end(part)
            return
        entry = (watcher, part)
        entries = self._watchers if index is None else self._slot_watchers.setdefault(index, [])
        entries.append(entry)
        if self.has_ended(index):
            # The I/O thread may have missed it; and it must not be kept by what it keeps.
            entries.remove(entry)
            watcher.on_part_end(part)

    def has_ended(self, index: int | None) -> bool:
        """Whether a request has ended; or with None, all of them."""
        return not self.pending if index is None else self._results[index] is not None

    def has_failed(self, index: int) -> bool:
        """Whether a request has ended without a value."""
        result = self._results[index]
        return result is not None and result.error is not None

    def get_result(self, index: int) -> m.Result:
        """What ended a request. Only for one that has."""
        result = self._results[index]
        assert result is not None
        return result

    def find_index(self, msg_id: str) -> int | None:
        """Which of its requests has that msg_id; None if none has."""
        if self._msg_ids is not None:
            return next((index for index, own in enumerate(self._msg_ids) if own == msg_id), None)
        session, _, seq = msg_id.rpartition("-")
        if session != self.connection.session or not seq.isdecimal():
            return None
        index = int(seq) - self.first
        return index if 0 <= index < self.count else None

    @property
    def submitted(self) -> float:
        """When the first of them was submitted, Unix seconds."""
        return min((f.submitted for f in self._followed.values()), default=self._submitted)

    def get_times(self, index: int) -> tuple[float, float]:
        """When a request was submitted, and when its result came here; Unix seconds, 0 if that is not known yet."""
        followed = self._followed.get(index)
        return followed.submitted if followed is not None else self._submitted, self._received[index]

    # ------------------------------------------------------------ any thread: values

    def read(self, index: int) -> Any:
        """The value of a request that has ended, or its Failure."""
        value = self._values[index]
        if value is UNREAD:
            with self._reading:
                value = self._values[index]
                if value is UNREAD:
                    value = self._values[index] = self._unpickle(index)
        if isinstance(value, Failure):
            self.note_seen()
        return value

    def let_go(self, why: BaseException) -> None:
        """Free the values; who reads one from now on gets `why`."""
        with self._reading:
            self._values = [Failure(why)] * self.count
            self.is_let_go = True

    def _unpickle(self, index: int) -> Any:
        result = self.get_result(index)
        frames = self._frames.get(index, [])
        try:
            if result.error is not None:
                return Failure(make_error(result, result.error, frames))
            value = loads(result.data, frames) if result.data or frames else None
            return value if self._decode is None else self._decode(value, self._describe(index))
        except SerializationError as error:
            return Failure(error)
        finally:
            self._frames.pop(index, None)
            if len(result.data) > BIG_DATA_BYTES:
                self._results[index] = m.Result(
                    b"", 0, result.seq, result.engine, result.started, result.completed, result.error
                )

    # ------------------------------------------------------------ any thread: facts

    def get_msg_id(self, index: int) -> MsgId:
        """The msg_id of a request."""
        if self._msg_ids is not None:
            return self._msg_ids[index]
        return render_msg_id(self.connection.session, self.first + index)

    def make_metadata(self, index: int) -> Metadata:
        """What is known of a request."""
        metadata = self._describe(index)
        if self._code is not None and metadata["status"] == "ok":
            metadata["execute_result"] = getattr(self.read(index), "execute_result", None)
        return metadata

    def _describe(self, index: int) -> Metadata:
        """The same without what is in its value."""
        self.note_seen()
        result = self._results[index]
        output = self._outputs.get(index)
        followed = self._followed.get(index)
        engine = result.engine if result is not None else output.engine if output is not None else -1
        submitted, received = self.get_times(index)
        with self._reading:  # published data is unpickled here
            return make_metadata(
                self.get_msg_id(index),
                submitted,
                received,
                result,
                output,
                self.connection.registry.find(engine),
                (followed.label if followed is not None else self.label) or None,
                self._code,
                self._after,
                self._follow,
                plane=self.traffic.get_plane(index),
                nbytes=self.traffic.get_bytes(index),
            )

    def get_unfinished(self) -> list[int]:
        """Which requests have not ended."""
        return [index for index, result in enumerate(self._results) if result is None] if self.pending else []

    # ------------------------------------------------------------ failures that nobody looks at

    def note_seen(self) -> None:
        """Somebody has looked at how things are."""
        self._unseen = None

    def dismiss(self) -> None:
        """Nobody wants to know how it ends."""
        self._is_dismissed = True

    def __del__(self) -> None:
        unseen = self._unseen
        # At the interpreter's end every result is dropped: what is not looked at by then was not meant to be.
        if unseen is not None and not self._is_dismissed and not sys.is_finalizing():
            self.connection.report_unseen(self.name, self.get_msg_id(unseen.seq - self.first), unseen)
