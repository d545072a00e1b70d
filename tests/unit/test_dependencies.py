"""Tasks that wait for other requests, for certain engines, or not longer than a while: the core's decisions."""

from __future__ import annotations

from typing import Any

import pytest
from core_world import PYTHON, VERSION, World, done, make_info, on, request, task

from hpcviews.controller import dispatch
from hpcviews.controller.outcomes import PAGE_REQUESTS, Outcome, Outcomes
from hpcviews.controller.state import Route, WorkPhase
from hpcviews.errors import ProtocolError
from hpcviews.ids import Session
from hpcviews.wire import messages as m


class Cast:
    """Two engines and a client, and who holds what."""

    def __init__(self, engines: int = 2) -> None:
        self.world = World()
        self.engines = self.world.add_engines(engines)
        self.client = self.world.add_client()
        self.world.forget_news(self.client)
        self.held: dict[int, tuple[Route, int]] = {}
        self.results: dict[int, m.Result] = {}
        self.world.out.on_send = self._on_send

    def _on_send(self, route: Route, message: m.Message) -> None:
        if isinstance(message, m.Run):
            self.held[int(message.data)] = (route, message.key)
        elif isinstance(message, m.Result) and route == self.client:
            assert message.seq not in self.results, "answered twice"
            self.results[message.seq] = message

    def say(self, *messages: m.Message, client: Route | None = None) -> None:
        self.world.say(client or self.client, *messages)

    def task(self, seq: int, **how: Any) -> None:
        self.say(task(seq, data=str(seq).encode(), **how))

    def request(self, seq: int, engine: int) -> None:
        self.say(request(seq, [engine], data=str(seq).encode()))

    def finish(self, seq: int, error: str = "") -> None:
        route, key = self.held.pop(seq)
        self.world.say(route, done(key, error=error))

    def where(self, seq: int) -> int:
        return self.engines.index(self.held[seq][0])

    def error(self, seq: int) -> tuple[str, str]:
        error = self.results[seq].error
        assert error is not None
        return error.ename, error.evalue

    def add_engine(self) -> None:
        """One more, of a set of its own."""
        set_id = len(self.world.core.sets)
        self.world.start_set(1, set_id)
        self.engines.append(self.world.add_engine(0, set_id=set_id))

    def kill(self, engine: int, why: str = "was killed") -> None:
        for seq in [s for s, (route, _) in self.held.items() if route == self.engines[engine]]:
            del self.held[seq]
        self.world.disconnect(self.engines[engine], why)


@pytest.fixture
def cast() -> Cast:
    return Cast()


# ---------------------------------------------------------------- after


def test_task_runs_after_those_it_names(cast: Cast) -> None:
    """
    0   1
     \\ /
      2
    """
    cast.task(0)
    cast.task(1)
    cast.task(2, after=on(0, 1))
    assert set(cast.held) == {0, 1}
    cast.finish(0)
    assert 2 not in cast.held
    cast.finish(1)
    assert set(cast.held) == {2}
    cast.finish(2)
    assert [cast.results[i].error for i in range(3)] == [None] * 3


def test_requests_of_any_queue_and_any_client_finished_or_not_can_be_named(cast: Cast) -> None:
    other = cast.world.add_client("B")
    cast.request(0, 1)
    cast.say(task(0, data=b"100"), client=other)
    cast.finish(0)
    cast.task(1, after=m.DependencyInfo(["A" * 16 + "-0", "B" * 16 + "-0"], True, True, False))
    assert 1 not in cast.held
    cast.finish(100)
    assert 1 in cast.held


def test_requests_of_clients_that_are_gone_can_be_named(cast: Cast) -> None:
    other = cast.world.add_client("B")
    cast.say(task(0, data=b"100"), task(1, data=b"101"), client=other)
    cast.finish(100)
    cast.say(m.ClientLeave(), client=other)
    cast.task(0, after=on(0, 1, name="B"))
    assert 0 not in cast.held
    cast.finish(101)
    assert 0 in cast.held
    assert list(cast.world.core.sessions) == ["A" * 16]


