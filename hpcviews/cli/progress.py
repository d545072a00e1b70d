"""Starting a cluster with a progress bar, on terminals only."""

from __future__ import annotations

from hpcviews.client.progress import showing
from hpcviews.cluster.cluster import Cluster

SHOWN_AFTER_S = 0.3
"""Engines of one node are there before anybody could read a bar."""


def start_showing_progress(cluster: Cluster) -> None:
    """Start it, as `Cluster.start` does."""
    numbers = 0, cluster.n
    text = f"starting engines by {cluster.launcher}"
    with showing(text, lambda: numbers, after_s=SHOWN_AFTER_S, widget=False) as notify:

        def note(ready: int, wanted: int) -> None:
            nonlocal numbers
            numbers = ready, wanted
            notify()

        cluster.start(note)
