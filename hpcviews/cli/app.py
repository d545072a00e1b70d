"""The command ``hpcviews``: all commands together, and how errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

import hpcviews
from hpcviews import environment
from hpcviews.cli import exit_codes
from hpcviews.cli.launchers import launchers
from hpcviews.cli.logs import logs
from hpcviews.cli.run import run
from hpcviews.cli.start import start
from hpcviews.cli.status import list_, status
from hpcviews.cli.stop import stop
from hpcviews.errors import HpcviewsError
from hpcviews.wire.room import sweep_rooms

# \b keeps click from rewrapping the paragraph.
EPILOG = (
    "\b\nExit codes:\n" + exit_codes.render_table() + "\n\n\b\n"
    "`hpcviews run` ends with the script's own exit code once the script has started.\n"
    f"{environment.DEBUG_VARIABLE}=1 shows tracebacks of errors."
)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(hpcviews.__version__, prog_name="hpcviews")
def hpcviews_command() -> None:
    """Python on a cluster through views: start engines, run scripts on them, look after them."""
    with contextlib.suppress(OSError):  # no /dev/shm
        sweep_rooms()  # shared memory of clusters all of whose processes were killed


for command in (run, start, stop, status, list_, logs, launchers):
    hpcviews_command.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="hpcviews: %(message)s")
    try:
        result = hpcviews_command.main(args=argv, prog_name="hpcviews", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return exit_codes.USAGE if isinstance(error, click.UsageError) else exit_codes.FAILURE
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return exit_codes.SIGNAL_BASE + 2
    except BrokenPipeError:
        # `hpcviews logs | head`: the reader has had enough. Python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.FAILURE
    except (HpcviewsError, OSError) as error:
        _complain(str(error))
        return exit_codes.get_exit_code(error)
    except Exception as error:  # noqa: BLE001 - the top of the program
        _complain(f"a bug in hpcviews: {type(error).__name__}: {error}; {environment.DEBUG_VARIABLE}=1 shows where")
        return exit_codes.FAILURE
    return result if isinstance(result, int) else exit_codes.OK


def _complain(text: str) -> None:
    """One message on stderr, for a person."""
    if environment.is_debug():
        traceback.print_exc()
    click.echo(f"hpcviews: {text}", err=True)
