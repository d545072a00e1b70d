"""The parts of an engine that need no socket: operations, output, tracebacks, options."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcviews.engine import output
from hpcviews.engine.app import parse_options
from hpcviews.engine.loop import EngineLoop
from hpcviews.engine.operations import Operations
from hpcviews.engine.output import OutputCapture
from hpcviews.engine.worker import Ended, Worker, render_traceback
from hpcviews.errors import RemoteError, UsageError
from hpcviews.wire import messages as m
from hpcviews.wire.payload import digest, dumps, loads

INFO = m.EngineInfo(3, "u", 0, 3, 3, 4, 1, "node7", 42, "3.11", "", 0.0)


class FakeSender:
    """Stands for the I/O thread."""

    def __init__(self) -> None:
        self.sent: list[tuple[m.Message, list[Any]]] = []
        self.expected = threading.Event()

    def put(self, message: m.Message, frames: list[Any], flush: bool) -> None:
        self.sent.append((message, frames))

    def expect_output(self) -> None:
        self.expected.set()


class Bench:
    """A worker with everything but a socket."""

    def __init__(self, namespace: dict[str, Any]):
        self.namespace = namespace
        self.sender = FakeSender()
        self.worker = Worker(namespace, INFO)
        self.output = OutputCapture()
        self.worker.attach(self.sender, self.output)
        self.next_key = 0

    def run(self, op: str, payload: Any, function: Any = None) -> tuple[m.Done, list[Any]]:
        name = b""
        if function is not None:
            pickled = dumps(function)
            name = bytes(digest(pickled))
            self.worker.functions[name] = (m.Function(pickled.data, len(pickled.frames), name), pickled.frames)
        sent = dumps(payload)
        self.next_key += 1
        self.worker.pending[self.next_key] = (m.Run(sent.data, len(sent.frames), self.next_key, op, name), sent.frames)
        self.worker.keys.put(self.next_key)
        self.worker.keys.put(Ended(0))
        kept = sys.stdout, sys.stderr
        self.output.attach(self.sender)
        try:
            assert self.worker.run() == Ended(0)
        finally:
            sys.stdout, sys.stderr = kept
        done, frames = self.sender.sent.pop()
        assert isinstance(done, m.Done)
        return done, frames

    def value(self, op: str, payload: Any, function: Any = None) -> Any:
        done, frames = self.run(op, payload, function)
        assert done.error is None, done.error
        return loads(done.data, frames)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    yield Bench(main.__dict__)


def test_apply_map_push_pull_execute_clear(bench: Bench) -> None:
    assert bench.value("apply", ((2, 3), {}), pow) == 8
    assert bench.value("map", ([[1, 2, 3], [1, 1]], False), max) == [1, 2]
    assert bench.value("push", {"a": 5, "d": {}}) is None
    assert bench.value("push", {"d['x']": 6}) is None
    assert bench.value("pull", (["a", "d['x'] + 1"], False)) == [5, 7]
    assert bench.value("pull", (["a"], True)) == 5
    assert bench.value("execute", ("b = a + 1\nb * 2", False, "", False))["data"] == {"text/plain": "12"}
    assert bench.namespace["b"] == 6 and "_hpcviews_value" not in bench.namespace
    bench.value("clear", None)
    assert "a" not in bench.namespace and bench.value("execute", ("len([1])", False, "", False))["data"] == {
        "text/plain": "1"
    }


def test_silent_execute_does_not_count(bench: Bench) -> None:
    assert bench.value("execute", ("1", True, "", False))["execution_count"] == 0


def test_map_can_keep_the_errors_of_single_items(bench: Bench) -> None:
    values = bench.value("map", ([[1, 0, 2]], True), lambda x: 1 / x)
    assert values[0] == 1.0 and values[2] == 0.5
    assert isinstance(values[1], RemoteError) and values[1].ename == "ZeroDivisionError" and values[1].engine_id == 3


def test_error_tells_where_and_shows_the_users_frames_only(bench: Bench) -> None:
    done, frames = bench.run("execute", ("def f():\n    return 1 / 0\nf()", False, "", False))
    error = done.error
    assert error is not None and (error.ename, error.rank, error.host, error.pid) == (
        "ZeroDivisionError",
        3,
        "node7",
        42,
    )
    assert "return 1 / 0" in error.traceback and "operations.py" not in error.traceback
    assert isinstance(loads(done.data, frames), ZeroDivisionError)


def test_unpicklable_result_says_what_to_do(bench: Bench) -> None:
    done, _ = bench.run("apply", ((), {}), lambda: threading.Lock())
    assert done.error is not None and done.error.ename == "SerializationError"
    assert "keep it on the engine under a name" in done.error.evalue


def test_sys_exit_and_broken_str_are_errors_like_others(bench: Bench) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def leave() -> None:
        sys.exit(3)

    def fail() -> None:
        raise Broken

    for function, name in ((leave, "SystemExit"), (fail, "Broken")):
        done, _ = bench.run("apply", ((), {}), function)
        assert done.error is not None and done.error.ename == name


def test_output_comes_before_the_result_and_is_cut_when_endless(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "REQUEST_CHARS_MAX", 100)

    def talk() -> None:
        print("one")
        print("two", file=sys.stderr)
        sys.stdout.write("x" * 105)
        print("never")

    bench.run("apply", ((), {}), talk)
    texts = [(msg.stream, msg.text) for msg, _ in bench.sender.sent if isinstance(msg, m.RunOutput)]
    assert [stream for stream, _ in texts] == ["stdout", "stderr", "stdout"]
    assert texts[0][1] == "one\n" and texts[1][1] == "two\n"
    assert "is cut after" in texts[2][1] and "never" not in texts[2][1]
    assert bench.sender.expected.is_set(), "live output was not announced"


def test_arguments_are_freed_before_the_next_request_comes(bench: Bench) -> None:
    seen: list[Any] = []
    bench.namespace["keep"] = lambda array: seen.append(weakref.ref(array))
    array = np.zeros(100_000)

    def look(array: Any) -> None:
        keep(array)  # type: ignore[name-defined]  # noqa: F821 - in the namespace

    look.__module__ = "__main__"
    bench.run("apply", ((array,), {}), types.FunctionType(look.__code__, bench.namespace, "look"))
    assert seen and seen[0]() is None


def test_withdrawn_work_is_passed_over(bench: Bench) -> None:
    bench.worker.keys.put(99)
    bench.worker.keys.put(Ended(0))
    bench.worker.run()
    assert not bench.sender.sent


def test_unknown_operation_lists_those_there_are() -> None:
    operations = Operations({}, lambda error: RemoteError("", ""), lambda kind, content: None)
    with pytest.raises(TypeError, match=r"no operation 'dance'.*apply"):
        operations.run("dance", None, None)


def test_recursion_traceback_is_bounded() -> None:
    def dive(n: int) -> None:
        dive(n + 1)

    try:
        dive(0)
    except RecursionError as error:
        assert len(render_traceback(error)) < 110_000


def test_options_are_read_and_nonsense_is_refused() -> None:
    options, n = parse_options(
        ["--access", "/x/e.json", "--set", "2", "--expect", "4", "--n", "4", "--path", "a", "--path", "b"]
    )
    assert (options.access, options.set_id, options.expect, n, options.paths) == (
        Path("/x/e.json"),
        2,
        4,
        4,
        ("a", "b"),
    )
    for argv in ([], ["--access"], ["--access", "x", "more"], ["--access", "x", "--set", "y"], ["--bogus"]):
        with pytest.raises(UsageError, match="engine:"):
            parse_options(argv)


class Rude(Exception):
    """Raises what is no Exception wherever it is looked at."""

    def __str__(self) -> str:
        raise SystemExit(3)

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_errors_that_raise_when_looked_at_do_not_end_the_engine(bench: Bench) -> None:
    def fail() -> None:
        raise Rude

    told, frames = bench.run("apply", ((), {}), fail)
    assert told.error is not None and told.error.ename == "Rude"
    assert told.error.evalue == "<its __str__ raised SystemExit>" and not told.data and not frames


def test_child_that_user_code_forked_ends_when_it_comes_back(bench: Bench) -> None:
    child = bench.value("apply", ((), {}), os.fork)
    _, status = os.waitpid(child, 0)  # without the end it would go on as a second run of this test
    assert os.waitstatus_to_exitcode(status) == 0


class CountingKey(int):
    """A run key that counts how often one is compared with another."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountingKey.comparisons += 1
        return int(self) == other

    __hash__ = int.__hash__


