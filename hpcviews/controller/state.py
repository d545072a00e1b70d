"""The controller's records, and the states they move through."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from hpcviews.ids import Digest, EngineId, MsgId, RunKey, Session, SetId, render_msg_id
from hpcviews.wire import messages as m

if TYPE_CHECKING:
    from hpcviews.controller.attempts import Attempts
    from hpcviews.controller.gates import Dependents, Terms
    from hpcviews.controller.kept_output import KeptOutput

Frames = list[Any]
"""Payload frames (zmq.Frame), which the core hands on unread."""

Route = bytes
"""A connection of the controller's, as the shell names it. A peer that reconnects has a new one."""


class IllegalMove(AssertionError):
    """A record was to move where its table does not allow; our bug."""


# ---------------------------------------------------------------- engine sets


class SetPhase(enum.Enum):
    """States of an engine set."""

    STARTING = "starting"
    READY = "ready"
    """All its engines have registered."""
    DEGRADED = "degraded"
    """Some of its engines are lost; its process runs."""
    STOPPING = "stopping"
    ENDED = "ended"
    """Its process is gone, as asked."""
    FAILED = "failed"
    """Its process is gone, not as asked."""


SET_MOVES: Mapping[SetPhase, frozenset[SetPhase]] = {
    SetPhase.STARTING: frozenset({SetPhase.READY, SetPhase.DEGRADED, SetPhase.STOPPING, SetPhase.FAILED}),
    SetPhase.READY: frozenset({SetPhase.DEGRADED, SetPhase.STOPPING, SetPhase.FAILED}),
    SetPhase.DEGRADED: frozenset({SetPhase.READY, SetPhase.STOPPING, SetPhase.FAILED}),
    SetPhase.STOPPING: frozenset({SetPhase.ENDED, SetPhase.FAILED}),
    SetPhase.ENDED: frozenset(),
    SetPhase.FAILED: frozenset(),
}


@dataclass(slots=True)
class EngineSet:
    """Engines that were started together."""

    id: SetId
    launcher: str
    ids: Sequence[EngineId]
    """Of the engines that were started, by their index."""
    is_world: bool
    log: str
    phase: SetPhase = SetPhase.STARTING
    why: str = ""
    error: str = ""
    engines: set[EngineId] = field(default_factory=set)
    """Those that are registered now."""
    released: set[EngineId] = field(default_factory=set)
    """Those that a client has ended: it goes on without them, and nothing is wrong with it."""
    story: deque[str] = field(default_factory=lambda: deque(maxlen=16))

    def move(self, to: SetPhase, why: str = "", error: str = "") -> None:
        """Go to another phase."""
        self.story.append(f"{self.phase.value} -> {to.value} ({why.splitlines()[0] if why else 'no reason'})")
        if to not in SET_MOVES[self.phase]:
            raise IllegalMove(f"engine set {self.id}: " + "; ".join(self.story))
        self.phase, self.why, self.error = to, why, error

    @property
    def n(self) -> int:
        """How many engines it is to have."""
        return len(self.ids) - len(self.released)

    @property
    def is_whole_world(self) -> bool:
        """Whether it is an MPI world that has all its ranks: without one, MPI_Finalize of the others never returns."""
        return self.is_world and len(self.engines) == len(self.ids)

    @property
    def is_over(self) -> bool:
        """Whether its process is gone."""
        return self.phase in (SetPhase.ENDED, SetPhase.FAILED)

    def info(self) -> m.SetInfo:
        """As clients see it."""
        return m.SetInfo(self.id, self.launcher, self.n, self.phase.value, self.why, self.error, self.log)


# ---------------------------------------------------------------- peers


# Without dataclass's own repr: these records refer to each other, and it would show all of the controller.


