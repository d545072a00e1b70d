"""Ending clusters that are not simply running here: being started, on another host, unreachable."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from hpcviews import records
from hpcviews.cli.app import main
from hpcviews.cluster import ending
from hpcviews.records import Liveness, Record
from hpcviews.wire.access import Access, read_host_id, write_access


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPCVIEWS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HPCVIEWS_CLUSTER", raising=False)
    monkeypatch.delenv("HPCVIEWS_DEBUG", raising=False)
    monkeypatch.setattr(ending, "STARTING_S", 0.0)
    monkeypatch.setattr(ending, "ANSWER_S", 0.2)
    return tmp_path / "home"


def claim(host: str, host_id: str, generation: str) -> records.Place:
    """A cluster whose "controller" is this process, which must survive the test."""
    start = records.find_process_start(os.getpid())
    assert start is not None
    record = Record(
        name="one",
        host=host,
        host_id=host_id,
        pid_namespace=records.read_pid_namespace(),
        pid=os.getpid(),
        pid_started=start,
        python=sys.executable,
        version="1",
        launcher="local",
        n=1,
        started=time.time(),
        cwd="/",
        generation=generation,
    )
    return records.claim(record)


def test_process_that_only_starts_a_cluster_is_not_killed_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    place = claim(os.uname().nodename, read_host_id(), generation="")
    assert main(["stop", "one"]) == 4
    assert f"is being started by process {os.getpid()}" in capsys.readouterr().err
    assert place.directory.exists()


def test_cluster_of_a_host_that_does_not_answer_is_kept_until_it_is_to_be_forgotten(
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = claim("node9", "another-boot/1", generation="g")
    # Nobody listens on port 1: refused at once.
    access = Access(
        "client", "one", "g", "1", "3.11", "node9", "another-boot/1", ["ipc:///x", "tcp://127.0.0.1:1"],
        "k" * 40, "k" * 40, "k" * 40,
    )  # fmt: skip
    write_access(place.access("client"), access)
    (found,) = records.list_clusters()
    assert found.liveness is Liveness.ELSEWHERE

    assert main(["stop", "one"]) == 5
    err = capsys.readouterr().err
    assert "only on that host" in err and "connection refused" in err
    assert "End it on node9 with `hpcviews stop one`" in err and "--forget one" in err
    assert place.directory.exists()

    assert main(["stop", "--forget", "one"]) == 0
    assert "removed its record only" in capsys.readouterr().out
    assert records.list_clusters() == []


def test_stop_all_goes_on_after_one_that_cannot_be_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    claim(os.uname().nodename, read_host_id(), generation="")
    assert main(["stop", "--all"]) == 4
    assert "hpcviews: one: " in capsys.readouterr().err
