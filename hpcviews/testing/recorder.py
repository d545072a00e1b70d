"""An Outbox that records, for tests of the core without sockets.

Every message goes through the codec and back, so each logic test is a wire test too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hpcviews.controller.events import Order
from hpcviews.controller.state import Frames, Route
from hpcviews.wire import messages as m
from hpcviews.wire.codec import client_decoder, encode, engine_decoder
from hpcviews.wire.shared import is_handle

HELD_BYTES = 4096
"""What is behind every handle here."""

M = TypeVar("M", bound=m.Message)


class RecorderOutbox:
    """Collects per peer what the core sends; take it out with `take`, and assert with `assert_empty` at the end."""

    def __init__(self) -> None:
        self.inboxes: dict[Route, list[tuple[m.Message, Frames]]] = {}
        self.orders: list[Order] = []
        self.held = 0
        """Handles that were mapped."""
        self.cleared: list[str] = []
        """Parties whose segments were to be removed."""
        self.wants_scheduling = False
        self.is_finished = False
        self.on_send: Callable[[Route, m.Message], None] | None = None
        self._decoders = (client_decoder(), engine_decoder())

    def send(self, route: Route, message: m.Message, frames: Frames | None = None) -> None:
        """Record, after a round trip through the codec."""
        frames = list(frames or [])
        decoder = self._decoders[0] if isinstance(message, m.ToClient.__args__) else self._decoders[1]  # type: ignore[attr-defined]
        (decoded,) = decoder.decode(encode([message]), len(frames))
        assert decoded == message, f"{message} does not survive the codec"
        self.inboxes.setdefault(route, []).append((decoded, frames))
        if self.on_send is not None:
            self.on_send(route, decoded)

    def order(self, order: Order) -> None:
        """Record."""
        self.orders.append(order)

    def hold(self, frames: Frames) -> Frames:
        """Stand for the bytes behind handles."""
        self.held += sum(map(is_handle, frames))
        return [bytes(HELD_BYTES) if is_handle(frame) else frame for frame in frames]

    def clear_segments(self, party: str) -> None:
        """Record."""
        self.cleared.append(party)

    def ask_for_scheduling(self) -> None:
        """Record."""
        self.wants_scheduling = True

    def finish(self) -> None:
        """Record."""
        self.is_finished = True

    def take(self, route: Route, kind: type[M]) -> M:
        """The next message to `route`, which must be of this kind."""
        inbox = self.inboxes.get(route)
        assert inbox, f"nothing was sent to {route!r}; sent: {self.describe()}"
        message, _ = inbox.pop(0)
        assert isinstance(message, kind), f"{route!r} got {message}, not a {kind.__name__}"
        return message

    def take_all(self, route: Route) -> list[tuple[m.Message, Frames]]:
        """Everything to `route`."""
        return self.inboxes.pop(route, [])

    def assert_empty(self) -> None:
        """Complain about leftovers."""
        left: dict[Any, Any] = {route: inbox for route, inbox in self.inboxes.items() if inbox}
        assert not left, f"messages nobody took: {self.describe()}"

    def describe(self) -> str:
        """What waits to be taken."""
        return (
            "; ".join(
                f"{route!r}: {', '.join(type(message).__name__ for message, _ in inbox)}"
                for route, inbox in self.inboxes.items()
                if inbox
            )
            or "nothing"
        )
