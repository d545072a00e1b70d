"""Signals, interrupts, and engines that are ended or restarted on purpose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bare_cluster import BareCluster

import hpcviews
from hpcviews.client.client import Client
from hpcviews.client.engine_control import parse_signal
from hpcviews.testing.wait import wait_until


def busy() -> None:
    while True:
        pass


def asleep() -> None:
    import time

    time.sleep(100)


def has_begun(result: hpcviews.AsyncResult) -> bool:
    """Whether the engine is at it: what it prints first has come."""
    return all(text for text in ([result.stdout] if isinstance(result.stdout, str) else result.stdout))


def announce(work: object) -> None:
    print("begun", flush=True)
    work()  # type: ignore[operator]


@pytest.mark.parametrize("work", [busy, asleep])
def test_interrupt_ends_what_runs_and_not_what_comes_after(rc: Client, work: object) -> None:
    running, behind = rc[0].apply_async(announce, work), rc[0].apply_async(len, "abc")
    elsewhere = rc[1].apply_async(announce, busy)
    wait_until(lambda: has_begun(running) and has_begun(elsewhere), 20, "both")
    running.interrupt()
    with pytest.raises(hpcviews.RemoteError) as caught:
        running.get(timeout=20)
    assert caught.value.ename == "KeyboardInterrupt" and isinstance(caught.value.__cause__, KeyboardInterrupt)
    assert behind.get(timeout=20) == 3 and not elsewhere.done()
    rc[1].interrupt(block=True)
    elsewhere.wait(20)
    with pytest.raises(RuntimeError, match="already done"):
        running.interrupt()


def test_interrupt_of_a_call_withdraws_what_has_not_started(rc: Client) -> None:
    blocker = rc[0].apply_async(announce, busy)
    waiting = rc[0].apply_async(len, "abc")
    wait_until(lambda: has_begun(blocker), 20, "the first")
    waiting.interrupt()
    with pytest.raises(hpcviews.TaskAborted):
        waiting.get(timeout=20)
    assert not blocker.done()
    blocker.interrupt()
    blocker.wait(20)


def test_interrupted_task_is_not_tried_again(rc: Client) -> None:
    view = rc.load_balanced_view()
    view.retries = 5
    result = view.apply_async(announce, busy)
    wait_until(lambda: has_begun(result), 20, "it")
    result.interrupt()
    with pytest.raises(hpcviews.RemoteError, match="KeyboardInterrupt"):
        result.get(timeout=20)


def test_interrupts_hit_only_their_own_in_a_stream_of_requests(rc: Client) -> None:
    results = [rc[0].apply_async(len, "x" * n) for n in range(200)]
    for result in results[::2]:
        if not result.done():
            try:
                result.interrupt()
            except RuntimeError:
                continue
    others = [result.get(timeout=30) for result in results[1::2]]
    assert others == list(range(1, 200, 2))
    for n, result in enumerate(results[::2]):
        outcome = result.get(timeout=30, return_exceptions=True) if result.exception(30) is None else None
        assert outcome in (2 * n, None)


def test_idle_engines_ignore_an_interrupt(rc: Client) -> None:
    rc.interrupt(block=True)
    assert rc[:].apply_sync(len, "ab") == [2, 2, 2]


def test_signals_reach_the_engines_processes(rc: Client) -> None:
    rc[:].execute("import signal\nseen = []\nsignal.signal(signal.SIGUSR1, lambda *_: seen.append(1))", block=True)
    rc.send_signal("SIGUSR1", targets=[0, 2], block=True)
    wait_until(lambda: rc[:]["len(seen)"] == [1, 0, 1], 20, "the signals")
    future = rc[1].send_signal(signal.SIGUSR1, block=False)
    assert future is not None and future.result(20) is None
    wait_until(lambda: rc[:]["len(seen)"] == [1, 1, 1], 20, "the signal")


def test_what_is_no_signal_is_refused_here(rc: Client) -> None:
    assert parse_signal("int") == parse_signal("SIGINT") == parse_signal(2) == signal.SIGINT
    with pytest.raises(ValueError, match="SIGUSR1"):
        rc.send_signal("SIGNONSENSE")
    with pytest.raises(TypeError):
        rc.send_signal(None)  # type: ignore[arg-type]
    with pytest.raises(hpcviews.NoSuchEngine):
        rc.send_signal("SIGINT", targets=[99])


def test_killed_engines_are_gone_and_their_requests_end(mortal: BareCluster) -> None:
    mortal.start_engines(3)
    rc = mortal.connect(3)
    running = rc[1].apply_async(announce, busy)
    wait_until(lambda: has_begun(running), 20, "it")
    rc[1].kill()
    assert rc.ids == [0, 2]
    with pytest.raises(hpcviews.EngineError, match="killed by a client"):
        running.get(timeout=20)
    assert rc[[0, 2]].apply_sync(len, "ab") == [2, 2]
    rc.shutdown([0], block=True)
    assert rc.ids == [2]
    with pytest.raises(hpcviews.UsageError, match="cannot be started again"):
        rc.shutdown([2], restart=True, block=True)
    assert rc.ids == [2], "nothing was ended"
    rc.shutdown(block=True)
    assert rc.ids == []
    rc.shutdown(block=True)  # what is not there needs no end


def test_client_that_ends_the_cluster_is_closed(mortal: BareCluster) -> None:
    mortal.start_engines(1)
    rc = mortal.connect(1)
    with pytest.raises(hpcviews.UsageError, match="choose one"):
        rc.shutdown(hub=True, restart=True)
    rc[:].shutdown(hub=True)
    with pytest.raises(hpcviews.UsageError, match="closed"):
        rc[0].apply(len, "")
    assert mortal.controller.wait(20) == 0


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(
        "import os, signal, hpcviews\n"
        "rc = hpcviews.Client()\n"
        "before = rc[:].apply_sync(os.getpid)\n"
        "rc[:].push({'mine': 1}, block=True)\n"
        "if rc.engines[0].rank is None:\n"
        "    os.kill(before[1], signal.SIGSTOP)\n"
        "    rc.kill([1])\n"
        "    assert rc.ids == [0, 2] and rc.engine_sets[0].state == 'ready', rc.engine_sets\n"
        "    rc.shutdown([2], restart=True, block=True)\n"
        "    rc.wait_for_engines(2, timeout=60)\n"
        "    assert rc.ids == [0, 2] and rc[2].apply_sync(lambda: 'mine' in globals()) is False\n"
        "    assert rc[2].apply_sync(os.getpid) != before[2] and rc[0].apply_sync(os.getpid) == before[0]\n"
        "else:\n"
        "    try:\n"
        "        rc.shutdown([1], restart=True, block=True)\n"
        "    except hpcviews.UsageError as error:\n"
        "        assert 'rank of an MPI world' in str(error)\n"
        "    else:\n"
        "        raise SystemExit('a single rank was restarted')\n"
        "n = len(rc)\n"
        "rc.shutdown(restart=True, block=True)\n"
        "rc.wait_for_engines(n, timeout=60)\n"
        "after = rc[:].apply_sync(os.getpid)\n"
        "assert not set(after) & set(before), (before, after)\n"
        "print('restarted', rc.ids, [engine.world_size for engine in rc.engines.values()])\n"
    )
    return path


@pytest.mark.parametrize(
    ("launcher", "said"),
    [("local", "restarted [0, 2] [None, None]"), ("mpiexec", "restarted [0, 1, 2] [3, 3, 3]")],
)
def test_restarted_engines_have_their_ids_and_new_processes(
    launcher: str, said: str, script: Path, tmp_path: Path
) -> None:
    command = [str(Path(sys.executable).parent / "hpcviews"), "run", "--n", "3", "--launcher", launcher, str(script)]
    environment = {**os.environ, "HPCVIEWS_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