@pytest.mark.parametrize("is_refused", [False, True])
def test_request_of_another_client_may_still_be_under_way(cast: Cast, is_refused: bool) -> None:
    other = cast.world.add_client("B")
    cast.task(0, after=on(7, name="B", failure=True))
    cast.task(1, after=on(7, name="B"), timeout_s=60)
    assert not cast.results
    cast.world.tick(9)
    cast.say(request(7, [5 if is_refused else 0], data=b"100"), client=other)
    assert (0 in cast.held) == is_refused
    if is_refused:
        assert cast.error(1)[0] == "ImpossibleDependency" and "BB-7 ended with NoSuchEngine" in cast.error(1)[1]
        return
    cast.world.tick(9)
    cast.finish(100)
    assert {0, 1} <= set(cast.held)


def test_request_of_another_client_that_does_not_come_is_named_after_a_while(cast: Cast) -> None:
    other = cast.world.add_client("B")
    cast.task(0, after=on(7, name="B"))
    cast.task(1, after=on(0))
    cast.task(2, after=on("B" * 16 + "-8..4000000000000000000"))
    assert cast.error(2)[0] == "InvalidDependency", "so many cannot be under way"
    cast.world.tick(5)
    cast.task(3, after=on(7, name="B"))
    assert cast.world.core.find_deadline() == 10.0
    cast.world.tick(6)
    for seq in (0, 3):
        assert cast.error(seq)[0] == "InvalidDependency" and "B-7, which nobody has submitted" in cast.error(seq)[1]
    assert cast.error(1)[0] == "ImpossibleDependency"
    assert cast.world.core.find_deadline() is None
    cast.say(request(7, [0], data=b"100"), client=other)
    cast.task(4, after=on(7, name="B"))
    cast.finish(100)
    assert 4 in cast.held


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("A" * 16 + "-7", "which nobody has submitted"),
        ("C" * 16 + "-0", "which nobody has submitted"),
        ("nope", "not a msg_id: 'nope'"),
        ("A" * 16 + "-5..3", "not a run of msg_ids"),
        ("A" * 16 + "-0..4000000000000000000", "A-1, which nobody has submitted"),
        ("A" * 16 + "-1", "A-1, which nobody has submitted"),
    ],
)
@pytest.mark.parametrize("flag", ["after", "follow"])
def test_request_that_does_not_exist_is_named_at_once(cast: Cast, name: str, words: str, flag: str) -> None:
    cast.task(0)
    cast.task(1, **{flag: on(name)})  # the last case: itself
    kind, text = cast.error(1)
    assert kind == "InvalidDependency" and words in text and f"`{flag}`" in text
    cast.finish(0)
    assert 0 in cast.results


def test_forgotten_request_cannot_be_named(cast: Cast) -> None:
    cast.world.core.outcomes = Outcomes(pages_max=1)
    cast.task(0)
    cast.finish(0)
    cast.task(PAGE_REQUESTS)
    cast.finish(PAGE_REQUESTS)
    cast.task(PAGE_REQUESTS + 1, after=on(0))
    kind, text = cast.error(PAGE_REQUESTS + 1)
    assert kind == "InvalidDependency" and f"the last {PAGE_REQUESTS} requests" in text


RULES = [
    # all, success, failure; endings of two requests; what becomes of the task
    (True, True, False, ["", ""], "runs"),
    (True, True, False, ["", "ValueError"], "ImpossibleDependency"),
    (True, False, True, ["ValueError", "ValueError"], "runs"),
    (True, False, True, ["ValueError", ""], "ImpossibleDependency"),
    (True, True, True, ["ValueError", ""], "runs"),
    (False, True, False, ["ValueError", ""], "runs"),
    (False, True, False, ["ValueError", "ValueError"], "ImpossibleDependency"),
    (False, False, True, ["", "ValueError"], "runs"),
    (False, False, True, ["", ""], "ImpossibleDependency"),
    (False, True, True, ["ValueError", "ValueError"], "runs"),
]


