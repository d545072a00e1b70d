"""The user's namespace on an engine: the globals of ``__main__``."""

from __future__ import annotations

import builtins
import sys
import types
from typing import Any

from hpcviews.wire.payload import forget_captured


def make_namespace() -> dict[str, Any]:
    """Install a fresh ``__main__`` and return its dictionary.

    It is the real ``__main__`` of the process, so functions and classes that user code defines here belong to
    ``__main__``, are pickled by value, and work wherever they are sent.
    """
    module = types.ModuleType("__main__", "The user's namespace on an engine.")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    return module.__dict__


def clear_namespace(namespace: dict[str, Any]) -> None:
    """Forget everything the user put there."""
    names = ("__name__", "__doc__", "__builtins__")
    kept: dict[str, Any] = {name: namespace[name] for name in names if name in namespace}
    namespace.clear()
    namespace.update(kept)
    forget_captured()
