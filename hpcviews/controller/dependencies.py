"""Tasks that wait for other requests: pure, O(1) amortised per request that ends and task that waits.

The requests that a task names in `after` or `follow` make a *gate*. It hangs on the records of those that have not
ended, and opens, or closes for ever, as they end. Tasks that name the same requests one after the other, as those of
a map do, share a gate: ten thousand tasks after ten thousand others are twenty thousand steps, not a hundred million.
A request must be there before others can depend on it, so there are no circles.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from hpcviews.controller.outcomes import Outcome, Outcomes
from hpcviews.controller.state import IllegalMove, Work, WorkPhase
from hpcviews.ids import EngineId, Session, parse_msg_id_run, render_msg_id
from hpcviews.wire import messages as m

GATES_REMEMBERED = 8
"""How many of the latest gates a new task's requests are compared with: the maps of a few clients at once."""

SWEPT_LENGTH_MIN = 16
"""Shorter lists are not worth sweeping."""

IDS_SHOWN_MAX = 3
TEXT_SHOWN_MAX = 200
"""How much of an error's text is quoted in the errors of those that depended on it."""


class Doomed(Exception):
    """What a task waits for cannot come: it ends with `error`."""

    def __init__(self, error: str, text: str):
        super().__init__(text)
        self.error = error
        self.text = text


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

    __slots__ = ("cause", "engines", "info", "named", "pending", "phase", "waiting", "why", "works")

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
                self._close(f"the requests ran on the engines {ran_on}, and a task can follow only one")
            elif not self.pending:
                self.move(GatePhase.OPEN)
        elif info.all:
            self._close(f"{name()}, and {reason}", cause)
        elif counts:
            self.move(GatePhase.OPEN)
        elif not self.pending:
            last = f"{name()}, and {reason}"
            text = last if self.named == 1 else f"none of the {self.named} requests counts; the last: {last}"
            self._close(text, cause)

    def _close(self, why: str, cause: str = "") -> None:
        self.move(GatePhase.CLOSED)
        self.why = why
        self.cause = cause or why

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
    unmet: int
    """How many of the gates are shut."""
    due: float = 0.0
    """When the time for its first hand-out is over, in the loop's seconds."""
    armed: float | None = None
    """What the clock of deadlines is set to for it; None: it is not running."""
    cause: str = ""
    """The first failure behind its own ImpossibleDependency."""

    def gates(self) -> list[Gate]:
        """Those there are."""
        return [gate for gate in (self.after, self.follow) if gate is not None]


FindWork = Callable[[Session, int], Work | None]


