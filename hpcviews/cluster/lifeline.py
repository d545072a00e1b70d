"""Who may end a cluster from outside: its owner, by a pipe, and whoever may send signals to the controller.

The lifeline is a pipe whose write end only the owner holds. When the owner dies, however it dies, the kernel
closes it, and the controller reads the end of the file. No process has to be watched, no pid can be mistaken.
"""

from __future__ import annotations

import contextlib
import os
import signal
import weakref

from hpcviews.controller.events import Order, Post, StopRequested

_STOP = b"s"
_DETACH = b"d"

_held: weakref.WeakSet[Lifeline] = weakref.WeakSet()


class Lifeline:
    """The owner's end, and until it is handed over, the controller's too.

    Attributes:
        far_fd: The end for the controller; closed by `hand_over`.
    """

    def __init__(self) -> None:
        self.far_fd, self._fd = os.pipe()
        _held.add(self)

    def hand_over(self) -> None:
        """The controller has its end now; drop ours of it."""
        if self.far_fd >= 0:
            os.close(self.far_fd)
            self.far_fd = -1

    def stop(self) -> None:
        """Tell the controller to end the cluster."""
        self._say(_STOP)

    def detach(self) -> None:
        """Tell the controller to go on without an owner."""
        self._say(_DETACH)

    def _say(self, word: bytes) -> None:
        if self._fd >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._fd, word)
        self.close()

    def close(self) -> None:
        """Let go; to the controller this is the owner's death."""
        self.hand_over()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _let_go_in_child() -> None:
    # A forked child (multiprocessing, os.fork) that outlives the owner must not keep the cluster alive.
    for lifeline in list(_held):
        lifeline.close()


os.register_at_fork(after_in_child=_let_go_in_child)


class _Watch:
    """A Service of the controller that reads one file descriptor."""

    def __init__(self, fd: int):
        self._fd = fd
        self._post: Post | None = None

    def attach(self, post: Post) -> None:
        self._post = post

    def fds(self) -> frozenset[int]:
        return frozenset({self._fd}) if self._fd >= 0 else frozenset()

    def on_tick(self, now: float) -> float | None:
        return None

    def on_order(self, order: Order, now: float) -> None:
        pass  # engine sets are another service's

    def _request_stop(self, why: str) -> None:
        assert self._post is not None
        self._post(StopRequested(why))


class OwnerWatch(_Watch):
    """Ends the cluster when its owner says so or is gone."""

    def on_readable(self, fd: int, now: float) -> None:
        """The owner spoke, or its end of the pipe was closed."""
        word = os.read(fd, 1)
        os.close(self._fd)
        self._fd = -1
        if word != _DETACH:
            self._request_stop("its owner ended it" if word == _STOP else "its owner is gone")


class SignalWatch(_Watch):
    """Ends the cluster on SIGTERM and SIGINT."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        super().__init__(reader)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            # Handled by on_readable in the loop's own time; the handler only keeps the default from happening.
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the shell that started the cluster may go

    def on_readable(self, fd: int, now: float) -> None:
        """Signals came: one byte each."""
        for number in os.read(fd, 64):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._request_stop(f"{signal.Signals(number).name} came")
