"""An IPython inside the test: cells are run, and what they show is given back."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Shown:
    """What a cell showed."""

    out: str
    err: str
    both: str
    """Out and err in the order they were written."""
    displays: list[dict[str, Any]]
    error: BaseException | None
    value: Any


class Tee(io.StringIO):
    def __init__(self, both: list[str]):
        super().__init__()
        self._both = both

    def write(self, text: str) -> int:
        self._both.append(text)
        return super().write(text)


@dataclass
class Shell:
    """A shell of its own namespace."""

    ip: Any
    displays: list[dict[str, Any]] = field(default_factory=list)

    def run(self, cell: str) -> Shown:
        self.displays.clear()
        before = sys.stdout, sys.stderr
        both: list[str] = []
        sys.stdout, sys.stderr = out, err = Tee(both), Tee(both)
        try:
            result = self.ip.run_cell(cell, store_history=True)
        finally:
            sys.stdout, sys.stderr = before
        error = result.error_before_exec or result.error_in_exec
        return Shown(out.getvalue(), err.getvalue(), "".join(both), list(self.displays), error, result.result)


@contextmanager
def open_shell() -> Iterator[Shell]:
    """Make it the process's IPython, for the length of a with-block."""
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    from hpcviews.notebook import activation

    class Publisher(CapturingDisplayPublisher):  # type: ignore[misc]
        def publish(self, data: Any, metadata: Any = None, **options: Any) -> None:
            shell.displays.append(dict(data))

    InteractiveShell.clear_instance()
    ip = InteractiveShell.instance()
    shell = Shell(ip)
    ip.display_pub = Publisher()
    ip.colors = "nocolor"
    ip.history_manager.enabled = False
    try:
        yield shell
    finally:
        for magics in activation._active.values():
            magics.disable_autopx()
        activation._active.clear()
        ip.history_manager.end_session()
        InteractiveShell.clear_instance()
