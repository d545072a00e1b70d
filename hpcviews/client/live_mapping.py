"""Requests by msg_id, of the AsyncResults that are alive: looked up when it is read, so it can never be out of date."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from hpcviews.client.call import Call
from hpcviews.client.outcomes import Failure
from hpcviews.client.results import AsyncResult
from hpcviews.ids import MsgId


class LiveMapping(Mapping[MsgId, Any]):
    """What has come of requests whose results somebody holds. Nothing is kept here, so nothing grows."""

    def __init__(self, get_results: Callable[[], Iterable[AsyncResult]], read: Callable[[Call, int], Any]):
        """Look at requests that have ended.

        Args:
            get_results: Gives the AsyncResults that are alive.
            read: Gives the value for a request.
        """
        self._get_results = get_results
        self._read = read

    def __getitem__(self, msg_id: str) -> Any:
        for result in self._get_results():
            found = result.slots.find(msg_id)
            if found is not None and found[0].has_ended(found[1]):
                return self._read(*found)
        raise KeyError(f"no result of {msg_id} is here: it has not ended, or nobody holds its AsyncResult any more")

    def __iter__(self) -> Iterator[MsgId]:
        for result in self._get_results():
            for call, index in result.slots.get_ended():
                yield call.get_msg_id(index)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{len(self)} results>"


def read_outcome(call: Call, index: int) -> Any:
    """The value of a request, or its error."""
    outcome = call.read(index)
    return outcome.error if isinstance(outcome, Failure) else outcome