def test_giving_back_many_attempts_does_not_compare_each_with_all(bench: Bench, tmp_path: Path) -> None:
    count = 2_000
    loop = EngineLoop(tmp_path / "engine.json", INFO, "", bench.worker, bench.output, 1.0)
    run = m.Run(b"", 0, 0, "apply", b"")
    bench.worker.pending.update((key, (run, [])) for key in range(count))
    loop._on_message(m.Withdraw([CountingKey(key) for key in range(1, count + 1)]), [])
    assert CountingKey.comparisons < 10 * count
    ((answer, _),) = loop._outgoing
    assert answer == m.Withdrawn(list(range(1, count)), [count])
    os.close(loop._wake_fd)


# ---------------------------------------------------------------- interrupts


@pytest.fixture
def interruptible(bench: Bench) -> Iterator[Bench]:
    """A worker whose SIGINT handler is installed."""
    kept = signal.signal(signal.SIGINT, bench.worker.on_interrupt)
    yield bench
    signal.signal(signal.SIGINT, kept)


def test_interrupt_hits_the_attempt_it_is_for(interruptible: Bench) -> None:
    worker = interruptible.worker
    interruptible.namespace["interrupt"] = lambda: worker.interrupt([interruptible.next_key])
    done, _ = interruptible.run("execute", ("interrupt()\nfor _ in range(10**9): pass", True, "", False))
    assert done.error is not None and done.error.ename == "KeyboardInterrupt"


