"""SLURM's words for the states of jobs, from squeue, scontrol and sacct."""

from __future__ import annotations

import re

from hpcviews.cluster.batch import JobState, JobStatus

STATES = {
    "PENDING": JobState.PENDING, "CONFIGURING": JobState.PENDING, "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING, "POWER_UP_NODE": JobState.PENDING,
    "REQUEUE_HOLD": JobState.HELD, "SPECIAL_EXIT": JobState.HELD, "RESV_DEL_HOLD": JobState.HELD,
    "RUNNING": JobState.RUNNING, "SIGNALING": JobState.RUNNING, "RESIZING": JobState.RUNNING,
    "SUSPENDED": JobState.SUSPENDED, "STOPPED": JobState.SUSPENDED,
    "COMPLETING": JobState.ENDING, "STAGE_OUT": JobState.ENDING,
    "COMPLETED": JobState.DONE,
    "FAILED": JobState.FAILED, "OUT_OF_MEMORY": JobState.FAILED, "NODE_FAIL": JobState.FAILED,
    "BOOT_FAIL": JobState.FAILED, "LAUNCH_FAILED": JobState.FAILED, "RECONFIG_FAIL": JobState.FAILED,
    "REVOKED": JobState.FAILED,
    "TIMEOUT": JobState.TIMEOUT, "DEADLINE": JobState.TIMEOUT,
    "PREEMPTED": JobState.PREEMPTED, "CANCELLED": JobState.CANCELLED,
}  # fmt: skip

# Reasons of waiting jobs that do not go away by waiting.
_STUCK = re.compile(
    r"JobHeld|BadConstraints|InvalidAccount|InvalidQOS|PartitionTimeLimit|PartitionNodeLimit|PartitionConfig"
    r"|AssocMax|AssocGrp|QOSMax|QOSGrp|DependencyNeverSatisfied"
)
_NOTHING = frozenset({"", "None", "N/A", "(null)", "Unknown"})
_FIELD = re.compile(r"(?:^|\s)(\w[\w/:]*)=(\S*)")


def make_status(word: str, *, reason: str = "", starts: str = "", nodes: str = "", ended: str = "") -> JobStatus:
    """From SLURM's words; an unknown state is UNKNOWN, and no end."""
    first = (word.split() or [""])[0].rstrip("+")  # "CANCELLED by 1000"
    state = STATES.get(first, JobState.UNKNOWN)
    if state is JobState.PENDING and _STUCK.search(reason):
        state = JobState.HELD
    is_waiting = state in (JobState.PENDING, JobState.HELD)
    return JobStatus(
        state,
        first,
        "" if reason in _NOTHING else reason,
        starts if is_waiting and starts not in _NOTHING else "",
        "" if nodes in _NOTHING else nodes,
        render_end(ended),
    )


def render_end(code: str) -> str:
    """``CODE:SIGNAL`` in words; "" when there is nothing to say."""
    number, _, signum = code.partition(":")
    if signum not in ("", "0"):
        return f"killed by signal {signum}"
    return f"exit code {number}" if number not in ("", "0") else ""


def parse_row(line: str) -> tuple[str, JobStatus]:
    """A line of ``squeue --format=%i|%T|%S|%N|%r``; the reason may hold the separator."""
    job, word, starts, nodes, reason = [*line.strip().split("|", 4), "", "", "", ""][:5]
    return job, make_status(word, reason=reason, starts=starts, nodes=nodes)


def parse_job(text: str) -> JobStatus | None:
    """``scontrol show job --oneliner``."""
    # Of a field that is there twice the last is meant (NodeList after ReqNodeList is another word, but see Reason).
    fields = dict(_FIELD.findall(text.splitlines()[0]))
    if "JobState" not in fields:
        return None
    return make_status(
        fields["JobState"],
        reason=fields.get("Reason", ""),
        starts=fields.get("StartTime", ""),
        nodes=fields.get("NodeList", ""),
        ended=fields.get("ExitCode", ""),
    )


def parse_record(text: str, job: str) -> JobStatus | None:
    """``sacct -P -o JobIDRaw,State,ExitCode,NodeList``; a job that was requeued has the last line."""
    found = None
    for line in text.splitlines():
        fields = [*line.split("|"), "", "", "", ""]
        if fields[0] == job:
            found = make_status(fields[1], nodes=fields[3], ended=fields[2])
    return found
