"""Results in shared memory that are on their way: engines keep the segments until each has been mapped."""

from __future__ import annotations

from collections.abc import Iterable

from hpcviews.controller.state import Client, Engine
from hpcviews.ids import RunKey

Delivery = tuple[Engine, RunKey]
"""What an engine's Done for this attempt has in shared memory."""


class Deliveries:
    """Who still has to map what. Every delivery is over exactly once: mapped by all, or wanted by nobody any more."""

    def __init__(self) -> None:
        self._of_client: dict[Client, dict[int, Delivery]] = {}
        self._receivers: dict[Engine, dict[RunKey, int]] = {}

    def open(self, client: Client, seq: int, engine: Engine, key: RunKey) -> None:
        """The result of request `seq` is sent to a client, which will say when it has mapped it."""
        self._of_client.setdefault(client, {})[seq] = engine, key
        receivers = self._receivers.setdefault(engine, {})
        receivers[key] = receivers.get(key, 0) + 1

    def is_open(self, engine: Engine, key: RunKey) -> bool:
        """Whether somebody still has to map it."""
        return key in self._receivers.get(engine, ())

    def is_waiting_for(self, engine: Engine) -> bool:
        """Whether anything of this engine still has to be mapped."""
        return engine in self._receivers

    def take_mapped(self, client: Client, seqs: Iterable[int]) -> list[Delivery]:
        """A client has mapped these; gives the deliveries that are over by that."""
        waiting = self._of_client.get(client, {})
        over = [self._close(*waiting.pop(seq)) for seq in seqs if seq in waiting]
        if not waiting:
            self._of_client.pop(client, None)
        return [delivery for delivery in over if delivery is not None]

    def take_client(self, client: Client) -> list[Delivery]:
        """A client is gone; gives the deliveries that are over by that."""
        return self.take_mapped(client, list(self._of_client.get(client, ())))

    def _close(self, engine: Engine, key: RunKey) -> Delivery | None:
        receivers = self._receivers[engine]
        receivers[key] -= 1
        if receivers[key]:
            return None
        del receivers[key]
        if not receivers:
            del self._receivers[engine]
        return engine, key

    def check(self) -> None:
        """Assert that both tables tell the same."""
        counts: dict[Engine, dict[RunKey, int]] = {}
        for waiting in self._of_client.values():
            assert waiting, "a client that waits for nothing was kept"
            for engine, key in waiting.values():
                of_engine = counts.setdefault(engine, {})
                of_engine[key] = of_engine.get(key, 0) + 1
        assert counts == self._receivers, "deliveries are off"
