"""Requests that have ended: kept, within bounds, so that any client can still have their results, or run them again.

The latest are in memory. Older ones go to the archive (archive.py) where there is one and its writer can follow; else
they are dropped, the oldest first, and counted. Nothing here grows without bound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from hpcviews.controller.events import ArchiveAnswer, ArchiveOrder, FindRecords, KeepRecords
from hpcviews.controller.functions import Entry
from hpcviews.controller.kept_output import KeptOutput
from hpcviews.controller.state import Engine, Frames, Work
from hpcviews.ids import EngineId, MsgId, Session, render_msg_id
from hpcviews.wire import messages as m
from hpcviews.wire.shared import has_handles

if TYPE_CHECKING:
    from hpcviews.controller.core import Core
    from hpcviews.controller.outbox import Outbox

log = logging.getLogger("hpcviews.controller.finished")

RECORD_BYTES = 1024
"""What a record counts beside its payloads: twice what one without any was measured to take (500 bytes)."""

SHIPMENT_RECORDS = 500
"""How many records make room at once: one by one, each would cost an order."""


_NO_FRAMES: Frames = []
"""For the many records without; a list of their own would cost the garbage collector as much as all the rest."""


class Bounds(msgspec.Struct, frozen=True):
    """How much is kept. Sizes in bytes."""

    records_max: int = 50_000
    """In memory. A second of no-op tasks at full speed, hours of real ones."""
    bytes_max: int = 128 * 2**20
    """In memory."""
    shipping_max: int = 64 * 2**20
    """Handed to the archive's writer and not yet written; but one larger result may always be under way."""
    delivered_max: int = 2**20
    """The largest result that is kept once its client has been sent it."""
    undelivered_max: int = 512 * 2**20
    """The largest result that is kept for whoever may ask for it, when its client is gone."""
    request_max: int = 4 * 2**20
    """The largest payload, times the number of its targets, that is kept for running the request again."""
    function_max: int = 2**20
    """The same for functions."""
    answer_records_max: int = 200_000
    """The most records that one query is answered with."""


class Record(msgspec.Struct, gc=False):
    """A request that has ended. Holds nothing that refers back to it."""

    session: Session
    seq: int
    op: str
    is_task: bool
    targets: frozenset[EngineId] | None
    retries: int
    label: str
    submitted: float
    """Unix time, seconds."""
    result: m.Result
    frames: Frames
    """Of the result."""
    engine_uuid: str
    function: Entry | None
    data: bytes
    request_frames: Frames
    output: KeptOutput | None
    nbytes: int
    why_no_result: str = ""
    """Why the result's payload is not here, when it is not."""
    why_no_request: str = ""
    """Why it cannot be run again, when it cannot."""

    @property
    def msg_id(self) -> MsgId:
        """What users call it."""
        return render_msg_id(self.session, self.seq)


Key = tuple[Session, int]
Then = Callable[["Core", "Outbox", list[Any]], None]
"""What to do with what the archive found."""


