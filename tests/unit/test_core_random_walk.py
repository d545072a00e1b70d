"""Thousands of random events, all invariants checked after each; in the end every request has exactly one result."""

from __future__ import annotations

import random

import pytest
from core_world import World, done

from hpcviews.controller.state import Route
from hpcviews.wire import messages as m

STEPS = 500


class Walk:
    """Clients and engines that do anything they are allowed to, at random."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.world = World()
        self.asked: dict[Route, set[int]] = {}
        self.answered: dict[Route, dict[int, int]] = {}
        self.left: set[Route] = set()
        self.holding: dict[Route, list[int]] = {}
        self.engine_ids: dict[Route, int] = {}
        self.lives = 0
        self.next_seq = 0
        self.world.out.on_send = self.on_send
        self.world.start_set(6)
        for index in range(3):
            self.add_engine(index)
        self.add_client()

    def on_send(self, route: Route, message: m.Message) -> None:
        if isinstance(message, m.Run) and route in self.holding:
            self.holding[route].append(message.key)
        elif isinstance(message, m.Result) and route in self.answered:
            counts = self.answered[route]
            counts[message.seq] = counts.get(message.seq, 0) + 1

    # -------------------------------------------------------- moves

    def add_client(self) -> None:
        self.lives += 1
        route = f"c{self.lives}".encode()
        self.asked[route], self.answered[route] = set(), {}
        self.world.say(route, m.ClientHello("0.1.0", "3.11", f"{self.lives:016x}", "node", 1))

    def add_engine(self, index: int | None = None) -> None:
        if len(self.holding) >= 6:
            return
        free = sorted(set(range(6)) - set(self.engine_ids.values()))
        self.lives += 1
        route = f"e{self.lives}".encode()
        self.holding[route] = []
        self.engine_ids[route] = free[0] if index is None else index
        from core_world import make_info

        info = make_info(self.engine_ids[route], uuid=f"u{self.lives}")
        self.world.say(route, m.EngineHello("0.1.0", "3.11", info, ""))

    def submit(self) -> None:
        client = self.pick(self.asked)
        if client is None:
            return
        for _ in range(self.random.choice([1, 1, 5, 30])):
            seq = self.next_seq
            self.next_seq += 4
            if self.random.random() < 0.3:
                targets = self.random.sample(range(7), self.random.randint(0, 4))
                message: m.Message = m.Request(b"x", 0, seq, targets, "apply", self.maybe_function(client))
                self.asked[client].update(range(seq, seq + len(targets)))
            else:
                targets_or_any = self.random.choice([None, None, [self.random.randrange(7)], [0, 1, 2]])
                message = m.Task(
                    b"x", 0, seq, "apply", self.maybe_function(client), targets_or_any, self.random.choice([0, 0, 1, 3])
                )
                self.asked[client].add(seq)
            self.world.say(client, message)

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
            error = self.random.choice(["", "", "", "ValueError"])
            if self.random.random() < 0.2:
                self.world.say(engine, m.RunOutput(key, "stdout", "text"))
            self.world.say(engine, done(key, took=took, error=error))

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
            del self.holding[engine], self.engine_ids[engine]
            self.world.disconnect(engine)

    def end_client(self) -> None:
        client = self.pick(self.asked)
        if client is None or len(self.asked) < 2:
            return
        del self.asked[client]
        if self.random.random() < 0.5:
            self.world.say(client, m.ClientLeave())
        self.world.disconnect(client)

    def wait(self) -> None:
        self.world.tick(self.random.choice([0.001, 0.01, 1.0]))

    def pick(self, peers: dict[Route, object]) -> Route | None:
        return self.random.choice(sorted(peers)) if peers else None

    # -------------------------------------------------------- the walk

    def run(self) -> None:
        moves = [self.submit] * 6 + [self.answer] * 10 + [self.answer_withdraw] * 6 + [self.wait] * 3
        moves += [
            self.abort,
            self.forget,
            self.kill_engine,
            self.add_engine,
            self.add_engine,
            self.add_client,
            self.end_client,
        ]
        for _ in range(STEPS):
            self.random.choice(moves)()
        if not self.holding:
            self.add_engine()
        for _ in range(10_000):
            if not any(self.asked[c] - self.answered[c].keys() for c in self.asked):
                break
            self.answer()
            self.answer_withdraw()
            self.wait()
        for client, seqs in self.asked.items():
            assert self.answered[client].keys() == seqs, (
                f"unanswered: {sorted(seqs - self.answered[client].keys())[:5]}"
            )
            assert set(self.answered[client].values()) <= {1}, "a request was answered twice"


@pytest.mark.parametrize("seed", range(12))
def test_every_request_has_exactly_one_result(seed: int) -> None:
    Walk(seed).run()
