"""What batch schedulers are: what a job can be asked for, what is known of one, and the protocol of their plug-ins.

Like all launcher plug-ins they are pure: commands and scripts as text out, answers as text in. `jobs.py` runs the
commands, with time limits and retries, once for all of them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hpcviews.cluster.spec import Cause, ProbeOutput, Scheduler
from hpcviews.errors import UsageError

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class JobRequest:
    """What a job is to have, in words that all batch systems share. None and empty: nothing is said of it."""

    nodes: int | None = None
    engines_per_node: int | None = None
    cpus_per_engine: int | None = None
    gpus_per_engine: int | None = None
    mem: str | None = None
    """Memory per node, as the batch system writes it, e.g. "16G"."""
    walltime_s: int | None = None
    queue: str | None = None
    """Queue or partition."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    dependency: str | None = None
    job_name: str | None = None
    directives: tuple[str, ...] = ()
    """Further options of the batch system, verbatim, e.g. "--licenses=x:1"; after ours, so that they win."""
    skip: tuple[str, ...] = ()
    """Options of ours to leave out, by name, e.g. "--mem"."""
    prologue: tuple[str, ...] = ()
    """Lines of bash to run first."""
    modules: tuple[str, ...] = ()
    conda: str | None = None
    """Name or path of a conda environment to activate."""
    venv: str | None = None
    """Directory of a virtual environment to activate."""
    python: str | None = None
    """Interpreter in the job. None: the one of `conda` or `venv`, else the one that asks."""

    def check(self) -> None:
        """Refuse what no batch system could do.

        Raises:
            UsageError: It makes no sense; the message says which value.
        """
        for name in ("nodes", "engines_per_node", "cpus_per_engine", "gpus_per_engine", "walltime_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if self.conda is not None and self.venv is not None:
            raise UsageError("give a conda environment or a venv, not both")
        for name, value in vars(self).items():
            texts = value if isinstance(value, tuple) else (value,)
            # Each of them becomes part of a line of the job's script, which must stay one line.
            if name != "prologue" and any(isinstance(text, str) and _CONTROL.search(text) for text in texts):
                raise UsageError(f"{name} must not have line breaks or control characters: {value!r}")


@dataclass(frozen=True)
class JobOrder:
    """A job to be submitted: what the script is rendered from."""

    name: str
    n: int
    """How many engines it is to have room for."""
    log: str
    """Where the job's output goes."""
    cwd: str
    environment: Mapping[str, str]
    """Variables to set in the job; nothing secret among them."""
    argv: tuple[str, ...]
    """What the job runs."""
    request: JobRequest = JobRequest()


class JobState(enum.Enum):
    """What a job is doing, in our words."""

    PENDING = "pending"
    HELD = "held"
    """Waits for somebody to do something, perhaps for ever."""
    RUNNING = "running"
    SUSPENDED = "suspended"
    ENDING = "ending"
    DONE = "done"
    FAILED = "failed"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    FORGOTTEN = "forgotten"
    """The batch system knows nothing of it any more; how it ended cannot be told."""
    UNKNOWN = "unknown"
    """A word that we do not know. Not taken for an end."""


ENDS = frozenset({
    JobState.DONE, JobState.FAILED, JobState.TIMEOUT, JobState.PREEMPTED, JobState.CANCELLED, JobState.FORGOTTEN,
})  # fmt: skip


@dataclass(frozen=True)
class JobStatus:
    """What a batch system says of a job."""

    state: JobState
    word: str = ""
    """The batch system's own word for it."""
    reason: str = ""
    starts: str = ""
    """When a waiting job is expected to start, as the batch system writes it."""
    nodes: str = ""
    exit: str = ""
    """How it ended, in words."""

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ENDS

    def render(self) -> str:
        """For a person, e.g. "PENDING (Priority), expected to start 2026-11-22T18:54:17"."""
        text = self.word or self.state.value
        if self.reason:
            text += f" ({self.reason})"
        if self.starts:
            text += f", expected to start {self.starts}"
        if self.nodes and self.state is JobState.RUNNING:
            text += f" on {self.nodes}"
        if self.exit:
            text += f", {self.exit}"
        return text


@runtime_checkable
class BatchScheduler(Scheduler, Protocol):
    """A scheduler that allocations can be asked of. Entry point group ``hpcviews.schedulers``, as all schedulers.

    A `parse_` method is given what the command of the method before it has said. `PollFailed` means that nothing
    was learned: what was known stays so.
    """

    def render(self, order: JobOrder) -> str:
        """The job's script.

        Raises:
            UsageError: This batch system cannot do what is asked.
        """

    def submit_argv(self, script: str) -> Sequence[str]:
        """Submit a script."""

    def parse_submit(self, answer: ProbeOutput) -> str:
        """The id of the new job.

        Raises:
            SubmitRefused: The batch system does not take it; the message says why, and what can be done.
        """

    def validate_argv(self, script: str) -> Sequence[str]:
        """Ask whether a script would be taken, without submitting it."""

    def find_argv(self, name: str) -> Sequence[str]:
        """List our own jobs of a name that wait or run."""

    def parse_find(self, answer: ProbeOutput) -> list[str]:
        """Their ids."""

    def status_argv(self, ids: Sequence[str]) -> Sequence[str]:
        """Ask for the states of jobs, all in one call."""

    def parse_status(self, answer: ProbeOutput, ids: Sequence[str]) -> Mapping[str, JobStatus]:
        """What is known; jobs that are unknown are not in it.

        Raises:
            PollFailed: The batch system did not answer.
        """

    def history_argv(self, job: str) -> Sequence[Sequence[str]]:
        """Ask how a job ended that `status_argv` does not know any more: commands to be tried in turn."""

    def parse_history(self, answer: ProbeOutput, job: str) -> JobStatus | None:
        """What one of them says; None: nothing."""

    def cancel_argv(self, ids: Sequence[str]) -> Sequence[str]:
        """Cancel jobs. One that has ended is no error."""

    def parse_cancel(self, answer: ProbeOutput) -> str:
        """Why it failed; "" if it did not."""

    def find_job_cause(self, log: str) -> Cause | None:
        """Why a job failed, if its output says so in a way that this batch system knows."""


def parse_walltime(text: str) -> int:
    """Seconds of "90m", "2h", "1:30:00" or "1-12:00:00".

    Raises:
        UsageError: Not a length of time. A bare number is none: it is minutes here and seconds there.
    """
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match:
        return int(match[1]) * _UNITS_S[match[2]]
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    raise UsageError(f"{text!r} is not a length of time: write 90m, 2h, 1:30:00 or 1-12:00:00 (days-hours)")


def render_walltime(seconds: int) -> str:
    """``HH:MM:SS``, which all batch systems understand."""
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
