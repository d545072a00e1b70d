"""Big arrays by shared memory, between real processes: private at every end, and nothing is left whoever dies."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from bare_cluster import BareCluster, list_shared_memory
from traitlets import TraitError

import hpcviews
from hpcviews import Client, EngineError, PlaneUnavailable
from hpcviews.testing.wait import wait_until
from hpcviews.wire.pool import KEPT_S

MEGABYTE = 2**20
N = 500_000
"""Items of an array of 4 MB."""

OTHER_CONTAINER = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$0" "$@"']
"""Runs a program with a /dev/shm of its own, as in another container."""


TINY = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$0" -c "$1"']
"""Runs a script with a /dev/shm of 8 MB."""


def read_memory(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {key} of process {pid}")


def list_segments(cluster: BareCluster) -> list[str]:
    return list_shared_memory(cluster.generation)[1:]


def twice(array: np.ndarray) -> np.ndarray:
    return array * 2


# ---------------------------------------------------------------- arrays


def test_pushed_array_is_writable_and_private_on_each_engine(rc: Client) -> None:
    view = rc[:]
    array = np.arange(float(N))
    ar = view.push({"x": array}, block=False)
    array[:] = -1  # with shared memory the caller's array is its own again when the call returns
    ar.get(30)
    assert [entry["plane"] for entry in ar.metadata] == ["shm"] * 3
    assert [entry["bytes"] for entry in ar.metadata] == [array.nbytes] * 3
    assert view["x[5]"] == [5.0] * 3
    for engine_id in rc.ids:
        rc[engine_id].execute(f"x[5] = 100 + {engine_id}", block=True)
    assert view["x[5]"] == [100.0, 101.0, 102.0]
    pulled = rc[0]["x"]
    pulled[6] = -7
    assert rc[0]["x[6]"] == 6.0 and rc[1]["x[6]"] == 6.0


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("plane", ["auto", "shm", "frames"])
def test_scatter_and_gather_round_trip(rc: Client, dist: str, plane: str) -> None:
    view = rc.direct_view(plane=plane)
    for array in (np.arange(3 * N + 1), np.arange(4 * float(N)).reshape(-1, 4), np.arange(6 * N)[::2]):
        view.scatter("part", array, dist=dist, block=True)
        back = view.gather("part", dist=dist, block=True)
        assert back.dtype == array.dtype and np.array_equal(back, array)
        back[:] = 0
        assert np.array_equal(view.gather("part", dist=dist, block=True), array)


def test_arguments_and_results_of_tasks_are_shared_too(rc: Client) -> None:
    view = rc.load_balanced_view()
    array = np.arange(float(N))
    ar = view.apply_async(twice, array)
    assert np.array_equal(ar.get(30), 2 * array)
    assert ar.metadata["plane"] == "shm" and ar.metadata["bytes"] == 2 * array.nbytes
    results = view.map_sync(twice, [np.full(N, float(i)) for i in range(20)])
    assert [result[0] for result in results] == [2.0 * i for i in range(20)]


def test_contents_never_change_while_warm_segments_are_written_again(rc: Client, cluster: BareCluster) -> None:
    view = rc[:]
    for i in range(12):
        view.push({f"x{i % 4}": np.full(N, float(i))}, block=True)
        kept = [rc[i % 3][f"x{j}[-1]"] for j in range(min(i + 1, 4))]
        expected = [float(max(k for k in range(i + 1) if k % 4 == j)) for j in range(min(i + 1, 4))]
        assert kept == expected
    pulled = [rc[0].apply_sync(np.full, N, float(i)) for i in range(8)]
    assert [array[-1] for array in pulled] == [float(i) for i in range(8)]


def test_segments_that_nobody_keeps_are_used_again_and_removed_soon(rc: Client, cluster: BareCluster) -> None:
    view = rc[:]
    wait_until(lambda: not list_segments(cluster), KEPT_S + 10, "earlier segments to be removed")
    array = np.ones(N)
    for _ in range(20):
        assert view.apply_sync(np.sum, array) == [float(N)] * 3
        assert rc[0].apply_sync(np.ones, N).sum() == N
    assert len(list_segments(cluster)) <= 4
    wait_until(lambda: not list_segments(cluster), KEPT_S + 10, "idle segments to be removed")


def test_retried_task_gets_its_array_again(rc: Client, tmp_path: Path) -> None:
    def flaky(array: np.ndarray, marks: str) -> float:
        tries = len(list(Path(marks).iterdir()))
        Path(marks, str(tries)).touch()
        array[:] += 1
        if tries < 2:
            raise ValueError("not yet")
        return float(array[0])

    view = rc.load_balanced_view(retries=3)
    assert view.apply_sync(flaky, np.zeros(N), str(tmp_path)) == 1.0


def test_tracker_is_done_when_the_copy_is_made(rc: Client) -> None:
    view = rc.direct_view(track=True, plane="shm")
    rc[:].apply_async(time.sleep, 0.3)
    array = np.ones(N)
    ar = view.apply_async(np.sum, array)
    ar.wait_for_send(0)
    assert ar.sent and not ar.ready()
    array[:] = 0
    assert ar.get(30) == [float(N)] * 3


def test_two_clients_share_with_the_same_engines(rc: Client, cluster: BareCluster) -> None:
    other = cluster.connect(3)
    rc[:].push({"a": np.full(N, 1.0)}, block=True)
    other[:].push({"b": np.full(N, 2.0)}, block=True)
    other.close()
    assert rc[:]["a[0] + b[-1]"] == [3.0] * 3
    assert rc[0]["b"][0] == 2.0


# ---------------------------------------------------------------- which plane


def test_plane_is_checked_when_set(rc: Client) -> None:
    view = rc[:]
    assert view.plane == "auto"
    with pytest.raises(TraitError, match="there is no MPI plane yet"):
        view.plane = "mpi"
    with pytest.raises(TraitError, match="must be 'auto', 'shm' or 'frames', not 'pigeon'"):
        view.set_flags(plane="pigeon")
    with view.temp_flags(plane="frames"):
        ar = view.push({"x": np.zeros(N)}, block=False)
        ar.get(30)
        assert {entry["plane"] for entry in ar.metadata} == {"frames"}
        assert view.explain_transfer("x").plane == "frames"
    assert view.plane == "auto"


def test_results_go_the_way_that_the_view_says(rc: Client) -> None:
    rc[0].execute(f"import numpy; x = numpy.ones({N})", block=True)
    for plane, expected in (("frames", "frames"), ("shm", "shm"), ("auto", "shm")):
        ar = rc.direct_view(0, plane=plane).pull("x", block=False)
        assert ar.get(30).sum() == N
        assert ar.metadata["plane"] == expected


def test_explain_transfer(rc: Client) -> None:
    view = rc[:]
    array = np.zeros(N)
    coming = view.explain_transfer(array)
    assert (coming.what, coming.plane, coming.nbytes, coming.seconds) == ("next", "shm", 3 * array.nbytes, None)
    assert view.explain_transfer(np.zeros(1000)).plane == "frames"
    assert view.explain_transfer([np.zeros(N), 1]).plane == "shm"
    view.push({"x": array}, block=True)
    told = view.explain_transfer("x")
    assert (told.what, told.plane, told.nbytes) == ("push", "shm", 3 * array.nbytes)
    assert told.seconds is not None and told.gb_per_s is not None and "GB/s" in str(told)
    view.scatter("x", array, block=True)
    assert view.explain_transfer("x").what == "scatter" and view.explain_transfer("x").nbytes == array.nbytes
    view.gather("x", block=True)
    assert view.explain_transfer("x").what == "gather"
    with pytest.raises(KeyError, match="has not been pushed"):
        view.explain_transfer("never")


# ---------------------------------------------------------------- memory


def test_memory_of_everybody_is_bounded(rc: Client, cluster: BareCluster) -> None:
    view = rc[:]
    array = np.ones(8 * MEGABYTE)  # 64 MB
    pids = {"client": os.getpid(), "controller": cluster.controller.pid}
    pids |= {f"engine {info.id}": info.pid for info in rc.engines.values()}
    constant = 8 * MEGABYTE
    view.push({"warm": np.ones(N)}, block=True)
    before = {who: read_memory(pid, "RssAnon") for who, pid in pids.items()}
    controller_before = read_memory(pids["controller"], "VmHWM")
    view.push({"x": array}, block=True)
    assert view["float(x.sum())"] == [float(array.size)] * 3
    for who, pid in pids.items():
        grown = read_memory(pid, "RssAnon") - before[who]
        assert grown < constant, f"{who} keeps {grown / MEGABYTE:.0f} MB of its own for what is shared"
    view.scatter("x", array, block=True)
    gathered = view.gather("x", block=True)
    grown = read_memory(pids["client"], "RssAnon") - before["client"]
    assert grown < gathered.nbytes + constant, f"the client keeps {grown / MEGABYTE:.0f} MB"
    grown = read_memory(pids["controller"], "VmHWM") - controller_before
    assert grown < constant, f"the controller grew by {grown / MEGABYTE:.0f} MB at its peak"


# ---------------------------------------------------------------- deaths


def run_client(cluster: BareCluster, code: str) -> subprocess.Popen[bytes]:
    text = f"import hpcviews, numpy as np, sys, time\nrc = hpcviews.Client(access={str(cluster.access)!r})\n{code}"
    return subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def wait_for_word(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_killed_client_leaves_nothing(mortal: BareCluster) -> None:
    mortal.start_engines(2)
    rc = mortal.connect(2)
    dying = run_client(
        mortal,
        "rc[:].push({'kept': np.ones(500_000)}, block=True)\n"
        "busy = rc[:].apply_async(time.sleep, 1)\n"
        "calls = [rc[:].push({'x': np.zeros(500_000 + i)}, block=False) for i in range(10)]\n"
        "print('ready', flush=True)\nsys.stdin.read()",
    )
    wait_for_word(dying)
    assert len(list_segments(mortal)) >= 10
    end(dying)
    wait_until(lambda: not list_segments(mortal), 10, "the segments of the killed client to be removed")
    assert rc[:]["kept[-1]"] == [1.0, 1.0], "what the engines keep lives on"


def test_client_that_leaves_politely_has_its_work_done_with_its_arrays(mortal: BareCluster) -> None:
    mortal.start_engines(1)
    rc = mortal.connect(1)
    leaving = run_client(
        mortal, "rc[0].apply_async(time.sleep, 0.5)\nrc[0].push({'late': np.full(500_000, 3.0)}, block=False)"
    )
    assert leaving.wait(20) == 0
    end(leaving)
    assert rc[0]["late[-1]"] == 3.0
    wait_until(lambda: not list_segments(mortal), KEPT_S + 10, "its segments to be removed when the work is done")


def test_killed_engine_leaves_nothing_and_its_results_live_on(mortal: BareCluster) -> None:
    mortal.start_engines(2)
    rc = mortal.connect(2)
    kept = [rc[0].apply_sync(np.full, N, float(i)) for i in range(5)]
    rc[0].push({"x": np.ones(N)}, block=True)
    pid = rc.engines[rc.ids[0]].pid
    dying = next(engine for engine in mortal.engines if engine.pid == pid)
    doomed = rc[0].apply_async(time.sleep, 30)
    queued = rc[0].push({"y": np.ones(N)}, block=False)
    mortal.kill(dying)
    for call in (doomed, queued):
        with pytest.raises(EngineError):
            call.get(10)
    assert [array[-1] for array in kept] == [0.0, 1.0, 2.0, 3.0, 4.0]
    wait_until(lambda: not list_segments(mortal), KEPT_S + 10, "the segments of the killed engine to be removed")
    assert rc[1].apply_sync(np.sum, np.ones(N)) == N


def test_killed_controller_leaves_nothing_when_the_others_have_ended(mortal: BareCluster) -> None:
    mortal.start_engines(2)
    rc = mortal.connect(2)
    rc[:].push({"x": np.ones(N)}, block=True)
    kept = rc[0]["x"]
    calls = [rc[:].apply_async(time.sleep, 60), rc[:].push({"y": np.ones(N)}, block=False)]
    mortal.kill(mortal.controller)
    for call in calls:
        with pytest.raises(hpcviews.ControllerLost):
            call.get(10)
    for engine in mortal.engines:
        engine.wait(30)
    # No sweep, nobody closed anything: each left its room when it lost the controller.
    wait_until(lambda: not list_shared_memory(mortal.generation), 10, "the last party to clear up")
    assert kept.sum() == N


def test_when_all_are_killed_the_next_command_sweeps(mortal: BareCluster, tmp_path: Path) -> None:
    mortal.start_engines(2)
    dying = run_client(
        mortal,
        "rc.wait_for_engines(2)\nrc[:].push({'x': np.ones(500_000)}, block=True)\n"
        "call = rc[:].apply_async(time.sleep, 60)\nprint('ready', flush=True)\nsys.stdin.read()",
    )
    wait_for_word(dying)
    for process in (mortal.controller, *mortal.engines):
        process.kill()
    end(dying)
    for process in (mortal.controller, *mortal.engines):
        process.wait(10)
    assert list_segments(mortal), "there is something to sweep"
    environment = {**os.environ, "HPCVIEWS_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "hpcviews.cli", "list"], env=environment, check=True, capture_output=True)
    assert not list_shared_memory(mortal.generation)


def test_stopped_cluster_leaves_nothing(mortal: BareCluster) -> None:
    mortal.start_engines(2)
    rc = mortal.connect(2)
    rc[:].push({"x": np.ones(N)}, block=True)
    kept = rc[0]["x"]
    rc.stop_cluster(timeout=30)
    mortal.controller.wait(10)
    for engine in mortal.engines:
        engine.wait(10)
    wait_until(lambda: not list_shared_memory(mortal.generation), 10, "the last party to clear up")
    assert kept.sum() == N


# ---------------------------------------------------------------- who cannot share


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting another /dev/shm needs root")
def test_engine_with_a_shm_of_its_own_is_told_apart(mortal: BareCluster) -> None:
    mortal.start_engines(1)
    mortal.connect(1)
    mortal.start_engines(1, OTHER_CONTAINER)
    rc = mortal.connect(2)
    near, far = rc[0], rc[1]
    if near.apply_sync(lambda: Path("/dev/shm").stat().st_dev) != Path("/dev/shm").stat().st_dev:
        near, far = far, near
    array = np.arange(float(N))
    with pytest.raises(PlaneUnavailable, match="cannot open this client's shared memory"):
        rc.direct_view(plane="shm").push({"x": array})
    assert near.explain_transfer(array).plane == "shm" and far.explain_transfer(array).plane == "frames"
    # One segment for the neighbour; the controller, who can open it, sends its bytes to the other.
    ar = rc[:].push({"x": array}, block=False)
    ar.get(30)
    assert rc[:]["float(x.sum())"] == [float(array.sum())] * 2
    assert [np.array_equal(part, array) for part in rc[:]["x"]] == [True, True]
    rc[:].scatter("part", array, block=True)
    assert np.array_equal(rc[:].gather("part", block=True), array)
    balanced = rc.load_balanced_view()
    assert balanced.map_sync(np.sum, [np.ones(N)] * 6) == [float(N)] * 6
    assert balanced.map_sync(np.ones, [N] * 6)[5].sum() == N


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting another /dev/shm needs root")
def test_tiny_shm_falls_back_to_frames_with_one_warning(tmp_path: Path) -> None:
    script = """
import sys
import numpy as np
import hpcviews
with hpcviews.Cluster(n=2) as rc:
    array = np.arange(3_000_000.0)
    for _ in range(3):
        ar = rc[:].push({"x": array}, block=False)
        ar.get(60)
    assert {entry["plane"] for entry in ar.metadata} == {"frames"}, ar.metadata
    assert all(np.array_equal(x, array) for x in rc[:]["x"])
    rc[:].push({"y": array[:200_000]}, block=True)
    assert rc[:].explain_transfer("y").plane == "shm"
print("done")
"""
    with tempfile.TemporaryDirectory(prefix="hv") as home:
        done = subprocess.run(
            [*TINY, sys.executable, script],
            env={**os.environ, "HPCVIEWS_HOME": home},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert done.stderr.count("no room in /dev/shm") == 1
