"""All that the core can do to the world."""

from __future__ import annotations

from typing import Protocol

from hpcviews.controller.events import Order
from hpcviews.controller.state import Frames, Route
from hpcviews.wire.messages import Message


class Outbox(Protocol):
    """Effects of the core. Nothing happens at once: messages leave in order when the handler has returned."""

    def send(self, route: Route, message: Message, frames: Frames | None = None) -> None:
        """Send to a peer; `frames` are forwarded uncopied."""

    def hold(self, frames: Frames) -> Frames:
        """Payload frames that outlive their sender's interest: what is in shared memory here, mapped.

        The one effect that is at once: the sender is told that nobody wants it in the same step. A handle that cannot
        be mapped stays a handle.
        """

    def order(self, order: Order) -> None:
        """Have processes of engine sets ended, killed or started; or records archived, found or forgotten."""

    def clear_segments(self, party: str) -> None:
        """Remove the segments of a party of the controller's own room, which is gone."""

    def ask_for_scheduling(self) -> None:
        """Something changed that may let a task be placed."""

    def finish(self) -> None:
        """The cluster has ended: leave the loop when what was sent has left."""
