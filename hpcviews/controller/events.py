"""What can happen to the core besides messages of peers, and what it orders besides messages to peers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hpcviews.ids import EngineId, Session, SetId

if TYPE_CHECKING:
    from hpcviews.controller.finished import Record
    from hpcviews.controller.record_query import RecordFilter


@dataclass(frozen=True, slots=True)
class SetStarted:
    """The process that starts an engine set runs."""

    set_id: SetId
    launcher: str
    n: int
    is_world: bool
    log: str
    ids: tuple[EngineId, ...] = ()
    """Ids for its engines by their index: those of the engines that they stand in for; () for new ones."""


@dataclass(frozen=True, slots=True)
class SetExited:
    """That process is gone, and everything that it started."""

    set_id: SetId
    why: str
    """How it ended, in words, with the tail of its log when that explains something."""
    error: str
    """Class in errors.py to raise for it when it was not asked to end: NoShow, MpiMismatch, …"""


@dataclass(frozen=True, slots=True)
class SetNotStarted:
    """Engines that were ordered by StartEngines could not be started."""

    ids: tuple[EngineId, ...]
    why: str
    error: str
    """Class in errors.py to raise for it."""


@dataclass(frozen=True, slots=True)
class EnginesEnded:
    """The answer to EndEngines, in one piece or several: the processes of these engines are gone."""

    ids: tuple[EngineId, ...]
    why: str = ""
    """Why they may be not, after all that could be done; else ""."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The cluster is to end: its owner is gone, or a signal came."""

    why: str


@dataclass(frozen=True, slots=True)
class ArchiveWrote:
    """The archive has done with records that it was handed by KeepRecords."""

    nbytes: int
    """What they counted."""
    dropped: int
    """How many of them it could not keep."""


@dataclass(frozen=True, slots=True)
class ArchiveFailed:
    """The archive cannot write any more. It still answers, and reads what it has."""

    why: str


@dataclass(frozen=True, slots=True)
class ArchiveAnswer:
    """What the archive found for a question; [] also if it could not look."""

    question: int
    found: list[Any]
    """FindRecords: `Record`s. QueryRecords: rows (record_rows.py), more than the limit if there are. ForgetRecords:
    nothing."""


Event = (
    SetStarted | SetNotStarted | SetExited | EnginesEnded | StopRequested | ArchiveWrote | ArchiveFailed | ArchiveAnswer
)


@dataclass(frozen=True, slots=True)
class EndSets:
    """See to it that the processes of these engine sets end.

    Their engines have been told so over the wire; processes that are still there after the grace period are
    killed. Each set is answered with SetExited.
    """

    set_ids: tuple[SetId, ...]
    why: str
    at_once: bool = False
    """Without the grace period."""


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """Where the process of an engine is to be found."""

    id: EngineId
    set_id: SetId
    pid: int
    """On the controller's machine; 0 if it is on another."""


@dataclass(frozen=True, slots=True)
class EndEngines:
    """As EndSets, for some engines of sets that go on. Answered with EnginesEnded."""

    engines: tuple[EngineProcess, ...]
    why: str
    at_once: bool


@dataclass(frozen=True, slots=True)
class SignalEngines:
    """Send a signal to these engines' processes, as far as they are on this machine: they may not read messages."""

    engines: tuple[EngineProcess, ...]
    signum: int


@dataclass(frozen=True, slots=True)
class StartEngines:
    """Start engines as those of a set were started. Answered with SetStarted, or SetNotStarted."""

    like: SetId
    ids: tuple[EngineId, ...]


@dataclass(frozen=True, slots=True)
class KeepRecords:
    """Archive these. Answered with ArchiveWrote, once, or ArchiveFailed before it."""

    records: tuple[Record, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class FindRecords:
    """Read these from the archive. Answered with ArchiveAnswer."""

    question: int
    keys: tuple[tuple[Session, int], ...]


@dataclass(frozen=True, slots=True)
class QueryRecords:
    """Find the rows that match in the archive. Answered with ArchiveAnswer."""

    question: int
    wanted: RecordFilter
    limit: int
    """More than so many are of no use."""


@dataclass(frozen=True, slots=True)
class ForgetRecords:
    """Remove these from the archive, or all (None), and those that ran on these engines.

    Answered with ArchiveAnswer.
    """

    question: int
    keys: tuple[tuple[Session, int], ...] | None
    engines: frozenset[EngineId]


ProcessOrder = EndSets | EndEngines | SignalEngines | StartEngines
ArchiveOrder = KeepRecords | FindRecords | QueryRecords | ForgetRecords
Order = ProcessOrder | ArchiveOrder


class Post(Protocol):
    """Hands an event to the core; only from the controller's thread."""

    def __call__(self, event: Event) -> None: ...


class Service(Protocol):
    """Something that lives in the controller's thread beside the core: the processes of engine sets, the archive."""

    def attach(self, post: Post) -> None:
        """Called once, before the loop runs."""

    def fds(self) -> frozenset[int]:
        """File descriptors to watch for reading; asked for anew before every wait."""

    def on_readable(self, fd: int, now: float) -> None:
        """One of them is readable. `now` is time.monotonic()."""

    def on_tick(self, now: float) -> float | None:
        """Do what is due; say in how many seconds to be called again at the latest, None for not at all."""

    def on_order(self, order: Order, now: float) -> None:
        """The core wants something, of this service or of another one. It may post events at once."""
