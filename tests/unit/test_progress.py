"""Progress bars: where they are, how often they are drawn, and that nothing waits for them."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor
from typing import Any

import pytest
from fake_controller import FakeController, make_engine

from hpcviews import Client, EngineError
from hpcviews.client import progress as p
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m


class Recorder:
    """A display that remembers."""

    def __init__(self) -> None:
        self.drawn: list[tuple[int, int]] = []
        self.is_closed = False

    def draw(self, done: int, total: int, elapsed_s: float) -> None:
        self.drawn.append((done, total))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Somebody watches; the bars that were made."""
    made: list[Recorder] = []

    def make(bar: Any) -> Recorder:
        made.append(Recorder())
        return made[-1]

    monkeypatch.setattr(p, "is_watched", lambda: True)
    monkeypatch.setattr(p._Bar, "_make_display", make)
    return made


# ---------------------------------------------------------------- where


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_terminals_and_notebooks_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCVIEWS_NONINTERACTIVE", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not p.is_watched()
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert p.is_watched() and not p.is_notebook()
    monkeypatch.setenv("HPCVIEWS_NONINTERACTIVE", "1")
    assert not p.is_watched()
    monkeypatch.setenv("HPCVIEWS_NONINTERACTIVE", "0")
    notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", notebook())
    assert p.is_watched() and p.is_notebook()


