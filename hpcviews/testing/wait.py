"""Waiting in tests for something that other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PERIOD_S = 0.01


def wait_until(predicate: Callable[[], T], timeout_s: float, what: str) -> T:
    """Wait until `predicate()` is true, and give back what it returned.

    Raises:
        AssertionError: It did not become true in time; the message tells what it returned last.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        state = predicate()
        if state:
            return state
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}; last state: {state!r}")
        time.sleep(PERIOD_S)
