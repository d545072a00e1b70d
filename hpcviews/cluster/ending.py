"""Ending clusters that this process does not own, also when their controller hangs or is dead."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

from hpcviews import records
from hpcviews.cluster import processes
from hpcviews.cluster.jobs import JobFile, Jobs, find_job_file
from hpcviews.cluster.litter import Litter
from hpcviews.cluster.plugins import get_scheduler
from hpcviews.errors import ConnectError, HpcviewsError, LaunchError, PollFailed
from hpcviews.procfs import read_all_stats, read_stat
from hpcviews.records import Found, Liveness
from hpcviews.wire.room import sweep_rooms

STOP_TIMEOUT_S = 20.0
"""How long a controller gets to end its engines: their grace, SIGTERM and SIGKILL take about half of it."""

STARTING_S = 5.0
"""A cluster that is just being claimed has its controller after this long, or is dead."""

ANSWER_S = 10.0
"""How long to try to reach a controller on another host."""

POLITE_S = 5.0
"""A job whose controller has ended is over at once; what lingers is cancelled."""

JOB_KILL_S = 45.0
"""From scancel to the end: SLURM gives processes 30 s (KillWait) to go by themselves."""

KILL_S = 5.0
"""A killed process is gone at once, unless it hangs in a file server's call."""


def end_cluster(found: Found, timeout_s: float = STOP_TIMEOUT_S, *, forget: bool = False) -> str:
    """End a cluster and clear away everything it has on this machine.

    Args:
        found: Which.
        timeout_s: How long its controller gets before it is killed.
        forget: For a cluster on a host that does not answer any more: remove its record all the same.
    Returns:
        What was done, in words.
    Raises:
        ConnectError: Its controller is on another host, and cannot be reached from here.
        LaunchError: Its controller cannot be killed.
    """
    job = find_job_file(found.place)
    if job is not None:
        return _end_job(found, job, timeout_s, forget)
    found = _wait_until_claimed(found)
    if found.liveness is Liveness.ELSEWHERE:
        return _end_elsewhere(found, timeout_s, forget)
    if found.liveness is Liveness.DEAD:
        return _clear_away(found, "was dead; cleared away what it left")
    done = "stopped"
    if not _signal_and_wait(found, signal.SIGTERM, timeout_s):
        done = f"did not stop within {timeout_s:g} s; killed"
        if not _signal_and_wait(found, signal.SIGKILL, KILL_S):
            raise LaunchError(
                f"the controller of {found.record.name!r} (pid {found.record.pid}) cannot be killed: it hangs in the "
                "kernel, often because of a file server that does not answer; try again when that is back"
            )
    return _clear_away(found, done)


def _end_job(found: Found, file: JobFile, timeout_s: float, forget: bool) -> str:
    """A cluster in a job: its controller is asked first, then the job is cancelled if it is still there."""
    jobs = Jobs(get_scheduler(file.scheduler))
    try:
        done = _end_by_scheduler(found, file, jobs, timeout_s)
    except (PollFailed, LaunchError) as error:
        # The controller's end is its job's end, also while the batch system is away.
        if _ask_controller(found, timeout_s):
            done = f"stopped; {file.scheduler} does not answer, so what it says of the job is not known"
        elif forget:
            done = f"{file.scheduler} does not answer; removed its record only"
        else:
            raise type(error)(
                f"{error}\n`hpcviews stop --forget {found.record.name}` removes its record, and leaves the job alone"
            ) from None
    records.retire(found.place, found.record)
    return done


def _end_by_scheduler(found: Found, file: JobFile, jobs: Jobs, timeout_s: float) -> str:
    job = jobs.find_id(file)
    if not job or jobs.ask([job])[job].has_ended:
        return f"job {job or file.name} had ended; cleared away what it left"
    done = f"stopped, and its job {job} has ended"
    if not _ask_controller(found, timeout_s):
        done = f"cancelled job {job}"
        jobs.cancel([job])
    elif not _wait_for_end(jobs, job, POLITE_S):
        jobs.cancel([job])
    if not _wait_for_end(jobs, job, timeout_s + JOB_KILL_S):
        raise LaunchError(
            f"job {job} was cancelled, but {file.scheduler} has not ended it yet; "
            f"run `hpcviews stop {found.record.name}` again later"
        )
    return done


