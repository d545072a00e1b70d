"""``%px`` and its relatives: run code of this IPython on engines.

    %px <code>    run a line on the engines         %%px [options]   run a cell there
    %autopx       run every cell there, or stop     %pxresult        wait for the last result, and show it
    %pxconfig     set defaults                      %result          as %pxresult

Each name ends with the suffix that the view was activated with.
"""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from typing import Any, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic import no_var_expand

from hpcviews.client.direct_view import DirectView
from hpcviews.client.progress import SHOWN_AFTER_S, showing
from hpcviews.client.results import AsyncResult
from hpcviews.environment import is_noninteractive
from hpcviews.errors import AlreadyDisplayedError
from hpcviews.notebook.arguments import (
    make_cell_parser,
    make_config_parser,
    make_result_parser,
    parse_targets_option,
    render_targets,
)

T = TypeVar("T")


def _not_while_typing(transform: T) -> T:
    """Mark an input transformation as one that IPython must not try out on a cell that is not complete.

    A cell magic counts as complete only behind an empty line, which nobody wants to type after each cell.
    """
    transform.has_side_effects = True  # type: ignore[attr-defined]  # IPython's own name for it
    return transform


class ParallelMagics:
    """The magics of one view.

    Attributes:
        view: Where code runs, and whether a cell waits for it (`block`).
        last_result: What `%pxresult` shows: the AsyncResult of the last code that was sent; None before.
        verbose: Say on which engines code runs.
        stream_output: Show output as it comes, instead of at the end.
        progress_after_seconds: Show a progress bar when code takes longer; negative: never.
        signal_on_interrupt: Name of the signal that the engines get when a cell that waits is interrupted.
        is_automatic: Nobody asked for these magics: the first client in this IPython defined them.
    """

    def __init__(self, shell: Any, view: DirectView, suffix: str = ""):
        self.shell = shell
        self.view = view
        self.suffix = suffix
        self.last_result: AsyncResult | None = None
        self.verbose = False
        self.stream_output = not is_noninteractive()
        self.progress_after_seconds = SHOWN_AFTER_S
        self.signal_on_interrupt = "SIGINT"
        self.is_automatic = False
        self._autopx_line = re.compile(rf"\s*%autopx{re.escape(suffix)}\b")
        self._cell_parser = make_cell_parser(f"%%px{suffix}")
        self._config_parser = make_config_parser(f"%pxconfig{suffix}")
        self._result_parser = make_result_parser(f"%pxresult{suffix}")

    def register(self) -> None:
        """Define them in the shell."""
        add = self.shell.magics_manager.register_function
        add(_describe(self.px, self._cell_parser), "line", f"px{self.suffix}")
        add(_describe(self.cell_px, self._cell_parser), "cell", f"px{self.suffix}")
        add(_describe(self.pxconfig, self._config_parser), "line", f"pxconfig{self.suffix}")
        add(_describe(self.autopx, None), "line", f"autopx{self.suffix}")
        add(_describe(self.pxresult, self._result_parser), "line", f"pxresult{self.suffix}")
        if not self.suffix:
            add(_describe(self.pxresult, self._result_parser), "line", "result")

    # ------------------------------------------------------------ the magics

    def px(self, line: str) -> AsyncResult | None:
        """Run a line of code on the engines of the active view.

        ``%px import numpy`` waits if the view's `block` is set, and shows the output; else it gives an AsyncResult.
        """
        return self._run(line, self._cell_parser.parse_argstring(""))

    def cell_px(self, line: str, cell: str) -> AsyncResult | None:
        """Run a cell on the engines of the active view. Ctrl-C interrupts it there."""
        return self._run(cell, self._cell_parser.parse_argstring(line))

    def pxconfig(self, line: str) -> None:
        """Set defaults for the other magics of the active view."""
        options = self._config_parser.parse_argstring(line)
        if options.targets is not None:
            # Of a new view, which checks them.
            targets = parse_targets_option(options.targets, self.view.client.ids, self.shell.user_ns)
            self.view.targets = self.view.client.direct_view(targets).targets
        if options.block is not None:
            self.view.block = options.block
        if options.stream is not None:
            self.stream_output = options.stream
        for name in ("verbose", "progress_after_seconds", "signal_on_interrupt"):
            if getattr(options, name) is not None:
                setattr(self, name, getattr(options, name))

    def pxresult(self, line: str) -> None:
        """Wait for the result of the last code that was sent to the active view, and show it."""
        options = self._result_parser.parse_argstring(line)
        result = self.last_result
        if result is None:
            raise UsageError(
                f"%pxresult{self.suffix} recalls last %px{self.suffix} result, which has not yet been used."
            )
        if options.out:
            self.shell.user_ns[options.out] = result
        result.wait()
        result.display_outputs(groupby=options.groupby)
        result.get()

    def autopx(self, line: str) -> None:
        """Run every cell from now on on the engines of the active view, until it is called again."""
        if self._transform in self.shell.input_transformers_cleanup:
            self.disable_autopx()
            sys.stdout.write(f"%autopx{self.suffix} disabled\n")
        else:
            # A cell becomes a %%px cell. Appended, so that it is done with IPython's own prompts and indentation.
            self.shell.input_transformers_cleanup.append(self._transform)
            sys.stdout.write(f"%autopx{self.suffix} enabled\n")

    def disable_autopx(self) -> None:
        """Run cells here again."""
        if self._transform in self.shell.input_transformers_cleanup:
            self.shell.input_transformers_cleanup.remove(self._transform)

    @_not_while_typing
    def _transform(self, lines: list[str]) -> list[str]:
        if not any(line.strip() for line in lines) or self._autopx_line.match("".join(lines)):
            return lines
        return [f"%%px{self.suffix}\n", *lines]

    # ------------------------------------------------------------ running

    def _run(self, code: str, options: Any) -> AsyncResult | None:
        targets = self.view.targets
        if options.targets is not None:
            targets = parse_targets_option(options.targets, self.view.client.ids, self.shell.user_ns)
        block = self.view.block if options.block is None else options.block
        if self.verbose if options.verbose is None else options.verbose:
            kind = "Parallel" if block else "Async parallel"
            sys.stdout.write(f"{kind} execution on engine(s): {render_targets(targets)}\n")
        result = self.view.execute(code, silent=False, targets=targets, block=False)
        result.slots.parts[0].call.name = f"%px{self.suffix}"
        self.last_result = result
        if options.out:
            self.shell.user_ns[options.out] = result
        if options.local:
            self.shell.run_cell(code)
        if not block:
            return result
        self._follow(result, options)
        return None

    def _follow(self, result: AsyncResult, options: Any) -> None:
        """Wait for a result and show it; raises its errors."""
        is_live = self.stream_output if options.stream is None else options.stream
        was_interrupted = False
        stream = result.stream_output() if is_live else nullcontext()
        with stream, self._showing_progress(result, options) as notify, result.listening(notify):
            try:
                result.wait()
            except KeyboardInterrupt:
                was_interrupted = True
                self._interrupt(result, options.signal_on_interrupt or self.signal_on_interrupt)
        if not result.done():
            return
        result.display_outputs(groupby=options.groupby, result_only=is_live)
        if was_interrupted:
            # The prompt is what was asked for, not a traceback of this side.
            if not is_live:
                result.display_errors()
            result.successful()  # they have been seen
            return
        error = result.exception()
        if error is not None:
            raise AlreadyDisplayedError(error) if is_live else error

    def _showing_progress(self, result: AsyncResult, options: Any) -> Any:
        after_s = options.progress_after_seconds
        if after_s is None:
            after_s = self.progress_after_seconds
        read = lambda: (result.progress, len(result))  # noqa: E731 - read nowhere else
        return showing(result.name, read, after_s=max(after_s, 0.0), is_wanted=after_s >= 0)

    def _interrupt(self, result: AsyncResult, signal_name: str) -> None:
        """The first Ctrl-C is for the engines, and the cell ends when they have ended; the second ends the waiting."""
        sys.stderr.write(f"Received Keyboard Interrupt. Sending signal {signal_name} to engines...\n")
        sys.stderr.flush()
        try:
            self.view.client.send_signal(signal_name, targets=result.targets, block=True)
            result.wait()
        except KeyboardInterrupt:
            sys.stderr.write(
                f"The engines have not ended what they do, and go on with it: %pxresult{self.suffix} waits for it; "
                "client.send_signal('SIGKILL', targets) ends engines that react to nothing else.\n"
            )
            sys.stderr.flush()


def _describe(magic: Any, parser: Any) -> Any:
    """A function for IPython, with the options in its docstring; braces and dollars in code are left alone."""

    def run(*args: str) -> Any:
        return magic(*args)

    options = "" if parser is None else f"\n\n{parser.format_help()}"
    run.__doc__ = (magic.__doc__ or "") + options
    run.__name__ = magic.__name__
    return no_var_expand(run) if magic.__name__ == "px" else run
