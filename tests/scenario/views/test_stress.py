"""Several clients, and many threads on each, at once: all results right, nothing left over, no wake-up for nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_cluster import BareCluster
from gates import wait_for_file

from hpcviews import AsyncResult, Client, RemoteError, TaskAborted
from hpcviews.testing.wait import wait_until

CLIENTS = 3
THREADS = 5
STEPS = 80


def shift(x: Any, by: int) -> Any:
    return x + by


def invert(x: int) -> float:
    return 1 / x


class Walker:
    """One thread's random walk through the interface. It checks every result itself."""

    def __init__(self, rc: Client, seed: int):
        self.random = random.Random(seed)
        self.rc = rc
        self.key = f"k{seed}"
        self.sent: list[AsyncResult] = []
        self.steps = [
            self.apply, self.apply_later, self.map_balanced, self.map_unordered, self.map_direct, self.scatter_gather,
            self.push_pull, self.lazy, self.executor, self.failure, self.split_join, self.withdraw, self.await_it,
        ]  # fmt: skip

    def walk(self) -> None:
        for _ in range(STEPS):
            self.random.choice(self.steps)()
        for ar, wanted in zip(self.sent, range(len(self.sent)), strict=True):
            assert ar.get(60) == [wanted + 1] * len(ar.targets)

    def pick_view(self) -> Any:
        return self.rc[self.random.sample(self.rc.ids, self.random.randint(1, len(self.rc)))]

    def apply(self) -> None:
        x = self.random.random()
        view = self.pick_view()
        assert view.apply_sync(shift, x, 1) == [x + 1] * len(view)
        assert self.rc.load_balanced_view().apply_sync(shift, x, by=2) == x + 2

    def apply_later(self) -> None:
        self.sent.append(self.pick_view().apply_async(shift, len(self.sent), 1))

    def map_balanced(self) -> None:
        n, chunk = self.random.randint(0, 50), self.random.randint(1, 7)
        got = self.rc.load_balanced_view().map_sync(shift, range(n), [5] * n, chunksize=chunk)
        assert got == list(range(5, n + 5))

    def map_unordered(self) -> None:
        ar = self.rc.load_balanced_view().map_async(shift, range(30), [5] * 30, chunksize=4, ordered=False)
        assert sorted(ar) == list(range(5, 35)) == ar.get()

    def map_direct(self) -> None:
        n = self.random.randint(0, 20)
        assert list(self.pick_view().map_async(shift, range(n), [1] * n)) == list(range(1, n + 1))

    def scatter_gather(self) -> None:
        array = np.arange(self.random.randint(0, 20_000))
        view, dist = self.pick_view(), self.random.choice("br")
        view.scatter(self.key, array, dist=dist)  # in order with the gather
        np.testing.assert_array_equal(view.gather(self.key, dist=dist, block=True), array)

    def push_pull(self) -> None:
        value = self.random.random()
        view = self.pick_view()
        view[self.key] = value
        assert view[self.key] == [value] * len(view)

    def lazy(self) -> None:
        n, ordered = self.random.randint(1, 20), self.random.random() < 0.5
        results = self.rc.load_balanced_view().imap(shift, iter(range(1000)), [7] * 1000, ordered=ordered)
        got = [next(results) for _ in range(n)]
        if ordered:
            assert got == list(range(7, n + 7))
        results.cancel()

    def executor(self) -> None:
        with self.rc.executor() as executor:
            futures = [executor.submit(shift, i, 1) for i in range(10)]
            assert list(executor.map(shift, range(5), range(5))) == [0, 2, 4, 6, 8]
            done, _ = concurrent.futures.wait(futures, 60)
            assert sorted(f.result() for f in done) == list(range(1, 11))

    def failure(self) -> None:
        with pytest.raises(RemoteError) as caught:
            self.pick_view().apply_sync(invert, 0)
        assert caught.value
        values = self.rc.load_balanced_view().map_sync(invert, [1, 0, 2], return_exceptions=True)
        assert values[0] == 1 and isinstance(values[1], RemoteError) and values[2] == 0.5

    def split_join(self) -> None:
        calls = [self.pick_view().apply_async(shift, i, 1) for i in range(4)]
        joined = AsyncResult.join(*[part for call in calls for part in call.split()])
        assert joined.get(60) == [i + 1 for i, call in enumerate(calls) for _ in call.targets]

    def withdraw(self) -> None:
        ar = self.rc.load_balanced_view().map_async(shift, range(50), [1] * 50)
        if self.random.random() < 0.5:
            ar.cancel()
        elif not ar.done():
            try:
                ar.abort()
            except RuntimeError:
                pass  # it was faster
            values = ar.get(60, return_exceptions=True)
            assert all(isinstance(v, TaskAborted) or v == i + 1 for i, v in enumerate(values))

    def await_it(self) -> None:
        async def use() -> list[Any]:
            view = self.pick_view()
            both = await asyncio.gather(view.apply_async(shift, 1, 1), view.apply_async(shift, 2, 1))
            assert [value async for value in view.apply_async(shift, 3, 1)] == [4] * len(view)
            return [set(values) for values in both]

        assert asyncio.run(use()) == [{2}, {3}]


