"""What views give back: futures of one or several requests.

The I/O thread only stores what arrives; values are unpickled in the thread that asks for them, once. A call of a
hundred thousand tasks is one object here, with lists, and no locks or futures of its own per task.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import datetime
from typing import TYPE_CHECKING, Any

from hpcviews.client.metadata import Metadata, Texts, make_metadata
from hpcviews.client.outcomes import UNREAD, Failure, make_error
from hpcviews.client.requests import Frames
from hpcviews.errors import (
    CompositeError,
    ControllerLost,
    SerializationError,
)
from hpcviews.ids import MsgId, Seq, render_msg_id
from hpcviews.wire import messages as m
from hpcviews.wire.payload import loads

if TYPE_CHECKING:
    import zmq

    from hpcviews.client.client import Client

Decode = Callable[[Any, Metadata], Any]
"""Makes a request's value what the user sees."""

BIG_DATA_BYTES = 256
"""Payloads above this are dropped once unpickled; for smaller ones a new record would cost as much as it frees."""


class AsyncResult(Future[Any]):
    """The result of a call that may still run; a real `concurrent.futures.Future`.

    A call with an integer target has one value, any other a list of values in the order of the targets. Failures:
    one value raises its own error, a list raises CompositeError, also if only one of them failed. All methods may
    be used from any thread. Values live as long as this object does, and nowhere else.

    Attributes:
        targets: The engine ids the call went to, as the view has them; None for a load-balanced call.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        first: Seq,
        count: int,
        *,
        targets: Any,
        is_single: bool,
        decode: Decode | None = None,
        return_exceptions: bool = False,
        tracker: zmq.MessageTracker | None = None,
    ):
        super().__init__()
        self._client = client
        self._name = name
        self.first = first
        self._count = count
        self.targets = targets
        self._is_single = is_single
        self._decode = decode
        self._return_exceptions = return_exceptions
        self._tracker = tracker
        self._submitted = time.time()
        self._results: list[m.Result | None] = [None] * count
        self._received: list[float] = [0.0] * count
        self._pending = count
        self._frames: dict[int, Frames] = {}
        self._texts: dict[int, Texts] = {}
        self._values: list[Any] = [UNREAD] * count
        # Reentrant: unpickling runs user code, which may look at this very result.
        self._reading = threading.RLock()
        self._deciding = threading.Lock()
        """Held while it becomes finished or cancelled, so that it becomes only one of them."""
        self._step: threading.Condition | None = None
        if not count:
            self._settle()

    # ------------------------------------------------------------ the I/O thread

    def on_result(self, index: int, result: m.Result, frames: Frames, received: float) -> None:
        """A request of this call ended."""
        if frames:
            self._frames[index] = frames
        self._received[index] = received
        self._results[index] = result
        self._pending -= 1

    def on_output(self, index: int, engine: int, stream: str, text: str) -> None:
        """A request of this call wrote text."""
        texts = self._texts.get(index)
        if texts is None:
            texts = self._texts[index] = Texts()
        texts.engine = engine
        texts.add(stream, text)

    def on_batch_end(self) -> None:
        """Results have been stored: tell who waits."""
        if not self._pending:
            self._settle()
        step = self._step
        if step is not None:
            with step:
                step.notify_all()

    def _settle(self) -> None:
        with self._deciding:
            if not self.cancelled():
                super().set_result(None)  # the state only; the value is read when somebody asks

    # ------------------------------------------------------------ waiting

    def _wait(self, timeout: float | None) -> bool:
        """True when done; raises CancelledError if it was cancelled."""
        if not self.done():
            self._client._connection.check_process()
        if timeout is not None and timeout < 0:
            timeout = None
        try:
            super().result(timeout)
        except FutureTimeoutError:
            return False
        return True

    def wait(self, timeout: float | None = -1) -> bool:
        """Wait until all requests of this call have ended, however.

        Args:
            timeout: Give up after this many seconds; None or negative waits for ever.
        Returns:
            Whether they have.
        """
        try:
            return self._wait(timeout)
        except CancelledError:
            return True

    def wait_for_output(self, timeout: float | None = -1) -> bool:
        """As `wait`: what a request writes always arrives before its result."""
        return self.wait(timeout)

    def ready(self) -> bool:
        """Whether all requests of this call have ended."""
        return self.done()

    def successful(self) -> bool:
        """Whether none of them failed.

        Raises:
            RuntimeError: They have not ended.
        """
        if not self.done():
            raise RuntimeError("Cannot check successful() if not done.")
        return not self.cancelled() and all(r is not None and r.error is None for r in self._results)

    def get(self, timeout: float | None = None, return_exceptions: bool | None = None) -> Any:
        """Wait, and return the value, or the list of values.

        Args:
            timeout: Give up after this many seconds; None or negative waits for ever, 0 only looks.
            return_exceptions: Give errors in place of the values of failed requests, instead of raising.
        Raises:
            TimeoutError: Not done yet. The work goes on; calling again is fine.
            RemoteError: User code raised; `__cause__` is the original exception where it could be unpickled.
            CompositeError: Requests of a call for several engines failed; `elist` has their errors.
            EngineError: The engine died before it answered.
            TaskAborted: It was withdrawn.
            ControllerLost: The connection broke while it was outstanding.
            SerializationError: The value cannot be unpickled here.
            CancelledError: `cancel` was called.
        """
        if not self._wait(timeout):
            raise TimeoutError("Result not ready.")
        if return_exceptions is None:
            return_exceptions = self._return_exceptions
        value, error = self._collect(return_exceptions)
        if error is None:
            return value
        try:
            # A copy: the traceback of what is raised refers to the caller's frames, and they to this object.
            raise copy.copy(error)
        finally:
            self = error = None  # type: ignore[assignment]

    def result(self, timeout: float | None = None) -> Any:
        """As `get(timeout)`."""
        return self.get(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what `get` would raise, or None.

        Raises:
            TimeoutError: Not done yet.
            CancelledError: `cancel` was called.
        """
        if not self._wait(timeout):
            raise TimeoutError("Result not ready.")
        return self._collect(self._return_exceptions)[1]

    def _collect(self, return_exceptions: bool) -> tuple[Any, BaseException | None]:
        """What `get` returns, or raises."""
        outcomes = [self._read(i) for i in range(self._count)]
        errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
        if errors and not return_exceptions:
            return None, self._combine(errors)
        values = [outcome.error if isinstance(outcome, Failure) else outcome for outcome in outcomes]
        return (values[0] if self._is_single else values), None

    def _combine(self, errors: list[BaseException]) -> BaseException:
        if self._is_single:
            return errors[0]
        for error in errors:
            if isinstance(error, ControllerLost):
                return error  # not a matter of single engines: everything that was outstanding has ended so
        return CompositeError(f"one or more exceptions raised in: {self._name}", errors)

    def _read(self, index: int) -> Any:
        """The value of a request that has ended, or its Failure."""
        value = self._values[index]
        if value is not UNREAD:
            return value
        with self._reading:
            value = self._values[index]
            if value is UNREAD:
                value = self._values[index] = self._unpickle(index)
        return value

    def _unpickle(self, index: int) -> Any:
        result = self._results[index]
        assert result is not None
        frames = self._frames.get(index, [])
        try:
            if result.error is not None:
                return Failure(make_error(result, result.error, frames))
            if not result.data and not frames:
                value = None
            else:
                value = loads(result.data, frames)
            if self._decode is not None:
                value = self._decode(value, self._make_metadata(index))
            return value
        except SerializationError as error:
            return Failure(error)
        finally:
            self._frames.pop(index, None)
            if len(result.data) > BIG_DATA_BYTES:
                self._results[index] = m.Result(
                    b"", 0, result.seq, result.engine, result.started, result.completed, result.error
                )

    # ------------------------------------------------------------ ending it early

    def cancel(self) -> bool:
        """Give the call up: requests that have not started are withdrawn.

        Those that run go on, and their results are dropped. From now on `get` raises CancelledError.

        Returns:
            False if all had ended already.
        """
        with self._deciding:
            if self.cancelled():
                return True
            if not super().cancel():
                return False
            self.set_running_or_notify_cancel()  # tells concurrent.futures.wait and as_completed
        self._withdraw()
        step = self._step
        if step is not None:
            with step:
                step.notify_all()
        return True

    def abort(self) -> None:
        """Withdraw the requests that have not started: they end with TaskAborted; those that run go on.

        Raises:
            RuntimeError: All have ended.
        """
        if self.done():
            raise RuntimeError("Can't abort, I am already done!")
        self._withdraw()

    def _withdraw(self) -> None:
        seqs = self.get_unfinished_seqs()
        if seqs:
            self._client._connection.post(None, range(0), [m.Abort(seqs)], [])

    def get_unfinished_seqs(self) -> list[int]:
        """Numbers of its requests that have not ended."""
        return [self.first + i for i, result in enumerate(self._results) if result is None]

    def get_unfinished(self) -> list[MsgId]:
        """msg_ids of its requests that have not ended."""
        session = self._client._connection.session
        return [render_msg_id(session, Seq(seq)) for seq in self.get_unfinished_seqs()]

    def get_request_count(self) -> int:
        """How many requests it is made of."""
        return self._count

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn(self)`` when the call is done: at once if it is, else in the client's thread for callbacks.

        A callback may wait for other results.
        """
        if self.done():
            super().add_done_callback(fn)
            return
        run_callback = self._client._connection.run_callback
        super().add_done_callback(lambda me: run_callback(lambda: fn(me)))

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

        Raises:
            TimeoutError: Not sent yet.
        """
        if self._tracker is None:
            return
        import zmq

        self._client._connection.check_process()
        try:
            # MessageTracker takes -1 for ever, and None as well.
            self._tracker.wait(-1 if timeout is None or timeout < 0 else timeout)
        except zmq.NotDone:
            raise TimeoutError("Still waiting to be sent") from None

    # ------------------------------------------------------------ what is known

    @property
    def msg_ids(self) -> list[MsgId]:
        """The msg_ids of its requests."""
        session = self._client._connection.session
        return [render_msg_id(session, Seq(self.first + i)) for i in range(self._count)]

    @property
    def metadata(self) -> Any:
        """Metadata of its request, or the list of them."""
        every = [self._make_metadata(i) for i in range(self._count)]
        return every[0] if self._is_single else every

    def _make_metadata(self, index: int) -> Metadata:
        connection = self._client._connection
        result = self._results[index]
        texts = self._texts.get(index)
        engine = result.engine if result is not None else texts.engine if texts is not None else -1
        return make_metadata(
            render_msg_id(connection.session, Seq(self.first + index)),
            self._submitted,
            self._received[index],
            result,
            texts,
            connection.registry.find(engine),
        )

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in _METADATA_NAMES:
            return self[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getitem__(self, key: int | slice | str) -> Any:
        """A value by position; or by name, a metadata value or the list of them.

        Raises:
            TimeoutError: A value is asked for, and the call is not done.
        """
        if isinstance(key, str):
            if self._is_single:
                return self.metadata[key]
            return [entry[key] for entry in self.metadata]
        if isinstance(key, int | slice):
            return self.get(0)[key]
        raise TypeError(f"Invalid key type {type(key)}, must be 'int', 'slice', or 'str'")

    @property
    def r(self) -> Any:
        """The value, waited for."""
        return self.get()

    @property
    def result_dict(self) -> dict[int, Any]:
        """As `get_dict()`."""
        return self.get_dict()

    def get_dict(self, timeout: float | None = -1) -> dict[int, Any]:
        """The values by engine id, waited for.

        Raises:
            ValueError: Several requests ran on one engine.
        """
        values = self.get(timeout)
        values = [values] if self._is_single else values
        by_engine: dict[int, Any] = {}
        for result, value in zip(self._results, values, strict=True):
            assert result is not None
            if result.engine in by_engine:
                jobs = sum(r is not None and r.engine == result.engine for r in self._results)
                raise ValueError(f"Cannot build dict, {jobs} jobs ran on engine #{result.engine}")
            by_engine[result.engine] = value
        return by_engine

    def __len__(self) -> int:
        return self._count

    @property
    def progress(self) -> int:
        """How many of `len(self)` are done."""
        return self._count - self._pending

    @property
    def elapsed(self) -> float:
        """Seconds since it was submitted, until now or until the last result came."""
        return (max(self._received, default=self._submitted) if self.done() else time.time()) - self._submitted

    @property
    def wall_time(self) -> float:
        """Seconds from the submission to the last result.

        Raises:
            TimeoutError: Not done.
        """
        self._check_done()
        return max(self._received, default=self._submitted) - self._submitted

    @property
    def serial_time(self) -> float:
        """Seconds that the engines worked on it, added up.

        Raises:
            TimeoutError: Not done.
        """
        self._check_done()
        return sum(r.completed - r.started for r in self._results if r is not None)

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

    def _check_done(self) -> None:
        if not self.done():
            raise TimeoutError("Result not ready.")

    def __repr__(self) -> str:
        if self.cancelled():
            state = "cancelled"
        elif not self.done():
            state = "pending" if self._count <= 1 else f"{self._count - self._pending} of {self._count} done"
        else:
            state = "finished" if self.successful() else "failed"
        return f"<{type(self).__name__}({self._name}): {state}>"

    # ------------------------------------------------------------ iteration

    def __iter__(self) -> Iterator[Any]:
        """Values in the order of the targets, each as soon as it is there.

        Raises:
            TypeError: It has one value.
            CompositeError: When it comes to a failed request.
        """
        if self._is_single:
            raise TypeError("AsyncResults with a single result are not iterable.")
        return self._iterate()

    def _iterate(self) -> Iterator[Any]:
        for index in range(self._count):
            self._wait_for(index)
            yield self._get_one(index)

    def _get_one(self, index: int) -> Any:
        outcome = self._read(index)
        if not isinstance(outcome, Failure):
            return outcome
        if self._return_exceptions:
            return outcome.error
        raise copy.copy(self._combine([outcome.error]))

    def _wait_for(self, index: int) -> None:
        """Wait until request `index` has ended."""
        if self._results[index] is None:
            self._wait_until(lambda: self._results[index] is not None)

    def _wait_until(self, predicate: Callable[[], bool]) -> None:
        self._client._connection.check_process()
        if self._step is None:
            with self._reading:
                self._step = self._step or threading.Condition()
        # The I/O thread stores, then looks for a condition to notify; we set the condition, then look at what is
        # stored. So one of the two sees the other.
        with self._step:
            self._step.wait_for(lambda: predicate() or self.cancelled())
        if self.cancelled():
            raise CancelledError


_METADATA_NAMES = frozenset(make_metadata(MsgId(""), 0.0, 0.0, None, None, None))
