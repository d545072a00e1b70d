"""The result of a map or a gather: one sequence, from the chunks that requests give back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hpcviews.client import maps
from hpcviews.client.outcomes import UNREAD, Failure
from hpcviews.client.requests import Frames
from hpcviews.client.results import AsyncResult
from hpcviews.ids import Seq
from hpcviews.wire import messages as m

if TYPE_CHECKING:
    import zmq

    from hpcviews.client.client import Client


class AsyncMapResult(AsyncResult):
    """The result of a map or a gather: one sequence, put together from chunks.

    `len`, `progress` and iteration count items, not chunks. Iterating gives items as they arrive: in the order of
    the input, or with ``ordered=False`` whatever comes first.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        first: Seq,
        sizes: list[int] | None,
        count: int,
        *,
        targets: Any,
        dist: str = "b",
        is_map: bool = True,
        is_ordered: bool = True,
        return_exceptions: bool = False,
        tracker: zmq.MessageTracker | None = None,
    ):
        self._sizes = sizes
        """Items of each chunk; None: not known before they come."""
        self._dist = dist
        self._is_map = is_map
        self._arrived: list[int] | None = None if is_ordered else []
        self._joined: Any = UNREAD
        super().__init__(
            client,
            name,
            first,
            count,
            targets=targets,
            is_single=False,
            return_exceptions=return_exceptions,
            tracker=tracker,
        )

    def on_result(self, index: int, result: m.Result, frames: Frames, received: float) -> None:
        """A chunk is done."""
        super().on_result(index, result, frames, received)
        if self._arrived is not None:
            self._arrived.append(index)

    def _collect(self, return_exceptions: bool) -> tuple[Any, BaseException | None]:
        with self._reading:
            if self._joined is not UNREAD:
                return self._joined, None
            outcomes = [self._read(i) for i in range(self._count)]
            errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
            if errors and not return_exceptions:
                return None, self._combine(errors)
            if errors or self._is_map:
                return maps.join_lists([self._spread(i, outcome) for i, outcome in enumerate(outcomes)]), None
            self._joined = maps.join(outcomes, self._dist)
            # Only for a gather, whose parts are the bulk: one copy of them is enough.
            self._values = []
            return self._joined, None

    def _spread(self, index: int, outcome: Any) -> Any:
        """The items of a chunk; of a failed one, its error once per item."""
        if not isinstance(outcome, Failure):
            return outcome
        return [outcome.error] * (1 if self._sizes is None else self._sizes[index])

    def __len__(self) -> int:
        if self._is_map and self._sizes is not None:
            return sum(self._sizes)
        return self._count

    @property
    def progress(self) -> int:
        """How many of `len(self)` items are done; those of a chunk all at once."""
        if not self._is_map or self._sizes is None:
            return super().progress
        return sum(size for size, result in zip(self._sizes, self._results, strict=True) if result is not None)

    def _iterate(self) -> Iterator[Any]:
        if not self._is_map:
            # Parts of a gather make a sequence only together.
            yield from self.get()
            return
        for turn in range(self._count):
            index = turn
            if self._arrived is None:
                self._wait_for(turn)
            else:
                arrived = self._arrived
                if len(arrived) <= turn:
                    self._wait_until(lambda: len(arrived) > turn)  # noqa: B023 - called before turn changes
                index = arrived[turn]
            outcome = self._read(index)
            if isinstance(outcome, Failure) and not self._return_exceptions:
                raise copy.copy(self._combine([outcome.error]))
            yield from self._spread(index, outcome)
