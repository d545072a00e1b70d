"""Scheduler `slurm`: the allocation this process is in."""

from __future__ import annotations

from collections.abc import Mapping

from hpcviews.cluster.spec import Allocation, Detection, Host, Node
from hpcviews_launchers.hostlists import parse_counts, parse_hostlist


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
