"""Functions that run only where they can: what they need is checked on the engine, before they are called."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from hpcviews.errors import UnmetDependency
from hpcviews.wire.payload import refresh_captured


class dependent:  # noqa: N801 - IPython.parallel's name for it
    """A function and a check, which an engine makes before each call; see `depend` and `require`.

    Called here it is just the function. An engine that does not pass the check raises UnmetDependency: a task of a
    load-balanced view then goes to another one, a call of a direct view fails.

    Attributes:
        f: The function.
        df: The check: False, or UnmetDependency raised, means that the engine does not pass.
        dargs, dkwargs: Its arguments.
    """

    def __init__(self, f: Callable[..., Any], df: Callable[..., Any], /, *dargs: Any, **dkwargs: Any):
        for function in (f, df):
            if not callable(function):
                raise TypeError(f"a dependent is made of functions, not of {type(function).__name__} {function!r:.80}")
        self.f = f
        self.df = df
        self.dargs = dargs
        self.dkwargs = dkwargs
        self.__name__ = str(getattr(f, "__name__", None) or type(f).__name__)
        self.__doc__ = f.__doc__

    @property
    def func_name(self) -> str:
        """The name of the function."""
        return self.__name__

    def __repr__(self) -> str:
        return f"<dependent {self.__name__}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(*args, **kwargs)

    def __reduce__(self) -> Any:
        return _rebuild, (self.f, self.df, self.dargs, self.dkwargs)

    def check(self) -> None:
        """On an engine: pass the check.

        Raises:
            UnmetDependency: It says no.
        """
        if isinstance(self.f, dependent):
            self.f.check()
        refresh_captured(self.df)
        if self.df(*self.dargs, **self.dkwargs) is False:
            name = getattr(self.df, "__name__", None) or repr(self.df)
            raise UnmetDependency(f"{name} returned False, so {self.__name__} does not run here")
        refresh_captured(self.f)


def _rebuild(
    f: Callable[..., Any], df: Callable[..., Any], dargs: tuple[Any, ...], dkwargs: dict[str, Any]
) -> dependent:
    return dependent(f, df, *dargs, **dkwargs)


def depend(df: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Callable[[Callable[..., Any]], dependent]:
    """Have a function run only on engines that pass a check: ``@depend(has_gpu, 2)``.

    Args:
        df: Called as ``df(*args, **kwargs)`` on an engine, before each call of the function. The engine does not pass
            if it returns False or raises UnmetDependency; anything else passes, None too.
    Returns:
        A decorator that makes a `dependent` of a function.
    """

    def decorate(f: Callable[..., Any]) -> dependent:
        return dependent(f, df, *args, **kwargs)

    return decorate


def require(*objects: Any, **named: Any) -> Callable[[Callable[..., Any]], dependent]:
    """Have a function run only where modules can be imported, and find what it uses: ``@require("numpy", helper)``.

    On the engine, before each call, the modules are imported into its namespace as ``import name`` would, and the
    other objects are assigned there.

    Args:
        objects: Modules, by name or themselves; an engine that cannot import one raises UnmetDependency. Functions,
            which get their own names.
        named: Any other objects, by name.
    Raises:
        TypeError: An object without a name of its own was not passed by keyword.
    """
    modules: list[str] = []
    values: dict[str, Any] = {}
    for obj in objects:
        if isinstance(obj, types.ModuleType):
            modules.append(obj.__name__)
        elif isinstance(obj, str):
            modules.append(obj)
        elif callable(obj) and hasattr(obj, "__name__"):
            values[obj.__name__] = obj
        else:
            raise TypeError(f"Objects other than modules and functions must be passed by kwarg, but got: {type(obj)}")
    return depend(_provide, modules, {**values, **named})


def _provide(modules: list[str], values: dict[str, Any]) -> None:
    namespace = sys.modules["__main__"].__dict__
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UnmetDependency(f"{name} cannot be imported: {error}") from error
        top = name.partition(".")[0]
        namespace[top] = sys.modules[top]
    namespace.update(values)


def interactive(f: Callable[..., Any]) -> types.FunctionType:
    """Have a function of a module see the engine's namespace as its globals, as if it were defined in a script.

    Otherwise a function of a module is imported on the engine, and sees that module. What it uses of its own module
    travels along, and is used where the engine's namespace has nothing of that name. Here it works as before.

    Raises:
        TypeError: Not a function written in Python.
    """
    if not isinstance(f, types.FunctionType):
        raise TypeError(f"only a function written in Python can be made interactive, not a {type(f).__name__}")
    # A copy: the function may be a library's, and others must go on to find it there.
    made = types.FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    made.__dict__.update(f.__dict__)
    made.__kwdefaults__ = f.__kwdefaults__
    made.__annotations__ = f.__annotations__
    made.__doc__ = f.__doc__
    made.__qualname__ = f.__qualname__
    made.__module__ = "__main__"
    return made