@pytest.mark.parametrize("early", [0, 1, 2])
@pytest.mark.parametrize(("all_", "success", "failure", "endings", "outcome"), RULES)
def test_rules_hold_whenever_the_requests_end(
    cast: Cast, all_: bool, success: bool, failure: bool, endings: list[str], outcome: str, early: int
) -> None:
    for seq in (0, 1):
        cast.task(seq)
    for seq in range(early):
        cast.finish(seq, endings[seq])
    cast.task(2, after=on(0, 1, all=all_, success=success, failure=failure))
    for seq in range(early, 2):
        cast.finish(seq, endings[seq])
    if outcome == "runs":
        cast.finish(2)
        assert cast.results[2].error is None
    else:
        assert cast.error(2)[0] == outcome and "request AAAA" in cast.error(2)[1]


def test_any_one_is_enough_before_the_others_have_ended(cast: Cast) -> None:
    cast.task(0)
    cast.task(1)
    cast.task(2, after=on(0, 1, all=False))
    cast.finish(1)
    assert 2 in cast.held and 0 in cast.held


def test_failure_of_what_a_task_waits_for_is_told_and_cascades(cast: Cast) -> None:
    """0 - 1 - 2 - 3, and 4 after the failure of 2"""
    cast.task(0)
    for seq in (1, 2, 3):
        cast.task(seq, after=on(seq - 1))
    cast.task(4, after=on(2, success=False, failure=True))
    cast.finish(0, "ValueError")
    why = f"request {'A' * 16}-0 ended with ValueError: text, and only a success counts"
    assert cast.error(1) == ("ImpossibleDependency", f"`after` can never be satisfied: {why}")
    assert cast.error(3)[1] == (
        f"`after` can never be satisfied: request {'A' * 16}-2 did not run, because {why}, and only a success counts"
    )
    assert set(cast.held) == {4}
    cast.task(5, after=on(3))
    assert "AA-3 ended with ImpossibleDependency" in cast.error(5)[1]


def test_chain_of_a_hundred_thousand_tasks_falls_without_recursion() -> None:
    cast = Cast()
    count = 100_000
    core, out = cast.world.core, cast.world.out
    cast.task(0)
    for seq in range(1, count):
        dispatch.on_message(core, out, cast.client, "any", task(seq, data=b"0", after=on(seq - 1)), [], 0.0)
    core.check()
    route, key = cast.held.pop(0)
    dispatch.on_message(core, out, route, "any", done(key, error="ValueError"), [], 0.0)
    core.check()
    assert len(cast.results) == count
    assert max(len(result.error.evalue) for result in cast.results.values() if result.error) < 300


def test_tasks_that_wait_for_the_same_requests_share_a_gate() -> None:
    cast = Cast()
    count = 300
    for seq in range(count):
        cast.task(seq)
    core = cast.world.core
    run = f"{'A' * 16}-0..{count - 1}"
    for seq in range(count, 2 * count):
        dispatch.on_message(
            core, cast.world.out, cast.client, "any", task(seq, data=str(seq).encode(), after=on(run)), [], 0.0
        )
    core.check()
    for seq in range(count):
        work = core.find_work(Session("A" * 16), seq)
        assert work is not None and work.dependents is not None and len(work.dependents) == 1
    while len(cast.results) < count:
        cast.finish(min(cast.held))
    assert min(cast.held) == count and core.dependencies.waiting == 0
    late = 2 * count
    cast.task(late, after=on(run))  # all have ended
    while cast.held:
        cast.finish(min(cast.held))
    assert len(cast.results) == 2 * count + 1 and cast.results[late].error is None


def test_waiting_tasks_can_be_withdrawn_and_leave_nothing_behind(cast: Cast) -> None:
    cast.task(0)
    core = cast.world.core
    for seq in range(1, 200):
        cast.task(seq, after=on(0), follow=on(0))
        cast.say(m.Abort([seq]))
        assert cast.error(seq)[0] == "TaskAborted"
    work = core.find_work(Session("A" * 16), 0)
    assert work is not None and work.dependents is not None
    assert len(work.dependents) <= 32, "gates that nobody waits at pile up"
    assert core.dependencies.waiting == 0
    cast.finish(0)


def test_waiting_tasks_of_a_client_that_is_killed_run(cast: Cast) -> None:
    other = cast.world.add_client("B")
    cast.task(0)
    cast.say(task(0, data=b"100", after=on(0)), task(1, data=b"101", after=on(0, name="B")), client=other)
    cast.world.disconnect(other)
    assert cast.world.core.dependencies.waiting == 2
    cast.finish(0)
    assert 100 in cast.held


