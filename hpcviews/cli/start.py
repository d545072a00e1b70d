"""``hpcviews start``: a cluster that goes on without the shell."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from hpcviews.cli import exit_codes
from hpcviews.cli.cluster_options import cluster_options, make_cluster
from hpcviews.cli.progress import start_showing_progress
from hpcviews.cluster.cluster import Cluster


@click.command()
@cluster_options
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C, and end the cluster then.")
@click.option("--quiet", is_flag=True, help="Print the cluster's name only.")
def start(foreground: bool, quiet: bool, **options: Any) -> int:
    """Start a controller and engines, and return when the engines are ready."""
    cluster = make_cluster(**options)
    # A plain SIGTERM would leave no time to say goodbye; as an exception it passes through what cleans up.
    signal.signal(signal.SIGTERM, _raise_exit)
    start_showing_progress(cluster)
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
