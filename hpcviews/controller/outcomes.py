"""How requests ended: a few bytes for each, for the tasks that will depend on them later."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterator

from hpcviews.ids import EngineId, Session
from hpcviews.wire import messages as m

PAGE_REQUESTS = 1024
"""Requests of one page; a session that has ended one request costs a page, 5 KiB."""

PAGES_MAX = 16_384
"""The oldest pages are given up beyond it: 16.8 million requests, or as many sessions, in at most 85 MB. At the
scheduler's full speed that is minutes of the past; a graph is submitted in less."""

OK = 1
"""`Outcome.OK` as a plain number: millions of requests end well, and looking up a member of an enum takes time."""

_PAGE_SHIFT = PAGE_REQUESTS.bit_length() - 1
_NO_STATUSES = bytes(PAGE_REQUESTS)
_NO_ENGINES = array("i", [-1]) * PAGE_REQUESTS


class Outcome(enum.IntEnum):
    """How a request ended: well, by an error of user code, or by an error of ours."""

    UNKNOWN = 0
    """Not ended, never heard of, or forgotten."""
    OK = OK
    RAISED = 2
    """User code raised."""
    OTHER = 3
    """An error of ours that is not listed here."""
    ENGINE_ERROR = 4
    TASK_ABORTED = 5
    TASK_TIMEOUT = 6
    UNMET_DEPENDENCY = 7
    IMPOSSIBLE_DEPENDENCY = 8
    DEPENDENCY_TIMEOUT = 9
    INVALID_DEPENDENCY = 10
    NO_SUCH_ENGINE = 11
    NO_ENGINES_REGISTERED = 12

    def describe(self) -> str:
        """In words, behind "request … "."""
        return _WORDS[self]


_NAMES = {
    Outcome.ENGINE_ERROR: "EngineError",
    Outcome.TASK_ABORTED: "TaskAborted",
    Outcome.TASK_TIMEOUT: "TaskTimeout",
    Outcome.UNMET_DEPENDENCY: "UnmetDependency",
    Outcome.IMPOSSIBLE_DEPENDENCY: "ImpossibleDependency",
    Outcome.DEPENDENCY_TIMEOUT: "DependencyTimeout",
    Outcome.INVALID_DEPENDENCY: "InvalidDependency",
    Outcome.NO_SUCH_ENGINE: "NoSuchEngine",
    Outcome.NO_ENGINES_REGISTERED: "NoEnginesRegistered",
}
_BY_NAME = {name: outcome for outcome, name in _NAMES.items()}
_WORDS = {
    Outcome.UNKNOWN: "has not ended",
    Outcome.OK: "ended well",
    Outcome.RAISED: "raised an error",
    Outcome.OTHER: "failed",
    **{outcome: f"ended with {name}" for outcome, name in _NAMES.items()},
}


def classify(error: m.ErrorInfo | None) -> Outcome:
    """The outcome of a request with this error."""
    if error is None:
        return Outcome.OK
    return _BY_NAME.get(error.ename, Outcome.OTHER) if error.local else Outcome.RAISED


class _Page:
    """A thousand requests of a session: their outcomes, and the engines they ended on (-1: on none)."""

    __slots__ = ("engines", "statuses")

    def __init__(self) -> None:
        self.statuses = bytearray(_NO_STATUSES)
        self.engines = array("i", _NO_ENGINES)


class Outcomes:
    """How requests ended, of all sessions, also those that are gone; bounded, the oldest are forgotten first."""

    def __init__(self, pages_max: int = PAGES_MAX) -> None:
        self._pages_max = pages_max
        self._pages: dict[tuple[Session, int], _Page] = {}
        # The page that was written last: nearly always the one that is written next.
        self._session = Session("")
        self._number = -1
        self._page = _Page()

    @property
    def capacity(self) -> int:
        """How many requests are remembered at most."""
        return self._pages_max * PAGE_REQUESTS

    def note(self, session: Session, seq: int, outcome: int, engine: int) -> None:
        """A request ended; `engine` is -1 if it ended on none."""
        number = seq >> _PAGE_SHIFT
        if number != self._number or session != self._session:
            self._turn_to(session, number)
        page = self._page
        place = seq & (PAGE_REQUESTS - 1)
        page.statuses[place] = outcome
        page.engines[place] = engine

    def _turn_to(self, session: Session, number: int) -> None:
        page = self._pages.get((session, number))
        if page is None:
            page = self._pages[(session, number)] = _Page()
            if len(self._pages) > self._pages_max:
                del self._pages[next(iter(self._pages))]
        self._session, self._number, self._page = session, number, page

    def find(self, session: Session, seq: int) -> tuple[Outcome, EngineId]:
        """How a request ended, and on which engine; UNKNOWN if that is not known."""
        page = self._pages.get((session, seq >> _PAGE_SHIFT))
        if page is None:
            return Outcome.UNKNOWN, EngineId(-1)
        place = seq & (PAGE_REQUESTS - 1)
        return Outcome(page.statuses[place]), EngineId(page.engines[place])

    def iterate_but_good(self, session: Session, seqs: range) -> Iterator[int]:
        """Those of `seqs` that are not known to have ended well; whole pages of good ones cost next to nothing."""
        start = seqs.start
        while start < seqs.stop:
            number = start >> _PAGE_SHIFT
            stop = min(seqs.stop, (number + 1) << _PAGE_SHIFT)
            page = self._pages.get((session, number))
            if page is None:
                yield from range(start, stop)
            else:
                base = number << _PAGE_SHIFT
                part = page.statuses[start - base : stop - base]
                if part.count(Outcome.OK) < len(part):
                    yield from (start + i for i, status in enumerate(part) if status != Outcome.OK)
            start = stop

    def check(self) -> None:
        """Assert that it is bounded."""
        assert len(self._pages) <= self._pages_max
