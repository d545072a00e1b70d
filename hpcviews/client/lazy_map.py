"""A map that takes its inputs as it goes: for inputs that are endless, slow, or too big to be sent at once.

A thread of its own takes the inputs and sends tasks, so a slow input holds up no result. All three parties (that
thread, the I/O thread, which tells of ends, and the consumer) meet at one `_Exchange`; none of them polls.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from hpcviews.client.slots import withdraw
from hpcviews.errors import HpcviewsError

if TYPE_CHECKING:
    from hpcviews.client.results import AsyncResult

ITEMS_PER_ENGINE = 4
"""Items under way for each engine by default: one runs, one waits beside it, so the engine need not wait for a round
trip; two are results on their way to the consumer, or wait for an earlier one."""

Submit = Callable[[tuple[Any, ...]], "AsyncResult"]


class LazyMapIterator(Iterator[Any]):
    """The results of `LoadBalancedView.imap`, one by one.

    When it is exhausted, cancelled, dropped, or has raised, no more inputs are taken and what has not started is
    withdrawn. May be used from any thread, by one at a time.
    """

    def __init__(
        self,
        rows: Iterable[tuple[Any, ...]],
        submit: Submit,
        get_limit: Callable[[], int],
        scope: AbstractContextManager[None],
        *,
        is_ordered: bool,
        return_exceptions: bool,
    ):
        """Start taking inputs.

        Args:
            rows: The arguments of each call. Iterated in a thread, in the caller's context (`contextvars`).
            submit: Sends one call.
            get_limit: How many items may be between the input and the consumer; 0: any number.
            scope: Entered in that thread.
            is_ordered: Give results in the order of the inputs, or as they come.
            return_exceptions: Give errors in place of results.
        """
        self._return_exceptions = return_exceptions
        self._exchange = _Exchange(get_limit, is_ordered)
        context = contextvars.copy_context()
        # The thread knows the exchange only: dropped by its consumer, this object is collected, and ends the thread.
        thread = threading.Thread(
            target=context.run,
            args=(_feed, self._exchange, iter(rows), submit, scope),
            name="hpcviews-imap",
            daemon=True,
        )
        weakref.finalize(self, self._exchange.stop).atexit = False
        thread.start()

    def __next__(self) -> Any:
        """The next result, waited for.

        Raises:
            RemoteError: That call raised. No more results follow.
            Whatever the input raises, in the place of what it should have given.
        """
        result = self._exchange.take()
        if result is None:
            raise StopIteration
        try:
            return result.get(return_exceptions=self._return_exceptions)
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Take no more inputs, and withdraw the calls that have not started. The iteration is over."""
        self._exchange.stop()


class _Exchange:
    """What has been sent and not been given to the consumer."""

    def __init__(self, get_limit: Callable[[], int], is_ordered: bool):
        self._get_limit = get_limit
        self._is_ordered = is_ordered
        # Its lock is reentrant: a garbage collection inside may run `stop`.
        self._changed = threading.Condition()
        self._waiting: deque[AsyncResult] = deque()
        """In order: all that have been sent. Else: those that have ended."""
        self._sent: set[AsyncResult] = set()
        """Sent, and not given to the consumer."""
        self._is_fed = False
        self._end: BaseException | None = None
        """What the input raised."""
        self._is_stopped = False

    # ------------------------------------------------------------ the feeding thread

    def wait_for_room(self) -> bool:
        """Wait until another item may be sent. False: there will be none."""

        def has_room() -> bool:
            limit = self._get_limit()
            return self._is_stopped or not limit or len(self._sent) < limit

        with self._changed:
            self._changed.wait_for(has_room)
            return not self._is_stopped

    def put(self, result: AsyncResult) -> None:
        """It has been sent."""
        with self._changed:
            self._sent.add(result)
            if self._is_ordered:
                self._waiting.append(result)
            is_late = self._is_stopped
        if is_late:
            self.stop()
        result.add_quick_callback(self.on_end)

    def end(self, error: BaseException | None) -> None:
        """There are no more inputs."""
        with self._changed:
            self._is_fed = True
            self._end = error
            self._changed.notify_all()

    # ------------------------------------------------------------ the I/O thread

    def on_end(self, result: AsyncResult) -> None:
        """It has ended."""
        with self._changed:
            if not self._is_ordered:
                self._waiting.append(result)
            self._changed.notify_all()

    # ------------------------------------------------------------ the consumer

    def take(self) -> AsyncResult | None:
        """The next that has ended, waited for; None at the end.

        Raises:
            What the input raised, when everything before has been taken.
        """

        def is_ready() -> bool:
            if self._waiting:
                return self._is_stopped or self._waiting[0].done()
            return self._is_stopped or (self._is_fed and not self._sent)

        with self._changed:
            self._changed.wait_for(is_ready)
            if self._is_stopped:
                return None
            if not self._waiting:
                error, self._end = self._end, None
                self._is_stopped = True
                if error is not None:
                    raise error
                return None
            result = self._waiting.popleft()
            self._sent.discard(result)
            self._changed.notify_all()
            return result

    # ------------------------------------------------------------ anybody

    def stop(self) -> None:
        """No more, of anything."""
        with self._changed:
            self._is_stopped = True
            dropped = list(self._sent)
            self._sent.clear()
            self._waiting.clear()
            self._end = None
            self._changed.notify_all()
        for result in dropped:
            result.slots.dismiss()
        try:
            withdraw(request for result in dropped for request in result.slots.get_unfinished())
        except HpcviewsError:
            pass  # the connection is gone, and took them along


def _feed(
    exchange: _Exchange, rows: Iterator[tuple[Any, ...]], submit: Submit, scope: AbstractContextManager[None]
) -> None:
    error: BaseException | None = None
    try:
        with scope:
            while exchange.wait_for_room():
                row = next(rows, None)
                if row is None:
                    break
                exchange.put(submit(row))
                del row  # it may be big, and the next one may be long in coming
    except BaseException as raised:  # noqa: BLE001 - the boundary around the user's inputs: raised where they are used
        error = raised
    exchange.end(error)
    del error  # its traceback refers to this frame
