"""Calls that run until a test lets them end."""

from __future__ import annotations

import time
from pathlib import Path


def wait_for_file(path: str) -> str:
    """Run until the file is there."""
    while not Path(path).exists():
        time.sleep(0.005)
    return "done"
