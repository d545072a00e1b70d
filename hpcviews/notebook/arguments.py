"""The options of the magics."""

from __future__ import annotations

import signal
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser

from hpcviews.client.display import GROUPINGS
from hpcviews.client.engine_control import parse_signal

TARGETS_SHOWN_MAX = 10
TARGETS_SHOWN_EACH_END = 4


def make_cell_parser(name: str) -> Any:
    """Options of ``%%px``."""
    parser = MagicArgumentParser(name, description="Run a cell on the engines of the active view.", add_help=False)
    _add_execution(parser)
    _add_output(parser)
    parser.add_argument(
        "--local", action="store_true", help="Run the cell in this process too, after it has been sent."
    )
    return parser


def make_config_parser(name: str) -> Any:
    """Options of ``%pxconfig``."""
    parser = MagicArgumentParser(name, description="Set defaults for the magics of the active view.", add_help=False)
    _add_execution(parser)
    return parser


def make_result_parser(name: str) -> Any:
    """Options of ``%pxresult``."""
    parser = MagicArgumentParser(name, description="Wait for the last result, and show it.", add_help=False)
    _add_output(parser)
    return parser


def _add_execution(parser: Any) -> None:
    add = parser.add_argument
    add("-b", "--block", action="store_const", const=True, dest="block", help="Wait, and show the output.")
    add("-a", "--noblock", action="store_const", const=False, dest="block", help="Do not wait: give an AsyncResult.")
    add("--stream", action="store_const", const=True, dest="stream", help="Show output as it comes.")
    add("--no-stream", action="store_const", const=False, dest="stream", help="Show output at the end.")
    add("-t", "--targets", metavar="TARGETS", help="Engines: 1, 0,2, [0,2], 1:3, -1, all, or an expression of yours.")
    add("--verbose", action="store_const", const=True, dest="verbose", help="Say on which engines it runs.")
    add("--no-verbose", action="store_const", const=False, dest="verbose", help="Do not.")
    add(
        "--progress-after",
        type=float,
        dest="progress_after_seconds",
        metavar="SECONDS",
        help="Show a progress bar after so many seconds; -1: never, 0: at once.",
    )
    add(
        "--signal-on-interrupt",
        type=parse_signal_option,
        dest="signal_on_interrupt",
        metavar="SIGNAL",
        help="What the engines get on Ctrl-C: a name, or a number.",
    )


def _add_output(parser: Any) -> None:
    add = parser.add_argument
    add("-r", action="store_const", const="order", dest="groupby", help="Group outputs in order.")
    add("-e", action="store_const", const="engine", dest="groupby", help="Group outputs by engine.")
    add("--group-outputs", choices=GROUPINGS, dest="groupby", help="Group outputs by this.")
    parser.set_defaults(groupby="type")  # of three options with one destination the first one's default would count
    add("-o", "--out", dest="out", metavar="NAME", help="Store the AsyncResult under this name.")


def parse_signal_option(text: str) -> str:
    """The name of a signal, from its name or its number.

    Raises:
        ValueError: There is none.
    """
    return signal.Signals(parse_signal(int(text) if text.isdigit() else text)).name


def parse_targets_option(text: str, ids: list[Any], namespace: dict[str, Any]) -> Any:
    """What ``-t`` names, for a view.

    Args:
        text: ``1:3`` (positions in `ids`), ``all``, or an expression: ``1``, ``0,1``, ``[0, 2]``, ``mine``.
        ids: The engines there are.
        namespace: Where expressions are evaluated: the user's.
    """
    if ":" in text:
        try:
            return ids[slice(*(int(part) if part.strip() else None for part in text.strip("[]").split(":")))]
        except (TypeError, ValueError):
            raise UsageError(f"-t {text}: a slice is made of integers, like 1:3 or ::2") from None
    if "all" in text.lower():
        return "all"
    try:
        return eval(text, namespace)
    except Exception as error:
        raise UsageError(f"-t {text}: {type(error).__name__}: {error}") from error


def render_targets(targets: Any) -> str:
    """Targets for a person: long lists are cut in the middle."""
    if not isinstance(targets, list) or len(targets) <= TARGETS_SHOWN_MAX:
        return str(targets)
    first, last = targets[:TARGETS_SHOWN_EACH_END], targets[-TARGETS_SHOWN_EACH_END:]
    return f"{str(first)[:-1]}, ..., {str(last)[1:]}"
