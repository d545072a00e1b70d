"""Assembles an engine: options, log file, MPI world, I/O thread, and user code on the main thread."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from hpcviews import environment
from hpcviews.engine.loop import EngineLoop
from hpcviews.engine.namespace import make_namespace
from hpcviews.engine.output import OutputCapture
from hpcviews.engine.publishing import set_publisher
from hpcviews.engine.worker import Worker
from hpcviews.errors import UsageError
from hpcviews.wire import messages as m
from hpcviews.wire.access import get_python_version


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is told on its command line; nothing of it is secret."""

    access: Path
    """The engine's access file. It may not exist yet: start order does not matter."""
    set_id: int
    starter: str
    """Name of the starter; "fork" engines are no MPI ranks, others are if `is_world`."""
    expect: int
    """How many engines the set has; the size its world must have."""
    is_world: bool = False
    index: int = 0
    local_index: int = 0
    logs: Path | None = None
    """Directory of log files; None: keep stdout and stderr as they are."""
    paths: tuple[str, ...] = ()
    """Put in front of sys.path, after the working directory."""
    timeout_s: float = 300.0
    """How long to try to reach the controller before giving up."""


_OPTIONS = (
    "--access", "--set", "--starter", "--expect", "--index", "--logs", "--path", "--timeout", "--n", "--spread"
)  # fmt: skip
_FLAGS = ("--world",)


def parse_options(argv: list[str]) -> tuple[EngineOptions, int]:
    """Options from a command line, and how many engines to fork on this node (1 if nothing is said of it).

    ``--n`` says it outright. ``--spread 4,4,2`` is for one fork server per node: the second one has four engines,
    and the first of them is number 4.

    By hand, not by argparse or getopt: this runs once per rank of thousands, and they cost 6 to 8 ms.

    Raises:
        UsageError: Not a command line of ours.
    """
    pairs: list[tuple[str, str]] = []
    rest = list(argv)
    while rest:
        name = rest.pop(0)
        if name in _FLAGS:
            pairs.append((name, ""))
        elif name in _OPTIONS and rest:
            pairs.append((name, rest.pop(0)))
        else:
            raise UsageError(f"engine: {name!r} is not understood; engines are started by a launcher, not by hand")
    given = dict(pairs)
    if "--access" not in given:
        raise UsageError("engine: --access FILE is needed; engines are started by a launcher, not by hand")
    try:
        options = EngineOptions(
            access=Path(given["--access"]),
            set_id=int(given.get("--set", "0")),
            starter=given.get("--starter", ""),
            expect=int(given.get("--expect", "1")),
            is_world="--world" in given,
            index=int(given.get("--index", "0")),
            logs=Path(given["--logs"]) if "--logs" in given else None,
            paths=tuple(value for name, value in pairs if name == "--path"),
            timeout_s=float(given.get("--timeout", "300")),
        )
        if "--spread" in given:
            counts = [int(count) for count in given["--spread"].split(",")]
            node = environment.find_node_index()
            if node is None or not 0 <= node < len(counts):
                raise UsageError(f"engine: --spread names {len(counts)} nodes, and this is node {node}")
            return replace(options, index=sum(counts[:node])), counts[node]
        return options, int(given.get("--n", "1"))
    except ValueError as error:
        raise UsageError(f"engine: {error}") from None


def run_engine(options: EngineOptions) -> None:
    """Be an engine until told to stop. Never returns: the process ends."""
    failure, mpi, rank, world_size = "", "", None, None
    if options.is_world:
        # The environment tells the rank before MPI does, so that MPI's own start-up messages are in our log.
        found = environment.find_mpi_rank()
        if found is not None:
            options = replace(options, index=found[0], local_index=found[1])
    _open_log(options)
    if options.is_world:
        from hpcviews.engine import world

        joined = world.join(options.expect)
        failure, mpi, rank, world_size = joined.failure, joined.library, joined.rank, joined.size
        if not failure:
            options = replace(options, index=joined.rank)
    for path in reversed(options.paths):
        if path not in sys.path:
            sys.path.insert(1, path)
    info = m.EngineInfo(
        id=-1,
        uuid=os.urandom(8).hex(),
        set_id=options.set_id,
        index=options.index,
        rank=rank,
        world_size=world_size,
        local_rank=options.local_index,
        host=socket.gethostname(),
        pid=os.getpid(),
        python=get_python_version(),
        mpi=mpi,
        registered=0.0,
    )
    namespace = make_namespace()
    worker = Worker(namespace, info)
    output = OutputCapture()
    loop = EngineLoop(options.access, info, failure, worker, output, options.timeout_s)
    worker.attach(loop, output)
    output.attach(loop)
    set_publisher(worker.publish)
    signal.signal(signal.SIGINT, worker.on_interrupt)
    loop.start()
    ended = worker.run()
    if ended.finalize and options.is_world and not failure:
        world.finalize()
    loop.leave_room()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: user threads and atexit handlers of whatever was imported must not keep a cluster alive.
    os._exit(ended.code)


def _open_log(options: EngineOptions) -> None:
    if options.logs is None:
        return
    path = options.logs / f"engine-{options.set_id}.{options.index}.log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    for stream in (sys.__stdout__, sys.__stderr__):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # the process may end without flushing
