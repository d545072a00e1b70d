"""Tasks that depend on requests, on engines and on what these have, and that may not wait for ever: on real engines."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bare_cluster import BareCluster

from hpcviews import (
    Client,
    CompositeError,
    Dependency,
    DependencyTimeout,
    EngineError,
    ImpossibleDependency,
    InvalidDependency,
    LoadBalancedView,
    RemoteError,
    TaskAborted,
    TaskTimeout,
    UnmetDependency,
    depend,
    interactive,
    require,
)
from hpcviews.testing.wait import wait_until


class Valve:
    """A file that holds tasks up until a test opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        self.path.touch()

    def __reduce__(self) -> tuple[type[Valve], tuple[Path]]:
        return Valve, (self.path,)

    def wait(self) -> int:
        wait_until(self.path.exists, 30, "the valve")
        return os.getpid()


@pytest.fixture
def valve(tmp_path: Path) -> Iterator[Valve]:
    made = Valve(tmp_path / "valve")
    yield made
    made.open()


@pytest.fixture
def view(rc: Client) -> LoadBalancedView:
    return rc.load_balanced_view()


def append(path: Path, what: str) -> None:
    with path.open("a") as file:
        file.write(what + "\n")


def fail(text: str = "no") -> None:
    raise ValueError(text)


# ---------------------------------------------------------------- after


def test_graph_runs_in_its_order(view: LoadBalancedView, tmp_path: Path, valve: Valve) -> None:
    """
        a
       / \\
      b   c
       \\ /
        d
    """
    log = tmp_path / "log"
    a = view.apply_async(lambda: (valve.wait(), append(log, "a"))[0])
    with view.temp_flags(after=a):
        b, c = (view.apply_async(append, log, name) for name in "bc")
    with view.temp_flags(after=[b, c.msg_ids[0]]):
        d = view.apply_async(append, log, "d")
    assert not d.ready() and not log.exists()
    valve.open()
    d.get(10)
    lines = log.read_text().split()
    assert lines[0] == "a" and lines[3] == "d" and set(lines[1:3]) == {"b", "c"}
    assert d.after == sorted([*b.msg_ids, *c.msg_ids])


def test_map_after_a_map_begins_when_all_of_it_is_done(rc: Client, view: LoadBalancedView, tmp_path: Path) -> None:
    count = 2000
    first = view.map_async(lambda i: append(tmp_path / str(os.getpid()), "1"), range(count))
    with view.temp_flags(after=first):
        second = view.map_async(lambda i: append(tmp_path / str(os.getpid()), "2"), range(count))
    second.get(60)
    assert first.ready()
    assert min(second.started) >= max(first.completed)
    lines = [path.read_text().split() for path in tmp_path.iterdir()]
    assert sum(map(len, lines)) == 2 * count
    assert all(part == sorted(part) for part in lines)


def test_requests_of_other_queues_and_clients_count_finished_or_not(
    rc: Client, view: LoadBalancedView, cluster: BareCluster, valve: Valve
) -> None:
    with cluster.connect(3) as other:
        done = other[:].apply_async(int)
        done.get(10)
        theirs = other[1].apply_async(valve.wait)
        with view.temp_flags(after=[theirs, done, *rc[0].apply_async(int).msg_ids]):
            mine = view.apply_async(int)
        assert not mine.ready()
        valve.open()
        assert mine.get(10) == 0
        assert theirs.wait(10)  # it comes by another connection, maybe later
        assert mine.started >= theirs.completed
        theirs_id = theirs.msg_ids[0]
    with view.temp_flags(after=theirs_id):  # its client is gone
        assert view.apply_sync(int) == 0


def test_only_what_counts_satisfies(view: LoadBalancedView) -> None:
    bad, good = view.apply_async(fail), view.apply_async(int)
    for dependency, runs in (
        (Dependency([bad, good]), False),
        (Dependency([bad, good], all=False), True),
        (Dependency([bad, good], failure=True), True),
        (Dependency(bad, success=False, failure=True), True),
        (Dependency(good, success=False, failure=True), False),
        (Dependency([]), True),
    ):
        with view.temp_flags(after=dependency):
            task = view.apply_async(int)
        if runs:
            assert task.get(10) == 0
        else:
            with pytest.raises(ImpossibleDependency, match="can never be satisfied: request"):
                task.get(10)
    with pytest.raises(RemoteError):
        bad.get(10)


