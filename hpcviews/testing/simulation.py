"""A discrete-event simulation around the controller's real core: thousands of engines, no sockets, a clock of its own.

The core is the one that runs in production, driven by the messages that it would get. Simulated are the engines (one
after the other they run what they hold, in order), the network (a fixed delay) and the client. So what is measured
here, the schedule and the core's work per event, is the core's own doing.
"""

from __future__ import annotations

import heapq
import itertools
import random
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hpcviews.controller import dispatch
from hpcviews.controller.core import Core, Identity
from hpcviews.controller.events import Order, SetStarted
from hpcviews.controller.loop import RECALL_CHECK_S
from hpcviews.controller.state import Frames, Route
from hpcviews.ids import SetId
from hpcviews.wire import messages as m

NETWORK_S = 100e-6
"""One way between any two processes: a message over a local socket or a fast network takes 50 to 150 µs."""

VERSION, PYTHON = "simulated", "3"

_DURATION = struct.Struct("<d")


class Span(NamedTuple):
    """An attempt at a task that ended."""

    engine: int
    started: float
    ended: float
    is_lost: bool
    """Its engine died in the middle."""


@dataclass
class SimulatedEngine:
    """Runs what it is handed, in order."""

    index: int
    route: Route
    speed: float = 1.0
    """2 runs everything in half the time."""
    queue: deque[tuple[int, float]] = field(default_factory=deque)
    """Key and duration of what it holds and has not started."""
    running: tuple[int, float] | None = None
    started: float = 0.0
    is_alive: bool = True
    busy_s: float = 0.0


