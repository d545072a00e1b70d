"""What is on disk of every cluster, so that any shell that sees the file system can list, reach and stop it.

::

    HOME/clusters/NAME/        0700, exists while the cluster does
        cluster.json           the Record
        client.json engine.json    access files, with secrets
        logs/                  controller.log, set-S.log, engine-S.I.log
    HOME/ended/NAME.TIME/      logs and record of the last clusters that ended, without secrets

A claimed name is a directory that was made: mkdir is atomic on every file system. Clearing away what a dead
cluster left and claiming its name are two steps, so they happen under a lock.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hpcviews import environment
from hpcviews.errors import AccessRefused, LaunchError, NameInUse, NoCluster
from hpcviews.names import check_name
from hpcviews.procfs import read_stat
from hpcviews.wire.access import Access, read_access, read_host_id, write_private

ENDED_KEPT = 10
"""Ended clusters whose logs are kept: enough to look into yesterday's crash, little enough to forget about."""

CLAIM_S = 60.0
"""A directory without a record is a claim in the making for this long, and debris afterwards."""

IPC_PREFIX = "hpcviews-"
"""Begins the name of every ipc directory: what is not named so is never removed."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One cluster: what was asked for, and which process is its controller."""

    name: str
    host: str
    host_id: str
    pid_namespace: int
    pid: int
    """The controller; until it has bound, the process that starts it; 0 while only a batch system knows."""
    pid_started: int
    """Start time of that process in clock ticks since boot, which tells it from a later one with its number."""
    python: str
    """Path of the interpreter."""
    version: str
    launcher: str
    n: int
    started: float
    """Unix time, seconds, when the name was claimed; tells this cluster from others that have had its name."""
    cwd: str
    interface: str | None = None
    options: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    generation: str = ""
    """"" until the controller has bound."""
    ipc_directory: str = ""
    shared_memory: tuple[str, ...] = ()
    """Patterns of what its engines' MPI leaves under /dev/shm when it is killed."""
    ended: float | None = None


class Liveness(enum.Enum):
    """What can be said of a cluster from here, without connecting to it."""

    QUEUED = "queued"
    """In the hands of a batch system: the job that will run its controller has not begun."""
    STARTING = "starting"
    RUNNING = "running"
    DEAD = "dead"
    """Its controller is gone, and could not clear up."""
    ELSEWHERE = "elsewhere"
    """Its controller is on another host, where this process cannot look."""


@dataclass(frozen=True)
class Place:
    """The directory of a cluster, running or ended."""

    directory: Path

    @property
    def record(self) -> Path:
        """The record's file."""
        return self.directory / "cluster.json"

    @property
    def logs(self) -> Path:
        """Directory of the logs."""
        return self.directory / "logs"

    @property
    def controller_log(self) -> Path:
        """The controller's log."""
        return self.logs / "controller.log"

    def access(self, role: str) -> Path:
        """The access file of "client" or "engine"."""
        return self.directory / f"{role}.json"


@dataclass(frozen=True)
class Found:
    """A cluster found on disk."""

    place: Place
    record: Record
    liveness: Liveness


# ---------------------------------------------------------------- processes


def find_process_start(pid: int) -> int | None:
    """When process `pid` of this machine started, in clock ticks since boot; None when it does not run."""
    stat = read_stat(pid)
    return stat.start if stat is not None and stat.is_alive else None


def read_pid_namespace() -> int:
    """Identifies the set of processes whose numbers this process understands."""
    return Path("/proc/self/ns/pid").stat().st_ino


def get_liveness(record: Record) -> Liveness:
    """Whether the cluster's controller runs."""
    if record.pid == 0:
        return Liveness.QUEUED
    boot = record.host_id.partition("/")[0]
    if boot != read_host_id().partition("/")[0]:
        # The same host name with another boot is this machine before it was switched off.
        return Liveness.DEAD if record.host == socket.gethostname() else Liveness.ELSEWHERE
    if record.pid_namespace != read_pid_namespace():
        return Liveness.ELSEWHERE
    if find_process_start(record.pid) != record.pid_started:
        return Liveness.DEAD
    return Liveness.RUNNING if record.generation else Liveness.STARTING


# ---------------------------------------------------------------- the home directory