def test_impossible_dependency_says_what_failed_and_cascades(view: LoadBalancedView, valve: Valve) -> None:
    first = view.apply_async(lambda: (valve.wait(), fail("disk full")))
    tasks = []
    before = first
    for _ in range(50):
        with view.temp_flags(after=before):
            before = view.apply_async(int)
        tasks.append(before)
    valve.open()
    for task in tasks:
        with pytest.raises(ImpossibleDependency, match=f"{first.msg_ids[0]} ended with ValueError: disk full"):
            task.get(10)
    with pytest.raises(RemoteError):
        first.get(10)


@pytest.mark.parametrize("name", ["nope", "0123456789abcdef-0"])
def test_request_that_does_not_exist_is_an_invalid_dependency(view: LoadBalancedView, name: str) -> None:
    for flag in ("after", "follow"):
        with view.temp_flags(**{flag: name}), pytest.raises(InvalidDependency, match=name):
            view.apply_sync(int)


def test_waiting_tasks_can_be_aborted(view: LoadBalancedView, valve: Valve) -> None:
    first = view.apply_async(valve.wait)
    with view.temp_flags(after=first):
        waiting = view.map_async(abs, range(10))
    waiting.abort()
    with pytest.raises(CompositeError) as caught:
        waiting.get(10)
    assert [type(error) for error in caught.value.elist] == [TaskAborted] * 10
    valve.open()
    first.get(10)


# ---------------------------------------------------------------- follow


def test_tasks_follow_to_the_engine_where_others_ran(rc: Client, view: LoadBalancedView) -> None:
    for engine_id in rc.ids:
        put = rc[engine_id].push({"here": engine_id}, block=False)
        with view.temp_flags(follow=put):
            assert view.apply_async(interactive(get_here)).get(10) == engine_id
    with view.temp_flags(follow=rc[:].apply_async(int)), pytest.raises(ImpossibleDependency, match="only one"):
        view.apply_sync(int)
    with view.temp_flags(follow=Dependency(rc[:2].apply_async(int), all=False)):
        task = view.map_async(abs, range(10))
        assert task.get(10) == list(range(10)) and set(task.engine_id) <= {0, 1}


here = "the test's"


def get_here() -> object:
    return here


def test_follow_and_targets_both_count(rc: Client) -> None:
    view = rc.load_balanced_view(targets=[1, 2])
    with view.temp_flags(follow=rc[1].apply_async(int)):
        task = view.apply_async(int)
        assert task.get(10) == 0 and task.engine_id == 1
    with view.temp_flags(follow=rc[0].apply_async(int)), pytest.raises(ImpossibleDependency, match="`targets`"):
        view.apply_sync(int)


# ---------------------------------------------------------------- loss


def test_engine_killed_in_the_middle_of_a_graph(mortal: BareCluster, valve: Valve) -> None:
    """
    a (dies)     b
    |    \\      |
    c     e      d     c after a, also if it failed; e after a, and f after e: impossible
          |
          f
    """
    mortal.start_engines(2)
    rc = mortal.connect(2)
    view = rc.load_balanced_view()
    pids = rc[:].apply_sync(os.getpid)
    a, b = rc[0].apply_async(valve.wait), rc[1].apply_async(valve.wait)
    with view.temp_flags(after=Dependency(a, failure=True)):
        c = view.apply_async(os.getpid)
    with view.temp_flags(after=b):
        d = view.apply_async(os.getpid)
    with view.temp_flags(after=a):
        e = view.apply_async(int)
    with view.temp_flags(after=e):
        f = view.apply_async(int)
    with view.temp_flags(follow=a):
        g = view.apply_async(int)
    assert rc.status().waiting_tasks == 5, "behind them: all have arrived"
    dying = next(engine for engine in mortal.engines if engine.pid == pids[0])
    dying.send_signal(signal.SIGKILL)
    dying.wait(10)
    with pytest.raises(EngineError):
        a.get(10)
    for task in (e, f, g):
        with pytest.raises(ImpossibleDependency, match=f"{a.msg_ids[0]} ended with EngineError"):
            task.get(10)
    valve.open()
    assert b.get(10) == c.get(10) == d.get(10) == pids[1]
    with view.temp_flags(follow=a), pytest.raises(ImpossibleDependency):
        view.apply_sync(int)
    assert rc.status().waiting_tasks == 0


