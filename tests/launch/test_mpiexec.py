"""The starter `mpiexec` with the real Open MPI, MPICH and Intel MPI; more ranks than cores, as whoever runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from rig import SOURCES, Rig

from hpcviews.procfs import read_all_stats
from hpcviews.testing.wait import wait_until

N = 4
MPI_VENVS = [Path(part) for part in os.environ.get("HPCVIEWS_TEST_MPI_VENVS", "").split(":") if part]

# A program that only this make brings along.
MAKES = {"ompi_info": "openmpi", "mpichversion": "mpich", "impi_info": "impi"}


def find_make(python: str) -> str:
    (make,) = [make for program, make in MAKES.items() if (Path(python).parent / program).exists()]
    return make


DETECT = """
import json
from hpcviews.cluster.plugins import detect_all
from hpcviews.cluster.processes import get_host
for report in detect_all(get_host()):
    if report.name == "mpiexec":
        print(json.dumps([report.detection.usable, report.detection.version, report.detection.path]))
"""


def test_real_mpiexec_is_detected_beside_its_python(mpi_python: str) -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, SOURCES)), "PATH": "/usr/bin:/bin"}
    told = subprocess.run([mpi_python, "-c", DETECT], capture_output=True, text=True, timeout=60, env=environment)
    assert told.returncode == 0, told.stderr
    usable, version, path = json.loads(told.stdout)
    assert usable and path == str(Path(mpi_python).parent / "mpiexec")
    assert re.match(
        {"openmpi": r"Open MPI 5\.", "mpich": r"MPICH \d", "impi": r"Intel MPI 20\d\d\."}[find_make(mpi_python)],
        version,
    )


def test_engines_are_one_world_with_ids_in_rank_order(rig: Rig, mpi_python: str) -> None:
    rig.start_ready(N, "mpiexec", python=mpi_python)
    seen = {i: (e.index, e.rank, e.world_size, e.local_rank) for i, e in rig.engines.items()}
    assert seen == {i: (i, i, N, i) for i in range(N)}
    assert all(e.mpi for e in rig.engines.values())
    code = "from mpi4py import MPI\nMPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank)"
    assert rig.run(code, *range(N)) == ["6"] * N
    affinity = rig.run("import os\nlen(os.sched_getaffinity(0))", *range(N))
    assert affinity == [str(len(os.sched_getaffinity(0)))] * N  # nobody is bound to a core
    rig.stop()
    assert rig.find_left() == []


def test_world_that_is_used_ends_cleanly_and_fast(rig: Rig, mpi_python: str) -> None:
    rig.start_ready(2, "mpiexec", python=mpi_python)
    rig.stop()
    over = rig.read_log()
    assert "engine set 0: ended" in over and "killing it" not in over
    assert not (rig.directory / "scratch" / "set-0").exists()


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "os._exit(3)", "os._exit(0)", "os.abort()"])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_dying_leaves_the_others_alive(rig: Rig, mpi_python: str, how: str, rank: int) -> None:
    rig.start_ready(3, "mpiexec", python=mpi_python)
    # The communicator is in use before, so there is something that could break.
    others = [i for i in range(3) if i != rank]
    rig.run("from mpi4py import MPI\nMPI.COMM_WORLD.barrier()", 0, 1, 2)
    rig.execute(f"import os; {how}", rank)
    rig.pump_until(lambda: rank in rig.lost, 1.0, "its loss within a second")
    assert rig.run("import time\ntime.sleep(1.5)\n6 * 7", *others) == ["42", "42"]
    assert rig.lost.keys() == {rank} and rig.set is not None and rig.set.state == "degraded"
    rig.stop()
    assert rig.find_left() == []


def test_all_ranks_dying_ends_the_set(rig: Rig, mpi_python: str) -> None:
    rig.start_ready(2, "mpiexec", python=mpi_python)
    rig.execute("import os; os._exit(3)", 0, 1)
    over = rig.wait_over(15)
    assert over.state == "failed" and over.why.startswith("mpiexec ended: ")


def test_killed_mpiexec_takes_everything_along(rig: Rig, mpi_python: str) -> None:
    before = find_topology_files()
    rig.start_ready(3, "mpiexec", python=mpi_python)
    os.kill(rig.find_starter(), signal.SIGKILL)
    over = rig.wait_over(15)
    assert over.state == "failed" and over.why.startswith("mpiexec ended: killed by SIGKILL")
    assert rig.find_descendants() == [] and rig.find_left() == []
    # Files there do not say whose they are: if somebody else's MPICH runs here meanwhile, it cannot be told.
    left = [path for path in find_topology_files() - before if path.exists()]
    assert left == [] or is_somebody_elses_hydra_there()


def find_topology_files() -> set[Path]:
    """What MPICH's mpiexec writes for its ranks, and may leave behind when it is killed."""
    return set(Path("/tmp").glob("hydra_hwloc_xmlfile_*"))


