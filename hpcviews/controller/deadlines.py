"""The tasks whose time to begin is limited, the next one first."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from hpcviews.controller.state import Work, WorkPhase

STALE_MAX = 64
"""Entries of tasks that have ended in time; beyond it, and beyond the live ones, they are swept out."""


class Deadlines:
    """A heap that tasks leave by being forgotten: their entries are dropped when they come up, or are too many."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Work]] = []
        self._serial = 0
        self._live = 0

    def arm(self, work: Work, deadline: float) -> None:
        """A task must have begun by `deadline`."""
        assert work.terms is not None and work.terms.armed is None
        work.terms.armed = deadline
        self._live += 1
        self._serial += 1
        heapq.heappush(self._heap, (deadline, self._serial, work))

    def disarm(self, work: Work) -> None:
        """It has, or has ended; nothing happens if it had no limit."""
        terms = work.terms
        if terms is None or terms.armed is None:
            return
        terms.armed = None
        self._live -= 1
        if len(self._heap) > 2 * self._live + STALE_MAX:
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)

    @staticmethod
    def _is_current(entry: tuple[float, int, Work]) -> bool:
        terms = entry[2].terms
        return terms is not None and terms.armed == entry[0]

    def find_next(self) -> float | None:
        """The next deadline, in the loop's seconds."""
        heap = self._heap
        while heap and not self._is_current(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: float) -> list[Work]:
        """Those whose time is over, disarmed."""
        due = []
        while (deadline := self.find_next()) is not None and deadline <= now:
            work = heapq.heappop(self._heap)[2]
            self.disarm(work)
            due.append(work)
        return due

    def check(self, unfinished: Iterable[Work]) -> None:
        """Assert that all those are limited that wait and have a limit."""
        armed = 0
        for work in unfinished:
            is_waiting = work.phase in (WorkPhase.WAITING, WorkPhase.QUEUED)
            is_armed = work.terms is not None and work.terms.armed is not None
            armed += is_armed
            if is_waiting and work.terms is not None and work.terms.timeout_s:
                assert is_armed, f"{work} is not limited"
        assert armed == self._live <= len(self._heap), f"{armed} deadlines, counted {self._live}"
