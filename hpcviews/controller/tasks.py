"""What happens to tasks by themselves: their waiting for others is over, or their time is."""

from __future__ import annotations

from hpcviews.controller import requests
from hpcviews.controller.core import Core
from hpcviews.controller.dependencies import render_impossible
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import Work, WorkPhase


def settle(core: Core, out: Outbox) -> None:
    """Act on what the last event decided for tasks that wait for requests.

    A task that ends here decides on those that depend on it, and so on: a loop, because a chain may be longer than
    Python's stack is deep.
    """
    dependencies = core.dependencies
    while dependencies.verdicts:
        work, closed = dependencies.verdicts.popleft()
        if work.phase is not WorkPhase.WAITING:
            continue  # it ended meanwhile; or both its gates have closed
        assert work.terms is not None
        if closed is not None:
            work.terms.cause = closed.cause
            requests.fail(core, out, work, "ImpossibleDependency", render_impossible(closed))
        else:
            dependencies.leave(work)
            requests.release(core, out, work)


def expire(core: Core, out: Outbox, now: float) -> None:
    """End the tasks that should have been handed to an engine by now."""
    for work in core.deadlines.take_due(now):
        assert work.terms is not None
        limit = f"not handed to an engine within its timeout of {work.terms.timeout_s:g} s"
        if work.phase is WorkPhase.WAITING:
            missing = "; ".join(gate.describe() for gate in work.terms.gates() if gate.is_waiting)
            requests.fail(core, out, work, "DependencyTimeout", f"{limit}: {missing}")
        else:
            requests.fail(core, out, work, "TaskTimeout", f"{limit}: {_describe_engines(core, work)}")


def _describe_engines(core: Core, work: Work) -> str:
    refused = work.attempts.refused if work.attempts is not None else frozenset()
    if refused and not core.scheduler.has_engine(work.targets, refused):
        return f"{requests.render_engines(refused)} refused it, and no other came"
    if not core.scheduler.has_engine(work.targets, frozenset()):
        return "none that may run it was there"
    return "all that may run it were busy"
