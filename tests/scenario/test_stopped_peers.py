"""Peers that neither answer nor die: SIGSTOP. The kernel keeps their connections, so only heartbeats tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpcviews
from hpcviews.controller.app import Controller
from hpcviews.controller.events import SetStarted
from hpcviews.ids import SetId
from hpcviews.testing.services import NoProcesses
from hpcviews.wire import sockets
from hpcviews.wire.access import write_access


@pytest.fixture(params=["ipc", "tcp"])
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[hpcviews.Client, list[subprocess.Popen[bytes]]]]:
    """A client and two engines of a controller that misses heartbeats after a second."""
    monkeypatch.setattr(sockets, "HEARTBEAT_INTERVAL_MS", 200)
    monkeypatch.setattr(sockets, "HEARTBEAT_TIMEOUT_MS", 1000)
    ipc = str(tmp_path / "s") if request.param == "ipc" else None
    controller = Controller(
        "stopped", hpcviews.__version__, ipc_path=ipc, tcp_addresses=["127.0.0.1"], services=[NoProcesses()]
    )
    controller.loop.post(SetStarted(SetId(0), "test", 2, False, ""))
    for role in ("client", "engine"):
        write_access(tmp_path / f"{role}.json", controller.make_access(role))
    thread = threading.Thread(target=controller.run)
    thread.start()
    argv = [sys.executable, "-m", "hpcviews.engine", "--access", str(tmp_path / "engine.json"), "--expect", "2"]
    engines = [subprocess.Popen([*argv, "--index", str(i)]) for i in range(2)]
    rc = hpcviews.Client(access=tmp_path / "client.json")
    try:
        rc.wait_for_engines(2, timeout=30)
        yield rc, engines
    finally:
        for engine in engines:
            engine.send_signal(signal.SIGCONT)
        rc.stop_cluster(timeout=10)
        rc.close()
        thread.join(10)
        for engine in engines:
            engine.wait(20)


def test_stopped_engine_fails_its_requests_and_comes_back_with_its_id(
    cluster: tuple[hpcviews.Client, list[subprocess.Popen[bytes]]],
) -> None:
    rc, engines = cluster
    pids = rc[:].apply_sync(os.getpid)
    waiting = rc[1].apply_async(os.getpid)
    assert waiting.get(timeout=10) == pids[1]
    engines[1].send_signal(signal.SIGSTOP)
    stuck = rc[1].apply_async(os.getpid)
    with pytest.raises(hpcviews.EngineError, match="engine 1"):
        stuck.get(timeout=20)
    assert rc[0].apply_sync(os.getpid) == pids[0], "the other engine goes on"
    engines[1].send_signal(signal.SIGCONT)
    rc.wait_for_engines(2, timeout=20)
    assert rc.ids == [0, 1] and rc[1].apply_sync(os.getpid) == pids[1]


def test_engine_that_holds_the_gil_is_not_taken_for_dead(
    cluster: tuple[hpcviews.Client, list[subprocess.Popen[bytes]]],
) -> None:
    rc, _ = cluster
    # Calls into C that keep the GIL, together for several heartbeat timeouts.
    rc[0].execute(HOLD_GIL, block=True)
    assert rc[0].pull("held", block=True) > 2


HOLD_GIL = """
import time
started = time.monotonic()
while time.monotonic() - started < 2.5:
    sum(range(60_000_000))
held = time.monotonic() - started
"""
