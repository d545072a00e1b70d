"""Everything the controller knows, and what must always be true of it. No sockets, clock, files or threads.

Decisions are plain functions ``on_x(core, out, …)`` over a Core: which one is called for what is in dispatch.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hpcviews.controller.deadlines import Deadlines
from hpcviews.controller.deliveries import Deliveries
from hpcviews.controller.dependencies import Dependencies
from hpcviews.controller.early import Early
from hpcviews.controller.finished import Finished
from hpcviews.controller.functions import FunctionTable
from hpcviews.controller.outcomes import Outcomes
from hpcviews.controller.scheduler import Scheduler
from hpcviews.controller.state import Client, Ending, EndingPhase, Engine, EngineSet, Route, SetPhase, Work, WorkPhase
from hpcviews.ids import EngineId, RunKey, Session, SetId
from hpcviews.wire import messages as m

GONE_ENGINES_KEPT = 10_000
"""How many lost engines are remembered, for `status` and for clients that have not heard of the loss yet."""


@dataclass(frozen=True)
class Identity:
    """Who this controller is; constant during its life."""

    cluster: str
    generation: str
    version: str
    python: str
    host: str
    pid: int
    started: float
    """Unix time, seconds."""
    endpoints: tuple[str, ...] = ()
    started_monotonic: float = 0.0
    """The same moment in the loop's seconds, which the core's events are told in."""
    room: str = ""
    """Whom the controller shares memory with; see wire/room.py."""

    def render_time(self, now: float) -> float:
        """The loop's seconds as Unix time."""
        return self.started + now - self.started_monotonic


@dataclass(frozen=True, slots=True)
class Gone:
    """An engine that is not there any more."""

    info: m.EngineInfo
    completed: int
    why: str


