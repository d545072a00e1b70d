"""Services of a controller for tests."""

from __future__ import annotations

from hpcviews.controller.events import (
    EndEngines,
    EndSets,
    EnginesEnded,
    Order,
    Post,
    SetExited,
    SetNotStarted,
    StartEngines,
)


class NoProcesses:
    """Stands for the processes of engine sets where the test itself, or nobody, starts engines.

    What is to end has ended, as far as the controller is told.
    """

    def attach(self, post: Post) -> None:
        """Take note of whom to tell."""
        self._post = post

    def fds(self) -> frozenset[int]:
        """None."""
        return frozenset()

    def on_readable(self, fd: int, now: float) -> None:
        """Cannot happen."""
        raise AssertionError("there are no file descriptors")

    def on_tick(self, now: float) -> None:
        """Nothing is ever due."""

    def on_order(self, order: Order, now: float) -> None:
        """Say that they have ended, and that none can be started."""
        if isinstance(order, EndSets):
            for set_id in order.set_ids:
                self._post(SetExited(set_id, order.why, ""))
        elif isinstance(order, EndEngines):
            self._post(EnginesEnded(tuple(engine.id for engine in order.engines)))
        elif isinstance(order, StartEngines):
            self._post(SetNotStarted(order.ids, "nobody starts engines here", "LaunchError"))
