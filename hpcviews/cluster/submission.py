"""One cluster that is started by submitting a job: rendering, submitting, waiting until its controller is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from hpcviews import environment, records
from hpcviews.cluster.batch import BatchScheduler, JobOrder, JobRequest, JobState
from hpcviews.cluster.causes import find_cause, read_tail
from hpcviews.cluster.jobs import JobFile, Jobs, JobWatch, run_in, write_job_file
from hpcviews.cluster.spec import Launcher
from hpcviews.errors import NoShow, PollFailed, UsageError
from hpcviews.records import Place, Record

FIRST_PERIOD_S = 1.0
PERIOD_S_MAX = 30.0
PERIOD_GROWTH = 1.5
"""A scheduler serves thousands of users: ask soon for the impatient, and ever more seldom for those who wait long."""

LOOK_PERIOD_S = 0.2
"""For the controller's access file: one look at a directory."""

OnJob = Callable[[str], object]
"""Told in a line of text what the job does, whenever that changes."""


def make_job_name(record: Record) -> str:
    """The job's name: no other cluster of this user has it, not even an earlier one of the same name."""
    return f"hpcviews-{record.name}-{int(record.started) % 100_000_000}"


def render_script(scheduler: BatchScheduler, place: Place, record: Record, request: JobRequest) -> str:
    """The script of the job that runs the cluster's controller.

    Raises:
        UsageError: The batch system cannot do what is asked.
    """
    request.check()
    has_own_python = request.conda is not None or request.venv is not None
    python = request.python or ("python" if has_own_python else record.python)
    order = JobOrder(
        name=request.job_name or make_job_name(record),
        n=record.n,
        log=str(place.controller_log),
        cwd=record.cwd,
        environment={environment.HOME_VARIABLE: str(place.directory.parent.parent)},
        argv=(python, "-m", "hpcviews.cluster", "--job", str(place.directory)),
        request=request,
    )
    return scheduler.render(order)


class Submission:
    """The job of one cluster, from its submission to the controller's first sign of life."""

    def __init__(self, launcher: Launcher, place: Place, record: Record, request: JobRequest):
        if not isinstance(launcher.scheduler, BatchScheduler):
            raise UsageError(f"{launcher.scheduler.name} cannot submit jobs")
        self._scheduler = launcher.scheduler
        self._launcher = launcher
        self._place = place
        self._record = record
        self._request = request
        self._jobs = Jobs(launcher.scheduler, run_in(record.cwd))
        self._watch = JobWatch()
        self.job = ""

    def submit(self, on_job: OnJob) -> None:
        """Submit the job.

        Raises:
            SubmitRefused: The batch system does not take it.
            UsageError: It cannot do what is asked.
        """
        script = self._place.directory / "job.sh"
        script.write_text(render_script(self._scheduler, self._place, self._record, self._request))
        name = self._request.job_name or make_job_name(self._record)
        # Before the job exists: were we killed right after the submission, it is still found by its name.
        write_job_file(self._place, JobFile(scheduler=self._scheduler.name, name=name))
        self.job = self._jobs.submit(script, name)
        write_job_file(self._place, JobFile(scheduler=self._scheduler.name, name=name, id=self.job))
        on_job(f"job {self.job} is submitted")

    def wait_for_controller(self, timeout_s: float, on_job: OnJob) -> None:
        """Return when the controller serves.

        Args:
            timeout_s: Counted from when the job runs; in the queue it may wait as long as it likes.
            on_job: Told what the job does.
        Raises:
            NoShow: The job has ended, or runs without a controller for too long.
        """
        period, ask_at, said = FIRST_PERIOD_S, time.monotonic(), ""
        pause = threading.Event()  # never set: a queue and a file on another machine tell nobody of changes
        while not self._has_controller():
            now = time.monotonic()
            if now >= ask_at:
                self._ask(now)
                said = self._tell(said, on_job)
                ask_at, period = now + period, min(PERIOD_S_MAX, period * PERIOD_GROWTH)
            if self._watch.status.has_ended and not self._has_controller():
                raise NoShow(self.explain_end())
            since = self._watch.running_since
            if since is not None and now - since > timeout_s:
                raise NoShow(
                    f"job {self.job} has been running for {timeout_s:g} s, and its controller is not there yet "
                    f"(--timeout allows for more):\n{read_tail(self._place.controller_log)}"
                )
            pause.wait(LOOK_PERIOD_S)

    def _has_controller(self) -> bool:
        # Reading the directory makes a network file system look for what is new in it.
        return any(path.name == self._place.access("client").name for path in self._list())

    def _list(self) -> list[Path]:
        try:
            return list(self._place.directory.iterdir())
        except FileNotFoundError:
            return []  # the controller has cleared it away: it could not start

    def _ask(self, now: float) -> None:
        try:
            self._watch.on_answer(self._jobs.ask([self.job])[self.job], now)
        except PollFailed:
            self._watch.on_silence(now)

    def _tell(self, said: str, on_job: OnJob) -> str:
        text = f"job {self.job}: {self._watch.status.render()}"
        if self._watch.silent_since is not None:
            text += f"; {self._scheduler.name} does not answer at the moment"
        elif self._watch.status.state is JobState.HELD:
            text += ": it may never start; Ctrl-C offers to cancel it"
        if text != said:
            on_job(text)
        return text

    def explain_end(self) -> str:
        """Why the job ended, with the end of what it wrote."""
        self._ask(time.monotonic())
        place = self._place if self._place.controller_log.exists() else records.find_ended(self._record.name)
        log = place.controller_log if place is not None else self._place.controller_log
        text = read_tail(log, 2**16)
        cause = self._scheduler.find_job_cause(text) or find_cause(text, self._launcher.starter.find_cause)
        lines = [f"job {self.job} ended before its engines were ready: {self._watch.status.render()}"]
        if cause is not None:
            lines[0] += f": {cause.text}"
        tail = read_tail(log)
        if tail:
            lines += [f"The end of {log}:", *(f"  {line}" for line in tail.splitlines())]
        else:
            lines.append(f"Nothing was written to {log}.")
        return "\n".join(lines)
