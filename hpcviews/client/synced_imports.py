"""``with view.sync_imports():`` - imports in the block happen on the engines too."""

from __future__ import annotations

import builtins
import inspect
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from hpcviews.client.import_statements import ImportStatement, read_statement

if TYPE_CHECKING:
    from hpcviews.client.direct_view import DirectView
    from hpcviews.client.results import AsyncResult

_MISSING: Any = object()


class SyncedImports:
    """The with-block: import statements in the function (or module) that enters it, in its thread.

    Those inside of what it imports or calls are none of its business: engines run their own.
    """

    def __init__(self, view: DirectView, is_local: bool, is_quiet: bool):
        """See `DirectView.sync_imports`."""
        self._view = view
        self._is_local = is_local
        self._is_quiet = is_quiet
        self.frame: FrameType | None = None
        """What runs the block."""
        self._results: dict[ImportStatement, AsyncResult] = {}
        self._covered: dict[str, Any] = {}
        """With ``local=False``: what names of the block were before."""

    def __enter__(self) -> None:
        frame = inspect.currentframe()
        frame = frame.f_back if frame is not None else None
        while frame is not None and frame.f_globals.get("__name__") == "contextlib":
            frame = frame.f_back  # an ExitStack
        self.frame = frame
        _begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _end(self)
        self._uncover()
        self.frame = None
        results, self._results = list(self._results.values()), {}
        if kind is not None:
            return
        # All of them first: one failure must not hide that others are still being imported.
        failed = [result for result in results if result.exception() is not None]
        for result in failed:
            result.get()

    def on_import(
        self,
        run: Callable[..., Any],
        name: str,
        namespace: Mapping[str, Any] | None,
        scope: Mapping[str, Any] | None,
        fromlist: Sequence[str] | None,
        level: int,
    ) -> Any:
        """An import in the block: do it, here and there. `run` is Python's ``__import__``."""
        assert self.frame is not None
        frame = self.frame
        statement = read_statement(frame.f_code, frame.f_lasti, name, fromlist, level, namespace or {})
        if statement is None:
            return run(name, namespace, scope, fromlist, level)
        if self._is_local:
            module = run(name, namespace, scope, fromlist, level)
        else:
            module = _Absent(statement.module if fromlist else statement.module.partition(".")[0], self)
            self._cover(statement)
        if statement not in self._results:
            if not self._is_quiet:
                print(f"importing {statement.describe()} on engine(s)")  # noqa: T201 - as in IPython.parallel
            self._results[statement] = self._view.execute(statement.render(), block=False)
        return module

    # ------------------------------------------------------------ local=False

    def _find_namespace(self) -> MutableMapping[str, Any] | None:
        """Where the block's names are; a function's cannot be changed from outside."""
        assert self.frame is not None
        if self.frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return None
        return self.frame.f_locals

    def _cover(self, statement: ImportStatement) -> None:
        names = self._find_namespace()
        if names is not None:
            for name in statement.bound:
                self._covered.setdefault(name, names.get(name, _MISSING))

    def _uncover(self) -> None:
        names = self._find_namespace()
        if names is None:
            return
        covered, self._covered = self._covered, {}
        for name, before in covered.items():
            if before is not _MISSING:
                names[name] = before
            else:
                names.pop(name, None)


class _Absent:
    """Stands for a module that was imported on the engines only."""

    def __init__(self, name: str, block: SyncedImports):
        self._name = name
        self._block = block

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return []
        if name.startswith("__"):
            raise AttributeError(name)
        if self._block.frame is not None:
            return _Absent(f"{self._name}.{name}", self._block)  # `from module import name`, in the block
        raise AttributeError(
            f"{self._name} was imported on the engines only (sync_imports(local=False)); import it here to use it here"
        )

    def __repr__(self) -> str:
        return f"<{self._name}, on the engines only>"


_lock = threading.Lock()
_blocks: dict[int, list[SyncedImports]] = {}
"""The blocks that are running, by thread, innermost last."""
_installed: _Hook | None = None


class _Hook:
    """Stands in for ``builtins.__import__`` while there are blocks."""

    def __init__(self, original: Callable[..., Any]):
        # One of its own for each time: if others have put theirs over an earlier one of ours, that one still calls
        # what was below it.
        self.original = original

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        blocks = _blocks.get(threading.get_ident())
        if blocks:
            frame = sys._getframe(1)
            for block in reversed(blocks):
                if block.frame is frame:
                    return block.on_import(self.original, name, globals, locals, fromlist, level)
        return self.original(name, globals, locals, fromlist, level)


def _begin(block: SyncedImports) -> None:
    global _installed
    with _lock:
        if not _blocks:
            builtins.__import__ = _installed = _Hook(builtins.__import__)
        _blocks.setdefault(threading.get_ident(), []).append(block)


def _end(block: SyncedImports) -> None:
    global _installed
    with _lock:
        own = _blocks[threading.get_ident()]
        own.remove(block)
        if not own:
            del _blocks[threading.get_ident()]
        if not _blocks and _installed is not None:
            # If others have put theirs over ours since, theirs stays, and ours below it does nothing.
            if builtins.__import__ is _installed:
                builtins.__import__ = _installed.original
            _installed = None
