"""How a process ended, in words."""

from __future__ import annotations

import signal


def render_exit(code: int) -> str:
    """An exit code, or minus the number of the signal that ended it (as subprocess and waitstatus give it)."""
    return f"exit code {code}" if code >= 0 else f"killed by {render_signal(-code)}"


def render_signal(signum: int) -> str:
    """``SIGKILL``, or a number for a signal without a name."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
