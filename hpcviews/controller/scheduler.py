"""Which engine runs which task: pure, and O(1) amortised per event whatever the number of engines.

Tasks wait in *pools*, one per set of engines they may run on (usually one: any engine). In a pool every client has
its own queue and they take turns. A task goes to the engine with the fewest requests among those below their
*credit*. Credit follows measured run time, so that an engine holds about `WORK_AHEAD_S` of work: no-op tasks stream,
minute-long ones are placed one by one. What an engine holds but has not started can be *recalled* for an idle one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator

from hpcviews.controller.state import Client, Engine, Work, WorkPhase
from hpcviews.ids import EngineId

WORK_AHEAD_S = 0.010
"""How much work an engine may hold: enough to hide a round trip of a loaded controller (some ms) many times."""

CREDIT_MAX = 1024
"""Bounds what one lost engine can take with it."""

PAIR_RUN_TIME_S = 0.5
"""Tasks shorter than this are handed out two at a time: the second one hides the round trip (about 0.2 ms), and can
be recalled. For longer ones the round trip is below 0.1 % anyway."""

RECALL_AFTER_S = 0.005
"""An engine that has neither taken nor answered anything for so long is taken to be busy with a long task."""

_SMOOTHING = 0.3
"""Weight of the latest run time: three tasks tell most of the story, one straggler does not."""


class LoadIndex:
    """Engines by load: the least and the most loaded one in O(1) amortised."""

    __slots__ = ("_buckets", "_load_of", "_lowest")

    def __init__(self) -> None:
        self._buckets: list[dict[EngineId, Engine]] = [{}]
        self._load_of: dict[EngineId, int] = {}
        self._lowest = 0

    def __len__(self) -> int:
        return len(self._load_of)

    def put(self, engine: Engine, load: int) -> None:
        """Add an engine, or move it to another load."""
        present = self._load_of.get(engine.id)
        if present is not None:
            if present == load:
                return
            del self._buckets[present][engine.id]
        while len(self._buckets) <= load:
            self._buckets.append({})
        self._buckets[load][engine.id] = engine
        self._load_of[engine.id] = load
        if load < self._lowest:
            self._lowest = load

    def remove(self, engine: Engine) -> None:
        """Take an engine out, if it is in."""
        present = self._load_of.pop(engine.id, None)
        if present is not None:
            del self._buckets[present][engine.id]

    def find_lowest(self) -> Engine | None:
        """The engine with the smallest load; among equals the one that has it longest."""
        if not self._load_of:
            return None
        buckets = self._buckets
        while not buckets[self._lowest]:
            self._lowest += 1
        return next(iter(buckets[self._lowest].values()))

    def iterate_from_highest(self) -> Iterator[Engine]:
        """Engines, the most loaded first."""
        while len(self._buckets) > 1 and not self._buckets[-1]:
            self._buckets.pop()
        self._lowest = min(self._lowest, len(self._buckets) - 1)
        for bucket in reversed(self._buckets):
            yield from bucket.values()

    def load_of(self, engine: Engine) -> int | None:
        """The load an engine is filed under; None when it is not in."""
        return self._load_of.get(engine.id)


PoolKey = Hashable
"""The engines that tasks may run on; with those they are barred from, if there are such: only those pay for a pair."""


def _make_key(work: Work) -> PoolKey:
    return work.targets if work.barred is None else (work.targets, work.barred)


class Pool:
    """Tasks that may run on the same engines."""

    __slots__ = ("barred", "count", "key", "members", "queues", "room", "targets")

    def __init__(self, key: PoolKey, targets: frozenset[EngineId] | None, barred: frozenset[EngineId] | None):
        self.key = key
        self.targets = targets
        self.barred = barred
        self.members = 0
        """How many of its engines are there."""
        self.room = LoadIndex()
        """Its engines that are below their credit."""
        self.queues: dict[Client, deque[Work]] = {}
        """Waiting tasks; the first client's turn is next. May hold ended ones, which are passed over."""
        self.count = 0
        """Waiting tasks that have not ended."""

    def admits(self, engine: Engine) -> bool:
        """Whether its tasks may run on `engine`."""
        if self.barred is not None and engine.id in self.barred:
            return False
        return self.targets is None or engine.id in self.targets

    def put(self, work: Work, in_front: bool) -> None:
        """Add a task; those that were out already go in front."""
        queue = self.queues.get(work.client)
        if queue is None:
            queue = self.queues[work.client] = deque()
        if in_front:
            queue.appendleft(work)
        else:
            queue.append(work)
        self.count += 1

    def take_next(self) -> Work | None:
        """The task whose turn it is."""
        while self.queues:
            client, queue = next(iter(self.queues.items()))
            work = None
            while queue:
                candidate = queue.popleft()
                if candidate.phase is WorkPhase.QUEUED:
                    work = candidate
                    break
            del self.queues[client]
            if queue:
                self.queues[client] = queue  # to the end: the next client's turn
            if work is not None:
                self.count -= 1
                return work
        return None

    def note_ended(self) -> None:
        """A task of this pool ended while it waited; its empty record stays in the queue until its turn."""
        self.count -= 1
        if not self.count:
            self.queues.clear()


