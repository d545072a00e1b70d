"""The archive's file: records of requests in SQLite, the oldest given up beyond its bounds. For one thread only.

It lies in the controller's private directory, on this node, and goes with the cluster: nothing in it need survive a
crash, so nothing is synced.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpcviews.controller.finished import Key, Record
from hpcviews.controller.functions import Entry
from hpcviews.controller.kept_output import KeptOutput
from hpcviews.controller.record_query import RecordFilter
from hpcviews.controller.record_rows import render_record
from hpcviews.ids import EngineId, Session
from hpcviews.wire import messages as m

AGE_MAX_S = 7 * 86_400.0
"""A week after they came here, which is longer than most jobs run."""

FREE_SHARE_MAX = 0.25
"""Of what is free on the file system when the file is made: others need it too, and it may be memory (tmpfs)."""

CHUNK_RECORDS = 50
"""How many are written without a pause: Python code of other threads waits for them, less than a millisecond."""

TRIM_RECORDS = 1000
"""How many are given up at once."""

SLACK = 1.25
"""The file may be so much larger than what is counted: SQLite has pages that are not full."""

_SCHEMA = """
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
CREATE TABLE records (
    id INTEGER PRIMARY KEY, session TEXT, seq INTEGER, engine INTEGER, written REAL, nbytes INTEGER, function BLOB,
    shown BLOB, rest BLOB
);
CREATE UNIQUE INDEX records_by_key ON records (session, seq);
CREATE INDEX records_by_function ON records (function);
CREATE TABLE frames (record INTEGER, is_result INTEGER, place INTEGER, data BLOB,
    PRIMARY KEY (record, is_result, place)) WITHOUT ROWID;
