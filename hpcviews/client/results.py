"""What views give back: futures of one or several requests."""

from __future__ import annotations

import copy
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError
from typing import TYPE_CHECKING, Any, NoReturn

from hpcviews.client.display import Displayed
from hpcviews.client.facts import Facts, join_trackers
from hpcviews.client.future import NotReady, bound_timeout
from hpcviews.client.outcomes import Failure
from hpcviews.client.slots import Part, Slots
from hpcviews.errors import CompositeError, ControllerLost, HpcviewsError, UsageError
from hpcviews.ids import Seq

if TYPE_CHECKING:
    import zmq

    from hpcviews.client.call import Call


class AsyncResult(Facts, Displayed):
    """The result of a call that may still run; a real `concurrent.futures.Future`, and awaitable.

    A call with an integer target has one value, any other a list of values in the order of the targets. Failures:
    one value raises its own error, a list raises CompositeError, also if only one of them failed. All methods may
    be used from any thread. Values live as long as this object does, and nowhere else. When it is dropped and
    nobody has looked at an error of it, a warning is logged.

    ``await result`` gives what `get` gives, and ``async for`` what iterating gives, in any asyncio event loop.
    Cancelling a task that awaits it cancels it; ``asyncio.shield`` keeps it.

    Attributes:
        targets: The engine ids the call went to, as the view has them; None for a load-balanced call.
        metadata: What is known of its request, or the list of them. Each of its keys is an attribute and a key of
            this object too: ``result.stdout``, ``result["engine_id"]``; for a list, the list of values.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        targets: Any,
        is_single: bool,
        return_exceptions: bool = False,
        tracker: zmq.MessageTracker | None = None,
    ):
        super().__init__(slots, is_failure_an_error=not return_exceptions)
        self.targets = targets
        self._is_single = is_single
        self._return_exceptions = return_exceptions
        self._tracker = tracker
        self._children: tuple[AsyncResult, ...] | None = None
        slots.watch(self)  # last: what has ended is told before this returns

    def __repr__(self) -> str:
        count = len(self.slots)
        if self.cancelled():
            state = "cancelled"
        elif not self.done():
            state = "pending" if count <= 1 else f"{self.slots.ended} of {count} done"
        else:
            state = "failed" if self.slots.failed else "finished"
        return f"<{type(self).__name__}({self.name}): {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"an {type(self).__name__} cannot be sent or pickled; send its value (get), or its msg_ids, "
            "by which any client can have the result"
        )

    @property
    def name(self) -> str:
        """What was called."""
        return self.slots.parts[0].call.name

    @property
    def first(self) -> Seq:
        """The client's number of its first request."""
        part = self.slots.parts[0]
        return Seq(part.call.first + (part.only or 0))

    # ------------------------------------------------------------ values

    def get(
        self, timeout: float | None = None, return_exceptions: bool | None = None, return_when: str | None = None
    ) -> Any:
        """Wait, and return the value, or the list of values.

        Args:
            timeout: Give up after this many seconds; None or negative waits for ever, 0 only looks.
            return_exceptions: Give errors in place of the values of failed requests, instead of raising; None: as
                the call was made.
            return_when: FIRST_EXCEPTION of `concurrent.futures`: raise as soon as one has failed.
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
        if return_exceptions is None:
            return_exceptions = self._return_exceptions
        if return_when == FIRST_COMPLETED:
            warnings.warn("get() needs all results: return_when=FIRST_COMPLETED is ignored", UserWarning, stacklevel=2)
        is_early = return_when == FIRST_EXCEPTION and not return_exceptions
        is_ready = self._wait_when(timeout, FIRST_EXCEPTION) if is_early else self._wait(timeout)
        if not is_ready:
            raise NotReady("Result not ready.")
        value: Any = None
        error: BaseException | None
        if not self.done():
            error = self._combine(self._get_errors())
        else:
            self._check_not_cancelled()
            value, error = self._collect(return_exceptions)
        if error is None:
            return value
        try:
            raise _make_raisable(error)
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
            raise NotReady("Result not ready.")
        return self._collect(self._return_exceptions)[1]

    def _collect(self, return_exceptions: bool) -> tuple[Any, BaseException | None]:
        """What `get` returns, or raises."""
        outcomes = [call.read(index) for call, index in self.slots]
        errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
        if errors and not return_exceptions:
            return None, self._combine(errors)
        values = [outcome.error if isinstance(outcome, Failure) else outcome for outcome in outcomes]
        return (values[0] if self._is_single else values), None

    def _get_errors(self) -> list[BaseException]:
        """The errors of those that have failed so far."""
        return [call.read(index).error for call, index in self.slots if call.has_failed(index)]

    def _combine(self, errors: list[BaseException]) -> BaseException:
        if self._is_single:
            return errors[0]
        for error in errors:
            if isinstance(error, ControllerLost):
                return error  # not a matter of single engines: everything that was outstanding has ended so
        return CompositeError(f"one or more exceptions raised in: {self.name}", errors)

    @property
    def r(self) -> Any:
        """The value, waited for."""
        return self.get()

    @property
    def result_dict(self) -> dict[int, Any]:
        """As `get_dict()`."""
        return self.get_dict()

    def get_dict(self, timeout: float | None = -1) -> dict[int, Any]:
        """The values by engine id, waited for; of a map or a gather, the parts.

        Raises:
            ValueError: Several requests ran on one engine.
            What `get` raises.
        """
        if not self._wait(timeout):
            raise NotReady("Result not ready.")
        # Not `get`, which joins parts.
        values, error = AsyncResult._collect(self, self._return_exceptions)
        if error is not None:
            raise _make_raisable(error)
        engines = [call.get_result(index).engine for call, index in self.slots]
        for engine, jobs in Counter(engines).most_common(1):
            if jobs > 1:
                raise ValueError(f"Cannot build dict, {jobs} jobs ran on engine #{engine}")
        return dict(zip(engines, [values] if self._is_single else values, strict=True))

    def __getitem__(self, key: int | slice | str) -> Any:
        """A value by position; or by name, a metadata value or the list of them.

        Raises:
            TimeoutError: A value is asked for, and the call is not done.
        """
        if isinstance(key, str):
            return self._get_metadata(key)
        if isinstance(key, int | slice):
            return self.get(0)[key]
        raise TypeError(f"Invalid key type {type(key)}, must be 'int', 'slice', or 'str'")

    def __len__(self) -> int:
        return len(self.slots)

    def __bool__(self) -> bool:
        return True  # also without requests

    # ------------------------------------------------------------ one by one

    def __iter__(self) -> Iterator[Any]:
        """Values in the order of the targets, each as soon as it is there.

        Raises:
            TypeError: It has one value.
            CompositeError: When it comes to a failed request.
        """
        return self.iterate()

    def iterate(self, timeout: float | None = None) -> Iterator[Any]:
        """As iterating over it, with a time limit.

        Args:
            timeout: From now on, seconds until a value that is asked for must be there; None or negative: any time.
        Raises:
            TimeoutError: In the iteration: a value was not there in time.
        """
        self._check_iterable()
        limit = bound_timeout(timeout)
        return self._iterate(None if limit is None else time.monotonic() + limit)

    def _check_iterable(self) -> None:
        if self._is_single:
            raise TypeError("AsyncResults with a single result are not iterable.")

    def _iterate(self, end: float | None) -> Iterator[Any]:
        for turn in range(len(self.slots)):
            if not self._has_turn(turn):
                rest = None if end is None else max(0.0, end - time.monotonic())
                if not self.wait_until(lambda: self._has_turn(turn), rest):  # noqa: B023 - called before turn changes
                    raise NotReady("Result not ready.")
            yield from self._take_turn(turn)

    def __aiter__(self) -> AsyncIterator[Any]:
        """As iterating, for ``async for``."""
        self._check_iterable()
        return self._iterate_async()

    async def _iterate_async(self) -> AsyncIterator[Any]:
        from hpcviews.client.awaiting import wait_until_async

        for turn in range(len(self.slots)):
            if not self._has_turn(turn):
                await wait_until_async(self, lambda: self._has_turn(turn))  # noqa: B023 - called before turn changes
            for value in self._take_turn(turn):
                yield value

    def _has_turn(self, turn: int) -> bool:
        """Whether what iterating gives as number `turn` is there."""
        call, index = self.slots[turn]
        return bool(call.has_ended(index))

    def _take_turn(self, turn: int) -> list[Any]:
        """What iterating gives then.

        Raises:
            CancelledError: It was cancelled.
        """
        self._check_not_cancelled()
        call, index = self.slots[turn]
        outcome = call.read(index)
        if isinstance(outcome, Failure):
            if not self._return_exceptions:
                raise _make_raisable(self._combine([outcome.error]))
            outcome = outcome.error
        return [outcome]

    def _check_not_cancelled(self) -> None:
        if self.cancelled():
            raise CancelledError

    def __await__(self) -> Generator[Any, None, Any]:
        from hpcviews.client.awaiting import get_async

        return get_async(self).__await__()

    # ------------------------------------------------------------ its requests as results of their own

    def split(self) -> tuple[AsyncResult, ...]:
        """An AsyncResult per request, each with one value (of a map: the list of a chunk's). Again gives the same."""
        if self._children is None:
            # Each is waited for and ends by itself. Two threads may both make them, and one's are kept.
            self._children = tuple(self._pick(call, index) for call, index in self.slots)
        return self._children

    def pick(self, msg_id: str) -> AsyncResult:
        """The AsyncResult of one of its requests; of a call that has only one value, itself.

        Raises:
            KeyError: It is none of them.
        """
        found = self.slots.find(msg_id)
        if found is None:
            raise KeyError(f"{msg_id} is none of the {len(self.slots)} requests of {self!r}")
        return self if self._is_single else self._pick(*found)

    def _pick(self, call: Call, index: int) -> AsyncResult:
        targets = self.targets[index] if isinstance(self.targets, list) and len(self.slots.parts) == 1 else None
        return AsyncResult(
            Slots((Part(call, index),)),
            targets=targets,
            is_single=True,
            return_exceptions=self._return_exceptions,
            tracker=self._tracker,
        )

    @staticmethod
    def join(*results: AsyncResult) -> AsyncResult:
        """One AsyncResult of all requests of several, in their order; the inverse of `split`.

        Raises:
            UsageError: None are given.
        """
        if not results:
            raise UsageError("join() needs at least one AsyncResult")
        targets: list[Any] | None = []
        for result in results:
            if targets is None or result.targets is None:
                targets = None
            elif isinstance(result.targets, list):
                targets += result.targets
            else:
                targets.append(result.targets)
        return AsyncResult(
            Slots([part for result in results for part in result.slots.parts]),
            targets=targets,
            is_single=False,
            return_exceptions=all(result._return_exceptions for result in results),
            tracker=join_trackers([result.tracker for result in results]),
        )


def _make_raisable(error: BaseException) -> BaseException:
    """A copy: the traceback of what is raised refers to the caller's frames, and they to the result that keeps it.

    Not of the exceptions of others, which need not survive being copied.
    """
    return copy.copy(error) if isinstance(error, HpcviewsError) else error
