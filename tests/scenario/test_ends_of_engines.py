"""Engines of a real cluster that are stopped, hang or are lost: ended and started again all the same."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from household import Household

import hpcviews
from hpcviews.testing.wait import wait_until


def get_state(pid: int) -> str:
    """Of a process, in one letter; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def start_child() -> int:
    """A process below the engine."""
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
        os._exit(0)
    return pid


def test_stopped_engines_end_when_they_are_told_to_or_killed(household: Household) -> None:
    with hpcviews.Cluster(n=3, path=[Path(__file__).parent]) as rc:
        pids = rc[:].apply_sync(os.getpid)
        child = rc[1].apply_sync(start_child)
        for pid in pids[1:]:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda pid=pid: get_state(pid) == "T", 20, "it to be stopped")
        waiting = rc[[1, 2]].apply_async(os.getpid)
        rc.kill([1])
        assert get_state(pids[1]) in ("", "Z") and get_state(child) in ("", "Z")
        rc.shutdown([2], block=True)
        assert get_state(pids[2]) in ("", "Z")
        assert rc.ids == [0] and rc.engine_sets[0].state == "ready" and rc.engine_sets[0].n == 1
        killed, stopped = waiting.get(timeout=20, return_exceptions=True)
        assert str(killed) == "engine 1 was killed by a client before it answered"
        # It was told to go on and to end at once, and may have answered what had come before.
        assert stopped == pids[2] or str(stopped) == "engine 2 was stopped by a client before it answered"
        assert rc[0].apply_sync(os.getpid) == pids[0]


def test_stopped_engine_is_continued_by_a_signal(household: Household) -> None:
    with hpcviews.Cluster(n=1) as rc:
        pid = rc[0].apply_sync(os.getpid)
        rc.send_signal("SIGSTOP", block=True)
        wait_until(lambda: get_state(pid) == "T", 20, "it to be stopped")
        answer = rc[0].apply_async(os.getpid)
        rc.send_signal("SIGCONT", block=True)
        assert answer.get(timeout=20) == pid


def test_restart_of_all_that_are_left_brings_a_lost_engine_back(household: Household) -> None:
    with hpcviews.Cluster(n=3, path=[Path(__file__).parent]) as rc:
        pids = rc[:].apply_sync(os.getpid)
        os.kill(pids[1], signal.SIGKILL)
        wait_until(lambda: rc.ids == [0, 2], 20, "the loss")
        rc.shutdown(restart=True, block=True)
        rc.wait_for_engines(3, timeout=60)
        assert rc.ids == [0, 1, 2] and not set(rc[:].apply_sync(os.getpid)) & set(pids)
