"""Running source text like a notebook cell: the value of a last expression is what it gives."""

from __future__ import annotations

import ast
import inspect
import linecache
import types
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcviews.engine.ipython_shell import EngineShell

SOURCES_KEPT = 100
"""How many executed cells keep their source for tracebacks."""

Publish = Callable[[str, dict[str, Any]], None]
"""Sends what was displayed to whoever asked for the cell."""


class Cells:
    """The cells of one engine, over one namespace.

    Plain Python runs by itself. Where the client shows rich output, or a cell is no Python but what IPython makes
    Python of (``%magic``, ``!command``), an IPython shell over the same namespace is made, and runs all cells from then
    on: what the first ones set up (``%matplotlib inline``) holds for the later ones.
    """

    def __init__(self, namespace: dict[str, Any], publish: Publish):
        self._namespace = namespace
        self._publish = publish
        self._sources: list[str] = []
        self._shell: EngineShell | None = None
        self.count = 0
        """How many cells have been counted: those that were not silent."""

    def run(self, code: str, silent: bool, filename: str, rich: bool) -> dict[str, Any]:
        """Run a cell.

        Args:
            code: Its source.
            silent: Do not count it, and keep no value of it in ``_``.
            filename: The file it is of; "" for a cell that was typed.
            rich: The client can show more than text.
        Returns:
            What the client makes an ExecuteReply of.
        Raises:
            Whatever it raises. SyntaxError: It is neither Python nor, where IPython is installed, IPython.
        """
        if not silent:
            self.count += 1
        tree: ast.Module | None = None
        name = filename or f"<hpcviews execute {len(self._sources) + 1}>"
        try:
            tree = ast.parse(code, name)
        except SyntaxError as error:
            if not _looks_like_ipython(code):
                raise error.with_traceback(None) from None  # the parser's frames say nothing
            if not _has_ipython():
                error.msg = (
                    f"{error.msg} (magics and !commands need IPython where the engines run: pip install ipython)"
                )
                raise error.with_traceback(None) from None
        has_shell = self._shell is not None or (rich and _has_ipython())
        if tree is None or (has_shell and not filename):
            data, metadata = self._get_shell().run(code, silent, self.count)
        else:
            if not filename:
                self._remember_source(name, code)
            data, metadata = self._run_plain(tree, name, silent), {}
        return {"execution_count": self.count, "source": code, "data": data, "metadata": metadata}

    def _run_plain(self, tree: ast.Module, name: str, silent: bool) -> dict[str, Any]:
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        steps = [compile(tree, name, "exec", flags)]
        if isinstance(last, ast.Expr):
            steps.append(compile(ast.Expression(last.value), name, "eval", flags))
        value = None
        if any(step.co_flags & inspect.CO_COROUTINE for step in steps):
            import asyncio

            value = asyncio.run(_run_async(steps, self._namespace))
        else:
            for step in steps:
                value = eval(step, self._namespace)
        if value is None:
            return {}
        if not silent:
            self._namespace["_"] = value
        elif not isinstance(value, _CHEAP_TO_SHOW):
            return {}  # nobody asked for it, and a big value takes long to write out
        return {"text/plain": repr(value)}

    def _get_shell(self) -> EngineShell:
        if self._shell is None:
            from hpcviews.engine.ipython_shell import EngineShell

            self._shell = EngineShell(self._namespace, self._publish)
        return self._shell

    def _remember_source(self, name: str, code: str) -> None:
        # Without this the lines of a cell are missing from its tracebacks.
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        self._sources.append(name)
        if len(self._sources) > SOURCES_KEPT:
            linecache.cache.pop(self._sources[-SOURCES_KEPT - 1], None)


_CHEAP_TO_SHOW = (int, float, complex, str, bytes, bool, types.FunctionType)


def _has_ipython() -> bool:
    try:
        return find_spec("IPython") is not None
    except (ImportError, ValueError):  # a broken installation
        return False


def _looks_like_ipython(code: str) -> bool:
    lines = [line.strip() for line in code.splitlines()]
    return any(line.startswith(("%", "!")) or line.endswith("?") or "= %" in line or "= !" in line for line in lines)


async def _run_async(steps: list[types.CodeType], namespace: dict[str, Any]) -> Any:
    value = None
    for step in steps:
        value = eval(step, namespace)
        if step.co_flags & inspect.CO_COROUTINE:
            value = await value
    return value
