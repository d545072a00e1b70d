"""The result of a map, a gather or a parallel function: one sequence, from the chunks that requests give back."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from hpcviews.client import maps
from hpcviews.client.outcomes import UNREAD, Failure
from hpcviews.client.results import AsyncResult
from hpcviews.client.slots import Slots
from hpcviews.errors import UsageError

if TYPE_CHECKING:
    import zmq

    from hpcviews.client.call import Call


class AsyncMapResult(AsyncResult):
    """The result of a map, a gather or a parallel function: one sequence, put together from chunks.

    `len`, `progress` and iteration count items, not chunks. Iterating gives items as they arrive: in the order of
    the input, or with ``ordered=False`` whatever comes first.
    """

    def __init__(
        self,
        call: Call,
        sizes: list[int] | None,
        *,
        targets: Any,
        dist: str = "b",
        is_map: bool = True,
        return_exceptions: bool = False,
        tracker: zmq.MessageTracker | None = None,
    ):
        """Look at a call whose every request gives a chunk.

        Args:
            call: It; iterated in the order of arrival if it keeps that.
            sizes: Items of each chunk; None: not known before they come.
            targets: As for AsyncResult.
            dist: How the chunks were cut.
            is_map: Chunks are lists of results of single items; else parts of a sequence (of a gather, or of a
                parallel function).
            return_exceptions: Errors in place of results.
            tracker: Of the buffers that are sent.
        """
        self._call = call
        self._sizes = sizes
        self._length = sum(sizes) if is_map and sizes is not None else call.count
        self._dist = dist
        self._is_map = is_map
        self._joined: Any = UNREAD
        self._is_iterated = False
        super().__init__(
            Slots.of_call(call),
            targets=targets,
            is_single=False,
            return_exceptions=return_exceptions,
            tracker=tracker,
        )

    def _collect(self, return_exceptions: bool) -> tuple[Any, BaseException | None]:
        if self._joined is not UNREAD:
            return self._joined, None
        call = self._call
        outcomes = [call.read(index) for index in range(call.count)]
        errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
        if self._joined is not UNREAD:
            return self._joined, None  # another thread was faster, and what we read was let go meanwhile
        if errors and not return_exceptions:
            return None, self._combine(errors)
        if self._is_map:
            return maps.join_lists([self._spread(index, outcome) for index, outcome in enumerate(outcomes)]), None
        if errors:
            return self._join_with_errors(outcomes), None
        return self._join_parts(outcomes), None

    def _join_parts(self, parts: list[Any]) -> Any:
        self._joined = maps.join(parts, self._dist)
        if self._children is None and not self._is_iterated:
            # Parts of a gather may be most of the memory: one copy of them is enough.
            why = "the parts of this result have been joined and freed; call split() before get() to keep them"
            self._call.let_go(UsageError(why))
        return self._joined

    def _join_with_errors(self, outcomes: list[Any]) -> list[Any]:
        """Where the parts are lists of items, the list of those, a lost one being its error; else the list of parts."""
        lost = [isinstance(outcome, Failure) for outcome in outcomes]
        if all(is_lost or maps.has_items(outcome) for outcome, is_lost in zip(outcomes, lost, strict=True)):
            return maps.join_lists([self._spread(i, outcome) for i, outcome in enumerate(outcomes)], self._dist)
        return [o.error if is_lost else o for o, is_lost in zip(outcomes, lost, strict=True)]

    def _spread(self, index: int, outcome: Any) -> Any:
        """The items of a chunk; of a failed one, its error once per item."""
        if not isinstance(outcome, Failure):
            return outcome
        return [outcome.error] * (1 if self._sizes is None else self._sizes[index])

    def __len__(self) -> int:
        return self._length

    @property
    def progress(self) -> int:
        """How many of `len(self)` items are done; those of a chunk all at once."""
        if not self._is_map or self._sizes is None or len(self) == self._call.count:
            return super().progress
        return sum(size for index, size in enumerate(self._sizes) if self._call.has_ended(index))

    def iterate(self, timeout: float | None = None) -> Iterator[Any]:
        """As iterating over it, with a time limit; see `AsyncResult.iterate`."""
        self._is_iterated = True
        return super().iterate(timeout)

    def __aiter__(self) -> AsyncIterator[Any]:
        self._is_iterated = True
        return super().__aiter__()

    @property
    def _is_whole(self) -> bool:
        """Whether iterating can only give the joined sequence: its parts are dealt out, or gone."""
        return not self._is_map and (self._dist != "b" or self._call.is_let_go)

    def _has_turn(self, turn: int) -> bool:
        if self._is_whole:
            return self.done()
        arrivals = self._call.arrivals
        return super()._has_turn(turn) if arrivals is None else len(arrivals) > turn

    def _take_turn(self, turn: int) -> Any:
        if self._is_whole:
            return self.get() if turn == 0 else ()
        self._check_not_cancelled()
        arrivals = self._call.arrivals
        index = turn if arrivals is None else arrivals[turn]
        outcome = self._call.read(index)
        if isinstance(outcome, Failure) and not self._return_exceptions:
            raise copy.copy(self._combine([outcome.error]))
        if self._is_map or isinstance(outcome, Failure) or maps.has_items(outcome):
            return self._spread(index, outcome)
        return [outcome]
