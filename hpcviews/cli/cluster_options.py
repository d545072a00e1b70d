"""The options of commands that start a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from hpcviews.cli.job_options import job_options, take_request
from hpcviews.cluster.cluster import START_TIMEOUT_S, Cluster

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "-n", "--n", "n", type=int, metavar="N",
        help="Number of engines.  [default: one per core of this machine; in a batch job one per task]",
    ),
    click.option(
        "-l", "--launcher", metavar="L",
        help="What starts the engines; `hpcviews launchers` lists what works here.  "
        "[default: local; in a batch job that job's, on all its nodes]",
    ),
    click.option("--name", metavar="NAME", help="Name of the cluster.  [default: a name is made up]"),
    click.option(
        "--interface", metavar="IF",
        help="Network interface or address that the controller listens on, or `all`.  "
        "[default: this machine only if all engines are on it, else all]",
    ),
    click.option(
        "--launcher-arg", "options", multiple=True, metavar="ARG",
        help="Argument for the launcher's program, as it is; may be given several times "
        "(--launcher-arg=--hostfile --launcher-arg=nodes.txt).",
    ),
    click.option(
        "--timeout", type=float, default=START_TIMEOUT_S, show_default=True, metavar="S",
        help="Seconds to wait until all engines are ready.",
    ),
)  # fmt: skip


def cluster_options(command: F) -> F:
    """Give a command the options; they arrive as the arguments of `make_cluster`."""
    command = job_options(command)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_cluster(
    n: int | None,
    launcher: str | None,
    name: str | None,
    interface: str | None,
    options: tuple[str, ...],
    timeout: float,
    path: Iterable[str] = (),
    **job: Any,
) -> Cluster:
    """The cluster that was asked for; nothing is started."""
    request = take_request(job)
    return Cluster(
        n, launcher, name=name, interface=interface, options=options, timeout=timeout, path=path, job=request
    )
