"""AsyncResults of single requests, of the requests of several calls, and of those of other clients."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import weakref
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from fake_controller import FakeController

from hpcviews.client.call import Call
from hpcviews.client.client import Client
from hpcviews.client.results import AsyncResult
from hpcviews.client.slots import Slots
from hpcviews.errors import CompositeError, NoSuchRequest, RemoteError, TaskAborted, UsageError
from hpcviews.ids import MsgId
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m


def double(x: int) -> int:
    return 2 * x


# ---------------------------------------------------------------- split, join, pick


def test_split_gives_a_future_per_request(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 4)
    fake.take_call(m.Request)
    first, second = ar.split()
    assert ar.split() == (first, second), "again gives the same"
    assert (first.targets, second.targets) == (0, 1) and len(first) == 1
    assert (first.msg_ids + second.msg_ids) == ar.msg_ids and second.first == ar.first + 1
    fake.answer(ar.first + 1, "b", engine=1)
    assert second.get(10) == "b" and second.engine_id == 1
    assert not first.done() and not ar.done()
    fake.fail(ar.first, ValueError("bad"))
    with pytest.raises(RemoteError, match="bad"):
        first.get(10)
    with pytest.raises(CompositeError):
        ar.get(10)
    assert concurrent.futures.wait([first, second, ar], 10).not_done == set()


def test_split_of_a_map_gives_chunks(fake: FakeController, rc: Client) -> None:
    ar = rc.load_balanced_view().map(double, range(5), chunksize=2)
    chunks = ar.split()
    for chunk, values in zip(chunks, (["a", "b"], ["c", "d"], ["e"]), strict=True):
        fake.answer(chunk.first, values)
    assert [chunk.get(10) for chunk in chunks] == [["a", "b"], ["c", "d"], ["e"]]
    assert ar.get(10) == list("abcde")


def test_values_are_the_same_objects_in_all_views_of_a_call(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 4)
    fake.answer(ar.first, [1]), fake.answer(ar.first + 1, [2])
    first, second = ar.split()
    whole = ar.get(10)
    assert first.get() is whole[0] and second.get() is whole[1] and AsyncResult.join(second, first).get()[0] is whole[1]


def test_join_puts_calls_in_a_row(fake: FakeController, rc: Client) -> None:
    one, both, tasks = rc[1].apply_async(double, 1), rc[:].apply_async(double, 2), rc.load_balanced_view()
    task = tasks.apply_async(double, 3)
    joined = AsyncResult.join(one, both)
    everything = AsyncResult.join(joined, task, joined)
    assert joined.targets == [1, 0, 1] and everything.targets is None
    assert joined.msg_ids == one.msg_ids + both.msg_ids and len(everything) == 7
    fake.answer(one.first, "one", engine=1), fake.answer(both.first + 1, "second", engine=1)
    wait_until(lambda: joined.progress == 2, 5, "two answers")
    assert repr(joined) == "<AsyncResult(double): 2 of 3 done>" and everything.progress == 4
    values = iter(everything)
    assert next(values) == "one"
    fake.answer(both.first, "first")
    assert joined.get(10) == ["one", "first", "second"]
    assert not everything.done()
    fake.answer(task.first, "task")
    assert everything.get(10) == ["one", "first", "second", "task", "one", "first", "second"]
    assert list(values) == ["first", "second", "task", "one", "first", "second"]
    assert [part.get() for part in everything.split()] == everything.get()
    assert everything.serial_time == 3.0 * 7 and everything.wall_time >= 0
    with pytest.raises(UsageError, match="at least one"):
        AsyncResult.join()


def test_join_of_what_has_ended_has_ended(fake: FakeController, rc: Client) -> None:
    done = rc[0].apply_async(double, 1)
    fake.answer(done.first, "value")
    assert done.wait(10)
    assert AsyncResult.join(done, done).get(0) == ["value", "value"]
    assert AsyncResult.join(rc[10:].apply_async(double, 1), done).get(0) == ["value"]


def test_join_races_with_results(fake: FakeController, rc: Client) -> None:
    fake.answer(rc[0].apply_async(double, 1).first)
    calls = [rc[0].apply_async(double, i) for i in range(300)]
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(lambda: [AsyncResult.join(*calls, *[c.split()[0] for c in calls]) for _ in range(20)])
        for call in calls:
            fake.answer(call.first, call.first)
        for result in joined.result(10):
            assert result.get(10) == [call.first for call in calls] * 2


def test_one_request_of_several_is_picked_by_msg_id(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 4)
    single = ar.pick(ar.msg_ids[1])
    fake.answer(ar.first + 1, "b", engine=1)
    assert single.get(10) == "b" and single.msg_ids == ar.msg_ids[1:]
    with pytest.raises(KeyError, match="none of the 2"):
        ar.pick("nonsense")
    alone = rc[0].apply_async(double, 4)
    assert alone.pick(alone.msg_ids[0]) is alone


def test_cancelling_one_of_several_withdraws_only_that(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 4)
    fake.take_call(m.Request)
    first, second = ar.split()
    assert second.cancel() and not first.cancelled()
    assert fake.take(m.Abort).seqs == [ar.first + 1]
    fake.answer(ar.first, "a"), fake.refuse(ar.first + 1, "TaskAborted", "withdrawn")
    assert first.get(10) == "a"
    with pytest.raises(CompositeError) as caught:
        ar.get(10)
    assert isinstance(caught.value.elist[0], TaskAborted)
    with pytest.raises(CancelledError):
        second.get()


def test_abort_of_joined_calls_is_one_message_per_client(fake: FakeController, rc: Client) -> None:
    first, second = rc[0].apply_async(double, 1), rc[:].apply_async(double, 2)
    fake.take_call(m.Request), fake.take_call(m.Request)
    AsyncResult.join(second, first).abort()
    assert sorted(fake.take(m.Abort).seqs) == [first.first, second.first, second.first + 1]
    assert not fake.has_message()


def test_parts_of_a_gather_outlive_it_if_they_are_asked_for_in_time(fake: FakeController, rc: Client) -> None:
    kept, let_go = rc[:].gather("x"), rc[:].gather("x")
    parts = kept.split()
    for ar in (kept, let_go):
        fake.answer(ar.first, np.arange(2)), fake.answer(ar.first + 1, np.arange(3))
        assert list(ar.get(10)) == [0, 1, 0, 1, 2]
    assert [len(part.get()) for part in parts] == [2, 3]
    with pytest.raises(UsageError, match=r"split\(\) before get"):
        let_go.split()[0].get()
    assert list(let_go.get()) == [0, 1, 0, 1, 2]


def test_joined_calls_are_sent_when_all_are(fake: FakeController, rc: Client) -> None:
    array = np.zeros(100_000)
    calls = [rc[0].push({"x": array}, track=track) for track in (True, False, True)]
    joined = AsyncResult.join(*calls)
    assert joined.tracker is not None and AsyncResult.join(calls[1]).tracker is None
    joined.wait_for_send(10)
    assert joined.sent and all(call.sent for call in calls)


def test_split_results_are_freed_with_the_last_reference(fake: FakeController, rc: Client) -> None:
    gc.disable()  # no cycle may be needed to be found
    try:
        ar = rc[:].apply_async(double, 1)
        first, second = ar.split()
        fake.answer(ar.first, np.arange(100_000)), fake.answer(ar.first + 1, 1)
        value, whole, joined = weakref.ref(first.get(10)), weakref.ref(ar), AsyncResult.join(second, ar)
        assert joined.wait(10)
        del ar, first, second, joined
        wait_until(lambda: whole() is None and value() is None, 5, "the results to be freed")
    finally:
        gc.enable()


# ---------------------------------------------------------------- return_when


def test_wait_tells_which_are_done(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 1)
    first, second = ar.split()
    assert ar.wait(0, return_when=FIRST_COMPLETED) == (set(), {first, second})
    fake.answer(ar.first + 1, "b")
    assert ar.wait(10, return_when=FIRST_COMPLETED) == ({second}, {first})
    assert ar.wait(0, return_when=FIRST_EXCEPTION) == ({second}, {first})
    fake.fail(ar.first, ValueError("bad"))
    assert ar.wait(10, return_when=FIRST_EXCEPTION) == ({first, second}, set())
    assert ar.wait(10, return_when=ALL_COMPLETED) == ({first, second}, set())
    with pytest.raises(ValueError, match="return_when"):
        ar.wait(0, return_when="SOME_DAY")


def test_get_may_raise_at_the_first_failure(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 1)
    fake.fail(ar.first, ValueError("bad"))
    with pytest.raises(CompositeError, match="bad") as caught:
        ar.get(10, return_when=FIRST_EXCEPTION)
    assert len(caught.value.elist) == 1 and not ar.done()
    with pytest.raises(TimeoutError):
        ar.get(0, return_exceptions=True, return_when=FIRST_EXCEPTION)
    fake.answer(ar.first + 1, "b")
    with pytest.warns(UserWarning, match="FIRST_COMPLETED is ignored"):
        values = ar.get(10, return_exceptions=True, return_when=FIRST_COMPLETED)
    assert values[1] == "b"


# ---------------------------------------------------------------- requests of others


def follow(rc: Client, msg_ids: list[str]) -> AsyncResult:
    """What `Client.get_result` does for requests that this client did not submit."""
    connection = rc._connection
    first = connection.reserve(len(msg_ids))
    call = Call(rc, "get_result", first, len(msg_ids), msg_ids=[MsgId(i) for i in msg_ids])
    result = AsyncResult(Slots.of_call(call), targets=None, is_single=len(msg_ids) == 1)
    connection.post(call, range(first, first + len(msg_ids)), [m.Follow(first, msg_ids)], [])
    return result


def test_requests_of_others_are_known_by_their_msg_ids(fake: FakeController, rc: Client) -> None:
    theirs = ["0123456789abcdef-7", "0123456789abcdef-9"]
    ar = follow(rc, theirs)
    asked = fake.take(m.Follow)
    assert (asked.msg_ids, ar.msg_ids) == (theirs, theirs)
    assert rc.history == [] and rc.outstanding == set(), "they are not ours"
    fake.send(m.Followed(ar.first, 1000.0, "fit"), m.Output(ar.first, 1, "stdout", "hello"))
    fake.answer(ar.first, "a", engine=1)
    fake.refuse(ar.first + 1, "NoSuchRequest", "no request 0123456789abcdef-9")
    value, error = ar.get(10, return_exceptions=True)
    assert value == "a" and isinstance(error, NoSuchRequest)
    first, second = ar.metadata
    assert (first.msg_id, first.label, first.stdout) == (theirs[0], "fit", "hello")
    assert first.submitted == datetime.fromtimestamp(1000.0, timezone.utc) and second.label is None
    assert ar.elapsed > 1_000_000_000


def test_own_and_other_requests_are_joined(fake: FakeController, rc: Client) -> None:
    own, other = rc[0].apply_async(double, 1), follow(rc, ["0123456789abcdef-7"])
    both = AsyncResult.join(other, own)
    fake.answer(own.first, "own"), fake.answer(other.first, "other")
    assert both.get(10) == ["other", "own"] and other.get() == "other"


def test_requests_of_others_end_with_the_connection(fake: FakeController, rc: Client) -> None:
    ar = follow(rc, ["0123456789abcdef-7"])
    ended: list[Any] = []
    told = threading.Event()
    ar.add_done_callback(lambda ar: (ended.append(type(ar.exception()).__name__), told.set()))
    rc.close()
    assert told.wait(10) and ended == ["ControllerLost"]
