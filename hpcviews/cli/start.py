"""``hpcviews start``: a cluster that goes on without the shell."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from hpcviews.cli import exit_codes
from hpcviews.cli.cluster_options import cluster_options, make_cluster
from hpcviews.cli.progress import LeftInQueue, start_showing_progress
from hpcviews.cluster.cluster import Cluster


@click.command()
@cluster_options
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C, and end the cluster then.")
@click.option("--quiet", is_flag=True, help="Print the cluster's name only.")
@click.option("--dry-run", is_flag=True, help="Print the script of the job that would be submitted, and do nothing.")
@click.option("--validate", is_flag=True, help="Ask the batch system whether it would take the job, and do nothing.")
def start(foreground: bool, quiet: bool, dry_run: bool, validate: bool, **options: Any) -> int:
    """Start a controller and engines, and return when the engines are ready.

    On a login node, with the launcher of a batch system, they are started by a job of their own.
    """
    cluster = make_cluster(**options)
    if dry_run or validate:
        click.echo(cluster.validate_job() if validate else cluster.render_job(), nl=validate)
        return exit_codes.OK
    # A plain SIGTERM would leave no time to say goodbye; as an exception it passes through what cleans up.
    signal.signal(signal.SIGTERM, _raise_exit)
    try:
        start_showing_progress(cluster)
    except LeftInQueue:
        click.echo(f"left in the queue: `hpcviews status {cluster.name}`, `hpcviews stop {cluster.name}`", err=True)
        return exit_codes.OK
    if foreground:
        return _stay(cluster, quiet)
    _tell(cluster, quiet, foreground)
    cluster.detach()
    return exit_codes.OK


def _tell(cluster: Cluster, quiet: bool, foreground: bool) -> None:
    click.echo(cluster.name if quiet else describe(cluster, foreground))
    sys.stdout.flush()


def describe(cluster: Cluster, foreground: bool) -> str:
    """What to do with a cluster that has just been started."""
    engines = "1 engine" if cluster.n == 1 else f"{cluster.n} engines"
    end = "Ctrl-C" if foreground else f"hpcviews stop {cluster.name}"
    return (
        f"cluster {cluster.name} is ready: {engines} by {cluster.launcher}\n"
        f'  connect  rc = hpcviews.Client("{cluster.name}")\n'
        f"  watch    hpcviews status {cluster.name}\n"
        f"  end      {end}"
    )


def _stay(cluster: Cluster, quiet: bool) -> int:
    try:
        # Inside: who reads that it is ready may press Ctrl-C at once.
        _tell(cluster, quiet, True)
        cluster.wait()
    except KeyboardInterrupt:
        click.echo("stopping", err=True)
    finally:
        cluster.stop()
    return exit_codes.OK


def _raise_exit(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # cleaning up has begun; once is enough
    sys.exit(exit_codes.SIGNAL_BASE + number)
