"""The archive of records: its file, its thread, and a disk that is full."""

from __future__ import annotations

import logging
import select
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcviews.controller import archive_file
from hpcviews.controller.archive import Archive
from hpcviews.controller.archive_file import ArchiveFile
from hpcviews.controller.events import (
    ArchiveAnswer,
    ArchiveFailed,
    ArchiveWrote,
    FindRecords,
    ForgetRecords,
    KeepRecords,
    QueryRecords,
)
from hpcviews.controller.finished import Record
from hpcviews.controller.functions import Entry
from hpcviews.controller.kept_output import KeptOutput
from hpcviews.controller.record_query import RecordFilter
from hpcviews.controller.record_rows import render_record
from hpcviews.ids import EngineId, Session
from hpcviews.wire import messages as m

SESSION = Session("a" * 16)
TIMEOUT_S = 20.0


def make_function(name: bytes = b"d", code: bytes = b"code") -> Entry:
    return Entry(m.Function(code, 1, name), [b"frame"], nbytes=len(code) + 5)


def make_record(seq: int, *, nbytes: int = 1000, function: Entry | None = None, engine: int = 0, **more: Any) -> Record:
    result = m.Result(b"value", 0, seq, engine, 1.0, 2.0, None)
    fields: dict[str, Any] = {
        "session": SESSION, "seq": seq, "op": "apply", "is_task": True, "targets": frozenset({EngineId(1)}),
        "retries": 1, "label": "mine", "submitted": float(seq), "result": result, "frames": [b"one", b"two"],
        "engine_uuid": "u", "function": function, "data": b"args", "request_frames": [b"three"], "output": None,
        "nbytes": nbytes,
    }  # fmt: skip
    return Record(**{**fields, **more})


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ArchiveFile]:
    file = ArchiveFile(tmp_path / "a.sqlite", 1000, 10**8)
    yield file
    file.close()


# ---------------------------------------------------------------- the file


def test_record_comes_back_as_it_was(file: ArchiveFile) -> None:
    output = KeptOutput()
    output.add("stdout", "hello")
    entry = make_function()
    error = m.ErrorInfo("ValueError", "no", "trace", False, 3, "node", 7, "apply")
    failed = m.Result(b"", 0, 2, 5, 1.0, 2.0, error)
    before = [
        make_record(1, function=entry, output=output),
        make_record(2, result=failed, frames=[], targets=None, request_frames=[], why_no_request="too big"),
    ]
    file.keep(before)
    after = file.find([(SESSION, 1), (SESSION, 77), (SESSION, 2)])
    assert [render_record(record) for record in after] == [render_record(record) for record in before]
    first, second = after
    assert (first.frames, first.request_frames) == ([b"one", b"two"], [b"three"])
    assert (first.targets, first.retries, first.data) == (frozenset({1}), 1, b"args")
    assert first.function is not None and first.function.message == entry.message
    assert first.function.frames == [b"frame"]
    assert second.result == failed and second.function is None and second.why_no_request == "too big"


def test_file_is_bounded_by_number_and_bytes(tmp_path: Path) -> None:
    file = ArchiveFile(tmp_path / "a.sqlite", 100, 50_000)
    assert file.keep([make_record(seq) for seq in range(150)]) == 100  # 50 kB are 50 records
    assert file.count == 50 and not file.find([(SESSION, 99)]) and file.find([(SESSION, 100)])
    file.close()
    file = ArchiveFile(tmp_path / "b.sqlite", 100, 10**8)
    file.keep([make_record(seq) for seq in range(150)])
    assert (file.count, file.nbytes) == (100, 100_000)
    file.close()


def test_old_records_and_functions_nobody_needs_go(file: ArchiveFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.keep([make_record(1, function=make_function())])
    monkeypatch.setattr(archive_file, "AGE_MAX_S", -1.0)
    file.keep([])
    assert file.count == 0 and file.nbytes == 0 and not file._functions
    monkeypatch.undo()
    file.keep([make_record(2, function=make_function())])
    assert file.find([(SESSION, 2)])[0].function is not None


def test_forget_by_key_by_engine_and_all(file: ArchiveFile) -> None:
    file.keep([make_record(seq, engine=seq % 3) for seq in range(9)])
    file.forget([(SESSION, 0), (SESSION, 400)], [])
    assert file.count == 8
    file.forget([], [EngineId(1)])
    assert file.count == 5 and file.nbytes == 5000
    file.forget(None, [])
    assert file.count == 0
    assert file.query(RecordFilter({}), 10) == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"client_uuid": SESSION, "engine_id": 1}, [1, 4, 7]),
        ({"client_uuid": "nobody"}, []),
        ({"engine_id": {"$gt": 1}}, [2, 5, 8]),
        ({"msg_id": {"$glob": "*-[78]"}}, [7, 8]),
    ],
)
def test_queries(file: ArchiveFile, query: dict[str, Any], expected: list[int]) -> None:
    file.keep([make_record(seq, engine=seq % 3) for seq in range(9)])
    assert [row["msg_id"] for row in file.query(RecordFilter(query), 10)] == [f"{SESSION}-{seq}" for seq in expected]


