"""Tasks that wait for other requests: pure, O(1) amortised per request that ends and task that waits.

The requests that a task names in `after` or `follow` make a *gate* (gates.py). It hangs on the records of those that
have not ended, and opens, or closes for ever, as they end. Tasks that name the same requests one after the other, as
those of a map do, share a gate: ten thousand tasks after ten thousand others are twenty thousand steps, not a hundred
million. A request must be there before others can depend on it, so there are no circles.

Only requests of other clients may still be under way: theirs came by another connection. They are *expected* for a
while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Protocol

from hpcviews.controller.gates import Dependents, Gate, GatePhase, Swept, Terms
from hpcviews.controller.outcomes import Outcome, Outcomes
from hpcviews.controller.state import Work, WorkPhase
from hpcviews.ids import Session, parse_msg_id_run, render_msg_id
from hpcviews.wire import messages as m

GATES_REMEMBERED = 8
"""How many of the latest gates a new task's requests are compared with: the maps of a few clients at once."""

EXPECTED_S = 10.0
"""How long a request of another client may be under way: gigabytes may go before it."""

EXPECTED_MAX = 100_000
"""How many requests of others one gate may expect. A tenth of a second of the controller's time."""

TEXT_SHOWN_MAX = 200
"""How much of an error's text is quoted in the errors of those that depended on it."""


class Doomed(Exception):
    """What a task waits for cannot come: it ends with `error`."""

    def __init__(self, error: str, text: str):
        super().__init__(text)
        self.error = error
        self.text = text


class Known(Protocol):
    """What is known of requests."""

    outcomes: Outcomes

    def find_work(self, session: Session, seq: int) -> Work | None:
        """A request that has not ended."""

    def is_connected(self, session: Session) -> bool:
        """Whether requests of this session may still come."""


class Dependencies:
    """All tasks that wait for requests."""

    def __init__(self) -> None:
        self.waiting = 0
        """How many tasks wait."""
        self.verdicts: deque[tuple[Work, Gate | None]] = deque()
        """Tasks whose waiting is over: the gate that closed, or None when all are open. `tasks.settle` acts on it."""
        self.expected: dict[tuple[Session, int], tuple[float, list[Gate]]] = {}
        """Requests of others that should be under way: until when, and the gates that will hang on them."""
        self._expected_until: deque[tuple[float, Session, int]] = deque()
        """The same, the next one first; those that have come are passed over."""
        self._latest: deque[Gate] = deque(maxlen=GATES_REMEMBERED)

    # ------------------------------------------------------------ tasks come and go

    def join(self, work: Work, conditions: m.Conditions, known: Known, now: float) -> bool:
        """A task came. Returns whether it has nothing to wait for.

        Raises:
            Doomed: What it names is unknown, or can never be as it wants it.
        """
        terms = work.terms = Terms(None, None, conditions.timeout_s)
        try:
            if conditions.after is not None and conditions.after.msg_ids:
                terms.after = self._get_gate(conditions.after, False, work, known, now)
            if conditions.follow is not None and conditions.follow.msg_ids:
                terms.follow = self._get_gate(conditions.follow, True, work, known, now)
            for gate in terms.gates():
                if gate.phase is GatePhase.CLOSED:
                    terms.cause = gate.cause
                    raise Doomed(gate.error, gate.render_error())
        except Doomed:
            for gate in terms.gates():
                self._leave_if_empty(gate)
            raise
        for gate in terms.gates():
            if gate.phase is GatePhase.SHUT:
                gate.works.add(work)
                gate.waiting += 1
                terms.unmet += 1
        if terms.unmet:
            self.waiting += 1
        return not terms.unmet

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
        gates, work.dependents = work.dependents, None
        cause = "" if work.terms is None else work.terms.cause
        self._count(gates or (), render_msg_id(work.client.session, work.seq), error, engine_id, cause)

    def on_refused(self, session: Session, failure: m.Result) -> None:
        """A request ended before it was one."""
        _, gates = self.expected.pop((session, failure.seq), (0.0, ()))
        self._count(gates, render_msg_id(session, failure.seq), failure.error, failure.engine, "")

    def _count(self, gates: Iterable[Gate], msg_id: str, error: m.ErrorInfo | None, engine_id: int, cause: str) -> None:
        def name() -> str:
            if cause:
                return f"request {msg_id} did not run, because {cause}"
            if error is None:
                return f"request {msg_id} ended well"
            return f"request {msg_id} ended with {error.ename}: {shorten(error.evalue)}"

        for gate in gates:
            if gate.phase is GatePhase.SHUT:
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

    # ------------------------------------------------------------ requests that may still be under way

    def on_arrival(self, work: Work) -> None:
        """A request came; called while some are expected."""
        _, gates = self.expected.pop((work.client.session, work.seq), (0.0, ()))
        for gate in gates:
            _hang(gate, work)

    def find_next(self) -> float | None:
        """When the next expected request has been waited for long enough."""
        until = self._expected_until
        while until and self.expected.get(until[0][1:], (None,))[0] != until[0][0]:
            until.popleft()
        return until[0][0] if until else None

    def give_up(self, known: Known, now: float) -> None:
        """What has been expected long enough does not come."""
        while (deadline := self.find_next()) is not None and deadline <= now:
            _, session, seq = self._expected_until.popleft()
            for gate in self.expected.pop((session, seq))[1]:
                if gate.phase is GatePhase.SHUT:
                    gate.close(_render_unknown(session, seq, gate.flag, known.outcomes), error="InvalidDependency")
                    self._judge(gate)
                    if gate in self._latest:
                        self._latest.remove(gate)  # if it should come after all, it can be named

    def _expect(self, gate: Gate, session: Session, seq: int, now: float) -> None:
        found = self.expected.get((session, seq))
        if found is None:
            found = self.expected[(session, seq)] = (now + EXPECTED_S, [])
            self._expected_until.append((now + EXPECTED_S, session, seq))
        found[1].append(gate)

    # ------------------------------------------------------------ gates

    def _get_gate(self, info: m.DependencyInfo, is_follow: bool, work: Work, known: Known, now: float) -> Gate:
        for gate in self._latest:
            if gate.info == info and (gate.engines is not None) == is_follow and gate.phase is not GatePhase.LEFT:
                return gate
        gate = Gate(info, is_follow)
        unfinished, absent = _look_up(gate, work.client.session, known)
        if gate.phase is GatePhase.SHUT:
            for other in unfinished:
                _hang(gate, other)
            for session, seq in absent:
                self._expect(gate, session, seq, now)
        self._latest.append(gate)
        return gate

    def check(self, unfinished: Iterable[Work]) -> None:
        """Assert what must be true of every task that waits, and of what it waits for."""
        assert not self.verdicts, "somebody's waiting is over, and nobody told it"
        hanging: dict[Gate, int] = {}
        for _, gates in self.expected.values():
            for gate in gates:
                hanging[gate] = hanging.get(gate, 0) + 1
        assert len(self.expected) <= len(self._expected_until)
        waiting: dict[Gate, set[Work]] = {}
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
                    waiting.setdefault(gate, set()).add(work)
        assert self.waiting == count, f"{count} tasks wait for requests, counted {self.waiting}"
        for gate, works in waiting.items():
            assert works <= set(gate.works) and gate.waiting == len(works), f"{len(works)} wait, not {gate.waiting}"
            assert gate.pending == hanging.get(gate, 0) > 0, f"{gate.pending} pending, hangs on {hanging.get(gate, 0)}"


