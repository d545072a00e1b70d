"""Engines that clients signal, interrupt, end and start again: what the core sends, orders and answers."""

from __future__ import annotations

import signal

import pytest
from core_world import World, done, request, task

from hpcviews.controller import dispatch
from hpcviews.controller.events import (
    EndEngines,
    EndSets,
    EngineProcess,
    EnginesEnded,
    SetNotStarted,
    SetStarted,
    SignalEngines,
    StartEngines,
)
from hpcviews.controller.state import ENDING_MOVES, EndingPhase, IllegalMove, Route, SetPhase, render_moves
from hpcviews.errors import ProtocolError
from hpcviews.ids import EngineId, SetId
from hpcviews.wire import messages as m


class Cast:
    """Three engines of one set, a client A that does things, and what was sent to whom."""

    def __init__(self, n: int = 3, is_world: bool = False):
        self.world = World()
        event = SetStarted(SetId(0), "local", n, is_world, "set.log")
        dispatch.on_event(self.world.core, self.world.out, event)
        self.engines = [self.world.add_engine(index) for index in range(n)]
        self.client = self.world.add_client()

    @property
    def set_phase(self) -> SetPhase:
        return self.world.core.sets[SetId(0)].phase

    def end(self, targets: list[int], how: str, seq: int = 100) -> None:
        self.world.say(self.client, m.EndEngines(seq, targets, how))

    def processes_gone(self, *ids: int, why: str = "") -> None:
        event = EnginesEnded(tuple(map(EngineId, ids)), why)
        dispatch.on_event(self.world.core, self.world.out, event)
        self.world.settle()

    def take_answers(self, route: Route | None = None) -> list[m.Acknowledged]:
        """Answers that have come; everything else that came with them is dropped."""
        inbox = self.world.out.take_all(route or self.client)
        return [message for message, _ in inbox if isinstance(message, m.Acknowledged)]

    def take_results(self) -> dict[int, m.Result]:
        return {r.seq: r for r, _ in self.world.out.take_all(self.client) if isinstance(r, m.Result)}

    def sent(self, index: int) -> list[m.Message]:
        return [message for message, _ in self.world.out.take_all(self.engines[index])]


# ---------------------------------------------------------------- signals


def test_signal_goes_to_its_engines_and_is_acknowledged() -> None:
    cast = Cast()
    cast.world.say(cast.client, m.SignalEngines(7, [0, 2], signal.SIGUSR1))
    assert cast.sent(0) == [m.EngineSignal(signal.SIGUSR1)] == cast.sent(2)
    assert cast.sent(1) == [] and cast.world.out.orders == []
    assert cast.take_answers() == [m.Acknowledged(7)]


def test_signal_to_an_engine_that_is_not_there_reaches_nobody() -> None:
    cast = Cast()
    cast.world.say(cast.client, m.SignalEngines(7, [0, 9], signal.SIGUSR1))
    (answer,) = cast.take_answers()
    assert answer.error is not None and answer.error.ename == "NoSuchEngine" and cast.sent(0) == []


@pytest.mark.parametrize("signum", [signal.SIGCONT, signal.SIGKILL])
def test_signals_for_engines_that_cannot_read_go_to_their_processes_too(signum: int) -> None:
    cast = Cast()
    cast.world.say(cast.client, m.SignalEngines(7, [1], signum))
    assert cast.sent(1) == [m.EngineSignal(signum)]
    assert cast.world.out.orders == [SignalEngines((EngineProcess(EngineId(1), SetId(0), 101),), signum)]


@pytest.mark.parametrize("signum", [0, -3, 65, 2**40])
def test_what_is_no_signal_is_refused(signum: int) -> None:
    cast = Cast()
    with pytest.raises(ProtocolError):
        cast.world.say(cast.client, m.SignalEngines(7, [1], signum))
    assert cast.sent(1) == []


# ---------------------------------------------------------------- interrupts


def test_interrupt_asks_for_requests_back_and_interrupts_those_that_run() -> None:
    cast = Cast(1)
    cast.world.say(cast.client, request(1, [0]), request(2, [0]))
    first, second = (run for run in cast.sent(0) if isinstance(run, m.Run))
    cast.world.say(cast.client, m.InterruptRequests([1, 2]))
    assert cast.sent(0) == [m.Withdraw([first.key, second.key]), m.InterruptRuns([first.key, second.key])]
    cast.world.say(cast.engines[0], m.Withdrawn([second.key], [first.key]))
    cast.world.say(cast.engines[0], done(first.key, error="KeyboardInterrupt"))
    results = cast.take_results()
    assert results[1].error is not None and results[1].error.ename == "KeyboardInterrupt"
    assert results[2].error is not None and results[2].error.ename == "TaskAborted"