def test_interrupt_for_another_attempt_hits_nothing(interruptible: Bench) -> None:
    worker = interruptible.worker
    interruptible.namespace["interrupt"] = lambda: worker.interrupt([interruptible.next_key - 1, 10**6])
    interruptible.run("execute", ("1", True, "", False))
    done, _ = interruptible.run("execute", ("interrupt()\nfor _ in range(1000): pass", True, "", False))
    assert done.error is None


def test_attempt_interrupted_between_being_taken_and_running_does_not_run(interruptible: Bench) -> None:
    worker = interruptible.worker
    worker.interrupt([1])  # the first key: nothing runs yet, as in the moment after it was taken
    done, _ = interruptible.run("execute", ("ran = True", True, "", False))
    assert done.error is not None and done.error.ename == "KeyboardInterrupt" and "ran" not in interruptible.namespace
    assert interruptible.run("execute", ("ran = True", True, "", False))[0].error is None
    assert worker._keys_to_interrupt == set()


def test_sigint_of_others_interrupts_user_code_and_nothing_else(interruptible: Bench) -> None:
    os.kill(os.getpid(), signal.SIGINT)  # idle: ignored
    interruptible.namespace["os"], interruptible.namespace["signal"] = os, signal
    code = "os.kill(os.getpid(), signal.SIGINT)\nfor _ in range(10**9): pass"
    done, _ = interruptible.run("execute", (code, True, "", False))
    assert done.error is not None and done.error.ename == "KeyboardInterrupt"
    assert interruptible.run("execute", ("1", True, "", False))[0].error is None


def test_user_code_may_survive_an_interrupt_and_be_interrupted_again(interruptible: Bench) -> None:
    worker = interruptible.worker
    interruptible.namespace["interrupt"] = lambda: worker.interrupt([interruptible.next_key])
    code = "try:\n  interrupt()\n  for _ in range(10**9): pass\nexcept KeyboardInterrupt: survived = True\n"
    done, _ = interruptible.run("execute", (code + "interrupt()\nfor _ in range(10**9): pass", True, "", False))
    assert done.error is not None and done.error.ename == "KeyboardInterrupt" and interruptible.namespace["survived"]