class _Effects:
    """The core's Outbox."""

    def __init__(self, simulation: Simulation):
        self._simulation = simulation
        self.wants_scheduling = False
        self.is_finished = False

    def send(self, route: Route, message: m.Message, frames: Frames | None = None) -> None:
        self._simulation.carry(route, message)

    def order(self, order: Order) -> None:
        pass  # there are no processes

    def hold(self, frames: Frames) -> Frames:
        return frames

    def clear_segments(self, party: str) -> None:
        pass  # nor any shared memory

    def ask_for_scheduling(self) -> None:
        self.wants_scheduling = True

    def finish(self) -> None:
        self.is_finished = True


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to."""

    makespan_s: float
    """From the first submission to the last result at the client, in simulated seconds."""
    lower_bound_s: float
    """No schedule can be shorter: all work on all engines that were there, and the longest task by itself."""
    events: int
    """Messages and ticks that the core handled."""
    core_s: float
    """Seconds of this machine that the core took for them."""
    results: int
    failures: int
    attempts: int
    recalls: int
    """Tasks that were asked back from an engine."""
    queue_max: int
    """Most tasks that waited in the controller at once."""


class Simulation:
    """Drives a Core through simulated time.

    Args:
        n: Engines that are there from the beginning.
        speeds: How fast each is, 1.0 where it is not said.
        check: Assert the core's invariants after every event. O(everything) each.
        keep_spans: Remember who ran what when, for `spans`; memory for each attempt.
    """

    def __init__(
        self, n: int, *, speeds: Sequence[float] = (), check: bool = False, keep_spans: bool = False, set_size: int = 0
    ):
        self.now = 0.0
        self.core = Core(Identity("simulation", "g", VERSION, PYTHON, "nowhere", 1, 0.0))
        self.engines: dict[Route, SimulatedEngine] = {}
        self.spans: list[Span] = []
        self.results: dict[int, m.Result] = {}
        self._out = _Effects(self)
        self._check = check
        self._keep_spans = keep_spans
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._client = b"client"
        self._next_index = 0
        self._durations: dict[int, float] = {}
        self._events = 0
        self._core_s = 0.0
        self._attempts = 0
        self._recalls = 0
        self._queue_max = 0
        self._first_submission: float | None = None
        self._last_result = 0.0
        self._is_ticking = False
        self._capacity: list[tuple[float, float]] = []
        """Changes of the sum of all speeds: when, and by how much."""
        size = set_size or n
        dispatch.on_event(self.core, self._out, SetStarted(SetId(0), "simulated", size, False, ""))
        self._tell(self._client, m.ClientHello(VERSION, PYTHON, "c" * 16, "nowhere", 2))
        for index in range(n):
            self.join(speeds[index] if index < len(speeds) else 1.0)

    # ------------------------------------------------------------ what a scenario does

    def join(self, speed: float = 1.0) -> SimulatedEngine:
        """An engine registers now."""
        index = self._next_index
        self._next_index += 1
        engine = SimulatedEngine(index, b"e%d" % index, speed)
        self.engines[engine.route] = engine
        self._capacity.append((self.now, speed))
        info = m.EngineInfo(-1, f"u{index}", 0, index, None, None, 0, "nowhere", 10 + index, PYTHON, "", 0.0)
        self._tell(engine.route, m.EngineHello(VERSION, PYTHON, info, ""))
        return engine

    def lose(self, engine: SimulatedEngine) -> None:
        """An engine dies now."""
        if not engine.is_alive:
            return
        engine.is_alive = False
        self._capacity.append((self.now, -engine.speed))
        if engine.running is not None:
            self._note(engine, is_lost=True)
        engine.queue.clear()
        engine.running = None
        del self.engines[engine.route]
        self._handle(lambda: dispatch.on_disconnect(self.core, self._out, engine.route, "was killed"))

    def submit(
        self,
        durations: Sequence[float],
        *,
        first: int | None = None,
        targets: list[int] | None = None,
        retries: int = 0,
        conditions: m.Conditions | None = None,
    ) -> range:
        """Submit a task per duration (seconds on an engine of speed 1) now; returns their numbers."""
        start = len(self._durations) if first is None else first
        if self._first_submission is None:
            self._first_submission = self.now
        for seq, duration in enumerate(durations, start):
            self._durations[seq] = duration
            data = _DURATION.pack(duration)
            self._tell(
                self._client, m.Task(data, 0, seq, "apply", b"", targets, retries, conditions=conditions), settle=False
            )
        self._settle()
        return range(start, start + len(durations))

    def at(self, when: float, do: Callable[..., object], *args: Any) -> None:
        """Call something at a simulated time."""
        heapq.heappush(self._heap, (when, next(self._order), do, args))

    def run(self, until: float | None = None) -> None:
        """Let time pass until nothing more happens, or to a moment."""
        heap = self._heap
        while heap and (until is None or heap[0][0] <= until):
            self.now, _, do, args = heapq.heappop(heap)
            do(*args)
        if until is not None:
            self.now = max(self.now, until)

    def get_outcome(self) -> Outcome:
        """What has come of it so far."""
        start = self._first_submission or 0.0
        return Outcome(
            makespan_s=self._last_result - start,
            lower_bound_s=self._compute_lower_bound(start),
            events=self._events,
            core_s=self._core_s,
            results=len(self.results),
            failures=sum(result.error is not None for result in self.results.values()),
            attempts=self._attempts,
            recalls=self._recalls,
            queue_max=self._queue_max,
        )

    def _compute_lower_bound(self, start: float) -> float:
        work = sum(self._durations.values())
        fastest = max((engine.speed for engine in self.engines.values()), default=1.0)
        longest = max(self._durations.values(), default=0.0) / fastest
        done, speed, moment = 0.0, 0.0, start
        for when, change in self._capacity:
            if when > moment and speed > 0:
                if done + speed * (when - moment) >= work:
                    break
                done += speed * (when - moment)
            moment = max(moment, when)
            speed += change
        whole = moment - start + ((work - done) / speed if speed > 0 else 0.0)
        return max(whole, longest)

    # ------------------------------------------------------------ the network

    def carry(self, route: Route, message: m.Message) -> None:
        """A message leaves the controller."""
        self.at(self.now + NETWORK_S, self._arrive, route, message)

    def _arrive(self, route: Route, message: m.Message) -> None:
        if route == self._client:
            if isinstance(message, m.Result):
                assert message.seq not in self.results, f"task {message.seq} has two results"
                self.results[message.seq] = message
                self._last_result = self.now
            return
        engine = self.engines.get(route)
        if engine is None:
            return  # it died while this was on its way
        if isinstance(message, m.Run):
            self._attempts += 1
            (duration,) = _DURATION.unpack(message.data)
            engine.queue.append((message.key, duration / engine.speed))
            if engine.running is None:
                self._start_next(engine)
        elif isinstance(message, m.Withdraw):
            self._recalls += len(message.keys)
            wanted = set(message.keys)
            back = [key for key, _ in engine.queue if key in wanted]
            engine.queue = deque(entry for entry in engine.queue if entry[0] not in wanted)
            refused = sorted(wanted - set(back))
            self.at(self.now + NETWORK_S, self._tell_if_alive, engine, m.Withdrawn(back, refused))

    def _start_next(self, engine: SimulatedEngine) -> None:
        if not engine.queue:
            engine.running = None
            return
        engine.running = engine.queue.popleft()
        engine.started = self.now
        self.at(self.now + engine.running[1], self._end_task, engine, engine.running[0])

    def _end_task(self, engine: SimulatedEngine, key: int) -> None:
        if not engine.is_alive or engine.running is None or engine.running[0] != key:
            return
        engine.busy_s += self.now - engine.started
        self._note(engine, is_lost=False)
        done = m.Done(b"", 0, key, engine.started, self.now, None)
        self.at(self.now + NETWORK_S, self._tell_if_alive, engine, done)
        self._start_next(engine)

    def _note(self, engine: SimulatedEngine, is_lost: bool) -> None:
        if self._keep_spans and engine.running is not None:
            self.spans.append(Span(engine.index, engine.started, self.now, is_lost))

    def _tell_if_alive(self, engine: SimulatedEngine, message: m.Message) -> None:
        if engine.is_alive:
            self._tell(engine.route, message)

    # ------------------------------------------------------------ the controller's shell

    def _tell(self, route: Route, message: m.Message, settle: bool = True) -> None:
        role = "client" if route == self._client else "engine"
        self._handle(lambda: dispatch.on_message(self.core, self._out, route, role, message, [], self.now), settle)

    def _handle(self, handle: Callable[[], None], settle: bool = True) -> None:
        self._events += 1
        began = time.perf_counter()
        handle()
        self._core_s += time.perf_counter() - began
        if self._check:
            self.core.check()
        if settle:
            self._settle()

    def _settle(self) -> None:
        began = time.perf_counter()
        self._queue_max = max(self._queue_max, self.core.scheduler.waiting)
        if self._out.wants_scheduling:
            self._out.wants_scheduling = False
            dispatch.on_schedule(self.core, self._out, self.now)
        must_tick = self.core.scheduler.may_recall
        self._core_s += time.perf_counter() - began
        if self._check:
            self.core.check()
        if must_tick and not self._is_ticking:
            self._is_ticking = True
            self.at(self.now + RECALL_CHECK_S, self._tick)

    def _tick(self) -> None:
        self._is_ticking = False
        self._handle(lambda: dispatch.on_tick(self.core, self._out, self.now))


def compute_greedy_makespan(durations: Sequence[float], speeds: Sequence[float]) -> float:
    """What list scheduling gives where placing costs nothing: each task, in order, to whoever is free first."""
    free = [(0.0, index) for index in range(len(speeds))]
    heapq.heapify(free)
    end = 0.0
    for duration in durations:
        at, index = heapq.heappop(free)
        at += duration / speeds[index]
        end = max(end, at)
        heapq.heappush(free, (at, index))
    return end


def run_random_scenario(seed: int, *, engines_max: int = 12, tasks_max: int = 120) -> Simulation:
    """A seeded scenario: mixed durations, stragglers, joins, losses; the core is checked after every event.

    Raises:
        AssertionError: An invariant broke, a task has no result, or more than one.
    """
    chance = random.Random(seed)
    n = chance.randint(1, engines_max)
    joins = chance.randint(0, 3)
    speeds = [chance.choice([1.0, 1.0, 1.0, 0.1, 3.0]) for _ in range(n)]
    simulation = Simulation(n, speeds=speeds, check=True, keep_spans=True, set_size=n + joins + 3)
    scale = chance.choice([1e-4, 1e-2, 1.0])
    submitted = 0
    for _ in range(chance.randint(1, 3)):
        count = chance.randint(0, tasks_max)
        durations = [scale * chance.choice([1, 1, 1, 1, 10, 100]) * chance.random() for _ in range(count)]
        targets = chance.choice([None, None, None, [0]])
        simulation.submit(durations, targets=targets, retries=chance.choice([0, 0, 5]))
        submitted += count
        simulation.run(until=simulation.now + chance.random() * scale * 20)
    for _ in range(joins):
        simulation.at(simulation.now + chance.random() * scale * 50, simulation.join)
    for engine in list(simulation.engines.values()):
        if chance.random() < 0.2 and engine.index:
            simulation.at(simulation.now + chance.random() * scale * 50, simulation.lose, engine)
    simulation.run()
    assert len(simulation.results) == submitted, f"seed {seed}: {submitted} tasks, {len(simulation.results)} results"
    return simulation