def test_interrupted_task_is_not_tried_again() -> None:
    cast = Cast(2)
    cast.world.say(cast.client, task(1, retries=3))
    (run,) = (message for index in (0, 1) for message in cast.sent(index))
    assert isinstance(run, m.Run)
    cast.world.say(cast.client, m.InterruptRequests([1]))
    holder = next(e for e in cast.engines if cast.world.out.inboxes.get(e))
    cast.world.say(holder, m.Withdrawn([], [run.key]), done(run.key, error="KeyboardInterrupt"))
    result = cast.take_results()[1]
    assert result.error is not None and result.error.ename == "KeyboardInterrupt"


def test_interrupted_task_that_waits_is_aborted() -> None:
    world = World()
    world.start_set(1)
    client = world.add_client()
    world.say(client, task(1, retries=3), m.InterruptRequests([1, 99]))
    result = world.out.take(client, m.Result)
    assert result.error is not None and result.error.ename == "TaskAborted"


def test_interrupt_of_what_is_being_asked_back_interrupts_it_too() -> None:
    cast = Cast(1)
    cast.world.say(cast.client, request(1, [0]))
    (run,) = cast.sent(0)
    assert isinstance(run, m.Run)
    cast.world.say(cast.client, m.Abort([1]), m.InterruptRequests([1]))
    assert cast.sent(0) == [m.Withdraw([run.key]), m.InterruptRuns([run.key])]


# ---------------------------------------------------------------- ends


def test_killed_engine_fails_its_requests_with_the_reason_and_is_answered_for_when_gone() -> None:
    cast = Cast()
    cast.world.say(cast.client, request(1, [1]))
    cast.sent(1)
    cast.end([1], "kill")
    assert cast.sent(1) == [m.EngineSignal(signal.SIGKILL)]
    process = EngineProcess(EngineId(1), SetId(0), 101)
    assert cast.world.out.orders == [EndEngines((process,), "its engines were killed by a client", True)]
    cast.processes_gone(1)
    assert cast.take_answers() == [], "its connection stands"
    cast.world.disconnect(cast.engines[1])
    inbox = [message for message, _ in cast.world.out.take_all(cast.client)]
    (result,) = (message for message in inbox if isinstance(message, m.Result))
    assert result.error is not None and result.error.ename == "EngineError"
    assert result.error.evalue == "engine 1 was killed by a client before it answered"
    assert m.EnginesLeft([m.EngineLeft(1, "was killed by a client")]) in inbox
    assert inbox[-1] == m.Acknowledged(100)


def test_engine_is_answered_for_when_its_process_is_gone_too() -> None:
    cast = Cast()
    cast.end([1], "kill")
    cast.world.disconnect(cast.engines[1])
    assert cast.take_answers() == []
    cast.processes_gone(1)
    assert cast.take_answers() == [m.Acknowledged(100)]


def test_set_goes_on_without_an_engine_that_was_stopped_and_is_not_degraded() -> None:
    cast = Cast()
    cast.end([1], "stop")
    assert cast.sent(1) == [m.EngineStop("was stopped by a client", False)]
    cast.world.disconnect(cast.engines[1])
    cast.processes_gone(1)
    assert cast.set_phase is SetPhase.READY
    assert cast.world.core.sets[SetId(0)].info().n == 2
    other = cast.world.add_client("B")
    cast.world.say(other, request(1, [1]))
    result = cast.world.out.take(other, m.Result)
    assert result.error is not None and result.error.evalue == "engine 1 was stopped by a client"


def test_set_whose_last_engines_are_stopped_ends_and_has_not_failed() -> None:
    cast = Cast()
    cast.end([1], "stop", 100)
    cast.end([0, 2], "stop", 101)  # engine 1 is still there
    assert cast.set_phase is SetPhase.STOPPING
    assert isinstance(cast.world.out.orders[-1], EndSets) and not cast.world.out.orders[-1].at_once
    for route in cast.engines:
        cast.world.disconnect(route)
    cast.processes_gone(1)
    assert cast.take_answers() == [m.Acknowledged(100)]
    cast.world.end_set(0, "fork ended", "")
    assert cast.take_answers() == [m.Acknowledged(101)] and cast.set_phase is SetPhase.ENDED


def test_set_that_is_killed_as_a_whole_ends_at_once() -> None:
    cast = Cast()
    cast.end([0, 1, 2], "kill")
    order = cast.world.out.orders[-1]
    assert isinstance(order, EndSets) and order.at_once
    cast.world.end_set(0, "fork ended", "")
    assert cast.take_answers() == [m.Acknowledged(100)] and cast.set_phase is SetPhase.ENDED


