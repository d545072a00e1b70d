"""A view as a `concurrent.futures.Executor`: errors are the originals, and what it submits can be waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for_futures
from typing import TYPE_CHECKING, Any, TypeVar

from hpcviews.client.results import AsyncResult
from hpcviews.errors import CompositeError, RemoteError

if TYPE_CHECKING:
    from hpcviews.client.view import View

R = TypeVar("R", bound=AsyncResult)


class ViewExecutor(Executor):
    """Runs calls on the engines of a view, as PEP 3148 has it.

    `submit` on a load-balanced view runs a call on one engine. On a direct view it runs it on each of its engines,
    and the future's result is the list of their values (one value, if the view's targets are an integer).

    What a call raised is raised here as itself, its ``__cause__`` a RemoteError with the engine's traceback; of a
    call on several engines, the first engine's. Errors of hpcviews are raised as themselves.

    Cancelling a future withdraws its call if that has not started; one that runs goes on, and its result is dropped.
    """

    def __init__(self, view: View):
        self.view = view
        self._max_workers = max(1, len(view))  # what programs that know the standard executors look at
        self._lock = threading.RLock()  # pickling an argument may run user code that submits
        self._futures: set[AsyncResult] = set()
        self._is_shut_down = False

    def __repr__(self) -> str:
        return f"<ViewExecutor of {self.view!r}{': shut down' if self._is_shut_down else ''}>"

    @property
    def is_shut_down(self) -> bool:
        """Whether `shutdown` was called."""
        return self._is_shut_down

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call ``fn(*args, **kwargs)`` on the engines.

        Returns:
            A future of its value.
        Raises:
            RuntimeError: The executor has been shut down.
            SerializationError: An argument cannot be pickled.
        """
        with self._lock:
            self._check_open()
            return self._keep(CallFuture(self.view.apply_async(fn, *args, **kwargs)))

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[Any]:
        """Call `fn` with an item of each iterable, and iterate over the values in their order.

        Args:
            fn: The function.
            iterables: They are consumed before this returns; the shortest one counts. See `LoadBalancedView.imap`
                for endless ones.
            timeout: From now on, seconds until a value that is asked for must be there; None: any time.
            chunksize: Items sent together, on a load-balanced view. If one of them fails, they all have.
        Raises:
            RuntimeError: The executor has been shut down.
            TimeoutError: In the iteration: a value was not there in time.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        options = {"chunksize": chunksize} if self.view.is_load_balanced else {}
        with self._lock:
            self._check_open()
            result = self._keep(self.view.map(fn, *iterables, block=False, **options))
        # Not in the generator: its time begins now, not when it is first asked.
        return _give_originals(result, result.iterate(timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. The engines and the view stay; ``view.executor`` is a new executor then.

        Args:
            wait: Return when everything submitted has ended.
            cancel_futures: Withdraw what has not started.
        """
        with self._lock:
            self._is_shut_down = True
            futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            wait_for_futures(futures)

    def _check_open(self) -> None:
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown; view.executor is a new executor")

    def _keep(self, future: R) -> R:
        self._futures.add(future)
        future.add_quick_callback(self._futures.discard)  # one operation of a set: atomic
        return future


class CallFuture(AsyncResult):
    """An AsyncResult whose errors are the original exceptions."""

    def __init__(self, result: AsyncResult):
        """Look at the requests of `result`."""
        super().__init__(result.slots, targets=result.targets, is_single=result._is_single, tracker=result.tracker)

    def _combine(self, errors: list[BaseException]) -> BaseException:
        return find_original(super()._combine(errors))


def find_original(error: BaseException) -> BaseException:
    """What user code raised on the engine, if it could be unpickled here; else the error."""
    while isinstance(error, CompositeError):
        error = error.elist[0]
    original = error.__cause__
    if not isinstance(error, RemoteError) or original is None:
        return error
    if original.__cause__ is None:
        # Not `error` itself, whose cause is the original.
        original.__cause__ = RemoteError(error.ename, error.evalue, error.traceback, error.engine_info)
    return original.with_traceback(None)


def _give_originals(result: AsyncResult, values: Iterator[Any]) -> Iterator[Any]:
    error: BaseException | None = None
    try:
        yield from values
    except RemoteError as raised:
        error = find_original(raised)
    finally:
        result.cancel()  # also when the consumer stops early
    if error is not None:
        raise error
