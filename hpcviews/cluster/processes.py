"""The only file that starts and kills processes.

Children are watched through pidfds, and signalled through them, so that a pid that was given to somebody else
meanwhile is never hit. Not thread-safe: each process of ours that has children has one thread that uses this.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcviews import prctl
from hpcviews.cluster.spec import Host, ProbeOutput, Which
from hpcviews.environment import MPI_PREFIXES, SCHEDULER_KEEP, SCHEDULER_PREFIXES, get_environment, scrub
from hpcviews.errors import LaunchError
from hpcviews.procfs import Stat, find_descendants, read_all_stats, read_stat

PROBE_TIMEOUT_S = 10.0
"""A program that only prints its version takes milliseconds; 10 s is a file server that hangs."""

PROBE_BYTES_MAX = 64 * 2**10

TREE_VARIABLE = "HPCVIEWS_TREE"
"""Marks all descendants of one starter, also those that left its session and were orphaned. Not a secret."""

# Runs in the child between fork and exec of what it is for. A `preexec_fn` would do the same in the forked copy of
# this process, which may deadlock there when other threads (zmq's, the user's) hold locks.
_LEASH = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, ctypes.c_ulong(int(sys.argv[2])), 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit('the process that started this one is gone')\n"
    "if sys.argv[3] == 'group': os.setpgid(0, 0)\n"
    "try: os.execvp(sys.argv[4], sys.argv[4:])\n"
    "except OSError as error: sys.exit(f'{sys.argv[4]}: {error.strerror}')\n"
)


# ---------------------------------------------------------------- finding and asking programs


def make_which(environment: Mapping[str, str], python: str = sys.executable) -> Which:
    """Finds executables: beside this Python first (MPI from wheels lives there), then on PATH."""
    beside = Path(python).parent  # not resolved: a virtual environment's python is a link out of it

    def which(name: str) -> Path | None:
        for path in (str(beside), environment.get("PATH", os.defpath)):
            found = shutil.which(name, path=path)
            if found:
                return Path(found).absolute()
        return None

    return which


def run_probe(argv: Sequence[str]) -> ProbeOutput:
    """Run a short command: at most 10 s, C locale, nothing on stdin, outside of any job or MPI world."""
    return run_command(argv, timeout_s=PROBE_TIMEOUT_S, locale="C")


def run_command(
    argv: Sequence[str], *, timeout_s: float, cwd: str | None = None, locale: str | None = None
) -> ProbeOutput:
    """Run a command to its end, outside of any job or MPI world: nothing of theirs is in its environment.

    Args:
        argv: The command.
        timeout_s: It is killed then, with all that it started, and its code is None.
        cwd: Its working directory.
        locale: LC_ALL; None: ours, which a job that it submits may inherit.
    """
    variables = get_environment()
    prefixes: tuple[str, ...] = SCHEDULER_PREFIXES + MPI_PREFIXES
    if "SLURM_JOB_ID" not in variables:
        # Outside of a job SBATCH_ACCOUNT and the like are the user's own defaults.
        prefixes = tuple(prefix for prefix in prefixes if prefix != "SBATCH_")
    environment = scrub(variables, prefixes, SCHEDULER_KEEP)
    if locale is not None:
        environment["LC_ALL"] = locale
    try:
        with _Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        ) as probe:
            _owned.add(probe.pid)
            try:
                out, err = probe.communicate(timeout=timeout_s)
            except BaseException as error:
                # Its own session is its process group: what it started goes with it, or the pipes stay open.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(probe.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                return ProbeOutput(None, "", f"no answer within {timeout_s:g} s")
            finally:
                probe.wait()
                _owned.discard(probe.pid)
    except OSError as error:
        return ProbeOutput(None, "", f"{argv[0]}: {error.strerror}")
    return ProbeOutput(probe.returncode, _decode(out), _decode(err))


def _decode(output: bytes) -> str:
    return output[:PROBE_BYTES_MAX].decode(errors="replace")


def get_host(python: str = sys.executable) -> Host:
    """This machine, as launcher plug-ins see it."""
    environment = get_environment()
    return Host(
        cores=len(os.sched_getaffinity(0)),
        is_root=os.geteuid() == 0,
        python=python,
        environment=environment,
        which=make_which(environment, python),
        run=run_probe,
    )


# ---------------------------------------------------------------- children


_owned: set[int] = set()
"""Children that somebody here waits for; `reap_orphans` leaves them alone."""


class _Popen(subprocess.Popen[Any]):
    def __del__(self, *args: Any, **kwargs: Any) -> None:
        """Popen's own warns of children that outlive it, and reaps them behind our back."""


