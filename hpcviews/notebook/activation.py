"""Which magics exist in this IPython, and for which view."""

from __future__ import annotations

from typing import Any

from hpcviews.client.client import Client
from hpcviews.client.direct_view import DirectView
from hpcviews.client.screen import find_shell
from hpcviews.errors import HpcviewsError
from hpcviews.notebook.magics import ParallelMagics

_active: dict[str, ParallelMagics] = {}
"""Magics by their suffix. There is one shell in a process."""


def activate_magics(view: DirectView, suffix: str = "") -> ParallelMagics:
    """Define ``%px<suffix>``, ``%%px<suffix>``, ``%autopx<suffix>``, … in this IPython for a view.

    They replace those of the same suffix.

    Raises:
        RuntimeError: This is not IPython.
    """
    shell = find_shell()
    if shell is None:
        raise RuntimeError("there is no IPython here to define magics in")
    before = _active.get(suffix)
    if before is not None:
        before.disable_autopx()
    magics = _active[suffix] = ParallelMagics(shell, view, suffix)
    magics.register()
    return magics


def activate_first(client: Client) -> None:
    """A client was made in IPython: ``%px`` is for all of its engines, unless it is for others that can be used."""
    shell = find_shell()
    if shell is None:
        return
    before = _active.get("")
    if before is None:
        is_free = shell.find_line_magic("px") is None
    else:
        is_free = before.is_automatic and not _is_usable(before)
    if is_free:
        activate_magics(client.direct_view("all", block=True)).is_automatic = True


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext hpcviews``: connect to the cluster that `hpcviews.Client()` finds, if no client has defined ``%px``.

    Raises:
        NoCluster: There is no such cluster.
    """
    if "" not in _active or not _is_usable(_active[""]):
        client = Client()  # which defines it, if nobody else has
        if "" not in _active or _active[""].view.client is not client:
            activate_magics(client.direct_view("all", block=True)).is_automatic = True


def _is_usable(magics: ParallelMagics) -> bool:
    try:
        magics.view.client._connection.check_usable()
    except HpcviewsError:
        return False
    return True