CREATE TABLE functions (digest BLOB PRIMARY KEY, rest BLOB);
"""


class _Rest(msgspec.Struct, array_like=True):
    """What is needed of a record beside what is shown of it."""

    op: str
    is_task: bool
    targets: list[int] | None
    retries: int
    label: str
    submitted: float
    result: m.Result
    engine_uuid: str
    data: bytes
    stdout: str
    stderr: str
    nbytes: int
    why_no_result: str
    why_no_request: str


class _StoredFunction(msgspec.Struct, array_like=True):
    message: m.Function
    frames: list[bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode_rest = msgspec.msgpack.Decoder(_Rest).decode
_decode_function = msgspec.msgpack.Decoder(_StoredFunction).decode
_decode_shown = msgspec.msgpack.Decoder(dict[str, Any]).decode


class ArchiveFile:
    """An open file. When a method fails, with sqlite3.Error or OSError, what was there before is there still."""

    def __init__(self, path: Path, records_max: int, bytes_max: int):
        """Make it; there is none yet.

        Args:
            path: Where. The directory is there.
            records_max: Give up the oldest records beyond so many.
            bytes_max: And beyond so many bytes, or a quarter of what is free there.
        """
        system = os.statvfs(path.parent)
        self._records_max = records_max
        self.bytes_max = min(bytes_max, int(system.f_bavail * system.f_frsize * FREE_SHARE_MAX))
        # Autocommit: transactions begin where this file says so.
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            self._database.executescript(_SCHEMA)
            (page_bytes,) = self._database.execute("PRAGMA page_size").fetchone()
            self._database.execute(f"PRAGMA max_page_count = {int(self.bytes_max * SLACK) // page_bytes + 64}")
        except BaseException:
            self._database.close()
            raise
        self.count = 0
        self.nbytes = 0
        self._function_bytes = 0
        self._functions: set[bytes] = set()
        self._last_id = 0

    def close(self) -> None:
        """Close it. The file stays."""
        self._database.close()

    # ------------------------------------------------------------ writing

    def keep(self, records: Sequence[Record], pause: Callable[[], None] = lambda: None) -> int:
        """Store records, all or none; returns how many others were given up for them.

        Args:
            records: Which. What is in them already is replaced.
            pause: Called now and then.
        """
        database = self._database
        before = self.count, self.nbytes, self._last_id, set(self._functions), self._function_bytes
        database.execute("BEGIN")
        try:
            for start in range(0, len(records), CHUNK_RECORDS):
                self._insert(records[start : start + CHUNK_RECORDS])
                pause()
            dropped = self._trim()
            database.execute("COMMIT")
        except BaseException:
            self.count, self.nbytes, self._last_id, self._functions, self._function_bytes = before
            with contextlib.suppress(sqlite3.Error):  # when the disk is full, SQLite may have done it
                database.execute("ROLLBACK")
            raise
        return dropped

    def _insert(self, records: Sequence[Record]) -> None:
        rows: list[tuple[Any, ...]] = []
        frames: list[tuple[Any, ...]] = []
        now = time.time()
        for record in records:
            self._last_id += 1
            number = self._last_id
            digest = None if record.function is None else self._keep_function(record.function)
            frames += [(number, 1, place, frame) for place, frame in enumerate(record.frames)]
            frames += [(number, 0, place, frame) for place, frame in enumerate(record.request_frames)]
            engine = record.result.engine
            shown, rest = _encode(render_record(record)), _encode(_make_rest(record))
            rows.append((number, record.session, record.seq, engine, now, record.nbytes, digest, shown, rest))
            self.nbytes += record.nbytes
        self.count += len(rows)
        self._database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        if frames:
            self._database.executemany("INSERT INTO frames VALUES (?, ?, ?, ?)", frames)

    def _keep_function(self, entry: Entry) -> bytes:
        digest = entry.message.digest
        if digest not in self._functions:
            stored = _encode(_StoredFunction(entry.message, [bytes(frame) for frame in entry.frames]))
            self._database.execute("INSERT OR REPLACE INTO functions VALUES (?, ?)", (digest, stored))
            self._functions.add(digest)
            self._function_bytes += len(stored)
        return digest

    def _trim(self) -> int:
        """Give up the oldest beyond the bounds; returns how many."""
        dropped = 0
        oldest_allowed = time.time() - AGE_MAX_S
        while True:
            is_over = self.count > self._records_max or self._used > self.bytes_max
            select = "SELECT id, written, nbytes FROM records ORDER BY id LIMIT ?"
            rows = self._database.execute(select, (TRIM_RECORDS if is_over else 1,)).fetchall()
            excess_records, excess_bytes = self.count - self._records_max, self._used - self.bytes_max
            last = count = nbytes = 0
            for number, written, size in rows:
                if count >= excess_records and nbytes >= excess_bytes and written >= oldest_allowed:
                    break
                last, count, nbytes = number, count + 1, nbytes + size
            if not count:
                return dropped
            dropped += count
            self._delete("id <= ?", (last,))

    @property
    def _used(self) -> int:
        return self.nbytes + self._function_bytes

    def _delete(self, where: str, values: tuple[Any, ...]) -> None:
        execute = self._database.execute
        select = f"SELECT id FROM records WHERE {where}"
        count, nbytes = execute(
            f"SELECT COUNT(*), COALESCE(SUM(nbytes), 0) FROM records WHERE {where}", values
        ).fetchone()
        execute(f"DELETE FROM frames WHERE record IN ({select})", values)
        execute(f"DELETE FROM records WHERE {where}", values)
        self.count -= count
        self.nbytes -= nbytes
        if self._function_bytes > self.bytes_max // 8 or not self.count:
            execute("DELETE FROM functions WHERE digest NOT IN (SELECT function FROM records WHERE function NOTNULL)")
            left = execute("SELECT digest, LENGTH(rest) FROM functions").fetchall()
            self._functions = {digest for digest, _ in left}
            self._function_bytes = sum(nbytes for _, nbytes in left)

    def forget(self, keys: Iterable[Key] | None, engines: Iterable[EngineId]) -> None:
        """Remove these, or all (None), and those that ran on these engines."""
        self._database.execute("BEGIN")
        try:
            if keys is None:
                self._delete("1", ())
            else:
                for key in keys:
                    self._delete("session = ? AND seq = ?", key)
                for engine in engines:
                    self._delete("engine = ?", (engine,))
            self._database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    # ------------------------------------------------------------ reading

    def find(self, keys: Iterable[Key]) -> list[Record]:
        """Those of these records that are there."""
        found = []
        functions: dict[bytes, Entry] = {}
        for key in keys:
            select = "SELECT id, function, rest FROM records WHERE session = ? AND seq = ?"
            row = self._database.execute(select, key).fetchone()
            if row is not None:
                number, digest, rest = row
                found.append(self._make_record(key, number, digest, rest, functions))
        return found

    def _make_record(
        self, key: Key, number: int, digest: bytes | None, rest: bytes, functions: dict[bytes, Entry]
    ) -> Record:
        known = _decode_rest(rest)
        frames: tuple[list[bytes], list[bytes]] = [], []
        select = "SELECT is_result, data FROM frames WHERE record = ? ORDER BY is_result, place"
        for is_result, data in self._database.execute(select, (number,)):
            frames[is_result].append(data)
        output = None
        if known.stdout or known.stderr:
            output = KeptOutput()
            output.add("stdout", known.stdout)
            output.add("stderr", known.stderr)
        return Record(
            session=Session(key[0]),
            seq=key[1],
            op=known.op,
            is_task=known.is_task,
            targets=None if known.targets is None else frozenset(map(EngineId, known.targets)),
            retries=known.retries,
            label=known.label,
            submitted=known.submitted,
            result=known.result,
            frames=frames[1],
            engine_uuid=known.engine_uuid,
            function=None if digest is None else self._find_function(digest, functions),
            data=known.data,
            request_frames=frames[0],
            output=output,
            nbytes=known.nbytes,
            why_no_result=known.why_no_result,
            why_no_request=known.why_no_request,
        )

    def _find_function(self, digest: bytes, functions: dict[bytes, Entry]) -> Entry:
        entry = functions.get(digest)
        if entry is None:
            (stored,) = self._database.execute("SELECT rest FROM functions WHERE digest = ?", (digest,)).fetchone()
            function = _decode_function(stored)
            entry = functions[digest] = Entry(function.message, list(function.frames), nbytes=len(stored))
        return entry

    def query(self, wanted: RecordFilter, limit: int) -> list[dict[str, Any]]:
        """What is shown of the records that match, oldest first; of more than `limit`, `limit` + 1."""
        rows = []
        # Equality with what has a column is decided there; all else, and that again, by the one filter.
        tests = [("session", "client_uuid", str), ("engine", "engine_id", int)]
        columns = [(column, wanted.query[key]) for column, key, kind in tests if type(wanted.query.get(key)) is kind]
        where = " AND ".join(f"{column} = ?" for column, _ in columns) or "1"
        select = f"SELECT shown FROM records WHERE {where} ORDER BY id"
        for (shown,) in self._database.execute(select, [value for _, value in columns]):
            row = _decode_shown(shown)
            if wanted.matches(row):
                rows.append(row)
                if len(rows) > limit:
                    break
        return rows


def _make_rest(record: Record) -> _Rest:
    output = record.output
    return _Rest(
        record.op,
        record.is_task,
        None if record.targets is None else sorted(record.targets),
        record.retries,
        record.label,
        record.submitted,
        record.result,
        record.engine_uuid,
        record.data,
        output.read("stdout") if output is not None else "",
        output.read("stderr") if output is not None else "",
        record.nbytes,
        record.why_no_result,
        record.why_no_request,
    )
