"""hpcviews and ipyparallel: both have the same views, so one adapter serves them; only starting differs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from tests.bench.system import Array


class _Views:
    """The part that both have in common. `client` is the connected client."""

    client: Any

    def _connected(self, client: Any, n: int) -> None:
        self.client = client
        client.wait_for_engines(n)
        self.all = client[:]
        self.one = client[client.ids[0]]
        self.balanced = client.load_balanced_view()
        self.pids: list[int] = self.all.apply_sync(os.getpid)
        if len(set(self.pids)) != n:
            raise RuntimeError(f"asked for {n} engines, {len(set(self.pids))} answer")

    def worker_pids(self) -> list[int]:
        return self.pids

    def call_one(self, function: Callable[[Any], Any], value: Any) -> Any:
        return self.one.apply_sync(function, value)

    def call_any(self, function: Callable[[Any], Any], value: Any) -> Any:
        return self.balanced.apply_sync(function, value)

    def map_tasks(self, function: Callable[[Any], Any], values: range) -> list[Any]:
        return list(self.balanced.map_sync(function, values, chunksize=1))

    def push(self, array: Array) -> None:
        self.all.push({"pushed": array}, block=True)

    def last_pushed(self) -> list[float]:
        return [float(last) for last in self.all.pull("pushed[-1]", block=True)]

    def scatter(self, array: Array) -> None:
        self.all.scatter("part", array, block=True)

    def gather(self) -> Array:
        joined: Array = self.all.gather("part", block=True)
        return joined


class Hpcviews(_Views):
    """Ours."""

    controller_word = "hpcviews.cluster"

    def __init__(self, launcher: str = "local"):
        # The import is not part of the start-up measured: ipyparallel's is not either.
        from hpcviews import Client, Cluster, __version__

        self._client, self._cluster, self._version = Client, Cluster, __version__
        self.launcher = launcher

    def version(self) -> str:
        return str(self._version)

    def start(self, n: int) -> None:
        self.cluster = self._cluster(n=n, launcher=self.launcher).start()
        self._connected(self.cluster.client(), n)

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop()


class Ipyparallel(_Views):
    """The living reference of the view interface."""

    controller_word = "ipyparallel.controller"

    def __init__(self) -> None:
        import ipyparallel  # type: ignore[import-not-found]  # only in the peers' environment

        self._ipyparallel = ipyparallel

    def version(self) -> str:
        return str(self._ipyparallel.__version__)

    def start(self, n: int) -> None:
        # How long engines may take to register: the default 60 s are little for 64 of them on 2 cores.
        self.cluster = self._ipyparallel.Cluster(n=n, log_level=logging.ERROR, engine_timeout=300)
        self._connected(self.cluster.start_and_connect_sync(), n)

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop_cluster_sync()