class Finished:
    """The records in memory, and what is known of the archive."""

    def __init__(self, bounds: Bounds = Bounds()):  # noqa: B008 - it is frozen
        self.bounds = bounds
        self.records: dict[Key, Record] = {}
        """Oldest first."""
        self.nbytes = 0
        self.dropped = 0
        """How many records were given up to make room, without going to the archive."""
        self._dropped_to_log = 1
        self.has_archive = False
        """Whether somebody answers orders to the archive."""
        self.is_archiving = False
        """Whether the archive takes new records."""
        self.archived = 0
        """How many have been handed to it: while there are none, it need not be asked."""
        self.shipping = 0
        """Bytes of those that it has not written yet."""
        self._questions: dict[int, Then] = {}
        self._next_question = 0

    # ------------------------------------------------------------ records come

    def add_work(
        self,
        core: Core,
        out: Outbox,
        work: Work,
        entry: Entry | None,
        result: m.Result,
        frames: Frames,
        is_delivered: bool,
    ) -> None:
        """A request ended; `entry` is its function."""
        bounds = self.bounds
        engine = work.engine
        identity = core.identity
        record = Record(
            work.client.session,
            work.seq,
            work.op,
            work.is_task,
            work.targets,
            work.retries,
            work.label,
            identity.started + work.submitted - identity.started_monotonic,
            result,
            frames or _NO_FRAMES,
            engine.info.uuid if engine is not None and result.engine >= 0 else "",
            entry,
            work.data,
            work.frames or _NO_FRAMES,
            work.output,
            RECORD_BYTES + len(result.data) + len(work.data),
        )
        if frames:
            self._count_result(core, out, record, engine, is_delivered)
        if work.frames:
            self._count_request(record, work)
        if entry is not None and entry.nbytes > bounds.function_max:
            record.function = None
            text = f"its function has {entry.nbytes} bytes; up to {bounds.function_max} are kept for running it again"
            record.why_no_request = text
        if work.output is not None:
            record.nbytes += work.output.nbytes
        self.add(out, record, is_delivered)

    def add(self, out: Outbox, record: Record, is_delivered: bool = True) -> None:
        """Keep a record, and make room for it."""
        entry = record.function
        if entry is not None:
            entry.records += 1
            if entry.records == 1:
                self.nbytes += entry.nbytes
        records = self.records
        records[record.session, record.seq] = record
        self.nbytes += record.nbytes
        if len(records) > self.bounds.records_max or self.nbytes > self.bounds.bytes_max:
            self._make_room(out)
        elif not is_delivered and record.nbytes > self.bounds.delivered_max and self.is_archiving:
            # It would push out a thousand others.
            self._ship(out, [self._take((record.session, record.seq))], record.nbytes)

    def _make_room(self, out: Outbox) -> None:
        bounds = self.bounds
        count = min(SHIPMENT_RECORDS, max(1, bounds.records_max // 2))
        while len(self.records) > bounds.records_max or self.nbytes > bounds.bytes_max:
            oldest: list[Record] = []
            nbytes = 0
            take = self.records.pop
            for key in list(islice(self.records, count)):
                record = take(key)
                oldest.append(record)
                nbytes += record.nbytes
                entry = record.function
                if entry is not None:
                    entry.records -= 1
                    if not entry.records:
                        self.nbytes -= entry.nbytes
                if nbytes > bounds.bytes_max // 8:
                    break
            self.nbytes -= nbytes
            self._ship(out, oldest, nbytes)

    def _ship(self, out: Outbox, records: list[Record], nbytes: int) -> None:
        # One that is larger than the bound goes when nothing else is under way.
        if not self.is_archiving or (self.shipping and self.shipping + nbytes > self.bounds.shipping_max):
            self._note_dropped(len(records))
            return
        self.shipping += nbytes
        self.archived += len(records)
        out.order(KeepRecords(tuple(records), nbytes))

    def _count_result(self, core: Core, out: Outbox, record: Record, engine: Engine | None, is_delivered: bool) -> None:
        """Keep the frames of a result, or not."""
        kind, limit = "that their clients were sent", self.bounds.delivered_max
        if not is_delivered:
            kind, limit = "whose clients are gone", self.bounds.undelivered_max
        if has_handles(record.frames):
            if is_delivered:
                # A map of ours would keep the engine from using its memory again.
                why = f"results in shared memory {kind} are not kept"
                return _drop_result(record, why)
            if engine is None or not core.identity.room or engine.info.room != core.identity.room:
                return _drop_result(record, "it was in shared memory of another node, and its client was gone")
            record.frames = out.hold(record.frames)
            if has_handles(record.frames):
                return _drop_result(record, "the shared memory it was in is gone")
        nbytes = _measure(record.frames)
        if nbytes > limit:
            return _drop_result(record, f"it has {nbytes} bytes, and results {kind} are kept up to {limit} bytes")
        record.nbytes += nbytes
        return None

    def _count_request(self, record: Record, work: Work) -> None:
        """Keep the frames of a request, or not."""
        limit = self.bounds.request_max
        nbytes = len(work.data) + _measure(work.frames)
        if has_handles(work.frames):
            why = "its arguments went through shared memory, and are not kept for running it again"
        elif nbytes * work.share > limit:
            why = f"its arguments have {nbytes} bytes for each of {work.share} engines"
            why += f"; up to {limit} in all are kept for running it again"
        else:
            record.nbytes += nbytes - len(work.data)
            return
        record.nbytes -= len(work.data)
        record.data, record.request_frames = b"", []
        record.why_no_request = why

    def on_kept(self, nbytes: int, dropped: int) -> None:
        """The archive has written, or dropped, what made so many bytes."""
        self.shipping -= nbytes
        self._note_dropped(dropped)

    def _note_dropped(self, count: int) -> None:
        self.dropped += count
        if self.dropped >= self._dropped_to_log:
            self._dropped_to_log = 10 * self.dropped
            log.info(
                "records: the oldest are given up to make room, %d so far; %d are in memory",
                self.dropped,
                len(self.records),
            )

    def on_archive_failed(self) -> None:
        """It takes no more; what is in it can still be read."""
        self.is_archiving = False

    # ------------------------------------------------------------ records go

    def _take(self, key: Key) -> Record:
        record = self.records.pop(key)
        self.nbytes -= record.nbytes
        entry = record.function
        if entry is not None:
            entry.records -= 1
            if not entry.records:
                self.nbytes -= entry.nbytes
        return record

    def forget(self, keys: Iterable[Key]) -> None:
        """Drop the records of these that are in memory."""
        for key in keys:
            if key in self.records:
                self._take(key)

    # ------------------------------------------------------------ asking the archive

    @property
    def may_be_archived(self) -> bool:
        """Whether the archive is worth asking."""
        return self.has_archive and self.archived > 0

    def find(self, core: Core, out: Outbox, keys: list[Key], then: Then) -> None:
        """Look for records in the archive; `then` is called with those that are there, at once if none can be."""
        if keys and self.may_be_archived:
            self.ask(out, lambda question: FindRecords(question, tuple(keys)), then)
        else:
            then(core, out, [])

    def ask(self, out: Outbox, make_order: Callable[[int], ArchiveOrder], then: Then) -> None:
        """Ask the archive; it answers each question once, whatever happens to it."""
        self._next_question += 1
        self._questions[self._next_question] = then
        out.order(make_order(self._next_question))

    def on_answer(self, core: Core, out: Outbox, answer: ArchiveAnswer) -> None:
        """It has answered."""
        self._questions.pop(answer.question)(core, out, answer.found)

    # ------------------------------------------------------------ debugging

    def iterate(self) -> Iterator[Record]:
        """Those in memory, in the order they ended."""
        return iter(self.records.values())

    def check(self) -> None:
        """Assert the bounds, and that the sums are right."""
        uses: dict[int, tuple[Entry, int]] = {}
        total = 0
        for key, record in self.records.items():
            assert key == (record.session, record.seq)
            total += record.nbytes
            if record.function is not None:
                entry, count = uses.get(id(record.function), (record.function, 0))
                uses[id(entry)] = entry, count + 1
        for entry, count in uses.values():
            assert entry.records == count, f"a function is kept for {entry.records} records, not {count}"
            total += entry.nbytes
        assert self.nbytes == total, f"{self.nbytes} bytes of records counted, there are {total}"
        assert self.nbytes <= self.bounds.bytes_max and len(self.records) <= self.bounds.records_max
        assert self.shipping >= 0


def _drop_result(record: Record, why: str) -> None:
    """Keep no payload; nothing of its frames is counted yet."""
    record.nbytes -= len(record.result.data)
    result = record.result
    record.result = m.Result(b"", 0, result.seq, result.engine, result.started, result.completed, result.error)
    record.frames = []
    record.why_no_result = why


def _measure(frames: Frames) -> int:
    return sum(len(frame) for frame in frames)
