"""The load generator itself; with thousands of engines it is run by hand."""

from __future__ import annotations

import subprocess
import sys


def test_swarm_of_engines_registers_works_dies_and_returns() -> None:
    argv = [sys.executable, "-m", "hpcviews.testing.swarm", "--engines", "7", "300", "--tasks", "3000"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "all registered" in done.stdout and "300" in done.stdout.splitlines()[0]
    assert not done.stderr, done.stderr


def test_swarm_refuses_nonsense() -> None:
    argv = [sys.executable, "-m", "hpcviews.testing.swarm", "--engines", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "at least one engine" in done.stderr