@pytest.mark.parametrize("seed", [1, 2])
def test_many_threads_on_several_clients(cluster: BareCluster, seed: int) -> None:
    clients = [cluster.connect(3) for _ in range(CLIENTS)]
    walkers = [Walker(rc, 1000 * seed + 10 * i + j) for i, rc in enumerate(clients) for j in range(THREADS)]
    with ThreadPoolExecutor(len(walkers)) as pool:
        for walk in [pool.submit(walker.walk) for walker in walkers]:
            walk.result(300)
    for rc in clients:
        wait_until(lambda: not rc.outstanding, 30, "what was withdrawn to end")
        assert rc.wait(timeout=0)
        assert len(set(rc.history)) == len(rc.history)
        rc.close()


def count_wake_ups(tid: int) -> int:
    """How often a thread of this process gave up the processor, or lost it."""
    lines = Path(f"/proc/self/task/{tid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def read_state(tid: int) -> str:
    return Path(f"/proc/self/task/{tid}/stat").read_text().rpartition(")")[2].split()[0]


WAITS: dict[str, Callable[[Client, str], Any]] = {
    "get": lambda rc, gate: rc[0].apply_sync(wait_for_file, gate),
    "wait of a view": lambda rc, gate: (view := rc[0], ar := view.apply_async(wait_for_file, gate), view.wait(), ar),
    "futures.wait": lambda rc, gate: concurrent.futures.wait([rc[0].apply_async(wait_for_file, gate)]),
    "iteration": lambda rc, gate: list(rc[[0]].map_async(wait_for_file, [gate])),
    "imap": lambda rc, gate: list(rc.load_balanced_view([0]).imap(wait_for_file, [gate])),
    "executor": lambda rc, gate: rc.executor([0]).submit(wait_for_file, gate).result(),
    "await": lambda rc, gate: asyncio.run(await_it(rc[0].apply_async(wait_for_file, gate))),
    "wait_for_output": lambda rc, gate: rc[0].apply_async(wait_for_file, gate).wait_for_output(),
}


async def await_it(ar: AsyncResult) -> Any:
    return await ar


@pytest.mark.parametrize("name", sorted(WAITS))
def test_blocked_wait_is_not_woken_by_what_is_not_its_own(rc: Client, tmp_path: Path, name: str) -> None:
    gate = tmp_path / "gate"
    tid: list[int] = []

    def wait() -> None:
        tid.append(threading.get_native_id())
        WAITS[name](rc, str(gate))

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        wait_until(lambda: tid and rc.outstanding and read_state(tid[0]) == "S", 10, "the thread to wait")
        # It may have been on its way still: it waits for good when it does not move while others' calls come and go.
        before = -1
        for _ in range(20):
            seen, before = before, count_wake_ups(tid[0])
            if seen == before:
                break
            rc[1].apply_sync(shift, 1, 1)
        for i in range(300):
            rc[1].apply_sync(shift, i, 1)
        assert count_wake_ups(tid[0]) == before
    finally:
        gate.touch()
        thread.join(10)
    assert not thread.is_alive()
