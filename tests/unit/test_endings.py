"""Engines that are ended on purpose: what the core orders, whom it tells, and when."""

from __future__ import annotations

import pytest
from core_world import World, done, request

from hpcviews.controller import dispatch
from hpcviews.controller.events import EndSets, KillEngines, SetNotStarted, SetStarted, StartEngines
from hpcviews.controller.state import Route, SetPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import EngineId, SetId
from hpcviews.wire import messages as m


class Ends(World):
    def __init__(self, n: int = 3, is_world: bool = False):
        super().__init__()
        dispatch.on_event(self.core, self.out, SetStarted(SetId(0), "local", n, is_world, "set.log"))
        self.routes = [self.add_engine(index) for index in range(n)]
        self.client = self.add_client()

    def end(self, targets: list[int], how: str, seq: int = 100) -> None:
        self.say(self.client, m.EndEngines(seq, targets, how))

    def take_orders(self) -> list[object]:
        orders, self.out.orders = list(self.out.orders), []
        return orders

    def take_answers(self) -> list[m.Acknowledged]:
        return [message for message, _ in self.out.take_all(self.client) if isinstance(message, m.Acknowledged)]

    def state(self, set_id: int = 0) -> tuple[SetPhase, int]:
        engine_set = self.core.sets[SetId(set_id)]
        return engine_set.phase, engine_set.n

    def start_again(self, set_id: int, ids: tuple[int, ...]) -> list[Route]:
        known = tuple(map(EngineId, ids))
        dispatch.on_event(self.core, self.out, SetStarted(SetId(set_id), "local", len(ids), False, "x", known))
        return [self.add_engine(index, set_id=set_id) for index in range(len(ids))]


def test_stopped_engine_is_told_and_leaves_its_set_smaller() -> None:
    world = Ends()
    world.end([1], "stop")
    assert world.out.take(world.routes[1], m.EngineStop).finalize is False
    assert world.take_answers() == [] and world.take_orders() == []
    world.disconnect(world.routes[1])
    assert world.take_answers() == [m.Acknowledged(100)] and world.state() == (SetPhase.READY, 2)


def test_killed_engine_is_killed_by_wire_and_by_order_and_its_requests_say_so() -> None:
    world = Ends()
    world.say(world.client, request(1, [2]))
    world.end([2], "kill")
    assert world.take_orders() == [KillEngines(SetId(0), (102,))]
    assert [m.EngineSignal(9)] == [x for x, _ in world.out.take_all(world.routes[2]) if isinstance(x, m.EngineSignal)]
    world.disconnect(world.routes[2])
    told = [message for message, _ in world.out.take_all(world.client)]
    (result,) = [message for message in told if isinstance(message, m.Result)]
    assert result.error is not None and "killed by a client" in result.error.evalue
    assert m.Acknowledged(100) in told and world.state() == (SetPhase.READY, 2)


def test_set_goes_with_its_last_engine_and_a_world_may_finalize() -> None:
    world = Ends(2, is_world=True)
    world.end([0, 1], "stop")
    assert all(world.out.take(route, m.EngineStop).finalize for route in world.routes)
    assert world.take_orders() == [EndSets((SetId(0),), "all its engines were ended by a client")]
    for route in world.routes:
        world.disconnect(route)
    assert world.take_answers() == [], "its process is still there"
    world.end_set(0, "exit code 0", "")
    assert world.take_answers() == [m.Acknowledged(100)] and world.state()[0] is SetPhase.ENDED


def test_restarted_engines_come_back_with_their_ids() -> None:
    world = Ends()
    world.end([0, 2], "restart")
    world.disconnect(world.routes[0])
    assert world.take_orders() == []
    world.disconnect(world.routes[2])
    assert world.take_orders() == [StartEngines(SetId(0), (EngineId(0), EngineId(2)))]
    assert world.take_answers() == []
    world.start_again(1, (0, 2))
    assert world.take_answers() == [m.Acknowledged(100)]
    assert sorted(world.core.engines) == [0, 1, 2] and world.core.next_engine_id == 3
    assert world.state(0) == (SetPhase.READY, 1) and world.state(1) == (SetPhase.READY, 2)