class Dependencies:
    """All tasks that wait for requests."""

    def __init__(self) -> None:
        self.waiting = 0
        """How many tasks wait."""
        self.verdicts: deque[tuple[Work, Gate | None]] = deque()
        """Tasks whose waiting is over: the gate that closed, or None when all are open. `tasks.settle` acts on it."""
        self._latest: deque[Gate] = deque(maxlen=GATES_REMEMBERED)

    # ------------------------------------------------------------ tasks come and go

    def join(self, work: Work, conditions: m.Conditions, outcomes: Outcomes, find_work: FindWork) -> bool:
        """A task came. Returns whether it has nothing to wait for.

        Raises:
            Doomed: What it names is unknown, or can never be as it wants it.
        """
        after = follow = None
        try:
            if conditions.after is not None and conditions.after.msg_ids:
                after = self._get_gate(conditions.after, False, outcomes, find_work)
            if conditions.follow is not None and conditions.follow.msg_ids:
                follow = self._get_gate(conditions.follow, True, outcomes, find_work)
            terms = work.terms = Terms(after, follow, conditions.timeout_s, 0)
            for gate in terms.gates():
                if gate.phase is GatePhase.CLOSED:
                    terms.cause = gate.cause
                    raise Doomed("ImpossibleDependency", render_impossible(gate))
        except Doomed:
            for made in (after, follow):
                if made is not None:
                    self._leave_if_empty(made)
            raise
        for gate in terms.gates():
            if gate.phase is GatePhase.SHUT:
                gate.works.add(work)
                gate.waiting += 1
                terms.unmet += 1
        if terms.unmet:
            self.waiting += 1
            return False
        return True

    def leave(self, work: Work) -> None:
        """A task waits no more, for whatever reason. Call before moving it."""
        self.waiting -= 1
        assert work.terms is not None
        for gate in work.terms.gates():
            if gate.phase is GatePhase.SHUT:
                gate.waiting -= 1
                self._leave_if_empty(gate)

    @staticmethod
    def _leave_if_empty(gate: Gate) -> None:
        if gate.phase is GatePhase.SHUT and not gate.waiting:
            gate.move(GatePhase.LEFT)
            gate.works = Swept()

    # ------------------------------------------------------------ requests end

    def on_end(self, work: Work, error: m.ErrorInfo | None, engine_id: int) -> None:
        """A request that others depend on ended."""
        dependents, work.dependents = work.dependents, None
        cause = "" if work.terms is None else work.terms.cause
        msg_id = render_msg_id(work.client.session, work.seq)

        def name() -> str:
            if cause:
                return f"request {msg_id} did not run, because {cause}"
            if error is None:
                return f"request {msg_id} ended well"
            return f"request {msg_id} ended with {error.ename}: {shorten(error.evalue)}"

        for gate in dependents or ():
            if gate.phase is not GatePhase.SHUT:
                continue
            gate.count(error is None, engine_id, name, cause)
            if gate.phase is not GatePhase.SHUT:
                self._judge(gate)

    def _judge(self, gate: Gate) -> None:
        """A gate has opened or closed: so much for those that wait at it."""
        is_open = gate.phase is GatePhase.OPEN
        for work in gate.works:
            if work.phase is not WorkPhase.WAITING:
                continue
            assert work.terms is not None
            work.terms.unmet -= 1
            if not is_open:
                self.verdicts.append((work, gate))
            elif not work.terms.unmet:
                self.verdicts.append((work, None))
        gate.works = Swept()
        gate.waiting = 0

    # ------------------------------------------------------------ gates

    def _get_gate(self, info: m.DependencyInfo, is_follow: bool, outcomes: Outcomes, find_work: FindWork) -> Gate:
        for gate in self._latest:
            if gate.info == info and (gate.engines is not None) == is_follow and gate.phase is not GatePhase.LEFT:
                return gate
        gate = Gate(info, is_follow)
        unfinished = _count_finished(gate, outcomes, find_work)
        if gate.phase is GatePhase.SHUT:
            for work in unfinished:
                if work.dependents is None:
                    work.dependents = Dependents()
                work.dependents.add(gate)
        self._latest.append(gate)
        return gate

    def check(self, unfinished: Iterable[Work]) -> None:
        """Assert what must be true of every task that waits, and of what it waits for."""
        assert not self.verdicts, "somebody's waiting is over, and nobody told it"
        hanging: dict[Gate, int] = {}
        waiting: dict[Gate, int] = {}
        count = 0
        for work in unfinished:
            for gate in work.dependents or ():
                hanging[gate] = hanging.get(gate, 0) + 1
            if work.phase is not WorkPhase.WAITING:
                continue
            count += 1
            assert work.terms is not None and work.terms.unmet, "a task waits for nothing"
            assert work.terms.unmet == sum(gate.phase is GatePhase.SHUT for gate in work.terms.gates())
            for gate in work.terms.gates():
                assert gate.phase in (GatePhase.SHUT, GatePhase.OPEN), gate.phase
                if gate.phase is GatePhase.SHUT:
                    waiting[gate] = waiting.get(gate, 0) + 1
                    assert work in gate.works
        assert self.waiting == count, f"{count} tasks wait for requests, counted {self.waiting}"
        for gate, tasks in waiting.items():
            assert gate.waiting == tasks, f"{tasks} tasks wait at a gate, counted {gate.waiting}"
            assert gate.pending == hanging.get(gate, 0) > 0, f"{gate.pending} pending, hangs on {hanging.get(gate, 0)}"


def _count_finished(gate: Gate, outcomes: Outcomes, find_work: FindWork) -> list[Work]:
    """Let a new gate know which of its requests have ended; returns the others."""
    info = gate.info
    unfinished: list[Work] = []
    spans = [_parse(text, gate.flag) for text in info.msg_ids]
    gate.named = gate.pending = sum(len(seqs) for _, seqs in spans)
    # Where good ends change nothing but the number, they are passed over by whole pages.
    is_counting = info.all and info.success and gate.engines is None
    for session, seqs in spans:
        looked_at = 0
        for seq in outcomes.iterate_but_good(session, seqs) if is_counting else seqs:
            looked_at += 1
            work = find_work(session, seq)
            if work is not None:
                unfinished.append(work)
                continue
            outcome, engine_id = outcomes.find(session, seq)
            if outcome is Outcome.UNKNOWN:
                raise Doomed("InvalidDependency", _render_unknown(session, seq, gate.flag, outcomes))
            gate.count(outcome is Outcome.OK, engine_id, partial(_render_outcome, session, seq, outcome))
        if is_counting:
            gate.pending -= len(seqs) - looked_at
    if is_counting and not gate.pending and gate.phase is GatePhase.SHUT:
        gate.move(GatePhase.OPEN)
    return unfinished


def _render_outcome(session: Session, seq: int, outcome: Outcome) -> str:
    return f"request {session}-{seq} {outcome.describe()}"


def _parse(text: str, flag: str) -> tuple[Session, range]:
    try:
        return parse_msg_id_run(text)
    except ValueError as error:
        raise Doomed("InvalidDependency", f"`{flag}` names a request that cannot be: {error}") from None


def _render_unknown(session: Session, seq: int, flag: str, outcomes: Outcomes) -> str:
    return (
        f"`{flag}` names {session}-{seq}, which nobody has submitted to this controller, or which has been forgotten: "
        f"it remembers how the last {outcomes.capacity} requests or so ended"
    )


def render_impossible(gate: Gate) -> str:
    """The text of an ImpossibleDependency."""
    return f"`{gate.flag}` can never be satisfied: {gate.why}"


def shorten(text: str) -> str:
    """The first line of an error's text, if it is short; else its beginning."""
    line = text.split("\n", 1)[0]
    return line if len(line) <= TEXT_SHOWN_MAX else f"{line[:TEXT_SHOWN_MAX]}…"
