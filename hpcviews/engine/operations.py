"""What a request can ask an engine to do. Each operation gets the worker's view of things and the unpickled payload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcviews.engine.cells import Cells, Publish
from hpcviews.engine.namespace import clear_namespace
from hpcviews.errors import RemoteError, SerializationError, UnmetDependency


class Operations:
    """The operations, over one namespace."""

    def __init__(
        self,
        namespace: dict[str, Any],
        describe_error: Callable[[BaseException], RemoteError],
        publish: Publish,
    ):
        self._namespace = namespace
        self._describe_error = describe_error
        self._cells = Cells(namespace, publish)
        self.stops_queue = False
        """Whether a failure of what ran last is to keep cells that wait from running."""
        self._by_name: dict[str, Callable[[Callable[..., Any] | None, Any], Any]] = {
            "apply": self._apply,
            "map": self._map,
            "execute": self._execute,
            "push": self._push,
            "pull": self._pull,
            "clear": self._clear,
        }

    def run(self, op: str, function: Callable[..., Any] | None, payload: Any) -> Any:
        """Do it.

        Raises:
            Whatever user code raises.
        """
        self.stops_queue = False
        operation = self._by_name.get(op)
        if operation is None:
            raise SerializationError(f"this engine has no operation {op!r}; it has {', '.join(self._by_name)}")
        return operation(function, payload)

    @staticmethod
    def _apply(function: Callable[..., Any] | None, payload: Any) -> Any:
        args, kwargs = payload
        assert function is not None
        del payload
        return function(*args, **kwargs)

    def _map(self, function: Callable[..., Any] | None, payload: Any) -> list[Any]:
        """Apply to each element of a chunk; with `return_exceptions` a failed element is its error.

        An element that cannot be done on this engine is no failure: the whole chunk goes to another one.
        """
        sequences, return_exceptions = payload
        assert function is not None
        if not return_exceptions:
            return list(map(function, *sequences))
        values: list[Any] = []
        for items in zip(*sequences, strict=False):
            try:
                values.append(function(*items))
            except UnmetDependency:
                raise
            except Exception as error:  # noqa: BLE001 - the boundary around user code, per element
                values.append(self._describe_error(error))
        return values

    def _execute(self, function: Any, payload: Any) -> dict[str, Any]:
        """Run source text like a notebook cell."""
        code, silent, filename, rich = payload
        self.stops_queue = not silent
        return self._cells.run(code, silent, filename, rich)

    def _push(self, function: Any, payload: dict[str, Any]) -> None:
        """Assign; the keys are assignment targets: ``a``, ``a.b``, ``d['x']``."""
        for name, value in payload.items():
            if name.isidentifier():
                self._namespace[name] = value
            else:
                self._namespace["_hpcviews_value"] = value
                try:
                    exec(compile(f"{name} = _hpcviews_value", f"<push {name}>", "exec"), self._namespace)
                finally:
                    del self._namespace["_hpcviews_value"]

    def _pull(self, function: Any, payload: Any) -> Any:
        """Evaluate; the names are expressions."""
        names, single = payload
        missing = object()
        values = []
        for name in names:
            value = self._namespace.get(name, missing)
            values.append(eval(name, self._namespace) if value is missing else value)
        return values[0] if single else values

    def _clear(self, function: Any, payload: Any) -> None:
        clear_namespace(self._namespace)
