"""Traits of views that one thread may set for the length of a with-block without the others seeing it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from traitlets import Any as AnyTrait
from traitlets import Bool, HasTraits, Int, TraitError, Unicode

from hpcviews.client.planes import find_fault

if TYPE_CHECKING:

    class _Base(AnyTrait):
        """What the mixin is mixed into."""
else:
    _Base = object


class _Temporary(threading.local):
    def __init__(self) -> None:
        self.flags: dict[str, Any] = {}


class _PerThread(_Base):
    """Mixed into a trait: the thread's temporary value goes before the object's own."""

    def get(self, obj: Any, cls: Any = None) -> Any:
        flags = obj._temporary.flags
        if flags and self.name in flags:
            return flags[self.name]
        return super().get(obj, cls)

    def set(self, obj: Any, value: Any) -> None:
        flags = obj._temporary.flags
        if flags and self.name in flags:
            flags[self.name] = self._validate(obj, value)
        else:
            super().set(obj, value)


class BoolFlag(_PerThread, Bool):  # type: ignore[type-arg,misc]
    """A bool."""


class IntFlag(_PerThread, Int):  # type: ignore[type-arg,misc]
    """An integer."""


class TextFlag(_PerThread, Unicode):  # type: ignore[type-arg,misc]
    """Text."""


class PlaneFlag(_PerThread, AnyTrait):
    """Which way big buffers go; see planes.py."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Called by traitlets.

        Raises:
            TraitError: It is no plane; the message names those there are.
        """
        fault = find_fault(value)
        if fault:
            raise TraitError(fault)
        return value


class AnyFlag(_PerThread, AnyTrait):
    """Anything."""


class HasFlags(HasTraits):
    """Traits, some of them flags."""

    def setup_instance(self, *args: Any, **kwargs: Any) -> None:
        """Called by traitlets before any trait is touched."""
        self._temporary = _Temporary()
        super().setup_instance(*args, **kwargs)

    @classmethod
    def flag_names(cls) -> list[str]:
        """The names `set_flags` takes."""
        return sorted(name for name, trait in cls.class_traits().items() if isinstance(trait, _PerThread))

    def check_flags(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """The flags as they would be set.

        Raises:
            KeyError: One of them does not exist; the message has those that do.
            TraitError: One of them cannot have that value.
        """
        checked = {}
        for name, value in flags.items():
            if name not in self.flag_names():
                raise KeyError(f"Invalid name: {name!r}; the flags of a {type(self).__name__} are {self.flag_names()}")
            checked[name] = self.traits()[name]._validate(self, value)
        return checked

    def set_flags(self, **flags: Any) -> Any:
        """Set several flags; returns this object.

        Raises:
            KeyError: There is no such flag. None has been set.
            traitlets.TraitError: A value of the wrong type. None has been set.
        """
        for name, value in self.check_flags(flags).items():
            setattr(self, name, value)
        return self

    @contextmanager
    def temp_flags(self, **flags: Any) -> Iterator[None]:
        """Set flags for the length of a with-block, for this thread only.

        They are restored also when the block raises.
        """
        before = self._temporary.flags
        self._temporary.flags = {**before, **self.check_flags(flags)}
        try:
            yield
        finally:
            self._temporary.flags = before