def test_waiting_tasks_are_counted_with_those_that_wait_for_engines(cast: Cast) -> None:
    cast.task(0)
    cast.task(1, after=on(0))
    cast.world.out.take_all(cast.client)
    cast.say(m.StatusQuery(9))
    assert cast.world.out.take(cast.client, m.Status).waiting_tasks == 1


# ---------------------------------------------------------------- follow


def test_task_follows_to_the_engine_where_the_others_ran(cast: Cast) -> None:
    for seq, engine in ((0, 1), (1, 1)):
        cast.request(seq, engine)
    cast.task(2, follow=on(0, 1))
    assert 2 not in cast.held
    cast.finish(0)
    cast.finish(1)
    assert cast.where(2) == 1


@pytest.mark.parametrize("is_early", [False, True])
def test_task_cannot_follow_to_two_engines(cast: Cast, is_early: bool) -> None:
    cast.request(0, 0)
    cast.request(1, 1)
    if is_early:
        cast.finish(0)
        cast.finish(1)
    cast.task(2, follow=on(0, 1))
    if not is_early:
        cast.finish(0)
        cast.finish(1)
    kind, text = cast.error(2)
    assert kind == "ImpossibleDependency" and "engines 0, 1" in text


def test_following_any_goes_to_one_of_their_engines() -> None:
    cast = Cast(engines=3)
    cast.request(0, 1)
    cast.request(1, 2)
    cast.finish(0)
    cast.finish(1)
    for seq in range(2, 8):
        cast.task(seq, follow=on(0, 1, all=False))
    assert {cast.where(seq) for seq in cast.held} == {1, 2}


def test_follow_and_targets_both_count(cast: Cast) -> None:
    cast.request(0, 0)
    cast.finish(0)
    cast.task(1, follow=on(0), targets=[0])
    assert cast.where(1) == 0
    cast.task(2, follow=on(0), targets=[1])
    kind, text = cast.error(2)
    assert kind == "ImpossibleDependency" and "`follow` wants engine 0" in text and "`targets`" in text


def test_following_a_request_that_ran_nowhere_is_impossible(cast: Cast) -> None:
    cast.task(0, after=on("nope"))
    cast.task(1, follow=on(0, failure=True))
    kind, text = cast.error(1)
    assert kind == "ImpossibleDependency" and "ran on no engine" in text


def test_task_cannot_follow_to_an_engine_that_is_gone(cast: Cast) -> None:
    cast.request(0, 1)
    cast.finish(0)
    cast.kill(1)
    cast.task(1, follow=on(0))
    kind, text = cast.error(1)
    assert kind == "ImpossibleDependency" and "ran on engine 1: engine 1 was killed" in text


def test_engine_that_is_lost_ends_those_that_wait_to_follow_to_it(cast: Cast) -> None:
    cast.request(0, 1)
    cast.finish(0)
    cast.request(1, 1)  # engine 1 has no room: the task stays here
    cast.task(2, follow=on(0))
    cast.task(3, follow=on(0))
    cast.task(4, after=on(2, success=False, failure=True))
    assert 2 not in cast.held and cast.world.core.scheduler.waiting == 2
    cast.kill(1)
    assert cast.error(2)[0] == cast.error(3)[0] == "ImpossibleDependency"
    assert cast.error(1)[0] == "EngineError"
    assert cast.where(4) == 0


def test_engine_that_is_lost_in_the_middle_of_a_graph(cast: Cast) -> None:
    """
    0 (engine 0)   1 (engine 1, lost)
         \\        /    \\
          2 (both)      3 (after 1, also if it failed)
    """
    cast.request(0, 0)
    cast.request(1, 1)
    cast.task(2, after=on(0, 1))
    cast.task(3, after=on(1, failure=True))
    cast.finish(0)
    cast.kill(1)
    assert cast.error(1)[0] == "EngineError"
    kind, text = cast.error(2)
    assert kind == "ImpossibleDependency" and "AA-1 ended with EngineError: engine 1 was killed" in text
    assert cast.where(3) == 0


# ---------------------------------------------------------------- timeout


