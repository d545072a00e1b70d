"""The processes of the engine sets: started, watched, ended. A service in the controller's thread.

What happens to a set, and what is done about it when, is decided here from events and times alone; the processes
are behind the `Tree` protocol, so all of it can be tested without any.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hpcviews.cluster.causes import TAIL_BYTES_MAX, find_cause, read_tail
from hpcviews.cluster.engine_ends import EngineEnds, Watched
from hpcviews.cluster.litter import Litter
from hpcviews.cluster.processes import kill_descendants, reap_orphans, spawn_tree
from hpcviews.cluster.spec import Command, Detection, EngineOrder, Host, Launcher, Node
from hpcviews.controller.events import (
    EndEngines,
    EndSets,
    EngineProcess,
    Event,
    Order,
    Post,
    SetExited,
    SetNotStarted,
    SetStarted,
    SignalEngines,
    StartEngines,
)
from hpcviews.environment import THREAD_VARIABLES, scrub
from hpcviews.errors import HpcviewsError, LaunchError, UsageError
from hpcviews.exits import render_exit
from hpcviews.ids import EngineId, SetId

log = logging.getLogger("hpcviews.cluster.engine_sets")

ASKED_GRACE_S = 5.0
"""From the engines' being told over the wire to SIGTERM. Engines give user code and MPI_Finalize 3 s."""

TERM_GRACE_S = 5.0
"""From SIGTERM for the starter to SIGKILL for all. Open MPI takes up to 2 s to end its ranks."""

ORPHAN_GRACE_S = 1.0
"""From SIGTERM to SIGKILL for what a starter left behind: there is nobody to coordinate an orderly end."""

KILL_PERIOD_S = 0.05
KILL_GRACE_S = 10.0
"""What SIGKILL does not end in this time hangs in the kernel (a dead file server); nothing can be done about it."""

LOOK_S = (2.0, 15.0)
"""When after its start a set's shared memory is noted: MPI_Init is over then, even on a slow file system."""

LOGS_READ_MAX = 16
"""How many engines' logs are searched for the cause of a failed start."""

REAP_PERIOD_S = 5.0
"""User code may leave zombies; they cost a table entry each."""


class Tree(Protocol):
    """A starter's process and everything that it started; see `processes.ProcessTree`."""

    @property
    def pid(self) -> int:
        """The starter's."""

    def fileno(self) -> int:
        """Readable when the starter has ended."""

    def poll(self) -> int | None:
        """How the starter ended: exit code or minus the signal; None while it runs."""

    def find_alive(self) -> list[int]:
        """What still runs."""

    def signal_starter(self, signum: int) -> None:
        """Send a signal to the starter alone."""

    def signal_all(self, signum: int) -> None:
        """Send a signal to all."""

    def watch(self, pid: int) -> Watched | None:
        """One of its processes; None if it has none of that id."""

    def close(self) -> None:
        """Forget it."""


SpawnTree = Callable[[tuple[str, ...], Mapping[str, str], Path], Tree]


class Phase(enum.Enum):
    """States of a set's processes."""

    RUNNING = "running"
    ASKED = "asked to end"
    """The engines were told over the wire."""
    TERMINATING = "terminating"
    """SIGTERM was sent."""
    KILLING = "killing"
    """SIGKILL was sent, and is sent again to whatever appears."""
    GONE = "gone"


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.RUNNING: frozenset({Phase.ASKED, Phase.TERMINATING, Phase.KILLING, Phase.GONE}),
    Phase.ASKED: frozenset({Phase.TERMINATING, Phase.KILLING, Phase.GONE}),
    Phase.TERMINATING: frozenset({Phase.KILLING, Phase.GONE}),
    Phase.KILLING: frozenset({Phase.GONE}),
    Phase.GONE: frozenset(),
}


