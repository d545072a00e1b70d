"""``hpcviews run``: a cluster for one script, gone when the script is."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcviews import environment
from hpcviews.cli import exit_codes
from hpcviews.cli.cluster_options import cluster_options, make_cluster
from hpcviews.cli.progress import start_showing_progress
from hpcviews.errors import UsageError

if TYPE_CHECKING:
    from hpcviews.cluster.processes import Child

END_GRACE_S = 10.0
"""What a script gets to end after Ctrl-C or SIGTERM, before it is killed. Batch systems give 30 s for everything."""

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@cluster_options
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is the name of a module, as for `python -m`.")
@click.option("-c", "as_code", is_flag=True, help="SCRIPT is the program itself, as for `python -c`.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(as_module: bool, as_code: bool, script: str, args: tuple[str, ...], **options: Any) -> int:
    """Start a cluster, run SCRIPT with it, and end the cluster.

    The script is run unchanged, as `python SCRIPT ARGS`; hpcviews.Client() in it finds the cluster. Whatever
    happens, nothing of the cluster is left. Ends with the script's exit code, 128+N when signal N killed it.
    """
    argv, path = make_script_argv(script, args, as_module, as_code)
    cluster = make_cluster(**options, path=[path])
    watch = SignalWatch()
    try:
        # Until the script runs, a signal is an exception that takes down what has been started.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _raise_exit)
        start_showing_progress(cluster)
        watch.begin()
        code, said = run_script(argv, cluster.name, watch)
        if said:
            click.echo(f"hpcviews: {script if not as_code else 'the program'} was {said}", err=True)
        return code
    finally:
        cluster.stop()


def make_script_argv(script: str, args: tuple[str, ...], as_module: bool, as_code: bool) -> tuple[list[str], str]:
    """The command of the script, and the directory that its own modules are imported from.

    Raises:
        UsageError: There is no such script.
    """
    if as_module and as_code:
        raise UsageError("give -m or -c, not both")
    if as_module or as_code:
        return [sys.executable, "-m" if as_module else "-c", script, *args], str(Path.cwd())
    if script == "-":
        return [sys.executable, script, *args], str(Path.cwd())
    if not Path(script).exists():
        raise UsageError(f"no script {script!r} in {Path.cwd()}")
    if not os.access(script, os.R_OK):
        raise UsageError(f"the script {script!r} may not be read")
    resolved = Path(script).resolve()
    # A directory or zip file with a __main__.py is itself what modules are imported from.
    is_archive = resolved.is_dir() or resolved.suffix in (".zip", ".pyz")
    return [sys.executable, script, *args], str(resolved if is_archive else resolved.parent)


class SignalWatch:
    """Turns signals into something to wait for, together with the script's end."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def begin(self) -> None:
        """From now on signals do nothing but make `fileno` readable."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in ENDING_SIGNALS:
            signal.signal(number, lambda *_: None)

    def fileno(self) -> int:
        """Readable when signals came."""
        return self._reader

    def take(self) -> list[int]:
        """Signals that came since the last call."""
        with contextlib.suppress(BlockingIOError):
            return [number for number in os.read(self._reader, 64) if number in ENDING_SIGNALS]
        return []


def run_script(argv: list[str], cluster: str, watch: SignalWatch) -> tuple[int, str]:
    """Run the script with our own stdin, stdout and stderr; our exit code, and what killed it ("" if nothing)."""
    from hpcviews import records
    from hpcviews.cluster.processes import spawn
    from hpcviews.exits import render_exit

    variables = environment.advise_huge_pages(environment.get_environment())
    variables[environment.CLUSTER_VARIABLE] = cluster
    variables[environment.HOME_VARIABLE] = str(records.open_home())
    # In the foreground of a terminal it is in our process group: it can read from there, and gets the Ctrl-C itself.
    # Elsewhere it has its own, and gets signals from us: one that was sent to our group would reach it twice.
    has_terminal = _is_in_foreground()
    child = spawn(
        argv, environment=variables, new_session=False, die_with_parent=signal.SIGKILL, own_group=not has_terminal
    )
    try:
        code, number = _wait(child, watch, has_terminal)
    finally:
        child.signal(signal.SIGKILL)
        child.wait()
        child.close()
    if code >= 0:
        return code, ""
    if number and code == -signal.SIGKILL:
        return exit_codes.SIGNAL_BASE + number, ""  # we killed it, because it did not end by that
    return exit_codes.SIGNAL_BASE - code, "" if code == -signal.SIGINT else render_exit(code)


def _wait(child: Child, watch: SignalWatch, has_terminal: bool) -> tuple[int, int]:
    """How the script ended, and the first signal that asked for it (0: none)."""
    poller = select.poll()
    poller.register(child.fileno(), select.POLLIN)
    poller.register(watch.fileno(), select.POLLIN)
    first = 0
    deadline: float | None = None
    while True:
        # Signals first: one that ended both of us has come when the script's end is seen.
        for number in watch.take():
            if first:
                child.signal(signal.SIGKILL)  # the second Ctrl-C of somebody who means it
            elif number != signal.SIGINT or not has_terminal:
                child.signal_group(number)
            first = first or number
            deadline = deadline or time.monotonic() + END_GRACE_S
        code = child.poll()
        if code is not None:
            return code, first
        if deadline is not None and time.monotonic() >= deadline:
            child.signal(signal.SIGKILL)
        rest_ms = None if deadline is None else max(10.0, (deadline - time.monotonic()) * 1000)
        poller.poll(rest_ms)


def _is_in_foreground() -> bool:
    """Whether a Ctrl-C of the terminal goes to our process group, the script included."""
    try:
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)


def _raise_exit(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # cleaning up has begun; once is enough
    sys.exit(exit_codes.SIGNAL_BASE + number)