@dataclass(slots=True, eq=False, repr=False)
class Client:
    """A connected client."""

    route: Route
    session: Session
    host: str
    pid: int
    works: dict[int, Work] = field(default_factory=dict)
    """What it waits for, by seq."""
    following: dict[int, Work | None] = field(default_factory=dict)
    """Requests of others whose results it is to get under numbers of its own; None while the archive is asked."""
    is_listening: bool = True
    """False once its connection is gone: results of it have nowhere to go."""
    room: str = ""
    """Whom it shares memory with; "" for nobody."""
    party: str = ""
    """What the names of its segments have in them."""
    is_clearing: bool = False
    """It is gone, and they are to be removed when its last request has ended."""


@dataclass(slots=True, eq=False, repr=False)
class Engine:
    """A registered engine."""

    id: EngineId
    route: Route
    info: m.EngineInfo
    in_flight: dict[RunKey, Work] = field(default_factory=dict)
    """Handed to it and not answered, oldest first."""
    tasks: dict[RunKey, Work] = field(default_factory=dict)
    """Those in flight that are tasks, oldest first: what can be recalled is found among them, however many requests
    wait here."""
    functions: set[Digest] = field(default_factory=set)
    """Those it has been sent."""
    completed: int = 0
    credit: int = 1
    """How many requests the scheduler lets it hold at most."""
    run_time_s: float | None = None
    """Smoothed run time of its tasks; None before the first."""
    ending: str = ""
    """What a client has done to it, as "was killed by a client"; "" while it is to live."""
    moved_at: float = 0.0
    """When it last took or answered something, in the loop's monotonic seconds."""
    pools: list[Any] = field(default_factory=list)
    """The scheduler's pools it belongs to."""
    party: str = ""
    """What the names of its segments have in them; "" when those have been cleared away."""

    @property
    def load(self) -> int:
        """Requests it holds."""
        return len(self.in_flight)

    def hold(self, work: Work) -> None:
        """It was handed to it."""
        self.in_flight[work.key] = work
        if work.is_task:
            self.tasks[work.key] = work

    def take(self, key: RunKey) -> Work | None:
        """It answered or gave back this attempt, which is None if it does not hold it."""
        self.tasks.pop(key, None)
        return self.in_flight.pop(key, None)

    def take_all(self) -> list[Work]:
        """It is gone."""
        works = list(self.in_flight.values())
        self.in_flight.clear()
        self.tasks.clear()
        return works


# ---------------------------------------------------------------- requests and tasks


NO_KEY = RunKey(-1)


class WorkPhase(enum.IntEnum):
    """States of a request for one engine, or of a task."""

    WAITING = 0
    """A task that waits for the end of other requests."""
    QUEUED = 1
    """A task that waits for an engine."""
    SENT = 2
    """Handed to an engine; it may have started."""
    RECALLED = 3
    """Asked back from its engine, which has not answered yet."""
    ENDED = 4
    """Answered to the client, or dropped with it."""


WORK_MOVES: Mapping[WorkPhase, frozenset[WorkPhase]] = {
    WorkPhase.WAITING: frozenset({WorkPhase.QUEUED, WorkPhase.ENDED}),
    WorkPhase.QUEUED: frozenset({WorkPhase.SENT, WorkPhase.ENDED}),
    WorkPhase.SENT: frozenset({WorkPhase.QUEUED, WorkPhase.RECALLED, WorkPhase.ENDED}),
    WorkPhase.RECALLED: frozenset({WorkPhase.QUEUED, WorkPhase.SENT, WorkPhase.ENDED}),
    WorkPhase.ENDED: frozenset(),
}