def test_failed_write_leaves_what_was_there(file: ArchiveFile) -> None:
    file.keep([make_record(1)])
    pages = file._database.execute("PRAGMA page_count").fetchone()[0]
    file._database.execute(f"PRAGMA max_page_count = {pages + 8}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        file.keep([make_record(seq, frames=[bytes(100_000)]) for seq in range(2, 20)])
    assert file.count == 1
    assert file.find([(SESSION, 1)]) and not file.find([(SESSION, 2)])


# ---------------------------------------------------------------- the thread


class Desk:
    """Stands for the controller's loop."""

    def __init__(self, path: Path, **bounds: int) -> None:
        self.archive = Archive(path, **bounds)
        self.events: list[Any] = []
        self.archive.attach(self.events.append)

    def order(self, order: Any) -> None:
        self.archive.on_order(order, 0.0)

    def take(self, kind: type) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while not self.events:
            ready, _, _ = select.select(list(self.archive.fds()), [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the archive said nothing"
            self.archive.on_readable(ready[0], 0.0)
        event = self.events.pop(0)
        assert isinstance(event, kind), event
        return event


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "a.sqlite")
    yield desk
    desk.archive.close()
    assert not list(tmp_path.glob("a.sqlite*"))


def test_archive_writes_answers_and_forgets(desk: Desk) -> None:
    desk.order(FindRecords(1, ((SESSION, 0),)))
    assert desk.take(ArchiveAnswer) == ArchiveAnswer(1, [])
    records = tuple(make_record(seq) for seq in range(120))
    desk.order(KeepRecords(records, 120_000))
    desk.order(FindRecords(2, ((SESSION, 5),)))  # behind it: what is on its way is found
    assert desk.take(ArchiveWrote) == ArchiveWrote(120_000, 0)
    assert [record.seq for record in desk.take(ArchiveAnswer).found] == [5]
    desk.order(QueryRecords(3, RecordFilter({"msg_id": {"$glob": "*-11?"}}), 100))
    assert len(desk.take(ArchiveAnswer).found) == 10
    desk.order(ForgetRecords(4, None, frozenset()))
    desk.order(QueryRecords(5, RecordFilter({}), 100))
    assert [desk.take(ArchiveAnswer) for _ in range(2)] == [ArchiveAnswer(4, []), ArchiveAnswer(5, [])]


def test_archive_that_is_not_used_has_no_thread_and_no_file(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "a.sqlite")
    assert desk.archive._thread is None and not list(tmp_path.iterdir())
    desk.archive.close()


def test_archive_closes_while_records_wait(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "a.sqlite")
    for start in range(0, 20_000, 500):
        desk.order(KeepRecords(tuple(make_record(seq) for seq in range(start, start + 500)), 500_000))
    desk.archive.close()
    assert not list(tmp_path.iterdir())


def test_directory_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(tmp_path / "missing" / "a.sqlite")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            desk.order(KeepRecords((make_record(0),), 1000))
        desk.take(ArchiveFailed)
        assert [desk.take(ArchiveWrote).dropped for _ in range(3)] == [1, 1, 1]
    desk.order(FindRecords(1, ((SESSION, 0),)))
    assert desk.take(ArchiveAnswer).found == []
    assert len(caplog.records) == 1 and "set TMPDIR" in caplog.text
    desk.archive.close()


FULL = """
import resource, signal, sys
from pathlib import Path
from test_archive import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
desk = Desk(Path(sys.argv[1]) / "a.sqlite")
desk.order(KeepRecords((make_record(0),), 1000))
assert desk.take(ArchiveWrote) == ArchiveWrote(1000, 0)
desk.order(KeepRecords(tuple(make_record(seq, frames=[bytes(100_000)]) for seq in range(1, 9)), 8000))
print(desk.take(ArchiveFailed).why)
assert desk.take(ArchiveWrote) == ArchiveWrote(8000, 8)
desk.order(FindRecords(1, ((SESSION, 0), (SESSION, 1))))
assert [record.seq for record in desk.take(ArchiveAnswer).found] == [0]
desk.archive.close()
"""


def test_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    import subprocess
    import sys

    # The kernel refuses to let the file grow, as it does on a full disk.
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr.count("cannot be written") == 1
    assert not list(tmp_path.iterdir())