def test_silent_means_no_output_no_thread_and_no_import() -> None:
    code = """
import sys, threading
from hpcviews.client.progress import showing
with showing("text", lambda: 1 / 0, after_s=0) as notify:
    notify()
    assert threading.active_count() == 1
assert "rich" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_terminal_gets_a_bar_by_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    display = p._TerminalDisplay("squares [of] things", is_transient=False)
    display.draw(3, 7, 65.0)
    display.close()
    text = terminal.getvalue()
    assert "squares [of] things" in text and "3/7" in text and "0:01:05" in text


def test_a_line_for_notebooks() -> None:
    assert p.render_line("map", 5, 10, 3661.5) == "map " + "━" * 15 + "─" * 15 + " 5/10 1:01:01"
    assert p.render_line("map", 0, 0, 0) == "map " + "━" * 30 + " 0/0 0:00:00"


# ---------------------------------------------------------------- when


def test_a_bar_shows_the_first_and_the_last_numbers_and_changes_between(bars: list[Recorder]) -> None:
    numbers = [(0, 3)]
    with p.showing("text", lambda: numbers[-1]) as notify:
        wait_until(lambda: bars and bars[0].drawn, 10, "the first drawing")
        numbers.append((1, 3))
        notify()
        wait_until(lambda: (1, 3) in bars[0].drawn, 10, "the change")
        for _ in range(10_000):
            notify()
        numbers.append((3, 3))
    assert bars[0].drawn[0] == (0, 3) and bars[0].drawn[-1] == (3, 3) and bars[0].is_closed
    assert len(bars[0].drawn) < 1000, "not once per change"


def test_what_is_over_soon_has_no_bar(bars: list[Recorder]) -> None:
    with p.showing("text", lambda: (0, 1), after_s=600):
        pass
    with p.showing("text", lambda: (0, 1), is_wanted=False):
        pass
    assert not bars


def test_one_bar_at_a_time(bars: list[Recorder]) -> None:
    with p.showing("outer", lambda: (0, 1)), p.showing("inner", lambda: (0, 1)):
        pass
    with p.showing("next", lambda: (0, 1)):
        wait_until(lambda: bars, 10, "the bar")
    assert len(bars) <= 2


def test_bars_end_when_the_block_raises(bars: list[Recorder]) -> None:
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt), p.showing("text", lambda: (0, 1)):
        wait_until(lambda: bars, 10, "the bar")
        raise KeyboardInterrupt
    assert bars[0].is_closed and threading.active_count() == threads


# ---------------------------------------------------------------- of what


def double(x: int) -> int:
    return 2 * x


def test_wait_interactive_of_a_result(fake: FakeController, rc: Client, bars: list[Recorder]) -> None:
    ar = rc.load_balanced_view().map_async(double, range(6), chunksize=2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ar.wait_interactive)
        wait_until(lambda: bars and bars[0].drawn, 10, "the bar")
        fake.answer(ar.first, [0, 2])
        wait_until(lambda: (2, 6) in bars[0].drawn, 10, "items, not chunks")
        fake.answer(ar.first + 1, [4, 6]), fake.answer(ar.first + 2, [8, 10])
        assert waiting.result(10) is None
    assert bars[0].drawn[-1] == (6, 6)


def test_wait_interactive_ends_as_asked(fake: FakeController, rc: Client, bars: list[Recorder]) -> None:
    ar = rc[:].apply_async(double, 1)
    ar.wait_interactive(timeout=0.01)
    assert not ar.done()
    fake.answer(ar.first, 2)
    ar.wait_interactive(return_when=FIRST_COMPLETED, widget=False)
    assert not ar.done()
    fake.fail(ar.first + 1, ValueError("x"), 1)
    ar.wait_interactive(return_when=FIRST_EXCEPTION)
    ar.wait_interactive()
    assert ar.done() and not ar.successful()


def test_wait_interactive_of_a_client_counts_requests_and_futures(
    fake: FakeController, rc: Client, bars: list[Recorder]
) -> None:
    rc.wait_interactive()
    first, second = rc[:].apply_async(double, 1), rc[0].apply_async(double, 1)
    other: Future[int] = Future()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rc.wait_interactive, [first, second, other], 0.01, 30)
        wait_until(lambda: bars and (0, 4) in bars[-1].drawn, 10, "the bar")
        other.set_result(1)
        wait_until(lambda: (1, 4) in bars[-1].drawn, 10, "the future")
        for seq in range(first.first, second.first + 1):
            fake.answer(seq, 2)
        assert waiting.result(10) is None
    assert bars[-1].drawn[-1] == (4, 4)
    rc.wait_interactive(timeout=0)


def test_blocking_maps_have_a_bar_when_they_take_long(
    fake: FakeController, rc: Client, bars: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p, "SHOWN_AFTER_S", 0.01)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rc[:].map_sync, double, range(4))
        first = fake.take_call(m.Request)
        wait_until(lambda: bars and bars[0].drawn, 10, "the bar")
        fake.answer(first.seq, [0, 2]), fake.answer(first.seq + 1, [4, 6])
        assert waiting.result(10) == [0, 2, 4, 6]
    assert bars[0].drawn[0] == (0, 4) and bars[0].drawn[-1] == (4, 4)


def test_wait_for_engines_shows_how_many_there_are(fake: FakeController, bars: list[Recorder]) -> None:
    rc = fake.connect(1)
    rc.wait_for_engines(1, interactive=True)
    seen: list[tuple[int, int]] = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            rc.wait_for_engines, 3, timeout=30, interactive=True, on_progress=lambda *numbers: seen.append(numbers)
        )
        wait_until(lambda: seen, 10, "the first look")
        fake.send(m.EnginesJoined([make_engine(1), make_engine(2)]))
        assert waiting.result(10) is None
    assert bars[-1].drawn[-1] == (3, 3) and seen[0] == (1, 3) and seen[-1] == (3, 3)
    with pytest.raises(TimeoutError, match="5 engines not ready in 0"):
        rc.wait_for_engines(5, timeout=0.01, interactive=False)


def test_wait_for_engines_as_a_future(fake: FakeController) -> None:
    rc = fake.connect(1)
    future = rc.wait_for_engines(2, block=False)
    lost = rc.wait_for_engines(9, block=False)
    given_up = rc.wait_for_engines(9, block=False)
    assert isinstance(future, Future) and isinstance(lost, Future) and isinstance(given_up, Future)
    assert given_up.cancel()
    fake.send(m.EnginesJoined([make_engine(1)]))
    assert future.result(10) is None
    fake.send(m.EnginesLeft([m.EngineLeft(1, "was killed")]))
    with pytest.raises(EngineError, match="was killed"):
        lost.result(10)
