"""From the log of engines that did not start to the likely cause, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from hpcviews.cluster.spec import Cause

TAIL_BYTES_MAX = 1024
"""How much of a log an error message quotes: about a screen."""

FindCause = Callable[[str], Cause | None]

# The first that matches wins, so the particular comes before the general.
_CAUSES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"No module named '?hpcviews"),
        "the engines' Python does not have hpcviews: install it there, or start with the Python that has it",
        "NoShow",
    ),
    (
        re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'"),
        r"the engines' Python cannot import \1: install it there",
        "NoShow",
    ),
    (
        re.compile(r"[Tt]oo many open files|EMFILE"),
        "too many open files: raise `ulimit -n`, or ask for fewer engines",
        "NotEnoughFiles",
    ),
    (
        re.compile(r"No space left on device"),
        "a disk is full: make room where the logs are (see HPCVIEWS_HOME), in /tmp or in /dev/shm",
        "NoShow",
    ),
    (
        re.compile(r"Read-only file system"),
        "a file system is read-only: point HPCVIEWS_HOME to one that can be written",
        "NoShow",
    ),
    (
        re.compile(r"MemoryError|Cannot allocate memory|[Oo]ut of memory|oom-kill"),
        "memory ran out: ask for fewer engines",
        "NoShow",
    ),
    (
        re.compile(r"Resource temporarily unavailable|BlockingIOError: \[Errno 11\]"),
        "no more processes are allowed (`ulimit -u`): end some, or ask for fewer engines",
        "NoShow",
    ),
    (
        re.compile(r"error while loading shared libraries: ([^\s:]+)"),
        r"the library \1 is not found: load the module that has it, or set LD_LIBRARY_PATH",
        "NoShow",
    ),
    (
        re.compile(r"line \d+: (?:exec: )?(\S+): (?:cannot execute: )?(?:No such file or directory|Permission denied)"),
        r"\1 does not exist on that machine, or may not be run there: is it on a file system that all nodes see?",
        "NoShow",
    ),
    (
        re.compile(r"(?:^|\s)(\S+): (?:command )?not found", re.MULTILINE),
        r"\1 is not found on this machine",
        "NoShow",
    ),
    (
        re.compile(r"AccessRefused: (.+)|ControllerUnreachable: (.+)|VersionMismatch: (.+)"),
        "the engines could not connect to the controller",
        "NoShow",
    ),
)


def find_cause(log: str, starters_own: FindCause) -> Cause | None:
    """The likely cause that a log tells of: what the starter knows of its program first."""
    own = starters_own(log)
    if own is not None:
        return own
    for pattern, text, error in _CAUSES:
        match = pattern.search(log)
        if match:
            return Cause(match.expand(text), error)
    return None


def read_tail(path: Path, bytes_max: int = TAIL_BYTES_MAX) -> str:
    """The end of a log, from a line's beginning where possible; "" when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - bytes_max))
            text = file.read(bytes_max).decode(errors="replace")
    except OSError:
        return ""
    if size > bytes_max and "\n" in text[:-1]:
        text = text.split("\n", 1)[1]
    return text.strip()
