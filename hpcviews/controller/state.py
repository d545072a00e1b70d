"""The controller's records, and the states they move through."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hpcviews.ids import Digest, EngineId, RunKey, Seq, Session, SetId
from hpcviews.wire import messages as m

Frames = list[Any]
"""Payload frames (zmq.Frame) that the core hands on unread."""

Route = bytes
"""A connection of the controller's, as the shell names it. A peer that reconnects has a new one."""


class SetPhase(enum.Enum):
    """States of an engine set."""

    STARTING = "starting"
    READY = "ready"
    """All its engines have registered."""
    DEGRADED = "degraded"
    """Some of its engines are lost, its process runs."""
    STOPPING = "stopping"
    ENDED = "ended"
    """Its process is gone, as asked."""
    FAILED = "failed"
    """Its process is gone, not as asked."""


SET_MOVES: dict[SetPhase, frozenset[SetPhase]] = {
    SetPhase.STARTING: frozenset({SetPhase.READY, SetPhase.DEGRADED, SetPhase.STOPPING, SetPhase.FAILED}),
    SetPhase.READY: frozenset({SetPhase.DEGRADED, SetPhase.STOPPING, SetPhase.FAILED}),
    SetPhase.DEGRADED: frozenset({SetPhase.STOPPING, SetPhase.FAILED, SetPhase.READY}),
    SetPhase.STOPPING: frozenset({SetPhase.ENDED, SetPhase.FAILED}),
    SetPhase.ENDED: frozenset(),
    SetPhase.FAILED: frozenset(),
}


class IllegalMove(AssertionError):
    """A record was to move where its table does not allow; our bug."""


@dataclass(slots=True)
class EngineSet:
    """Engines that were started together."""

    id: SetId
    launcher: str
    n: int
    is_world: bool
    log: str
    phase: SetPhase = SetPhase.STARTING
    why: str = ""
    error: str = ""
    engines: set[EngineId] = field(default_factory=set)
    registered: int = 0
    """How many of its engines have ever registered."""
    story: deque[str] = field(default_factory=lambda: deque(maxlen=16))

    def move(self, to: SetPhase, why: str, error: str = "") -> None:
        """Go to another phase."""
        self.story.append(f"{self.phase.value} -> {to.value}: {why.splitlines()[0] if why else ''}")
        if to not in SET_MOVES[self.phase]:
            raise IllegalMove(f"engine set {self.id}: " + "; ".join(self.story))
        self.phase, self.why, self.error = to, why, error

    @property
    def may_bring_engines(self) -> bool:
        """Whether engines that have not registered yet may still do so."""
        return self.phase is SetPhase.STARTING

    def info(self) -> m.SetInfo:
        """As clients see it."""
        return m.SetInfo(self.id, self.launcher, self.n, self.phase.value, self.why, self.error, self.log)
