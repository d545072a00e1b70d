"""Progress bars, for people who watch: in terminals and notebooks, and nowhere else.

Whoever waits says when something has changed, and a thread that exists only while a bar is wanted draws it, at a
bounded rate. So waiting costs what it would cost without a bar.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from hpcviews.client.screen import find_shell, publish
from hpcviews.environment import is_noninteractive

SHOWN_AFTER_S = 2.0
"""Calls that have not asked for a bar get one when they take longer than this."""

PERIOD_S = 0.1
"""A bar is drawn at most this often."""

CLOCK_S = 1.0
"""And at least this often: its clock goes on when nothing else does."""

NOTEBOOK_CELLS = 30
"""Characters of a bar in a notebook."""

Read = Callable[[], tuple[int, int]]
"""Gives how many are done, and of how many."""

_showing = threading.Lock()
"""Held while a bar is shown: two of them on one screen would overwrite each other."""


class Display(Protocol):
    """Where a bar is drawn. All in the drawing thread."""

    def draw(self, done: int, total: int, elapsed_s: float) -> None:
        """Show these numbers."""

    def close(self) -> None:
        """The bar has ended."""


def is_notebook() -> bool:
    """Whether what is written to stdout appears in a notebook. Imports nothing."""
    return type(sys.stdout).__module__.startswith("ipykernel.")


def is_watched() -> bool:
    """Whether there is a terminal or a notebook, and bars are not unwanted."""
    return (is_notebook() or bool(sys.stderr and sys.stderr.isatty())) and not is_noninteractive()


@contextmanager
def showing(
    text: str,
    read: Read,
    *,
    after_s: float = 0.0,
    period_s: float = PERIOD_S,
    widget: bool | None = None,
    is_wanted: bool | None = None,
) -> Iterator[Callable[[], None]]:
    """Show a progress bar for the length of a with-block, if somebody watches and no other bar is shown.

    Args:
        text: What is going on.
        read: Called in a thread of its own, at most every `period_s` seconds.
        after_s: The bar appears when the block has lasted for so long, and then it disappears at its end. One that
            is there from the beginning stays.
        period_s: Draw at most this often, in seconds.
        widget: Draw as in a notebook, or not; None: as what stdout is.
        is_wanted: False: no bar. True or None: where somebody watches.
    Yields:
        A function to call whenever `read` may give something else. It never waits.
    """
    if is_wanted is False or not is_watched() or not _showing.acquire(blocking=False):
        yield _do_nothing
        return
    try:
        bar = _Bar(text, read, after_s, max(period_s, PERIOD_S), is_notebook() if widget is None else widget)
        try:
            yield bar.notify
        finally:
            bar.close()
    finally:
        _showing.release()


def _do_nothing() -> None:
    pass


class _Bar:
    """The drawing thread."""

    def __init__(self, text: str, read: Read, after_s: float, period_s: float, is_widget: bool):
        self._text = text
        self._read = read
        self._after_s = after_s
        self._period_s = period_s
        self._is_widget = is_widget
        self._begun = time.monotonic()
        self._changed = threading.Event()
        self._ended = threading.Event()
        # In the context of who waits: a notebook shows a thread's output below the cell that it belongs to.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="hpcviews-progress", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        self._changed.set()

    def close(self) -> None:
        self._ended.set()
        self._changed.set()
        self._thread.join()

    def _run(self) -> None:
        if self._ended.wait(self._after_s):
            return
        display = self._make_display()
        try:
            while not self._ended.is_set():
                self._changed.clear()
                self._draw(display)
                if not self._ended.wait(self._period_s):
                    self._changed.wait(CLOCK_S)
            self._draw(display)
        finally:
            display.close()

    def _draw(self, display: Display) -> None:
        done, total = self._read()
        display.draw(done, total, time.monotonic() - self._begun)

    def _make_display(self) -> Display:
        is_transient = self._after_s > 0
        if self._is_widget and find_shell() is not None:
            return _NotebookDisplay(self._text, is_transient)
        return _TerminalDisplay(self._text, is_transient)


class _TerminalDisplay:
    """A bar by rich. What is printed meanwhile appears above it."""

    def __init__(self, text: str, is_transient: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        texts = [TextColumn("{task.description}", markup=False), TextColumn("{task.fields[clock]}")]
        console = Console(stderr=True, force_jupyter=False)
        self._progress = Progress(
            texts[0],
            BarColumn(),
            MofNCompleteColumn(),
            texts[1],
            console=console,
            transient=is_transient,
            auto_refresh=False,
        )
        self._task = self._progress.add_task(text, total=None, clock="")
        self._progress.start()

    def draw(self, done: int, total: int, elapsed_s: float) -> None:
        self._progress.update(self._task, completed=done, total=total, clock=render_clock(elapsed_s))
        self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()


class _NotebookDisplay:
    """A line of text that is replaced: needs no widgets, and is plain text in a saved notebook."""

    def __init__(self, text: str, is_transient: bool):
        self._text = text
        self._is_transient = is_transient
        self._transient = {"display_id": f"hpcviews-{uuid.uuid4().hex}"}
        self._is_new = True

    def draw(self, done: int, total: int, elapsed_s: float) -> None:
        self._show(render_line(self._text, done, total, elapsed_s))

    def _show(self, line: str) -> None:
        publish({"text/plain": line}, transient=self._transient, update=not self._is_new)
        self._is_new = False

    def close(self) -> None:
        if self._is_transient:
            self._show("")


def render_line(text: str, done: int, total: int, elapsed_s: float) -> str:
    """A bar as one line of text: ``squares ━━━━━━───── 6/11 0:01:05``."""
    filled = NOTEBOOK_CELLS * min(done, total) // total if total else NOTEBOOK_CELLS
    return f"{text} {'━' * filled}{'─' * (NOTEBOOK_CELLS - filled)} {done}/{total} {render_clock(elapsed_s)}"


def render_clock(elapsed_s: float) -> str:
    """A duration as ``0:01:05``."""
    minutes, seconds = divmod(int(elapsed_s), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def show_if_long(result: Any) -> None:
    """Wait for a map, with a bar if it takes long and somebody watches; else return at once."""
    if is_watched() and not result.done():
        read = lambda: (result.progress, len(result))  # noqa: E731 - read nowhere else
        with showing(result.name, read, after_s=SHOWN_AFTER_S) as notify, result.listening(notify):
            result.wait()
