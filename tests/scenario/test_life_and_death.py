"""Everything that can be killed is killed: what belonged to it goes, the rest goes on, status tells the truth."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from household import Household, Telling, find_pids, read_line

import hpcviews
from hpcviews.errors import CompositeError, ControllerLost, EngineError
from hpcviews.testing.wait import wait_until

LAUNCHERS = ["local", "mpiexec"]

GONE_S = 30.0
"""What the owner's death may take to reach everything."""

SLEEPER = (
    "import os, time, hpcviews\n"
    "rc = hpcviews.Client()\n"
    "print('working', flush=True)\n"
    "rc[:].apply_sync(time.sleep, 600)\n"
)


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    os.kill(pid, signum)


def get_controller(household: Household, name: str = "one") -> int:
    (pid,) = [c["pid"] for c in household.ask("list") if c["name"] == name]
    assert isinstance(pid, int)
    return pid


# ---------------------------------------------------------------- an engine


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_killed_engine_fails_its_requests_within_a_second_and_the_others_go_on(
    household: Household, launcher: str
) -> None:
    household.start("--n", "3", "--launcher", launcher)
    with hpcviews.Client("one") as rc:
        pids = rc[:].apply_sync(os.getpid)
        doomed = rc[1].apply_async(time.sleep, 600)
        safe = rc[[0, 2]].apply_async(time.sleep, 0.5)
        wait_until(lambda: household.ask("status")["engines"][1]["state"] == "busy", 10, "engine 1 to be busy")
        killed = time.monotonic()
        kill(pids[1])
        with pytest.raises(EngineError):
            doomed.get(timeout=10)
        assert time.monotonic() - killed < 1.0
        safe.get(timeout=10)
        assert rc.ids == [0, 2]
        assert rc[:].apply_sync(os.getpid) == [pids[0], pids[2]]
    status = household.ask("status", "one")
    assert status["state"] == "degraded"
    assert [(e["id"], e["state"]) for e in status["engines"]] == [(0, "idle"), (1, "lost"), (2, "idle")]
    assert "connection" in status["engines"][1]["why"]
    assert "engine 1" in status["sets"][0]["why"]
    assert household.run("stop").returncode == 0


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_engines_that_neither_answer_nor_obey_are_killed_at_the_end(household: Household, launcher: str) -> None:
    household.start("--n", "2", "--launcher", launcher)
    with hpcviews.Client("one") as rc:

        def defy() -> None:
            import signal

            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)

        rc[:].apply_sync(defy)
        pids = rc[:].apply_sync(os.getpid)
    kill(pids[0], signal.SIGSTOP)
    done = household.run("stop", "one")
    assert done.stdout == "one: stopped\n", "the controller saw to it, in its time"
    assert household.find_processes() == {}


# ---------------------------------------------------------------- the controller


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_killed_controller_is_lost_to_clients_and_engines_exit_by_themselves(
    household: Household, launcher: str
) -> None:
    household.start("--n", "2", "--launcher", launcher)
    shared_memory = household.find_shared_memory()
    with hpcviews.Client("one") as rc:
        waiting = rc[:].apply_async(time.sleep, 600)
        kill(get_controller(household))
        with pytest.raises(ControllerLost, match="hpcviews list"):
            waiting.get(timeout=10)
    household.wait_until_empty(GONE_S)
    assert household.ask("list")[0]["state"] == "dead"
    status = household.run("status", "one", "--json")
    assert status.returncode == 3
    assert '"state": "dead"' in status.stdout
    assert "hpcviews stop one" in household.run("status", "one").stderr
    assert household.run("stop", "one").stdout == "one: was dead; cleared away what it left\n"
    assert [path for path in shared_memory if path.exists()] == []
    assert "engine set 0: ready" in household.run("logs", "one").stdout


