"""Gates: what certain tasks wait for, and when it is decided. Pure bookkeeping of one gate."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from hpcviews.controller.state import IllegalMove, Work
from hpcviews.ids import EngineId
from hpcviews.wire import messages as m

SWEPT_LENGTH_MIN = 16
"""Shorter lists are not worth sweeping."""

IDS_SHOWN_MAX = 3


class _MayWait(Protocol):
    @property
    def is_waiting(self) -> bool: ...


W = TypeVar("W", bound=_MayWait)


class Swept(list[W]):
    """A list that drops what does not wait any more whenever it has doubled: never more than half of it is dead."""

    __slots__ = ("_limit",)

    def __init__(self) -> None:
        super().__init__()
        self._limit = SWEPT_LENGTH_MIN

    def add(self, item: W) -> None:
        """Append."""
        if len(self) >= self._limit:
            self[:] = [kept for kept in self if kept.is_waiting]
            self._limit = max(SWEPT_LENGTH_MIN, 2 * len(self))
        self.append(item)


class GatePhase(enum.Enum):
    """States of a gate."""

    SHUT = "shut"
    """It depends on requests that have not ended."""
    OPEN = "open"
    CLOSED = "closed"
    """It can never open."""
    LEFT = "left"
    """All tasks that waited at it have gone away; what still hangs on requests means nothing."""


GATE_MOVES: Mapping[GatePhase, frozenset[GatePhase]] = {
    GatePhase.SHUT: frozenset({GatePhase.OPEN, GatePhase.CLOSED, GatePhase.LEFT}),
    GatePhase.OPEN: frozenset(),
    GatePhase.CLOSED: frozenset(),
    GatePhase.LEFT: frozenset(),
}


class Gate:
    """Requests that have to end before certain tasks may go on."""

    __slots__ = ("cause", "engines", "error", "info", "named", "pending", "phase", "waiting", "why", "works")

    def __init__(self, info: m.DependencyInfo, is_follow: bool):
        self.info = info
        self.phase = GatePhase.SHUT
        self.named = 0
        """How many requests it names."""
        self.pending = 0
        """How many of them have not ended."""
        self.waiting = 0
        """How many tasks wait at it."""
        self.works: Swept[Work] = Swept()
        """Those; may hold some that do not wait any more."""
        self.engines: set[EngineId] | None = set() if is_follow else None
        """For `follow`: where those that count have run."""
        self.why = ""
        """Why it can never open."""
        self.error = ""
        """The error of those that wait at it, then."""
        self.cause = ""
        """The first failure behind that; `why` itself if there is nothing between."""

    @property
    def is_waiting(self) -> bool:
        """Whether it is of any interest when a request ends."""
        return self.phase is GatePhase.SHUT

    @property
    def flag(self) -> str:
        """What users call it."""
        return "after" if self.engines is None else "follow"

    def move(self, to: GatePhase) -> None:
        """Go to another phase."""
        if to not in GATE_MOVES[self.phase]:
            raise IllegalMove(f"gate of {self.info}: {self.phase.name} -> {to.name}")
        self.phase = to

    def count(self, is_good: bool, engine_id: int, name: Callable[[], str], cause: str = "") -> None:
        """A request has ended.

        Args:
            is_good: Whether it ended well.
            engine_id: Where; -1: on no engine.
            name: Says which request it is and how it ended.
            cause: The first failure behind its own, if there is one.
        """
        self.pending -= 1
        info = self.info
        counts = info.success if is_good else info.failure
        reason = f"only a {'failure' if is_good else 'success'} counts"
        if counts and self.engines is not None:
            if engine_id >= 0:
                self.engines.add(EngineId(engine_id))
            else:
                counts, reason = False, "it ran on no engine"
        if self.phase is not GatePhase.SHUT:
            return
        if info.all and counts:
            if self.engines is not None and len(self.engines) > 1:
                ran_on = ", ".join(map(str, sorted(self.engines)))
                self.close(f"the requests ran on the engines {ran_on}, and a task can follow only one")
            elif not self.pending:
                self.move(GatePhase.OPEN)
        elif info.all:
            self.close(f"{name()}, and {reason}", cause)
        elif counts:
            self.move(GatePhase.OPEN)
        elif not self.pending:
            last = f"{name()}, and {reason}"
            text = last if self.named == 1 else f"none of the {self.named} requests counts; the last: {last}"
            self.close(text, cause)

    def close(self, why: str, cause: str = "", error: str = "ImpossibleDependency") -> None:
        """It can never open."""
        self.move(GatePhase.CLOSED)
        self.why = why
        self.cause = cause or why
        self.error = error

    def render_error(self) -> str:
        """What tasks are told that it has closed to."""
        if self.error == "InvalidDependency":
            return self.why
        return f"`{self.flag}` can never be satisfied: {self.why}"

    def describe(self) -> str:
        """What it waits for, in words."""
        shown = ", ".join(self.info.msg_ids[:IDS_SHOWN_MAX])
        more = ", …" if len(self.info.msg_ids) > IDS_SHOWN_MAX else ""
        return f"{self.pending} of {self.named} requests named by `{self.flag}` have not ended ({shown}{more})"


class Dependents(Swept[Gate]):
    """The gates that hang on a request."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Terms:
    """What a task waits for beside an engine."""

    after: Gate | None
    follow: Gate | None
    timeout_s: float
    """0: for ever."""
    unmet: int = 0
    """How many of the gates are shut."""
    due: float = 0.0
    """When the time until it must have begun is over, in the loop's seconds."""
    armed: float | None = None
    """What the clock of deadlines is set to for it; None: it is not running."""
    is_late: bool = False
    """Its time was over while an engine had it: if that has not begun it, it ends."""
    cause: str = ""
    """The first failure behind its own ImpossibleDependency."""

    def gates(self) -> list[Gate]:
        """Those there are."""
        return [gate for gate in (self.after, self.follow) if gate is not None]
