"""Every exception that hpcviews raises.

HpcviewsError
├── UsageError (ValueError)          the caller asked for something that cannot be
│   ├── PlaneUnavailable             data cannot go the way that `plane` says
│   ├── OutstandingRequests (RuntimeError)  what has not ended cannot be purged
│   ├── UnknownLauncher              no such launcher; the message lists those that exist
│   └── NameInUse                    a cluster of this name runs already
├── LaunchError                      processes could not be started
│   ├── LauncherUnavailable          the launcher exists, but not on this machine
│   ├── MpiMismatch                  the engines do not share one world of the size asked for
│   ├── NotEnoughFiles               RLIMIT_NOFILE is too low for n engines
│   ├── SubmitRefused                the batch system does not take the job
│   ├── PollFailed                   the batch system does not answer
│   └── NoShow                       the engines' process ended before its engines registered
├── ConnectError (ConnectionError)   no connection to a controller
│   ├── NoCluster                    none found to connect to
│   ├── ControllerUnreachable        none of its addresses answered; the message lists them
│   ├── ControllerLost               it was there, and went away
│   ├── AccessRefused                the connection file is not ours to use, or not usable
│   └── VersionMismatch              the two sides do not speak the same protocol
├── ProtocolError                    a peer sent what it must not send
├── SerializationError (TypeError)   an object cannot be pickled or unpickled
├── NoSuchEngine (IndexError, KeyError)
├── NoSuchRequest (KeyError)         no request of that msg_id is known
│   └── ResultNotKept                it is known, but its value was too large to keep
├── NoEnginesRegistered
├── EngineError                      the engine that ran the request died
├── TaskAborted                      withdrawn before it started
├── TaskTimeout
├── UnmetDependency
│   └── ImpossibleDependency
│       ├── DependencyTimeout
│       └── InvalidDependency
└── RemoteError                      user code raised on an engine; __cause__ is the original
    ├── CompositeError               several of them
    └── AlreadyDisplayedError        one or several of them, which have been shown to the user

All of them pickle, with their attributes and their ``__cause__``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn, TypedDict


class EngineInfoDict(TypedDict, total=False):
    """Where a remote error happened (keys may be missing when the engine is unknown)."""

    engine_id: int
    rank: int | None
    host: str
    pid: int
    method: str


class HpcviewsError(Exception):
    """Base of all errors of this library."""

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later without a change by the caller."""

    def __reduce__(self) -> Any:
        # BaseException.__reduce__ forgets __cause__, which is the point of a RemoteError.
        state = dict(self.__dict__)
        return _rebuild_error, (type(self), self.args, state, self.__cause__)


def _rebuild_error(
    cls: type[HpcviewsError], args: tuple[Any, ...], state: dict[str, Any], cause: BaseException | None
) -> HpcviewsError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    error.__cause__ = cause
    return error


class UsageError(HpcviewsError, ValueError):
    """The caller asked for something that cannot be."""


class PlaneUnavailable(UsageError):
    """Data cannot go the way that a view's flag `plane` says; the message says why, and what to do."""


class OutstandingRequests(UsageError, RuntimeError):
    """Requests were to be purged that have not ended; nothing was."""


class UnknownLauncher(UsageError):
    """No such launcher; the message lists those that exist."""


class NameInUse(UsageError):
    """A cluster of this name runs already."""


class LaunchError(HpcviewsError):
    """Processes of a cluster could not be started."""


class LauncherUnavailable(LaunchError):
    """The launcher exists, but cannot be used on this machine; the message says why."""


class MpiMismatch(LaunchError):
    """The engines do not share one MPI world of the size that was asked for."""


class NotEnoughFiles(LaunchError):
    """RLIMIT_NOFILE is too low for this many engines."""


class SubmitRefused(LaunchError):
    """The batch system does not take the job; the message says why, in its words and in ours."""


