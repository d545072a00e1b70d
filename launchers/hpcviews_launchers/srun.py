"""Starter `srun`: engines on all nodes of a SLURM allocation.

Without MPI one process per node imports everything and forks that node's engines: n imports of Python from a shared
file system would be n times the load. With ``--mpi=TYPE`` among the user's arguments each engine is a task, and all
are ranks of one world.
"""

from __future__ import annotations

import re

from hpcviews.cluster.spec import Cause, Command, Detection, EngineOrder, Host
from hpcviews.environment import MPI_PREFIXES, SCHEDULER_PREFIXES
from hpcviews.errors import UsageError
from hpcviews_launchers.slurm import detect_program

KEPT = (
    "SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NUM_NODES",
    "SLURM_NNODES", "SLURM_JOB_CPUS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_CLUSTER_NAME",
    "SLURM_WORKING_CLUSTER", "SLURM_NODE_ALIASES", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_SUBMIT_DIR",
    "SLURM_SUBMIT_HOST", "SLURM_JOB_USER", "SLURM_JOB_UID", "SLURM_JOB_END_TIME", "SLURM_JOB_START_TIME",
    "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_GPUS", "SLURM_TOPOLOGY_ADDR",
)  # fmt: skip
"""What tells which job this is. All other SLURM_* are options of srun's by another name (SLURM_CPU_BIND,
SLURM_NTASKS, SLURM_EXPORT_ENV, …), meant for the user's own steps."""

# --overlap and --mem=0: a step that takes all CPUs and memory of the job for itself keeps the next one, which may be
# the user's own or our next engine set, waiting for ever.
# --wait=0 --kill-on-bad-exit=0: an engine's end is no reason to end the others.
_FLAGS = (
    "--overlap", "--mem=0", "--cpu-bind=none", "--wait=0", "--kill-on-bad-exit=0", "--input=none", "--export=ALL",
)  # fmt: skip

_MPI = "--mpi="
_NO_MPI = "none"


class SrunStarter:
    """Starts engines by one srun."""

    name = "srun"
    reaches_nodes = True

    def detect(self, host: Host) -> Detection:
        """Usable where srun is installed and finds its configuration."""
        return detect_program(host, "srun")

    def command(self, order: EngineOrder, detection: Detection, host: Host) -> Command:
        """srun with one task per node that forks, or with one task per engine where they are MPI ranks."""
        allocation = order.allocation
        if allocation.is_local:
            raise UsageError("the starter srun needs a SLURM allocation; inside a job, use --launcher slurm")
        if any(option == "--mpi" for option in order.options):
            raise UsageError("give srun's --mpi and its type as one argument, e.g. --launcher-arg=--mpi=pmix")
        mpi = next((o.removeprefix(_MPI) for o in order.options if o.startswith(_MPI)), _NO_MPI)
        counts = [count for count in allocation.spread(order.n) if count]
        nodes = allocation.nodes[: len(counts)]
        flags = [f"--jobid={allocation.job}", f"--nodes={len(nodes)}", *_FLAGS]
        if len(nodes) < len(allocation.nodes):
            flags.append("--nodelist=" + ",".join(node.name for node in nodes))
        if mpi == _NO_MPI:
            flags += [f"--ntasks={len(nodes)}", "--ntasks-per-node=1", "--mpi=none"]
            engine = (order.python, "-m", "hpcviews.engine.forkserver", *order.engine_args)
            engine += ("--spread", ",".join(map(str, counts)))
        else:
            # --overcommit: more engines than tasks were asked for are slower, but not an error.
            flags += [f"--ntasks={order.n}", f"--ntasks-per-node={max(counts)}", "--overcommit"]
            flags += ["--distribution=block"]
            engine = (*order.engine_argv, "--world")
        return Command(
            argv=(detection.path, *flags, *order.options, *engine),
            unset_prefixes=(*SCHEDULER_PREFIXES, *MPI_PREFIXES),
            keep=KEPT,
            # PMIx ends the whole step when a rank is killed.
            survives_engine_death=not mpi.startswith("pmix"),
            is_world=mpi != _NO_MPI,
        )

    def find_cause(self, log: str) -> Cause | None:
        """What srun says when it cannot start tasks."""
        for pattern, text, error in _CAUSES:
            match = pattern.search(log)
            if match:
                return Cause(match.expand(text), error)
        return None


_CAUSES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"Slurm job (\d+) has expired|Unable to confirm allocation for job (\d+)"),
        "the job that SLURM_JOB_ID names has ended: this shell was made in a job that is over. "
        "`unset SLURM_JOB_ID` and start again, or use --launcher local",
        "NoShow",
    ),
    (
        re.compile(
            r"Invalid MPI type '([^']+)'|cannot find \w+ plugin for mpi/(\w+)|[Cc]an ?not load (PMI\w*) library"
        ),
        "this SLURM cannot start MPI ranks of that type: `srun --mpi=list` shows the types it has; "
        "MPICH and Intel MPI need pmi2, Open MPI needs pmix",
        "MpiMismatch",
    ),
    (
        re.compile(r"Memory required by task is not available|step creation temporarily disabled"),
        "another step holds all memory or all cores of the job: start it with `srun --overlap --mem=0`",
        "NoShow",
    ),
    (
        re.compile(r"Unable to create step for job \d+: (.+)"),
        r"srun cannot start a step in this job: \1",
        "NoShow",
    ),
    (
        re.compile(r"execve\(\): (.+): No such file or directory"),
        r"\1 does not exist on the nodes of the job: is it on a file system that they see?",
        "NoShow",
    ),
    (
        re.compile(r"Node failure on (\S+)|Communication connection failure"),
        "a node of the job does not answer: submit the job again, without that node (`#SBATCH --exclude=NODE`)",
        "NoShow",
    ),
    (
        re.compile(r"Unable to contact slurm controller|Socket timed out on send/recv"),
        "SLURM's controller does not answer: try again in a few minutes; `scontrol ping` tells when it is back",
        "NoShow",
    ),
)
