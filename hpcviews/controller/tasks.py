"""Tasks on their way to an engine: what they wait for, where they may go, and what happens when that cannot be."""

from __future__ import annotations

from hpcviews.controller import answers
from hpcviews.controller.attempts import NOBODY, Attempts
from hpcviews.controller.core import Core
from hpcviews.controller.dependencies import Doomed
from hpcviews.controller.outbox import Outbox
from hpcviews.controller.state import NO_KEY, Work, WorkPhase
from hpcviews.ids import EngineId
from hpcviews.wire import messages as m

# ---------------------------------------------------------------- waiting for other requests


def join(core: Core, out: Outbox, work: Work, conditions: m.Conditions, now: float) -> None:
    """A task that does not wait for an engine alone."""
    work.phase = WorkPhase.WAITING  # it begins there
    try:
        # Before it is among its client's: a task that names itself names nobody.
        is_ready = core.dependencies.join(work, conditions, core, now)
    except Doomed as doomed:
        core.add_work(work)
        answers.end(core, out, work, answers.make_failure(work.seq, -1, doomed.error, doomed.text))
        return
    core.add_work(work)
    if conditions.timeout_s:
        assert work.terms is not None
        work.terms.due = now + conditions.timeout_s
        core.deadlines.arm(work, work.terms.due)
    if is_ready:
        release(core, out, work)


def release(core: Core, out: Outbox, work: Work) -> None:
    """A new task, or one that waited for others, waits only for an engine from now on."""
    terms = work.terms
    assert terms is not None
    if terms.follow is not None:
        assert terms.follow.engines is not None
        followed = frozenset(terms.follow.engines)
        allowed = followed if work.targets is None else followed & work.targets
        if not allowed:
            text = f"`follow` wants {answers.render_engines(followed)}, and `targets` does not allow it"
            answers.end(core, out, work, answers.make_failure(work.seq, -1, "ImpossibleDependency", text))
            return
        work.targets = allowed
    terms.after = None
    if terms.follow is None and not terms.timeout_s:
        work.terms = None
    work.move(WorkPhase.QUEUED)
    queue(core, out, work)


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
            answers.fail(core, out, work, closed.error, closed.render_error())
        else:
            dependencies.leave(work)
            release(core, out, work)


# ---------------------------------------------------------------- waiting for an engine


def submit(core: Core, out: Outbox, work: Work) -> None:
    """A new task that waits for an engine alone."""
    core.add_work(work)
    if core.stopping:
        text = f"the cluster is stopping: {core.stopping}"
        answers.end(core, out, work, answers.make_failure(work.seq, -1, "TaskAborted", text))
    else:
        queue(core, out, work)


def queue(core: Core, out: Outbox, work: Work) -> None:
    """A task waits for an engine, unless none can come."""
    if (not core.engines or work.targets is not None) and (
        not core.scheduler.has_engine(work.targets, NOBODY) and not core.expects_engines
    ):
        answers.end(core, out, work, answers.make_failure(work.seq, -1, *_describe_stranded(core, work)))
        return
    core.scheduler.put(work)
    out.ask_for_scheduling()


def queue_again(core: Core, work: Work) -> None:
    """A task comes back from an engine: it goes in front of those that have never been out."""
    work.move(WorkPhase.QUEUED)
    work.engine, work.key = None, NO_KEY
    if work.terms is not None and work.terms.timeout_s:
        work.terms.is_late = False
        if work.terms.armed is None:
            core.deadlines.arm(work, work.terms.due)
    core.scheduler.put(work, in_front=True)


def end_stranded(core: Core, out: Outbox) -> None:
    """Engines are gone, or all that were to come are there: nothing waits for ever for engines that cannot come."""
    is_hopeful = core.expects_engines
    for work in core.scheduler.take_stranded(barred_only=is_hopeful):
        has_others = work.attempts is not None and _choose_engines(core, work)
        if has_others or is_hopeful or (work.barred and _may_wait_for_new_engines(work)):
            core.scheduler.put(work)
            out.ask_for_scheduling()
        else:
            answers.end(core, out, work, answers.make_failure(work.seq, -1, *_describe_stranded(core, work)))