def _ask_controller(found: Found, timeout_s: float) -> bool:
    from hpcviews.client.client import Client

    try:
        with Client(access=found.place.access("client"), timeout=ANSWER_S) as client:
            client.stop_cluster(timeout_s)
    except (HpcviewsError, TimeoutError, OSError):
        return False  # it has none yet, or it hangs; the batch system ends it
    return True


def _wait_for_end(jobs: Jobs, job: str, timeout_s: float) -> bool:
    """Whether the job is over within that time."""
    deadline, period = time.monotonic() + timeout_s, 0.1
    while not jobs.ask([job])[job].has_ended:
        if time.monotonic() > deadline:
            return False
        time.sleep(period)  # a batch system tells nobody when a job has ended
        period = min(2.0, period * 1.5)
    return True


def _wait_until_claimed(found: Found) -> Found:
    """Until then the record names the process that starts it, which is not ours to end."""
    deadline = time.monotonic() + STARTING_S
    while found.liveness is Liveness.STARTING:
        if time.monotonic() > deadline:
            raise LaunchError(
                f"the cluster {found.record.name!r} is being started by process {found.record.pid} and has no "
                "controller yet; end that process, or try again later"
            )
        time.sleep(0.05)  # the record is on a file system that may be another machine's: nothing to wait on
        again = records.find_cluster(found.record.name)
        if again is None or again.record.started != found.record.started:
            return Found(found.place, found.record, Liveness.DEAD)
        found = again
    return found


def _end_elsewhere(found: Found, timeout_s: float, forget: bool) -> str:
    from hpcviews.client.client import Client

    record = found.record
    try:
        with Client(access=found.place.access("client"), timeout=ANSWER_S) as client:
            client.stop_cluster(timeout_s)
    except (ConnectError, TimeoutError) as error:
        if forget:
            records.retire(found.place, record)
            return f"cannot be reached on {record.host}; removed its record only"
        raise type(error)(
            f"{error}\nEnd it on {record.host} with `hpcviews stop {record.name}`; if that host is gone for good, "
            f"`hpcviews stop --forget {record.name}` removes its record"
        ) from None
    return f"stopped (on {record.host})"


def _signal_and_wait(found: Found, signum: int, timeout_s: float) -> bool:
    """Whether the controller is gone within `timeout_s` after the signal."""
    record = found.record
    stat = read_stat(record.pid)
    if stat is None or stat.start != record.pid_started:
        return True
    try:
        fd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    try:
        if not processes.send_signal(stat, signum):
            return True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))
    finally:
        os.close(fd)


def _clear_away(found: Found, done: str) -> str:
    killed = clear_left_over(found)
    records.retire(found.place, found.record)
    return f"{done}; killed {killed} of its processes that were left" if killed else done


def clear_left_over(found: Found) -> int:
    """Kill what a controller that could not clear up has left running here, and remove its engines' shared memory.

    Returns:
        How many processes there were.
    """
    record = records.find_record(found.place) or found.record
    killed = _kill_left_over(found.place.directory)
    if record.shared_memory:
        Litter(record.shared_memory, (), record.started, is_late=True).sweep()
    with contextlib.suppress(OSError):  # no /dev/shm
        sweep_rooms()
    return killed


def _kill_left_over(directory: Path) -> int:
    # Everything that a cluster starts on purpose has the path of its engines' access file among its arguments.
    mark = os.fsencode(directory / "engine.json")
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_S
    while True:
        left = [s for s in read_all_stats().values() if s.is_alive and mark in _read_arguments(s.pid)]
        for stat in left:
            if processes.send_signal(stat, signal.SIGKILL):
                killed.add(stat.pid)
        if not left or time.monotonic() > deadline:
            return len(killed)
        time.sleep(0.01)  # they are not our children: their end cannot be waited for


def _read_arguments(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []
