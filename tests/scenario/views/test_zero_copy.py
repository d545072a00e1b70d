"""Arrays are not copied on their way, and nobody keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_cluster import BareCluster

from hpcviews import Client
from hpcviews.testing.wait import wait_until


def read_resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no process {pid}")


def describe(array: Any) -> tuple[bool, bool, bool, str, bool]:
    """On the engine: contiguous?, writable?, its own memory?, the type of the owner of its memory, still so?"""
    owner = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    array[0] = 42
    return array.flags.c_contiguous, array.flags.writeable, array.flags.owndata, type(owner).__name__, array[0] == 42


@pytest.mark.parametrize(("plane", "owner"), [("frames", "Frame"), ("shm", "mmap")])
def test_array_on_the_engine_aliases_what_was_received_and_is_writable(rc: Client, plane: str, owner: str) -> None:
    view = rc.direct_view(plane=plane)
    array = np.arange(1_000_000.0)
    found = view.apply_sync(describe, array)
    assert found == [(True, True, False, owner, True)] * 3
    assert array[0] == 0, "the engines wrote into the client's array"
    view.scatter("part", array, block=True)
    view.push({"describe": describe, "whole": array}, block=True)
    assert view["describe(part)"] == found and view["describe(whole)"] == found
    pulled = describe(rc.direct_view(0, plane=plane)["whole"])
    assert pulled == found[0]


def test_received_arrays_are_writable_whatever_their_size(rc: Client) -> None:
    for n in (1, 1000, 10_000, 100_000):
        assert [f[1] for f in rc[:].apply_sync(describe, np.zeros(n))] == [True] * 3
        readonly = np.zeros(n)
        readonly.flags.writeable = False
        assert [f[1] for f in rc[:].apply_sync(describe, readonly)] == [True] * 3
        rc[0].execute(f"import numpy; out = numpy.zeros({n})", block=True)
        assert rc[0]["out"].flags.writeable
        rc[:].scatter("part", np.zeros(3 * n), block=True)
        assert all(part.flags.writeable for part in rc[:]["part"])


def test_tracker_tells_when_the_array_may_be_changed(rc: Client) -> None:
    array = np.ones(2_000_000)
    for _ in range(5):
        array[:] = 1
        ar = rc[:].apply_async(np.sum, array)
        with rc[:].temp_flags(track=True):
            pass
        tracked = rc.direct_view(track=True).apply_async(np.sum, array)
        tracked.wait_for_send(30)
        ar.get(30)
        array[:] = 0
        assert tracked.get(30) == [2_000_000.0] * 3


def test_controller_stays_flat_while_gigabytes_pass(rc: Client, cluster: BareCluster) -> None:
    view = rc[:]
    array = np.zeros(4 * 2**20)  # 32 MB
    view.push({"x": array}, block=True)
    before = read_resident_bytes(cluster.controller.pid)
    for _ in range(12):
        view.push({"x": array}, block=True)  # 3 × 32 MB out of the controller each time
        view.scatter("x", array, block=True)
        view.gather("x", block=True)
    grown = read_resident_bytes(cluster.controller.pid) - before
    assert grown < 2 * array.nbytes, f"the controller grew by {grown / 2**20:.0f} MB"


def test_client_and_engines_let_go_of_arrays(rc: Client) -> None:
    array = np.zeros(4 * 2**20)
    view = rc[:]
    view.apply_sync(np.sum, array)
    us = Path("/proc/self").resolve().name
    pids = [int(us), *(info.pid for info in rc.engines.values())]
    before = [read_resident_bytes(pid) for pid in pids]
    for _ in range(10):
        view.apply_sync(np.sum, array)
        rc[0].apply_sync(lambda x: x, array)
    for pid, was in zip(pids, before, strict=True):
        wait_until(
            lambda pid=pid, was=was: read_resident_bytes(pid) - was < 3 * array.nbytes,  # type: ignore[misc]
            10,
            f"process {pid} to let go of arrays",
        )
