"""Assembles the controller's process: core and loop, engine sets, owner and signals, and its files on disk.

The order matters for speed: the starter of the engines is started first, so that their Python comes up on another
core while this process imports ZeroMQ and binds its sockets. Engines wait for their access file.
"""

from __future__ import annotations

import getopt
import logging
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import hpcviews
from hpcviews import environment, records
from hpcviews.cluster.handshake import Readiness, send_readiness
from hpcviews.cluster.interfaces import choose_addresses, read_interfaces
from hpcviews.cluster.lifeline import OwnerWatch, SignalWatch
from hpcviews.controller.events import Service
from hpcviews.errors import HpcviewsError, LaunchError, UsageError
from hpcviews.records import IPC_PREFIX, Place, Record
from hpcviews.wire.access import read_host_id, write_access

if TYPE_CHECKING:
    from hpcviews.cluster.engine_sets import EngineSets
    from hpcviews.controller.app import Controller
    from hpcviews.controller.archive import Archive

log = logging.getLogger("hpcviews.cluster.app")

SOCKET_PATH_BYTES_MAX = 100
"""The kernel allows 107 for the path of a Unix socket; libzmq wants some of it."""


@dataclass(frozen=True)
class Options:
    """The command line. What the cluster is to be is in its record."""

    place: Place
    ready_fd: int | None
    """Where to say that it serves. None: in a job, whose submitter looks for the access file."""
    lifeline_fd: int | None
    """None: it has no owner on this machine."""


def parse_options(argv: list[str]) -> Options:
    """Options from a command line.

    Raises:
        UsageError: Not a command line of ours.
    """
    try:
        pairs, rest = getopt.gnu_getopt(argv, "", ["ready-fd=", "lifeline=", "job"])
        given = dict(pairs)
        (directory,) = rest
        if "--job" in given:
            return Options(Place(Path(directory)), None, None)
        return Options(Place(Path(directory)), int(given["--ready-fd"]), int(given["--lifeline"]))
    except (getopt.GetoptError, KeyError, ValueError):
        raise UsageError(
            "DIR and --job, or --ready-fd FD --lifeline FD, are needed; "
            "controllers are started by `hpcviews start`, not by hand"
        ) from None


def main(argv: list[str]) -> int:
    """Be the controller of a cluster until it has ended; the exit code."""
    options = parse_options(argv)
    configure_logging()
    services: list[Service] = [SignalWatch()]
    if options.lifeline_fd is not None:
        os.set_inheritable(options.lifeline_fd, False)
        services.append(OwnerWatch(options.lifeline_fd))
    if options.ready_fd is not None:
        os.set_inheritable(options.ready_fd, False)
    record = records.find_record(options.place)
    if record is None:
        log.error("no record in %s: the cluster was stopped before its controller began", options.place.directory)
        _say_ready(options, Readiness("LaunchError", f"no record in {options.place.directory}"))
        return 1
    process = ControllerProcess(options.place, record)
    try:
        process.start(services)
    except (HpcviewsError, OSError) as error:
        log.error("cannot start: %s", error)
        process.clear_away()
        name = type(error).__name__ if isinstance(error, HpcviewsError) else "LaunchError"
        _say_ready(options, Readiness(name, str(error)))
        return 1
    except BaseException:
        process.clear_away()
        raise
    _say_ready(options, Readiness())
    try:
        process.serve()
    except Exception:
        log.exception("the controller failed; this is a bug in hpcviews")
        return 1
    finally:
        process.clear_away()
    log.info("ended")
    return 0


def _say_ready(options: Options, readiness: Readiness) -> None:
    if options.ready_fd is not None:
        send_readiness(options.ready_fd, readiness)


