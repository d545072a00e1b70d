"""concurrent.futures.ProcessPoolExecutor: no controller, no names on the workers, one machine."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from tests.bench.system import Array


def take(array: Array) -> float:
    """Receive an array."""
    return float(array[-1])


def give(part: int, parts: int, size: int) -> Array:
    """Send a part of an array back."""
    return np.full(size // parts, float(part))


class ProcessPool:
    """The pool that the standard library brings."""

    controller_word = ""

    def version(self) -> str:
        return platform.python_version()

    def start(self, n: int) -> None:
        self.n = n
        self.pool = ProcessPoolExecutor(n)
        for future in [self.pool.submit(os.getpid) for _ in range(n)]:
            future.result()

    def stop(self) -> None:
        self.pool.shutdown()

    def worker_pids(self) -> list[int]:
        return [child.pid for child in multiprocessing.active_children() if child.pid]

    def call_any(self, function: Callable[[Any], Any], value: Any) -> Any:
        return self.pool.submit(function, value).result()

    call_one = call_any  # a pool has no workers one could name

    def map_tasks(self, function: Callable[[Any], Any], values: range) -> list[Any]:
        return list(self.pool.map(function, values, chunksize=1))

    # Workers keep no names, so "push" and "scatter" are the arguments of one call per worker, and "gather" is
    # the return of parts made there. The same bytes pass between the same processes.
    def push(self, array: Array) -> None:
        self.pushed = list(self.pool.map(take, [array] * self.n))

    def last_pushed(self) -> list[float]:
        return self.pushed

    def scatter(self, array: Array) -> None:
        self.size = array.size
        list(self.pool.map(take, np.array_split(array, self.n)))

    def gather(self) -> Array:
        parts = self.pool.map(give, range(self.n), [self.n] * self.n, [self.size] * self.n)
        return np.concatenate(list(parts))