class PollFailed(LaunchError):
    """The batch system does not answer; what its jobs do is not known for the moment."""

    retryable = True


class NoShow(LaunchError):
    """The process that should have started the engines ended before they registered."""


class ConnectError(HpcviewsError, ConnectionError):
    """No connection to a controller."""

    retryable = True


class NoCluster(ConnectError):
    """There is no running cluster to connect to, or more than one to choose from."""


class ControllerUnreachable(ConnectError):
    """None of the controller's addresses answered; the message lists each with its error."""


class ControllerLost(ConnectError):
    """The connection to the controller broke; what was outstanding ended with this error."""


class AccessRefused(ConnectError):
    """The connection file is not ours to use, is damaged, or its keys are not the cluster's."""

    retryable = False


class VersionMismatch(ConnectError):
    """Client, engine and controller must speak the same protocol; the message names both sides."""

    retryable = False


class ProtocolError(HpcviewsError):
    """A peer sent what it must not send."""


class SerializationError(HpcviewsError, TypeError):
    """An object cannot be pickled here, or cannot be unpickled there."""


class NoSuchEngine(HpcviewsError, IndexError, KeyError):
    """A target that is not an engine of this cluster; the message names those that exist."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0]) if self.args else ""


class NoSuchRequest(HpcviewsError, KeyError):
    """No request of that msg_id is known: it was never submitted, or its record is not kept any more."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0]) if self.args else ""


class ResultNotKept(NoSuchRequest):
    """The request is known and ended well, but its value is not kept any more; the message says why."""


class NoEnginesRegistered(HpcviewsError):
    """The operation needs engines, and there are none."""


class EngineError(HpcviewsError):
    """The engine that ran the request died, or left, before it answered."""

    retryable = True


class TaskAborted(HpcviewsError):
    """The request was withdrawn before it started."""


class TaskTimeout(HpcviewsError):
    """The task was not placed within its timeout."""


class UnmetDependency(HpcviewsError):
    """This engine does not satisfy a dependency of the task."""


class ImpossibleDependency(UnmetDependency):
    """No engine can ever satisfy a dependency of the task."""


class DependencyTimeout(ImpossibleDependency):
    """A dependency was not satisfied in time."""


class InvalidDependency(ImpossibleDependency):
    """A dependency names a request that does not exist."""


class RemoteError(HpcviewsError):
    """User code raised on an engine.

    ``__cause__`` is the original exception when it could be pickled there and unpickled here, else None.

    Attributes:
        ename: Name of the original exception's class.
        evalue: Its text.
        traceback: The engine's formatted traceback.
        engine_info: Where it happened: engine_id, rank, host, pid, method.
    """

    def __init__(self, ename: str, evalue: str, traceback: str = "", engine_info: EngineInfoDict | None = None):
        super().__init__(ename, evalue)
        self.ename = ename
        self.evalue = evalue
        self.traceback = traceback
        self.engine_info: EngineInfoDict = engine_info or {}

    @property
    def engine_id(self) -> int | None:
        """The engine it was raised on, or None if that is not known."""
        return self.engine_info.get("engine_id")

    @property
    def rank(self) -> int | None:
        """The MPI rank of that engine, or None."""
        return self.engine_info.get("rank")

    @property
    def host(self) -> str | None:
        """The host that engine ran on."""
        return self.engine_info.get("host")

    def _where(self) -> str:
        if "engine_id" not in self.engine_info:
            return "[engine ?]"
        return f"[{self.engine_info['engine_id']}:{self.engine_info.get('method', 'apply')}]"

    def render_traceback(self) -> list[str]:
        """The engine's traceback as lines, without this side's."""
        return self.traceback.rstrip().split("\n") if self.traceback else [f"{self.ename}: {self.evalue}"]

    def _render_traceback_(self) -> list[str]:  # IPython's hook
        return [f"{self._where()} on {self.host or 'an unknown host'}", *self.render_traceback()]

    def print_traceback(self, excid: int | None = None) -> None:
        """Print the engine's traceback to stderr."""
        import sys

        sys.stderr.write("\n".join(self._render_traceback_()) + "\n")

    def __str__(self) -> str:
        text = f"{self._where()} {self.ename}: {self.evalue}"
        return f"{text}\n{self.traceback.rstrip()}" if self.traceback else text

    def __repr__(self) -> str:
        where = self.engine_info.get("engine_id", "?")
        return f"<{type(self).__name__}[{where}]:{self.ename}({self.evalue})>"


