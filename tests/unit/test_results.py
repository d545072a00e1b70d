"""AsyncResult and the Client, against a controller that does what each test says."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import pickle
import threading
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from datetime import timezone
from typing import Any

import numpy as np
import pytest
import zmq
from fake_controller import FakeController, make_engine

from hpcviews.client.client import Client
from hpcviews.client.map_result import AsyncMapResult
from hpcviews.client.output import OUTPUT_CHARS_MAX
from hpcviews.client.results import AsyncResult
from hpcviews.errors import (
    CompositeError,
    EngineError,
    NoSuchEngine,
    RemoteError,
    SerializationError,
    TaskAborted,
    UsageError,
)
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m


def double(x: int) -> int:
    return 2 * x


class Unpicklable:
    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    raise ImportError("no module named 'elsewhere'")


# ---------------------------------------------------------------- one value


def test_call_of_one_engine_has_one_value(fake: FakeController, rc: Client) -> None:
    ar = rc[1].apply_async(double, 4)
    assert isinstance(ar, concurrent.futures.Future)
    assert not ar.ready() and not ar.done() and ar.progress == 0
    request = fake.take_call(m.Request)
    assert (request.targets, request.op, request.seq) == ([1], "apply", ar.first)
    fake.answer(request.seq, 8, engine=1)
    assert ar.get(10) == ar.result() == ar.r == 8
    assert ar.successful() and ar.exception() is None and ar.progress == len(ar) == 1
    assert ar.engine_id == 1 and ar["engine_uuid"] == "uuid-1" and ar.get_dict() == {1: 8}
    assert ar.targets == 1
    with pytest.raises(TypeError, match="not iterable"):
        iter(ar)


def test_result_that_is_not_ready_is_a_timeout(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 4)
    for wait in (lambda: ar.get(0), lambda: ar.result(0.01), lambda: ar.exception(0), lambda: ar[0]):
        with pytest.raises(TimeoutError) as caught:
            wait()
        assert isinstance(caught.value, concurrent.futures.TimeoutError), "another class before Python 3.11"
    assert ar.wait(0) is False
    with pytest.raises(RuntimeError, match="not done"):
        ar.successful()
    with pytest.raises(TimeoutError):
        _ = ar.wall_time
    fake.answer(ar.first, 8)
    assert ar.wait(10) is True and ar.get() == 8


def test_value_is_unpickled_once_and_only_when_asked_for(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 4)
    fake.answer(ar.first, [1, 2])
    assert ar.wait(10)
    assert "UNREAD" not in repr(ar) and type(ar.slots.parts[0].call._values[0]) is object
    with ThreadPoolExecutor(8) as pool:
        values = [f.result() for f in [pool.submit(ar.get) for _ in range(8)]]
    assert all(value is values[0] for value in values)


def test_value_that_cannot_be_unpickled_here_is_said_at_get(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 4)
    fake.answer(ar.first, Unpicklable())
    assert ar.wait(10)
    with pytest.raises(SerializationError, match="elsewhere"):
        ar.get()


def test_received_array_aliases_the_frame_and_is_writable(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 4)
    fake.answer(ar.first, np.arange(100_000.0))
    assert ar.wait(10)
    (frame,) = ar.slots.parts[0].call._frames[0]
    value = ar.get()
    assert np.shares_memory(value, np.frombuffer(frame.buffer, np.uint8))
    value[0] = 5
    assert ar.slots.parts[0].call._frames == {}, "the frame is held twice"


# ---------------------------------------------------------------- several values


def test_call_of_several_engines_is_one_message_and_a_list(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 4)
    request = fake.take_call(m.Request)
    assert request.targets == [0, 1]
    fake.answer(request.seq + 1, "b", engine=1)
    wait_until(lambda: ar.progress == 1, 5, "the first answer")
    assert not ar.ready()
    fake.answer(request.seq, "a")
    assert ar.get(10) == ["a", "b"] == list(ar) and ar[1] == "b" and ar[:1] == ["a"]
    assert ar.get_dict() == {0: "a", 1: "b"}
    assert ar.engine_id == [0, 1]
    assert ar.msg_ids == [f"{rc.session}-{request.seq}", f"{rc.session}-{request.seq + 1}"]


def test_values_are_iterated_as_they_come(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 4)
    values = iter(ar)
    fake.take_call(m.Request)
    fake.answer(ar.first, "a")
    assert next(values) == "a"
    assert not ar.done()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(next, values)
        fake.answer(ar.first + 1, "b")
        assert second.result(10) == "b"


def test_dictionary_needs_one_job_per_engine(fake: FakeController, rc: Client) -> None:
    ar = rc[[0, 0]].apply_async(double, 4)
    fake.take_call(m.Request)
    fake.answer(ar.first), fake.answer(ar.first + 1)
    with pytest.raises(ValueError, match="2 jobs ran on engine #0"):
        ar.get_dict(10)


def test_dictionary_of_a_gather_has_its_parts(fake: FakeController, rc: Client) -> None:
    ar = rc[:].gather("x")
    fake.take_call(m.Request)
    fake.answer(ar.first, [1, 2], engine=0), fake.answer(ar.first + 1, [3], engine=1)
    assert ar.get_dict(10) == ar.result_dict == {0: [1, 2], 1: [3]}
    assert ar.get() == [1, 2, 3]
    with pytest.raises(TimeoutError):
        rc[:].gather("x").get_dict(0)
    failing = rc[:].apply_async(double, 1)
    fake.answer(failing.first, "a", engine=0), fake.fail(failing.first + 1, ValueError("bad"), engine=1)
    with pytest.raises(CompositeError):
        failing.get_dict(10)


def test_call_of_no_engines_is_done_with_an_empty_list(fake: FakeController, rc: Client) -> None:
    view = rc[10:]
    assert view.apply_sync(double, 4) == [] == view.pull("x", block=True) == view.map_sync(double, [1])
    assert view.gather("x", block=True) == []
    view.scatter("x", [1, 2], block=True)
    assert view.history == [] and not fake.has_message()


# ---------------------------------------------------------------- errors


def test_remote_error_carries_the_original(fake: FakeController, rc: Client) -> None:
    ar = rc[1].apply_async(double, 4)
    fake.take_call(m.Request)
    fake.fail(ar.first, ZeroDivisionError("division by zero"), engine=1)
    with pytest.raises(RemoteError, match=r"\[1:apply\] ZeroDivisionError: division by zero") as caught:
        ar.get(10)
    error = caught.value
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert (error.ename, error.engine_id, error.rank, error.host) == ("ZeroDivisionError", 1, 1, "node1")
    assert "Traceback: line 1" in str(error)
    assert not ar.successful() and isinstance(ar.exception(), RemoteError)
    assert isinstance(ar.get(return_exceptions=True), RemoteError)
    assert ar.status == "error" and "division" in ar.error


def test_remote_error_without_its_original_still_says_what_it_was(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 4)
    fake.take_call(m.Request)
    fake.fail(ar.first, ValueError("bad"), can_pickle=False)
    with pytest.raises(RemoteError, match="ValueError: bad") as caught:
        ar.get(10)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("kind", [EngineError, NoSuchEngine, TaskAborted])
def test_errors_of_ours_are_raised_as_themselves(fake: FakeController, rc: Client, kind: type[Exception]) -> None:
    ar = rc[0].apply_async(double, 4)
    fake.refuse(ar.first, kind.__name__, "engine 0 died")
    with pytest.raises(kind, match="engine 0 died"):
        ar.get(10)
    assert ar.status == ("aborted" if kind is TaskAborted else "error")


def test_error_name_of_a_newer_controller_is_no_crash(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 4)
    fake.refuse(ar.first, "SomethingNew", "what happened")
    with pytest.raises(RemoteError, match="SomethingNew: what happened"):
        ar.get(10)


def test_one_failure_of_several_is_a_composite_error(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 4)
    fake.take_call(m.Request)
    fake.answer(ar.first, "fine")
    fake.fail(ar.first + 1, KeyError("k"), engine=1)
    with pytest.raises(CompositeError, match="one or more exceptions raised in: double") as caught:
        ar.get(10)
    (error,) = caught.value.elist
    assert isinstance(error, RemoteError) and isinstance(error.__cause__, KeyError)
    value, failed = ar.get(return_exceptions=True)
    assert value == "fine" and isinstance(failed, RemoteError)
    assert not ar.successful()
    values = iter(ar)
    assert next(values) == "fine"
    with pytest.raises(CompositeError):
        next(values)


def test_list_of_one_target_is_composite_too(fake: FakeController, rc: Client) -> None:
    ar = rc[[0]].apply_async(double, 4)
    fake.take_call(m.Request)
    fake.fail(ar.first, KeyError("k"))
    with pytest.raises(CompositeError):
        ar.get(10)


def test_aborted_child_of_several_raises(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 4)
    fake.take_call(m.Request)
    fake.answer(ar.first, "fine")
    fake.refuse(ar.first + 1, "TaskAborted", "withdrawn")
    with pytest.raises(CompositeError) as caught:
        ar.get(10)
    assert [type(error) for error in caught.value.elist] == [TaskAborted]
    assert not ar.successful()


def test_exception_as_a_value_is_a_value(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 4)
    fake.answer(ar.first, ValueError("returned"))
    value = ar.get(10)
    assert isinstance(value, ValueError) and ar.successful()


# ---------------------------------------------------------------- futures


def test_futures_of_the_standard_library_accept_it(fake: FakeController, rc: Client) -> None:
    first, second = rc[0].apply_async(double, 1), rc[1].apply_async(double, 2)
    fake.answer(second.first, "second")
    done, pending = concurrent.futures.wait([first, second], 10, concurrent.futures.FIRST_COMPLETED)
    assert (done, pending) == ({second}, {first})
    fake.answer(first.first, "first")
    assert {f.result() for f in concurrent.futures.as_completed([first, second], 10)} == {"first", "second"}

    async def wait_for(ar: AsyncResult) -> Any:
        return await asyncio.wrap_future(ar)

    third = rc[0].apply_async(double, 3)
    fake.answer(third.first, "third")
    assert asyncio.run(wait_for(third)) == "third"


def test_failed_call_ends_a_wait_for_the_first_exception(fake: FakeController, rc: Client) -> None:
    several, other = rc[:].apply_async(double, 1), rc[0].apply_async(double, 2)
    fake.answer(several.first), fake.fail(several.first + 1, ValueError("bad"))
    done, pending = concurrent.futures.wait([several, other], None, concurrent.futures.FIRST_EXCEPTION)
    assert (done, pending) == ({several}, {other})


def test_error_of_a_callback_is_logged(fake: FakeController, rc: Client, caplog: pytest.LogCaptureFixture) -> None:
    ar = rc[0].apply_async(double, 1)
    told = threading.Event()

    def fail(_: Any) -> None:
        raise RuntimeError("in a callback")

    ar.add_done_callback(fail)
    ar.add_done_callback(lambda _: told.set())
    fake.answer(ar.first)
    assert told.wait(10) and "in a callback" in caplog.text
    ar.add_done_callback(fail)  # done already: called here, and no harm either


def test_result_is_not_for_sending(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 1)
    with pytest.raises(TypeError, match="msg_ids"):
        pickle.dumps(ar)
    with pytest.raises(SerializationError, match="msg_ids"):
        rc[0].apply_async(double, ar)


def test_callback_may_wait_for_another_result(fake: FakeController, rc: Client) -> None:
    outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
    first = rc[0].apply_async(double, 1)
    first.add_done_callback(lambda ar: outcome.set_result((ar.result(), rc[1].apply_sync(double, 2))))
    fake.answer(first.first, "first")
    while (request := fake.take_call(m.Request)).targets != [1]:
        pass
    fake.answer(request.seq, "second")
    assert outcome.result(10) == ("first", "second")
    late: list[Any] = []
    first.add_done_callback(late.append)
    assert late == [first]


def test_callback_is_called_even_if_nobody_holds_the_result(fake: FakeController, rc: Client) -> None:
    called = threading.Event()
    rc[0].apply_async(double, 1).add_done_callback(lambda ar: called.set())
    gc.collect()
    fake.answer(0)
    assert called.wait(10)


def test_cancelling_withdraws_and_raises(fake: FakeController, rc: Client) -> None:
    ar = rc[:].apply_async(double, 1)
    fake.take_call(m.Request)
    fake.answer(ar.first)
    wait_until(lambda: ar.progress == 1, 5, "the first answer")
    values = iter(ar)
    next(values)
    assert ar.cancel() and ar.cancelled() and ar.cancel()
    assert fake.take(m.Abort).seqs == [ar.first + 1]
    for wait in (ar.get, ar.exception, lambda: next(values)):
        with pytest.raises(CancelledError):
            wait()
    assert ar.wait(0) and not ar.successful()
    assert concurrent.futures.wait([ar], 10).done == {ar}
    # Its request has not ended, and is outstanding until it has.
    assert rc.outstanding == {ar.msg_ids[1]}
    fake.refuse(ar.first + 1, "TaskAborted", "withdrawn")
    wait_until(lambda: not rc.outstanding, 5, "the end of the request")
    assert ar.cancelled()


def test_finished_call_cannot_be_cancelled(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 1)
    fake.answer(ar.first, 2)
    assert ar.wait(10)
    assert not ar.cancel() and ar.get() == 2
    with pytest.raises(RuntimeError, match="already done"):
        ar.abort()


def test_cancelling_races_with_results(fake: FakeController, rc: Client) -> None:
    fake.answer(rc[0].apply_async(double, 1).first)
    calls = [rc[0].apply_async(double, i) for i in range(200)]
    with ThreadPoolExecutor(1) as pool:
        cancelled = pool.submit(lambda: [ar.cancel() for ar in calls])
        for ar in calls:
            fake.answer(ar.first, "value")
        for ar, was_cancelled in zip(calls, cancelled.result(10), strict=True):
            assert ar.cancelled() == was_cancelled
            assert was_cancelled or ar.get(10) == "value"


def test_abort_asks_for_what_has_not_ended(fake: FakeController, rc: Client) -> None:
    view = rc[:]
    first, second = view.apply_async(double, 1), view.apply_async(double, 2)
    fake.take_call(m.Request), fake.take_call(m.Request)
    fake.answer(first.first)
    wait_until(lambda: first.progress == 1, 5, "the first answer")
    first.abort()
    assert fake.take(m.Abort).seqs == [first.first + 1]
    view.abort()
    assert sorted(fake.take(m.Abort).seqs) == [first.first + 1, second.first, second.first + 1]
    view.abort(second.msg_ids[0])
    assert fake.take(m.Abort).seqs == [second.first], "a msg_id is one request"
    rc.abort([first, second])
    assert len(fake.take(m.Abort).seqs) == 3


# ---------------------------------------------------------------- maps


def take_tasks(fake: FakeController, count: int) -> list[m.Task]:
    return [fake.take_call(m.Task) for _ in range(count)]


def test_map_joins_chunks_in_order(fake: FakeController, rc: Client) -> None:
    ar = rc.load_balanced_view().map(double, range(5), chunksize=2)
    assert isinstance(ar, AsyncMapResult) and len(ar) == 5
    tasks = take_tasks(fake, 3)
    fake.answer(tasks[2].seq, ["e"])
    wait_until(lambda: ar.progress == 1, 5, "the last chunk")
    fake.answer(tasks[1].seq, ["c", "d"])
    fake.answer(tasks[0].seq, ["a", "b"])
    assert ar.get(10) == list("abcde") == list(ar)
    assert ar.progress == 5


def test_unordered_map_yields_what_comes_first(fake: FakeController, rc: Client) -> None:
    ar = rc.load_balanced_view().map(double, range(4), chunksize=2, ordered=False)
    tasks = take_tasks(fake, 2)
    values = iter(ar)
    fake.answer(tasks[1].seq, ["c", "d"])
    assert [next(values), next(values)] == ["c", "d"]
    fake.answer(tasks[0].seq, ["a", "b"])
    assert list(values) == ["a", "b"]
    assert ar.get() == list("abcd")


def test_lost_chunk_has_one_error_per_item(fake: FakeController, rc: Client) -> None:
    ar = rc.load_balanced_view().map(double, range(5), chunksize=3, return_exceptions=True)
    tasks = take_tasks(fake, 2)
    fake.answer(tasks[1].seq, ["d", "e"])
    fake.refuse(tasks[0].seq, "EngineError", "engine 1 died")
    values = ar.get(10)
    assert [type(v) for v in values[:3]] == [EngineError] * 3 and values[3:] == ["d", "e"]
    assert [type(v) for v in ar] == [EngineError] * 3 + [str, str]
    assert ar.exception() is None


def test_failed_map_is_composite(fake: FakeController, rc: Client) -> None:
    ar = rc.load_balanced_view().map(double, range(2))
    tasks = take_tasks(fake, 2)
    fake.answer(tasks[0].seq, ["a"])
    fake.fail(tasks[1].seq, ValueError("bad"))
    with pytest.raises(CompositeError):
        ar.get(10)
    assert ar.get(return_exceptions=True)[0] == "a"


def test_tasks_name_the_function_once_and_start_before_the_last_is_pickled(fake: FakeController, rc: Client) -> None:
    ar = rc.load_balanced_view().map(double, range(2500))
    kinds = [type(fake.take_any()[0]) for _ in range(2501)]
    assert kinds == [m.Function] + [m.Task] * 2500
    assert ar.msg_ids == rc.history


def test_unpicklable_item_is_named_and_withdraws_what_was_sent(fake: FakeController, rc: Client) -> None:
    view = rc.load_balanced_view()
    items: list[Any] = [0] * 1200
    items[1100] = threading.Lock()
    with pytest.raises(SerializationError, match="items 1100 to 1100"):
        view.map(double, items)
    sent = take_tasks(fake, 1000)
    assert fake.take(m.Abort).seqs == [task.seq for task in sent]
    assert len(view.history) == 1000


def test_direct_map_gives_each_engine_one_block(fake: FakeController, rc: Client) -> None:
    view = rc[:]
    before = fake.zmq_messages
    ar = view.map(double, range(3))
    first, second = fake.take_call(m.Request), fake.take_call(m.Request)
    assert (first.targets, second.targets, first.op) == ([0], [1], "map")
    assert fake.zmq_messages == before + 1, "the parts must travel in one message"
    fake.answer(first.seq, ["a", "b"]), fake.answer(second.seq, ["c"])
    assert ar.get(10) == ["a", "b", "c"] and len(ar) == 3
    assert view.history == ar.msg_ids and not view.outstanding
    assert rc[:].map(double, []).get(1) == []


# ---------------------------------------------------------------- what is known


def test_metadata_tells_what_happened(fake: FakeController, rc: Client) -> None:
    ar = rc[1].apply_async(double, 4)
    assert ar.metadata.status is None and ar.metadata.completed is None and ar.stdout == ""
    fake.send(m.Output(ar.first, 1, "stdout", "hello "), m.Output(ar.first, 1, "stderr", "oh"))
    fake.send(m.Output(ar.first, 1, "stdout", "world\n"))
    wait_until(lambda: ar.stdout == "hello world\n", 5, "output of a running request")
    assert ar.metadata.engine_id == 1
    fake.answer(ar.first, 8, engine=1)
    assert ar.wait_for_output(10)
    found = ar.metadata
    assert (found.stdout, found["stderr"], found.status) == ("hello world\n", "oh", "ok")
    assert (found.engine_id, found.engine_uuid, found.host, found.rank) == (1, "uuid-1", "node1", 1)
    assert found.msg_id == ar.msg_ids[0]
    assert all(found[key].tzinfo is timezone.utc for key in ("submitted", "started", "completed", "received"))
    assert ar.timedelta(ar.started, ar.completed) == 3.0 == ar.serial_time
    assert ar.timedelta([ar.submitted], [ar.received]) == pytest.approx(ar.wall_time, abs=1e-5)
    assert ar.elapsed == ar.wall_time
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ar.nonsense
    with pytest.raises(AttributeError, match="stdout"):
        _ = found.nonsense
    with pytest.raises(KeyError):
        _ = ar["nonsense"]


def test_metadata_knows_engines_that_are_gone(fake: FakeController, rc: Client) -> None:
    ar = rc[1].apply_async(double, 4)
    result = m.Result(b"", 0, ar.first, 1, 0.0, 0.0, m.ErrorInfo("EngineError", "died", "", True))
    fake.send(result, m.EnginesLeft([m.EngineLeft(1, "was killed")]))
    with pytest.raises(EngineError):
        ar.get(10)
    assert rc.ids == [0], "who hears of the death must find the engine gone"
    assert ar.engine_uuid == "uuid-1" and ar.started is None


def test_output_is_bounded_and_says_so(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 4)
    for _ in range(3):
        fake.send(m.Output(ar.first, 0, "stdout", "x" * (OUTPUT_CHARS_MAX // 2)))
    fake.answer(ar.first)
    assert ar.wait(10)
    assert len(ar.stdout) < OUTPUT_CHARS_MAX + 100
    assert ar.stdout.endswith(f"\n[{OUTPUT_CHARS_MAX // 2} more characters were dropped]\n")


# ---------------------------------------------------------------- history


def test_history_has_each_request_once_in_order(fake: FakeController, rc: Client) -> None:
    view, single, balanced = rc[:], rc[1], rc.load_balanced_view()
    calls: list[AsyncResult] = [
        view.apply_async(double, 1),
        view.push({"a": 1}),
        view.pull("a"),
        view.execute("a"),
        view.gather("a"),
        view.scatter("b", [1, 2, 3]),  # type: ignore[list-item]
        view.map_async(double, range(5)),
    ]
    with pytest.raises(SerializationError):
        view.apply_async(double, threading.Lock())
    with pytest.raises(TypeError):
        view.execute(5)  # type: ignore[arg-type]
    other = single.apply_async(double, 1)
    tasks = balanced.map_async(double, range(5), chunksize=2)
    assert view.history == [msg_id for call in calls for msg_id in call.msg_ids]
    assert single.history == other.msg_ids and balanced.history == tasks.msg_ids
    assert rc.history == [*view.history, *single.history, *balanced.history]
    assert view.outstanding == set(view.history) and rc.outstanding == set(rc.history)
    assert view.wait(timeout=0) is False and view.wait(calls[0], 0) is False and rc.wait(timeout=0) is False
    for seq in rc.history.iterate_seqs():
        fake.answer(seq, [1, 2])
    assert rc.wait(timeout=10) and view.wait(timeout=10)
    assert not view.outstanding and not rc.outstanding
    assert view.get_result(-1) is calls[-1] and rc.get_result(other.msg_ids[0]) is other
    assert view.get_result(0) is calls[0]


def test_nothing_is_sent_when_an_argument_cannot_be_pickled(fake: FakeController, rc: Client) -> None:
    lock = threading.Lock()
    view, balanced = rc[:], rc.load_balanced_view()
    for call, match in (
        (lambda: view.apply_async(double, 1, key=lock), "argument 'key'"),
        (lambda: balanced.apply_async(double, lock), "argument 0"),
        (lambda: view.push({"a": 1, "b": lock}), "'b'"),
        (lambda: view.scatter("x", [1, lock]), "lock"),
        (lambda: view.map(double, [1, lock]), "lock"),
        (lambda: view.apply_async(lambda: lock), "the function"),
    ):
        with pytest.raises(SerializationError, match=match):
            call()
    assert rc.history == [] and rc.outstanding == set()
    assert not fake.has_message()


def test_function_that_is_none_is_refused_here(fake: FakeController, rc: Client) -> None:
    for view in (rc[:], rc.load_balanced_view()):
        with pytest.raises(TypeError, match="f must be callable"):
            view.apply(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="block"):
            view.map_sync(double, [1], block=False)
        with pytest.raises(TypeError, match="unexpected keyword"):
            view.map(double, [1], nonsense=1)
    with pytest.raises(TypeError, match="dict"):
        rc[:].push([1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keys must be str"):
        rc[:].push({1: 2})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="names must be strs"):
        rc[:].pull(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="chunksize"):
        rc.load_balanced_view().map(double, [1], chunksize=-1)
    assert not fake.has_message()


def test_dead_target_is_named_and_nothing_is_sent(fake: FakeController, rc: Client) -> None:
    one, both, everyone = rc[1], rc[:], rc.direct_view("all")
    fake.send(m.EnginesLeft([m.EngineLeft(1, "was killed")]))
    wait_until(lambda: rc.ids == [0], 5, "the news")
    for view in (one, both):
        for call in (lambda v=view: v.apply_async(double, 1), lambda v=view: v.map(double, [1]), lambda v=view: v["a"]):
            with pytest.raises(NoSuchEngine, match="No such engine: 1"):
                call()
    with pytest.raises(NoSuchEngine, match="No such engine: 1"):
        rc[1]
    assert len(everyone) == 1 and len(both) == 2 and len(one) == 1
    assert everyone.apply_async(double, 1).targets == [0]
    fake.send(m.EnginesJoined([make_engine(2)]))
    wait_until(lambda: rc.ids == [0, 2], 5, "the news")
    assert everyone.apply_async(double, 1).targets == [0, 2]


# ---------------------------------------------------------------- memory


def test_results_are_freed_with_the_last_reference(fake: FakeController, rc: Client) -> None:
    gc.disable()  # no cycle may be needed to be found
    try:
        ar = rc[0].apply_async(double, 1)
        fake.answer(ar.first, np.arange(100_000))
        value = weakref.ref(ar.get(10))
        result = weakref.ref(ar)
        del ar
        # The I/O thread may still be on its way out of the function that stored the result.
        wait_until(lambda: result() is None and value() is None, 5, "the result to be freed")
        failing = rc[:].apply_async(double, 1)
        fake.fail(failing.first, ValueError("x")), fake.fail(failing.first + 1, ValueError("x"))
        assert failing.wait(10)

        def look(call: AsyncResult) -> None:
            with pytest.raises(CompositeError):
                call.get()

        look(failing)
        result = weakref.ref(failing)
        del failing
        gc.collect()
        assert result() is None
    finally:
        gc.enable()


def test_sent_arrays_are_let_go(fake: FakeController, rc: Client) -> None:
    array = np.zeros(200_000)
    freed = weakref.ref(array)
    ar = rc[:].push({"x": array}, track=True)
    assert ar.tracker is not None
    ar.wait_for_send(10)
    assert ar.sent and not ar.done()
    del array
    wait_until(lambda: freed() is None, 5, "the array to be freed while its request is outstanding")


def test_outgoing_frame_aliases_the_array(fake: FakeController, rc: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[zmq.Frame] = []
    post = rc._connection.post

    def look(call: Any, seqs: range, messages: Any, frames: list[zmq.Frame], function: Any = None) -> None:
        seen.extend(frames)
        post(call, seqs, messages, frames, function)

    monkeypatch.setattr(rc._connection, "post", look)
    array = np.arange(400_000.0).reshape(40_000, 10)
    view = rc[:]
    rc[0].apply_async(double, array)
    rc.load_balanced_view().apply_async(double, [{"deep": array}])
    view.push({"x": array})
    view.scatter("x", array)
    view.map(double, array)
    rc.load_balanced_view().map(double, array, chunksize=20_000)
    assert len(seen) == 9
    assert all(np.shares_memory(np.frombuffer(frame.buffer, np.uint8), array) for frame in seen)


def test_tracking_is_by_flag_and_by_keyword(fake: FakeController, rc: Client) -> None:
    array = np.zeros(100_000)
    view = rc[0]
    untracked = view.push({"x": array})
    assert untracked.tracker is None and untracked.sent
    untracked.wait_for_send(0)
    assert view.push({"x": 1}, track=True).tracker is None
    assert view.scatter("x", array, track=True).tracker is not None  # type: ignore[union-attr]
    with view.temp_flags(track=True):
        ar = view.apply_async(double, array)
    assert isinstance(ar.tracker, zmq.MessageTracker) and not view.track
    ar.wait_for_send(10)


def test_buffers_are_free_when_they_are_sent_and_not_before(fake: FakeController) -> None:
    # The peer takes one message ahead, and these are larger than the kernel's buffers: the last wait for a reader.
    fake.die()
    fake.bind(hwm=1)
    rc = fake.connect()
    calls = [rc[0].push({"x": np.zeros(2**20)}, track=True) for _ in range(8)]
    with pytest.raises(TimeoutError, match="Still waiting"):
        calls[-1].wait_for_send(0.05)
    assert not calls[-1].sent
    for _ in calls:
        fake.take(m.Request)
    for call in calls:
        call.wait_for_send(10)
        assert call.sent and not call.done()
