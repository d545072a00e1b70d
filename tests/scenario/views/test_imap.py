"""Lazy maps: inputs are taken as it goes."""

from __future__ import annotations

import contextvars
import gc
import itertools
import queue
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bare_cluster import BareCluster
from gates import wait_for_file

from hpcviews import Client, HpcviewsError, RemoteError, SerializationError, UsageError
from hpcviews.client.lazy_map import ITEMS_PER_ENGINE, LazyMapIterator
from hpcviews.testing.wait import wait_until


class Counted:
    """Counts what has been taken of it; endless unless told."""

    def __init__(self, end: int | None = None):
        self.taken = 0
        self.end = end
        self.is_closed = False

    def __iter__(self) -> Iterator[int]:
        try:
            while self.end is None or self.taken < self.end:
                self.taken += 1
                yield self.taken
        finally:
            self.is_closed = True


def count_threads() -> int:
    return sum(thread.name == "hpcviews-imap" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    wait_until(lambda: not count_threads(), 10, "the threads of lazy maps to end")


def negate(x: int, y: int = 0) -> int:
    return -x - y


def test_results_come_in_order(rc: Client) -> None:
    view = rc.load_balanced_view()
    results = view.imap(negate, range(50), itertools.count())
    assert isinstance(results, LazyMapIterator) and iter(results) is results
    assert list(results) == [-2 * x for x in range(50)]
    assert list(results) == [], "an exhausted iterator stays so"
    assert list(view.imap(negate, [])) == []
    assert len(view.history) == 50 and not view.outstanding


def test_inputs_may_be_endless(rc: Client) -> None:
    inputs = Counted()
    results = rc.load_balanced_view().imap(negate, inputs)
    assert list(itertools.islice(results, 100)) == [-x for x in range(1, 101)]
    results.cancel()
    with pytest.raises(StopIteration):
        next(results)
    wait_until(lambda: inputs.is_closed, 10, "the generator to be closed")


def test_slow_consumer_holds_the_inputs_back(rc: Client) -> None:
    view = rc.load_balanced_view()
    for limit, most in ((1, 1), (5, 5), ("auto", 3 * ITEMS_PER_ENGINE)):
        inputs = Counted()
        results = view.imap(negate, inputs, max_outstanding=limit)
        for taken in range(20):
            wait_until(lambda: inputs.taken == taken + most, 10, "the inputs that have room")
            assert next(results) == -taken - 1
        results.cancel()
        assert inputs.taken <= 20 + most


def test_no_limit_takes_everything(rc: Client) -> None:
    inputs = Counted(500)
    results = rc.load_balanced_view().imap(negate, inputs, max_outstanding=0)
    wait_until(lambda: inputs.is_closed, 10, "all inputs to be taken")
    assert list(results) == [-x for x in range(1, 501)]


def test_unordered_results_come_as_they_are_ready(rc: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    paths = [str(gate), *["/dev/null"] * 20]
    results = rc.load_balanced_view().imap(lambda p: (wait_for_file(p), p)[1], paths, ordered=False)
    quick = [next(results) for _ in range(20)]
    assert quick == ["/dev/null"] * 20, "the slow one must not hold up the others"
    gate.touch()
    assert list(results) == [str(gate)]


def test_slow_input_holds_up_no_result(rc: Client) -> None:
    # What goes in depends on what came out: only a thread that takes inputs by itself can do this.
    inputs: queue.Queue[int] = queue.Queue()
    inputs.put(1)
    seen = []
    for value in rc.load_balanced_view().imap(negate, iter(inputs.get, 0)):
        seen.append(value)
        inputs.put(-value + 1 if len(seen) < 10 else 0)
    assert seen == [-x for x in range(1, 11)]


def test_all_engines_work(rc: Client, tmp_path: Path) -> None:
    def meet(number: int, directory: str) -> int:
        """Wait until there are three of us."""
        import time
        from pathlib import Path

        (Path(directory) / str(number)).touch()
        while len(list(Path(directory).iterdir())) < 3 * (number // 3 + 1):
            time.sleep(0.002)
        return number

    results = rc.load_balanced_view().imap(meet, range(12), itertools.repeat(str(tmp_path)))
    assert list(results) == list(range(12))


def test_error_of_a_call_ends_it(rc: Client) -> None:
    inputs = Counted()
    results = rc.load_balanced_view().imap(lambda x: 1 / (x - 3), inputs)
    assert [next(results), next(results)] == [-0.5, -1.0]
    with pytest.raises(RemoteError) as caught:
        next(results)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(StopIteration):
        next(results)
    wait_until(lambda: inputs.is_closed, 10, "the generator to be closed")


def test_errors_may_be_given_as_results(rc: Client) -> None:
    values = list(rc.load_balanced_view().imap(lambda x: 1 / x, [1, 0, 2], return_exceptions=True))
    assert (values[0], type(values[1]), values[2]) == (1.0, RemoteError, 0.5)


@pytest.mark.parametrize("ordered", [True, False])
def test_error_of_an_input_is_raised_in_its_place(rc: Client, ordered: bool) -> None:
    def inputs() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("no more to read")

    results = rc.load_balanced_view().imap(negate, inputs(), ordered=ordered)
    assert sorted([next(results), next(results)]) == [-2, -1]
    with pytest.raises(OSError, match="no more to read"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_input_that_cannot_be_sent_is_raised_in_its_place(rc: Client) -> None:
    inputs: list[Any] = [1, threading.Lock(), 3]
    results = rc.load_balanced_view().imap(negate, inputs)
    assert next(results) == -1
    with pytest.raises(SerializationError, match="lock"):
        next(results)


def test_what_cannot_work_is_said_at_once(rc: Client) -> None:
    view = rc.load_balanced_view()
    with pytest.raises(TypeError, match="callable"):
        view.imap(5, [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least one sequence"):
        view.imap(negate)
    with pytest.raises(TypeError, match="iterable"):
        view.imap(negate, 5)
    for wrong in (-1, "all", 1.5, True):
        with pytest.raises(UsageError, match="max_outstanding"):
            view.imap(negate, [1], max_outstanding=wrong)  # type: ignore[arg-type]


def test_dropped_iterator_takes_no_more_and_withdraws(rc: Client, tmp_path: Path) -> None:
    inputs = Counted()
    view = rc.load_balanced_view()
    gate = tmp_path / "gate"
    results = view.imap(lambda x: wait_for_file(str(gate)), inputs)
    wait_until(lambda: inputs.taken == 3 * ITEMS_PER_ENGINE, 10, "the inputs that have room")
    gone = weakref.ref(results)
    del results
    assert gone() is None
    try:
        wait_until(lambda: inputs.is_closed, 10, "the generator to be closed")
        wait_until(lambda: len(view.outstanding) <= 3, 10, "what had not started to be withdrawn")
    finally:
        gate.touch()


def test_cancelling_from_another_thread_ends_the_wait(rc: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = rc.load_balanced_view().imap(lambda x: wait_for_file(str(gate)), Counted())
    ended = threading.Event()

    def consume() -> None:
        for _ in results:
            pass
        ended.set()

    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        results.cancel()
        assert ended.wait(10)
    finally:
        gate.touch()
        consumer.join(10)


def test_flags_and_context_of_the_caller_hold_in_the_thread(rc: Client) -> None:
    view = rc.load_balanced_view()
    word: contextvars.ContextVar[int] = contextvars.ContextVar("word", default=0)
    word.set(7)
    with view.temp_flags(targets=[2]):
        results = view.imap(lambda x: (x, __import__("os").getpid()), (word.get() for _ in range(5)))
    assert set(results) == {(7, rc.engines[2].pid)}  # type: ignore[index]


def test_several_at_once_on_one_view(rc: Client) -> None:
    view = rc.load_balanced_view()
    several = [view.imap(negate, range(i, 100 + i)) for i in range(5)]
    turns = list(zip(*several, strict=True))
    assert turns == [tuple(-x - i for i in range(5)) for x in range(100)]


def test_direct_imap_gives_results_as_they_arrive(rc: Client) -> None:
    results = rc[:].imap(negate, range(7))
    assert [next(results) for _ in range(7)] == [-x for x in range(7)]


def test_closing_the_client_ends_it(mortal: BareCluster) -> None:
    mortal.start_engines(1)
    rc = mortal.connect(1)
    results = rc.load_balanced_view().imap(negate, Counted())
    assert next(results) == -1
    rc.close()
    with pytest.raises(HpcviewsError, match="closed"):
        list(results)
