"""What launcher plug-ins are: the two small protocols, and the records that pass through them.

A *scheduler* gets an allocation, a *starter* starts engine processes in it. Plug-ins are pure: text and records
in, text and records out. They never spawn, sleep, read the environment or touch files; the core does, once for
all of them, and hands them what they need to see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

RunProbe = Callable[[Sequence[str]], "ProbeOutput"]
"""Runs a short command for `detect` (bounded time, closed stdin, C locale) and gives what it printed."""

Which = Callable[[str], Path | None]
"""Finds an executable: first beside this Python (MPI from wheels lives there), then on PATH."""


@dataclass(frozen=True)
class ProbeOutput:
    """What a probe command did. `code` is None when it could not be run or took too long."""

    code: int | None
    out: str
    err: str


@dataclass(frozen=True)
class Detection:
    """Whether a plug-in can be used on this machine."""

    usable: bool
    version: str = ""
    """Flavour and version in words, e.g. "Open MPI 5.0.11"."""
    path: str = ""
    """The program it would run."""
    why: str = ""
    """Why it is not usable, and what would make it so."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What `command` needs to know again, e.g. {"flavour": "openmpi", "major": "5"}."""


@dataclass(frozen=True)
class Host:
    """What the core tells a plug-in about the machine it is on."""

    cores: int
    is_root: bool
    environment: Mapping[str, str]
    which: Which
    run: RunProbe


@dataclass(frozen=True)
class Allocation:
    """Nodes to start engines on. Empty `nodes`: this machine."""

    nodes: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether all engines will be on this machine."""
        return not self.nodes


@dataclass(frozen=True)
class EngineOrder:
    """An engine set to start."""

    set_id: int
    n: int
    """How many engines."""
    engine_argv: tuple[str, ...]
    """Command of one engine; the starter appends nothing that is secret."""
    allocation: Allocation = Allocation()
    options: tuple[str, ...] = ()
    """Extra arguments of the user's for the starter's program, verbatim."""


@dataclass(frozen=True)
class Command:
    """What the core runs to start an engine set."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set."""
    unset_prefixes: tuple[str, ...] = ()
    """Variables to leave out of the inherited environment, by prefix."""
    survives_engine_death: bool = True
    """Whether the other engines live on when one is killed."""
    is_world: bool = False
    """Whether the engines are ranks of one MPI_COMM_WORLD of size n."""


@dataclass(frozen=True)
class RankInfo:
    """Which of a set's processes this one is, read from what the starter put into its environment."""

    index: int
    size: int
    local_index: int


@runtime_checkable
class Scheduler(Protocol):
    """Gets an allocation. Entry point group ``hpcviews.schedulers``."""

    name: str

    def detect(self, host: Host) -> Detection:
        """Whether it can be used here."""

    def allocation(self, host: Host) -> Allocation | None:
        """The allocation this process is already inside of; None when one must be asked for."""


@runtime_checkable
class Starter(Protocol):
    """Starts engine processes in an allocation. Entry point group ``hpcviews.starters``."""

    name: str

    def detect(self, host: Host) -> Detection:
        """Whether it can be used here."""

    def command(self, order: EngineOrder, detection: Detection, host: Host) -> Command:
        """The command that starts the engine set."""

    def find_rank(self, environment: Mapping[str, str]) -> RankInfo | None:
        """Inside an engine process: who am I; None when this starter did not start it."""


@dataclass(frozen=True)
class Launcher:
    """What ``--launcher NAME`` names: a scheduler and a starter."""

    name: str
    scheduler: Scheduler
    starter: Starter
