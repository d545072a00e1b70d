"""Functions that run on engines when they are called: what the decorators `remote` and `parallel` make."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hpcviews.wire.reference import Reference

if TYPE_CHECKING:
    from hpcviews.client.view import View


def remote(
    view: View, block: bool | None = None, **flags: Any
) -> Callable[[Callable[..., Any] | Reference], RemoteFunction]:
    """Decorator: calls of the function are calls of ``view.apply``.

    Args:
        view: Where it runs.
        block: Wait for the result of each call; None: as the view's flag is now.
        flags: Flags of the view, set for each call.
    Raises:
        KeyError: No such flag.
    """
    return lambda f: RemoteFunction(view, f, block, **flags)


def parallel(
    view: View,
    dist: str = "b",
    block: bool | None = None,
    ordered: bool = True,
    *,
    chunksize: int | None = None,
    return_exceptions: bool = False,
    **flags: Any,
) -> Callable[[Callable[..., Any] | Reference], ParallelFunction]:
    """Decorator: a call of the function cuts its arguments into parts, and calls it with each part on an engine.

    Args:
        view, dist, block, ordered, chunksize, return_exceptions, flags: As for ParallelFunction.
    """
    return lambda f: ParallelFunction(view, f, dist, block, chunksize, ordered, return_exceptions, **flags)


class RemoteFunction:
    """A function that runs on the engines of a view when it is called here.

    Sent to an engine, as an argument or as something that another function uses, it is the plain function there.

    Attributes:
        view: Where it runs.
        func: The function.
        block: Whether calls wait for their result.
        flags: Flags of the view that are set for each call.
    """

    _word = "RemoteFunction"

    def __init__(self, view: View, f: Callable[..., Any] | Reference, block: bool | None = None, **flags: Any):
        """Wrap `f`.

        Args:
            view: Where it is to run.
            f: The function, or a Reference to one.
            block: Wait for the result of each call; None: as the view's flag is now.
            flags: Flags of the view, set for each call.
        Raises:
            TypeError: `f` is no function.
            KeyError: No such flag.
        """
        if not callable(f) and not isinstance(f, Reference):
            raise TypeError(f"f must be callable, not {type(f)}")
        view.check_flags(flags)
        self.view = view
        self.func = f
        self.block = view.block if block is None else block
        self.flags = flags
        name = f.name if isinstance(f, Reference) else getattr(f, "__name__", type(f).__name__)
        self.__name__ = name
        self.__qualname__ = getattr(f, "__qualname__", name)
        self.__module__ = getattr(f, "__module__", None) or __name__
        self.__doc__ = f"{self._word} wrapping:\n{getattr(f, '__doc__', None) or ''}"
        try:
            self.__signature__ = inspect.signature(f)  # type: ignore[arg-type]  # a Reference has none
        except (TypeError, ValueError):
            pass  # builtins may have none

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__} on {self.view!r}>"

    def __reduce__(self) -> Any:
        return _get_plain, (self.func,)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it on the engines of the view.

        Returns:
            The value, or with ``block=False`` an AsyncResult; see `View.apply`.
        """
        with self.view.temp_flags(**self.flags, block=self.block):
            return self.view.apply(self.func, *args, **kwargs)


class ParallelFunction(RemoteFunction):
    """A function that gets each part of its arguments on an engine.

    Called, it cuts the sequences given to it into parts, is called once per part with the parts, and the values are
    joined: lists, tuples, strings and arrays to one of their kind, others to the list of values. `map` calls it
    with single items.
    """

    _word = "ParallelFunction"

    def __init__(
        self,
        view: View,
        f: Callable[..., Any] | Reference,
        dist: str = "b",
        block: bool | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        **flags: Any,
    ):
        """Wrap `f`.

        Args:
            view: Where it is to run. A direct view makes one part per engine.
            f: The function, or a Reference to one.
            dist: "b": parts are contiguous blocks, "r": dealt out in turn.
            block: Wait for the result of each call; None: as the view's flag is now.
            chunksize: Load-balanced views only: items per part; None: 1.
            ordered: Load-balanced views only: iterating over an AsyncMapResult gives results in the order of the
                items, or as they arrive.
            return_exceptions: Give errors in place of results.
            flags: Flags of the view, set for each call.
        """
        from hpcviews.client.maps import check_dist

        super().__init__(view, f, block, **flags)
        check_dist(dist)
        if chunksize is not None and not view.is_load_balanced:
            warnings.warn("direct views make one part per engine: chunksize is ignored", UserWarning, stacklevel=2)
            chunksize = None
        self.dist = dist
        self.chunksize = chunksize
        self.ordered = ordered
        self.return_exceptions = return_exceptions

    def __call__(self, /, *sequences: Any, **kwargs: Any) -> Any:
        """Call it with the parts of `sequences`.

        Returns:
            The joined value, or with ``block=False`` an AsyncMapResult.
        Raises:
            ValueError: The sequences are not of one length.
            TypeError: A keyword argument is given: it cannot be cut.
        """
        if kwargs:
            raise TypeError(f"Unexpected keyword arguments: {', '.join(kwargs)}; a parallel function takes sequences")
        with self.view.temp_flags(**self.flags):
            return self.view.apply_to_parts(
                self.func,
                sequences,
                block=self.block,
                dist=self.dist,
                chunksize=self.chunksize,
                ordered=self.ordered,
                return_exceptions=self.return_exceptions,
            )

    def map(self, /, *sequences: Any) -> Any:
        """Call it with each item of the sequences, as ``view.map`` does; the shortest one counts.

        Returns:
            The list of results, or with ``block=False`` an AsyncMapResult.
        """
        options: dict[str, Any] = {"return_exceptions": self.return_exceptions, "block": self.block}
        if self.view.is_load_balanced:
            options |= {"chunksize": self.chunksize or 1, "ordered": self.ordered}
        with self.view.temp_flags(**self.flags):
            return self.view.map(self.func, *sequences, **options)


def _get_plain(f: Any) -> Any:
    return f