def _describe_stranded(core: Core, work: Work) -> tuple[str, str]:
    """The error of a task that waits for engines that are not there and cannot come."""
    attempts = work.attempts
    if attempts is not None and attempts.refused and core.scheduler.has_engine(work.targets, NOBODY):
        return "UnmetDependency", f"{answers.render_engines(attempts.refused)} refused it, and no other may run it"
    if work.terms is not None and work.terms.follow is not None:
        assert work.targets is not None
        shown = sorted(work.targets)[: answers.IDS_SHOWN_MAX]
        lost = ", ".join(answers.describe_missing(core, engine_id)[1] for engine_id in shown)
        return "ImpossibleDependency", f"the requests in `follow` ran on {answers.render_engines(work.targets)}: {lost}"
    if work.targets is None:
        return "NoEnginesRegistered", answers.describe_no_engines(core)
    if not work.targets:
        return "NoSuchEngine", "the list of engines that may run this task is empty"
    return answers.describe_missing(core, min(work.targets))


# ---------------------------------------------------------------- once more


def retry(core: Core, out: Outbox, work: Work, engine_id: EngineId, what: str) -> None:
    """Queue a task again after its attempt failed; it is no longer in flight."""
    work.retries -= 1
    if work.attempts is None:
        work.attempts = Attempts()
    work.attempts.note_failure(engine_id, what)
    if work.terms is not None:
        work.terms.timeout_s = 0.0  # it has begun, which is what the timeout is about
        core.deadlines.disarm(work)
    _choose_engines(core, work)
    queue_again(core, work)
    out.ask_for_scheduling()


def pass_on(core: Core, work: Work, engine_id: EngineId, what: str) -> bool:
    """Queue a task for other engines after one refused it. Returns False if there is no other to wait for."""
    if work.attempts is None:
        work.attempts = Attempts()
    work.attempts.refused |= {engine_id}
    if not _choose_engines(core, work) and not _may_wait_for_new_engines(work):
        return False
    work.attempts.note(engine_id, what)
    queue_again(core, work)
    return True


def _choose_engines(core: Core, work: Work) -> bool:
    """Bar a task from engines that it has been on in vain; returns whether there are others.

    From those that refused it for ever. From those that failed it while there are others, although one of them may be
    idle now and the others are not: an engine with a broken node would be the first to be idle, and would eat up all
    retries. When it has been on all of them, only from the last.
    """
    attempts = work.attempts
    assert attempts is not None
    for tried in (attempts.tried, attempts.last, NOBODY):
        barred = attempts.refused | tried
        if core.scheduler.has_engine(work.targets, barred):
            attempts.tried = tried
            work.barred = barred or None
            return True
    work.barred = attempts.refused or None
    return False


def readmit(core: Core, engine_id: EngineId) -> None:
    """Another process stands in for an engine, under its id: what the old one refused or failed, it has not."""
    waiting = core.scheduler.take_barred(engine_id)
    for work in [*waiting, *(work for engine in core.engines.values() for work in engine.tasks.values())]:
        if work.attempts is not None:
            work.attempts.forget(engine_id)
    for work in waiting:
        _choose_engines(core, work)
        core.scheduler.put(work)


def _may_wait_for_new_engines(work: Work) -> bool:
    """Whether a task that all engines refused is to wait for others, which its timeout ends."""
    return work.terms is not None and work.terms.timeout_s > 0


# ---------------------------------------------------------------- not for ever


def expire(core: Core, out: Outbox, now: float) -> list[Work]:
    """End what has waited too long. Returns the tasks to be recalled to see whether they have."""
    core.dependencies.give_up(core, now)
    unsure = []
    for work in core.deadlines.take_due(now):
        assert work.terms is not None
        if work.phase is WorkPhase.WAITING:
            missing = "; ".join(gate.describe() for gate in work.terms.gates() if gate.is_waiting)
            answers.fail(core, out, work, "DependencyTimeout", f"{_render_limit(work)}: {missing}")
        elif work.phase is WorkPhase.QUEUED:
            end_late(core, out, work)
        elif work.engine is not None and next(iter(work.engine.in_flight)) != work.key:
            # It may wait behind others, in an engine that works them off: short tasks are handed out ahead of time.
            work.terms.is_late = True
            if work.phase is WorkPhase.SENT:
                unsure.append(work)
    return unsure


def end_late(core: Core, out: Outbox, work: Work) -> None:
    """A task has not begun on any engine in time."""
    answers.fail(core, out, work, "TaskTimeout", f"{_render_limit(work)}: {_describe_engines(core, work)}")


def _render_limit(work: Work) -> str:
    assert work.terms is not None
    return f"not begun within its timeout of {work.terms.timeout_s:g} s"


def _describe_engines(core: Core, work: Work) -> str:
    refused = work.attempts.refused if work.attempts is not None else frozenset()
    if refused and not core.scheduler.has_engine(work.targets, refused):
        return f"{answers.render_engines(refused)} refused it, and no other came"
    if not core.scheduler.has_engine(work.targets, frozenset()):
        return "none that may run it was there"
    return "all that may run it were busy"