def test_name_of_a_killed_cluster_can_be_used_again_at_once(household: Household) -> None:
    household.start("--n", "1", "--launcher", "mpiexec")
    before = set(household.find_processes())
    kill(get_controller(household))
    wait_until(lambda: household.ask("list")[0]["state"] == "dead", 5, "the controller's end")
    household.start("--n", "2")
    assert not before & set(household.find_processes()), "what the dead one left has been cleared away"
    assert len(household.ask("status", "one")["engines"]) == 2
    household.run("stop")
    household.wait_until_empty(GONE_S)


def test_hung_controller_is_reported_and_killed(household: Household) -> None:
    household.start("--n", "2")
    kill(get_controller(household), signal.SIGSTOP)
    status = household.run("status", "one", "--json")
    assert status.returncode == 5
    assert '"state": "unreachable"' in status.stdout
    done = household.run("stop", "one", "--timeout", "0.5")
    assert done.stdout.startswith("one: did not stop within 0.5 s; killed")
    assert household.find_processes() == {}


def test_script_whose_controller_is_killed_is_told_and_nothing_is_left(household: Household) -> None:
    run = household.begin("run", "--n", "2", "--name", "one", household.write("job.py", SLEEPER))
    assert read_line(run) == "working"
    kill(get_controller(household))
    _, errors = run.communicate(timeout=GONE_S)
    assert run.returncode == 1
    assert "ControllerLost" in errors
    household.wait_until_empty(GONE_S)


# ---------------------------------------------------------------- a client


def test_killed_client_leaves_the_cluster_as_it_was(household: Household) -> None:
    household.start("--n", "2")
    script = household.write("job.py", SLEEPER.replace("600", "0.5"))
    client = household.begin_python(script)
    assert read_line(client) == "working"
    wait_until(lambda: household.ask("status")["controller"]["clients"] == 2, 10, "the client's connection")
    client.kill()
    wait_until(lambda: household.ask("status")["controller"]["clients"] == 1, 10, "the client's end")
    with hpcviews.Client("one") as rc:
        assert rc[:].apply_sync(lambda: 1) == [1, 1]
    assert household.ask("status")["state"] == "running"
    household.run("stop")


# ---------------------------------------------------------------- mpiexec


def test_killed_mpiexec_takes_its_engines_along_and_is_reported(household: Household) -> None:
    household.start("--n", "2", "--launcher", "mpiexec")
    (starter,) = find_pids(household.find_processes(), "mpiexec", "--access", "-n 2")[:1]
    engines = [e["pid"] for e in household.ask("status")["engines"]]
    assert starter not in engines
    shared_memory = household.find_shared_memory()
    with hpcviews.Client("one") as rc:
        waiting = rc[:].apply_async(time.sleep, 600)
        kill(starter)
        wait_until(lambda: not set(engines) & set(household.find_processes()), GONE_S, "the engines' end")
        with pytest.raises(CompositeError) as failed:
            waiting.get(timeout=10)
        assert [type(error) for error in failed.value.elist] == [EngineError] * 2
    status = household.ask("status", "one")
    assert status["state"] == "failed"
    assert "SIGKILL" in status["sets"][0]["why"]
    household.run("stop")
    assert [path for path in shared_memory if path.exists()] == []


# ---------------------------------------------------------------- hpcviews run


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_killed_run_takes_everything_along(household: Household, launcher: str) -> None:
    run = household.begin("run", "--n", "2", "--launcher", launcher, household.write("job.py", SLEEPER))
    assert read_line(run) == "working"
    shared_memory = household.find_shared_memory()
    run.kill()
    run.wait()
    household.wait_until_empty(GONE_S)
    wait_until(lambda: not household.find_clusters(), 5, "the record's end")
    assert [path for path in shared_memory if path.exists()] == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_to_run_ends_all(household: Household, signum: int) -> None:
    run = household.begin("run", "--n", "2", household.write("job.py", SLEEPER))
    assert read_line(run) == "working"
    run.send_signal(signum)
    assert run.wait(15) == 128 + signum
    assert household.find_processes() == {}


