"""Exit codes of the command line: one table, which `--help` shows and `main` uses."""

from __future__ import annotations

from hpcviews import errors

OK = 0
FAILURE = 1
USAGE = 2
NO_CLUSTER = 3
CANNOT_START = 4
UNREACHABLE = 5
REFUSED = 6
SIGNAL_BASE = 128

MEANINGS = {
    OK: "done",
    FAILURE: "failed; the message says why",
    USAGE: "wrong arguments, an unknown launcher, a name that is not valid or in use",
    NO_CLUSTER: "no such cluster, or it is dead",
    CANNOT_START: "controller or engines could not be started",
    UNREACHABLE: "the controller does not answer, or was lost",
    REFUSED: "the controller refuses us: another user's or an old connection file, another version",
}

# The first that fits wins, so subclasses come before their bases.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.UsageError, USAGE),
    (errors.LaunchError, CANNOT_START),
    (errors.NoCluster, NO_CLUSTER),
    (errors.AccessRefused, REFUSED),
    (errors.VersionMismatch, REFUSED),
    (errors.ConnectError, UNREACHABLE),
    (TimeoutError, UNREACHABLE),
    (KeyboardInterrupt, SIGNAL_BASE + 2),
)


def get_exit_code(error: BaseException) -> int:
    """What a command ends with that raised `error`."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILURE)


def render_table() -> str:
    """The table as lines of text."""
    lines = [f"  {code}    {text}" for code, text in MEANINGS.items()]
    lines.append("  128+N  ended by signal N (130: Ctrl-C)")
    return "\n".join(lines)
