"""joblib on a cluster: scikit-learn, and whatever else uses joblib, runs its jobs on the engines.

::

    hpcviews.register_joblib_backend()
    with joblib.parallel_config("hpcviews"):
        GridSearchCV(model, parameters).fit(x, y)
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from hpcviews.bridges.joblib_batch import BatchRunner, Placeholder, SharedObject, replace_arguments
from hpcviews.client.balanced_view import LoadBalancedView
from hpcviews.client.client import Client
from hpcviews.client.functions import PickledFunction
from hpcviews.client.results import AsyncResult
from hpcviews.client.slots import interrupt
from hpcviews.errors import HpcviewsError, NoEnginesRegistered, RemoteError

try:
    from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend
except ImportError as error:
    raise ImportError("the joblib backend needs joblib: pip install 'hpcviews[joblib]'") from error

SHARED_BYTES_MIN = 2**20
"""Arguments from this size on travel to each engine once, not with each batch. joblib's own process backend maps arrays
from the same size on (its max_nbytes)."""


def register_joblib_backend(
    name: str = "hpcviews", make_default: bool = False, view: LoadBalancedView | None = None
) -> None:
    """Make a cluster known to joblib, for ``joblib.parallel_config(name)`` and ``joblib.Parallel(backend=name)``.

    Jobs run on the engines of the view; Parallel calls inside of jobs do not come back to the cluster: they run in
    threads of the engine if they ask for n_jobs, else one after the other. Exceptions are the original ones, with the
    engine's traceback as their cause; the rest of the jobs is then withdrawn, or interrupted.

    Arguments of 1 MiB and more that several jobs share (arrays, DataFrames, sparse matrices) travel to each engine
    once, and are read-only there, as with joblib's own processes; do not change them while the call runs.

    Args:
        name: What joblib is to call it.
        make_default: Use it wherever no backend is named.
        view: Where to run, with its flags (retries, targets, …). None: `hpcviews.Client()`, connected when it is first
            used; ``parallel_config(name, view=…)`` chooses another.
    Raises:
        ImportError: joblib is not installed.
    """

    def make_backend(**options: Any) -> HpcviewsBackend:
        options.setdefault("view", view)
        return HpcviewsBackend(name=name, **options)

    register_parallel_backend(name, make_backend, make_default=make_default)


class HpcviewsBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """What joblib asks to run its batches. joblib makes one for each ``parallel_config``."""

    # A batch need not be long: its way there and back takes less than a millisecond, most of it in joblib.
    MIN_IDEAL_BATCH_DURATION = 0.05
    MAX_IDEAL_BATCH_DURATION = 1.0
    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_sharedmem = False
    uses_threads = False

    def __init__(self, name: str = "hpcviews", view: LoadBalancedView | None = None, **options: Any):
        super().__init__(**options)
        self._name = name
        self._view = _get_default_view() if view is None else view
        self._targets: list[int] | None = None
        self._arguments = SharedArguments(name, self._view)
        self._outstanding: set[AsyncResult] = set()
        self._lock = threading.Lock()

    # ------------------------------------------------------------ what joblib asks first

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many jobs run at once: as many as there are engines, or fewer if so few are asked for."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        engines = len(self._view)
        if not engines:
            raise NoEnginesRegistered(
                "This operation requires engines. Try client.wait_for_engines(n) to wait for engines to register."
            )
        if n_jobs is None:
            return 1  # joblib's convention
        return min(n_jobs, engines) if n_jobs > 0 else max(engines + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Begin to work for `parallel`, which may ask for fewer jobs than there are engines."""
        self.parallel = parallel
        count = self.effective_n_jobs(n_jobs)
        eligible = self._view.client.ids if self._view.targets is None else list(self._view.targets)
        self._targets = list(eligible[:count]) if count < len(eligible) else None
        # Told that there is one worker, joblib runs everything in this process, which may be on a login node. So
        # only who asks for one job gets that.
        return count if n_jobs == 1 else max(count, 2)

    # ------------------------------------------------------------ batches

    def submit(self, func: Any, callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """Send a batch; joblib's name for a batch is `func`."""
        future: Future[Any]
        try:
            runner, batch = self._arguments.take_out(func)
            flags = {} if self._targets is None else {"targets": self._targets}
            with self._view.temp_flags(**flags):
                future = result = self._view.apply_async(runner, batch)
        except Exception as error:  # noqa: BLE001 - joblib must hear of it by the future: it may be us who called it back
            future = Future()
            future.set_exception(error)
        else:
            with self._lock:
                self._outstanding.add(result)
            result.add_done_callback(lambda _: self._forget(result))
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def _forget(self, result: AsyncResult) -> None:
        with self._lock:
            self._outstanding.discard(result)

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The values of a batch that has ended, or the exception of its first call that raised."""
        try:
            return out.result()
        except RemoteError as error:
            original = error.__cause__
            if original is None:
                raise
            raise original from RemoteError(error.ename, error.evalue, error.traceback, error.engine_info)

    def stop_call(self) -> None:
        """A Parallel call has ended: its arguments may be changed, or freed."""
        self._arguments.clear()

    def terminate(self) -> None:
        """joblib has no more work for now."""
        self._arguments.clear()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A job failed, or the call was interrupted: nobody wants the rest, and engines are to be free again."""
        with self._lock:
            results, self._outstanding = self._outstanding, set()
        interrupt(request for result in results for request in result.slots.get_unfinished())
        for result in results:
            result.cancel()


class SharedArguments:
    """Takes big arguments out of batches, from their second appearance on: most arguments have only one."""

    def __init__(self, backend_name: str, view: LoadBalancedView):
        self._backend_name = backend_name
        self._view = view
        # By identity, as joblib does it: comparing contents would read all of it for each batch.
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._shared: dict[int, Any] = {}
        """Kept alive, so that their ids remain theirs."""
        self._runners: dict[tuple[int, ...], PickledFunction] = {}
        # joblib submits from the thread that called it and from ours for callbacks.
        self._lock = threading.Lock()

    def take_out(self, batch: Any) -> tuple[PickledFunction, Any]:
        """The function to call for a batch, and the batch that it is to be called with."""
        with self._lock:
            found: dict[int, int] = {}

            def replace(value: Any) -> Any:
                if not self._is_shared(value):
                    return value
                return Placeholder(found.setdefault(id(value), len(found)))

            replaced = replace_arguments(batch, replace)
            ids = tuple(found)
            runner = self._runners.get(ids)
            if runner is None:
                shared = tuple(SharedObject(self._shared[i]) for i in ids)
                runner = self._view.pickle_function(BatchRunner(self._backend_name, shared))
                self._runners[ids] = runner
            return runner, replaced if found else batch

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._seen.clear()
            self._shared.clear()
            self._runners.clear()

    def _is_shared(self, value: Any) -> bool:
        key = id(value)
        if key in self._shared:
            return True
        if count_bytes(value) < SHARED_BYTES_MIN:
            return False
        before = self._seen.get(key)
        if before is not None and before() is value:
            self._shared[key] = value
            del self._seen[key]
            return True
        try:
            self._seen[key] = weakref.ref(value)
        except TypeError:
            pass  # bytes and the like: they travel with each batch
        return False


def count_bytes(value: Any) -> int:
    """About how many bytes of numbers an array, a sparse matrix, a Series or a DataFrame holds; of other things, 0."""
    kind = type(value)
    if kind.__name__ == "DataFrame" and hasattr(value, "memory_usage"):
        return int(value.memory_usage(index=False).sum())
    holder = value.data if kind.__module__.startswith("scipy.sparse") and hasattr(value, "data") else value
    size = getattr(holder, "nbytes", 0)
    return size if isinstance(size, int) else 0


_default: Client | None = None
_default_lock = threading.Lock()


def _get_default_view() -> LoadBalancedView:
    """A view of the cluster that `hpcviews.Client()` finds; one client for all of joblib's calls in this process."""
    global _default
    with _default_lock:
        if _default is not None:
            try:
                _default._connection.check_usable()
            except HpcviewsError:
                _default = None  # closed, or of a cluster that has ended, or of the process this one was forked from
        if _default is None:
            _default = Client()
        return _default.load_balanced_view()