@dataclass(slots=True, eq=False, repr=False)
class Work:
    """A request of a client for one engine (`is_task` False), or a task (True)."""

    client: Client
    seq: int
    op: str
    function: Digest
    data: bytes
    frames: Frames
    is_task: bool
    targets: frozenset[EngineId] | None
    retries: int
    label: str = ""
    submitted: float = 0.0
    """When it came, in the loop's monotonic seconds; `Identity.render_time` makes a Unix time of it."""
    phase: WorkPhase = WorkPhase.QUEUED
    engine: Engine | None = None
    key: RunKey = NO_KEY
    is_aborting: bool = False
    may_share: bool = False
    """Its client is ready for a result in shared memory."""
    terms: Terms | None = None
    """What a task waits for beside an engine, when it does."""
    dependents: Dependents | None = None
    """What waits for its end."""
    attempts: Attempts | None = None
    """What became of earlier attempts; None at the first."""
    barred: frozenset[EngineId] | None = None
    """Engines that it must not go to now: they refused it, or failed it while others have not tried it."""
    share: int = 1
    """How many requests have this payload in common."""
    output: KeptOutput | None = None
    """What it has written, when it has."""
    followers: list[tuple[Client, int]] | None = None
    """Who is to get its result beside its client, and under which number."""

    @property
    def msg_id(self) -> MsgId:
        """What users call it."""
        return render_msg_id(self.client.session, self.seq)

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for other requests."""
        return self.phase is WorkPhase.WAITING

    def move(self, to: WorkPhase) -> None:
        """Go to another phase."""
        if to not in WORK_MOVES[self.phase]:
            raise IllegalMove(f"{self!r}: {self.phase.name} -> {to.name}")
        self.phase = to

    def __repr__(self) -> str:
        return (
            f"<{'task' if self.is_task else 'request'} {self.client.session}-{self.seq}: {self.phase.name}, "
            f"engine {self.engine.id if self.engine else None}, key {self.key}>"
        )


# ---------------------------------------------------------------- engines that clients end


class EndingPhase(enum.Enum):
    """States of a client's wish that engines end."""

    ENDING = "ending"
    """They have been told, or killed, and are not all gone."""
    STARTING = "starting"
    """They are gone, and others are being started in their place."""
    OVER = "over"
    """The client has been told."""


ENDING_MOVES: Mapping[EndingPhase, frozenset[EndingPhase]] = {
    EndingPhase.ENDING: frozenset({EndingPhase.STARTING, EndingPhase.OVER}),
    EndingPhase.STARTING: frozenset({EndingPhase.OVER}),
    EndingPhase.OVER: frozenset(),
}


@dataclass(slots=True, eq=False, repr=False)
class Ending:
    """A client's wish that engines end, and perhaps that others take their place."""

    client: Client
    seq: int
    engines: set[EngineId]
    """Those that are still registered."""
    processes: set[EngineId]
    """Those of which it is not known that their process is gone."""
    sets: set[SetId]
    """Whole sets that have not ended."""
    starts: list[tuple[SetId, tuple[EngineId, ...]]] = field(default_factory=list)
    """What to start when all are gone: sets like these, with these ids."""
    starting: set[tuple[EngineId, ...]] = field(default_factory=set)
    """Those of `starts` that have been ordered and not answered."""
    error: str = ""
    why: str = ""
    """The first thing that went wrong: class in errors.py, and text."""
    phase: EndingPhase = EndingPhase.ENDING

    @property
    def is_waiting(self) -> bool:
        """Whether something of it is still there."""
        return bool(self.engines or self.processes or self.sets)

    def note_error(self, error: str, why: str) -> None:
        """Something went wrong."""
        if not self.error:
            self.error, self.why = error, why

    def move(self, to: EndingPhase) -> None:
        """Go to another phase."""
        if to not in ENDING_MOVES[self.phase]:
            raise IllegalMove(f"ending {self.seq} of client {self.client.session}: {self.phase.name} -> {to.name}")
        self.phase = to


P = TypeVar("P", bound=enum.Enum)


def render_moves(moves: Mapping[P, frozenset[P]]) -> str:
    """A table of moves as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2"]
    for source, targets in moves.items():
        for target in sorted(targets, key=list(moves).index):
            lines.append(f"    {source.name} --> {target.name}")
    return "\n".join(lines)
