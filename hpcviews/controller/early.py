"""Who asked for a result before the request came: the two went by the connections of two clients."""

from __future__ import annotations

from collections import deque

from hpcviews.controller.state import Client
from hpcviews.ids import Session

EARLY_S = 10.0
"""How long a request of another client may be under way: gigabytes may go before it."""

EARLY_MAX = 100_000
"""How many may be waited for at once."""

Key = tuple[Session, int]
Asked = list[tuple[Client, int]]
"""The clients, and their numbers for it."""


class Early:
    """Requests that should be under way, and who waits for them."""

    def __init__(self) -> None:
        self.waiting: dict[Key, tuple[float, Asked]] = {}
        """Until when, and who."""
        self._until: deque[tuple[float, Key]] = deque()
        """The same, the next one first; those that have come are passed over."""

    def put(self, key: Key, client: Client, seq: int, now: float) -> bool:
        """Wait for a request; False if too many are waited for."""
        found = self.waiting.get(key)
        if found is None:
            if len(self.waiting) >= EARLY_MAX:
                return False
            found = self.waiting[key] = (now + EARLY_S, [])
            self._until.append((now + EARLY_S, key))
        found[1].append((client, seq))
        return True

    def take(self, key: Key) -> Asked:
        """It came: who is to be told."""
        return self.waiting.pop(key, (0.0, []))[1]

    def find_next(self) -> float | None:
        """When the next one has been waited for long enough."""
        until = self._until
        while until and self.waiting.get(until[0][1], (None,))[0] != until[0][0]:
            until.popleft()
        return until[0][0] if until else None

    def take_overdue(self, now: float) -> list[tuple[Key, Asked]]:
        """Those that have been waited for long enough."""
        overdue = []
        while (next_one := self.find_next()) is not None and next_one <= now:
            _, key = self._until.popleft()
            overdue.append((key, self.take(key)))
        return overdue