def test_stop_of_engines_while_others_are_to_come_leaves_those_alone() -> None:
    world = World()
    world.start_set(3)
    world.add_engine(0)
    client = world.add_client()
    world.say(client, m.EndEngines(1, [0], "stop"))
    engine_set = world.core.sets[SetId(0)]
    assert engine_set.phase is SetPhase.STARTING and engine_set.n == 2
    world.add_engine(1)
    world.add_engine(2)
    assert engine_set.phase is SetPhase.READY


def test_whole_world_finalizes_and_a_part_of_one_does_not() -> None:
    whole, part = Cast(3, is_world=True), Cast(3, is_world=True)
    whole.end([0, 1, 2], "stop")
    assert whole.sent(0) == [m.EngineStop("was stopped by a client", True)]
    part.end([0], "stop", 100)
    assert part.sent(0) == [m.EngineStop("was stopped by a client", False)]
    part.world.disconnect(part.engines[0])
    part.end([1, 2], "stop", 101)
    assert part.sent(1) == [m.EngineStop("was stopped by a client", False)], "MPI_Finalize would wait for rank 0"


def test_engine_that_cannot_be_ended_is_given_up_with_an_error() -> None:
    cast = Cast()
    cast.world.say(cast.client, request(1, [1]))
    cast.end([1], "kill")
    cast.processes_gone(1)
    cast.processes_gone(1, why="its process is not on the controller's machine")
    inbox = [message for message, _ in cast.world.out.take_all(cast.client)]
    (answer,) = (message for message in inbox if isinstance(message, m.Acknowledged))
    assert answer.error is not None and answer.error.ename == "EngineError"
    assert "not on the controller's machine" in answer.error.evalue
    assert any(isinstance(message, m.Result) and message.error is not None for message in inbox)
    assert 1 not in cast.world.core.engines


def test_engine_that_connects_again_after_its_end_is_told_to_stop() -> None:
    cast = Cast()
    cast.end([1], "stop")
    cast.world.disconnect(cast.engines[1])
    from core_world import PYTHON, VERSION, make_info

    again = b"engine-0.1.again"
    cast.world.say(again, m.EngineHello(VERSION, PYTHON, make_info(1, engine_id=1), ""))
    assert cast.world.out.take(again, m.EngineStop) and 1 not in cast.world.core.engines


def test_end_of_a_client_that_has_gone_goes_on() -> None:
    cast = Cast()
    cast.end([1], "kill")
    cast.world.disconnect(cast.client)
    cast.world.disconnect(cast.engines[1])
    cast.processes_gone(1)
    assert cast.world.core.endings == []


def test_tasks_of_a_killed_engine_are_tried_elsewhere() -> None:
    cast = Cast(2)
    cast.world.say(cast.client, task(1, targets=[0, 1], retries=1))
    held = next(i for i in (0, 1) if cast.world.core.engines[EngineId(i)].in_flight)
    cast.end([held], "kill")
    cast.world.disconnect(cast.engines[held])
    assert any(isinstance(message, m.Run) for message in cast.sent(1 - held))


def test_no_engines_are_ended_at_once() -> None:
    cast = Cast()
    cast.end([], "stop")
    assert cast.take_answers() == [m.Acknowledged(100)] and cast.world.out.orders == []


@pytest.mark.parametrize("targets", [[9], [0, 9]])
def test_end_of_engines_that_are_not_there_ends_none(targets: list[int]) -> None:
    cast = Cast()
    cast.end(targets, "kill")
    (answer,) = cast.take_answers()
    assert answer.error is not None and answer.error.ename == "NoSuchEngine"
    assert cast.sent(0) == [] and cast.world.out.orders == []


def test_unknown_way_to_end_is_refused() -> None:
    cast = Cast()
    with pytest.raises(ProtocolError):
        cast.end([0], "explode")


# ---------------------------------------------------------------- restarts


def finish_restart(cast: Cast, set_id: int, ids: tuple[int, ...]) -> None:
    event = SetStarted(SetId(set_id), "local", len(ids), False, "set.log", tuple(map(EngineId, ids)))
    dispatch.on_event(cast.world.core, cast.world.out, event)
    cast.world.settle()


def test_restarted_engine_comes_back_in_a_new_set_with_its_id() -> None:
    cast = Cast()
    cast.end([1], "restart")
    assert cast.sent(1) == [m.EngineStop("was restarted by a client", False)]
    cast.world.disconnect(cast.engines[1])
    assert not any(isinstance(order, StartEngines) for order in cast.world.out.orders), "its process may be there"
    cast.processes_gone(1)
    assert cast.world.out.orders[-1] == StartEngines(SetId(0), (EngineId(1),))
    assert cast.take_answers() == []
    finish_restart(cast, 1, (1,))
    assert cast.take_answers() == [m.Acknowledged(100)]
    cast.world.add_engine(0, set_id=1)
    assert cast.world.core.engines[EngineId(1)].info.set_id == 1
    assert cast.world.core.sets[SetId(1)].phase is SetPhase.READY and cast.set_phase is SetPhase.READY


