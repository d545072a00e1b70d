"""What became of the attempts at one task before the present one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hpcviews.controller.dependencies import shorten
from hpcviews.ids import EngineId
from hpcviews.wire import messages as m

ATTEMPTS_SHOWN_MAX = 8
"""Failures that are told with the last one; a task may have two billion retries."""

NOBODY: frozenset[EngineId] = frozenset()


@dataclass(slots=True)
class Attempts:
    """Engines a task has been on in vain."""

    refused: frozenset[EngineId] = NOBODY
    """Those that do not satisfy what it depends on: it never goes there again."""
    tried: frozenset[EngineId] = NOBODY
    """Those it failed on, or that died with it, since there was last one it had not been on: the others go first."""
    last: frozenset[EngineId] = NOBODY
    """The one it failed on last."""
    count: int = 0
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=ATTEMPTS_SHOWN_MAX))

    def note(self, engine_id: EngineId, what: str) -> None:
        """An attempt came to nothing, and the task lives on."""
        self.count += 1
        self.latest.append(f"engine {engine_id}: {shorten(what)}")

    def note_failure(self, engine_id: EngineId, what: str) -> None:
        """An attempt failed, and there is another."""
        self.note(engine_id, what)
        self.last = frozenset((engine_id,))
        self.tried |= self.last

    def forget(self, engine_id: EngineId) -> None:
        """Another process has this id now."""
        self.refused, self.tried, self.last = self.refused - {engine_id}, self.tried - {engine_id}, NOBODY

    def annotate(self, error: m.ErrorInfo) -> m.ErrorInfo:
        """The error of the last attempt, which tells of the earlier ones too.

        An error of ours tells it in its text; one of user code behind its traceback, because programs compare texts.
        """
        if not self.count:
            return error
        left_out = self.count - len(self.latest)
        lines = [f"  … {left_out} more" if left_out else "", *(f"  {line}" for line in self.latest)]
        story = "\n".join(["earlier attempts at this task:", *filter(None, lines)])
        evalue = f"{error.evalue}\n{story}" if error.local else error.evalue
        trace = error.traceback if error.local else f"{error.traceback.rstrip()}\n{story}\n".lstrip("\n")
        return m.ErrorInfo(error.ename, evalue, trace, error.local, error.rank, error.host, error.pid, error.method)
