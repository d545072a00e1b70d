"""Pickled functions, kept while they would be pickled the same again.

Pickling a small function costs about 25 µs, a tenth of a round trip. What its pickle depends on (code, defaults,
closure, the globals it uses) can be compared in a few µs, as long as all of that is plain constants, modules and
other such functions. Anything else (a global list, say) may have changed inside: that function is pickled anew.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from hpcviews.client.functions import PickledFunction

ENTRIES_MAX = 256
DEPTH_MAX = 3
"""How far functions that use functions are followed."""

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes)
_FIXED = (types.ModuleType, types.BuiltinFunctionType)


class _Unknown(Exception):
    """Something whose content cannot be compared cheaply."""


class FunctionCache:
    """Least recently used functions by their code; not thread-safe beyond what single dict operations are."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[types.CodeType, Any, PickledFunction]] = OrderedDict()

    def get(
        self, function: Any, engine_names: Collection[str], pickle_function: Callable[[], PickledFunction]
    ) -> PickledFunction:
        """The pickled function, from the cache if it would come out the same."""
        if type(function) is not types.FunctionType:
            return pickle_function()
        try:
            signature = _describe(function, engine_names, 0)
        except _Unknown:
            return pickle_function()
        code = function.__code__
        # By identity: comparing code objects by value costs more than it saves. The entry keeps the code alive,
        # so its id stays its own.
        found = self._kept.get(id(code))
        if found is not None and found[1] == signature:
            return found[2]
        pickled = pickle_function()
        self._kept[id(code)] = (code, signature, pickled)
        while len(self._kept) > ENTRIES_MAX:
            self._kept.popitem(last=False)
        return pickled


def _describe(function: types.FunctionType, engine_names: Collection[str], depth: int) -> Any:
    """Everything the pickle of a function depends on, in comparable form."""
    if function.__dict__ or depth > DEPTH_MAX:
        raise _Unknown
    parts: list[Any] = [function.__name__, function.__qualname__, function.__module__, function.__doc__]
    for value in function.__defaults__ or ():
        parts.append(_describe_value(value, engine_names, depth))
    if function.__kwdefaults__ or function.__annotations__:
        raise _Unknown
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            raise _Unknown from None  # still empty
        parts.append(_describe_value(value, engine_names, depth))
    _describe_globals(function.__code__, function.__globals__, engine_names, depth, parts)
    return tuple(parts)


def _describe_globals(
    code: types.CodeType, namespace: dict[str, Any], engine_names: Collection[str], depth: int, parts: list[Any]
) -> None:
    for name in code.co_names:
        if name in engine_names:
            parts.append(name)  # it does not travel
        elif name in namespace:
            parts.append((name, _describe_value(namespace[name], engine_names, depth)))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _describe_globals(constant, namespace, engine_names, depth, parts)


def _describe_value(value: Any, engine_names: Collection[str], depth: int) -> Any:
    kind = type(value)
    if kind in _CONSTANTS:
        return kind, value  # the type too: 1 == True == 1.0
    if kind in _FIXED:
        return kind, id(value)
    if kind is types.FunctionType:
        return id(value.__code__), _describe(value, engine_names, depth + 1)
    raise _Unknown
