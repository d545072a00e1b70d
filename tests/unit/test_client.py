"""The Client: threads, connecting, losing the controller, waiting for engines, stopping."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_controller import FakeController, make_engine, make_set
from traitlets import TraitError

from hpcviews.client.client import Client
from hpcviews.client.results import AsyncResult
from hpcviews.errors import (
    ControllerLost,
    ControllerUnreachable,
    EngineError,
    LaunchError,
    MpiMismatch,
    NoShow,
    ProtocolError,
    UsageError,
    VersionMismatch,
)
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m


def double(x: int) -> int:
    return 2 * x


# ---------------------------------------------------------------- threads


def test_many_threads_use_one_client(fake: FakeController, rc: Client) -> None:
    threads, calls = 8, 100
    view = rc[:]

    def work(number: int) -> list[Any]:
        return [view.apply_async(double, (number, i)).first for i in range(calls)]

    with ThreadPoolExecutor(threads) as pool:
        firsts = [f.result(30) for f in [pool.submit(work, i) for i in range(threads)]]
    taken = sorted(first for each in firsts for first in each)
    assert taken == list(range(0, 2 * threads * calls, 2))
    assert len(view.history) == len(set(view.history)) == 2 * threads * calls
    received = [fake.take_call(m.Request).seq for _ in range(threads * calls)]
    assert sorted(received) == taken
    for each in firsts:
        positions = [received.index(first) for first in each]
        assert positions == sorted(positions), "requests of one thread overtook each other"


def test_temporary_flags_are_of_one_thread_and_are_restored(fake: FakeController, rc: Client) -> None:
    view = rc[:]
    with ThreadPoolExecutor(1) as pool:
        with view.temp_flags(block=True, targets=[1]):
            assert view.block and view.targets == [1]
            assert pool.submit(lambda: (view.block, view.targets)).result() == (False, [0, 1])
        with pytest.raises(ZeroDivisionError), view.temp_flags(block=True):
            raise ZeroDivisionError
    assert not view.block and view.targets == [0, 1]
    with pytest.raises(KeyError, match="Invalid name: 'foo'"):
        view.set_flags(foo=1)
    assert view.set_flags(block=True) is view and view.block
    rc.block = True
    assert rc[0].block and not rc.direct_view(block=False).block


def test_interrupted_submission_leaves_nothing_that_never_ends(
    fake: FakeController, rc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(call: Any, seqs: range) -> None:
        open_requests(call, seqs)
        raise KeyboardInterrupt

    open_requests = rc._connection.requests.open
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rc._connection.requests, "open", interrupt)
        rc[0].apply_async(double, 1)
    assert not rc.outstanding
    ar = rc[0].apply_async(double, 2)
    assert fake.take(m.Function) == fake.take(m.Function), "a function that may not have been sent is sent again"
    assert fake.take(m.Request).seq == ar.first
    fake.answer(ar.first, 4)
    assert ar.get(10) == 4


# ---------------------------------------------------------------- connecting and losing


def test_lost_controller_ends_everything_and_the_client_comes_back(fake: FakeController, rc: Client) -> None:
    view = rc[:]
    single, several, tasks = rc[0].apply_async(double, 1), view.apply_async(double, 2), view.map(double, range(9))
    session = rc.session
    fake.take_any()
    fake.die()
    for call in (single, several, tasks):
        with pytest.raises(ControllerLost, match="'fake'"):
            call.get(10)
    assert not rc.outstanding
    with pytest.raises(ControllerLost):
        view.apply_async(double, 1)
    with pytest.raises(ControllerLost):
        rc.wait_for_engines(5)
    fake.bind()
    assert fake.welcome(engines=3).session == session
    wait_until(lambda: rc.ids == [0, 1, 2], 5, "the new welcome")
    ar = wait_until(lambda: try_apply(rc), 5, "the client to be usable")
    message, _ = fake.take_any()
    assert isinstance(message, m.Function), "a new connection needs the function again, and nothing of the old one"
    assert fake.take(m.Request).seq == ar.first == int(several.msg_ids[1].split("-")[1]) + 3
    fake.answer(ar.first, "again")
    assert ar.get(10) == "again"


def try_apply(rc: Client) -> AsyncResult | None:
    try:
        return rc[0].apply_async(double, 1)
    except ControllerLost:
        return None


def test_results_that_came_before_the_loss_are_results(fake: FakeController, rc: Client) -> None:
    calls = [rc[0].apply_async(double, i) for i in range(50)]
    fake.take_any()
    for call in calls:
        fake.answer(call.first, "made it")
    # Closing with linger sends what is queued, then breaks the connection.
    fake._socket.close(1000)
    assert [call.get(10) for call in calls] == ["made it"] * 50


def test_garbage_from_the_controller_ends_what_waits(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 1)
    fake.take_any()
    fake._socket.send_multipart([fake._route, b"\x01garbage"])
    with pytest.raises(ControllerLost, match="cannot be read"):
        ar.get(10)


def test_complaint_of_the_controller_ends_what_waits(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 1)
    fake.take_any()
    fake.send(m.Refused("ProtocolError", "what was that?"))
    with pytest.raises(ProtocolError, match="what was that"):
        ar.get(10)
    with pytest.raises(ProtocolError, match="what was that"):
        rc[0].apply_async(double, 1)


def test_results_of_nobody_are_dropped(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 1)
    fake.answer(777), fake.answer(ar.first, "mine"), fake.answer(ar.first, "late")
    fake.send(m.Output(999, 0, "stdout", "text"))
    assert ar.get(10) == "mine"
    second = rc[0].apply_async(double, 1)
    fake.answer(second.first, "second")
    assert second.get(10) == "second" and ar.get() == "mine"


@pytest.mark.parametrize(("name", "kind"), [("VersionMismatch", VersionMismatch), ("Whatever", Exception)])
def test_refused_hello_is_raised_by_its_name(fake: FakeController, name: str, kind: type[Exception]) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(Client, access=fake.path / "client.json")
        fake.take(m.Probe)
        fake.send(m.ProbeReply("fake", "g1"))
        fake.take(m.ClientHello)
        fake.send(m.Refused(name, "this client has 9.9"))
        with pytest.raises(kind, match=r"9\.9"):
            future.result(10)


def test_controller_that_does_not_answer_is_a_clear_error(fake: FakeController) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(Client, access=fake.path / "client.json", timeout=0.5)
        fake.take(m.Probe)
        fake.send(m.ProbeReply("fake", "g1"))
        with pytest.raises(ControllerUnreachable, match="did not accept us"):
            future.result(10)
    with pytest.raises(ControllerUnreachable, match="did not answer"):
        Client(access=fake.path / "client.json", timeout=0.2)


def test_news_together_with_the_welcome_are_not_lost(fake: FakeController) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(Client, access=fake.path / "client.json")
        fake.take(m.Probe)
        fake.send(m.ProbeReply("fake", "g1"))
        fake.take(m.ClientHello)
        fake.send(m.Welcome("fake", "g1", [make_engine(0)], []), m.EnginesJoined([make_engine(1)]))
        rc = future.result(10)
    try:
        assert rc.ids == [0, 1] and rc.engines[1].uuid == "uuid-1"  # type: ignore[index]
        assert [view.targets for view in rc] == [0, 1]
    finally:
        rc.close()


def test_closing_says_goodbye_ends_waits_and_is_final(fake: FakeController, rc: Client) -> None:
    view = rc[0]
    ar = view.apply_async(double, 1)
    rc.close()
    rc.close()
    with pytest.raises(ControllerLost, match="closed"):
        ar.get(10)
    fake.take_call(m.Request)
    assert fake.take(m.ClientLeave)
    for call in (lambda: view.apply_async(double, 1), rc.status, lambda: rc.wait_for_engines(1)):
        with pytest.raises(UsageError, match="closed"):
            call()
    with FakeController() as other, other.connect() as client:
        assert client.ids == [0, 1]
    assert "closed" in repr(client)


def test_client_that_nobody_holds_closes(fake: FakeController) -> None:
    rc = fake.connect()
    fake._clients.clear()
    ar = rc[0].apply_async(double, 1)
    del rc
    gc.collect()
    fake.take_call(m.Request)
    fake.answer(ar.first, "still served")
    assert ar.get(10) == "still served"
    del ar
    gc.collect()
    assert fake.take(m.ClientLeave)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_gets_an_error_and_not_a_hang(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 1)
    done = rc[0].apply_async(double, 1)
    fake.answer(done.first, "value")
    assert done.wait(10)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for call in (ar.get, ar.wait, lambda: rc[0].apply_async(double, 1), rc.status, rc.wait_for_engines):
                try:
                    call()
                except UsageError as error:
                    assert "forked" in str(error) and "hpcviews.Client()" in str(error)
                else:
                    raise AssertionError("no error")
            assert done.get() == "value"
            rc.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    fake.answer(ar.first, "the parent goes on")
    assert ar.get(10) == "the parent goes on"


# ---------------------------------------------------------------- waiting for engines


def test_waiting_for_engines_follows_the_news(fake: FakeController) -> None:
    rc = fake.connect(engines=1, sets=[make_set("starting", n=3)])
    rc.wait_for_engines(1)
    seen: list[tuple[int, int]] = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rc.wait_for_engines, on_progress=lambda n, of: seen.append((n, of)))
        wait_until(lambda: seen, 5, "the first progress")
        fake.send(m.EnginesJoined([make_engine(1)]))
        wait_until(lambda: len(seen) == 2, 5, "the second progress")
        fake.send(m.EnginesJoined([make_engine(2)]))
        waiting.result(10)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_waiting_for_engines_gives_up_with_numbers(fake: FakeController, rc: Client) -> None:
    with pytest.raises(TimeoutError, match=r"9 engines not ready in 0\.05 seconds\. Currently ready: 2"):
        rc.wait_for_engines(9, timeout=0.05)


@pytest.mark.parametrize(
    ("state", "error", "kind"),
    [("failed", "NoShow", NoShow), ("stopping", "MpiMismatch", MpiMismatch), ("failed", "Odd", LaunchError)],
)
def test_failed_start_is_raised_while_waiting(
    fake: FakeController, state: str, error: str, kind: type[Exception]
) -> None:
    rc = fake.connect(engines=0, sets=[make_set("starting", n=4)])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rc.wait_for_engines, 4)
        fake.send(m.SetChanged(make_set(state, n=4, why="mpiexec: not today", error=error)))
        with pytest.raises(kind, match="not today"):
            waiting.result(10)
    with pytest.raises(kind, match="not today"):
        rc.wait_for_engines(4)
    fake.send(m.SetChanged(make_set("starting", n=4, set_id=1)))
    wait_until(lambda: len(rc.engine_sets) == 2, 5, "the second set")
    with pytest.raises(TimeoutError):
        rc.wait_for_engines(4, timeout=0.05)


def test_engine_lost_while_waiting_is_an_error(fake: FakeController) -> None:
    rc = fake.connect(engines=2, sets=[make_set("ready", n=2)])
    started = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rc.wait_for_engines, 3, on_progress=lambda *_: started.set())
        assert started.wait(5)
        fake.send(m.EnginesLeft([m.EngineLeft(1, "was killed")]))
        with pytest.raises(EngineError, match="engine 1 was killed"):
            waiting.result(10)


# ---------------------------------------------------------------- the cluster


def test_status_is_asked_for(fake: FakeController, rc: Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(rc.status)
        query = fake.take(m.StatusQuery)
        fake.send(m.Status(query.seq, "running", "node0", 1, "0", 0.0, [], 1, 0, 0, [], []))
        assert asked.result(10).state == "running"
        lost = pool.submit(rc.status)
        fake.take(m.StatusQuery)
        with pytest.raises(TimeoutError):
            rc.status(timeout=0.05)
        fake.die()
        with pytest.raises(ControllerLost):
            lost.result(10)
    assert rc.history == []


def test_stopping_returns_when_the_connection_closes(fake: FakeController, rc: Client) -> None:
    ar = rc[0].apply_async(double, 1)
    with pytest.raises(TimeoutError, match="did not end"):
        rc.stop_cluster(timeout=0.05)
    fake.take_call(m.Request)
    fake.take(m.StopCluster)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(rc.stop_cluster)
        fake.take(m.StopCluster)
        fake.die()
        stopping.result(10)
    with pytest.raises(ControllerLost, match="was stopped"):
        ar.get(10)
    rc.stop_cluster()
    fake.bind()
    assert not fake.has_message(), "a client of a stopped cluster must not come back"


def test_retries_that_fit_no_message_are_refused_where_they_are_set(rc: Client) -> None:
    view = rc.load_balanced_view()
    for retries in (-1, 2**31):
        with pytest.raises(TraitError, match="retries must be 0 to 2147483647"):
            view.retries = retries