def test_retried_task_survives_the_engines_it_kills(mortal: BareCluster, tmp_path: Path) -> None:
    mortal.start_engines(3)
    view = mortal.connect(3).load_balanced_view(retries=2)

    def die_twice() -> str:
        import os
        import signal

        for name in ("first", "second"):
            if not (tmp_path / name).exists():
                (tmp_path / name).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    first = view.apply_async(die_twice)
    with view.temp_flags(after=first):
        second = view.apply_async(int)
    assert first.get(20) == "alive" and second.get(10) == 0


# ---------------------------------------------------------------- timeout


def test_timeout_bounds_the_wait_and_not_the_run(rc: Client, view: LoadBalancedView, valve: Valve) -> None:
    blockers = rc[:].apply_async(valve.wait)
    with view.temp_flags(timeout=0.05):
        lacking = view.apply_async(int)
        with view.temp_flags(after=blockers):
            depending = view.apply_async(int)
    with pytest.raises(TaskTimeout, match=r"timeout of 0\.05 s: all that may run it were busy"):
        lacking.get(10)
    with pytest.raises(DependencyTimeout, match="3 of 3 requests named by `after`"):
        depending.get(10)
    valve.open()
    blockers.get(10)
    with view.temp_flags(timeout=0.01):
        assert view.apply_sync(lambda: time.sleep(0.1) or "ran") == "ran"


# ---------------------------------------------------------------- retries


def test_retries_are_reported_with_their_story(rc: Client) -> None:
    view = rc.load_balanced_view(retries=2)
    task = view.apply_async(fail, "broken")
    with pytest.raises(RemoteError) as caught:
        task.get(10)
    error = caught.value
    assert (error.ename, error.evalue) == ("ValueError", "broken") and isinstance(error.__cause__, ValueError)
    assert str(error).count("ValueError: broken") >= 3 and "earlier attempts at this task:\n  engine" in str(error)
    tried = {line.split(":")[0].strip() for line in error.traceback.split("earlier attempts")[1].splitlines()[1:]}
    assert len(tried) == 2 and f"engine {task.engine_id}" not in tried


def test_more_retries_than_engines_do_not_hang(rc: Client) -> None:
    with pytest.raises(RemoteError, match="broken"):
        rc.load_balanced_view(retries=10).apply_async(fail, "broken").get(20)


# ---------------------------------------------------------------- engines that do or do not


def is_engine(number: int) -> bool:
    import sys

    return bool(sys.modules["__main__"].__dict__.get("number") == number)


def test_depending_function_runs_only_where_its_check_passes(rc: Client, view: LoadBalancedView) -> None:
    rc[:].scatter("number", range(3), flatten=True, block=True)
    for number in range(3):
        task = view.map_async(depend(is_engine, number)(abs), range(10))
        assert task.get(20) == list(range(10)) and set(task.engine_id) == {number}
    with pytest.raises(UnmetDependency, match="is_engine returned False") as caught:
        view.apply_async(depend(is_engine, 7)(int)).get(10)
    assert str(caught.value).count("is_engine returned False") == 3, "every engine was asked"


def test_user_code_may_refuse_too(rc: Client, view: LoadBalancedView) -> None:
    rc[:].scatter("number", range(3), flatten=True, block=True)

    def work(i: int) -> int:
        if not is_engine(2):
            raise UnmetDependency("only engine 2 has the data")
        return i

    assert view.apply_async(work, 4).get(10) == 4
    task = view.map_async(work, range(6), chunksize=2, return_exceptions=True)
    assert task.get(10) == list(range(6)) and set(task.engine_id) == {2}


