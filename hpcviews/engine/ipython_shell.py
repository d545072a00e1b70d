"""An IPython shell over the engine's namespace, for magics and rich output. The only file here that imports IPython.

Not a Jupyter kernel: cells come and results go by our own messages, and what is displayed is handed to `publish`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from hpcviews import environment

Publish = Callable[[str, dict[str, Any]], None]


class EngineShell:
    """Runs cells by IPython."""

    def __init__(self, namespace: dict[str, Any], publish: Publish):
        """Make the shell of this process.

        Args:
            namespace: The globals of ``__main__``.
            publish: Gets "display" and a dict of data, metadata and transient.
        """
        # What matplotlib draws is displayed below the cell, as in a notebook, unless the user wants it otherwise.
        environment.set_default_matplotlib_backend("module://matplotlib_inline.backend_inline")
        config = Config()
        config.HistoryManager.enabled = False  # the client has the history, and nothing is to be left in a home
        config.InteractiveShell.colors = "nocolor"
        config.InteractiveShell.xmode = "Plain"
        directory = tempfile.mkdtemp(prefix="hpcviews-ipython-")
        kept_hook = sys.displayhook
        try:
            self._shell = _Shell.instance(
                user_module=sys.modules["__main__"], user_ns=namespace, config=config, ipython_dir=directory
            )
        finally:
            sys.displayhook = kept_hook
            shutil.rmtree(directory, ignore_errors=True)
        self._shell.display_pub.hpcviews_publish = publish

    def run(self, code: str, silent: bool, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Run a cell.

        Returns:
            MIME types and contents of the value of its last expression, and their metadata; empty without one.
        Raises:
            Whatever it raises.
        """
        shell = self._shell
        hook = shell.displayhook
        hook.data, hook.metadata = {}, {}
        shell.execution_count = count
        result = shell.run_cell(code, store_history=False, silent=silent)
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            raise error
        if not silent and result.result is not None:
            shell.user_ns["_"] = result.result
        return hook.data, hook.metadata


class _Hook(DisplayHook):  # type: ignore[misc,unused-ignore]  # IPython may be absent where types are checked
    """Keeps the value of a cell's last expression as a MIME bundle, instead of printing it."""

    data: dict[str, Any]
    metadata: dict[str, Any]

    def __call__(self, result: Any = None) -> None:
        if result is not None and not self.quiet():
            self.data, self.metadata = self.compute_format_data(result)
            self.fill_exec_result(result)


class _Publisher(DisplayPublisher):  # type: ignore[misc,unused-ignore]
    """Sends what ``display()`` and figures give."""

    hpcviews_publish: Publish

    def publish(  # type: ignore[override,unused-ignore]
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: Any = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **options: Any,
    ) -> None:
        content = {"data": data, "metadata": metadata or {}, "transient": transient or {}}
        self.hpcviews_publish("display", content)


class _Shell(InteractiveShell):  # type: ignore[misc,unused-ignore]
    def init_displayhook(self) -> None:
        self.displayhook_class = _Hook
        super().init_displayhook()

    def init_display_pub(self) -> None:
        self.display_pub_class = _Publisher
        super().init_display_pub()

    def enable_gui(self, gui: Any = None) -> None:
        """There is no window on an engine; `%matplotlib inline` asks all the same."""

    # Errors are raised by `EngineShell.run`, and shown where the cell was written.

    def showtraceback(self, *args: Any, **kwargs: Any) -> None:
        pass

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:
        pass
