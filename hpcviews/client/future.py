"""The end of requests as a future: waiting for it, being told of it, bringing it about."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import Any, overload

from hpcviews.client.slots import Slots, interrupt, withdraw
from hpcviews.errors import HpcviewsError

if sys.version_info >= (3, 11):
    NotReady = TimeoutError
else:

    class NotReady(FutureTimeoutError, TimeoutError):
        """What Python calls TimeoutError, and what it calls so in `concurrent.futures`: two classes before 3.11."""


class RequestsFuture(Future[Any]):
    """Base of AsyncResult: done when all of its requests have ended, however, or when it has been cancelled.

    It knows of ends only; what the requests gave is AsyncResult's.
    """

    def __init__(self, slots: Slots, is_failure_an_error: bool):
        """Wait for requests.

        Args:
            slots: Which.
            is_failure_an_error: Whether it counts as failed, to `concurrent.futures`, when one of them has.
        """
        super().__init__()
        self.slots = slots
        self._is_failure_an_error = is_failure_an_error
        self._deciding = threading.Lock()
        """Held while it becomes finished or cancelled, so that it becomes only one of them."""
        self._listeners: list[Callable[[], None]] = []
        """Called whenever some of its requests have ended, mostly in the I/O thread: they must not wait."""
        self._running_parts = set(range(len(slots.parts)))

    def split(self) -> Sequence[Any]:
        """A future per request; see AsyncResult."""
        raise NotImplementedError("in AsyncResult")

    # ------------------------------------------------------------ the I/O thread (and `Slots.watch`)

    def on_part_end(self, part: int) -> None:
        """All requests of a part have ended."""
        self._running_parts.discard(part)
        if not self._running_parts:
            with self._deciding:
                if self.done():
                    return
                # The state only, for those who wait in concurrent.futures; values and errors are read when asked for.
                if self.slots.failed and self._is_failure_an_error:
                    super().set_exception(_FAILED)
                else:
                    super().set_result(None)

    def on_progress(self) -> None:
        """Requests have ended: tell who waits for single ones."""
        for listener in tuple(self._listeners):
            listener()

    # ------------------------------------------------------------ waiting

    def _check_process(self) -> None:
        if not self.done():
            for call in self.slots.calls:
                call.connection.check_process()

    def _wait(self, timeout: float | None) -> bool:
        """True when done; raises CancelledError if it was cancelled."""
        self._check_process()
        try:
            super().exception(bound_timeout(timeout))
        except FutureTimeoutError:
            return False
        return True

    def wait_until(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until a condition holds that changes when requests end, or until the call is done.

        Args:
            predicate: Looked at whenever requests of this call have ended; must be quick, and must not wait.
            timeout: Give up after this many seconds; None or negative waits for ever.
        Returns:
            False if the time was over.
        """
        self._check_process()
        step = threading.Condition()

        def notify() -> None:
            with step:
                step.notify_all()

        with self.listening(notify), step:
            return step.wait_for(lambda: predicate() or self.done(), bound_timeout(timeout))

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have `listener` called whenever some of its requests have ended, for the length of a with-block.

        It is called in the I/O thread and must not wait. Look at the state only after this has begun: whoever stores
        a result after the look, calls.
        """
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @overload
    def wait(self, timeout: float | None = -1, return_when: None = None) -> bool: ...
    @overload
    def wait(self, timeout: float | None, return_when: str) -> tuple[set[RequestsFuture], set[RequestsFuture]]: ...
    @overload
    def wait(
        self, timeout: float | None = -1, *, return_when: str
    ) -> tuple[set[RequestsFuture], set[RequestsFuture]]: ...
    def wait(self, timeout: float | None = -1, return_when: str | None = None) -> Any:
        """Wait until all requests of this call have ended, however; or as `return_when` says.

        Args:
            timeout: Give up after this many seconds; None or negative waits for ever.
            return_when: FIRST_COMPLETED, FIRST_EXCEPTION or ALL_COMPLETED of `concurrent.futures`.
        Returns:
            Whether they have ended. With `return_when`: the sets of those that have and have not, as `split` gives
            them.
        """
        if return_when is None:
            try:
                return self._wait(timeout)
            except CancelledError:
                return True
        self._wait_when(timeout, return_when)
        children: Sequence[RequestsFuture] = self.split()
        done = {child for child in children if child.done()}
        return done, set(children) - done

    def _wait_when(self, timeout: float | None, return_when: str) -> bool:
        if return_when == FIRST_COMPLETED:
            return self.wait_until(lambda: self.slots.ended > 0, timeout)
        if return_when == FIRST_EXCEPTION:
            return self.wait_until(lambda: self.slots.failed > 0, timeout)
        if return_when != "ALL_COMPLETED":
            raise ValueError(f"return_when must be one of concurrent.futures' constants, not {return_when!r}")
        return self.wait_until(self.done, timeout)

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
        self.slots.note_seen()
        return not self.cancelled() and not self.slots.failed

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
        self.slots.dismiss()
        withdraw(self.slots.get_unfinished())
        self.on_progress()
        return True

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the requests of this call where they run; those that have not started end with
        TaskAborted. None of them is tried again, and no other request is hit.

        Raises:
            RuntimeError: All have ended.
        """
        if self.done():
            raise RuntimeError("Can't interrupt, I am already done!")
        interrupt(self.slots.get_unfinished())

    def abort(self) -> None:
        """Withdraw the requests that have not started: they end with TaskAborted; those that run go on.

        Raises:
            RuntimeError: All have ended.
        """
        if self.done():
            raise RuntimeError("Can't abort, I am already done!")
        withdraw(self.slots.get_unfinished())

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn(self)`` when the call is done: at once if it is, else in the client's thread for callbacks.

        A callback may wait for other results. An exception of it is logged.
        """
        if self.done():
            super().add_done_callback(fn)
            return
        run_callback = self.slots.parts[0].call.connection.run_callback
        # `me` and not self, which would hold itself.
        self.add_quick_callback(lambda me: run_callback(lambda: fn(me)))

    def add_quick_callback(self, fn: Callable[[Any], object]) -> None:
        """Call ``fn(self)`` when the call is done: at once, or in the I/O thread, where it must not wait."""
        super().add_done_callback(fn)


_FAILED = HpcviewsError("never seen: AsyncResult.exception gives the error")


def bound_timeout(timeout: float | None) -> float | None:
    """A time limit as the standard library wants it: None for none."""
    return None if timeout is None or timeout < 0 else timeout