@dataclass
class Core:
    """Everything the controller knows."""

    identity: Identity
    clients: dict[Route, Client] = field(default_factory=dict)
    sessions: dict[Session, list[Client]] = field(default_factory=dict)
    """Clients by what their msg_ids begin with: those that are connected, and those that are gone and whose requests
    go on. Mostly one; a client that connects anew is another one of the same session."""
    engines: dict[EngineId, Engine] = field(default_factory=dict)
    engine_by_route: dict[Route, Engine] = field(default_factory=dict)
    neighbours: dict[str, dict[EngineId, Engine]] = field(default_factory=dict)
    """The engines in each room, those in none left out."""
    sets: dict[SetId, EngineSet] = field(default_factory=dict)
    gone: dict[EngineId, Gone] = field(default_factory=dict)
    """Engines that are not there any more."""
    functions: FunctionTable = field(default_factory=FunctionTable)
    scheduler: Scheduler = field(default_factory=Scheduler)
    dependencies: Dependencies = field(default_factory=Dependencies)
    deadlines: Deadlines = field(default_factory=Deadlines)
    outcomes: Outcomes = field(default_factory=Outcomes)
    deliveries: Deliveries = field(default_factory=Deliveries)
    finished: Finished = field(default_factory=Finished)
    early: Early = field(default_factory=Early)
    next_engine_id: int = 0
    next_key: int = 0
    stopping: str = ""
    """Why the cluster is ending; "" while it is not."""
    endings: list[Ending] = field(default_factory=list)
    """What clients want to end, and has not."""
    late_replies: int = 0
    malformed: int = 0

    def take_key(self) -> RunKey:
        """A run key never used before."""
        self.next_key += 1
        return RunKey(self.next_key)

    def remember_gone(self, engine: Engine, why: str) -> None:
        """An engine is not there any more."""
        self.gone[engine.id] = Gone(engine.info, engine.completed, why)
        while len(self.gone) > GONE_ENGINES_KEPT:
            del self.gone[next(iter(self.gone))]

    @property
    def expects_engines(self) -> bool:
        """Whether engines are being started, or will be in the place of others."""
        if self.stopping:
            return False
        return any(s.phase is SetPhase.STARTING for s in self.sets.values()) or any(
            ending.starts or ending.starting for ending in self.endings
        )

    def find_work(self, session: Session, seq: int) -> Work | None:
        """A request that has not ended, of any client."""
        for client in self.sessions.get(session, ()):
            work = client.works.get(seq)
            if work is not None:
                return work
        return None

    def is_connected(self, session: Session) -> bool:
        """Whether requests of this session may still come."""
        return any(client.is_listening for client in self.sessions.get(session, ()))

    def find_deadline(self) -> float | None:
        """When `dispatch.on_tick` has something to do that cannot wait, in the loop's seconds."""
        every = (self.deadlines.find_next(), self.dependencies.find_next(), self.early.find_next())
        return min((deadline for deadline in every if deadline is not None), default=None)

    def add_work(self, work: Work) -> None:
        """A request came."""
        work.client.works[work.seq] = work
        if self.dependencies.expected:
            self.dependencies.on_arrival(work)

    def add_client(self, client: Client) -> None:
        """A client connected."""
        self.clients[client.route] = client
        self.sessions.setdefault(client.session, []).append(client)

    def forget_if_over(self, client: Client) -> None:
        """After a client has gone, and after a request of such a one has ended: nobody will look here for it."""
        if client.is_listening or client.works:
            return
        clients = self.sessions.get(client.session, [])
        if client in clients:
            clients.remove(client)
            if not clients:
                del self.sessions[client.session]

    def iterate_unfinished(self) -> Iterator[Work]:
        """Every work that has not ended, each once; also those whose client is gone."""
        for clients in self.sessions.values():
            for client in clients:
                yield from client.works.values()

    def check(self) -> None:
        """Assert every invariant. O(everything); for tests and HPCVIEWS_DEBUG."""
        self.scheduler.check()
        self.deliveries.check()
        assert self.scheduler.engines == self.engines
        assert sorted(i for room in self.neighbours.values() for i in room) == sorted(
            i for i, e in self.engines.items() if e.info.room
        )
        assert {e.route: e for e in self.engines.values()} == self.engine_by_route
        uses: dict[bytes, int] = {}
        for engine in self.engines.values():
            assert list(engine.tasks.items()) == [(k, w) for k, w in engine.in_flight.items() if w.is_task]
            for key, work in engine.in_flight.items():
                assert work.key == key and work.engine is engine
                assert work.phase in (WorkPhase.SENT, WorkPhase.RECALLED), work.phase
                assert work.targets is None or engine.id in work.targets
                assert work.attempts is None or engine.id not in work.attempts.refused
        for client in self.clients.values():
            assert client in self.sessions[client.session]
        for session, clients in self.sessions.items():
            for client in clients:
                assert client.session == session and (client.works or self.clients.get(client.route) is client)
                for seq, work in client.works.items():
                    assert work.seq == seq and work.client is client
                    assert work.phase is not WorkPhase.ENDED, f"ended work {seq} is still waited for"
                    if work.phase in (WorkPhase.SENT, WorkPhase.RECALLED):
                        assert work.engine is not None and work.engine.in_flight.get(work.key) is work
        unfinished = list(self.iterate_unfinished())
        queued = sum(work.phase is WorkPhase.QUEUED for work in unfinished)
        assert queued == self.scheduler.waiting, f"{queued} tasks are queued, {self.scheduler.waiting} are in pools"
        held = sum(len(engine.in_flight) for engine in self.engines.values())
        assert held == sum(work.phase in (WorkPhase.SENT, WorkPhase.RECALLED) for work in unfinished)
        self.dependencies.check(unfinished)
        self.deadlines.check(unfinished)
        self.outcomes.check()
        self.finished.check()
        for place, (_, asked) in self.early.waiting.items():
            assert self.find_work(*place) is None and place not in self.finished.records, f"{place} has come"
            assert all(seq in client.following for client, seq in asked if client.is_listening)
        follows = [(client, seq, work) for client in self.clients.values() for seq, work in client.following.items()]
        for client, seq, followed in follows:
            assert seq not in client.works
            assert followed is None or (client, seq) in (followed.followers or ()), "a follower will not be told"
        followers = sum(len(work.followers or ()) for work in unfinished)
        assert followers == sum(followed is not None for _, _, followed in follows), "told, and does not follow"
        for work in unfinished:
            if work.function:
                uses[work.function] = uses.get(work.function, 0) + 1
        for digest, entry in self.functions.entries.items():
            assert entry.uses == uses.pop(digest, 0), "function use count is off"
            assert entry.uses or entry.holders, "an unused function was kept"
            for engine in entry.engines:
                assert digest in engine.functions
        assert not uses, "a request names a function that is gone"
        for engine_set in self.sets.values():
            for engine_id in engine_set.engines:
                assert self.engines[engine_id].info.set_id == engine_set.id
            assert engine_set.released <= set(engine_set.ids)
        for ending in self.endings:
            assert ending.phase is not EndingPhase.OVER
            if ending.phase is EndingPhase.ENDING:
                assert ending.is_waiting, "nothing is waited for, and the client was not told"
            else:
                assert ending.starting and not ending.is_waiting
            assert all(self.engines[engine_id].ending for engine_id in ending.engines)
            assert not any(self.sets[set_id].is_over for set_id in ending.sets)
