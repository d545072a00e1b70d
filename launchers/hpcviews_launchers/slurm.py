"""Scheduler `slurm`: the allocation this process is in, and asking for one by sbatch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hpcviews.cluster.batch import JobOrder, JobStatus, render_walltime
from hpcviews.cluster.spec import Allocation, Cause, Detection, Host, Node, ProbeOutput
from hpcviews.errors import PollFailed, SubmitRefused
from hpcviews_launchers.hostlists import parse_counts, parse_hostlist
from hpcviews_launchers.job_script import check_line, quote_directive, render_body
from hpcviews_launchers.slurm_states import parse_job, parse_record, parse_row


class SlurmScheduler:
    """SLURM, from 20.11 on."""

    name = "slurm"
    default_starter = "srun"

    def detect(self, host: Host) -> Detection:
        """Usable where sbatch is installed and finds its configuration."""
        return detect_program(host, "sbatch")

    def allocation(self, host: Host) -> Allocation | None:
        """The nodes of the job, from its environment."""
        return find_allocation(host.environment)

    def render(self, order: JobOrder) -> str:
        """An sbatch script."""
        options = _render_options(order)
        lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options)]
        lines += [f"#SBATCH {directive}" for directive in order.request.directives]
        return "\n".join([*lines, *render_body(order)]) + "\n"

    def submit_argv(self, script: str) -> Sequence[str]:
        """--parsable prints the id alone."""
        return ("sbatch", "--parsable", script)

    def parse_submit(self, answer: ProbeOutput) -> str:
        """``ID`` or ``ID;CLUSTER``, on the last line."""
        line = next(reversed(answer.out.split()), "")
        job = line.split(";")[0]
        if answer.code == 0 and job.isdigit():
            return job
        said = answer.err.strip() or answer.out.strip() or "nothing"
        hint = next((text for pattern, text in _REFUSALS if re.search(pattern, said)), "")
        raise SubmitRefused(f"sbatch does not take the job: {said}" + (f"\n{hint}" if hint else ""))

    def validate_argv(self, script: str) -> Sequence[str]:
        """--test-only makes no job."""
        return ("sbatch", "--test-only", script)

    def find_argv(self, name: str) -> Sequence[str]:
        """By name."""
        return ("squeue", "--noheader", "--me", f"--name={name}", "--format=%i")

    def parse_find(self, answer: ProbeOutput) -> list[str]:
        """One id a line."""
        return answer.out.split() if answer.code == 0 else []

    def status_argv(self, ids: Sequence[str]) -> Sequence[str]:
        """-t all: also those that ended in the last minutes. The reason is last, because it may hold anything."""
        return ("squeue", "--noheader", "--states=all", f"--jobs={','.join(ids)}", "--format=%i|%T|%S|%N|%r")

    def parse_status(self, answer: ProbeOutput, ids: Sequence[str]) -> Mapping[str, JobStatus]:
        """Rows of squeue. It exits with 1 when a single job is asked for and not known any more."""
        if answer.code != 0 and "Invalid job id" not in answer.err:
            raise PollFailed(f"squeue fails: {answer.err.strip() or 'it says nothing'}")
        rows = [parse_row(line) for line in answer.out.splitlines() if line.strip()]
        return {job: status for job, status in rows if job in ids}

    def history_argv(self, job: str) -> Sequence[Sequence[str]]:
        """scontrol knows the exit code for some minutes, sacct for ever where there is a database."""
        return (
            ("scontrol", "show", "job", "--oneliner", job),
            ("sacct", "-X", "-n", "-P", "-j", job, "-o", "JobIDRaw,State,ExitCode,NodeList"),
        )

    def parse_history(self, answer: ProbeOutput, job: str) -> JobStatus | None:
        """Either of them."""
        if answer.code != 0 or not answer.out.strip():
            return None
        return parse_job(answer.out) if answer.out.startswith("JobId=") else parse_record(answer.out, job)

    def cancel_argv(self, ids: Sequence[str]) -> Sequence[str]:
        """It is silent about jobs that have ended."""
        return ("scancel", *ids)

    def parse_cancel(self, answer: ProbeOutput) -> str:
        """It exits with 0, also for unknown jobs."""
        return "" if answer.code == 0 else answer.err.strip() or "scancel does not answer"

    def find_job_cause(self, log: str) -> Cause | None:
        """What slurmstepd writes into a job's output."""
        for pattern, text in _CAUSES:
            match = re.search(pattern, log)
            if match:
                return Cause(match.expand(text))
        return None


