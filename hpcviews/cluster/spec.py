"""What launcher plug-ins are: the two small protocols, and the records that pass through them.

A *scheduler* gets an allocation, a *starter* starts engine processes in it. Plug-ins are pure: text and records
in, text and records out. They never spawn, sleep, read the environment or touch files; the core does, once for
all of them, and hands them what they need to see.
"""

from __future__ import annotations

import heapq
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
    """Cores this process may run on."""
    is_root: bool
    python: str
    """The interpreter that engines will run under."""
    environment: Mapping[str, str]
    which: Which
    run: RunProbe


@dataclass(frozen=True)
class Node:
    """One node of an allocation."""

    name: str
    slots: int = 1
    """How many engines the batch system was asked to make room for: tasks, or cores where no tasks were named."""
    cores: int = 0
    """Cores of the allocation there; 0: not known."""


@dataclass(frozen=True)
class Allocation:
    """Nodes to start engines on. Empty `nodes`: this machine."""

    nodes: tuple[Node, ...] = ()
    job: str = ""
    """The batch system's id of it; "": there is none."""

    @property
    def is_local(self) -> bool:
        """Whether all engines will be on this machine."""
        return not self.nodes

    @property
    def slots(self) -> int:
        """How many engines there is room for."""
        return sum(node.slots for node in self.nodes)

    def spread(self, n: int) -> list[int]:
        """How many of `n` engines each node gets: as evenly as the nodes' slots allow, the first nodes first."""
        counts = [0] * len(self.nodes)
        heap = [(0.0, index) for index in range(len(self.nodes))]
        for _ in range(n if heap else 0):
            _, index = heapq.heappop(heap)
            counts[index] += 1
            heapq.heappush(heap, (counts[index] / max(1, self.nodes[index].slots), index))
        return counts


@dataclass(frozen=True)
class EngineOrder:
    """An engine set to start."""

    set_id: int
    n: int
    """How many engines."""
    python: str
    engine_args: tuple[str, ...]
    """Arguments that every engine gets, whichever module of ours starts it; nothing secret among them."""
    allocation: Allocation = Allocation()
    options: tuple[str, ...] = ()
    """Extra arguments of the user's for the starter's program, verbatim."""
    scratch: str = ""
    """A private, empty directory on this node for the starter program's own temporary files; the core removes
    it when the set has ended. "": there is none."""

    @property
    def engine_argv(self) -> tuple[str, ...]:
        """Command of one engine."""
        return (self.python, "-m", "hpcviews.engine", *self.engine_args)


@dataclass(frozen=True)
class TemporaryFiles:
    """Files that a program makes right after its start."""

    pattern: str
    """Absolute, e.g. "/tmp/name_*"."""
    made_by: str
    """Name of the process that makes one (as `ps -o comm` shows it). Files of one that lives are left alone."""


@dataclass(frozen=True)
class Command:
    """What the core runs to start an engine set."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set."""
    unset_prefixes: tuple[str, ...] = ()
    """Variables to leave out of the inherited environment, by prefix."""
    keep: tuple[str, ...] = ()
    """Variables to keep all the same, by name."""
    survives_engine_death: bool = True
    """Whether the other engines live on when one is killed."""
    is_world: bool = False
    """Whether the engines are ranks of one MPI_COMM_WORLD of size n."""
    shared_memory: tuple[str, ...] = ()
    """Patterns of the names under /dev/shm that its processes make and, when killed, leave behind. The core
    removes those that it saw mapped by the set's own processes."""
    temporary: tuple[TemporaryFiles, ...] = ()
    """Files that the program leaves in a place it does not let us choose, when killed."""


@dataclass(frozen=True)
class Cause:
    """Why engines did not start, found in a log."""

    text: str
    """What happened and what to do about it, in one sentence."""
    error: str = "NoShow"
    """The class in errors.py that says it best."""


@runtime_checkable
class Scheduler(Protocol):
    """Gets an allocation. Entry point group ``hpcviews.schedulers``."""

    name: str
    default_starter: str
    """The starter that ``--launcher NAME`` takes when only this scheduler is named."""

    def detect(self, host: Host) -> Detection:
        """Whether it can be used here."""

    def allocation(self, host: Host) -> Allocation | None:
        """The allocation this process is already inside of; None when one must be asked for."""


@runtime_checkable
class Starter(Protocol):
    """Starts engine processes in an allocation. Entry point group ``hpcviews.starters``."""

    name: str
    reaches_nodes: bool
    """Whether it can start engines on other nodes of an allocation; otherwise on this machine alone."""

    def detect(self, host: Host) -> Detection:
        """Whether it can be used here."""

    def command(self, order: EngineOrder, detection: Detection, host: Host) -> Command:
        """The command that starts the engine set.

        Engines that will share a world are to be given the argument ``--world`` besides `order.engine_args`;
        they find their rank in what an MPI starter puts into the environment.

        Raises:
            UsageError: The order cannot be carried out by this starter; the message says what can.
        """

    def find_cause(self, log: str) -> Cause | None:
        """Why the engines did not start, if the program's output says so in a way that it knows."""


@dataclass(frozen=True)
class Launcher:
    """What ``--launcher NAME`` names: a scheduler and a starter."""

    name: str
    scheduler: Scheduler
    starter: Starter
