"""Single engines that clients end while their sets go on: their processes, watched until they are gone.

The engines have been told over the wire. Those on this machine that are still there after the grace period, or that
are to be killed, are killed here: also one that is stopped, or does not read its messages. Decided from events and
times alone, like the life of the sets (engine_sets.py).
"""

from __future__ import annotations

import enum
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hpcviews.controller.events import EnginesEnded
from hpcviews.ids import EngineId

log = logging.getLogger("hpcviews.cluster.engine_ends")

ASKED_GRACE_S = 5.0
"""From an engine's being told over the wire to SIGKILL. It gives user code and MPI_Finalize 3 s."""

KILL_GRACE_S = 5.0
"""What SIGKILL does not end in this time hangs in the kernel, or is not where we can reach it."""


class Watched(Protocol):
    """An engine's process; see `processes.WatchedProcess`."""

    @property
    def pid(self) -> int:
        """Its id."""

    def fileno(self) -> int:
        """Readable when it has ended."""

    def has_ended(self) -> bool:
        """Whether it has."""

    def signal(self, signum: int) -> None:
        """Send it a signal."""

    def kill(self) -> None:
        """Send SIGKILL to it and to all that it has started."""

    def close(self) -> None:
        """Stop watching."""


class Phase(enum.Enum):
    """States of an engine that is to end."""

    ASKED = "asked to end"
    KILLING = "killing"
    """SIGKILL was sent."""
    GONE = "gone"
    """Or given up."""


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.ASKED: frozenset({Phase.KILLING, Phase.GONE}),
    Phase.KILLING: frozenset({Phase.GONE}),
    Phase.GONE: frozenset(),
}


@dataclass
class EngineEnd:
    """One engine's."""

    id: EngineId
    process: Watched | None
    """None: it is on another machine, or has ended already."""
    due: float
    """When the phase is over."""
    phase: Phase = Phase.ASKED

    def move(self, to: Phase, due: float = 0.0) -> None:
        """Go to another phase, until `due`."""
        if to not in MOVES[self.phase]:
            raise AssertionError(f"engine {self.id}: illegal move: {self.phase.value} -> {to.value}")
        self.phase, self.due = to, due


class EngineEnds:
    """All engines that are to end."""

    def __init__(self, tell: Callable[[EnginesEnded], None]):
        self._tell = tell
        self._ends: dict[EngineId, EngineEnd] = {}

    def end(self, engine_id: EngineId, process: Watched | None, at_once: bool, now: float) -> None:
        """See to it that this engine ends. Its end is told, or that nothing more can be done."""
        earlier = self._ends.pop(engine_id, None)
        if earlier is not None and earlier.process is not None:
            earlier.process.close()
        end = self._ends[engine_id] = EngineEnd(engine_id, process, now + ASKED_GRACE_S)
        if process is None:
            self._tell(EnginesEnded((engine_id,)))  # as far as processes here are concerned
        elif at_once:
            self._kill(end, now)
        else:
            process.signal(signal.SIGCONT)  # one that is stopped would not read that it is to end

    def _kill(self, end: EngineEnd, now: float) -> None:
        assert end.process is not None
        end.process.kill()
        end.move(Phase.KILLING, now + KILL_GRACE_S)

    def fds(self) -> frozenset[int]:
        """The processes that have not ended."""
        return frozenset(end.process.fileno() for end in self._ends.values() if end.process is not None)

    def on_readable(self, fd: int) -> bool:
        """A process may have ended; whether it was one of these."""
        for end in list(self._ends.values()):
            if end.process is not None and end.process.fileno() == fd:
                if end.process.has_ended():
                    self._forget(end)
                    self._tell(EnginesEnded((end.id,)))
                return True
        return False

    def on_tick(self, now: float) -> float | None:
        """Do what is due; in how many seconds the next is."""
        for end in list(self._ends.values()):
            if now < end.due:
                continue
            if end.process is None:
                self._forget(end)
                self._tell(EnginesEnded((end.id,), "its process is not on the controller's machine"))
            elif end.phase is Phase.ASKED:
                log.warning("engine %d: does not end by itself: killing pid %d", end.id, end.process.pid)
                self._kill(end, now)
            else:
                self._forget(end)
                self._tell(EnginesEnded((end.id,), f"its process {end.process.pid} hangs in the kernel"))
        return max(0.0, min(end.due for end in self._ends.values()) - now) if self._ends else None

    def _forget(self, end: EngineEnd) -> None:
        end.move(Phase.GONE)
        del self._ends[end.id]
        if end.process is not None:
            end.process.close()

    def close(self) -> None:
        """Stop watching."""
        for end in list(self._ends.values()):
            self._forget(end)