def is_somebody_elses_hydra_there() -> bool:
    names = (Path(f"/proc/{pid}/comm") for pid in read_all_stats())
    return any(path.exists() and path.read_text().strip() == "hydra_pmi_proxy" for path in names)


def test_sigterm_to_mpiexec_ends_the_set(rig: Rig, mpi_python: str) -> None:
    rig.start_ready(2, "mpiexec", python=mpi_python)
    os.kill(rig.find_starter(), signal.SIGTERM)
    over = rig.wait_over(20)
    assert over.state == "failed" and rig.find_left() == []


def test_stopped_rank_does_not_keep_the_cluster_from_ending(rig: Rig, mpi_python: str) -> None:
    rig.start_ready(2, "mpiexec", python=mpi_python)
    os.kill(rig.engines[1].pid, signal.SIGSTOP)
    rig.stop()
    assert rig.find_left() == []


def test_killed_controller_ends_all_ranks(rig: Rig, mpi_python: str) -> None:
    rig.start_ready(2, "mpiexec", python=mpi_python)
    os.kill(rig.pid, signal.SIGKILL)
    wait_until(lambda: not rig.find_left(), 30, "the end of all")


def test_argument_that_mpiexec_does_not_know_is_a_named_failure(rig: Rig, mpi_python: str) -> None:
    rig.start(2, "mpiexec", "--nonsense", python=mpi_python)
    rig.connect()
    over = rig.wait_over(15)
    assert over.error == "NoShow" and "does not know the argument" in over.why and "nonsense" in over.why


def test_mpi4py_of_another_make_is_refused_before_anything_starts(rig: Rig, mpi_python: str) -> None:
    """The engines' mpi4py loads the library of another make, as a module of the site may make it do."""
    # MPICH's and Intel's mpiexec start each other's ranks, Open MPI's starts neither's.
    is_open_mpi = find_make(mpi_python) == "openmpi"
    other = next((v for v in MPI_VENVS if (find_make(str(v / "bin/python")) == "openmpi") != is_open_mpi), None)
    assert other is not None, "the environments for MPI tests must contain Open MPI and another"
    library = find_library(other)
    process = rig.start(
        2, "mpiexec", python=mpi_python, MPI4PY_LIBMPI=str(library), LD_LIBRARY_PATH=str(library.parent)
    )
    assert process.wait(30) == 1
    told = rig.read_log()
    assert "LauncherUnavailable" in told and "a world of its own" in told and 'pip install "hpcviews[' in told
    assert not (rig.logs / "set-0.log").exists()


def find_library(venv: Path) -> Path:
    """Where mpi4py in that environment finds its MPI."""
    code = """
import re, mpi4py
mpi4py.rc(initialize=False, finalize=False)
from mpi4py import MPI
print(re.findall(r" (/\\S*/libmpi\\S*)", open("/proc/self/maps").read())[0])
"""
    return Path(
        subprocess.run([venv / "bin/python", "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    )


def test_inherited_world_of_an_outer_mpiexec_is_left_out(rig: Rig, mpi_python: str) -> None:
    """The controller as a rank of somebody's world: its variables would break the inner mpiexec."""
    outer = {
        "PMI_RANK": "0", "PMI_SIZE": "7", "PMI_FD": "55", "PMIX_RANK": "3", "PMIX_NAMESPACE": "outer@1",
        "PMIX_SERVER_URI41": "outer@0.0;tcp4://127.0.0.1:1", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "9",
        "HYDI_CONTROL_FD": "56", "SLURM_JOB_ID": "77", "SLURM_NODELIST": "elsewhere", "SLURM_NNODES": "1",
        "PBS_NODEFILE": "/nonexistent", "PBS_JOBID": "8.server", "PBS_ENVIRONMENT": "PBS_BATCH",
    }  # fmt: skip
    rig.start_ready(2, "mpiexec", python=mpi_python, **outer)
    assert [e.world_size for e in rig.engines.values()] == [2, 2]
