"""Requests that wait for their results: which call each belongs to. No sockets, no waiting.

User threads open requests, the I/O thread ends them. Every single step is atomic (one dict operation), so neither
waits for the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from hpcviews.client.call import Call
from hpcviews.client.history import History
from hpcviews.client.outgoing import Frames
from hpcviews.ids import MsgId, Seq, Session
from hpcviews.wire import messages as m


class Requests:
    """The outstanding requests of one client, and the numbers of all."""

    def __init__(self, session: Session):
        self.session = session
        self.history = History(session)
        self._table: dict[int, Call] = {}
        self._next = 0

    def reserve(self, count: int) -> Seq:
        """Take `count` numbers; the caller holds the connection's lock."""
        first = self._next
        self._next += count
        return Seq(first)

    def open(self, call: Call, seqs: range) -> None:
        """These requests of `call` are being sent; the caller holds the connection's lock."""
        self._table.update(dict.fromkeys(seqs, call))
        if not call.is_foreign:
            self.history.add(seqs)

    def drop(self, seqs: range) -> None:
        """Nobody waits for these any more."""
        for seq in seqs:
            self._table.pop(seq, None)

    def find(self, seq: int) -> Call | None:
        """The call that waits for this request."""
        return self._table.get(seq)

    def get_outstanding(self) -> set[MsgId]:
        """msg_ids of the requests of this client that have not ended."""
        own = [(seq, call) for seq, call in list(self._table.items()) if not call.is_foreign]
        return {call.get_msg_id(seq - call.first) for seq, call in own}

    def get_outstanding_calls(self) -> set[Call]:
        """Their calls."""
        return {call for call in list(self._table.values()) if not call.is_foreign}

    def on_results(self, results: Iterable[tuple[m.Result, Frames]], received: float) -> None:
        """Results came. Those nobody waits for (of a time before a reconnect) are dropped."""
        take = self._table.pop
        touched: dict[int, Call] = {}
        for result, frames in results:
            call = take(result.seq, None)
            if call is not None:
                call.on_result(result.seq - call.first, result, frames, received)
                touched[call.first] = call
        for call in touched.values():
            call.on_batch_end()

    def on_output(self, output: m.Output) -> None:
        """Text of a running request came."""
        call = self._table.get(output.seq)
        if call is not None:
            call.on_output(output.seq - call.first, output.engine, output.stream, output.text)

    def on_published(self, published: m.Published, frames: Frames) -> None:
        """A running request displayed something, or published data."""
        call = self._table.get(published.seq)
        if call is not None:
            index = published.seq - call.first
            call.on_published(index, published.engine, published.kind, published.data, frames)

    def on_followed(self, followed: m.Followed) -> None:
        """What a request of others is."""
        call = self._table.get(followed.seq)
        if call is not None:
            call.on_followed(followed.seq - call.first, followed)

    def fail_all(self, error: str, text: str, received: float) -> None:
        """Nothing more will come: end every request with this error of ours."""
        failure = m.ErrorInfo(error, text, "", True)
        seqs = list(self._table)
        self.on_results(((m.Result(b"", 0, seq, -1, 0.0, 0.0, failure), []) for seq in seqs), received)
