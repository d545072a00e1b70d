"""A batch of joblib's calls on its way to an engine: what the engine imports, which knows nothing of clients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

from joblib.parallel import BACKENDS, SequentialBackend, register_parallel_backend


class Placeholder:
    """Stands in a batch for an argument that travels with the `BatchRunner`."""

    __slots__ = ("index",)

    def __init__(self, index: int):
        self.index = index


class SharedObject:
    """A big argument, which an engine gets once and gives to many calls.

    Each call unpickles it anew, over the same memory: its arrays are read-only, as those are that joblib's own process
    backend maps. What is not an array (columns of a DataFrame, attributes) is a call's own, so no call sees what
    another one changed.
    """

    def __init__(self, obj: Any):
        self._buffers: list[Any] = []
        self._head = pickle.dumps(obj, protocol=5, buffer_callback=self._buffers.append)

    def make(self) -> Any:
        """The object."""
        return pickle.loads(self._head, buffers=[memoryview(buffer).toreadonly() for buffer in self._buffers])


class BatchRunner:
    """The function of all batches that use the same big arguments: functions travel to each engine only once."""

    __name__ = "joblib batch"

    def __init__(self, backend_name: str, shared: tuple[SharedObject, ...]):
        self._backend_name = backend_name
        self._shared = shared

    def __call__(self, batch: Any) -> Any:
        """Run a batch; its first exception ends it."""
        if self._backend_name not in BACKENDS:
            # Code that asks for the cluster by its name, inside a call that is on the cluster already: an engine that
            # waited for others would wait for ever when all of them do.
            register_parallel_backend(self._backend_name, SequentialBackend)
        if self._shared:
            batch = replace_arguments(batch, self._find)
        return batch()

    def _find(self, value: Any) -> Any:
        return self._shared[value.index].make() if type(value) is Placeholder else value


def replace_arguments(batch: Any, replace: Any) -> Any:
    """A copy of a joblib batch, whose calls have ``replace(value)`` in place of each argument."""
    replaced = copy.copy(batch)
    replaced.items = [
        (function, tuple(map(replace, args)), {key: replace(value) for key, value in kwargs.items()})
        for function, args, kwargs in batch.items
    ]
    return replaced
