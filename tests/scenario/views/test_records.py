"""Results, records and queues of requests that anybody has made, with real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from bare_cluster import BareCluster
from gates import wait_for_file

from hpcviews import NoSuchRequest, OutstandingRequests, RemoteError, ResultNotKept, TaskAborted, UsageError
from hpcviews.client.client import Client
from hpcviews.testing.wait import wait_until

UNKNOWN = "0123456789abcdef-7"


@pytest.fixture
def other(cluster: BareCluster, rc: Client) -> Iterator[Client]:
    """A second client of the same engines."""
    client = cluster.connect(3)
    yield client
    client.close()


def tell(number: int) -> int:
    print(f"told {number}")
    return number * 10


def announce_and_wait(begun: str, gate: str) -> str:
    import os

    Path(f"{begun}{os.getpid()}").touch()
    return wait_for_file(gate)


# ---------------------------------------------------------------- results


def test_another_client_gets_results_output_and_metadata(rc: Client, other: Client) -> None:
    theirs = rc[:].apply_async(tell, 4)
    assert theirs.get(20) == [40, 40, 40]
    before = list(other.history)
    ar = other.get_result(theirs.msg_ids[1])
    assert ar.get(20) == 40 and ar.msg_ids == [theirs.msg_ids[1]]
    assert (ar.stdout, ar.engine_id, ar.status) == ("told 4\n", 1, "ok")
    assert abs(ar.submitted - theirs.metadata[1].submitted) < timedelta(seconds=2)
    assert other.get_result(theirs.msg_ids).get(20) == [40, 40, 40]
    assert list(other.history) == before and other.outstanding == set()


def test_running_request_of_another_client_is_waited_for(rc: Client, other: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    theirs = rc[0].apply_async(wait_for_file, str(gate))
    ar = other.get_result(theirs.msg_ids[0])
    assert ar.wait(0.05) is False
    told = threading.Event()
    ar.add_done_callback(lambda _: told.set())
    gate.touch()
    assert ar.get(20) == "done" and theirs.get(20) == "done"
    assert told.wait(20)


def test_positions_lists_and_single_requests_of_a_call(rc: Client, other: Client) -> None:
    view = rc[:]
    first, second = view.apply_async(tell, 1), view.apply_async(tell, 2)
    foreign = other[0].apply_async(tell, 3)
    assert rc.wait([first, second], 20) and other.wait(foreign, 20)
    assert rc.get_result() is second and rc.get_result(-1) is second and view.get_result(0) is first
    assert rc.get_result(first.msg_ids[2]).get(20) == 10
    mixed = rc.get_result([first.msg_ids[0], foreign.msg_ids[0], -1])
    assert mixed.get(20) == [10, 30, 20]
    for wrong in (1.5, True, object()):
        with pytest.raises(TypeError):
            rc.get_result(wrong)
    with pytest.raises(IndexError):
        rc.get_result(99)


def test_dropped_result_of_ones_own_comes_back(rc: Client) -> None:
    msg_id = rc[0].apply_async(tell, 5).msg_ids[0]
    assert rc.get_result(msg_id).get(20) == 50
    assert rc.get_result(msg_id, block=True).done()


def test_unknown_request_is_an_error_of_get(rc: Client) -> None:
    ar = rc.get_result([UNKNOWN, "nonsense"], block=True)
    errors = ar.get(20, return_exceptions=True)
    assert [type(error) for error in errors] == [NoSuchRequest, NoSuchRequest]
    assert "the controller keeps the last" in str(errors[0]) and "msg_ids look like" in str(errors[1])
    with pytest.raises(NoSuchRequest):
        rc.get_result(UNKNOWN).get(20)


def test_errors_of_others_are_raised_as_ones_own(rc: Client, other: Client) -> None:
    theirs = rc[0].apply_async(lambda: 1 / 0)
    assert theirs.wait(20)
    with pytest.raises(RemoteError, match="division by zero") as caught:
        other.get_result(theirs.msg_ids[0]).get(20)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not theirs.successful()


@pytest.mark.parametrize("kibibytes", [100, 900])
def test_arrays_of_others(rc: Client, other: Client, kibibytes: int) -> None:
    theirs = rc[0].apply_async(lambda n: np.arange(n), kibibytes * 128)
    assert theirs.wait(20)
    value = other.get_result(theirs.msg_ids[0]).get(20)
    assert (value == np.arange(kibibytes * 128)).all()


def test_large_result_that_was_delivered_is_a_named_error(rc: Client, other: Client) -> None:
    for plane in ("frames", "auto"):
        view = rc.direct_view(0, plane=plane)
        theirs = view.apply_async(lambda: np.zeros(2**18))  # 2 MiB
        assert theirs.get(20).shape == (2**18,)
        with pytest.raises(ResultNotKept, match="kept"):
            other.get_result(theirs.msg_ids[0]).get(20)


VICTIM = """
import sys, time
sys.path.insert(0, sys.argv[2])
import hpcviews
from gates import wait_for_file
rc = hpcviews.Client(access=sys.argv[1])
view = rc.load_balanced_view()
running = view.apply_async(wait_for_file, sys.argv[3])
small = view.map_async(abs, range(-20, 0), chunksize=1)
def make(path):
    import numpy
    wait_for_file(path)
    return numpy.ones(3 * 2**17)
