"""The only file that reads the environment: what hpcviews takes from it, and what it keeps out of children."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

CLUSTER_VARIABLE = "HPCVIEWS_CLUSTER"
"""Name of the cluster that `hpcviews.Client()` connects to; `hpcviews run` sets it for the script."""

HOME_VARIABLE = "HPCVIEWS_HOME"
"""Where the records of clusters are kept."""

DEBUG_VARIABLE = "HPCVIEWS_DEBUG"
"""Set to 1: the controller checks its invariants after every event, and logs more."""

NONINTERACTIVE_VARIABLE = "HPCVIEWS_NONINTERACTIVE"
"""Set to 1: no progress bars, and nothing shown live, also in terminals and notebooks."""

# What a batch system or an MPI starter tells its children. Passed on to a nested mpiexec it would make it believe
# it is inside somebody else's job: wrong host lists, wrong binding, ranks that join the outer world.
SCHEDULER_PREFIXES = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_")
SCHEDULER_KEEP = ("SLURM_CONF",)
"""Not of a job: where the site's configuration is, often set by a module."""

MPI_PREFIXES = ("PMI", "PMIX_", "OMPI_", "PRTE_", "HYDRA_", "HYDI_", "I_MPI_HYDRA", "MPI_LOCAL", "PALS_")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Thread counts of the numerical libraries; n engines on one node must share its cores."""


def get_environment() -> dict[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)


def advise_huge_pages(variables: dict[str, str]) -> dict[str, str]:
    """The environment for a process that is to receive big arrays.

    Fresh memory costs a page fault per page. With glibc's tunable, malloc asks for 2 MB pages instead of 4 KB ones for
    big blocks, as numpy does for its own arrays; libzmq's frames then arrive 2 to 2.6 times faster (256 MB to 4
    engines: 0.29 s instead of 0.67 s). glibc reads it when a process starts, so it must come by the environment.
    The user's own setting wins; other C libraries take no notice.
    """
    tunables = variables.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" not in tunables:
        tunables = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    return {**variables, "GLIBC_TUNABLES": tunables}


def find_cluster_name() -> str | None:
    """The cluster named by the environment, or None."""
    return os.environ.get(CLUSTER_VARIABLE) or None


def is_debug() -> bool:
    """Whether debugging was asked for."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def is_noninteractive() -> bool:
    """Whether nobody is to be shown how things go on."""
    return os.environ.get(NONINTERACTIVE_VARIABLE, "") not in ("", "0")


def get_home() -> Path:
    """Directory of all cluster records: $HPCVIEWS_HOME, else the XDG state directory.

    It must be on a file system that all nodes of a cluster see.
    """
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME")
    base = Path(state) if state and Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "hpcviews"


def set_default_matplotlib_backend(backend: str) -> None:
    """What matplotlib is to draw with when it is imported, unless the user has said."""
    os.environ.setdefault("MPLBACKEND", backend)


def scrub(environment: Mapping[str, str], prefixes: tuple[str, ...], keep: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment without the variables that begin with one of `prefixes`, but with those named in `keep`."""
    return {k: v for k, v in environment.items() if k in keep or not k.startswith(prefixes)}


def find_node_index() -> int | None:
    """Which node of its job step this process is on, from 0, where a batch system's starter says so."""
    for name in ("SLURM_NODEID", "PBS_NODENUM"):
        if name in os.environ:
            return int(os.environ[name])
    return None


def find_mpi_rank() -> tuple[int, int] | None:
    """Rank and local rank that an MPI starter gave this process; None outside of one.

    SLURM_PROCID is not asked: under mpiexec it is the number of the daemon, not of the rank.
    """
    for rank, local in (
        ("PMIX_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_RANK", "MPI_LOCALRANKID"),
        ("PALS_RANKID", "PALS_LOCAL_RANKID"),
    ):
        if rank in os.environ:
            # Under srun there is no mpiexec that could tell the local rank, but SLURM itself does.
            return int(os.environ[rank]), int(os.environ.get(local) or os.environ.get("SLURM_LOCALID", "0"))
    return None
