"""What a system under test must be able to do; the measuring code knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class System(Protocol):
    """One of the systems, started with n workers (engines)."""

    controller_word: str
    """Part of its controller's command line; "" if it has none."""

    def version(self) -> str:
        """Its release."""

    def start(self, n: int) -> None:
        """Start n workers; returns when each has answered a call."""

    def stop(self) -> None:
        """End everything."""

    def worker_pids(self) -> list[int]:
        """The processes that run user code."""

    def call_one(self, function: Callable[[Any], Any], value: Any) -> Any:
        """Round trip to a worker that the caller chose."""

    def call_any(self, function: Callable[[Any], Any], value: Any) -> Any:
        """Round trip to a worker that the system chose."""

    def map_tasks(self, function: Callable[[Any], Any], values: range) -> list[Any]:
        """One task per value, load-balanced, none batched by the caller."""

    def push(self, array: Array) -> None:
        """The whole array to every worker."""

    def last_pushed(self) -> list[float]:
        """The last element of what each worker got."""

    def scatter(self, array: Array) -> None:
        """A part of the array to each worker."""

    def gather(self) -> Array:
        """The scattered parts, joined."""