def test_ctrl_c_on_a_terminal_ends_all(household: Household) -> None:
    """As typed: the terminal sends SIGINT to the whole foreground process group, the script included."""
    controlling, terminal = os.openpty()
    # A session leader that opens a terminal gets it as its controlling one.
    command = 'exec "$0" -m hpcviews.cli run --n 2 "$1" <"$2" >"$2" 2>&1'
    script = household.write("job.py", SLEEPER)
    run = subprocess.Popen(["sh", "-c", command, sys.executable, script, os.ttyname(terminal)], start_new_session=True)
    try:
        os.set_blocking(controlling, False)
        seen = b""

        def read_more() -> bytes:
            nonlocal seen
            with contextlib.suppress(BlockingIOError):
                seen += os.read(controlling, 65536)
            return seen

        wait_until(lambda: b"working" in read_more() or Telling(repr(seen)), 30, "the script to work")
        os.write(controlling, b"\x03")
        assert run.wait(15) == 130
    finally:
        run.kill()
        run.wait()
        os.close(terminal)
        os.close(controlling)
    assert household.find_processes() == {}


def test_script_may_finish_its_own_cleaning_up_after_ctrl_c(household: Household) -> None:
    text = SLEEPER.replace("rc[:]", "try:\n  rc[:]") + "finally:\n  print('cleaned', len(rc), flush=True)\n"
    run = household.begin("run", "--n", "2", household.write("job.py", text))
    assert read_line(run) == "working"
    os.killpg(run.pid, signal.SIGINT)
    out, _ = run.communicate(timeout=20)
    assert out == "cleaned 2\n", "the cluster is there until the script has ended"
    assert run.returncode == 130


def test_script_that_ignores_signals_is_killed_by_the_second(household: Household) -> None:
    text = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPER
    run = household.begin("run", "--n", "1", household.write("job.py", text))
    assert read_line(run) == "working"
    run.send_signal(signal.SIGTERM)
    run.send_signal(signal.SIGHUP)
    assert run.wait(20) == 128 + signal.SIGTERM


def test_signal_while_engines_start_leaves_nothing(household: Household) -> None:
    run = household.begin("run", "--n", "8", "-c", "print('never')")
    wait_until(household.find_clusters, 10, "the claim")
    run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=30)
    assert run.returncode in (143, 0)
    assert out == "" or run.returncode == 0
    # The signal may come when the controller has been spawned and nobody knows its pid yet; the lifeline ends it then.
    household.wait_until_empty(GONE_S)


def test_killed_start_leaves_nothing(household: Household) -> None:
    start = household.begin("start", "--n", "32", "--name", "one")
    # Its record, not its directory: one without a record is cleared away by the next look, but only after a while.
    wait_until(lambda: list(household.home.glob("clusters/one/cluster.json")), 10, "the claim")
    start.kill()
    start.wait()
    household.wait_until_empty(GONE_S)
    household.run("stop", "--all")  # what was killed before it had a controller is only a record


# ---------------------------------------------------------------- from Python


def test_block_that_raises_leaves_nothing(household: Household) -> None:
    with pytest.raises(ZeroDivisionError), hpcviews.Cluster(n=2) as rc:
        assert rc[:].apply_sync(lambda: 1) == [1, 1]
        assert len(household.find_processes()) >= 3
        raise ZeroDivisionError
    assert household.find_processes() == {}


def test_cluster_can_be_started_used_and_stopped_by_hand(household: Household) -> None:
    cluster = hpcviews.Cluster(n=2, name="mine").start()
    assert repr(cluster) == "<Cluster mine: 2 engines by local, running, ends with this process>"
    with cluster.client() as rc:
        assert len(rc) == 2
    with hpcviews.Cluster.attach("mine").client() as rc:
        assert rc.ids == [0, 1]
    cluster.stop()
    cluster.stop()
    assert not cluster.is_running
    cluster.start()  # and again
    cluster.stop()


