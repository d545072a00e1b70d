"""Views as executors of concurrent.futures: what CPython's documentation promises of an Executor, on engines."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, Executor, Future
from pathlib import Path
from typing import Any

import pytest
from bare_cluster import BareCluster
from gates import wait_for_file

from hpcviews import Client, EngineError, RemoteError, SerializationError, TaskAborted
from hpcviews.client.executor import ViewExecutor
from hpcviews.testing.wait import wait_until


def invert(x: float) -> float:
    return 1 / x


class Picky(Exception):
    """Cannot be copied from its args."""

    def __init__(self, a: int, b: int):
        super().__init__(f"{a} and {b}")
        self.a = a

    def __reduce__(self) -> Any:
        return Picky, (self.a, 0)


def raise_picky() -> None:
    raise Picky(1, 2)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file: calls of `wait_for_file` run until it is there."""
    return tmp_path / "gate"


def test_submit_gives_a_future_of_the_value(rc: Client) -> None:
    with rc.executor() as executor:
        assert isinstance(executor, ViewExecutor) and isinstance(executor, Executor)
        future = executor.submit(pow, 323, exp=2, mod=7)
        assert isinstance(future, Future) and future.result(10) == pow(323, 2, 7)
        assert future.done() and not future.running() and not future.cancelled() and future.exception() is None


def test_function_and_arguments_may_have_any_names(rc: Client) -> None:
    def show(**kwargs: Any) -> list[str]:
        return sorted(kwargs)

    with rc.executor() as executor:
        assert executor.submit(show, fn=1, self=2, f=3).result(10) == ["f", "fn", "self"]


def test_errors_are_the_originals(rc: Client) -> None:
    with rc.executor() as executor:
        future = executor.submit(invert, 0)
        with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
            future.result(10)
        assert isinstance(future.exception(), ZeroDivisionError)
        told = caught.value.__cause__
        assert isinstance(told, RemoteError) and "invert" in told.traceback and told.__cause__ is None
        with pytest.raises(Picky, match="1 and 0"):
            executor.submit(raise_picky).result(10)
        with pytest.raises(ZeroDivisionError):
            list(executor.map(invert, [1, 0]))
        with pytest.raises(SerializationError):
            executor.submit(invert, threading.Lock())


def test_error_that_cannot_travel_is_a_remote_error(rc: Client) -> None:
    def raise_local() -> None:
        class Odd(Exception):
            def __reduce__(self) -> Any:
                raise TypeError("never")

        raise Odd("here")

    with rc.executor() as executor, pytest.raises(RemoteError, match="Odd: here"):
        executor.submit(raise_local).result(10)