def open_home() -> Path:
    """The directory of all records, made if it is missing.

    Raises:
        AccessRefused: It belongs to somebody else, or others may look into it.
        LaunchError: It cannot be made.
    """
    home = environment.get_home()
    try:
        if not home.exists():
            home.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                home.mkdir(mode=0o700)
        status = home.stat()
    except OSError as error:
        raise _explain(error, home) from None
    if status.st_uid != os.geteuid():
        raise AccessRefused(
            f"{home} belongs to another user (uid {status.st_uid}); "
            f"set {environment.HOME_VARIABLE} to a directory of your own"
        )
    if not stat.S_ISDIR(status.st_mode):
        raise AccessRefused(f"{home} is not a directory; set {environment.HOME_VARIABLE} to one of your own")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise AccessRefused(
            f"{home} keeps the keys of your clusters, and others may look into it "
            f"(mode {stat.S_IMODE(status.st_mode):o}): chmod 700 {home}"
        )
    return home


def _explain(error: OSError, path: Path) -> LaunchError:
    return LaunchError(
        f"cannot write {error.filename or path}: {error.strerror}; set {environment.HOME_VARIABLE} to a directory "
        "with room, which all nodes of the cluster see"
    )


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Nobody else claims or clears away in the meantime."""
    fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Some parallel file systems are mounted without locks. mkdir still lets only one claim a name; what
        # remains is that two shells clear away the same dead cluster, and both do it.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# ---------------------------------------------------------------- claiming and ending


def claim(record: Record) -> Place:
    """Take the record's name: make the cluster's directory, or fail.

    What a dead cluster of that name left is cleared away.

    Raises:
        UsageError: The name is not valid.
        NameInUse: A cluster of this name runs.
        LaunchError: Nothing can be written there.
    """
    check_name(record.name)
    home = open_home()
    place = Place(home / "clusters" / record.name)
    try:
        place.directory.parent.mkdir(mode=0o700, exist_ok=True)
        with _locked(home):
            if place.directory.exists():
                _clear_name(home, place)
            place.directory.mkdir(mode=0o700)
            try:
                place.logs.mkdir(mode=0o700)
                write_record(place, record)
            except BaseException:
                shutil.rmtree(place.directory, ignore_errors=True)
                raise
    except FileExistsError:  # without locks, another one was faster
        raise NameInUse(_describe_conflict(record.name, "is being started")) from None
    except OSError as error:
        raise _explain(error, place.directory) from None
    return place


def _clear_name(home: Path, place: Place) -> None:
    found = _look_at(place, has_lock=True)
    if found is not None:
        if found.liveness is not Liveness.DEAD:
            state = f"{found.liveness.value} (on {found.record.host}, pid {found.record.pid})"
            if found.liveness is Liveness.ELSEWHERE:
                state = f"running on {found.record.host}, as far as can be seen from here"
            raise NameInUse(_describe_conflict(place.directory.name, f"is {state}"))
        _retire(home, place, found.record)
    shutil.rmtree(place.directory, ignore_errors=True)


def _describe_conflict(name: str, state: str) -> str:
    return f"a cluster named {name!r} {state}; take another name, or end it with `hpcviews stop {name}`"


def write_record(place: Place, record: Record) -> None:
    """Write the record of a cluster, atomically.

    Raises:
        OSError: It cannot be written.
    """
    write_private(place.record, msgspec.json.format(msgspec.json.encode(record)))


def find_record(place: Place) -> Record | None:
    """The record in a directory, or None when there is none that can be read."""
    try:
        return msgspec.json.decode(place.record.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def retire(place: Place, record: Record) -> Place:
    """Clear away after a cluster that has ended: secrets and ipc socket go, logs and record are kept for a while.

    Does nothing when somebody else has done it.

    Returns:
        Where the logs are now.
    """
    home = place.directory.parent.parent
    with _locked(home):
        current = find_record(place)
        if current is None or current.started != record.started:
            return place
        return _retire(home, place, current)  # which knows the ipc directory; what the starter of it has may not


def _retire(home: Path, place: Place, record: Record) -> Place:
    for role in ("client", "engine"):
        place.access(role).unlink(missing_ok=True)
    remove_ipc_directory(record.ipc_directory)
    ended = time.time()
    with contextlib.suppress(OSError):  # a full disk must not keep the rest from happening
        write_record(place, msgspec.structs.replace(record, ended=ended, ipc_directory=""))
    attic = home / "ended"
    attic.mkdir(mode=0o700, exist_ok=True)
    moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(ended))
    number = 0
    while True:
        new = Place(attic / (f"{record.name}.{moment}" + (f".{number}" if number else "")))
        if not new.directory.exists():
            break
        number += 1
    place.directory.rename(new.directory)
    for old in _list_attic(home)[ENDED_KEPT:]:
        shutil.rmtree(old.directory, ignore_errors=True)
    return new


def remove_ipc_directory(path: str) -> None:
    """Remove the directory of an ipc socket, if it is one of ours on this machine."""
    directory = Path(path)
    if not path or not directory.name.startswith(IPC_PREFIX):
        return
    with contextlib.suppress(OSError):
        if directory.lstat().st_uid == os.geteuid() and not directory.is_symlink():
            shutil.rmtree(directory)


# ---------------------------------------------------------------- looking


def list_clusters() -> list[Found]:
    """All clusters that have not ended properly, by name."""
    home = open_home()
    found = [_look_at(Place(path)) for path in _list_directories(home / "clusters")]
    return [one for one in found if one is not None]


def find_cluster(name: str) -> Found | None:
    """The cluster of that name, or None.

    Raises:
        UsageError: No cluster can have this name.
    """
    check_name(name)
    return _look_at(Place(open_home() / "clusters" / name))


def find_ended(name: str | None) -> Place | None:
    """Logs of the cluster that ended last (of those of that name), or None."""
    if name is not None:
        check_name(name)
    for place in _list_attic(open_home()):
        record = find_record(place)
        if record is not None and name in (None, record.name):
            return place
    return None


def _look_at(place: Place, has_lock: bool = False) -> Found | None:
    record = find_record(place)
    if record is not None:
        return Found(place, record, get_liveness(record))
    if not has_lock:
        with contextlib.suppress(OSError):
            if time.time() - place.directory.stat().st_mtime > CLAIM_S:
                shutil.rmtree(place.directory, ignore_errors=True)
    return None


def _list_directories(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _list_attic(home: Path) -> list[Place]:
    """Ended clusters, the last first."""
    places = [Place(path) for path in _list_directories(home / "ended")]
    return sorted(places, key=_ended_at, reverse=True)


def _ended_at(place: Place) -> float:
    record = find_record(place)
    return (record.ended or record.started) if record is not None else 0.0


def choose_cluster(name: str | None = None) -> Found:
    """The cluster of that name; else the one the environment names; else the only one there is.

    Raises:
        NoCluster: There is none, it is dead, or there are several to choose from.
        UsageError: No cluster can have this name.
    """
    named_by = ""
    if name is None:
        name = environment.find_cluster_name()
        named_by = f" (named by {environment.CLUSTER_VARIABLE})" if name else ""
    if name is not None:
        found = find_cluster(name)
        if found is None:
            raise NoCluster(f"no cluster {name!r}{named_by} is running; {_describe_running(name)}")
        return found
    everything = list_clusters()
    if len(everything) == 1:
        return everything[0]
    alive = [found for found in everything if found.liveness is not Liveness.DEAD]
    if len(alive) == 1:
        return alive[0]
    if alive:
        names = ", ".join(f"{found.record.name} (on {found.record.host})" for found in alive)
        raise NoCluster(f"several clusters run, name one of them: {names}")
    raise NoCluster(f"no cluster is running; {_describe_running(None)}")


def _describe_running(wanted: str | None) -> str:
    names = [found.record.name for found in list_clusters() if found.liveness is not Liveness.DEAD]
    if names:
        return "running: " + ", ".join(names)
    option = f" --name {wanted}" if wanted else ""
    return f"start one with `hpcviews start --n 4{option}`"


def find_access(name: str | None = None, path: Path | None = None) -> Access:
    """What a client needs to connect to the cluster that is meant.

    Args:
        name: Name of the cluster.
        path: Connection file (or the directory it is in) instead.
    Raises:
        NoCluster: There is none, it is dead, or there are several to choose from.
        AccessRefused: Its connection file is not ours to use, or damaged.
        UsageError: No cluster can have this name.
    """
    if path is not None:
        # Not path.is_dir(), which raises for what another user may not see; read_access says what is wrong then.
        is_directory = os.path.isdir(path)  # noqa: PTH112
        return read_access(path / "client.json" if is_directory else path, "client")
    found = choose_cluster(name)
    record = found.record
    if found.liveness is Liveness.DEAD:
        raise NoCluster(
            f"the cluster {record.name!r} is dead: its controller (pid {record.pid} on {record.host}) is gone. "
            f"`hpcviews logs {record.name}` shows its last words, `hpcviews stop {record.name}` clears it away"
        )
    if found.liveness is Liveness.QUEUED:
        raise NoCluster(
            f"the job of the cluster {record.name!r} has not begun yet; `hpcviews status {record.name}` tells its state"
        )
    if found.liveness is Liveness.STARTING:
        raise NoCluster(f"the cluster {record.name!r} is just starting; try again in a moment")
    return read_access(found.place.access("client"), "client")