def test_progress_is_told_while_engines_start(household: Household) -> None:
    seen: list[tuple[int, int]] = []
    cluster = hpcviews.Cluster(n=3).start(on_progress=lambda ready, wanted: seen.append((ready, wanted)))
    cluster.stop()
    assert seen[-1] == (3, 3)


def test_attached_cluster_can_be_stopped(household: Household) -> None:
    household.start("--n", "1")
    hpcviews.Cluster.attach().stop()
    assert household.find_processes() == {}


OWNER = (
    "import os, sys, hpcviews\n"
    "cluster = hpcviews.Cluster(n=2, name='mine').start()\n"
    "{more}\n"
    "print('ready', flush=True)\n"
    "sys.stdin.read() if {ends} else __import__('signal').pause()\n"
)


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_cluster_ends_with_the_python_that_started_it(household: Household, how: str) -> None:
    owner = household.begin_python(household.write("owner.py", OWNER.format(more="", ends=how == "exit")))
    assert read_line(owner) == "ready"
    if how == "kill":
        owner.kill()
    owner.wait(20)
    household.wait_until_empty(GONE_S)
    wait_until(lambda: not household.find_clusters(), 5, "the record's end")


def test_detached_cluster_goes_on_after_its_python(household: Household) -> None:
    owner = household.begin_python(household.write("owner.py", OWNER.format(more="cluster.detach()", ends=True)))
    assert read_line(owner) == "ready"
    assert owner.wait(20) == 0
    assert household.ask("status", "mine")["state"] == "running"
    household.run("stop", "mine")


def test_forked_child_neither_ends_the_cluster_nor_keeps_it_alive(household: Household) -> None:
    fork = (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    sys.exit(0)\n"  # runs the exit handlers that it inherited
        "os.waitpid(pid, 0)\n"
        "assert len(cluster.client()) == 2\n"
        "if os.fork() == 0:\n"
        "    __import__('signal').pause()\n"
    )
    owner = household.begin_python(household.write("owner.py", OWNER.format(more=fork, ends=False)))
    assert read_line(owner) == "ready"
    owner.kill()
    owner.wait()
    wait_until(lambda: not find_pids(household.find_processes(), "hpcviews."), GONE_S, "the cluster's end")
    (child,) = find_pids(household.find_processes(), "owner.py")
    kill(child)
    wait_until(lambda: not household.find_clusters(), 5, "the record's end")
    household.wait_until_empty(5)


def test_forked_child_that_leaves_the_block_ends_as_it_wants_and_the_cluster_goes_on(household: Household) -> None:
    text = (
        "import os, sys, hpcviews\n"
        "with hpcviews.Cluster(n=1) as rc:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        sys.exit(7)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), rc[0].apply_sync(abs, -3))\n"
    )
    owner = household.begin_python(household.write("owner.py", text))
    assert owner.communicate(timeout=30)[0] == "7 3\n"
    assert owner.returncode == 0


def test_no_file_descriptor_and_no_thread_is_left_in_the_owner(household: Household) -> None:
    import threading

    def count() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    hpcviews.Cluster(n=1).start().stop()  # what is made once and kept
    before = count()
    with hpcviews.Cluster(n=2) as rc:
        rc[:].apply_sync(lambda: 1)
    assert count() == before


def test_shared_memory_of_mpi_is_gone_after_stop(household: Household) -> None:
    with hpcviews.Cluster(n=2, launcher="mpiexec") as rc:

        def meet() -> int:
            from mpi4py import MPI

            return int(MPI.COMM_WORLD.allreduce(1))

        assert rc[:].apply_sync(meet) == [2, 2]
        shared_memory = household.find_shared_memory()
        generation = rc._connection.access.generation
    assert [path for path in shared_memory if path.exists()] == []
    assert not list(Path("/dev/shm").glob(f"hpcviews*{generation}*"))
