"""The controller's core: what clients ask for, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from core_world import PYTHON, VERSION, World, done, make_info, request, task

from hpcviews.controller import dispatch
from hpcviews.controller.events import StopRequested
from hpcviews.controller.state import SetPhase
from hpcviews.errors import ProtocolError
from hpcviews.wire import messages as m


@pytest.fixture
def world() -> World:
    return World()


def get_keys(world: World, route: bytes) -> list[int]:
    return [msg.key for msg, _ in world.out.take_all(route) if isinstance(msg, m.Run)]


def test_engine_ids_follow_the_index_whoever_registers_first(world: World) -> None:
    world.start_set(3)
    for index in (2, 0, 1):
        world.add_engine(index)
    assert {i: e.info.index for i, e in world.core.engines.items()} == {0: 0, 1: 1, 2: 2}
    assert world.core.sets[0].phase is SetPhase.READY  # type: ignore[index]


def test_request_for_many_engines_reaches_each_once_with_the_same_frames(world: World) -> None:
    engines = world.add_engines(3)
    client = world.add_client()
    frame = bytes(1000)
    world.say(client, m.Request(b"", 1, 10, [2, 0], "push", b""), frames=[frame])
    for engine, seq in ((engines[2], 10), (engines[0], 11)):
        ((run, frames),) = world.out.take_all(engine)
        assert isinstance(run, m.Run) and frames == [frame]
        world.say(engine, done(run.key))
        assert world.out.take(client, m.Result).seq == seq
    world.out.assert_empty()


def test_request_for_an_engine_that_never_was_names_those_that_are(world: World) -> None:
    world.add_engines(2)
    client = world.add_client()
    world.say(client, request(0, [7]))
    result = world.out.take(client, m.Result)
    assert result.error is not None and result.error.ename == "NoSuchEngine" and "[0, 1]" in result.error.evalue


def test_lost_engine_fails_its_request_and_requeues_its_task_with_retries(world: World) -> None:
    first, second = world.add_engines(2)
    client = world.add_client()
    world.say(client, task(0, retries=1), request(1, [0]))
    assert len(get_keys(world, first)) == 2
    world.disconnect(first, "was killed")
    world.forget_news(client)
    failed = world.out.take(client, m.Result)
    assert failed.seq == 1 and failed.error is not None and failed.error.ename == "EngineError"
    assert "engine 0 was killed" in failed.error.evalue and "`hpcviews logs test`" in failed.error.evalue
    (key,) = get_keys(world, second)
    world.say(second, done(key))
    assert world.out.take(client, m.Result).engine == 1
    world.out.assert_empty()


def test_engines_that_end_with_the_cluster_are_not_called_killed(world: World) -> None:
    (engine,) = world.add_engines(1)
    client = world.add_client()
    world.say(client, request(0, [0]))
    dispatch.on_event(world.core, world.out, StopRequested("its owner is gone"))
    world.disconnect(engine, "was killed")
    failed = next(message for message, _ in world.out.inboxes[client] if isinstance(message, m.Result))
    assert failed.error is not None and "engine 0 ended with the cluster" in failed.error.evalue


def test_status_tells_of_engines_that_are_lost_until_they_are_back(world: World) -> None:
    engines = world.add_engines(2)
    client = world.add_client()
    world.disconnect(engines[0], "was killed")
    world.forget_news(client)
    world.say(client, m.StatusQuery(1))
    told = [(e.info.id, e.state, e.why) for e in world.out.take(client, m.Status).engines]
    assert told == [(0, "lost", "was killed"), (1, "idle", "")]
    world.add_engine(0, life=1, engine_id=0)
    world.forget_news(client)
    world.say(client, m.StatusQuery(2))
    assert [e.state for e in world.out.take(client, m.Status).engines] == ["idle", "idle"]


def test_late_reply_of_an_older_attempt_is_dropped(world: World) -> None:
    first, second = world.add_engines(2)
    client = world.add_client()
    world.say(client, task(0, retries=1))
    (old,) = get_keys(world, first)
    world.disconnect(first)
    (new,) = get_keys(world, second)
    again = world.add_engine(0, life=1, engine_id=0)
    world.forget_news(client)
    world.say(again, done(old))
    assert world.core.late_replies == 1 and not world.out.take_all(client)
    world.say(second, done(new), done(new))
    assert world.out.take(client, m.Result).seq == 0
    assert world.core.late_replies == 2
    world.forget_news(client)
    world.out.assert_empty()


def test_failed_task_is_retried_on_an_engine_that_has_not_tried_it(world: World) -> None:
    engines = world.add_engines(2)
    client = world.add_client()
    world.say(client, task(0, retries=3))
    seen = []
    for _ in range(4):
        holder = next(e for e in engines if world.out.inboxes.get(e))
        (key,) = get_keys(world, holder)
        seen.append(engines.index(holder))
        world.say(holder, done(key, error="ValueError"))
    assert seen[0] != seen[1], "the other engine was to be preferred"
    result = world.out.take(client, m.Result)
    assert result.error is not None and result.error.ename == "ValueError"


def test_task_for_named_engines_waits_for_them_and_fails_when_they_are_gone(world: World) -> None:
    engines = world.add_engines(2)
    client = world.add_client()
    world.say(client, request(0, [1]), task(1, targets=[1]))
    assert not world.out.take_all(engines[0])
    world.disconnect(engines[1], "was killed")
    world.forget_news(client)
    names = [world.out.take(client, m.Result).error.ename for _ in range(2)]  # type: ignore[union-attr]
    assert names == ["EngineError", "EngineError"]
    world.out.assert_empty()


def test_tasks_wait_while_engines_are_starting_and_fail_when_none_can_come(world: World) -> None:
    world.start_set(2)
    client = world.add_client()
    world.say(client, task(0))
    assert not world.out.take_all(client)
    world.end_set(why="exit code 1: No module named x")
    world.forget_news(client)
    error = world.out.take(client, m.Result).error
    assert error is not None and error.ename == "NoEnginesRegistered" and "No module named x" in error.evalue
    world.say(client, task(1))
    assert world.out.take(client, m.Result).error is not None


def test_abort_ends_what_waits_and_asks_back_what_is_out(world: World) -> None:
    (engine,) = world.add_engines(1)
    client = world.add_client()
    world.say(client, task(0), task(1), request(2, [0]))
    world.say(client, m.Abort([0, 1, 2, 99]))
    first = world.out.take(client, m.Result)
    assert first.seq == 1 and first.error is not None and first.error.ename == "TaskAborted"
    runs = {run.key: run for run, _ in world.out.take_all(engine) if isinstance(run, m.Run)}
    running, queued = runs
    world.say(engine, m.Withdrawn([queued], [running]))
    assert world.out.take(client, m.Result).seq == 2
    world.say(engine, done(running))
    last = world.out.take(client, m.Result)
    assert last.seq == 0 and last.error is None, "what has started runs to its end"
    world.out.assert_empty()


def test_functions_travel_once_and_are_forgotten_when_nobody_needs_them(world: World) -> None:
    (engine,) = world.add_engines(1)
    client = world.add_client()
    world.say(client, m.Function(b"code", 0, b"d"))
    world.say(client, m.Task(b"", 0, 0, "apply", b"d", None, 0), m.Task(b"", 0, 1, "apply", b"d", None, 0))
    world.say(client, m.ForgetFunction(b"d"))
    function, first = world.out.take(engine, m.Function), world.out.take(engine, m.Run)
    assert function.data == b"code"
    world.say(engine, done(first.key))
    second = world.out.take(engine, m.Run)
    assert b"d" in world.core.functions.entries, "an unfinished task still needs it"
    world.say(engine, done(second.key))
    world.out.take(engine, m.ForgetFunction)
    assert not world.core.functions.entries


def test_request_with_a_function_that_was_not_sent_is_refused(world: World) -> None:
    world.add_engines(1)
    client = world.add_client()
    world.say(client, m.Task(b"", 0, 0, "apply", b"?", None, 0), m.Request(b"", 0, 1, [0], "apply", b"?"))
    for _ in range(2):
        error = world.out.take(client, m.Result).error
        assert error is not None and error.ename == "ProtocolError"


@pytest.mark.parametrize("how", ["it leaves", "it is killed"])
def test_client_that_is_gone_has_its_tasks_run(world: World, how: str) -> None:
    (engine,) = world.add_engines(1)
    client = world.add_client()
    world.say(client, task(0), task(1))
    if how == "it leaves":
        world.say(client, m.ClientLeave())
    else:
        world.disconnect(client)
    ran = 0
    while keys := get_keys(world, engine):
        for key in keys:
            world.say(engine, done(key))
            ran += 1
    assert ran == 2
    world.out.assert_empty()


def test_credit_grows_for_short_tasks_and_stays_one_for_long_ones(world: World) -> None:
    (engine,) = world.add_engines(1)
    client = world.add_client()
    world.say(client, *[task(i) for i in range(700)])
    held = []
    for _ in range(6):
        keys = get_keys(world, engine)
        held.append(world.core.engines[0].load)  # type: ignore[index]
        for key in keys:
            world.say(engine, done(key, took=0.0001))
    assert held[0] == 1 and max(held) >= 16, held
    for key in get_keys(world, engine)[:10]:
        world.say(engine, done(key, took=60.0))
    assert world.core.engines[0].credit == 1  # type: ignore[index]


def test_work_is_recalled_from_a_stuck_engine_for_an_idle_one(world: World) -> None:
    stuck, idle = world.add_engines(2)
    client = world.add_client()
    world.core.engines[0].credit = 4  # type: ignore[index]
    world.say(client, request(100, [1]))
    (busy,) = get_keys(world, idle)
    world.core.engines[1].credit = 1  # type: ignore[index]
    world.core.scheduler.update_load(world.core.engines[1])  # type: ignore[index]
    world.say(client, *[task(i) for i in range(4)])
    keys = get_keys(world, stuck)
    assert len(keys) == 4
    world.say(idle, done(busy))
    assert world.core.scheduler.may_recall
    world.tick(1.0)
    asked = world.out.take(stuck, m.Withdraw).keys
    assert set(asked) < set(keys) and keys[0] not in asked
    world.say(stuck, m.Withdrawn(asked, []))
    assert get_keys(world, idle), "the idle engine gets what was taken back"


def test_two_clients_take_turns(world: World) -> None:
    (engine,) = world.add_engines(1)
    many, few = world.add_client("A"), world.add_client("B")
    world.say(many, *[task(i) for i in range(50)])
    world.say(few, *[task(i) for i in range(3)])
    order = []
    while len(order) < 8:
        (run,) = [run for run, _ in world.out.take_all(engine) if isinstance(run, m.Run)]
        work = world.core.engines[0].in_flight[run.key]  # type: ignore[index]
        order.append(work.client.route == few)
        world.say(engine, done(run.key, took=1.0))
    assert sum(order) == 3, "three tasks of the one are done while the other has 47 waiting"


def test_versions_must_be_the_same(world: World) -> None:
    world.say(b"old", m.ClientHello("0.0.9", PYTHON, "c" * 16, "node", 1))
    refused = world.out.take(b"old", m.Refused)
    assert refused.error == "VersionMismatch" and "0.0.9" in refused.text and VERSION in refused.text
    world.say(b"py", m.ClientHello(VERSION, "3.9", "c" * 16, "node", 1))
    assert "3.9" in world.out.take(b"py", m.Refused).text


def test_engine_that_cannot_serve_ends_its_set_with_the_reason(world: World) -> None:
    client = world.add_client()
    world.start_set(2)
    world.say(b"e0", m.EngineHello(VERSION, PYTHON, make_info(0), "a world of size 1"))
    assert world.out.take(b"e0", m.Refused).error == "MpiMismatch"
    assert [order.set_ids for order in world.out.orders] == [(0,)]
    world.end_set()
    infos = [msg.info for msg, _ in world.out.take_all(client) if isinstance(msg, m.SetChanged)]
    assert (infos[-1].state, infos[-1].error, infos[-1].why) == ("failed", "MpiMismatch", "a world of size 1")


def test_stop_ends_engines_then_processes_then_the_controller(world: World) -> None:
    (engine,) = world.add_engines(1)
    client = world.add_client()
    world.say(client, task(0), m.StopCluster())
    assert isinstance(world.out.take_all(engine)[-1][0], m.EngineStop)
    assert [order.set_ids for order in world.out.orders] == [(0,)] and not world.out.is_finished
    world.disconnect(engine)
    world.end_set()
    assert world.out.is_finished and world.core.sets[0].phase is SetPhase.ENDED  # type: ignore[index]
    world.forget_news(client)
    error = world.out.take(client, m.Result).error
    assert error is not None and error.ename == "EngineError"


def test_stop_without_engines_finishes_at_once(world: World) -> None:
    dispatch.on_event(world.core, world.out, StopRequested("its owner is gone"))
    assert world.out.is_finished


@pytest.mark.parametrize("message", [task(0), done(1), m.StopCluster(), m.Abort([1])])
def test_nothing_is_done_for_a_peer_that_has_not_said_hello(world: World, message: m.Message) -> None:
    world.add_engines(1)
    try:
        world.say(b"stranger", message)
    except ProtocolError:
        pass
    assert not world.core.stopping and not world.core.scheduler.waiting
    assert not world.out.inboxes.get(b"stranger")


def test_a_key_of_one_role_does_not_open_the_other(world: World) -> None:
    with pytest.raises(ProtocolError, match="key: client"):
        world.say(b"x", m.EngineHello(VERSION, PYTHON, make_info(0), ""), role="client")
    with pytest.raises(ProtocolError, match="key: engine"):
        world.say(b"x", m.ClientHello(VERSION, PYTHON, "c" * 16, "n", 1), role="engine")
    world.out.assert_empty()


def test_engine_that_reconnects_keeps_its_id(world: World) -> None:
    (old,) = world.add_engines(1)
    client = world.add_client()
    world.say(client, request(0, [0]))
    route = b"engine-anew"
    world.say(route, m.EngineHello(VERSION, PYTHON, make_info(0, engine_id=0), ""))
    assert world.out.take(route, m.EngineWelcome).id == 0
    world.forget_news(client)
    error = world.out.take(client, m.Result).error
    assert error is not None and error.ename == "EngineError"
    assert world.core.sets[0].phase is SetPhase.READY  # type: ignore[index]
    assert world.out.take_all(old)


def test_task_for_an_empty_list_of_engines_fails_by_name(world: World) -> None:
    world.add_engines(1)
    client = world.add_client()
    world.say(client, task(0, targets=[]))
    result = world.out.take(client, m.Result)
    assert result.error is not None and result.error.ename == "NoSuchEngine" and "empty" in result.error.evalue


def test_task_for_an_empty_list_of_engines_that_waited_for_a_set_fails_with_it(world: World) -> None:
    world.start_set(1)
    client = world.add_client()
    world.say(client, task(0, targets=[]))
    world.end_set()
    world.forget_news(client)
    result = world.out.take(client, m.Result)
    assert result.error is not None and result.error.ename == "NoSuchEngine"


@pytest.mark.parametrize("nonsense", [request(2**64 - 1, [0, 1]), task(2**64 - 1), request(-1, [0]), task(-1)])
def test_numbers_whose_answers_could_not_be_written_are_refused(world: World, nonsense: m.Message) -> None:
    engines = world.add_engines(2)
    client = world.add_client()
    with pytest.raises(ProtocolError, match="numbered from"):
        world.say(client, nonsense)
    assert not get_keys(world, engines[0]) + get_keys(world, engines[1])


@pytest.mark.parametrize("again", [request(5, [0]), request(3, [0, 1, 0]), task(6)])
def test_numbers_that_are_under_way_are_refused(world: World, again: m.Message) -> None:
    engines = world.add_engines(2)
    client = world.add_client()
    world.say(client, request(5, [0, 1]))
    with pytest.raises(ProtocolError, match="under way"):
        world.say(client, again)
    for engine in engines:
        (key,) = get_keys(world, engine)
        world.say(engine, done(key))
    world.forget_news(client)
    assert [world.out.take(client, m.Result).seq for _ in range(2)] == [5, 6]
    world.out.assert_empty()
    world.say(client, task(5))  # they are free again


@pytest.mark.parametrize("when", [float("nan"), float("inf"), -1.0, 1e300])
def test_times_that_are_none_are_refused(world: World, when: float) -> None:
    (engine,) = world.add_engines(1)
    client = world.add_client()
    world.say(client, task(0))
    (key,) = get_keys(world, engine)
    for started, completed in ((0.0, when), (when, 0.0)):
        with pytest.raises(ProtocolError, match="ran from"):
            world.say(engine, m.Done(b"", 0, key, started, completed, None))
    world.say(engine, done(key))
    assert world.out.take(client, m.Result).error is None


def test_request_that_is_given_back_unasked_runs_nowhere_else(world: World) -> None:
    first, second = world.add_engines(2)
    client = world.add_client()
    world.say(client, request(0, [0]))
    (key,) = get_keys(world, first)
    with pytest.raises(ProtocolError, match="unasked"):
        world.say(first, m.Withdrawn([key], []))
    assert not get_keys(world, second)
    world.say(first, done(key))
    assert world.out.take(client, m.Result).engine == 0


def test_tasks_of_a_client_that_has_left_run_also_when_they_are_recalled(world: World) -> None:
    first, second = world.add_engines(2)
    client = world.add_client()
    for seq in range(0, 8, 2):  # until both engines hold several short tasks
        world.say(client, task(seq), task(seq + 1))
        for engine in (first, second):
            world.say(engine, *map(done, get_keys(world, engine)))
    world.say(client, *map(task, range(8, 16)))
    world.say(client, m.ClientLeave())
    held = get_keys(world, first)
    started = get_keys(world, second)
    world.say(second, *map(done, started))
    world.tick(1.0)
    recalled = world.out.take(first, m.Withdraw).keys
    assert recalled
    world.say(first, m.Withdrawn(recalled, []))
    again = get_keys(world, second) + get_keys(world, first)
    assert len(started) + len(held) - len(recalled) + len(again) == 8


def test_tasks_of_a_client_that_has_left_are_tried_again_when_their_engine_is_lost(world: World) -> None:
    first, second = world.add_engines(2)
    client = world.add_client()
    world.say(client, task(0, retries=1))
    assert get_keys(world, first)
    world.say(client, m.ClientLeave())
    world.disconnect(first)
    (key,) = get_keys(world, second)
    world.say(second, done(key))


def test_recalled_task_of_a_client_that_was_killed_runs(world: World) -> None:
    first, second = world.add_engines(2)
    client = world.add_client()
    for seq in range(0, 8, 2):
        world.say(client, task(seq), task(seq + 1))
        for engine in (first, second):
            world.say(engine, *map(done, get_keys(world, engine)))
    world.say(client, *map(task, range(8, 16)))
    get_keys(world, first)
    world.say(second, *map(done, get_keys(world, second)))
    world.tick(1.0)
    recalled = world.out.take(first, m.Withdraw).keys
    world.disconnect(client)
    world.say(first, m.Withdrawn(recalled, []))
    assert get_keys(world, second)


def test_missing_engines_are_explained_in_few_words_whatever_the_size(world: World) -> None:
    world.add_engines(30)
    client = world.add_client()
    world.say(client, request(0, [99]))
    result = world.out.take(client, m.Result)
    assert result.error is not None and "18, 19, … 10 more]" in result.error.evalue


class CountingDict(dict[Any, Any]):
    """Counts how many of its entries are looked at by iterating."""

    looks = 0

    def _count(self, entries: Any) -> Iterator[Any]:
        for entry in entries:
            self.looks += 1
            yield entry

    def __iter__(self) -> Iterator[Any]:
        return self._count(super().__iter__())

    def values(self) -> Any:
        return self._count(super().values())

    def items(self) -> Any:
        return self._count(super().items())


def test_looking_for_work_to_recall_passes_over_requests_however_many_wait() -> None:
    world = World()
    world.core.check = lambda: None  # type: ignore[method-assign]  # looks at every request, every time
    first, _ = world.add_engines(2)
    client = world.add_client()
    count = 50_000
    world.say(client, task(0, targets=[0]))  # to be recalled, if another engine were allowed to run it
    world.say(client, request(1, [0] * count))
    assert world.core.scheduler.may_recall
    engine = world.core.engines[0]  # type: ignore[index]
    engine.in_flight = counted = CountingDict(engine.in_flight)
    for _ in range(200):  # one second of ticks
        world.tick(0.005)
    assert counted.looks < 1000, "each tick looked at the requests"
    assert not any(isinstance(message, m.Withdraw) for message, _ in world.out.take_all(first))


def test_without_tasks_there_is_nothing_to_recall(world: World) -> None:
    world.add_engines(2)
    client = world.add_client()
    world.say(client, request(0, [0] * 3))
    assert not world.core.scheduler.may_recall  # the controller sleeps, however long that takes
    world.out.take_all(client)


def test_task_behind_a_long_request_is_recalled(world: World) -> None:
    first, second = world.add_engines(2)
    client = world.add_client()
    for seq in range(4):  # until the first engine may hold two
        world.say(client, task(seq, targets=[0]))
        world.say(first, *map(done, get_keys(world, first)))
    world.say(client, request(4, [0, 1]), task(6))
    _, behind = get_keys(world, first)
    world.say(second, *map(done, get_keys(world, second)))
    world.tick(1.0)
    assert world.out.take(first, m.Withdraw).keys == [behind]
    world.say(first, m.Withdrawn([behind], []))
    assert len(get_keys(world, second)) == 1
