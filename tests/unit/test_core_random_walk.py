"""Thousands of random events, all invariants checked after each; in the end everything asked has exactly one answer.

What tasks depend on is checked by a model that knows only results: no task runs before it may, or where it must not,
and none is called impossible that is not. Clients also ask for results of each other, which come from an archive that
answers when it likes, and run requests of each other again.
"""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from core_world import World, done, make_info

from hpcviews.controller import dispatch
from hpcviews.controller.events import (
    ArchiveAnswer,
    ArchiveOrder,
    ArchiveWrote,
    EndEngines,
    EndSets,
    EnginesEnded,
    Event,
    FindRecords,
    ForgetRecords,
    KeepRecords,
    QueryRecords,
    SetExited,
    SetNotStarted,
    SetStarted,
    StartEngines,
)
from hpcviews.controller.finished import Bounds, Finished, Key, Record
from hpcviews.controller.record_rows import render_record
from hpcviews.controller.state import Route, SetPhase
from hpcviews.ids import SetId, parse_msg_id_run, render_msg_id_runs
from hpcviews.wire import messages as m

STEPS = 500

HANDLE = b"a handle of shared memory, as far as the core can tell"
ROOMS = ["room A", "room A", "room B", ""]
"""Who shares memory; the controller is in the first."""


class Walk:
    """Clients and engines that do anything they are allowed to, at random."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.world = World()
        self.world.core.identity = replace(self.world.core.identity, room=ROOMS[0])
        self.asked: dict[Route, set[int]] = {}
        self.answered: dict[Route, dict[int, int]] = {}
        self.left: set[Route] = set()
        self.holding: dict[Route, list[int]] = {}
        self.places: dict[Route, tuple[int, int]] = {}
        """Engine set and index in it of each engine."""
        self.told_to_end: set[Route] = set()
        self.ends: dict[Route, set[int]] = {}
        """Ends of engines, and signals, that each client waits for."""
        self.next_set = 1
        self.to_map: dict[Route, list[int]] = {}
        self.lent: dict[Route, set[int]] = {}
        """Attempts whose results engines gave in shared memory, and did not get back yet."""
        self.lives = 0
        self.next_seq = 1
        self.sessions: dict[Route, str] = {}
        self.names: list[str] = []
        """msg_ids of all requests, of all clients."""
        self.ended: dict[str, tuple[bool, int]] = {}
        """Which are known to have ended: whether well, and on which engine."""
        self.conditions: dict[str, m.Conditions] = {}
        self.refused: dict[str, set[int]] = {}
        self.running: dict[tuple[Route, int], str] = {}
        self.plain: list[str] = []
        """Those that the model of dependencies does not look at."""
        self.followed: dict[Route, dict[int, str]] = {}
        """Which requests clients follow, by their numbers for them."""
        self.archive: dict[Key, Record] = {}
        self.world.core.finished = Finished(Bounds(records_max=30, shipping_max=40_000))
        self.world.core.finished.has_archive = self.world.core.finished.is_archiving = True
        self.world.out.on_send = self.on_send
        self.world.start_set(6)
        for index in range(3):
            self.add_engine(index)
        self.add_client()

    def on_send(self, route: Route, message: m.Message) -> None:
        if isinstance(message, m.Run) and route in self.holding:
            self.holding[route].append(message.key)
            self.running[route, message.key] = name = message.data.decode()
            self.check_run(name, self.world.core.engine_by_route[route].id)
        elif isinstance(message, m.Result) and route in self.answered:
            counts = self.answered[route]
            counts[message.seq] = counts.get(message.seq, 0) + 1
            if message.frames:
                self.to_map.setdefault(route, []).append(message.seq)
            if message.seq in self.followed[route]:
                self.check_followed(self.followed[route][message.seq], message)
                return
            name = f"{self.sessions[route]}-{message.seq}"
            self.ended[name] = (message.error is None, message.engine)
            if message.error is not None and message.error.ename == "ImpossibleDependency":
                self.check_impossible(name)
        elif isinstance(message, m.EngineStop) or message == m.EngineSignal(signal.SIGKILL):
            self.told_to_end.add(route)
        elif isinstance(message, m.Acknowledged) and route in self.ends:
            if message.seq:  # not of a Purge
                self.ends[route].remove(message.seq)  # KeyError: answered twice, or unasked
        elif isinstance(message, m.Delivered) and route in self.lent:
            for key in message.keys:
                assert key in self.lent[route], "given back twice"
                self.lent[route].remove(key)

    # -------------------------------------------------------- the model of dependencies

    def judge(self, info: m.DependencyInfo, is_follow: bool) -> tuple[str, set[int]]:
        """ "met", "never", "open" or, where a client is gone that alone was told, "unknown"; and the engines."""
        names = [f"{session}-{seq}" for session, seqs in map(parse_msg_id_run, info.msg_ids) for seq in seqs]
        listening = {self.sessions[route] for route in self.asked}
        if any(name not in self.ended and name.rsplit("-", 1)[0] not in listening for name in names):
            return "unknown", set()
        told = [self.ended[name] for name in names if name in self.ended]
        good = [t for t in told if (info.success if t[0] else info.failure) and (t[1] >= 0 or not is_follow)]
        engines = {engine_id for _, engine_id in good}
        if info.all:
            impossible = len(good) < len(told) or (is_follow and len(engines) > 1)
            return ("never" if impossible else "met" if len(good) == len(names) else "open"), engines
        return ("met" if good else "never" if len(told) == len(names) else "open"), engines

    def check_run(self, name: str, engine_id: int) -> None:
        assert engine_id not in self.refused.get(name, ()), f"{name} runs on engine {engine_id}, which refused it"
        conditions = self.conditions.get(name)
        if conditions is None:
            return
        if conditions.after is not None:
            assert self.judge(conditions.after, False)[0] in ("met", "unknown"), f"{name} runs before it may"
        if conditions.follow is not None:
            verdict, engines = self.judge(conditions.follow, True)
            assert verdict in ("met", "unknown"), f"{name} runs before it may"
            assert verdict == "unknown" or engine_id in engines, f"{name} runs on {engine_id}, not {engines}"

    def check_impossible(self, name: str) -> None:
        conditions = self.conditions[name]
        after = "met" if conditions.after is None else self.judge(conditions.after, False)[0]
        if conditions.follow is None:
            assert after in ("never", "unknown"), f"{name} was possible"
            return
        follow = self.judge(conditions.follow, True)[0]
        # "met": their engines are gone, or are none of its targets.
        assert {"never", "unknown"} & {after, follow} or follow == "met", f"{name} was possible"

    def check_followed(self, name: str, result: m.Result) -> None:
        """What a follower is told is what the client was told."""
        if result.error is not None and result.error.ename == "NoSuchRequest":
            listening = {self.sessions[route] for route in self.asked}
            assert name in self.ended or name.rsplit("-", 1)[0] not in listening, f"{name} has not ended"
        elif result.error is not None and result.error.ename == "ResultNotKept":
            assert self.ended.get(name, (True,))[0]
        elif name in self.ended:
            assert self.ended[name] == (result.error is None, result.engine)

    # -------------------------------------------------------- moves

    def add_client(self) -> None:
        self.lives += 1
        route = f"c{self.lives}".encode()
        self.asked[route], self.answered[route], self.ends[route] = set(), {}, set()
        self.followed[route] = {}
        self.sessions[route] = f"{self.lives:016x}"
        self.world.say(route, m.ClientHello("0.1.0", "3.11", self.sessions[route], "node", 1, *self.enter_room()))

    def enter_room(self) -> tuple[str, str]:
        return self.random.choice(ROOMS), f"party {self.lives}"

    def add_engine(self, index: int | None = None) -> None:
        if len(self.holding) >= 6:
            return
        sets = self.world.core.sets
        free = [
            (set_id, place)
            for set_id, engine_set in sorted(sets.items())
            for place in range(len(engine_set.ids))
            if (set_id, place) not in self.places.values()
            and engine_set.phase not in (SetPhase.STOPPING, SetPhase.ENDED)
        ]
        if index is not None:
            free = [(0, index)]
        if not free:
            return
        self.lives += 1
        route = f"e{self.lives}".encode()
        self.holding[route] = []
        self.places[route] = self.random.choice(free)
        set_id, place = self.places[route]
        room, party = self.enter_room()
        self.lent[route] = set()
        info = msgspec.structs.replace(make_info(place, set_id=set_id, uuid=f"u{self.lives}"), room=room)
        for refusers in self.refused.values():
            refusers.discard(sets[set_id].ids[place])  # it is another process
        self.world.say(route, m.EngineHello("0.1.0", "3.11", info, "", party))
        if route not in self.world.core.engine_by_route:  # in the place of one that was ended
            self.lose(route)

    def end_engines(self) -> None:
        client = self.pick(self.asked)
        if client is None:
            return
        ids = sorted(self.world.core.engines)
        targets = self.random.sample(ids, self.random.randint(0, min(3, len(ids))))
        seq = self.next_seq
        self.next_seq += 1
        self.ends[client].add(seq)
        self.world.say(client, m.EndEngines(seq, targets, self.random.choice(["stop", "kill", "restart", "restart"])))

    def signal_engines(self) -> None:
        client = self.pick(self.asked)
        if client is not None:
            self.ends[client].add(self.next_seq)
            self.world.say(client, m.SignalEngines(self.next_seq, self.random.sample(range(7), 2), signal.SIGCONT))
            self.next_seq += 1

    def interrupt(self) -> None:
        client = self.pick(self.asked)
        if client is not None and self.asked[client]:
            some = self.random.sample(sorted(self.asked[client]), min(5, len(self.asked[client])))
            self.world.say(client, m.InterruptRequests(some))

    def obey(self) -> None:
        told = sorted(self.told_to_end & self.holding.keys())
        if told:
            self.lose(self.random.choice(told))

    def do_ordered(self) -> None:
        """What the service of the processes does."""
        orders = [order for order in self.world.out.orders if not isinstance(order, ArchiveOrder)]
        if not orders:
            return
        order = orders[0]
        self.world.out.orders.remove(order)
        if isinstance(order, EndEngines):
            why = "" if self.random.random() < 0.8 else "it hangs"
            self.tell(EnginesEnded(tuple(engine.id for engine in order.engines), why))
        elif isinstance(order, EndSets):
            for set_id in order.set_ids:
                if not self.world.core.sets[set_id].is_over:
                    self.tell(SetExited(set_id, "as asked", ""))
        elif isinstance(order, StartEngines):
            if self.random.random() < 0.2:
                self.tell(SetNotStarted(order.ids, "no more processes", "LaunchError"))
            else:
                self.tell(SetStarted(SetId(self.next_set), "local", len(order.ids), False, "set.log", order.ids))
                self.next_set += 1

    def tell(self, event: Event) -> None:
        dispatch.on_event(self.world.core, self.world.out, event)
        self.world.settle()
        for route in list(self.holding):
            if route not in self.world.core.engine_by_route:
                self.lose(route)

    def submit(self) -> None:
        client = self.pick(self.asked)
        if client is None:
            return
        for _ in range(self.random.choice([1, 1, 5, 30])):
            seq = self.next_seq
            self.next_seq += 4
            frames = self.random.choice([[], [], [HANDLE]])
            if self.random.random() < 0.3:
                targets = self.random.sample(range(7), self.random.randint(0, 4))
                # Its parts share a payload: "-" is the name of no task, so nothing is looked up for it.
                message: m.Message = m.Request(b"-", len(frames), seq, targets, "apply", self.maybe_function(client))
                seqs = range(seq, seq + len(targets))
                self.plain += [f"{self.sessions[client]}-{s}" for s in seqs]
            else:
                targets_or_any = self.random.choice([None, None, [self.random.randrange(7)], [0, 1, 2]])
                name = f"{self.sessions[client]}-{seq}"
                conditions = self.make_conditions(client)
                if conditions is not None:
                    self.conditions[name] = conditions
                function, retries = self.maybe_function(client), self.random.choice([0, 0, 1, 3])
                message = m.Task(
                    name.encode(), len(frames), seq, "apply", function, targets_or_any, retries, "", conditions
                )  # fmt: skip
                seqs = range(seq, seq + 1)
            self.asked[client].update(seqs)
            self.world.say(client, msgspec.structs.replace(message, may_share=True), frames=frames)
            self.names += [f"{self.sessions[client]}-{s}" for s in seqs]

    def follow(self) -> None:
        client = self.pick(self.asked)
        if client is not None and self.names:
            some = self.random.choices(self.names, k=3)
            first = self.next_seq
            self.next_seq += len(some)
            self.followed[client].update(zip(range(first, self.next_seq), some, strict=True))
            self.asked[client].update(range(first, self.next_seq))
            self.world.say(client, m.Follow(first, some))

    def resubmit(self) -> None:
        client = self.pick(self.asked)
        if client is not None and self.plain:
            self.asked[client].add(self.next_seq)
            self.world.say(client, m.Resubmit(self.next_seq, [self.random.choice(self.plain)]))
            self.next_seq += 1

    def purge(self) -> None:
        client = self.pick(self.asked)
        if client is not None and self.names:
            self.world.say(client, m.Purge(0, self.random.choices(self.names, k=2), [self.random.randrange(4)]))

    def ask(self) -> None:
        client = self.pick(self.asked)
        if client is not None:
            self.world.say(client, m.RecordQuery(0, {}, None), m.QueueQuery(0, [], True))

    def answer_for_archive(self) -> None:
        orders = [order for order in self.world.out.orders if isinstance(order, ArchiveOrder)]
        for order in orders[: self.random.randint(0, len(orders))]:
            self.world.out.orders.remove(order)
            event: Event
            if isinstance(order, KeepRecords):
                kept = [record for record in order.records if self.random.random() < 0.8]
                self.archive.update(((record.session, record.seq), record) for record in kept)
                event = ArchiveWrote(order.nbytes, len(order.records) - len(kept))
            elif isinstance(order, FindRecords):
                event = ArchiveAnswer(order.question, [self.archive[key] for key in order.keys if key in self.archive])
            elif isinstance(order, QueryRecords):
                event = ArchiveAnswer(order.question, [render_record(record) for record in self.archive.values()])
            else:
                assert isinstance(order, ForgetRecords)
                for key in order.keys or ():
                    self.archive.pop(key, None)
                event = ArchiveAnswer(order.question, [])
            dispatch.on_event(self.world.core, self.world.out, event)
            self.world.settle()

    def make_conditions(self, client: Route) -> m.Conditions | None:
        choose = self.random.choice
        if self.random.random() < 0.5:
            return None
        infos: list[Any] = [None, None]
        for place in (0, 1):
            if self.names and self.random.random() < (0.7, 0.3)[place]:
                recent = self.names[-60:] if self.random.random() < 0.9 else self.names
                some = self.random.sample(recent, min(len(recent), choose([1, 1, 2, 5])))
                others = sorted(self.asked.keys() - {client})
                if others and self.random.random() < 0.1:
                    # One that may come soon, from another client.
                    some.append(f"{self.sessions[choose(others)]}-{self.next_seq + 4 * choose(range(3))}")
                success, failure = choose([(True, False), (True, False), (True, True), (False, True)])
                infos[place] = m.DependencyInfo(
                    render_msg_id_runs(some), choose([True, True, False]), success, failure
                )  # fmt: skip
        return m.Conditions(*infos, choose([0.0, 0.0, 0.5, 3.0, 30.0]))

    def maybe_function(self, client: Route) -> bytes:
        if self.random.random() < 0.7:
            return b""
        digest = bytes([self.random.randrange(5)])
        self.world.say(client, m.Function(b"code", 0, digest))
        return digest

    def answer(self) -> None:
        engine = self.pick({e: k for e, k in self.holding.items() if k})
        if engine is None:
            return
        keys = self.holding[engine]
        for _ in range(self.random.randint(1, len(keys))):
            key = keys.pop(0)
            took = self.random.choice([0.00001, 0.001, 0.1, 10.0])
            error = self.random.choice(["", "", "", "", "ValueError", "UnmetDependency"])
            name = self.running.pop((engine, key))
            if error == "UnmetDependency" and name != "-":
                self.refused.setdefault(name, set()).add(self.world.core.engine_by_route[engine].id)
            if self.random.random() < 0.2:
                self.world.say(engine, m.RunOutput(key, "stdout", "text"))
            frames = self.random.choice([[], [], [HANDLE]])
            if frames:
                self.lent[engine].add(key)
            answer = msgspec.structs.replace(done(key, took=took, error=error), frames=len(frames))
            self.world.say(engine, answer, frames=frames)

    def map_results(self) -> None:
        client = self.pick({c: s for c, s in self.to_map.items() if s and c in self.asked})
        if client is not None:
            seqs = self.to_map[client]
            some = self.random.sample(seqs, self.random.randint(1, len(seqs)))
            self.to_map[client] = [seq for seq in seqs if seq not in some]
            self.world.say(client, m.Mapped(some))

    def answer_withdraw(self) -> None:
        for engine in list(self.holding):
            keys = self.holding[engine]
            inbox = self.world.out.take_all(engine)
            for message, _ in inbox:
                if isinstance(message, m.Withdraw):
                    # The first one held is running; a message may also come too late.
                    given = [k for k in message.keys if k in keys[1:] and self.random.random() < 0.8]
                    for key in given:
                        keys.remove(key)
                    self.world.say(engine, m.Withdrawn(given, [k for k in message.keys if k not in given]))

    def abort(self) -> None:
        client = self.pick(self.asked)
        if client is not None and self.asked[client]:
            some = self.random.sample(sorted(self.asked[client]), min(5, len(self.asked[client])))
            self.world.say(client, m.Abort(some))

    def forget(self) -> None:
        client = self.pick(self.asked)
        if client is not None:
            self.world.say(client, m.ForgetFunction(bytes([self.random.randrange(5)])))

    def kill_engine(self) -> None:
        engine = self.pick(self.holding)
        if engine is not None:
            self.lose(engine)

    def lose(self, engine: Route) -> None:
        del self.holding[engine], self.places[engine], self.lent[engine]
        self.world.disconnect(engine)

    def end_client(self) -> None:
        client = self.pick(self.asked)
        if client is None or len(self.asked) < 2:
            return
        del self.asked[client], self.ends[client]
        if self.random.random() < 0.5:
            self.world.say(client, m.ClientLeave())
        self.world.disconnect(client)

    def wait(self) -> None:
        self.world.tick(self.random.choice([0.001, 0.01, 1.0, 4.0]))

    def pick(self, peers: dict[Route, object]) -> Route | None:
        return self.random.choice(sorted(peers)) if peers else None

    # -------------------------------------------------------- the walk

    def run(self) -> None:
        moves = [self.submit] * 6 + [self.answer] * 10 + [self.answer_withdraw] * 6 + [self.wait] * 3
        moves += [
            self.abort,
            self.follow,
            self.follow,
            self.resubmit,
            self.purge,
            self.ask,
            self.answer_for_archive,
            self.answer_for_archive,
            self.forget,
            self.kill_engine,
            self.add_engine,
            self.add_engine,
            self.add_client,
            self.end_client,
            *[self.map_results] * 3,
            self.end_engines,
            self.signal_engines,
            self.interrupt,
            *[self.obey] * 2,
            *[self.do_ordered] * 2,
        ]
        for _ in range(STEPS):
            self.random.choice(moves)()
        while self.world.out.orders or self.told_to_end & self.holding.keys():
            self.answer_for_archive()
            self.do_ordered()
            self.obey()
        assert not any(self.ends.values()) and not self.world.core.endings
        for set_id, engine_set in list(self.world.core.sets.items()):
            if engine_set.phase is SetPhase.STARTING:  # tasks wait for engines that are to come
                self.tell(SetExited(set_id, "exit code 1", "NoShow"))
        if not self.holding:
            dispatch.on_event(
                self.world.core, self.world.out, SetStarted(SetId(self.next_set), "local", 1, False, "set.log")
            )
            while not self.holding:  # a place that was given up is refused
                self.add_engine()
        for _ in range(10_000):
            if not any(self.asked[c] - self.answered[c].keys() for c in self.asked):
                break
            self.answer()
            self.answer_withdraw()
            self.answer_for_archive()
            self.wait()
        for client, seqs in self.asked.items():
            assert self.answered[client].keys() == seqs, (
                f"unanswered: {sorted(seqs - self.answered[client].keys())[:5]}"
            )
            assert set(self.answered[client].values()) <= {1}, "a request was answered twice"
        while any(self.to_map.get(client) for client in self.asked):
            self.map_results()
        assert not any(self.lent.values()), "an engine waits for ever for a segment that nobody needs"


@pytest.mark.parametrize("seed", range(12))
def test_every_request_has_exactly_one_result(seed: int) -> None:
    Walk(seed).run()
