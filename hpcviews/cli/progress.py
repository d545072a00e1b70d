"""Starting a cluster: what its job does as lines, how many engines are there as a bar (on terminals only)."""

from __future__ import annotations

import contextlib
import sys

import click

from hpcviews.client.progress import showing
from hpcviews.cluster.cluster import Cluster

SHOWN_AFTER_S = 0.3
"""Engines of one node are there before anybody could read a bar."""


class LeftInQueue(Exception):
    """The user has pressed Ctrl-C, and wants the job to stay in the queue."""


def start_showing_progress(cluster: Cluster) -> None:
    """Start it, as `Cluster.start` does.

    Raises:
        LeftInQueue: Ctrl-C, and the job is to stay.
    """
    was_left = False

    def ask_whether_to_cancel() -> bool:
        nonlocal was_left
        was_left = sys.stdin.isatty() and not click.confirm("\nCancel the job?", default=True, err=True)
        return not was_left

    try:
        with contextlib.ExitStack() as bars:
            note = _Note(cluster, bars)
            if not cluster.submits:
                note.begin()
            cluster.start(note, lambda text: click.echo(text, err=True), ask_whether_to_cancel)
    except KeyboardInterrupt:
        if was_left:
            raise LeftInQueue from None
        raise


class _Note:
    """Is told how many engines there are. A job may wait for hours: no bar until there is something to count."""

    def __init__(self, cluster: Cluster, bars: contextlib.ExitStack):
        self._text = f"starting engines by {cluster.launcher}"
        self._numbers = 0, cluster.n
        self._bars = bars
        self._is_begun = False

    def begin(self) -> None:
        """Show the bar from now on."""
        self._is_begun = True
        bar = showing(self._text, lambda: self._numbers, after_s=SHOWN_AFTER_S, widget=False)
        self._notify = self._bars.enter_context(bar)

    def __call__(self, ready: int, wanted: int) -> None:
        self._numbers = ready, wanted
        if not self._is_begun:
            self.begin()
        self._notify()
