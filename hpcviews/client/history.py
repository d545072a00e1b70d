"""The msg_ids that a client or a view has submitted, in order: ranges inside, msg_ids outside."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, overload

from hpcviews.ids import MsgId, Seq, Session, parse_msg_id, render_msg_id


class History(Sequence[MsgId]):
    """A growing sequence of msg_ids.

    A million tasks of one map take one entry here: a list of strings would be the largest thing in the client's
    memory, and would never be given back.
    """

    def __init__(self, session: Session):
        self._session = session
        self._ranges: list[range] = []
        self._starts: list[int] = []
        self._count = 0

    def add(self, seqs: range) -> None:
        """These requests were submitted."""
        if not seqs:
            return
        if self._ranges and self._ranges[-1].stop == seqs.start:
            self._ranges[-1] = range(self._ranges[-1].start, seqs.stop)
        else:
            self._ranges.append(seqs)
            self._starts.append(self._count)
        self._count += len(seqs)

    def has_seq(self, seq: int) -> bool:
        """Whether that request is in it."""
        return any(seq in seqs for seqs in self._ranges)

    def __contains__(self, msg_id: object) -> bool:
        try:
            session, seq = parse_msg_id(str(msg_id))
        except ValueError:
            return False
        return session == self._session and self.has_seq(seq)

    def clear(self) -> None:
        """Begin anew."""
        self._ranges, self._starts, self._count = [], [], 0

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> MsgId: ...
    @overload
    def __getitem__(self, index: slice) -> list[MsgId]: ...
    def __getitem__(self, index: int | slice) -> MsgId | list[MsgId]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        position = index + self._count if index < 0 else index
        if not 0 <= position < self._count:
            raise IndexError(f"no request {index} in a history of {self._count}")
        found = bisect_right(self._starts, position) - 1
        return render_msg_id(self._session, Seq(self._ranges[found][position - self._starts[found]]))

    def __iter__(self) -> Iterator[MsgId]:
        for seqs in list(self._ranges):
            for seq in seqs:
                yield render_msg_id(self._session, Seq(seq))

    def iterate_seqs(self) -> Iterator[int]:
        """The same as numbers."""
        for seqs in list(self._ranges):
            yield from seqs

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        if self._count > 4:
            return f"<History of {self._count}: {self[0]!r}, …, {self[-1]!r}>"
        return repr(list(self))