def test_map_gives_values_in_order(rc: Client) -> None:
    with rc.executor() as executor:
        assert list(executor.map(pow, range(10), range(10))) == [x**x for x in range(10)]
        assert list(executor.map(pow, range(40), range(40), chunksize=6)) == [x**x for x in range(40)]
        assert list(executor.map(pow, range(10), range(3))) == [1, 1, 4]
        assert list(executor.map(pow, [], [])) == []
        values = executor.map(invert, [1, 2, 0, 4])
        assert [next(values), next(values)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(values)
        with pytest.raises(StopIteration):
            next(values)
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(invert, [1], chunksize=0)


def test_map_starts_at_once_and_its_time_counts_from_the_call(rc: Client, gate: Path) -> None:
    with rc.executor() as executor:
        values = executor.map(lambda path: wait_for_file(path) if path else "quick", ["", str(gate)], timeout=0.2)
        try:
            assert next(values) == "quick"
            with pytest.raises(concurrent.futures.TimeoutError):  # TimeoutError's own name only from 3.11 on
                next(values)
        finally:
            gate.touch()
        values = executor.map(wait_for_file, [str(gate)] * 5)
        wait_until(lambda: not rc.outstanding, 10, "the calls to run although nobody iterates")
        assert list(values) == ["done"] * 5


def test_consumer_of_a_map_that_stops_withdraws_the_rest(rc: Client, gate: Path) -> None:
    with rc.executor() as executor:
        values = executor.map(lambda path: path and wait_for_file(path), ["", *[str(gate)] * 30])
        assert next(values) == ""
        values.close()  # type: ignore[attr-defined]
        try:
            wait_until(lambda: len(rc.outstanding) <= 3, 10, "what had not started to be withdrawn")
        finally:
            gate.touch()


def test_wait_and_as_completed_take_its_futures(rc: Client, gate: Path) -> None:
    with rc.executor() as executor:
        slow, quick = executor.submit(wait_for_file, str(gate)), executor.submit(abs, -1)
        done, pending = concurrent.futures.wait([slow, quick], None, FIRST_COMPLETED)
        assert (done, pending) == ({quick}, {slow})
        failing = executor.submit(invert, 0)
        done, pending = concurrent.futures.wait([slow, failing], None, FIRST_EXCEPTION)
        assert (done, pending) == ({failing}, {slow})
        with pytest.raises(concurrent.futures.TimeoutError):
            list(concurrent.futures.as_completed([slow], timeout=0.01))
        gate.touch()
        assert concurrent.futures.wait([slow, failing], 10, ALL_COMPLETED).not_done == set()
        assert set(concurrent.futures.as_completed([slow, quick, failing], 10)) == {slow, quick, failing}


def test_cancelled_future_does_not_run(rc: Client, gate: Path) -> None:
    executor = rc.executor([0])
    running = executor.submit(wait_for_file, str(gate))
    mark = gate.with_name("mark")
    waiting = executor.submit(Path.touch, mark)
    called: list[Future[Any]] = []
    told = threading.Event()
    waiting.add_done_callback(lambda f: (called.append(f), told.set()))
    assert waiting.cancel() and waiting.cancelled() and waiting.done() and waiting.cancel()
    with pytest.raises(CancelledError):
        waiting.result(0)
    with pytest.raises(CancelledError):
        waiting.exception(0)
    assert concurrent.futures.wait([waiting], 0).done == {waiting}
    assert told.wait(10) and called == [waiting]
    wait_until(lambda: len(rc.outstanding) == 1, 10, "the call to be withdrawn before the engine is free")
    gate.touch()
    assert running.result(10) == "done" and not running.cancel()
    executor.shutdown()
    assert not mark.exists()


def test_callbacks_are_called_in_order_and_their_errors_are_logged(
    rc: Client, caplog: pytest.LogCaptureFixture
) -> None:
    told = threading.Event()
    seen: list[str] = []
    with rc.executor() as executor:
        future = executor.submit(wait_for_file, os.devnull)

        def fail(_: Future[Any]) -> None:
            seen.append("first")
            raise RuntimeError("in a callback")

        future.add_done_callback(fail)
        future.add_done_callback(lambda f: seen.append(f.result()))
        future.add_done_callback(lambda _: told.set())
        assert told.wait(10) and seen == ["first", "done"]
    assert "in a callback" in caplog.text


def test_shut_down_executor_takes_no_more_and_the_view_has_a_new_one(rc: Client, gate: Path) -> None:
    view = rc.load_balanced_view()
    executor = view.executor
    assert view.executor is executor
    future = executor.submit(wait_for_file, str(gate))
    executor.shutdown(wait=False)
    assert not future.done()
    for call in (lambda: executor.submit(abs, 1), lambda: executor.map(abs, [1])):
        with pytest.raises(RuntimeError, match="after shutdown"):
            call()
    executor.shutdown(wait=False)
    gate.touch()
    executor.shutdown(wait=True)
    assert future.done() and future.result() == "done"
    with view.executor as other:
        assert other is not executor and other.submit(abs, -2).result(10) == 2
    with pytest.raises(RuntimeError, match="after shutdown"):
        other.submit(abs, 1)


def test_shutdown_waits_for_everything_and_may_withdraw_the_rest(rc: Client, gate: Path) -> None:
    executor = rc.executor([0])
    running = executor.submit(wait_for_file, str(gate))
    waiting = [executor.submit(abs, i) for i in range(5)]
    executor.shutdown(wait=False, cancel_futures=True)
    gate.touch()
    assert all(future.cancelled() for future in waiting)
    executor.shutdown()
    assert running.done()
    with rc.executor() as executor:
        futures = [executor.submit(abs, -i) for i in range(20)]
    assert all(future.done() for future in futures), "leaving the block waits"
    assert [future.result(0) for future in futures] == list(range(20))


def test_submitting_to_a_direct_view_gives_the_list(rc: Client) -> None:
    with rc[:].executor as executor:
        assert executor.submit(abs, -3).result(10) == [3, 3, 3]
        assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
        with pytest.raises(ZeroDivisionError):
            executor.submit(invert, 0).result(10)
    with rc[1].executor as executor:
        assert executor.submit(os.getpid).result(10) == rc.engines[1].pid  # type: ignore[index]
        assert executor._max_workers == 1


def test_own_errors_are_raised_as_themselves(mortal: BareCluster, gate: Path) -> None:
    mortal.start_engines(1)
    rc = mortal.connect(1)
    executor = rc.executor()
    future, waiting = executor.submit(wait_for_file, str(gate)), executor.submit(abs, 1)
    rc.abort(waiting)  # type: ignore[call-arg]
    with pytest.raises(TaskAborted):
        waiting.result(10)
    os.kill(rc.engines[0].pid, signal.SIGKILL)  # type: ignore[index]
    with pytest.raises(EngineError):
        future.result(30)
    executor.shutdown()
    rc.close()
