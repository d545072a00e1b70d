"""Showing what requests write, display and give: live, or when they have ended.

In IPython, what was displayed on engines appears as what it is (figures, tables); elsewhere as text.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from hpcviews.client.future import RequestsFuture
from hpcviews.client.outcomes import Failure
from hpcviews.client.output import OutputCallback
from hpcviews.client.progress import PERIOD_S, showing
from hpcviews.client.replies import ExecuteReply
from hpcviews.client.screen import Screen
from hpcviews.errors import CompositeError

if TYPE_CHECKING:
    from hpcviews.client.slots import Slots

GROUPINGS = ("type", "engine", "order")


class Displayed(RequestsFuture):
    """Base of AsyncResult: what it shows."""

    _is_single: bool

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...
        @property
        def progress(self) -> int: ...
        def __len__(self) -> int: ...
        def add_output_callback(self, fn: OutputCallback) -> None: ...
        def remove_output_callback(self, fn: OutputCallback) -> None: ...
        def _check_done(self) -> None: ...
        def _wait_when(self, timeout: float | None, return_when: str) -> bool: ...

    def wait_interactive(
        self,
        interval: float = PERIOD_S,
        timeout: float | None = -1,
        widget: bool | None = None,
        return_when: str = ALL_COMPLETED,
    ) -> None:
        """Wait, with a progress bar in terminals and notebooks, and without one elsewhere.

        Args:
            interval: Draw it at most this often, in seconds.
            timeout: Give up after this many seconds; None or negative waits for ever. No error is raised.
            widget: Draw it as in a notebook, or as in a terminal; None: as what stdout is.
            return_when: FIRST_COMPLETED, FIRST_EXCEPTION or ALL_COMPLETED of `concurrent.futures`.
        """
        bar = showing(self.name, self._read_progress, period_s=interval, widget=widget)
        with bar as notify, self.listening(notify):
            self._wait_when(timeout, return_when)

    def _read_progress(self) -> tuple[int, int]:
        return self.progress, len(self)

    def display_errors(self) -> None:
        """Show the errors of those requests of this call that have failed, on stderr."""
        _ErrorReport(self.slots, Screen(has_prefixes=not self._is_single)).show()

    def display_outputs(self, groupby: str = "type", result_only: bool = False) -> None:
        """Show what the requests of this call wrote and displayed, and the values of code that was executed.

        Text begins with where it comes from (``[stdout:3]``), except for a call with an integer target. Errors are not
        shown, and not raised: that is for `get`.

        Args:
            groupby: "type": first all stdout, then all stderr, then what was displayed. "engine": engine by engine.
                "order": as "type", but the first thing displayed on each engine, then the second, …
            result_only: Only the values.
        Raises:
            TimeoutError: It is not done.
            ValueError: There is no such way to group.
        """
        if groupby not in GROUPINGS:
            raise ValueError(f"groupby must be one of {', '.join(GROUPINGS)}, not {groupby!r}")
        self._check_done()
        screen = Screen(has_prefixes=not self._is_single)
        every = [call.make_metadata(index) for call, index in self.slots]
        outcomes = [call.read(index) for call, index in self.slots]
        if result_only:
            _show_replies(screen, outcomes)
        elif groupby == "engine":
            for metadata, outcome in zip(every, outcomes, strict=True):
                _show_texts(screen, [metadata], "stdout")
                _show_texts(screen, [metadata], "stderr")
                _show_displays(screen, [metadata])
                _show_replies(screen, [outcome])
        else:
            _show_texts(screen, every, "stdout")
            _show_texts(screen, every, "stderr")
            if groupby == "order":
                _show_displays_in_turn(screen, every)
            else:
                _show_displays(screen, every)
            _show_replies(screen, outcomes)
        screen.end()

    @contextmanager
    def stream_output(self) -> Iterator[None]:
        """Show what the requests of this call write and display, and their errors, as it comes, for the length of a
        with-block; first what has come before it.

        When the block ends and the call is done, everything has been shown. Values of executed code are not shown:
        that is for ``display_outputs(result_only=True)``.

        Raises:
            RuntimeError: In a callback of a result: what is to be shown comes by the same thread.
        """
        if self.slots.parts and self.slots.parts[0].call.connection.is_callback_thread():
            raise RuntimeError("stream_output() cannot be used in a callback; give the result to a thread of your own")
        stream = _Stream(self)
        try:
            yield
        finally:
            stream.end()


def _show_texts(screen: Screen, every: list[Any], kind: str) -> None:
    for metadata in every:
        if metadata[kind]:
            screen.write(kind, metadata["engine_id"], metadata[kind])
            screen.end_line()


def _show_displays(screen: Screen, every: list[Any]) -> None:
    for metadata in every:
        for output in metadata["outputs"]:
            screen.show(metadata["engine_id"], output)


def _show_displays_in_turn(screen: Screen, every: list[Any]) -> None:
    for turn in range(max((len(metadata["outputs"]) for metadata in every), default=0)):
        for metadata in every:
            if turn < len(metadata["outputs"]):
                screen.show(metadata["engine_id"], metadata["outputs"][turn])


def _show_replies(screen: Screen, outcomes: list[Any]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, ExecuteReply):
            screen.show_reply(outcome)


class _ErrorReport:
    """Shows each error once, the first few in full."""

    def __init__(self, slots: Slots, screen: Screen):
        self._slots = slots
        self._screen = screen
        self._shown: set[int] = set()

    @property
    def count(self) -> int:
        return len(self._shown)

    def show(self) -> None:
        for position, (call, index) in enumerate(self._slots):
            if position in self._shown or not call.has_failed(index):
                continue
            outcome = call.read(index)
            assert isinstance(outcome, Failure)
            self._screen.show_error(
                outcome.error, call.get_result(index).engine, len(self._shown) < CompositeError.tb_limit
            )
            self._shown.add(position)


class _Stream:
    """A thread that shows what comes.

    One of its own: the client's thread for callbacks belongs to whatever notebook cell was there first, and what it
    writes would appear below that.
    """

    def __init__(self, result: Displayed):
        self._result = result
        self._screen = Screen(has_prefixes=not result._is_single)
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._errors = _ErrorReport(result.slots, self._screen)
        self._is_looking = False
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="hpcviews-stream", daemon=True)
        self._thread.start()
        result.add_output_callback(self._on_output)
        self._listening = result.listening(self._on_progress)
        self._listening.__enter__()
        self._on_progress()

    # Output comes in the thread for callbacks, ends of requests in the I/O thread. An error must not be shown before
    # what was written ahead of it, so it goes through the thread for callbacks too.

    def _on_output(self, index: int, engine_id: int, kind: str, content: Any) -> None:
        if kind == "display":
            self._queue.put(lambda: self._screen.show(engine_id, content))
        elif kind in ("stdout", "stderr"):
            self._queue.put(lambda: self._screen.write(kind, engine_id, content))

    def _on_progress(self) -> None:
        if not self._is_looking and self._result.slots.failed > self._errors.count:
            self._is_looking = True
            self._run_behind_outputs(lambda: self._queue.put(self._show_errors))

    def _run_behind_outputs(self, fn: Callable[[], object]) -> None:
        self._result.slots.parts[0].call.connection.run_callback(fn)

    def _show_errors(self) -> None:
        self._is_looking = False
        self._errors.show()

    def _run(self) -> None:
        while (show := self._queue.get()) is not None:
            show()
            del show
        self._screen.end()

    def end(self) -> None:
        """Show what has come, and end."""
        self._listening.__exit__(None, None, None)
        self._run_behind_outputs(lambda: self._queue.put(None))
        self._thread.join()
        self._result.remove_output_callback(self._on_output)