def test_timeout_of_a_task_that_waits_for_others_says_which(cast: Cast) -> None:
    cast.task(0)
    cast.task(1, after=on(0), timeout_s=5)
    cast.task(2, after=on(1))
    assert cast.world.core.deadlines.find_next() == 5.0
    cast.world.tick(4.9)
    assert not cast.results
    cast.world.tick(0.2)
    kind, text = cast.error(1)
    assert kind == "DependencyTimeout"
    assert "its timeout of 5 s" in text and f"1 of 1 requests named by `after` have not ended ({'A' * 16}-0)" in text
    assert cast.error(2)[0] == "ImpossibleDependency"
    assert cast.world.core.deadlines.find_next() is None


def test_timeout_for_lack_of_engines(cast: Cast) -> None:
    for seq in (0, 1):
        cast.request(seq, seq)
    cast.task(2, timeout_s=1)
    assert 2 not in cast.held
    cast.world.tick(2)
    assert cast.error(2)[0] == "TaskTimeout" and "were busy" in cast.error(2)[1]
    cast.finish(0)
    assert 2 not in cast.held


def test_timeout_without_any_engine() -> None:
    world = World()
    world.start_set(1)
    client = world.add_client()
    world.say(client, task(0, timeout_s=1))
    world.tick(2)
    error = world.out.take(client, m.Result).error
    assert error is not None and error.ename == "TaskTimeout" and "none that may run it was there" in error.evalue


def test_timeout_does_not_bound_the_run_nor_a_retry(cast: Cast) -> None:
    cast.task(0, timeout_s=1, retries=1)
    cast.world.tick(100)
    cast.request(1, 1)
    cast.finish(0, "ValueError")
    cast.world.tick(100)
    assert not cast.results
    cast.finish(1)
    cast.finish(0)
    assert cast.results[0].error is None


def make_late(cast: Cast) -> m.Withdraw:
    """Task 2 is handed out in time, behind 1, which takes long."""
    cast.task(0)
    cast.finish(0)  # two at a time from now on
    cast.task(1)
    cast.task(2, timeout_s=1)
    assert {1, 2} <= set(cast.held)
    cast.world.out.take_all(cast.engines[0])
    cast.world.tick(2)
    assert 2 not in cast.results
    return cast.world.out.take(cast.engines[0], m.Withdraw)


def test_timeout_ends_a_task_that_waits_in_a_busy_engine() -> None:
    cast = Cast(engines=1)
    withdraw = make_late(cast)
    assert withdraw.keys == [cast.held[2][1]]
    cast.world.say(cast.engines[0], m.Withdrawn(withdraw.keys, []))
    assert cast.error(2)[0] == "TaskTimeout" and "all that may run it were busy" in cast.error(2)[1]


def test_timeout_leaves_a_task_alone_that_has_begun_meanwhile() -> None:
    cast = Cast(engines=1)
    withdraw = make_late(cast)
    cast.world.say(cast.engines[0], m.Withdrawn([], withdraw.keys))
    cast.world.tick(100)
    assert not cast.world.out.inboxes.get(cast.engines[0])
    cast.finish(1)
    cast.finish(2)
    assert cast.results[2].error is None


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan"), float("inf"), 1e300])
def test_timeout_that_is_none_is_refused(cast: Cast, timeout_s: float) -> None:
    with pytest.raises(ProtocolError, match="timeout"):
        cast.task(0, timeout_s=timeout_s)
    cast.world.core.check()


def test_deadlines_of_tasks_that_ran_in_time_do_not_pile_up(cast: Cast) -> None:
    for seq in range(1000):
        cast.task(seq, timeout_s=3600)
        cast.finish(seq)
    assert len(cast.world.core.deadlines._heap) < 200


# ---------------------------------------------------------------- retries


def test_retries_prefer_engines_that_have_not_tried_the_task_although_the_other_is_idle() -> None:
    cast = Cast(engines=2)
    cast.request(0, 1)
    cast.task(1, retries=5)
    assert cast.where(1) == 0
    cast.finish(1, "ValueError")
    assert 1 not in cast.held, "the broken node would eat all retries"
    cast.finish(0)
    assert cast.where(1) == 1


def test_retries_go_on_after_all_engines_have_tried_and_tell_their_story(cast: Cast) -> None:
    cast.task(0, retries=4)
    seen = []
    for _ in range(5):
        seen.append(cast.where(0))
        cast.finish(0, "ValueError")
    assert seen == [0, 1, 0, 1, 0]
    error = cast.results[0].error
    assert error is not None and (error.ename, error.evalue) == ("ValueError", "text")
    assert "earlier attempts at this task:\n  engine 0: ValueError: text\n  engine 1: Value" in error.traceback


def test_many_retries_tell_of_the_latest_only(cast: Cast) -> None:
    cast.task(0, retries=30)
    for _ in range(31):
        cast.finish(0, "ValueError")
    error = cast.results[0].error
    assert error is not None and error.traceback.count("ValueError") == 8 and "… 22 more" in error.traceback


def test_retry_is_not_stuck_when_the_engines_it_was_kept_for_are_lost(cast: Cast) -> None:
    cast.request(0, 1)
    cast.task(1, retries=1)
    cast.finish(1, "ValueError")
    assert 1 not in cast.held
    cast.kill(1)
    assert cast.where(1) == 0
    cast.finish(1, "ValueError")
    assert cast.error(1)[0] == "ValueError"


def test_engines_lost_and_errors_are_told_together(cast: Cast) -> None:
    cast.task(0, retries=1)
    cast.finish(0, "ValueError")
    cast.kill(cast.where(0))
    kind, text = cast.error(0)
    assert kind == "EngineError" and "engine 0: ValueError: text" in text


def test_aborted_task_is_not_tried_again(cast: Cast) -> None:
    cast.task(0, retries=3)
    cast.say(m.Abort([0]))
    cast.finish(0, "ValueError")
    assert cast.error(0)[0] == "ValueError"


# ---------------------------------------------------------------- engines that refuse


def test_refused_task_goes_to_engines_that_have_not_refused_it_and_uses_no_retry() -> None:
    cast = Cast(engines=3)
    cast.task(0, retries=1)
    for expected in (0, 1):
        assert cast.where(0) == expected
        cast.finish(0, "UnmetDependency")
    assert cast.where(0) == 2
    cast.finish(0, "ValueError")
    assert cast.where(0) == 2, "the others have refused it"
    cast.finish(0)
    assert cast.results[0].error is None and cast.results[0].engine == 2


def test_task_that_all_engines_refuse_ends_at_once(cast: Cast) -> None:
    cast.task(0, retries=5)
    cast.finish(0, "UnmetDependency")
    cast.finish(0, "UnmetDependency")
    kind, text = cast.error(0)
    assert kind == "UnmetDependency" and text.startswith("text\n") and "engine 0: UnmetDependency: text" in text


def test_task_that_all_its_targets_refuse_ends_at_once(cast: Cast) -> None:
    cast.task(0, targets=[1])
    cast.finish(0, "UnmetDependency")
    assert cast.error(0)[0] == "UnmetDependency"


def test_refused_task_with_a_timeout_waits_for_new_engines() -> None:
    cast = Cast(engines=1)
    cast.task(0, timeout_s=10)
    cast.task(1, timeout_s=10)
    cast.finish(0, "UnmetDependency")
    cast.finish(1, "UnmetDependency")
    cast.task(2)
    assert 0 not in cast.results and cast.where(2) == 0, "others are not held up"
    cast.world.tick(5)
    cast.add_engine()
    cast.finish(1)
    assert cast.where(0) == 1
    cast.finish(0, "UnmetDependency")
    cast.world.tick(6)
    kind, text = cast.error(0)
    assert kind == "TaskTimeout" and "engines 0, 1 refused it, and no other came" in text


def test_refused_task_ends_when_the_last_engine_that_might_have_run_it_is_lost(cast: Cast) -> None:
    cast.request(0, 1)
    cast.task(1)
    cast.finish(1, "UnmetDependency")
    assert 1 not in cast.held
    cast.kill(1)
    kind, text = cast.error(1)
    assert kind == "UnmetDependency" and "engine 0 refused it" in text


def test_engine_that_stands_in_for_one_that_refused_may_have_the_task(cast: Cast) -> None:
    cast.task(0, timeout_s=60)
    cast.finish(0, "UnmetDependency")
    cast.finish(0, "UnmetDependency")
    cast.kill(0)
    assert 0 not in cast.held and 0 not in cast.results
    route = b"another process"
    info = make_info(0, engine_id=0, uuid="another")
    cast.world.say(route, m.EngineHello(VERSION, PYTHON, info, ""))
    assert cast.held[0][0] == route
    cast.finish(0)
    assert cast.results[0].error is None


def test_engine_that_connects_again_has_still_refused(cast: Cast) -> None:
    cast.task(0, timeout_s=60)
    cast.finish(0, "UnmetDependency")
    cast.finish(0, "UnmetDependency")
    cast.kill(0)
    cast.world.add_engine(0, life=1, engine_id=0)
    assert 0 not in cast.held


def test_refusal_of_a_direct_request_is_its_error(cast: Cast) -> None:
    cast.request(0, 0)
    cast.finish(0, "UnmetDependency")
    assert cast.error(0)[0] == "UnmetDependency"


def test_refused_task_is_not_recalled_for_the_engine_that_refused_it(cast: Cast) -> None:
    cast.task(0)
    cast.finish(0)
    cast.task(1)
    first = cast.where(1)
    cast.request(2, 1 - first)
    cast.finish(1, "UnmetDependency")
    cast.finish(2)
    assert cast.where(1) == 1 - first
    cast.request(3, 1 - first)
    cast.world.tick(1)
    assert not [msg for msg, _ in cast.world.out.take_all(cast.engines[1 - first]) if isinstance(msg, m.Withdraw)]


# ---------------------------------------------------------------- the end of the cluster, and of engine sets


def test_tasks_for_engines_that_a_set_was_to_bring_end_when_it_is_ready_without_them() -> None:
    world = World()
    world.start_set(2)
    client = world.add_client()
    world.say(client, task(0, targets=[7]))
    world.add_engine(0)
    world.forget_news(client)
    assert not world.out.inboxes[client]
    world.add_engine(1)
    world.forget_news(client)
    error = world.out.take(client, m.Result).error
    assert error is not None and error.ename == "NoSuchEngine"


def test_last_engine_lost_ends_everything_that_waits_also_what_it_sets_free(cast: Cast) -> None:
    cast.task(0)
    cast.request(1, 1)
    cast.task(2, after=on(0, 1, failure=True))
    cast.task(3, after=on(2, failure=True))
    cast.kill(0)
    cast.kill(1)
    assert {seq: cast.error(seq)[0] for seq in range(4)} == {
        0: "EngineError", 1: "EngineError", 2: "NoEnginesRegistered", 3: "NoEnginesRegistered"
    }  # fmt: skip


# ---------------------------------------------------------------- outcomes


def test_outcomes_are_remembered_by_session_and_bounded() -> None:
    outcomes = Outcomes(pages_max=3)
    for session in ("a", "b"):
        outcomes.note(Session(session), 5, Outcome.OK, 2)
        outcomes.note(Session(session), PAGE_REQUESTS + 5, Outcome.RAISED, -1)
    assert outcomes.find(Session("a"), 5) == (Outcome.UNKNOWN, -1), "the oldest page"
    assert outcomes.find(Session("b"), 5) == (Outcome.OK, 2)
    assert outcomes.find(Session("b"), PAGE_REQUESTS + 5) == (Outcome.RAISED, -1)
    assert outcomes.find(Session("b"), 6) == outcomes.find(Session("c"), 6) == (Outcome.UNKNOWN, -1)
    outcomes.check()


def test_outcomes_pass_over_what_ended_well() -> None:
    outcomes = Outcomes()
    count = 3 * PAGE_REQUESTS
    for seq in range(count):
        outcomes.note(Session("a"), seq, Outcome.RAISED if seq == 2000 else Outcome.OK, 0)
    assert list(outcomes.iterate_but_good(Session("a"), range(7, count + 2))) == [2000, count, count + 1]


def test_states_of_a_task_that_waits() -> None:
    cast = Cast()
    cast.task(0)
    cast.task(1, after=on(0))
    work = cast.world.core.find_work(Session("A" * 16), 1)
    assert work is not None and work.phase is WorkPhase.WAITING