large = view.apply_async(make, sys.argv[3])  # 3 MiB
print(*running.msg_ids, *large.msg_ids, *small.msg_ids, flush=True)
time.sleep(600)
"""


def test_results_of_a_client_that_was_killed_are_there_for_others(
    cluster: BareCluster, rc: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    argv = [sys.executable, "-c", VICTIM, str(cluster.access), str(Path(__file__).parent), str(gate)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        running, large, *small = victim.stdout.readline().split()
        clients = rc.status().clients
        victim.kill()
    wait_until(lambda: rc.status().clients < clients, 20, "the client's end")
    assert len(small) == 20
    ar = rc.get_result([running, large, *small])
    gate.touch()
    values = ar.get(60)
    assert values[0] == "done" and (values[1] == np.ones(3 * 2**17)).all()
    assert [value for part in values[2:] for value in part] == list(range(20, 0, -1))
    assert rc.queue_status()["unassigned"] == 0


# ---------------------------------------------------------------- withdrawing


def test_requests_of_others_are_aborted_by_msg_id(rc: Client, other: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    running, waiting = rc[0].apply_async(wait_for_file, str(gate)), rc[0].apply_async(tell, 1)
    rc.queue_status()  # the controller has them, when it has answered this
    assert other.abort(waiting.msg_ids[0], block=True) is None
    with pytest.raises(TaskAborted):
        waiting.get(20)
    future = other.abort([running.msg_ids[0], UNKNOWN], block=False)
    assert future is not None and future.result(20) is None
    gate.touch()
    assert running.get(20) == "done", "what runs goes on"
    with pytest.raises(TypeError, match="Invalid msg_id type"):
        rc.abort(5.5)


def test_cancelling_a_followed_result_withdraws_the_request(rc: Client, other: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    running, waiting = rc[0].apply_async(wait_for_file, str(gate)), rc[0].apply_async(tell, 1)
    rc.queue_status()  # the controller has them, when it has answered this
    assert other.get_result(waiting.msg_ids[0]).cancel()
    with pytest.raises(TaskAborted):
        waiting.get(20)
    gate.touch()
    assert running.get(20) == "done"


def test_abort_reaches_what_nobody_holds_and_can_be_bound_to_engines(rc: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    running = rc[:].apply_async(announce_and_wait, str(tmp_path / "begun"), str(gate))
    wait_until(lambda: len(list(tmp_path.glob("begun*"))) == 3, 20, "the three to begin")
    dropped = rc[:].apply_async(tell, 1).msg_ids
    rc.abort(targets=[0], block=True)
    followed = rc.get_result(dropped[0])
    with pytest.raises(TaskAborted):
        followed.get(20)
    assert set(dropped[1:]) <= rc.outstanding
    rc.abort(block=True)
    gate.touch()
    assert running.get(20) == ["done"] * 3
    assert [type(error) for error in rc.get_result(dropped).get(20, return_exceptions=True)] == [TaskAborted] * 3


# ---------------------------------------------------------------- once more


def test_resubmit_runs_it_again_with_its_arrays(rc: Client, other: Client) -> None:
    array = np.arange(50_000.0)
    theirs = rc.load_balanced_view().apply_async(np.sum, array)
    assert theirs.get(20) == array.sum()
    again = other.resubmit(theirs.msg_ids[0])
    assert again.get(20) == array.sum()
    assert again.msg_ids[0] == other.history[-1] != theirs.msg_ids[0]
    both = rc.resubmit([theirs.msg_ids[0], UNKNOWN], block=True).get(20, return_exceptions=True)
    assert both[0] == array.sum() and isinstance(both[1], NoSuchRequest)


def test_resubmit_works_when_its_client_is_gone(cluster: BareCluster, rc: Client) -> None:
    passing = cluster.connect(3)
    msg_id = passing[0].apply_async(lambda x: x + 1, 4).msg_ids[0]
    passing.wait()
    passing.close()
    assert rc.resubmit(msg_id).get(20) == 5


# ---------------------------------------------------------------- records


def test_db_query_with_each_operator(rc: Client) -> None:
    rc.purge_everything()
    view = rc.load_balanced_view(label="fit")
    good = rc[0].apply_async(tell, 1)
    bad = rc[1].apply_async(lambda: {}["x"])
    assert rc.wait(timeout=20)
    between = datetime.now(timezone.utc)
    late = view.apply_async(tell, 2)
    assert late.wait(20) and not bad.successful()
    first, second, third = good.msg_ids[0], bad.msg_ids[0], late.msg_ids[0]

    def find(query: dict[str, object]) -> list[str]:
        return [record["msg_id"] for record in rc.db_query({"client_uuid": rc.session, "op": "apply", **query})]

    every = [first, second, third]
    assert find({}) == every
    assert find({"msg_id": first}) == [first]
    assert find({"msg_id": {"$in": [first, third]}}) == [first, third]
    assert find({"msg_id": {"$nin": [first, third]}}) == [second]
    assert find({"status": {"$eq": "error"}}) == [second]
    assert find({"status": {"$ne": "error"}}) == [first, third]
    assert find({"submitted": {"$gt": between}}) == [third]
    assert find({"submitted": {"$lt": between}}) == [first, second]
    assert find({"engine_id": {"$gte": 1}, "label": None}) == [second]
    assert find({"engine_id": {"$lte": 0}, "label": None}) == find({"engine_id": {"$le": np.int64(0)}, "label": None})
    assert find({"error": {"$glob": "KeyError*"}}) == [second]
    (record,) = rc.db_query({"msg_id": third}, ["stdout", "completed", "label", "queue"])
    assert record.pop("completed") > between
    assert record == {"msg_id": third, "stdout": "told 2\n", "label": "fit", "queue": "task"}
    assert [i for i in rc.hub_history() if i in every] == every
    with pytest.raises(UsageError, match="no operator '\\$like'; there are"):
        rc.db_query({"msg_id": {"$like": "x"}})
    with pytest.raises(UsageError, match="they have msg_id"):
        rc.db_query({}, ["nope"])
    with pytest.raises(TypeError, match="a query is a dict"):
        rc.db_query("all")  # type: ignore[arg-type]


def test_unfinished_requests_have_records_and_a_status(rc: Client, other: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    done, running = rc[0].apply_async(tell, 6), rc[0].apply_async(wait_for_file, str(gate))
    assert done.wait(20)
    ids = [done.msg_ids[0], running.msg_ids[0]]
    rc.queue_status()
    for client in (rc, other):
        assert client.result_status(ids) == {"pending": [ids[1]], "completed": [ids[0]], "status": "ok"}
        assert client.result_status(ids[0], status_only=False)[ids[0]] == 60
    (record,) = other.db_query({"msg_id": ids[1]})
    assert record["status"] is None and record["completed"] is None and record["engine_id"] == 0
    with pytest.raises(NoSuchRequest, match="No such message"):
        rc.result_status(UNKNOWN)
    gate.touch()
    assert running.get(20) == "done"


def test_purge(rc: Client, other: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    view = rc[:]
    done = view.apply_async(tell, 1)
    assert done.wait(20)
    running = view.apply_async(wait_for_file, str(gate))
    for purge in (rc.purge_results, rc.purge_hub_results, rc.purge_local_results, view.purge_results):
        with pytest.raises(ValueError, match="at least one"):
            purge()
        with pytest.raises(RuntimeError, match="Can't purge outstanding tasks"):
            purge(running)
    rc.queue_status()
    with pytest.raises(OutstandingRequests):
        other.purge_hub_results(running.msg_ids)
    with pytest.raises(OutstandingRequests):
        rc.purge_everything()
    assert rc.db_query({"msg_id": done.msg_ids[0]})
    view.purge_results(done.msg_ids[0])
    rc.purge_results(targets=[1])
    known = [record["msg_id"] for record in rc.db_query({"msg_id": {"$in": done.msg_ids}})]
    assert known == [done.msg_ids[2]]
    assert done.get(20) == [10, 10, 10], "who holds it, holds it"
    with pytest.raises(NoSuchRequest, match="ended well"):
        other.get_result(done.msg_ids[0]).get(20)
    gate.touch()
    assert running.wait(20)
    rc.purge_everything()
    assert rc.history == [] and rc.hub_history() == []


def test_results_and_metadata_by_msg_id(rc: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    done, running = rc[:].apply_async(tell, 1), rc[0].apply_async(wait_for_file, str(gate))
    assert done.wait(20)
    assert rc.results[done.msg_ids[1]] == 10 and rc.metadata[done.msg_ids[1]].engine_id == 1
    assert set(done.msg_ids) <= set(rc.results) and running.msg_ids[0] not in rc.results
    msg_ids = done.msg_ids
    del done
    wait_until(lambda: msg_ids[1] not in rc.results, 20, "the dropped result")
    rc.spin()
    gate.touch()
    assert running.get(20) == "done"


def test_what_has_no_room_in_memory_comes_from_disk() -> None:
    with BareCluster(records_in_memory=50) as small:
        small.start_engines(2)
        rc, other = small.connect(2), small.connect(2)
        view = rc.load_balanced_view(label="early")
        array = view.apply_async(lambda: np.arange(20_000))
        sums = view.map_async(lambda x: print(x) or x * 10, range(300), chunksize=1)
        assert sums.get(60) == list(range(0, 3000, 10)) and array.wait(20)
        assert (small.path / "requests.sqlite").exists()
        assert (other.get_result(array.msg_ids[0]).get(20) == np.arange(20_000)).all()
        followed = other.get_result(sums.msg_ids)
        assert [part[0] for part in followed.get(20)] == list(range(0, 3000, 10))
        assert followed.stdout[3] == "3\n" and followed.label[3] == "early"
        assert other.resubmit(sums.msg_ids[2]).get(20) == [20]
        assert len(other.db_query({"label": "early", "stdout": {"$ne": ""}})) == 301  # the resubmitted one too
        assert other.hub_history()[:3] == [*array.msg_ids, *sums.msg_ids[:2]]
        other.purge_hub_results(sums.msg_ids[:100])
        with pytest.raises(NoSuchRequest, match="older ones on disk"):
            other.get_result(sums.msg_ids[0]).get(20)
        rc.purge_everything()
        assert other.hub_history() == []


# ---------------------------------------------------------------- queues


def test_queue_status_of_clients_and_views(rc: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    before = rc.queue_status(0)["completed"]
    running = rc[0].apply_async(wait_for_file, str(gate))
    waiting = rc[0].apply_async(tell, 1)
    tasks = rc.load_balanced_view(targets=[0]).map_async(tell, range(4), chunksize=1)
    # Tasks are placed by the controller, which has what this client sent before the question.
    status = rc.queue_status()
    assert status[0]["queue"] == 2 and status[0]["tasks"] + status["unassigned"] == 4
    assert status[1] == {"queue": 0, "completed": status[1]["completed"], "tasks": 0} and 2 in status
    assert rc[0].queue_status() == rc.queue_status(0)
    verbose = rc[:2].queue_status(verbose=True)
    assert set(verbose) == {0, 1, "unassigned"}
    assert verbose[0]["queue"] == [running.msg_ids[0], waiting.msg_ids[0]]
    assert sorted(verbose[0]["tasks"] + verbose["unassigned"]) == sorted(tasks.msg_ids)
    gate.touch()
    assert rc.wait([running, waiting, tasks], 20)
    after = rc.queue_status(0, verbose=True)
    assert after["queue"] == after["tasks"] == [] and waiting.msg_ids[0] in after["completed"]
    assert rc.queue_status(0)["completed"] == before + 6
    assert set(rc.load_balanced_view().queue_status()) == {0, 1, 2, "unassigned"}


def test_queues_are_empty_after_a_stress(cluster: BareCluster, rc: Client) -> None:
    clients = [rc, cluster.connect(3), cluster.connect(3)]
    errors: list[BaseException] = []

    def work(client: Client, number: int) -> None:
        try:
            view, balanced = client[:], client.load_balanced_view(retries=1)
            calls = []
            for turn in range(30):
                calls.append(view.apply_async(abs, -turn))
                calls.append(balanced.map_async(tell if turn % 3 else (lambda n: 1 // (n % 4)), range(8), chunksize=2))
                if turn % 5 == number:
                    client.abort(calls[-1])
            for call in calls:
                assert call.wait(60)
                call.exception()
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(client, n)) for client in clients for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    status = rc.queue_status()
    assert status.pop("unassigned") == 0
    assert {(queue["queue"], queue["tasks"]) for queue in status.values()} == {(0, 0)}
    assert not any(client.outstanding for client in clients)