class Scheduler:
    """All waiting tasks and the load of all engines."""

    def __init__(self) -> None:
        self.engines: dict[EngineId, Engine] = {}
        self.loads = LoadIndex()
        self.tasks_held = LoadIndex()
        """Engines by the number of tasks they hold: what can be recalled, however many requests wait beside them."""
        self._anywhere = Pool(None, None, None)
        self.pools: dict[PoolKey, Pool] = {None: self._anywhere}
        self._ready: OrderedDict[Pool, None] = OrderedDict()
        """Pools that may have both a task and an engine for it, the next one first: with a pool for each engine, as
        tasks that follow others have, looking at all of them for each task would be too much."""

    @property
    def waiting(self) -> int:
        """Tasks that wait for an engine."""
        return sum(pool.count for pool in self.pools.values())

    # ------------------------------------------------------------ engines

    def add_engine(self, engine: Engine) -> None:
        """An engine registered."""
        self.engines[engine.id] = engine
        engine.pools = [pool for pool in self.pools.values() if pool.admits(engine)]
        for pool in engine.pools:
            pool.members += 1
        self.update_load(engine)

    def remove_engine(self, engine: Engine) -> None:
        """An engine is gone."""
        del self.engines[engine.id]
        self.loads.remove(engine)
        self.tasks_held.remove(engine)
        for pool in engine.pools:
            pool.room.remove(engine)
            pool.members -= 1
        engine.pools = []

    def update_load(self, engine: Engine) -> None:
        """An engine's load or credit changed."""
        load = len(engine.in_flight)
        self.loads.put(engine, load)
        self.tasks_held.put(engine, len(engine.tasks))
        if load < engine.credit:
            for pool in engine.pools:
                pool.room.put(engine, load)
                if pool.count:
                    self._ready[pool] = None
        else:
            for pool in engine.pools:
                pool.room.remove(engine)

    def learn(self, engine: Engine, run_time_s: float) -> None:
        """An engine finished a task that took so long; its credit follows."""
        known = engine.run_time_s
        smoothed = run_time_s if known is None else known + _SMOOTHING * (run_time_s - known)
        engine.run_time_s = smoothed = max(smoothed, 1e-7)
        least = 2 if smoothed < PAIR_RUN_TIME_S else 1
        wanted = min(int(WORK_AHEAD_S / smoothed), CREDIT_MAX)
        # Doubling, not jumping: the first short task must not draw hundreds of unknown ones after it.
        engine.credit = max(least, min(wanted, 2 * engine.credit))

    # ------------------------------------------------------------ tasks

    def put(self, work: Work, in_front: bool = False) -> None:
        """A task waits for an engine."""
        if work.targets is None and work.barred is None:
            pool = self._anywhere
        else:
            key = _make_key(work)
            pool = self.pools.get(key) or self._open(key, work)
        pool.put(work, in_front)
        if len(pool.room):
            self._ready[pool] = None

    def _open(self, key: PoolKey, work: Work) -> Pool:
        pool = self.pools[key] = Pool(key, work.targets, work.barred)
        for engine in self._iterate_engines(work.targets):
            if pool.admits(engine):
                pool.members += 1
                engine.pools.append(pool)
                if len(engine.in_flight) < engine.credit:
                    pool.room.put(engine, len(engine.in_flight))
        return pool

    def _iterate_engines(self, targets: frozenset[EngineId] | None) -> Iterator[Engine]:
        """Those of `targets` that are there; None: all."""
        if targets is None:
            yield from self.engines.values()
        else:
            for engine_id in targets:
                engine = self.engines.get(engine_id)
                if engine is not None:
                    yield engine

    def has_engine(self, targets: frozenset[EngineId] | None, barred: frozenset[EngineId]) -> bool:
        """Whether an engine is there that is one of `targets` (None: any) and not barred."""
        if targets is None:
            # Both sides know their length: an answer at once while there are more engines than barred ones.
            return not self.engines.keys() <= barred
        if not barred:
            return not self.engines.keys().isdisjoint(targets)
        return any(engine.id not in barred for engine in self._iterate_engines(targets))

    def drop(self, work: Work) -> None:
        """A waiting task ended. Call before moving it."""
        pool = self.pools[_make_key(work)]
        pool.note_ended()
        self._close_if_empty(pool)

    def take_placement(self) -> tuple[Work, Engine] | None:
        """The next task and the engine it goes to, or None when nothing can be placed now."""
        ready = self._ready
        while ready:
            pool = next(iter(ready))
            engine = pool.room.find_lowest() if pool.count else None
            if engine is None:
                del ready[pool]
                continue
            work = pool.take_next()
            assert work is not None
            if not pool.count:
                del ready[pool]
                self._close_if_empty(pool)
            elif len(ready) > 1:
                ready.move_to_end(pool)
            return work, engine
        return None

    def _close_if_empty(self, pool: Pool) -> None:
        if pool is self._anywhere or pool.count:
            return
        del self.pools[pool.key]
        self._ready.pop(pool, None)
        for engine in self._iterate_engines(pool.targets):
            if pool.admits(engine):
                engine.pools.remove(pool)

    def take_stranded(self, barred_only: bool) -> list[Work]:
        """The waiting tasks none of whose engines is there; all, or those that are barred from some."""
        return self._take_all(
            pool
            for pool in list(self.pools.values())
            if not pool.members and (pool.barred is not None or not barred_only)
        )

    def take_barred(self, engine_id: EngineId) -> list[Work]:
        """The waiting tasks that must not go to an engine."""
        return self._take_all(
            pool for pool in list(self.pools.values()) if pool.barred is not None and engine_id in pool.barred
        )

    def _take_all(self, pools: Iterable[Pool]) -> list[Work]:
        works: list[Work] = []
        for pool in pools:
            while (work := pool.take_next()) is not None:
                works.append(work)
            self._close_if_empty(pool)
        return works

    # ------------------------------------------------------------ recall

    @property
    def may_recall(self) -> bool:
        """Whether an engine is idle while others hold tasks, and one of them more than it can be running."""
        if self._anywhere.count or len(self.engines) < 2:
            return False
        lowest = self.loads.find_lowest()
        if lowest is None or lowest.load:
            return False
        if next(self.loads.iterate_from_highest()).load < 2:
            return False
        return bool(next(self.tasks_held.iterate_from_highest()).tasks)

    def choose_recall(self, now: float) -> list[Work]:
        """Tasks to take back from the engine with most of them that looks stuck, half of what it holds."""
        idle = self.loads.find_lowest()
        if idle is None or idle.load:
            return []
        for engine in self.tasks_held.iterate_from_highest():
            if not engine.tasks:
                return []
            if engine.load < 2 or now - engine.moved_at < RECALL_AFTER_S:
                continue
            works = []
            running = next(iter(engine.in_flight))
            for work in reversed(engine.tasks.values()):
                if (
                    work.key != running
                    and work.phase is WorkPhase.SENT
                    and (work.targets is None or idle.id in work.targets)
                    and (work.barred is None or idle.id not in work.barred)
                ):
                    works.append(work)
                if len(works) >= (engine.load + 1) // 2:
                    break
            if works:
                return works
        return []

    # ------------------------------------------------------------ debugging

    def check(self) -> None:
        """Assert that the indexes say what the records say."""
        for engine in self.engines.values():
            assert self.loads.load_of(engine) == engine.load, f"engine {engine.id}: load index is off"
            assert self.tasks_held.load_of(engine) == len(engine.tasks), f"engine {engine.id}: tasks index is off"
            assert engine.credit >= 1
            for pool in self.pools.values():
                assert (pool in engine.pools) == pool.admits(engine), f"engine {engine.id}: pools are off"
                filed = pool.room.load_of(engine)
                if pool.admits(engine) and engine.load < engine.credit:
                    assert filed == engine.load, f"engine {engine.id}: room {filed}, load {engine.load}"
                else:
                    assert filed is None
        assert len(self.loads) == len(self.tasks_held) == len(self.engines)
        for key, pool in self.pools.items():
            waiting = [w for q in pool.queues.values() for w in q if w.phase is WorkPhase.QUEUED]
            assert pool.key == key and pool.count == len(waiting), f"pool {key}: {pool.count}, holds {len(waiting)}"
            assert all(_make_key(w) == key for w in waiting)
            assert pool is self._anywhere or pool.count, "an empty pool was kept"
            assert pool.members == sum(pool.admits(engine) for engine in self.engines.values())
            if pool.count and len(pool.room):
                assert pool in self._ready, f"pool {key} is passed over"
        assert set(self._ready) <= set(self.pools.values()), "a pool that is gone is waited for"