class CompositeError(RemoteError):
    """Several requests of one call failed.

    Attributes:
        elist: The errors, one per failed request, in the order of the targets.
    """

    tb_limit: ClassVar[int] = 4
    """How many of the errors str() and render_traceback() show; the rest is counted.

    str() has a line for each, and the traceback of the first; render_traceback() has the tracebacks of all of them.
    """

    def __init__(self, message: str, elist: Sequence[BaseException]):
        super().__init__("CompositeError", message)
        self.args = (message, tuple(elist))
        self.msg = message
        self.elist: list[BaseException] = list(elist)

    def __str__(self) -> str:
        lines = [self.msg]
        lines += [str(error).split("\n", 1)[0] for error in self.elist[: self.tb_limit]]
        if len(self.elist) > self.tb_limit:
            lines.append(f"... {len(self.elist) - self.tb_limit} more exceptions ...")
        # Python prints an uncaught error by its str(): without this, nothing says which line of the user failed.
        first = next((error for error in self.elist if isinstance(error, RemoteError) and error.traceback), None)
        if first is not None:
            lines += [f"{first._where()} was:", first.traceback.rstrip()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"CompositeError({len(self.elist)})"

    def render_traceback(self, excid: int | None = None) -> list[str]:
        """The traceback of error `excid`, or of the first `tb_limit` ones."""
        chosen = self.elist[: self.tb_limit] if excid is None else [self._get(excid)]
        lines: list[str] = [] if excid is not None else [self.msg]
        for error in chosen:
            lines += error._render_traceback_() if isinstance(error, RemoteError) else [str(error)]
            lines.append("")
        if excid is None and len(self.elist) > self.tb_limit:
            lines.append(f"... {len(self.elist) - self.tb_limit} more exceptions ...")
        return lines

    def _render_traceback_(self) -> list[str]:
        return self.render_traceback()

    def print_traceback(self, excid: int | None = None) -> None:
        """Print the tracebacks (or only that of error `excid`) to stderr."""
        import sys

        sys.stderr.write("\n".join(self.render_traceback(excid)) + "\n")

    def raise_exception(self, excid: int = 0) -> NoReturn:
        """Raise error `excid` alone."""
        raise self._get(excid)

    def _get(self, excid: int) -> BaseException:
        try:
            return self.elist[excid]
        except IndexError:
            raise IndexError(f"an exception with index {excid} does not exist") from None


class AlreadyDisplayedError(RemoteError):
    """Requests failed, and their errors have been shown: what `%%px` ends with when it shows output as it comes.

    Attributes:
        original: The error: a RemoteError or another single one, or a CompositeError.
    """

    def __init__(self, original: BaseException):
        count = len(original.elist) if isinstance(original, CompositeError) else 1
        super().__init__("AlreadyDisplayedError", "1 error" if count == 1 else f"{count} errors")
        self.args = (original,)
        self.original = original

    def __str__(self) -> str:
        return self.evalue

    def render_traceback(self) -> list[str]:
        """One line: the rest has been shown."""
        return [self.evalue]

    def _render_traceback_(self) -> list[str]:
        return self.render_traceback()


def find_error_class(name: str) -> type[HpcviewsError] | None:
    """The class of that name in this file, or None; used to raise errors that the controller names."""
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, HpcviewsError):
        return found
    return None
