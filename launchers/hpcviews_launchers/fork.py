"""Starter `fork`: one process imports everything once and forks the engines. The fastest start, without MPI."""

from __future__ import annotations

from hpcviews.cluster.spec import Cause, Command, Detection, EngineOrder, Host
from hpcviews.environment import MPI_PREFIXES
from hpcviews.errors import UsageError


class ForkStarter:
    """Starts engines as forks of one process on this machine."""

    name = "fork"
    reaches_nodes = False

    def detect(self, host: Host) -> Detection:
        """Usable wherever Python is."""
        return Detection(usable=True, version="fork(2) of this Python", path=host.python)

    def command(self, order: EngineOrder, detection: Detection, host: Host) -> Command:
        """The fork server with the engines' own arguments."""
        if not order.allocation.is_local:
            raise UsageError(
                "the starter fork reaches this machine only; use srun or mpiexec for engines on other nodes"
            )
        if order.options:
            raise UsageError(f"the starter fork takes no arguments of its own, got {' '.join(order.options)!r}")
        return Command(
            argv=(
                order.python, "-m", "hpcviews.engine.forkserver", *order.engine_args, "--n", str(order.n)
            ),
            # An engine that imports mpi4py must become a world of its own, not try to join the world of a job
            # step that the controller happens to run in.
            unset_prefixes=MPI_PREFIXES,
        )  # fmt: skip

    def find_cause(self, log: str) -> Cause | None:
        """Nothing beyond what any Python program says."""
        return None
