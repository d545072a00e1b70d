"""References: arguments that name something on the engine instead of bringing it along."""

from __future__ import annotations

import sys
from typing import Any


class ReferenceFailed(Exception):
    """A name could not be evaluated while a payload was unpickled; `error` is what evaluating it raised."""

    def __init__(self, error: Exception):
        super().__init__(error)
        self.error = error


class Reference:
    """A name, or any expression, that each engine evaluates in its own namespace.

    Wherever it stands in the arguments of a call, at any depth, the engine's value stands there when the function
    is called. As the function of a call it is evaluated at every call.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        if not isinstance(name, str):
            raise TypeError(f"illegal name: {name!r}; a Reference needs a name or an expression as a str")
        self.name = name

    def __repr__(self) -> str:
        return f"<Reference: {self.name!r}>"

    def __reduce__(self) -> Any:
        return _resolve, (self.name,)


class ReferencedFunction:
    """A function that is a Reference: looked up when it is called, because engines keep functions between calls."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return evaluate(self.name)(*args, **kwargs)


def evaluate(name: str) -> Any:
    """The value of an expression in this process's ``__main__``, which on an engine is the user's namespace."""
    return eval(name, sys.modules["__main__"].__dict__)


def _resolve(name: str) -> Any:
    try:
        return evaluate(name)
    except Exception as error:
        raise ReferenceFailed(error) from error