def _render_options(order: JobOrder) -> list[str]:
    request = order.request
    values = {
        "--job-name": order.name,
        # % begins a field there
        "--output": order.log.replace("%", "%%"),
        "--open-mode": "append",
        "--nodes": request.nodes,
        "--ntasks": order.n,
        "--ntasks-per-node": request.engines_per_node,
        "--cpus-per-task": request.cpus_per_engine,
        "--gpus-per-task": request.gpus_per_engine,
        "--mem": request.mem,
        "--time": render_walltime(request.walltime_s) if request.walltime_s is not None else None,
        "--partition": request.queue,
        "--account": request.account,
        "--qos": request.qos,
        "--constraint": request.constraint,
        "--reservation": request.reservation,
        "--exclude": request.exclude,
        "--nodelist": request.nodelist,
        "--dependency": request.dependency,
    }
    options = [
        f"{name}={quote_directive(check_line(name, str(value)))}"
        for name, value in values.items()
        if value is not None and name not in request.skip
    ]
    if "--no-requeue" not in request.skip:
        # Engines' state is lost with the job; the same script once more would find its cluster's record retired.
        options.append("--no-requeue")
    return options


_REFUSALS = (
    (r"[Ii]nvalid partition", "`sinfo -s` lists the partitions; choose one with --queue"),
    (r"Invalid account|account/partition combination", "`sacctmgr show assoc user=$USER` lists yours: --account"),
    (r"Invalid qos", "`sacctmgr show qos` lists them: --qos"),
    (r"time limit|Invalid --time", "`sinfo -o '%P %l'` shows the longest time of each partition: --time"),
    (r"Memory specification|node configuration is not available", "`sinfo -o '%P %c %m'` shows what nodes have"),
    (r"Invalid feature", "`sinfo -o '%P %f'` lists the features: --constraint"),
    (r"reservation", "`scontrol show reservation` lists them: --reservation"),
    (r"gres", "`sinfo -o '%P %G'` shows which nodes have GPUs"),
    (r"dependency", "write it as afterok:JOBID: --dependency"),
    (r"Unable to contact slurm|Socket timed out|no answer within", "`scontrol ping` tells when SLURM is back"),
    (r"sbatch: No such file", "sbatch is not on PATH: load SLURM's module, or use --launcher local"),
)  # fmt: skip

_CAUSES = (
    (r"execve\(\): bad interpreter\(([^)]*)\)", r"there is no \1 on the node"),
    (r"couldn't chdir to `([^']*)'", r"the directory \1 does not exist on the node: start in one that all nodes see"),
    (r"oom[-_ ]kill|Exceeded job memory limit|Out Of Memory", "memory ran out: ask for more with --mem"),
    (r"CANCELLED AT \S+ DUE TO TIME LIMIT", "the time limit was reached: ask for more with --time"),
    (r"CANCELLED AT \S+ DUE TO NODE FAIL\w*", "a node failed: start again"),
)


def detect_program(host: Host, name: str) -> Detection:
    """Whether one of SLURM's commands can be used here."""
    found = host.which(name)
    if found is None:
        return Detection(usable=False, why=f"no {name} on PATH: SLURM is not installed here, or its module not loaded")
    answer = host.run((str(found), "--version"))
    if answer.code != 0 or not answer.out.strip():
        said = next((line for line in reversed(answer.err.splitlines()) if line.strip()), "no answer")
        return Detection(usable=False, path=str(found), why=f"`{found} --version` fails: {said.strip()[:200]}")
    version = answer.out.split()[-1]
    return Detection(usable=True, version=f"SLURM {version}", path=str(found), facts={"version": version})


def find_allocation(environment: Mapping[str, str]) -> Allocation | None:
    """What SLURM_* says of the job that this process is in; None outside of one.

    Slots are tasks where the user has named a number of tasks, and cores elsewhere: `sbatch -N 2 --exclusive` has
    one "task" per core in SLURM_TASKS_PER_NODE, but no SLURM_NTASKS.
    """
    job = environment.get("SLURM_JOB_ID", "")
    nodelist = environment.get("SLURM_JOB_NODELIST", "")
    if not job or not nodelist:
        return None
    names = parse_hostlist(nodelist)
    cores = _get_counts(environment, "SLURM_JOB_CPUS_PER_NODE", len(names))
    has_tasks = any(name in environment for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"))
    tasks = _get_counts(environment, "SLURM_TASKS_PER_NODE", len(names)) if has_tasks else None
    slots = tasks or cores or [1] * len(names)
    nodes = [
        Node(name, slots=slot, cores=core)
        for name, slot, core in zip(names, slots, cores or [0] * len(names), strict=True)
    ]
    return Allocation(tuple(nodes), job)


def _get_counts(environment: Mapping[str, str], name: str, n: int) -> list[int] | None:
    """Counts per node; None when they are not there, or are of something else (a job step's environment)."""
    try:
        counts = parse_counts(environment.get(name, ""))
    except ValueError:
        return None
    return counts if len(counts) == n else None