def test_hail_of_interrupts_leaves_the_worker_alive(interruptible: Bench) -> None:
    """At any moment, also between two attempts: each answers, by a value or by KeyboardInterrupt."""
    is_over = threading.Event()

    def hail() -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not is_over.is_set():
            signal.pthread_kill(main, signal.SIGINT)

    shooter = threading.Thread(target=hail)
    kept = sys.stdout, sys.stderr
    interruptible.output.attach(interruptible.sender)
    payload = dumps(("sum(range(100))", True, "", False))
    for key in range(1, 301):
        run = m.Run(payload.data, 0, key, "execute", b"")
        interruptible.worker.pending[key] = (run, [])
        interruptible.worker.keys.put(key)
    interruptible.worker.keys.put(Ended(0))
    shooter.start()
    try:
        assert interruptible.worker.run() == Ended(0)
    finally:
        is_over.set()
        shooter.join()
        sys.stdout, sys.stderr = kept
    answers = [message for message, _ in interruptible.sender.sent if isinstance(message, m.Done)]
    assert [answer.key for answer in answers] == list(range(1, 301))
    assert {answer.error.ename for answer in answers if answer.error} <= {"KeyboardInterrupt"}


# ---------------------------------------------------------------- what user code writes, displays and publishes


def collect(capture: OutputCapture) -> list[tuple[str, Any]]:
    """What is handed on: streams with text, kinds with contents."""
    found: list[tuple[str, Any]] = []

    def put(message: m.Message, frames: list[Any]) -> None:
        if isinstance(message, m.RunOutput):
            found.append((message.stream, message.text))
        elif isinstance(message, m.RunPublished):
            found.append((message.kind, loads(message.data, frames)))

    capture.drain(put)
    return found


@pytest.fixture
def capture() -> OutputCapture:
    made = OutputCapture()
    made.begin(1)
    return made


def test_displays_keep_their_place_among_text(capture: OutputCapture) -> None:
    capture.write("stdout", "a")
    capture.write("stdout", "b")
    capture.publish("display", {"data": 1})
    capture.write("stdout", "c")
    capture.write("stderr", "d")
    assert collect(capture) == [("stdout", "ab"), ("display", {"data": 1}), ("stdout", "c"), ("stderr", "d")]
    assert collect(capture) == []


def test_data_published_in_a_loop_is_sent_once_for_each_name(capture: OutputCapture) -> None:
    for step in range(10_000):
        capture.publish("data", {"step": step})
    capture.publish("data", {"loss": 0.5})
    assert collect(capture) == [("data", {"step": 9_999}), ("data", {"loss": 0.5})]


def test_published_arrays_are_as_they_were_when_they_were_published(capture: OutputCapture) -> None:
    state = np.zeros(100_000)
    capture.publish("data", {"state": state})
    state[:] = 1.0
    ((_, content),) = collect(capture)
    assert content["state"].sum() == 0.0


def test_displays_beyond_the_bound_are_dropped_with_a_note(
    capture: OutputCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "REQUEST_DISPLAY_BYTES_MAX", 2_000)
    for _ in range(5):
        capture.publish("display", {"data": "x" * 900})
    kinds = [kind for kind, _ in collect(capture)]
    assert kinds == ["display", "display", "stderr"]


def test_end_of_a_request_overtakes_nothing_that_is_being_handed_on(capture: OutputCapture) -> None:
    order: list[str] = []
    is_handing_on = threading.Event()

    def put_slowly(message: m.Message, frames: list[Any]) -> None:
        is_handing_on.set()
        ended.join(0.05)  # the end would come now, if it could
        order.append("text")

    def end() -> None:
        is_handing_on.wait(10)
        capture.end(lambda message, frames: None)
        order.append("end")

    ended = threading.Thread(target=end)
    ended.start()
    capture.write("stdout", "text")
    capture.drain(put_slowly)
    ended.join(10)
    assert order == ["text", "end"]


def test_signal_handler_may_print_while_user_code_prints(capture: OutputCapture) -> None:
    kept = signal.signal(signal.SIGUSR1, lambda *_: capture.write("stdout", "handler\n"))
    try:
        for _ in range(200):
            signal.raise_signal(signal.SIGUSR1)
            with capture._lock:  # as in the middle of a write
                signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, kept)
    assert collect(capture) == [("stdout", "handler\n" * 400)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from Python 3.12 on, of forking with threads
def test_text_of_a_forked_copy_goes_to_the_log(capture: OutputCapture) -> None:
    capture._lock.acquire()  # as the I/O thread may have, at that moment
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"log" if not capture.write("stdout", "x") else b"lost")
        os._exit(0)
    capture._lock.release()
    assert os.waitpid(pid, 0)[1] == 0 and os.read(reading, 10) == b"log"
    os.close(reading)
    os.close(writing)