def test_whole_set_is_restarted_when_its_process_is_gone() -> None:
    world = Ends(2, is_world=True)
    world.end([0, 1], "restart")
    for route in world.routes:
        world.disconnect(route)
    world.take_orders()
    world.end_set(0, "exit code 0", "")
    assert world.take_orders() == [StartEngines(SetId(0), (EngineId(0), EngineId(1)))]
    dispatch.on_event(world.core, world.out, SetNotStarted((EngineId(0), EngineId(1)), "no memory"))
    (answer,) = world.take_answers()
    assert answer.error is not None and (answer.error.ename, answer.error.evalue) == ("LaunchError", "no memory")


def test_part_of_a_world_cannot_be_restarted() -> None:
    world = Ends(3, is_world=True)
    world.end([1], "restart")
    (answer,) = world.take_answers()
    assert answer.error is not None and answer.error.ename == "UsageError" and "0, 1, 2" in answer.error.evalue
    assert not world.out.inboxes.get(world.routes[1]) and not world.core.endings


def test_engine_that_is_not_there_ends_nothing() -> None:
    world = Ends()
    world.end([0, 7], "kill")
    (answer,) = world.take_answers()
    assert answer.error is not None and answer.error.ename == "NoSuchEngine" and world.take_orders() == []
    with pytest.raises(ProtocolError, match="stop, kill, restart"):
        world.end([0], "burn")


def test_no_engines_are_ended_at_once() -> None:
    world = Ends()
    world.end([], "stop")
    assert world.take_answers() == [m.Acknowledged(100)]


def test_two_clients_may_end_the_same_engine() -> None:
    world = Ends()
    other = world.add_client("B")
    world.end([1], "stop")
    world.say(other, m.EndEngines(5, [1], "kill"))
    world.disconnect(world.routes[1])
    assert world.take_answers() == [m.Acknowledged(100)]
    assert m.Acknowledged(5) in [message for message, _ in world.out.take_all(other)]
    assert world.state() == (SetPhase.READY, 2)


def test_client_that_leaves_is_not_answered_and_what_it_asked_goes_on() -> None:
    world = Ends()
    world.end([1], "restart")
    world.disconnect(world.client)
    world.disconnect(world.routes[1])
    assert world.take_orders() == [StartEngines(SetId(0), (EngineId(1),))]
    world.start_again(1, (1,))
    assert not world.core.endings and not world.out.inboxes.get(world.client)


def test_stopped_engine_that_connects_again_is_told_once_more() -> None:
    world = Ends()
    world.end([1], "stop")
    world.disconnect(world.routes[1])
    from core_world import PYTHON, VERSION, make_info

    route = b"again"
    world.say(route, m.EngineHello(VERSION, PYTHON, make_info(1, engine_id=1), ""))
    world.out.take(route, m.EngineStop)
    assert sorted(world.core.engines) == [0, 2]


def test_tasks_wait_for_engines_that_are_being_restarted() -> None:
    world = Ends(1)
    world.end([0], "restart")
    world.disconnect(world.routes[0])
    world.say(world.client, m.Task(b"x", 0, 1, "apply", b"", None, 0))
    world.end_set(0, "exit code 0", "")
    world.take_orders()
    assert not [x for x, _ in world.out.inboxes.get(world.client, []) if isinstance(x, m.Result)]
    (route,) = world.start_again(1, (0,))
    run = world.out.take(route, m.Run)
    world.say(route, done(run.key))
    assert [x.seq for x, _ in world.out.take_all(world.client) if isinstance(x, m.Result)] == [1]


def test_signals_and_interrupts_reach_the_engines() -> None:
    world = Ends()
    world.say(world.client, m.SignalEngines(7, [0, 2], 10))
    assert world.take_answers() == [m.Acknowledged(7)]
    assert [world.out.take(world.routes[i], m.EngineSignal).signum for i in (0, 2)] == [10, 10]
    world.say(world.client, request(1, [0]))
    run = world.out.take(world.routes[0], m.Run)
    world.say(world.client, m.InterruptRequests([1, 55]))
    assert world.out.take(world.routes[0], m.Withdraw).keys == [run.key]
    assert world.out.take(world.routes[0], m.InterruptRuns).keys == [run.key]
    with pytest.raises(ProtocolError, match="signal 0"):
        world.say(world.client, m.SignalEngines(8, [0], 0))
