"""Starting a cluster with a progress bar, on terminals only."""

from __future__ import annotations

import sys

from hpcviews.cluster.cluster import Cluster


def start_showing_progress(cluster: Cluster) -> None:
    """Start it, as `Cluster.start` does."""
    if not sys.stderr.isatty():
        cluster.start()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"starting engines by {cluster.launcher}", total=cluster.n)
        cluster.start(lambda ready, wanted: progress.update(bar, completed=ready, total=wanted))
