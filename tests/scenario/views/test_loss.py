"""Engines and controllers that die, as a client sees it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from bare_cluster import BareCluster

from hpcviews import (
    CompositeError,
    ControllerLost,
    ControllerUnreachable,
    EngineError,
    NoEnginesRegistered,
    NoSuchEngine,
)
from hpcviews.client.client import Client
from hpcviews.testing.wait import wait_until


def test_killed_engine_ends_its_requests_and_no_others(mortal: BareCluster) -> None:
    mortal.start_engines(3)
    rc = mortal.connect(3)
    view, balanced = rc[:], rc.load_balanced_view()
    pids = view.apply_sync(lambda: __import__("os").getpid())
    dying = next(p for p in mortal.engines if p.pid == pids[1])
    nap = view.apply_async(lambda: time.sleep(1) or "awake")
    queued = rc[1].apply_async(int)
    started = time.monotonic()
    mortal.kill(dying)
    with pytest.raises(EngineError, match="engine 1"):
        queued.get(5)
    assert time.monotonic() - started < 1
    with pytest.raises(CompositeError) as caught:
        nap.get(10)
    assert [type(e) for e in caught.value.elist] == [EngineError]
    survivors = nap.get(return_exceptions=True)
    assert survivors[0] == survivors[2] == "awake"
    assert rc.ids == [0, 2]
    with pytest.raises(NoSuchEngine):
        view.apply_async(int)
    assert rc.direct_view("all").apply_sync(int) == [0, 0]
    assert balanced.map_sync(abs, range(50)) == list(range(50))


def test_last_engine_gone_is_said(mortal: BareCluster) -> None:
    mortal.start_engines(1)
    rc = mortal.connect(1)
    view = rc.direct_view("all")
    mortal.kill(mortal.engines[0])
    wait_until(lambda: not rc.ids, 5, "the news of the death")
    with pytest.raises(NoEnginesRegistered, match="wait_for_engines"):
        view.apply_async(int)
    with pytest.raises(NoEnginesRegistered):
        rc.load_balanced_view().apply_sync(int)
    mortal.start_engines(1)
    rc.wait_for_engines(1, timeout=30)
    assert view.apply_sync(int) == [0]


def test_killed_controller_ends_every_wait(mortal: BareCluster) -> None:
    mortal.start_engines(2)
    rc = mortal.connect(2)
    calls = [rc[:].apply_async(time.sleep, 60), rc[0].apply_async(int), rc.load_balanced_view().map(abs, range(100))]
    started = time.monotonic()
    mortal.kill(mortal.controller)
    for call in calls:
        try:
            call.get(5)  # what was done before the death may be there
        except ControllerLost as error:
            assert "'bare'" in str(error)
    with pytest.raises(ControllerLost):
        calls[0].get(0)
    assert time.monotonic() - started < 2
    with pytest.raises(ControllerLost):
        rc[0].apply_async(int)
    rc.close()
    with pytest.raises(ControllerUnreachable, match=r"its socket is gone|refused"):
        Client(access=mortal.access, timeout=1)
    for engine in mortal.engines:
        assert engine.wait(30) is not None


def test_stopping_the_cluster_returns_when_it_is_gone(mortal: BareCluster) -> None:
    mortal.start_engines(2)
    rc = mortal.connect(2)
    rc[:].apply_sync(int)
    rc.stop_cluster(timeout=30)
    assert mortal.controller.wait(10) == 0
    assert [engine.wait(10) for engine in mortal.engines] == [0, 0]


def test_interrupted_call_goes_on_and_can_be_got_at(mortal: BareCluster) -> None:
    mortal.start_engines(1)
    mortal.connect(1)
    script = f"""
import os, signal, sys, threading
import hpcviews
client = hpcviews.Client(access={str(mortal.access)!r})
def nap():
    import time
    time.sleep(1)
    return "rested"
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    client[0].apply_sync(nap)  # the view is gone with the call, as people write it
except KeyboardInterrupt as interrupt:
    assert "client.get_result(-1)" in str(interrupt)
    print(client.get_result(-1).get(10))
# Without close(): a script that forgets it must end, and say goodbye.
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("rested\n", "", 0)
    assert "1 requests go on" not in (Path(mortal.path) / "controller.log").read_text()
    wait_until(lambda: mortal.clients[0].status().clients == 1, 5, "the script's client to be gone")


def test_script_that_ends_without_waiting_has_its_work_done(mortal: BareCluster, tmp_path: Path) -> None:
    mortal.start_engines(1)
    rc = mortal.connect(1)
    script = f"""
import hpcviews
rc = hpcviews.Client(access={str(mortal.access)!r})
for i in range(100):
    rc[0].apply_async(lambda i: open({str(tmp_path)!r} + "/" + str(i), "w").close(), i)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 100, 10, "the work of the script that is gone")
    assert rc[0].apply_sync(int) == 0
