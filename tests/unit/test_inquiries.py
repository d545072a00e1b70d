"""What clients ask about requests of anybody: results, records, queues; and what is kept of requests that ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from core_world import World, done, request, task

from hpcviews.controller import dispatch
from hpcviews.controller.early import EARLY_S
from hpcviews.controller.events import (
    ArchiveAnswer,
    ArchiveFailed,
    ArchiveWrote,
    FindRecords,
    ForgetRecords,
    KeepRecords,
    QueryRecords,
)
from hpcviews.controller.finished import Bounds, Finished
from hpcviews.controller.kept_output import TEXT_CHARS_MAX, KeptOutput
from hpcviews.controller.record_rows import render_record
from hpcviews.controller.state import Route
from hpcviews.errors import ProtocolError
from hpcviews.testing.recorder import HELD_BYTES
from hpcviews.wire import messages as m

A, B, C = "A" * 16, "B" * 16, "C" * 16


class Cast:
    """An engine, a client A that submits and a client B that asks."""

    def __init__(self, engines: int = 1, **bounds: int) -> None:
        self.world = World()
        self.world.core.finished = Finished(Bounds(**bounds))
        self.engine = self.world.add_engines(engines)[0]
        self.a = self.world.add_client("A")
        self.b = self.world.add_client("B")

    def run(self, *seqs: int, error: str = "", value: bytes = b"value", frames: list[Any] | None = None) -> None:
        """Tasks of A, from request to result."""
        for seq in seqs:
            self.world.say(self.a, task(seq))
            (key,) = self.start()
            info = m.ErrorInfo(error, "text", "", False) if error else None
            self.world.say(self.engine, m.Done(value, len(frames or []), key, 1.0, 2.0, info), frames=frames)
            if self.a in self.world.out.inboxes:
                self.world.out.take(self.a, m.Result)

    def start(self) -> list[int]:
        return [message.key for message, _ in self.world.out.take_all(self.engine) if isinstance(message, m.Run)]

    def follow(self, *msg_ids: str, seq: int = 0) -> None:
        self.world.say(self.b, m.Follow(seq, list(msg_ids)))

    def take(self, kind: Any, route: Route | None = None) -> Any:
        return self.world.out.take(route or self.b, kind)

    def query(self, query: dict[str, Any], keys: list[str] | None = None) -> m.Records:
        self.world.say(self.b, m.RecordQuery(99, query, keys))
        answer: m.Records = self.take(m.Records)
        return answer

    def tell(self, event: Any) -> None:
        dispatch.on_event(self.world.core, self.world.out, event)
        self.world.settle()

    def orders(self, kind: Any) -> list[Any]:
        return [order for order in self.world.out.orders if isinstance(order, kind)]


@pytest.fixture
def cast() -> Cast:
    return Cast()


# ---------------------------------------------------------------- results


def test_another_client_gets_a_result_that_is_there(cast: Cast) -> None:
    cast.world.now = 5.0
    cast.run(7, value=b"hello")
    cast.follow(f"{A}-7", seq=30)
    assert cast.take(m.Followed) == m.Followed(30, 5.0, "")
    result = cast.take(m.Result)
    assert (result.seq, result.data, result.engine, result.error) == (30, b"hello", 0, None)
    cast.world.out.assert_empty()


def test_another_client_gets_what_comes_and_what_has_been_written(cast: Cast) -> None:
    cast.world.say(cast.a, task(7))
    (key,) = cast.start()
    cast.world.say(cast.engine, m.RunOutput(key, "stdout", "before "))
    cast.follow(f"{A}-7")
    cast.world.say(cast.engine, m.RunOutput(key, "stdout", "after"), m.RunPublished(b"d", 0, key, "data"), done(key))
    cast.take(m.Followed)
    assert [cast.take(m.Output).text for _ in range(2)] == ["before ", "after"]
    assert cast.take(m.Published).data == b"d"
    assert cast.take(m.Result).data == b"value"
    assert [type(message) for message, _ in cast.world.out.take_all(cast.a)] == [
        m.Output,
        m.Output,
        m.Published,
        m.Result,
    ]
    cast.follow(f"{A}-7", seq=1)
    cast.take(m.Followed)
    assert cast.take(m.Output).text == "before after"


def test_results_of_a_client_that_was_killed_are_kept(cast: Cast) -> None:
    cast.world.say(cast.a, task(0))
    (key,) = cast.start()
    cast.world.disconnect(cast.a)
    cast.world.say(cast.engine, done(key))
    cast.follow(f"{A}-0")
    cast.take(m.Followed)
    assert cast.take(m.Result).data == b"value"


def test_errors_are_kept_too(cast: Cast) -> None:
    cast.run(0, error="ZeroDivisionError")
    cast.world.say(cast.a, request(1, [44]))
    cast.follow(f"{A}-0", f"{A}-1")
    cast.take(m.Followed)
    assert cast.take(m.Result).error.ename == "ZeroDivisionError"
    cast.take(m.Followed)
    assert cast.take(m.Result).error.ename == "NoSuchEngine"


def test_unknown_requests_are_explained(cast: Cast) -> None:
    cast.follow("nonsense", f"{C}-5")
    first, second = cast.take(m.Result).error, cast.take(m.Result).error
    assert first.ename == second.ename == "NoSuchRequest"
    assert "msg_ids look like" in first.evalue
    assert f"no request {C}-5 is known here; the controller keeps the last 50000 requests" in second.evalue
    assert not cast.world.core.clients[cast.b].following


def test_request_that_is_asked_for_before_it_comes(cast: Cast) -> None:
    cast.follow(f"{A}-0", f"{A}-1", f"{A}-2", f"{A}-0", seq=10)
    cast.world.out.assert_empty()
    cast.world.say(cast.a, task(0), request(1, [44]))
    (key,) = cast.start()
    cast.world.say(cast.engine, done(key))
    assert [cast.take(m.Followed).seq for _ in range(2)] == [10, 13]
    results = [cast.take(m.Result) for _ in range(3)]
    assert [(r.seq, r.error and r.error.ename) for r in results] == [(11, "NoSuchEngine"), (10, None), (13, None)]
    assert cast.world.core.find_deadline() == EARLY_S
    cast.world.tick(EARLY_S - 1)
    cast.world.out.take_all(cast.a)
    cast.world.out.assert_empty()
    cast.world.tick(1.0)
    assert cast.take(m.Result).error.ename == "NoSuchRequest"
    assert not cast.world.core.clients[cast.b].following and cast.world.core.find_deadline() is None


def test_early_follower_that_leaves_is_told_nothing(cast: Cast) -> None:
    cast.follow(f"{A}-0", f"{A}-9")
    cast.world.disconnect(cast.b)
    cast.run(0)
    cast.world.tick(EARLY_S)
    assert cast.b not in cast.world.out.inboxes


def test_dropped_record_says_how_the_request_ended() -> None:
    cast = Cast(records_max=2)
    cast.run(0, 1, 2)
    cast.follow(f"{A}-0")
    assert "ended well, and its record has been dropped" in cast.take(m.Result).error.evalue


def test_follower_that_leaves_is_told_nothing(cast: Cast) -> None:
    cast.world.say(cast.a, task(0))
    (key,) = cast.start()
    cast.follow(f"{A}-0")
    cast.world.disconnect(cast.b)
    cast.world.say(cast.engine, done(key))
    assert cast.b not in cast.world.out.inboxes


def test_numbers_under_which_a_client_follows_are_taken(cast: Cast) -> None:
    cast.world.say(cast.a, task(0))
    cast.follow(f"{A}-0", seq=3)
    with pytest.raises(ProtocolError, match="under way already"):
        cast.world.say(cast.b, task(3))
    with pytest.raises(ProtocolError, match="under way already"):
        cast.follow(f"{A}-0", seq=3)


@pytest.mark.parametrize("by", ["seq", "msg_id"])
def test_requests_of_others_can_be_aborted(cast: Cast, by: str) -> None:
    cast.world.say(cast.a, task(0), task(1))
    cast.follow(f"{A}-1", seq=8)
    if by == "seq":
        cast.world.say(cast.b, m.Abort([8]))
    else:
        cast.world.say(cast.b, m.Abort([], [f"{A}-1", f"{A}-1", f"{A}-99"], seq=70))
    cast.take(m.Followed)
    assert cast.take(m.Result).error.ename == "TaskAborted"
    assert cast.take(m.Result, cast.a).error.ename == "TaskAborted"
    if by == "msg_id":
        assert cast.take(m.Acknowledged) == m.Acknowledged(70)


def test_abort_can_be_bound_to_engines(cast: Cast) -> None:
    cast.world.say(cast.a, task(0), task(1))
    cast.start()
    cast.world.say(cast.a, m.Abort([0, 1], engines=[5]))
    cast.world.out.assert_empty()
    cast.world.say(cast.a, m.Abort([0, 1], engines=[0]))
    assert cast.world.out.take(cast.engine, m.Withdraw)
    cast.world.out.assert_empty()


# ---------------------------------------------------------------- what is kept


def test_large_result_that_was_delivered_is_not_kept() -> None:
    cast = Cast(delivered_max=1000)
    cast.run(0, value=b"", frames=[bytes(1001)])
    cast.run(1, value=b"", frames=[bytes(999)])
    cast.follow(f"{A}-0", f"{A}-1")
    cast.take(m.Followed)
    error = cast.take(m.Result).error
    assert error.ename == "ResultNotKept" and "1001 bytes" in error.evalue
    cast.take(m.Followed)
    assert cast.take(m.Result).frames == 1


def test_large_result_that_nobody_got_is_kept() -> None:
    cast = Cast(delivered_max=1000)
    cast.world.say(cast.a, task(0))
    (key,) = cast.start()
    cast.world.disconnect(cast.a)
    cast.world.say(cast.engine, m.Done(b"", 1, key, 0.0, 0.0, None), frames=[bytes(5000)])
    cast.follow(f"{A}-0")
    cast.take(m.Followed)
    assert cast.take(m.Result).frames == 1


HANDLE = b"hpcviews-0-" + b"0" * 16 + b"-" + b"0" * 16 + b"-1 0 4096"


def test_result_in_shared_memory_is_kept_only_if_nobody_got_it(cast: Cast) -> None:
    cast.world.core.identity = replace(cast.world.core.identity, room="here")
    engine = cast.world.core.engine_by_route[cast.engine]
    engine.info = msgspec.structs.replace(engine.info, room="here")
    cast.world.core.neighbours = {"here": {engine.id: engine}}
    cast.run(0, value=b"", frames=[HANDLE])
    cast.world.say(cast.a, task(1))
    (key,) = cast.start()
    cast.world.disconnect(cast.a)
    cast.world.say(cast.engine, m.Done(b"", 1, key, 0.0, 0.0, None), frames=[HANDLE])
    assert cast.world.out.held == 1, "the engine may use it again, so it is mapped here"
    assert cast.world.out.take_all(cast.engine)[-1][0] == m.Delivered([key])
    cast.follow(f"{A}-0", f"{A}-1")
    cast.take(m.Followed)
    assert "in shared memory" in cast.take(m.Result).error.evalue
    (_, followed), (result, frames) = cast.world.out.take_all(cast.b)
    assert result.error is None and frames == [bytes(HELD_BYTES)] and not followed


def test_arguments_in_shared_memory_are_not_kept(cast: Cast) -> None:
    cast.world.say(cast.a, m.Task(b"", 1, 0, "apply", b"", None, 0), frames=[HANDLE])
    (key,) = cast.start()
    cast.world.say(cast.b, m.Resubmit(0, [f"{A}-0"]))
    assert "in shared memory" in cast.take(m.Result).error.evalue
    cast.world.say(cast.engine, done(key))
    cast.world.say(cast.b, m.Resubmit(0, [f"{A}-0"]))
    assert "through shared memory" in cast.take(m.Result).error.evalue


def test_records_are_bounded_by_number_and_bytes() -> None:
    cast = Cast(records_max=10, bytes_max=20_000, delivered_max=9000)
    cast.run(*range(25))
    assert 5 <= len(cast.world.core.finished.records) <= 10
    assert cast.world.core.finished.dropped == 25 - len(cast.world.core.finished.records)
    cast.run(*range(100, 105), value=b"", frames=[bytes(8000)])
    assert cast.world.core.finished.nbytes <= 20_000  # check() has looked after each step


def test_output_is_kept_to_its_end() -> None:
    output = KeptOutput()
    for number in range(50_000):
        output.add("stdout", f"line {number}\n")
    text = output.read("stdout")
    assert len(text) < TEXT_CHARS_MAX + 100 and text.endswith("line 49999\n")
    assert text.startswith("[") and "characters before this were not kept]\n" in text
    assert output.read("stderr") == ""
    assert output.nbytes == TEXT_CHARS_MAX


# ---------------------------------------------------------------- once more


def test_resubmitted_request_runs_as_a_task_with_its_function(cast: Cast) -> None:
    digest = b"d" * 16
    cast.world.say(cast.a, m.Function(b"code", 0, digest), m.Request(b"args", 0, 0, [0], "apply", digest, "mine"))
    (key,) = cast.start()
    cast.world.say(cast.engine, done(key))
    cast.world.disconnect(cast.a)  # the function is forgotten with it
    assert cast.world.out.take(cast.engine, m.ForgetFunction)
    assert digest not in cast.world.core.functions.entries
    cast.world.say(cast.b, m.Resubmit(4, [f"{A}-0"]))
    function, run = cast.world.out.take(cast.engine, m.Function), cast.world.out.take(cast.engine, m.Run)
    assert function.data == b"code" and run.data == b"args" and run.function == digest
    cast.world.say(cast.engine, done(run.key))
    assert cast.take(m.Result).seq == 4
    assert cast.query({"msg_id": f"{B}-4"}).records[0]["label"] == "mine"


def test_unfinished_request_can_be_resubmitted(cast: Cast) -> None:
    cast.world.say(cast.a, m.Function(b"code", 0, b"d"), m.Task(b"args", 0, 0, "apply", b"d", None, 0))
    (key,) = cast.start()
    cast.world.say(cast.b, m.Resubmit(0, [f"{A}-0"]))
    cast.world.say(cast.engine, done(key))
    (key,) = cast.start()
    cast.world.say(cast.engine, done(key))
    assert cast.take(m.Result).data == b"value"


def test_what_was_too_large_to_keep_cannot_be_resubmitted() -> None:
    cast = Cast(engines=3, request_max=1000, function_max=10)
    big = [bytes(400)]
    cast.world.say(cast.a, m.Request(b"", 1, 0, [0, 1, 2], "push", b""), frames=big)
    cast.world.say(cast.a, m.Function(b"code" * 5, 0, b"d"), m.Task(b"", 0, 9, "apply", b"d", [0], 0))
    for key in cast.start():
        cast.world.say(cast.engine, done(key))
    for key in cast.start():
        cast.world.say(cast.engine, done(key))
    cast.world.say(cast.b, m.Resubmit(0, [f"{A}-0", f"{A}-9", f"{A}-77"]))
    cast.world.forget_news(cast.b)
    texts = [cast.take(m.Result).error.evalue for _ in range(3)]
    assert "400 bytes for each of 3 engines" in texts[0]
    assert "its function has 20 bytes" in texts[1]
    assert "no request" in texts[2]


# ---------------------------------------------------------------- records


def test_query_sees_finished_and_unfinished_requests(cast: Cast) -> None:
    cast.world.now = 1.0
    cast.run(0)
    cast.run(1, error="ValueError")
    cast.world.now = 2.0
    cast.world.say(cast.a, task(2))
    records = cast.query({}).records
    assert [record["msg_id"] for record in records] == [f"{A}-0", f"{A}-1", f"{A}-2"]
    assert [record["status"] for record in records] == ["ok", "error", None]
    assert records[0]["engine_uuid"] == "u0.0" and records[0]["completed"] == 2.0 and records[2]["completed"] is None
    assert cast.query({"status": None}, ["engine_id"]).records == [{"msg_id": f"{A}-2", "engine_id": 0}]
    assert len(cast.query({"submitted": {"$gt": 1.0}}).records) == 1


def test_query_that_cannot_be_is_explained(cast: Cast) -> None:
    for query, keys, text in [
        ({"nope": 1}, None, "they have msg_id, client_uuid"),
        ({}, ["nope"], "they have msg_id, client_uuid"),
        ({"engine_id": {"$near": 1}}, None, r"there are $in, $nin, $eq"),
        ({"engine_id": {"$gt": "a"}}, None, "is a number"),
        ({"engine_id": {"$gt": None}}, None, "is a number"),
        ({"engine_id": {"$in": 3}}, None, "wants a list"),
        ({"engine_id": {"$glob": "3*"}}, None, "wants a pattern"),
    ]:
        error = cast.query(query, keys).error
        assert error is not None and error.ename == "UsageError" and text in error.evalue


def test_query_with_too_many_answers_is_refused() -> None:
    cast = Cast(answer_records_max=3)
    cast.run(*range(4))
    error = cast.query({}).error
    assert error is not None and "more than 3 records match" in error.evalue
    assert len(cast.query({"msg_id": {"$glob": "*-[12]"}}).records) == 2


def test_purge_forgets_what_has_ended_and_nothing_if_something_has_not(cast: Cast) -> None:
    cast.run(0, 1, 2)
    cast.world.say(cast.a, task(3))
    cast.world.say(cast.b, m.Purge(1, [f"{A}-0", f"{A}-3"], []))
    error = cast.take(m.Acknowledged).error
    assert error.ename == "OutstandingRequests" and f"Can't purge outstanding tasks: {A}-3" in error.evalue
    assert len(cast.world.core.finished.records) == 3
    cast.world.say(cast.b, m.Purge(2, [f"{A}-0"], []))
    assert cast.take(m.Acknowledged) == m.Acknowledged(2)
    assert len(cast.world.core.finished.records) == 2
    cast.world.say(cast.b, m.Purge(3, [], [7]), m.Purge(4, ["nonsense"], []))
    assert cast.take(m.Acknowledged).error is None
    assert cast.take(m.Acknowledged).error.ename == "UsageError"
    assert len(cast.world.core.finished.records) == 2
    cast.world.say(cast.b, m.Purge(5, [], [0]))
    assert not cast.world.core.finished.records and not cast.world.core.finished.nbytes
    cast.run(10)
    cast.world.say(cast.b, m.Purge(6, None, []))
    assert not cast.world.core.finished.records


# ---------------------------------------------------------------- queues


def test_queue_status_counts_and_names(cast: Cast) -> None:
    cast.run(0)
    cast.world.say(cast.a, request(1, [0]), task(2), task(3), task(4))
    cast.world.say(cast.b, m.QueueQuery(5, [0], True))
    status = cast.take(m.QueueStatus)
    (queue,) = status.engines
    assert queue == m.EngineQueue(0, 1, 1, queue.tasks, [f"{A}-1"], [f"{A}-0"], queue.task_ids)
    assert len(queue.task_ids) == queue.tasks and len(status.unassigned_ids) == status.unassigned
    assert sorted(queue.task_ids + status.unassigned_ids) == [f"{A}-{seq}" for seq in (2, 3, 4)]
    cast.world.say(cast.b, m.QueueQuery(6, [0], False), m.QueueQuery(7, [3], False))
    assert not cast.take(m.QueueStatus).engines[0].queue_ids
    assert cast.take(m.QueueStatus).error.ename == "NoSuchEngine"


# ---------------------------------------------------------------- the archive, as the core sees it


@pytest.fixture
def archiving() -> Cast:
    cast = Cast(records_max=4, shipping_max=10_000)
    cast.world.core.finished.has_archive = cast.world.core.finished.is_archiving = True
    return cast


def test_oldest_records_go_to_the_archive(archiving: Cast) -> None:
    archiving.run(*range(6))
    (order,) = archiving.orders(KeepRecords)
    assert [record.seq for record in order.records] == [0, 1]
    archiving.tell(ArchiveWrote(order.nbytes, 0))
    assert archiving.world.core.finished.shipping == 0


def test_archive_that_cannot_follow_costs_records_and_is_not_waited_for(archiving: Cast) -> None:
    archiving.run(*range(40))
    finished = archiving.world.core.finished
    assert finished.shipping <= 10_000 and finished.dropped + finished.archived + len(finished.records) == 40
    assert finished.dropped > 0
    archiving.tell(ArchiveFailed("no space"))
    count = len(archiving.orders(KeepRecords))
    archiving.run(*range(40, 50))
    assert len(archiving.orders(KeepRecords)) == count


def test_results_come_from_the_archive(archiving: Cast) -> None:
    archiving.run(*range(6))
    (order,) = archiving.orders(KeepRecords)
    archiving.follow(f"{A}-0", f"{A}-5", f"{A}-0", f"{C}-99", seq=10)
    assert (archiving.take(m.Followed).seq, archiving.take(m.Result).seq) == (11, 11)
    archiving.world.out.assert_empty()
    (question,) = archiving.orders(FindRecords)
    assert question.keys == ((A, 0), (C, 99))
    archiving.tell(ArchiveAnswer(question.question, [order.records[0]]))
    got = [(type(message), message.seq) for message, _ in archiving.world.out.take_all(archiving.b)]
    assert got == [(m.Followed, 10), (m.Result, 10), (m.Followed, 12), (m.Result, 12), (m.Result, 13)]


def test_answers_of_the_archive_for_a_client_that_is_gone_are_dropped(archiving: Cast) -> None:
    archiving.run(*range(6))
    (order,) = archiving.orders(KeepRecords)
    archiving.follow(f"{A}-0")
    archiving.world.say(archiving.b, m.Resubmit(1, [f"{A}-1"]), m.RecordQuery(2, {}, None), m.Purge(3, None, []))
    archiving.world.disconnect(archiving.b)
    first, second = archiving.orders(FindRecords)
    archiving.tell(ArchiveAnswer(first.question, [order.records[0]]))
    archiving.tell(ArchiveAnswer(second.question, [order.records[1]]))
    archiving.tell(ArchiveAnswer(archiving.orders(QueryRecords)[0].question, []))
    archiving.tell(ArchiveAnswer(archiving.orders(ForgetRecords)[0].question, []))
    assert not archiving.world.out.take_all(archiving.b)
    assert not archiving.start()


def test_queries_purges_and_resubmissions_ask_the_archive(archiving: Cast) -> None:
    archiving.run(*range(6))
    (order,) = archiving.orders(KeepRecords)
    archiving.world.say(archiving.b, m.RecordQuery(1, {"engine_id": 0}, ["msg_id"]))
    (question,) = archiving.orders(QueryRecords)
    archiving.tell(ArchiveAnswer(question.question, [render_record(record) for record in order.records]))
    assert archiving.take(m.Records).records == [{"msg_id": f"{A}-{seq}"} for seq in range(6)]
    archiving.world.say(archiving.b, m.Resubmit(8, [f"{A}-1"]))
    archiving.tell(ArchiveAnswer(archiving.orders(FindRecords)[0].question, [order.records[1]]))
    (key,) = archiving.start()
    archiving.world.say(archiving.engine, done(key))
    assert archiving.take(m.Result).seq == 8
    archiving.world.say(archiving.b, m.Purge(9, None, []))
    assert not archiving.world.out.take_all(archiving.b)
    archiving.tell(ArchiveAnswer(archiving.orders(ForgetRecords)[0].question, []))
    assert archiving.take(m.Acknowledged) == m.Acknowledged(9)


def test_large_result_that_nobody_got_goes_to_the_archive_at_once() -> None:
    cast = Cast(delivered_max=1000)
    cast.world.core.finished.has_archive = cast.world.core.finished.is_archiving = True
    cast.world.say(cast.a, task(0))
    (key,) = cast.start()
    cast.world.disconnect(cast.a)
    cast.world.say(cast.engine, m.Done(b"", 1, key, 0.0, 0.0, None), frames=[bytes(5000)])
    (order,) = cast.orders(KeepRecords)
    assert len(order.records[0].frames[0]) == 5000 and not cast.world.core.finished.records
