"""SLURM's allocation, as its environment tells of it, and the srun that starts engines in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from hpcviews.cluster.spec import Allocation, Command, Detection, EngineOrder, Host, Node, ProbeOutput
from hpcviews.errors import UsageError
from hpcviews_launchers.hostlists import parse_counts, parse_hostlist
from hpcviews_launchers.slurm import SlurmScheduler, find_allocation
from hpcviews_launchers.srun import SrunStarter

# Recorded with SLURM 22.05: `sbatch -N2 -n4 -c1`.
JOB = {
    "SLURM_JOB_ID": "163",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_CPUS_PER_NODE": "3,1",
    "SLURM_TASKS_PER_NODE": "3,1",
    "SLURM_NTASKS": "4",
}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3,7]", ["node1", "node2", "node3", "node7"]),
        ("gpu[01-03]", ["gpu01", "gpu02", "gpu03"]),
        ("node[1-2],gpu[08-11]", ["node1", "node2", "gpu08", "gpu09", "gpu10", "gpu11"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("a-b1,c", ["a-b1", "c"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("n[1-2]-ib", ["n1-ib", "n2-ib"]),
    ],
)
def test_hostlists(text: str, names: list[str]) -> None:
    assert parse_hostlist(text) == names


@pytest.mark.parametrize("text", ["", "n[1-3", "n1]", "n[a-b]", "n[1-]", ",", "n1,,n2", "n[[1]]", "n[0-99999999]"])
def test_what_is_no_hostlist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host"):
        parse_hostlist(text)


def test_counts_per_node() -> None:
    assert parse_counts("2(x3),1") == [2, 2, 2, 1]
    for text in ("", "2(y3)", "2(x999999999)"):
        with pytest.raises(ValueError, match=r"nodes|counts"):
            parse_counts(text)


def test_allocation_has_a_slot_per_task() -> None:
    assert find_allocation(JOB) == Allocation((Node("node1", 3, 3), Node("node2", 1, 1)), "163")


def test_allocation_without_tasks_has_a_slot_per_core() -> None:
    exclusive = {**JOB, "SLURM_JOB_CPUS_PER_NODE": "4(x2)", "SLURM_TASKS_PER_NODE": "4(x2)"}
    del exclusive["SLURM_NTASKS"]
    found = find_allocation(exclusive)
    assert found is not None and found.slots == 8


def test_allocation_with_cores_per_task_has_a_slot_per_task() -> None:
    found = find_allocation({**JOB, "SLURM_JOB_CPUS_PER_NODE": "8(x2)", "SLURM_TASKS_PER_NODE": "2(x2)"})
    assert found == Allocation((Node("node1", 2, 8), Node("node2", 2, 8)), "163")


@pytest.mark.parametrize("environment", [{}, {"SLURM_JOB_ID": "1"}, {"SLURM_JOB_NODELIST": "n1"}])
def test_outside_of_a_job_there_is_no_allocation(environment: Mapping[str, str]) -> None:
    assert find_allocation(environment) is None


@pytest.mark.parametrize(
    ("slots", "n", "counts"),
    [
        ((3, 1), 4, [3, 1]),
        ((2, 2), 2, [1, 1]),
        ((2, 2), 5, [3, 2]),
        ((4, 2), 12, [8, 4]),
        ((1, 1, 1), 2, [1, 1, 0]),
        ((3, 1), 1, [1, 0]),
    ],
)
def test_engines_are_spread_as_the_slots_are(slots: tuple[int, ...], n: int, counts: list[int]) -> None:
    assert Allocation(tuple(Node(f"n{i}", slot) for i, slot in enumerate(slots))).spread(n) == counts


# ---------------------------------------------------------------- srun


SLURM_22 = ProbeOutput(0, "slurm-wlm 22.05.8", "")


def make_host(environment: Mapping[str, str], answer: ProbeOutput = SLURM_22) -> Host:
    return Host(4, False, "/opt/python", environment, lambda name: Path("/usr/bin") / name, lambda argv: answer)


def command_of(n: int, *options: str, nodes: tuple[int, ...] = (3, 1)) -> Command:
    allocation = Allocation(tuple(Node(f"n{i}", slots) for i, slots in enumerate(nodes)), "163")
    order = EngineOrder(0, n, "/opt/python", ("--access", "/a b"), allocation, options)
    return SrunStarter().command(order, Detection(True, path="/usr/bin/srun"), make_host({}))


def test_srun_starts_one_process_per_node_that_forks() -> None:
    command = command_of(4)
    assert "--ntasks=2" in command.argv and "--ntasks-per-node=1" in command.argv and "--mpi=none" in command.argv
    assert command.argv[-6:] == ("-m", "hpcviews.engine.forkserver", "--access", "/a b", "--spread", "3,1")
    assert not command.is_world and command.survives_engine_death


@pytest.mark.parametrize(("mpi", "survives"), [("pmi2", True), ("pmix", False), ("pmix_v4", False)])
def test_srun_with_mpi_starts_one_rank_per_engine(mpi: str, survives: bool) -> None:
    command = command_of(4, f"--mpi={mpi}")
    assert "--ntasks=4" in command.argv and f"--mpi={mpi}" in command.argv and "--mpi=none" not in command.argv
    assert command.argv[-1] == "--world" and "hpcviews.engine" in command.argv
    assert command.is_world and command.survives_engine_death == survives


def test_srun_names_the_nodes_when_some_are_left_out() -> None:
    assert "--nodelist=n0,n1" in command_of(2, nodes=(1, 1, 1)).argv
    assert not any(argument.startswith("--nodelist") for argument in command_of(3, nodes=(1, 1, 1)).argv)


def test_srun_leaves_room_for_other_steps() -> None:
    assert {"--overlap", "--mem=0", "--cpu-bind=none", "--wait=0", "--kill-on-bad-exit=0"} <= set(command_of(4).argv)


def test_srun_outside_of_a_job_says_what_to_do() -> None:
    order = EngineOrder(0, 1, "python", ())
    with pytest.raises(UsageError, match="needs a SLURM allocation"):
        SrunStarter().command(order, Detection(True, path="srun"), make_host({}))
    with pytest.raises(UsageError, match="as one argument"):
        command_of(2, "--mpi", "pmix")


@pytest.mark.parametrize(
    ("log", "says", "error"),
    [
        ("srun: error: Slurm job 202 has expired\nsrun: Check SLURM_JOB_ID", "unset SLURM_JOB_ID", "NoShow"),
        ("srun: error: Invalid MPI type 'pmix', --mpi=list for", "srun --mpi=list", "MpiMismatch"),
        ("srun: error: Unable to create step for job 174: Memory required by task is not available", "--mem=0", ""),
        ("srun: error: Unable to create step for job 172: More processors requested than permitted", "More proc", ""),
        ("slurmstepd-n1: error: execve(): /opt/x y: No such file or directory", "/opt/x y does not exist", ""),
        ("srun: error: Node failure on node2", "--exclude=NODE", ""),
    ],
)
def test_causes_in_sruns_words(log: str, says: str, error: str) -> None:
    cause = SrunStarter().find_cause(log)
    assert cause is not None and says in cause.text and cause.error == (error or "NoShow")


def test_slurm_that_does_not_answer_is_not_usable() -> None:
    broken = make_host({}, ProbeOutput(1, "", "sbatch: error: x\nsbatch: fatal: Could not establish a configuration"))
    found = SlurmScheduler().detect(broken)
    assert not found.usable and "Could not establish a configuration" in found.why
    assert SlurmScheduler().detect(make_host({})).version == "SLURM 22.05.8"
