"""Scheduler `local`: this machine is the allocation."""

from __future__ import annotations

from hpcviews.cluster.spec import Allocation, Detection, Host


class LocalScheduler:
    """Asks nobody: engines run where the controller does."""

    name = "local"
    default_starter = "fork"

    def detect(self, host: Host) -> Detection:
        """Always usable."""
        return Detection(usable=True, version=f"this machine, {host.cores} cores")

    def allocation(self, host: Host) -> Allocation | None:
        """This machine."""
        return Allocation()
