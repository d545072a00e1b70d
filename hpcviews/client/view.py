"""What all views have in common."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from traitlets import Any as AnyTrait
from traitlets import Instance

from hpcviews.client import asking, progress
from hpcviews.client.bookkeeping import save_ids as save_ids
from hpcviews.client.bookkeeping import spin_after as spin_after
from hpcviews.client.bookkeeping import sync_results as sync_results
from hpcviews.client.call import Call
from hpcviews.client.engine_control import EngineControl
from hpcviews.client.executor import ViewExecutor
from hpcviews.client.facts import join_trackers
from hpcviews.client.flags import AnyFlag, BoolFlag, HasFlags, PlaneFlag, TextFlag
from hpcviews.client.functions import PickledFunction, name_function
from hpcviews.client.history import History
from hpcviews.client.live_mapping import LiveMapping, read_outcome
from hpcviews.client.map_result import AsyncMapResult
from hpcviews.client.planes import choose_pool
from hpcviews.client.remote_function import ParallelFunction, RemoteFunction, parallel, remote
from hpcviews.client.results import AsyncResult
from hpcviews.client.transfers import Transfer
from hpcviews.errors import SerializationError
from hpcviews.ids import MsgId
from hpcviews.wire.payload import ZERO_COPY_BYTES_MIN, FindPool, Payload, dumps
from hpcviews.wire.pool import SHARED_BYTES_MIN, Pool
from hpcviews.wire.reference import Reference, ReferencedFunction

if TYPE_CHECKING:
    import zmq

    from hpcviews.client.client import Client


class _Computed(AnyTrait):
    """A trait that is computed when it is looked at, so it can never be out of date."""

    def __init__(self, compute: Callable[[Any], Any]):
        super().__init__()
        self._compute = compute

    def get(self, obj: Any, cls: Any = None) -> Any:
        return self._compute(obj)

    def set(self, obj: Any, value: Any) -> None:
        raise AttributeError(f"{self.name} follows from what has been submitted; it cannot be set")


class View(EngineControl, HasFlags):
    """Base of the views; use `Client.direct_view`, `Client.load_balanced_view` or ``client[…]``.

    A view may be used from any thread.

    Attributes:
        client: The client it belongs to.
        block: Whether calls wait for their result instead of returning an AsyncResult.
        track: Whether calls make a MessageTracker for the buffers they send uncopied (`AsyncResult.sent`).
        targets: Which engines it is for.
        label: The user's own word for what is submitted; records and `metadata` have it.
        plane: Which way big buffers go: "auto", the best one; "shm", through shared memory, or PlaneUnavailable is
            raised; "frames", through the controller.
        history: msg_ids of all requests submitted through it, in order.
        outstanding: Those that have not ended.
        results: Values by msg_id, or errors, of those that have, and whose AsyncResult somebody holds.
    """

    is_load_balanced: ClassVar[bool] = False
    """Whether the controller chooses the engines."""

    client: Client = Instance("hpcviews.client.client.Client", allow_none=True)  # type: ignore[assignment]
    block = BoolFlag(False)
    track = BoolFlag(False)
    targets = AnyFlag(None)
    label = TextFlag(None, allow_none=True)
    plane = PlaneFlag("auto")
    history = Instance(History)
    outstanding = _Computed(lambda view: view._get_outstanding())
    results = _Computed(lambda view: LiveMapping(view._get_results, read_outcome))

    def __init__(self, client: Client | None = None, socket: None = None, **flags: Any):
        if type(self) is View:
            raise AssertionError("Don't use base View objects, use subclasses")
        if client is None:
            raise TypeError(f"a {type(self).__name__} needs a client; make it by Client.direct_view() and its like")
        connection = client._connection
        super().__init__(client=client, history=History(connection.session), block=client.block)
        self._connection = connection
        self._results: weakref.WeakSet[AsyncResult] = weakref.WeakSet()
        self._recording = threading.Lock()
        self._executor: ViewExecutor | None = None
        self.set_flags(**flags)

    def __repr__(self) -> str:
        text = str(self.targets)
        if len(text) > 16:
            text = text[:12] + "...]"
        return f"<{type(self).__name__} {text}>"

    def __len__(self) -> int:
        """How many engines it is for."""
        raise NotImplementedError("in the subclasses")

    def __bool__(self) -> bool:
        return True  # also while there are no engines

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be sent or pickled; it belongs to this process's Client")

    # ------------------------------------------------------------ calls

    def _apply(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any], block: bool) -> Any:
        raise NotImplementedError("in the subclasses")

    def apply(self, f: Callable[..., Any] | Reference | PickledFunction, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``f(*args, **kwargs)`` on the engines. Arrays in the arguments are sent uncopied: with ``block=False``
        leave them alone until `AsyncResult.wait_for_send` (with ``track=True``) or the result.

        Returns:
            What the call returned, waited for, if `block` is set; else an AsyncResult.
        Raises:
            SerializationError: An argument cannot be pickled. Nothing was sent.
            NoSuchEngine, NoEnginesRegistered: There is nobody to send it to.
        """
        return self._apply(f, args, kwargs, self.block)

    def apply_async(
        self, f: Callable[..., Any] | Reference | PickledFunction, /, *args: Any, **kwargs: Any
    ) -> AsyncResult:
        """As `apply` with ``block=False``: leave arrays alone until they are sent."""
        result: AsyncResult = self._apply(f, args, kwargs, False)
        return result

    def apply_sync(self, f: Callable[..., Any] | Reference | PickledFunction, /, *args: Any, **kwargs: Any) -> Any:
        """As `apply` with ``block=True``: when it returns, arrays in the arguments are the caller's again."""
        return self._apply(f, args, kwargs, True)

    def map(self, f: Callable[..., Any] | Reference, /, *sequences: Any, **kwargs: Any) -> Any:
        """Parallel `map`; see the subclasses."""
        raise NotImplementedError("in the subclasses")

    def map_async(self, f: Callable[..., Any] | Reference, /, *sequences: Any, **kwargs: Any) -> Any:
        """As `map` with ``block=False``: leave arrays alone until they are sent."""
        self._refuse_block("map_async", kwargs)
        return self.map(f, *sequences, block=False, **kwargs)

    def map_sync(self, f: Callable[..., Any] | Reference, /, *sequences: Any, **kwargs: Any) -> Any:
        """As `map` with ``block=True``: when it returns, the arrays are the caller's again."""
        self._refuse_block("map_sync", kwargs)
        return self.map(f, *sequences, block=True, **kwargs)

    def imap(self, f: Callable[..., Any] | Reference, /, *sequences: Any, **kwargs: Any) -> Iterator[Any]:
        """Iterate over the results of `map` as they arrive. Leave arrays alone until the end."""
        return iter(self.map_async(f, *sequences, **kwargs))

    def remote(
        self, block: bool | None = None, **flags: Any
    ) -> Callable[[Callable[..., Any] | Reference], RemoteFunction]:
        """Decorator, used as ``@view.remote()``: calls of the function run on the engines of this view.

        Args:
            block: Wait for the result of each call; None: as the view's flag is now.
            flags: Flags of this view, set for each call.
        """
        _refuse_bare("remote", block)
        return remote(self, block, **flags)

    def parallel(
        self, dist: str = "b", block: bool | None = None, **options: Any
    ) -> Callable[[Callable[..., Any] | Reference], ParallelFunction]:
        """Decorator, used as ``@view.parallel()``: a call gives each engine a part of its arguments.

        Args:
            dist: "b": parts are contiguous blocks, "r": dealt out in turn.
            block: Wait for the result of each call; None: as the view's flag is now.
            options: `ordered`, `chunksize`, `return_exceptions` of ParallelFunction, and flags of this view.
        """
        _refuse_bare("parallel", dist)
        return parallel(self, dist, block, **options)

    def apply_to_parts(
        self,
        f: Callable[..., Any] | Reference,
        sequences: Sequence[Any],
        *,
        block: bool | None = None,
        dist: str = "b",
        chunksize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Any:
        """Cut sequences of one length into parts, and call `f` once with each; what a ParallelFunction does.

        Arrays are sent uncopied. For the arguments see ParallelFunction.

        Returns:
            The joined values, or with ``block=False`` an AsyncMapResult.
        """
        raise NotImplementedError("in the subclasses")

    @property
    def executor(self) -> ViewExecutor:
        """This view as a `concurrent.futures.Executor`; after its shutdown, a new one."""
        with self._recording:
            if self._executor is None or self._executor.is_shut_down:
                self._executor = ViewExecutor(self)
            return self._executor

    @staticmethod
    def _refuse_block(method: str, kwargs: dict[str, Any]) -> None:
        if "block" in kwargs:
            raise TypeError(f"{method} doesn't take a `block` keyword argument.")

    def pickle_function(self, f: Callable[..., Any] | Reference) -> PickledFunction:
        """Pickle a function now, for many calls: what this returns can stand for it in `apply` and `map`.

        Raises:
            SerializationError: It cannot be pickled.
        """
        return self._pickle_function(f)

    # ------------------------------------------------------------ for the subclasses

    def _make_call(self, name: str, count: int, label: str | None = None, **options: Any) -> Call:
        """A call of this view: numbers for its requests are taken. `label`: None: as the view's flag."""
        if label is None:
            label = self.label
        elif not isinstance(label, str):
            raise TypeError(f"a label must be text, not {type(label).__name__} {label!r:.80}")
        return Call(self.client, name, self._connection.reserve(count), count, label=label or "", **options)

    def _dumps(self, obj: Any, track: bool = False, find_pool: FindPool | None = None) -> Payload:
        # Who forces it wants it for whatever is a buffer; else it must pay.
        share_bytes_min = 0 if self.plane == "shm" else SHARED_BYTES_MIN
        names = self._connection.pushed_names
        return dumps(obj, track=track, engine_names=names, find_pool=find_pool, share_bytes_min=share_bytes_min)

    def _make_find_pool(self, targets: Sequence[int] | None) -> FindPool | None:
        """For big buffers of what goes to these engines; None: to any engine.

        Raises:
            PlaneUnavailable: The flag `plane` says "shm", and that cannot be.
        """
        plane = self.plane
        if plane == "frames":
            return None
        sharing, registry = self._connection.sharing, self._connection.registry

        def find_pool() -> Pool | None:
            infos = registry.get_infos(targets)
            return choose_pool(plane, sharing.pool, sharing.controller_room, infos, is_open=targets is None)

        if plane == "shm":
            find_pool()  # the same for all sizes: what is forced must not fail only when the data have grown
        return find_pool

    def _explain(self, data: Any, targets: Sequence[int] | None) -> Transfer:
        if isinstance(data, str):
            found = self._connection.transfers.find(data)
            if found is None:
                raise KeyError(f"{data!r} has not been pushed, scattered, pulled or gathered by this client")
            return found
        payload = self._dumps(data)
        size = payload.full_nbytes - len(payload.data)
        find_pool = self._make_find_pool(targets)
        least = ZERO_COPY_BYTES_MIN if self.plane == "shm" else SHARED_BYTES_MIN
        has_big = any(len(frame) >= least for frame in payload.frames[0 if payload.data else 1 :])
        is_shared = has_big and find_pool is not None and find_pool() is not None
        return Transfer("next", "shm" if is_shared else "frames", size * (1 if targets is None else len(targets)))

    def _pickle_function(self, f: Any, track: bool = False) -> PickledFunction:
        if isinstance(f, PickledFunction):
            return f
        if isinstance(f, Reference):
            f = ReferencedFunction(f.name)
        elif not callable(f):
            raise TypeError(f"f must be callable, not {type(f)}")
        try:
            if track:
                return name_function(self._dumps(f, track))  # its frames are to tell when they are sent
            names = self._connection.pushed_names
            return self._connection.function_cache.get(f, names, lambda: name_function(self._dumps(f)))
        except SerializationError as error:
            raise SerializationError(f"the function {_get_name(f)}: {error}") from error

    def _record(self, result: AsyncResult, seqs: range) -> None:
        with self._recording:
            self.history.add(seqs)
            self._results.add(result)
        self.client._remember(result)

    def _finish(self, result: AsyncResult, block: bool) -> Any:
        """The AsyncResult, or with `block` its value, waited for."""
        if not block:
            return result
        try:
            if isinstance(result, AsyncMapResult):
                progress.show_if_long(result)
            return result.get()
        except KeyboardInterrupt:
            self.client._keep(result)
            raise KeyboardInterrupt(
                # The client's history, not the view's: each `rc[:]` is a new view, which has submitted nothing.
                "stopped waiting, the work goes on; client.get_result(-1) has its result, "
                "client.abort() withdraws what has not started"
            ) from None

    def _get_control_targets(self) -> Any:
        return self.targets

    def _end_cluster(self) -> None:
        self.client._end_cluster()

    # ------------------------------------------------------------ what was submitted

    def _get_results(self) -> list[AsyncResult]:
        """Those that are alive, in the order they were submitted."""
        with self._recording:
            results = list(self._results)
        return sorted(results, key=lambda result: result.first)

    def _get_outstanding(self) -> set[MsgId]:
        results = self._get_results()
        return {call.get_msg_id(index) for result in results for call, index in result.slots.get_unfinished()}

    def adopt(self, result: AsyncResult) -> None:
        """Count a result that this view did not submit among its own: in `history`, `wait`, `abort` and the like.

        Requests that are there already, and those of other clients, are left out of `history`.
        """
        own = [call.first + index for call, index in result.slots if call.client is self.client and not call.is_foreign]
        with self._recording:
            for seq in own:
                if not self.history.has_seq(seq):
                    self.history.add(range(seq, seq + 1))
            self._results.add(result)

    def spin(self) -> None:
        """Nothing: results arrive by themselves. For programs written for IPython.parallel."""

    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool:
        """Wait for requests of this view, or for `jobs`.

        Args:
            jobs: None: all of this view. An AsyncResult or another future, a msg_id, a position in `history`, or
                a list of those.
            timeout: Give up after this many seconds; None or negative waits for ever.
        Returns:
            Whether they have ended.
        """
        if jobs is None:
            jobs = self._get_results()
        return self.client._wait_for(jobs, self.history, timeout)

    def abort(self, jobs: Any = None, targets: Any = None, block: bool | None = None) -> Future[None] | None:
        """Withdraw requests of this view that have not started; they end with TaskAborted.

        Args:
            jobs: None: all of this view. Or as for `Client.abort`, with positions in this view's `history`.
            targets: Only what these engines hold; None: wherever it is.
            block: As for `Client.abort`; None: as the view's flag.
        """
        if jobs is None:
            jobs = self._get_results()
        return self._ask(asking.make_abort(self.client, jobs, self.history, targets), block)

    def get_result(self, indices_or_msg_ids: Any = None, block: bool | None = None, owner: bool = False) -> AsyncResult:
        """The AsyncResult of earlier requests; as `Client.get_result`, with positions in this view's `history`."""
        return asking.get_result(self.client, indices_or_msg_ids, self.history, self.block if block is None else block)

    def queue_status(self, targets: Any = None, verbose: bool = False) -> dict[Any, Any]:
        """What waits on the engines of this view; as `Client.queue_status`."""
        return self.client.queue_status(self._get_own_targets(targets), verbose)

    def purge_results(self, jobs: Any = (), targets: Any = ()) -> None:
        """Have the controller forget records of requests that have ended; as `Client.purge_results`.

        Args:
            jobs: "all", or requests as for `get_result`.
            targets: And those that ran on these engines; "all": on those of this view.
        """
        if isinstance(targets, str):
            targets = self._get_own_targets(targets)
        self.client.purge_results(asking.render_jobs(jobs, self.history), targets)

    def _get_own_targets(self, targets: Any) -> Any:
        if targets is None or (isinstance(targets, str) and targets.lower() == "all"):
            return "all" if self.targets is None else self.targets
        return targets


def merge_trackers(payloads: list[Payload]) -> zmq.MessageTracker | None:
    """One tracker for several payloads; None if nothing in them is tracked."""
    return join_trackers(payload.tracker() for payload in payloads)


def _refuse_bare(name: str, argument: Any) -> None:
    if callable(argument):
        raise TypeError(f"write @view.{name}(), with the parentheses: it is a function that makes the decorator")


def _get_name(f: Any) -> str:
    return str(getattr(f, "__qualname__", None) or getattr(f, "__name__", None) or repr(f))


def get_call_name(f: Any) -> str:
    """How a function is called in messages."""
    return f.name if isinstance(f, Reference) else str(getattr(f, "__name__", None) or type(f).__name__)
