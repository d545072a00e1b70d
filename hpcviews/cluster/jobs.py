"""The one place where batch systems are spoken to: submit, ask, cancel; for all schedulers alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hpcviews.cluster.batch import BatchScheduler, JobState, JobStatus
from hpcviews.cluster.processes import run_command
from hpcviews.cluster.spec import ProbeOutput
from hpcviews.errors import LaunchError, PollFailed, SubmitRefused
from hpcviews.records import Place
from hpcviews.wire.access import write_private

log = logging.getLogger("hpcviews.cluster.jobs")

SUBMIT_TIMEOUT_S = 60.0
"""A busy SLURM takes 10 s to answer, and its commands give up by themselves after 60."""

ASK_TIMEOUT_S = 30.0

IDS_PER_CALL_MAX = 100
"""Jobs asked for in one call: a line of a kilobyte, an answer that a scheduler makes in milliseconds."""

Run = Callable[[Sequence[str], float], ProbeOutput]
"""Runs a command of a batch system for at most that many seconds."""


class JobFile(msgspec.Struct, frozen=True, kw_only=True):
    """``job.json`` beside a cluster's record: which job it is."""

    scheduler: str
    name: str
    id: str = ""
    """"" until the batch system has said it."""


def find_job_file(place: Place) -> JobFile | None:
    """The job of a cluster, or None when it is not in one that we submitted."""
    try:
        return msgspec.json.decode((place.directory / "job.json").read_bytes(), type=JobFile)
    except (OSError, msgspec.MsgspecError):
        return None


def write_job_file(place: Place, job: JobFile) -> None:
    """Write it, atomically."""
    write_private(place.directory / "job.json", msgspec.json.format(msgspec.json.encode(job)))


def run_in(directory: str) -> Run:
    """Commands in a directory: the jobs that they submit begin there."""
    return lambda argv, timeout_s: run_command(argv, timeout_s=timeout_s, cwd=directory)


class Jobs:
    """The jobs of one batch system. Not thread-safe.

    Args:
        scheduler: The plug-in.
        run: Runs its commands.
    """

    def __init__(self, scheduler: BatchScheduler, run: Run = lambda argv, t: run_command(argv, timeout_s=t)):
        self._scheduler = scheduler
        self._run = run

    def submit(self, script: Path, name: str) -> str:
        """Submit a script; the job's id.

        Args:
            script: Its path.
            name: The job's name, which no other job of this user has.
        Raises:
            SubmitRefused: The batch system does not take it.
        """
        answer = self._run(self._scheduler.submit_argv(str(script)), SUBMIT_TIMEOUT_S)
        if answer.code == 0:
            return self._scheduler.parse_submit(answer)
        # A submission whose answer got lost may have been made all the same, and would run without our knowing.
        for job in self._find(name):
            log.warning("job %s: was submitted, although the answer was %r", job, answer.err.strip())
            return job
        return self._scheduler.parse_submit(answer)  # raises, in the batch system's words

    def _find(self, name: str) -> list[str]:
        return self._scheduler.parse_find(self._run(self._scheduler.find_argv(name), ASK_TIMEOUT_S))

    def validate(self, script: Path) -> str:
        """What the batch system says of a script that it would take.

        Raises:
            SubmitRefused: It would not.
        """
        answer = self._run(self._scheduler.validate_argv(str(script)), SUBMIT_TIMEOUT_S)
        if answer.code != 0:
            self._scheduler.parse_submit(answer)
            raise SubmitRefused(f"the script is not valid: {answer.err.strip()}")
        return (answer.out + answer.err).strip()

    def find_id(self, job: JobFile) -> str:
        """The job's id, also when whoever submitted it died before writing it down; "": there is no such job."""
        return job.id or next(iter(self._find(job.name)), "")

    def ask(self, ids: Iterable[str]) -> dict[str, JobStatus]:
        """States of jobs. One that the batch system has forgotten is FORGOTTEN, unless its history knows more.

        Raises:
            PollFailed: The batch system did not answer.
        """
        wanted = list(dict.fromkeys(ids))
        found: dict[str, JobStatus] = {}
        for begin in range(0, len(wanted), IDS_PER_CALL_MAX):
            some = wanted[begin : begin + IDS_PER_CALL_MAX]
            answer = self._run(self._scheduler.status_argv(some), ASK_TIMEOUT_S)
            if answer.code is None:
                raise PollFailed(f"{self._scheduler.name} does not answer: {answer.err.strip()}")
            found.update(self._scheduler.parse_status(answer, some))
        for job in wanted:
            if job not in found or (found[job].has_ended and not found[job].exit):
                # Missing is not completed: the history is asked, and if it is silent we do not know.
                found[job] = self._ask_history(job) or found.get(job) or JobStatus(JobState.FORGOTTEN)
        return found

    def _ask_history(self, job: str) -> JobStatus | None:
        for argv in self._scheduler.history_argv(job):
            status = self._scheduler.parse_history(self._run(argv, ASK_TIMEOUT_S), job)
            if status is not None:
                return status
        return None

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs; those that have ended already are fine.

        Raises:
            LaunchError: The batch system did not take it.
        """
        why = self._scheduler.parse_cancel(self._run(self._scheduler.cancel_argv(ids), SUBMIT_TIMEOUT_S))
        if why:
            raise LaunchError(f"cannot cancel job {', '.join(ids)}: {why}; try again with `hpcviews stop`")


@dataclass
class JobWatch:
    """What is known of one job, over many answers and failures to answer. Pure: time is an argument."""

    status: JobStatus = field(default_factory=lambda: JobStatus(JobState.PENDING))
    running_since: float | None = None
    silent_since: float | None = None
    """Since when the batch system does not answer; None: it does."""
    missing_since: float | None = None

    def on_answer(self, status: JobStatus, now: float) -> None:
        """The batch system said this."""
        self.silent_since = None
        if status.state is JobState.FORGOTTEN:
            # A job that was submitted a moment ago may not be listed yet, and a restarted scheduler needs a while.
            if self.missing_since is None:
                self.missing_since = now
            if now - self.missing_since < MISSING_GRACE_S:
                return
        else:
            self.missing_since = None
        if not self.status.has_ended:
            self.status = status
        if status.state is JobState.RUNNING and self.running_since is None:
            self.running_since = now

    def on_silence(self, now: float) -> None:
        """The batch system did not answer: what was known stays so."""
        if self.silent_since is None:
            self.silent_since = now


MISSING_GRACE_S = 20.0
"""How long a job may be unknown before it is taken for ended: SLURM answers after a restart within seconds."""


def ask_about(places: Mapping[str, Place], get_scheduler: Callable[[str], BatchScheduler]) -> dict[str, JobStatus]:
    """States of the jobs of many clusters (name -> place), with one call for each batch system.

    Clusters without a job, or whose batch system does not answer, are not in it.
    """
    by_scheduler: dict[str, dict[str, str]] = {}
    for name, place in places.items():
        job = find_job_file(place)
        if job is not None and job.id:
            by_scheduler.setdefault(job.scheduler, {})[name] = job.id
    found: dict[str, JobStatus] = {}
    for scheduler, ids in by_scheduler.items():
        try:
            answers = Jobs(get_scheduler(scheduler)).ask(ids.values())
        except (PollFailed, LaunchError) as error:
            log.warning("%s: %s", scheduler, error)
            continue
        found.update((name, answers[job]) for name, job in ids.items() if job in answers)
    return found