def test_refusal_on_a_direct_view_is_an_error_per_engine(rc: Client) -> None:
    rc[:].scatter("number", range(3), flatten=True, block=True)
    task = rc[:].apply_async(depend(is_engine, 1)(int))
    with pytest.raises(CompositeError) as caught:
        task.get(10)
    assert [type(error) for error in caught.value.elist] == [UnmetDependency] * 2
    assert task.get(return_exceptions=True)[1] == 0
    with pytest.raises(UnmetDependency):
        rc[0].apply_sync(depend(is_engine, 1)(int))


def test_refused_task_with_a_timeout_waits_for_new_engines(mortal: BareCluster, tmp_path: Path) -> None:
    mortal.start_engines(1)
    rc = mortal.connect(1)
    old = rc[0].apply_sync(os.getpid)
    view = rc.load_balanced_view()

    def is_new() -> bool:
        import os

        return os.getpid() != old

    with view.temp_flags(timeout=60):
        waiting = view.apply_async(depend(is_new)(os.getpid))
    with pytest.raises(UnmetDependency):
        view.apply_async(depend(is_new)(os.getpid)).get(10)
    with view.temp_flags(timeout=0.1), pytest.raises(TaskTimeout, match="engine 0 refused it, and no other came"):
        view.apply_async(depend(is_new)(os.getpid)).get(10)
    assert not waiting.ready()
    mortal.start_engines(1)
    rc.wait_for_engines(2, timeout=60)
    assert waiting.get(20) == rc[1].apply_sync(os.getpid)


def test_required_modules_and_functions_are_there(rc: Client, view: LoadBalancedView) -> None:
    helper = main_function("def helper(x):\n    return numpy.sqrt(x) + offset", "helper")
    work = main_function("def work(x):\n    return helper(x)", "work")
    required = require("numpy", helper, offset=1)(work)
    assert view.map_sync(required, [4.0, 9.0]) == [3.0, 4.0]
    assert np.array_equal(rc[0].apply_sync(required, np.array([16.0])), [5.0])
    with pytest.raises(UnmetDependency, match="no_such_module cannot be imported"):
        view.apply_async(require("no_such_module")(work), 4.0).get(10)


def main_function(source: str, name: str) -> object:
    """As if it had been written in a script."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace[name]


def test_functions_of_a_script_may_be_checks(rc: Client, view: LoadBalancedView) -> None:
    rc[:].scatter("number", range(3), flatten=True, block=True)
    check = main_function("def check(wanted):\n    return number == wanted", "check")
    task = view.apply_async(depend(check, 2)(int))
    assert task.get(10) == 0 and task.engine_id == 2


# ---------------------------------------------------------------- many at once


def test_dependencies_of_many_threads_and_clients(cluster: BareCluster, rc: Client) -> None:
    """Chains whose links are tasks of different clients in turn: each link adds one to what the last has written."""
    others = [cluster.connect(3) for _ in range(2)]
    views = [client.load_balanced_view() for client in (rc, *others)]
    failures: list[BaseException] = []

    def chain(number: int) -> None:
        try:
            key, last = f"chain{number}", rc[0].push({f"chain{number}": 0}, block=False)
            for link in range(40):
                view = views[(number + link) % len(views)]
                with view.temp_flags(after=last, follow=last):
                    last = view.apply_async(lambda: exec(f"{key} += 1", __import__("__main__").__dict__))
            last.get(60)
            assert rc[0].pull(key, block=True) == 40
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=chain, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not failures, failures
    assert all(not client.outstanding for client in (rc, *others))
    for client in others:
        client.close()


def test_label_is_known_of_every_task(view: LoadBalancedView) -> None:
    view.label = "night run"
    assert view.apply_async(int).label == "night run"
    assert view.map_async(abs, range(3), label="other").label == ["other"] * 3