@dataclass
class SetProcesses:
    """One engine set's."""

    id: SetId
    n: int
    launcher: Launcher
    detection: Detection
    options: tuple[str, ...]
    tree: Tree
    log: Path
    litter: Litter
    scratch: Path | None
    phase: Phase = Phase.RUNNING
    due: float | None = None
    """When the phase is over."""
    looks: list[float] = field(default_factory=list)
    """When to note its shared memory, latest first."""
    asked: bool = False
    exited: int | None = None
    """How the starter ended."""
    story: deque[str] = field(default_factory=lambda: deque(maxlen=16))

    def move(self, to: Phase, why: str, due: float | None) -> None:
        """Go to another phase, until `due`."""
        self.story.append(f"{self.phase.value} -> {to.value}: {why}")
        if to not in MOVES[self.phase]:
            raise AssertionError(f"engine set {self.id}: illegal move: " + "; ".join(self.story))
        self.phase, self.due = to, due


class EngineSets:
    """All engine sets of one controller (a `controller.events.Service`).

    Args:
        access: Path of the engines' access file; it need not exist yet.
        logs: Directory for log files: ``set-S.log`` of the starter, ``engine-S.I.log`` of each engine.
        scratch: A private directory on this node for starters' temporary files; None: they use /tmp.
        paths: Directories to put on the engines' sys.path.
        host: This machine; see `processes.get_host`.
    """

    def __init__(
        self,
        *,
        access: Path,
        logs: Path,
        host: Host,
        scratch: Path | None = None,
        paths: tuple[str, ...] = (),
        spawn: SpawnTree = spawn_tree,
        reap: Callable[[], int] = reap_orphans,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._access = access
        self._logs = logs
        self._host = host
        self._scratch = scratch
        self._paths = paths
        self._spawn = spawn
        self._reap = reap
        self._clock = clock
        self._sets: dict[SetId, SetProcesses] = {}
        self._next_id = 0
        self._post: Post | None = None
        self._unposted: list[Event] = []
        self._is_ordering = False
        self._reap_at = 0.0
        self._engine_ends = EngineEnds(self._tell)

    # ------------------------------------------------------------ starting

    def start(
        self,
        n: int,
        launcher: Launcher,
        detection: Detection,
        options: tuple[str, ...] = (),
        ids: tuple[EngineId, ...] = (),
    ) -> SetId:
        """Start an engine set. May be called before `attach`, while the controller is still being set up.

        Args:
            n: How many engines.
            launcher: From `plugins.get_launcher`.
            detection: What `plugins.detect` found for it.
            options: The user's own arguments for the starter's program.
            ids: The ids its engines are to have; the controller chooses if there are none.
        Raises:
            LaunchError: The starter's program cannot be run.
            UsageError: This launcher cannot do what is asked.
        """
        allocation = launcher.scheduler.allocation(self._host)
        if allocation is None:
            raise UsageError(
                f"launcher {launcher.name!r} can only be used inside an allocation of {launcher.scheduler.name}, "
                "and this is none"
            )
        set_id = SetId(self._next_id)
        scratch = self._make_scratch(set_id)
        order = EngineOrder(
            set_id=set_id,
            n=n,
            python=self._host.python,
            engine_args=self._render_engine_args(set_id, n, launcher.starter.name),
            allocation=allocation,
            options=options,
            scratch=str(scratch) if scratch is not None else "",
        )
        try:
            command = launcher.starter.command(order, detection, self._host)
            environment = compose_environment(self._host, order, command)
            path = self._logs / f"set-{set_id}.log"
            litter = Litter(command.shared_memory, command.temporary, time.time())
            tree = self._spawn(command.argv, environment, path)
        except BaseException:
            _remove_scratch(scratch)
            raise
        now = self._clock()
        self._next_id += 1
        started = self._sets[set_id] = SetProcesses(
            set_id, n, launcher, detection, options, tree, path, litter, scratch
        )
        if litter.is_expected:
            started.looks = [now + after for after in reversed(LOOK_S)]
        log.info("engine set %d: %s runs as pid %d: %s", set_id, launcher.starter.name, tree.pid, list(command.argv))
        self._tell(SetStarted(set_id, launcher.name, n, command.is_world, str(path), ids))
        return set_id

    def _render_engine_args(self, set_id: SetId, n: int, starter: str) -> tuple[str, ...]:
        args = ["--access", str(self._access), "--set", str(set_id), "--starter", starter, "--expect", str(n)]
        args += ["--logs", str(self._logs)]
        for path in self._paths:
            args += ["--path", path]
        return tuple(args)

    def _make_scratch(self, set_id: SetId) -> Path | None:
        if self._scratch is None:
            return None
        scratch = self._scratch / f"set-{set_id}"
        try:
            scratch.mkdir(mode=0o700)
        except OSError as error:
            raise LaunchError(f"cannot make {scratch}: {error.strerror}") from error
        return scratch

    @property
    def shared_memory(self) -> tuple[str, ...]:
        """Patterns of what the sets may leave under /dev/shm; for whoever clears away if this process is killed."""
        return tuple(sorted({pattern for s in self._sets.values() for pattern in s.litter.patterns}))

    # ------------------------------------------------------------ Service

    def attach(self, post: Post) -> None:
        """From now on events go to the core; those of before at once."""
        self._post = post
        self._post_waiting(post)

    def _post_waiting(self, post: Post) -> None:
        events, self._unposted = self._unposted, []
        for event in events:
            post(event)

    def fds(self) -> frozenset[int]:
        """The starters that run, and engines that are to end."""
        starters = (s.tree.fileno() for s in self._sets.values() if s.exited is None and s.phase is not Phase.GONE)
        return self._engine_ends.fds().union(starters)

    def on_readable(self, fd: int, now: float) -> None:
        """A starter has ended, or an engine that was to end."""
        if self._engine_ends.on_readable(fd):
            return
        for engine_set in list(self._sets.values()):
            if engine_set.exited is None and engine_set.phase is not Phase.GONE and engine_set.tree.fileno() == fd:
                self._on_starter_ended(engine_set, now)

    def on_order(self, order: Order, now: float) -> None:
        """What the core wants done. Events that follow at once are told at the next tick, not inside the core."""
        self._is_ordering = True
        try:
            self._carry_out(order, now)
        finally:
            self._is_ordering = False

    def _carry_out(self, order: Order, now: float) -> None:
        if isinstance(order, EndSets):
            for set_id in order.set_ids:
                engine_set = self._sets.get(set_id)
                if engine_set is None:
                    log.error("engine set %d: asked to end it (%s), but there is none", set_id, order.why)
                else:
                    self._end(engine_set, order, now)
        elif isinstance(order, EndEngines):
            for engine in order.engines:
                log.info("engine %d: is to end (%s)", engine.id, order.why)
                self._engine_ends.end(engine.id, self._find(engine), order.at_once, now)
        elif isinstance(order, SignalEngines):
            for engine in order.engines:
                process = self._find(engine)
                if process is not None:
                    process.signal(order.signum)
                    process.close()
        elif isinstance(order, StartEngines):
            self._start_like(order)

    def _end(self, engine_set: SetProcesses, order: EndSets, now: float) -> None:
        engine_set.asked = True
        if engine_set.phase is Phase.RUNNING:
            self._note_litter(engine_set)
        if order.at_once and engine_set.phase in (Phase.RUNNING, Phase.ASKED, Phase.TERMINATING):
            engine_set.move(Phase.KILLING, order.why, now + KILL_GRACE_S)
            engine_set.tree.signal_all(signal.SIGKILL)
        elif engine_set.phase is Phase.RUNNING:
            engine_set.tree.signal_all(signal.SIGCONT)  # one that is stopped would not read that it is to end
            engine_set.move(Phase.ASKED, order.why, now + ASKED_GRACE_S)

    def _find(self, engine: EngineProcess) -> Watched | None:
        """Its process; None if it is none of ours, or on another machine."""
        engine_set = self._sets.get(engine.set_id)
        if engine_set is None or not engine.pid or engine_set.phase is Phase.GONE:
            return None
        return engine_set.tree.watch(engine.pid)

    def _start_like(self, order: StartEngines) -> None:
        like = self._sets[order.like]
        try:
            self.start(len(order.ids), like.launcher, like.detection, like.options, order.ids)
        except (HpcviewsError, OSError) as error:
            log.error("engines %s cannot be started again: %s", list(order.ids), error)
            kind = type(error).__name__ if isinstance(error, HpcviewsError) else "LaunchError"
            self._tell(SetNotStarted(order.ids, f"the engines are gone, and cannot be started again: {error}", kind))

    def on_tick(self, now: float) -> float | None:
        """Do what is due."""
        if self._post is not None:
            self._post_waiting(self._post)
        waits = []
        for engine_set in list(self._sets.values()):
            while engine_set.looks and now >= engine_set.looks[-1]:
                engine_set.looks.pop()
                self._note_litter(engine_set)
            if engine_set.phase is not Phase.GONE:
                self._advance(engine_set, now)
            wait = self._next_wait(engine_set, now)
            if wait is not None:
                waits.append(wait)
        if now >= self._reap_at:
            self._reap_at = now + REAP_PERIOD_S
            self._reap()
        waits.append(self._reap_at - now)
        wait = self._engine_ends.on_tick(now)
        if wait is not None:
            waits.append(wait)
        return max(0.0, min(waits))

    # ------------------------------------------------------------ the state machine

    def _on_starter_ended(self, engine_set: SetProcesses, now: float) -> None:
        engine_set.exited = engine_set.tree.poll()
        if engine_set.exited is None:
            return
        engine_set.story.append(f"starter ended: {render_exit(engine_set.exited)}")
        if not engine_set.tree.find_alive():
            self._finish(engine_set, "nothing of it is left")
        elif engine_set.phase in (Phase.RUNNING, Phase.ASKED):
            self._note_litter(engine_set)
            engine_set.tree.signal_all(signal.SIGTERM)
            engine_set.move(Phase.TERMINATING, "the starter left processes behind", now + ORPHAN_GRACE_S)

    def _advance(self, engine_set: SetProcesses, now: float) -> None:
        if engine_set.phase in (Phase.RUNNING, Phase.ASKED):
            if engine_set.due is not None and now >= engine_set.due:
                engine_set.tree.signal_starter(signal.SIGTERM)
                engine_set.move(Phase.TERMINATING, "not ended when asked", now + TERM_GRACE_S)
            return
        if engine_set.exited is None:
            self._on_starter_ended(engine_set, now)
            if engine_set.phase is Phase.GONE:
                return
        elif not engine_set.tree.find_alive():
            self._finish(engine_set, "all ended")
            return
        is_due = engine_set.due is not None and now >= engine_set.due
        if engine_set.phase is Phase.TERMINATING and is_due:
            log.warning("engine set %d: does not end by itself: killing it", engine_set.id)
            self._note_litter(engine_set)
            engine_set.move(Phase.KILLING, "not ended by SIGTERM", now + KILL_GRACE_S)
            engine_set.tree.signal_all(signal.SIGKILL)
        elif engine_set.phase is Phase.KILLING:
            if is_due:
                log.error("engine set %d: processes %s cannot be killed", engine_set.id, engine_set.tree.find_alive())
                self._finish(engine_set, "given up")
            else:
                engine_set.tree.signal_all(signal.SIGKILL)

    def _next_wait(self, engine_set: SetProcesses, now: float) -> float | None:
        if engine_set.phase is Phase.GONE:
            return None
        waits = [due - now for due in (engine_set.due, *engine_set.looks[-1:]) if due is not None]
        if engine_set.phase is Phase.KILLING or (
            engine_set.phase is Phase.TERMINATING and engine_set.exited is not None
        ):
            waits.append(KILL_PERIOD_S)  # orphans are not our children: their ends must be looked for
        return max(0.0, min(waits)) if waits else None

    def _note_litter(self, engine_set: SetProcesses) -> None:
        if engine_set.litter.is_expected:
            engine_set.litter.note(engine_set.tree.find_alive())

    def _finish(self, engine_set: SetProcesses, how: str) -> None:
        remaining = engine_set.tree.find_alive()
        engine_set.move(Phase.GONE, how, None)
        engine_set.looks.clear()
        engine_set.tree.close()
        removed = engine_set.litter.sweep()
        if removed:
            log.info("engine set %d: removed what it left behind: %s", engine_set.id, [str(p) for p in removed])
        _remove_scratch(engine_set.scratch)
        self._reap()
        why, error = self._explain(engine_set, remaining)
        self._tell(SetExited(engine_set.id, why, error))

    def _explain(self, engine_set: SetProcesses, remaining: list[int]) -> tuple[str, str]:
        name = engine_set.launcher.starter.name
        how = f"{name} ended" if engine_set.exited is None else f"{name} ended: {render_exit(engine_set.exited)}"
        if remaining:
            how = f"{name} could not be ended: processes {remaining} hang in the kernel"
        if engine_set.asked:
            return how, ""
        # A cause that is common to all engines is in the first ones' logs.
        logs = [engine_set.log]
        some = range(min(engine_set.n, LOGS_READ_MAX))
        logs += [self._logs / f"engine-{engine_set.id}.{index}.log" for index in some]
        return explain_end(how, logs, engine_set.launcher)

    def _tell(self, event: Event) -> None:
        if self._post is None or self._is_ordering:
            self._unposted.append(event)
        else:
            self._post(event)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Kill whatever is still there, at once, and wait for it. For the very end of the controller's process."""
        self._engine_ends.close()
        living = [s for s in self._sets.values() if s.phase is not Phase.GONE]
        for engine_set in living:
            self._note_litter(engine_set)
        # Also without living sets: a daemon of user code's that hid from its set (a session and an environment of
        # its own) is still below us.
        remaining = kill_descendants()
        for engine_set in living:
            engine_set.tree.poll()
            engine_set.tree.close()
            engine_set.litter.sweep()
            _remove_scratch(engine_set.scratch)
            engine_set.phase, engine_set.due = Phase.GONE, None
        if remaining:
            log.error("processes %s cannot be killed", remaining)


def compose_environment(host: Host, order: EngineOrder, command: Command) -> dict[str, str]:
    """The environment of a starter's program.

    Without a limit each of n engines would start as many threads as the node has cores, and numpy with 64 engines
    on 64 cores 4096 of them: slower by an order of magnitude than one each. So the engines of a node share its
    cores, unless the user has said otherwise in the environment.
    """
    environment = dict(host.environment)
    if command.unset_prefixes:
        environment = scrub(environment, command.unset_prefixes, command.keep)
    threads = str(_count_threads(host, order))
    if not any(environment.get(name) for name in THREAD_VARIABLES):
        # All or none: a user who has set only OMP_NUM_THREADS means the other libraries too, and they read it.
        environment.update((name, threads) for name in THREAD_VARIABLES)
    environment.update(command.environment)
    return environment


def _count_threads(host: Host, order: EngineOrder) -> int:
    """Cores for each engine, on the node that has the fewest for each."""
    nodes = order.allocation.nodes or (Node("", cores=host.cores),)
    counts = order.allocation.spread(order.n) or [order.n]
    shares = [(node.cores or host.cores) // count for node, count in zip(nodes, counts, strict=True) if count]
    return max(1, min(shares, default=1))


def explain_end(how: str, logs: list[Path], launcher: Launcher) -> tuple[str, str]:
    """Why a set's processes ended unasked, from what they wrote: a text, and the class in errors.py for it."""
    tails: list[tuple[Path, str]] = []
    cause = None
    for path in logs:
        tail = read_tail(path)
        if not tail:
            continue
        tails.append((path, tail))
        # Looked for in more than is quoted: what matters is often far above the last line.
        cause = find_cause(read_tail(path, 64 * TAIL_BYTES_MAX), launcher.starter.find_cause)
        if cause is not None:
            break
    lines = [f"{how}: {cause.text}" if cause is not None else how]
    # The log that tells; else the starter's and the first engine's.
    for path, tail in tails[-1:] if cause is not None else tails[:2]:
        lines.append(f"The end of {path}:")
        lines += [f"  {line}" for line in tail.splitlines()]
    if not tails:
        lines.append(f"Nothing was written to {logs[0]} or to the engines' logs beside it.")
    return "\n".join(lines), cause.error if cause is not None else "NoShow"


def _remove_scratch(scratch: Path | None) -> None:
    if scratch is not None:
        with contextlib.suppress(OSError):
            shutil.rmtree(scratch)
