"""What results show: text with where it comes from, values, errors; live or at the end."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_controller import FakeController

from hpcviews import AlreadyDisplayedError, AsyncResult, Client, CompositeError, RemoteError
from hpcviews.client.screen import Screen
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m


def execute(rc: Client, targets: Any = "all") -> AsyncResult:
    return rc.direct_view(targets).execute("code", silent=False, block=False)


def write(fake: FakeController, ar: AsyncResult, engine: int, text: str, stream: str = "stdout") -> None:
    fake.send(m.Output(ar.first + engine, engine, stream, text))


def finish(fake: FakeController, ar: AsyncResult, *texts: str | None) -> None:
    for engine, text in enumerate(texts):
        data = {} if text is None else {"text/plain": text}
        reply = {"execution_count": 7, "source": "", "data": data, "metadata": {}}
        fake.answer(ar.first + engine, reply, engine)
    assert ar.wait(10)


def test_outputs_are_grouped_by_type_or_engine(
    fake: FakeController, rc: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ar = execute(rc)
    with pytest.raises(TimeoutError):
        ar.display_outputs()
    with pytest.raises(ValueError, match="groupby must be one of type, engine, order, not 'colour'"):
        ar.display_outputs("colour")
    write(fake, ar, 0, "a\nb\n"), write(fake, ar, 1, "c"), write(fake, ar, 0, "bad", "stderr")
    finish(fake, ar, "1", None)
    expected = "[stdout:0] \na\nb\n[stdout:1] c\n"
    for groupby in ("type", "order"):
        ar.display_outputs(groupby)
        shown = capsys.readouterr()
        assert (shown.out, shown.err) == (expected + "Out[0:7]: 1\n", "[stderr:0] bad\n")
    ar.display_outputs("engine")
    assert capsys.readouterr().out == "[stdout:0] \na\nb\nOut[0:7]: 1\n[stdout:1] c\n"
    ar.display_outputs(result_only=True)
    assert capsys.readouterr().out == "Out[0:7]: 1\n"


def test_one_engine_asked_for_by_an_integer_has_no_prefix(
    fake: FakeController, rc: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ar = execute(rc, 0)
    write(fake, ar, 0, "text")
    finish(fake, ar, "3\n4")
    ar.display_outputs()
    assert capsys.readouterr().out == "text\nOut[0:7]:\n3\n4\n"


def test_stream_output_shows_what_has_come_and_what_comes(
    fake: FakeController, rc: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ar = execute(rc)
    write(fake, ar, 0, "early ")
    wait_until(lambda: ar.stdout[0], 10, "the first text")
    with ar.stream_output():
        write(fake, ar, 0, "more"), write(fake, ar, 0, "\n"), write(fake, ar, 1, "x\ny"), write(fake, ar, 0, "z\n")
        write(fake, ar, 1, "e", "stderr")
        finish(fake, ar, None, None)
    shown = capsys.readouterr()
    assert shown.out == "[stdout:0] early more\n[stdout:1] \nx\ny\n[stdout:0] z\n"
    assert shown.err == "[stderr:1] e\n"
    with ar.stream_output():
        pass
    assert capsys.readouterr().out == "[stdout:0] \nearly more\nz\n[stdout:1] \nx\ny\n", "again, as it is known now"


def test_stream_output_shows_errors_behind_what_was_written(
    fake: FakeController, rc: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ar = execute(rc)
    with ar.stream_output():
        write(fake, ar, 0, "before", "stderr")
        fake.fail(ar.first, ZeroDivisionError("division by zero"), 0)
        fake.refuse(ar.first + 1, "EngineError", "engine 1 died", 1)
        ar.wait(10)
    assert capsys.readouterr().err == (
        "[stderr:0] before\n[0:apply] on node1\nTraceback: line 1\n[1] EngineError: engine 1 died\n"
    )
    ar.display_errors()
    assert capsys.readouterr().err.count("EngineError") == 1


def test_only_the_first_few_errors_are_shown_in_full(fake: FakeController, capsys: pytest.CaptureFixture[str]) -> None:
    rc = fake.connect(9)
    ar = execute(rc)
    with ar.stream_output():
        for engine in range(9):
            fake.fail(ar.first + engine, ValueError(str(engine)), engine)
        ar.wait(10)
    err = capsys.readouterr().err
    assert err.count("Traceback") == CompositeError.tb_limit
    assert err.count("ValueError: ") == 9 - CompositeError.tb_limit, "the others with a line each"


def test_a_stream_that_is_left_early_ends(fake: FakeController, rc: Client, capsys: pytest.CaptureFixture[str]) -> None:
    ar = execute(rc)
    with pytest.raises(KeyboardInterrupt), ar.stream_output():
        write(fake, ar, 0, "seen\n")
        wait_until(lambda: ar.stdout[0], 10, "the text")
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "[stdout:0] seen\n"
    write(fake, ar, 0, "not seen\n")
    finish(fake, ar, None, None)
    assert capsys.readouterr().out == ""


def test_a_stream_ends_when_the_client_is_closed(
    fake: FakeController, rc: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ar = execute(rc)
    with ar.stream_output():
        rc.close()
    assert capsys.readouterr().err.count("ControllerLost") == 2
    with ar.stream_output():
        pass


def test_streaming_in_a_callback_is_refused(fake: FakeController, rc: Client) -> None:
    ar = execute(rc)
    raised: list[BaseException] = []

    def stream(done: Any) -> None:
        try:
            with done.stream_output():
                pass
        except RuntimeError as error:
            raised.append(error)

    ar.add_done_callback(stream)
    finish(fake, ar, None, None)
    wait_until(lambda: raised, 10, "the callback")
    assert "callback" in str(raised[0])


# ---------------------------------------------------------------- callbacks


def test_output_callbacks_get_everything_once_and_in_order(fake: FakeController, rc: Client) -> None:
    ar = execute(rc)
    write(fake, ar, 0, "a"), write(fake, ar, 1, "b", "stderr")
    wait_until(lambda: ar.stderr[1], 10, "the first texts")
    got: list[tuple[Any, ...]] = []
    threads = set()

    def note(*what: Any) -> None:
        got.append(what)
        threads.add(threading.current_thread().name)

    ar.add_output_callback(note)
    for letter in "cde":
        write(fake, ar, 1, letter)
    wait_until(lambda: len(got) == 5, 10, "all")
    assert got[:2] == [(0, 0, "stdout", "a"), (1, 1, "stderr", "b")]
    assert "".join(text for _, _, _, text in got[2:]) == "cde" and threads == {"hpcviews-callbacks"}
    ar.remove_output_callback(note)
    write(fake, ar, 0, "f")
    finish(fake, ar, None, None)
    assert len(got) == 5


def test_callbacks_of_joined_and_single_results_count_their_own_requests(fake: FakeController, rc: Client) -> None:
    first, second = execute(rc), execute(rc, 1)
    both, single = AsyncResult.join(first, second), first.split()[1]
    joined: list[tuple[Any, ...]] = []
    alone: list[tuple[Any, ...]] = []
    both.add_output_callback(lambda *what: joined.append(what))
    single.add_output_callback(lambda *what: alone.append(what))
    write(fake, first, 0, "a"), write(fake, first, 1, "b")
    fake.send(m.Output(second.first, 1, "stdout", "c"))
    wait_until(lambda: len(joined) == 3, 10, "all")
    assert joined == [(0, 0, "stdout", "a"), (1, 1, "stdout", "b"), (2, 1, "stdout", "c")]
    assert alone == [(0, 1, "stdout", "b")]


# ---------------------------------------------------------------- screens and errors


def test_displays_are_text_outside_of_ipython(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(has_prefixes=True)
    screen.write("stdout", 0, "open line")
    screen.show(0, {"data": {"text/plain": "<Figure>", "image/png": b""}, "metadata": {}})
    screen.show(0, {"data": {"image/png": b""}})
    screen.show(1, {"data": {"text/plain": "other"}})
    screen.end()
    assert capsys.readouterr().out == "[stdout:0] open line\n[output:0]\n<Figure>\n<image/png>\n[output:1]\nother\n"


def test_already_displayed_errors_are_one_line() -> None:
    one, two = RemoteError("E", "1"), CompositeError("m", [RemoteError("E", "1"), RemoteError("E", "2")])
    assert str(AlreadyDisplayedError(one)) == "1 error"
    assert AlreadyDisplayedError(two)._render_traceback_() == ["2 errors"]
    assert AlreadyDisplayedError(two).original is two and isinstance(AlreadyDisplayedError(one), RemoteError)