def _hang(gate: Gate, work: Work) -> None:
    if work.dependents is None:
        work.dependents = Dependents()
    work.dependents.add(gate)


def _look_up(gate: Gate, own: Session, known: Known) -> tuple[list[Work], list[tuple[Session, int]]]:
    """Let a new gate know which of its requests have ended; returns those that have not, and those not here yet.

    Raises:
        Doomed: One of them cannot come.
    """
    info, outcomes = gate.info, known.outcomes
    unfinished: list[Work] = []
    absent: list[tuple[Session, int]] = []
    spans = [_parse(text, gate.flag) for text in info.msg_ids]
    gate.named = gate.pending = sum(len(seqs) for _, seqs in spans)
    # Where good ends change nothing but the number, they are passed over by whole pages.
    is_counting = info.all and info.success and gate.engines is None
    for session, seqs in spans:
        # One's own came before, on the same connection.
        may_come = session != own and known.is_connected(session)
        looked_at = 0
        for seq in outcomes.iterate_but_good(session, seqs) if is_counting else seqs:
            looked_at += 1
            work = known.find_work(session, seq)
            if work is not None:
                unfinished.append(work)
                continue
            outcome, engine_id = outcomes.find(session, seq)
            if outcome is not Outcome.UNKNOWN:
                gate.count(outcome is Outcome.OK, engine_id, partial(_render_outcome, session, seq, outcome))
            elif may_come and len(absent) < EXPECTED_MAX:
                absent.append((session, seq))
            else:
                raise Doomed("InvalidDependency", _render_unknown(session, seq, gate.flag, outcomes))
        if is_counting:
            gate.pending -= len(seqs) - looked_at
    if is_counting and not gate.pending and gate.phase is GatePhase.SHUT:
        gate.move(GatePhase.OPEN)
    return unfinished, absent


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


def shorten(text: str) -> str:
    """The first line of an error's text, if it is short; else its beginning."""
    line = text.split("\n", 1)[0]
    return line if len(line) <= TEXT_SHOWN_MAX else f"{line[:TEXT_SHOWN_MAX]}…"