class Child:
    """A process that we started.

    Attributes:
        pid: Its id; stays its own until `poll` or `wait` has told how it ended.
        code: How it ended: its exit code, or minus the signal's number; None while it runs.
    """

    def __init__(self, popen: subprocess.Popen[Any]):
        self._popen = popen
        self.pid = popen.pid
        self.code: int | None = None
        self._fd = os.pidfd_open(popen.pid)
        _owned.add(popen.pid)

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._fd

    def poll(self) -> int | None:
        """`code`, looked up anew."""
        if self.code is None:
            self.code = self._popen.poll()
            if self.code is not None:
                _owned.discard(self.pid)
        return self.code

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until it has ended; None when it still runs after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.poll() is None:
            rest_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            poller = select.poll()  # not select(): the fd may be above 1023
            poller.register(self._fd, select.POLLIN)
            if not poller.poll(rest_ms) and deadline is not None and time.monotonic() >= deadline:
                return self.poll()
        return self.code

    def signal(self, signum: int) -> bool:
        """Send a signal; False when it has ended."""
        if self.code is not None:
            return False
        try:
            signal.pidfd_send_signal(self._fd, signum)
        except ProcessLookupError:
            return False
        return True

    def signal_group(self, signum: int) -> None:
        """Send a signal to the process group that it leads, if it leads one."""
        # Not reaped yet, so its id is still its own.
        if self.code is None and os.getpgid(self.pid) == self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signum)
        else:
            self.signal(signum)

    def close(self) -> None:
        """Stop watching. A child that still runs goes on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def spawn(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    new_session: bool = True,
    die_with_parent: int = 0,
    own_group: bool = False,
) -> Child:
    """Start a program.

    Args:
        argv: Its command.
        environment: All of its environment.
        log: Where its stdout and stderr go (appended, 0600), with nothing on its stdin; None: it has our own three.
        cwd: Its working directory.
        pass_fds: The only other file descriptors that it gets.
        new_session: Keep it out of our terminal's reach: Ctrl-C and hang-ups do not get to it.
        die_with_parent: The signal it gets when the calling *thread* ends, whatever ends it; 0: none. Costs a
            start of the interpreter, about 10 ms. A program that cannot be run then ends with code 1.
        own_group: Give it a process group of its own; only together with `die_with_parent`.
    Raises:
        LaunchError: It cannot be started; the message says why.
    """
    command = list(argv)
    if die_with_parent:
        group = "group" if own_group else "-"
        leash = ("-I", "-S", "-c", _LEASH, str(os.getpid()), str(int(die_with_parent)), group)
        command = [sys.executable, *leash, *command]
    fd: int | None = None
    try:
        if log is not None:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        return Child(
            _Popen(
                command,
                stdin=None if log is None else subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                env=dict(environment),
                cwd=cwd,
                pass_fds=tuple(pass_fds),
                start_new_session=new_session,
            )
        )
    except OSError as error:
        raise LaunchError(f"cannot run {command[0]}: {_say_spawn_error(error, log)}") from error
    finally:
        if fd is not None:
            os.close(fd)


def _say_spawn_error(error: OSError, log: Path | None) -> str:
    if error.errno == errno.EAGAIN:
        return "no more processes are allowed (`ulimit -u`): end some, or ask for fewer engines"
    if error.errno == errno.EMFILE:
        return "too many open files: raise `ulimit -n`"
    if error.errno == errno.E2BIG:
        return "its arguments and environment are too long"
    if log is not None and error.filename == str(log):
        return f"its log {log} cannot be written: {error.strerror}"
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


# ---------------------------------------------------------------- all processes


def send_signal(stat: Stat, signum: int) -> bool:
    """Send a signal to exactly that process, not to a later one with its pid; False when it is gone."""
    try:
        fd = os.pidfd_open(stat.pid)
    except ProcessLookupError:
        return False
    try:
        now = read_stat(stat.pid)  # the pidfd holds whoever has the pid now: is it still the same?
        if now is None or now.start != stat.start:
            return False
        signal.pidfd_send_signal(fd, signum)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # it changed its user; nothing we could do
    finally:
        os.close(fd)
    return True


def reap_orphans() -> int:
    """Take the ended descendants that were left to us as their reaper; how many there were."""
    try:
        # One cheap look at whether there is any ended child at all; it takes nothing away.
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    if ended is None:
        return 0
    reaped = 0
    for stat in read_all_stats().values():
        # By pid, never waitpid(-1): that would take the exit codes of the children we wait for.
        if stat.ppid == os.getpid() and not stat.is_alive and stat.pid not in _owned:
            with contextlib.suppress(ChildProcessError):
                reaped += os.waitpid(stat.pid, os.WNOHANG)[0] != 0
    return reaped


class WatchedProcess:
    """A process that need not be our child, held by a pidfd: never a later one with its pid."""

    def __init__(self, stat: Stat, fd: int):
        self._stat = stat
        self._fd = fd

    @classmethod
    def open(cls, stat: Stat) -> WatchedProcess | None:
        """Hold it; None if it is gone."""
        try:
            fd = os.pidfd_open(stat.pid)
        except ProcessLookupError:
            return None
        now = read_stat(stat.pid)
        if now is None or now.start != stat.start:
            os.close(fd)
            return None
        return cls(stat, fd)

    @property
    def pid(self) -> int:
        """Its id."""
        return self._stat.pid

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._fd

    def has_ended(self) -> bool:
        """Whether it has."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def signal(self, signum: int) -> None:
        """Send it a signal; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._fd, signum)

    def kill(self) -> None:
        """Send SIGKILL to it and to all that it has started."""
        below = [] if self.has_ended() else find_descendants(self.pid, read_all_stats())
        self.signal(signal.SIGKILL)
        for stat in below:
            send_signal(stat, signal.SIGKILL)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)


# ---------------------------------------------------------------- a starter and what it started


def make_tree_mark() -> str:
    """A new value of `TREE_VARIABLE`."""
    return secrets.token_hex(8)


@dataclass
class ProcessTree:
    """A starter's process and everything that it started on this machine.

    This process must have called `prctl.become_reaper` before: it then inherits what is orphaned when, for
    example, mpiexec is killed, and so always finds it among its own descendants.
    """

    child: Child
    mark: str

    @property
    def pid(self) -> int:
        """The starter's."""
        return self.child.pid

    def fileno(self) -> int:
        """Readable when the starter has ended; what it started may live on."""
        return self.child.fileno()

    def poll(self) -> int | None:
        """How the starter ended; None while it runs."""
        return self.child.poll()

    def find_alive(self) -> list[int]:
        """Processes of the tree that still run, the starter among them."""
        return [stat.pid for stat in self._find_members()]

    def signal_starter(self, signum: int) -> None:
        """Send a signal to the starter alone."""
        self.child.signal(signum)

    def signal_all(self, signum: int) -> None:
        """Send a signal to every process of the tree.

        One that forks just now may be missed: repeat until `find_alive` is empty.
        """
        for stat in self._find_members():
            send_signal(stat, signum)
            if signum == signal.SIGTERM:
                send_signal(stat, signal.SIGCONT)  # one that is stopped would not see it

    def watch(self, pid: int) -> WatchedProcess | None:
        """A process of the tree, by its id; None if there is none of that id."""
        for stat in self._find_members():
            if stat.pid == pid and pid != self.pid:
                return WatchedProcess.open(stat)
        return None

    def close(self) -> None:
        """Forget it."""
        self.child.close()

    def _find_members(self) -> list[Stat]:
        stats = read_all_stats()
        ours = find_descendants(os.getpid(), stats)
        below = {stat.pid for stat in find_descendants(self.pid, stats)}
        if self.child.code is None:
            below.add(self.pid)
        return [s for s in ours if s.is_alive and (s.pid in below or _is_marked(s.pid, self.mark))]


def _is_marked(pid: int, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False  # gone, or of another user
    return f"{TREE_VARIABLE}={mark}".encode() in environment.split(b"\0")


def spawn_tree(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> ProcessTree:
    """Start a starter's program; see `spawn`."""
    prctl.become_reaper()
    mark = make_tree_mark()
    return ProcessTree(spawn(argv, environment={**environment, TREE_VARIABLE: mark}, log=log), mark)


def kill_descendants(timeout_s: float = 5.0, spare: Iterable[int] = ()) -> list[int]:
    """Kill everything below this process, at once, and wait for it; what is still there after `timeout_s`."""
    spared = set(spare)
    deadline = time.monotonic() + timeout_s
    while True:
        stats = [s for s in find_descendants(os.getpid(), read_all_stats()) if s.pid not in spared]
        alive = [stat for stat in stats if stat.is_alive]
        for stat in alive:
            send_signal(stat, signal.SIGKILL)
        reap_orphans()
        if not alive or time.monotonic() > deadline:
            return [stat.pid for stat in alive]
        time.sleep(0.01)  # ends of processes that are not our children cannot be waited for
