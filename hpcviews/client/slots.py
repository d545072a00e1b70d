"""Which requests an AsyncResult is about: all of a call, one of it, or those of several calls in a row."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcviews.client.call import Call, Watcher
from hpcviews.wire import messages as m

if TYPE_CHECKING:
    from hpcviews.client.connection import Connection


class Part(NamedTuple):
    """Requests of one call."""

    call: Call
    only: int | None
    """Which of its requests; None: all of them."""

    @property
    def indices(self) -> range:
        """The same, as positions in the call."""
        return range(self.call.count) if self.only is None else range(self.only, self.only + 1)

    @property
    def submitted(self) -> float:
        """When the first of them was submitted, Unix seconds."""
        return self.call.submitted if self.only is None else self.call.get_times(self.only)[0]

    @property
    def ended(self) -> int:
        """How many have ended."""
        if self.only is None:
            return self.call.count - self.call.pending
        return int(self.call.has_ended(self.only))

    @property
    def failed(self) -> int:
        """How many have ended without a value."""
        return self.call.failed if self.only is None else int(self.call.has_failed(self.only))


class Slots(Sequence[tuple[Call, int]]):
    """A sequence of requests, each a call and a position in it."""

    __slots__ = ("_count", "_starts", "parts")

    def __init__(self, parts: Sequence[Part]):
        self.parts = parts
        self._starts: Sequence[int] = (0,)
        if len(parts) == 1:
            self._count = len(parts[0].indices)
        else:
            starts = list(accumulate((len(part.indices) for part in parts), initial=0))
            self._count = starts.pop()
            self._starts = starts

    @classmethod
    def of_call(cls, call: Call) -> Slots:
        """All requests of a call."""
        return cls((Part(call, None),))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: Any) -> Any:
        if not isinstance(position, int):
            raise TypeError("one at a time")
        if not 0 <= position < self._count:
            raise IndexError(position)
        # The last part that starts here or before: parts may be empty.
        number = bisect_right(self._starts, position) - 1 if len(self.parts) > 1 else 0
        part = self.parts[number]
        return part.call, part.indices[position - self._starts[number]]

    def __iter__(self) -> Iterator[tuple[Call, int]]:
        for part in self.parts:
            for index in part.indices:
                yield part.call, index

    def find(self, msg_id: str) -> tuple[Call, int] | None:
        """The request of that msg_id; None if it is none of them."""
        for part in self.parts:
            index = part.call.find_index(msg_id)
            if index is not None and part.only in (None, index):
                return part.call, index
        return None

    @property
    def calls(self) -> list[Call]:
        """The calls they are of, each once."""
        return list(dict.fromkeys(part.call for part in self.parts))

    @property
    def ended(self) -> int:
        """How many have ended."""
        return sum(part.ended for part in self.parts)

    @property
    def failed(self) -> int:
        """How many have ended without a value."""
        return sum(part.failed for part in self.parts)

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of each part's end, by its number."""
        for number, part in enumerate(self.parts):
            part.call.watch(part.only, watcher, number)

    def get_unfinished(self) -> list[tuple[Call, int]]:
        """Those that have not ended."""
        unfinished: list[tuple[Call, int]] = []
        for part in self.parts:
            if part.only is None:
                unfinished += [(part.call, index) for index in part.call.get_unfinished()]
            elif not part.ended:
                unfinished.append((part.call, part.only))
        return unfinished

    def get_ended(self) -> list[tuple[Call, int]]:
        """Those that have."""
        return [(call, index) for call, index in self if call.has_ended(index)]

    def note_seen(self) -> None:
        """Somebody has looked at how things are."""
        for call in self.calls:
            call.note_seen()

    def dismiss(self) -> None:
        """Nobody wants to know how they end."""
        for call in self.calls:
            call.dismiss()


def withdraw(requests: Iterable[tuple[Call, int]]) -> None:
    """Ask for the end of those of these requests that have not started: one message per client."""
    for connection, own in _sort_by_connection(requests).items():
        connection.post(None, range(0), [m.Abort(own)], [])


def interrupt(requests: Iterable[tuple[Call, int]]) -> None:
    """Ask for the end of these requests, also of those that have started: one message per client."""
    for connection, own in _sort_by_connection(requests).items():
        connection.post(None, range(0), [m.InterruptRequests(own)], [])


def _sort_by_connection(requests: Iterable[tuple[Call, int]]) -> dict[Connection, list[int]]:
    seqs: dict[Connection, list[int]] = {}
    for call, index in requests:
        seqs.setdefault(call.connection, []).append(call.first + index)
    return seqs