def configure_logging() -> None:
    """Log to stderr, which is the log file."""
    logging.basicConfig(
        level=logging.DEBUG if environment.is_debug() else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


class ControllerProcess:
    """This process: what it has started and made, so that it can take all of it away again."""

    def __init__(self, place: Place, record: Record):
        self._place = place
        # Ours from now on: who looks at the record meets this process, not the one that asked for the cluster.
        started = records.find_process_start(os.getpid())
        assert started is not None, "this process is alive"
        self._record = msgspec.structs.replace(
            record,
            pid=os.getpid(),
            pid_started=started,
            # In a job it is another machine, and perhaps another Python, than that of who asked for it.
            host=socket.gethostname(),
            host_id=read_host_id(),
            pid_namespace=records.read_pid_namespace(),
            python=sys.executable,
            version=hpcviews.__version__,
        )
        self._sets: EngineSets | None = None
        self._controller: Controller | None = None
        self._archive: Archive | None = None

    def start(self, services: list[Service]) -> None:
        """Start the engines' starter, bind the sockets, and write the access files.

        Raises:
            HpcviewsError: It cannot be done.
            OSError: A file cannot be written.
        """
        from hpcviews.cluster import plugins
        from hpcviews.cluster.engine_sets import EngineSets
        from hpcviews.cluster.limits import ensure_files
        from hpcviews.cluster.processes import get_host

        record, place = self._record, self._place
        ensure_files(record.n)
        private = make_private_directory()
        self._record = record = msgspec.structs.replace(record, ipc_directory=str(private))
        records.write_record(place, record)
        host = get_host(record.python)
        launcher = plugins.get_launcher(record.launcher)
        detection = plugins.detect(launcher, host)
        allocation = launcher.scheduler.allocation(host)
        # Options may send engines anywhere (--hostfile), whatever the scheduler knows of.
        everyone_is_here = allocation is not None and allocation.is_local and not record.options
        addresses = choose_addresses(record.interface, everyone_is_here, read_interfaces())
        self._sets = EngineSets(
            access=place.access("engine"), logs=place.logs, host=host, scratch=private, paths=record.paths
        )
        self._sets.start(record.n, launcher, detection, record.options)

        import zmq

        from hpcviews.controller.app import Controller
        from hpcviews.controller.archive import Archive

        # On a disk of this node, never on a shared file system; and it goes with the cluster.
        self._archive = Archive(private / "requests.sqlite")
        try:
            controller = Controller(
                record.name,
                record.version,
                ipc_path=str(private / "controller"),
                tcp_addresses=addresses,
                services=[*services, self._sets],
                archive=self._archive,
            )
        except zmq.ZMQError as error:
            raise LaunchError(
                f"cannot listen on {', '.join(addresses)}: {error.strerror}; choose another with --interface"
            ) from None
        for role in ("engine", "client"):  # engines first: they have been waiting for it
            write_access(place.access(role), controller.make_access(role))
        self._record = msgspec.structs.replace(
            record, generation=controller.generation, shared_memory=self._sets.shared_memory
        )
        records.write_record(place, self._record)
        self._controller = controller
        log.info("cluster %s: serving at %s", record.name, ", ".join(controller.endpoints))

    def serve(self) -> None:
        """Serve until the cluster has ended."""
        assert self._controller is not None, "started"
        self._controller.run()

    def clear_away(self) -> None:
        """Kill what is left, remove secrets and sockets, put the logs where those of ended clusters are."""
        if self._sets is not None:
            self._sets.close()
        if self._archive is not None:
            self._archive.close()
        try:
            records.retire(self._place, self._record)
        except OSError as error:
            log.error("cannot clear away %s: %s", self._place.directory, error)
            records.remove_ipc_directory(self._record.ipc_directory)


def make_private_directory() -> Path:
    """A new 0700 directory on this node, with a path short enough for a socket in it."""
    path = Path(tempfile.mkdtemp(prefix=IPC_PREFIX))
    if len(os.fsencode(path / "controller")) > SOCKET_PATH_BYTES_MAX:
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix=IPC_PREFIX, dir="/tmp"))
    return path