def test_restart_of_all_that_are_left_brings_the_lost_ones_back_and_not_the_stopped_ones() -> None:
    cast = Cast(4)
    cast.world.disconnect(cast.engines[3])
    cast.end([1], "stop", 100)
    cast.world.disconnect(cast.engines[1])
    cast.processes_gone(1)
    cast.end([0, 2], "restart", 101)
    for index in (0, 2):
        cast.world.disconnect(cast.engines[index])
    cast.world.end_set(0, "fork ended", "")
    assert cast.world.out.orders[-1] == StartEngines(SetId(0), (EngineId(0), EngineId(2), EngineId(3)))


def test_restart_of_a_part_of_a_world_is_refused_and_nothing_happens() -> None:
    cast = Cast(3, is_world=True)
    cast.end([1], "restart")
    (answer,) = cast.take_answers()
    assert answer.error is not None and answer.error.ename == "UsageError"
    assert "restart all engines of its engine set together (0, 1, 2)" in answer.error.evalue
    assert cast.sent(1) == [] and cast.set_phase is SetPhase.READY


def test_restart_of_an_engine_that_nobody_started_is_refused() -> None:
    world = World()
    world.add_engine(0, set_id=7)
    client = world.add_client()
    world.say(client, m.EndEngines(1, [0], "restart"))
    answer = world.out.take(client, m.Acknowledged)
    assert answer.error is not None and "not started by this cluster" in answer.error.evalue


def test_tasks_wait_for_engines_that_are_restarted() -> None:
    cast = Cast(1)
    cast.end([0], "restart")
    cast.world.disconnect(cast.engines[0])
    cast.world.say(cast.client, task(1))
    cast.world.end_set(0, "fork ended", "")
    cast.world.say(cast.client, task(2))
    finish_restart(cast, 1, (0,))
    assert cast.take_results() == {}
    again = cast.world.add_engine(0, set_id=1)
    assert isinstance(cast.world.out.take_all(again)[0][0], m.Run)


def test_failed_restart_is_told() -> None:
    cast = Cast()
    cast.world.say(cast.client, task(1, targets=[7]))
    cast.end([0, 1, 2], "restart")
    cast.world.end_set(0, "fork ended", "")
    assert isinstance(cast.world.out.orders[-1], StartEngines)
    event = SetNotStarted((EngineId(0), EngineId(1), EngineId(2)), "no more processes", "LaunchError")
    cast.world.say(cast.client, task(2))
    dispatch.on_event(cast.world.core, cast.world.out, event)
    inbox = [message for message, _ in cast.world.out.take_all(cast.client)]
    (answer,) = (message for message in inbox if isinstance(message, m.Acknowledged))
    assert {message.seq for message in inbox if isinstance(message, m.Result)} == {1, 2}
    assert answer.error is not None and (answer.error.ename, answer.error.evalue) == (
        "LaunchError",
        "no more processes",
    )


def test_restart_is_given_up_when_the_cluster_stops() -> None:
    cast = Cast()
    cast.end([1], "restart")
    cast.world.say(cast.client, m.StopCluster())
    for route in cast.engines:
        cast.world.disconnect(route)
    cast.processes_gone(1)
    (answer,) = cast.take_answers()
    assert answer.error is not None and "the cluster is stopping" in answer.error.evalue
    assert not any(isinstance(order, StartEngines) for order in cast.world.out.orders)


def test_engine_that_ends_already_is_not_restarted() -> None:
    cast = Cast()
    cast.end([1], "stop", 100)
    cast.end([1], "restart", 101)
    (answer,) = cast.take_answers()
    assert answer.seq == 101 and answer.error is not None and "ends already" in answer.error.evalue


def test_two_clients_may_end_the_same_engine() -> None:
    cast = Cast()
    other = cast.world.add_client("B")
    cast.end([1], "stop", 100)
    cast.world.say(other, m.EndEngines(5, [1], "kill"))
    cast.world.disconnect(cast.engines[1])
    cast.processes_gone(1)
    assert cast.take_answers() == [m.Acknowledged(100)] and cast.take_answers(other) == [m.Acknowledged(5)]


def test_ending_moves_by_its_table() -> None:
    cast = Cast()
    cast.end([1], "stop")
    (ending,) = cast.world.core.endings
    ending.move(EndingPhase.OVER)
    with pytest.raises(IllegalMove):
        ending.move(EndingPhase.STARTING)
    assert "ENDING --> STARTING" in render_moves(ENDING_MOVES)
