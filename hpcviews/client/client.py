"""The client: a program's way to a cluster."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from traitlets import Bool, HasTraits

import hpcviews
from hpcviews.client import asking
from hpcviews.client.balanced_view import LoadBalancedView
from hpcviews.client.broadcast_view import BroadcastView
from hpcviews.client.call import Call
from hpcviews.client.connection import Connection
from hpcviews.client.direct_view import DirectView
from hpcviews.client.engine_control import EngineControl
from hpcviews.client.executor import ViewExecutor
from hpcviews.client.history import History
from hpcviews.client.live_mapping import LiveMapping, read_outcome
from hpcviews.client.progress import SHOWN_AFTER_S, showing
from hpcviews.client.results import AsyncResult
from hpcviews.client.screen import find_shell
from hpcviews.ids import EngineId, MsgId, Session, parse_msg_id
from hpcviews.records import find_access
from hpcviews.wire import messages as m

INTERRUPTED_KEPT = 16
"""How many AsyncResults of interrupted blocking calls are kept for `get_result`: nobody else has them."""


class Client(EngineControl, HasTraits):
    """A connection to a cluster.

    All methods may be used from any thread; a forked child must make a Client of its own. When the controller is
    lost, everything outstanding ends with ControllerLost; the client connects again by itself if it can.

    Attributes:
        block: The `block` flag that views made by this client begin with.
    """

    block = Bool(False)

    def __init__(self, cluster: str | None = None, *, access: str | Path | None = None, timeout: float = 10):
        """Connect to a running cluster.

        Args:
            cluster: Its name. None: the one that HPCVIEWS_CLUSTER names, or the only one that runs.
            access: Path of its connection file, instead.
            timeout: Give up after this many seconds.
        Raises:
            NoCluster: There is no such cluster, or no single one to choose.
            ControllerUnreachable: None of its addresses answered; the message lists each.
            AccessRefused: The connection file is not ours, or of another cluster.
            VersionMismatch: It is of another version.
        """
        super().__init__()
        found = find_access(cluster, None if access is None else Path(access))
        self._connection = Connection(found, timeout)
        self._interrupted: deque[AsyncResult] = deque(maxlen=INTERRUPTED_KEPT)
        self._calls: weakref.WeakValueDictionary[int, AsyncResult] = weakref.WeakValueDictionary()
        # Not join: a garbage collection may drop the Client in its own I/O thread.
        weakref.finalize(self, self._connection.ask_to_close).atexit = False
        if find_shell() is not None:
            hpcviews.activate_first(self)  # by the package's lazy names: magics lie above the client

    def __repr__(self) -> str:
        connection = self._connection
        state = "closed" if connection.is_closed else f"{len(self)} engines"
        return f"<Client of {connection.cluster!r} at {connection.endpoint}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client cannot be sent or pickled; make one where it is needed: hpcviews.Client()")

    # ------------------------------------------------------------ engines and views

    @property
    def cluster(self) -> str:
        """Name of the cluster."""
        return self._connection.cluster

    @property
    def session(self) -> Session:
        """What the msg_ids of this client begin with."""
        return self._connection.session

    @property
    def ids(self) -> list[EngineId]:
        """Registered engines, ascending; always current."""
        return list(self._connection.registry.ids)

    @property
    def engines(self) -> dict[EngineId, m.EngineInfo]:
        """What is known of the registered engines, by id."""
        return self._connection.registry.engines

    @property
    def engine_sets(self) -> list[m.SetInfo]:
        """The engine sets: what was started, and how it is."""
        return self._connection.registry.sets

    def __len__(self) -> int:
        return self._connection.registry.count

    def __bool__(self) -> bool:
        return True  # also while no engine is registered

    def __iter__(self) -> Iterator[DirectView]:
        for engine_id in self.ids:
            yield self.direct_view(engine_id)

    def __getitem__(self, key: Any) -> DirectView:
        """A direct view: by engine id, slice of `ids`, or iterable of engine ids."""
        if key is None or isinstance(key, str):
            raise TypeError(f"key by int/slice/iterable of ints only, not {type(key)}")
        return self.direct_view(key)

    def direct_view(self, targets: Any = "all", **flags: Any) -> DirectView:
        """A view of certain engines; with "all", of those that are there at each call."""
        return DirectView(self, targets=targets, **flags)

    def activate(self, targets: Any = "all", suffix: str = "") -> DirectView:
        """Make a view whose calls wait, define ``%px<suffix>`` and its relatives for it in IPython, and return it.

        Outside of IPython there is a warning, and nothing is defined.
        """
        view = self.direct_view(targets, block=True)
        view.activate(suffix)
        return view

    def load_balanced_view(self, targets: Any = None, **flags: Any) -> LoadBalancedView:
        """A view whose tasks go to whichever engine is free; `targets` restricts the choice."""
        return LoadBalancedView(self, targets=targets, **flags)

    def broadcast_view(self, targets: Any = "all", is_coalescing: bool = False, **flags: Any) -> BroadcastView:
        """A direct view of the engines that are there now, by the name ipyparallel has for it."""
        return BroadcastView(self, targets=targets, is_coalescing=is_coalescing, **flags)

    def executor(self, targets: Any = None) -> ViewExecutor:
        """A `concurrent.futures.Executor` on whichever engines are free; `targets` restricts the choice."""
        return self.load_balanced_view(targets).executor

    def wait_for_engines(
        self,
        n: int | None = None,
        *,
        timeout: float | None = -1,
        block: bool = True,
        interactive: bool | None = None,
        widget: bool | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> Future[None] | None:
        """Wait until at least `n` engines are registered.

        Args:
            n: How many; None: all that are being started.
            timeout: Give up after this many seconds; None or negative waits for ever.
            block: False: return a future of it at once.
            interactive: Show a progress bar: True from the beginning, False never, None if it takes long; where
                somebody watches, in a terminal or a notebook.
            widget: Draw it as in a notebook, or as in a terminal; None: as what stdout is.
            on_progress: Called with the number of engines that are there, and `n`, whenever it changed.
        Raises:
            TimeoutError: They are not there in time; the message has the numbers.
            LaunchError: The engines' start failed, as the class that says how: NoShow, MpiMismatch, …
            EngineError: An engine was lost meanwhile, and those that are left and to come are too few.
            ControllerLost: The connection broke.
        """
        self._connection.check_usable()
        timeout_s = None if timeout is None or timeout < 0 else timeout
        registry = self._connection.registry
        if not block:
            return registry.wait_for_engines_async(n, timeout_s, on_progress)
        after_s = 0.0 if interactive else SHOWN_AFTER_S
        numbers = registry.count, registry.count if n is None else n
        with showing("engines", lambda: numbers, after_s=after_s, widget=widget, is_wanted=interactive) as notify:

            def note(ready: int, wanted: int) -> None:
                nonlocal numbers
                numbers = ready, wanted
                notify()
                if on_progress is not None:
                    on_progress(ready, wanted)

            registry.wait_for_engines(n, timeout_s, note)
        return None

    # ------------------------------------------------------------ what was submitted

    @property
    def history(self) -> History:
        """msg_ids of all requests of this client, in the order they were submitted."""
        return self._connection.requests.history

    @property
    def outstanding(self) -> set[MsgId]:
        """msg_ids of the requests that have not ended."""
        return self._connection.requests.get_outstanding()

    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool:
        """Wait for requests.

        Args:
            jobs: None: everything outstanding. An AsyncResult or another future, a msg_id, a position in `history`,
                or a list of those.
            timeout: Give up after this many seconds; None or negative waits for ever.
        Returns:
            Whether they have ended.
        """
        if jobs is None:
            jobs = self._get_outstanding_calls()
        return self._wait_for(jobs, self.history, timeout)

    def wait_interactive(
        self, jobs: Any = None, interval: float = 1.0, timeout: float | None = -1, widget: bool | None = None
    ) -> None:
        """As `wait`, with a progress bar in terminals and notebooks, which counts requests (of maps: items).

        Args:
            jobs: As for `wait`.
            interval: Draw it at most this often, in seconds.
            timeout: Give up after this many seconds; None or negative waits for ever. No error is raised.
            widget: Draw it as in a notebook, or as in a terminal; None: as what stdout is.
        """
        if jobs is None:
            jobs = self._get_outstanding_calls()
        futures = list(dict.fromkeys(self._iterate_futures(jobs, self.history)))

        def read() -> tuple[int, int]:
            counts = [(f.progress, len(f)) if isinstance(f, AsyncResult) else (int(f.done()), 1) for f in futures]
            return sum(done for done, _ in counts), sum(total for _, total in counts)

        with showing("requests", read, period_s=interval, widget=widget) as notify, ExitStack() as listening:
            for future in futures:
                if isinstance(future, AsyncResult):
                    listening.enter_context(future.listening(notify))
                else:
                    future.add_done_callback(lambda _: notify())
            self._wait_for(futures, self.history, timeout)

    def abort(self, jobs: Any = None, targets: Any = None, block: bool | None = None) -> Future[None] | None:
        """Withdraw requests that have not started; they end with TaskAborted.

        Args:
            jobs: None: everything of this client that is outstanding. Or AsyncResults, msg_ids (of other clients too),
                positions in `history`, or a list of those.
            targets: Only what these engines hold; None: wherever it is.
            block: Return when the controller has asked the engines for them, and None; else a future of that, at
                once. None: as the flag. What runs goes on in any case.
        """
        if jobs is None:
            jobs = self.outstanding  # also those whose AsyncResult nobody holds
        return self._ask(asking.make_abort(self, jobs, self.history, targets), block)

    def get_result(self, indices_or_msg_ids: Any = None, block: bool | None = None, owner: bool = True) -> AsyncResult:
        """The AsyncResult of earlier requests: of this client, of another one, or of an earlier life of this program.

        Results that are not here are kept by the controller within bounds; running requests are waited for.

        Args:
            indices_or_msg_ids: A msg_id; a position in `history` (None: the last), which gives the whole call it
                belongs to; or a list of those.
            block: Wait until it has ended; None: as the flag. Errors, also of requests that are not known, are raised
                by `AsyncResult.get`.
            owner: Has no effect; for programs written for ipyparallel.
        Raises:
            TypeError: That names no requests.
        """
        return asking.get_result(self, indices_or_msg_ids, self.history, block)

    def resubmit(self, indices_or_msg_ids: Any = None, metadata: Any = None, block: bool | None = None) -> AsyncResult:
        """Run earlier requests once more, of whatever client, as tasks of this one.

        Args:
            indices_or_msg_ids: As for `get_result`.
            metadata: Has no effect; for programs written for ipyparallel.
            block: Wait until they have ended; None: as the flag.
        Returns:
            Their AsyncResult. A request that is not known, or was too big to be kept, ends with NoSuchRequest.
        """
        return asking.resubmit(self, indices_or_msg_ids, self.history, block)

    def result_status(self, msg_ids: Any, status_only: bool = True) -> dict[str, Any]:
        """Which requests have ended: ``{"pending": […], "completed": […], "status": "ok"}``.

        Args:
            msg_ids: As for `get_result`.
            status_only: Without the values; with False, each completed msg_id is a key for its value (or its error).
        Raises:
            NoSuchRequest: One of them is not known.
        """
        return asking.get_result_status(self, msg_ids, self.history, status_only)

    def queue_status(self, targets: Any = "all", verbose: bool = False) -> dict[Any, Any]:
        """What waits on engines: ``{id: {"queue": n, "completed": n, "tasks": n}, …, "unassigned": n}``.

        `queue` counts requests for the engine, `tasks` tasks of load-balanced views that it holds, `unassigned` tasks
        that wait for an engine or for other requests.

        Args:
            targets: Which engines; of an integer, the inner dict alone.
            verbose: Lists of msg_ids instead of numbers.
        """
        return asking.get_queue_status(self, targets, verbose)

    def purge_results(self, jobs: Any = (), targets: Any = ()) -> None:
        """Have the controller forget records of requests that have ended, and forget their results here.

        Args:
            jobs: "all", or as for `get_result`.
            targets: And those that ran on these engines.
        Raises:
            ValueError: Neither is given.
            OutstandingRequests: Some have not ended; a RuntimeError too. Nothing was forgotten.
        """
        self.purge_local_results(jobs, targets)
        self.purge_hub_results(jobs, targets)

    def purge_hub_results(self, jobs: Any = (), targets: Any = ()) -> None:
        """As `purge_results`, at the controller only."""
        asking.purge(self, jobs, targets, self.history)

    def purge_local_results(self, jobs: Any = (), targets: Any = ()) -> None:
        """As `purge_results`, here only. Nothing is kept here beside what AsyncResults hold, so it only checks."""
        asking.check_purge(self, jobs, targets, self.history)

    def purge_everything(self) -> None:
        """Have the controller forget everything that has ended, and begin a new `history`.

        Raises:
            OutstandingRequests: Something of this client has not ended. Nothing was forgotten.
        """
        self.purge_results("all")
        self._interrupted.clear()
        self.history.clear()

    def hub_history(self) -> list[MsgId]:
        """msg_ids of all requests that the controller knows, of all clients, in the order they were submitted."""
        return [record["msg_id"] for record in self.db_query({}, ["msg_id"])]

    def db_query(self, query: dict[str, Any], keys: list[str] | None = None) -> list[dict[str, Any]]:
        """The records of requests, of all clients, finished or not, that match.

        Args:
            query: Field names and what they are to be: a value, or a dict of operators: ``$in $nin $eq $ne $gt $gte
                $lt $lte $glob``, as in ``{"engine_id": {"$in": [0, 1]}, "started": {"$gt": then}}``. All must hold.
            keys: Fields to give; None: all. msg_id is always given.
        Raises:
            UsageError: There is no such operator or field; the message lists them.
        """
        return asking.query_records(self, query, keys)

    @property
    def results(self) -> LiveMapping:
        """Values by msg_id, of the requests that have ended and whose AsyncResults somebody holds."""
        return LiveMapping(lambda: list(self._calls.values()), read_outcome)

    @property
    def metadata(self) -> LiveMapping:
        """Metadata by msg_id, of the same."""
        return LiveMapping(lambda: list(self._calls.values()), Call.make_metadata)

    def spin(self) -> None:
        """Nothing: results arrive by themselves. For programs written for IPython.parallel."""

    def find_call(self, msg_id: str) -> AsyncResult | None:
        """The call of this client that a request belongs to, if somebody holds it."""
        try:
            session, seq = parse_msg_id(msg_id)
        except ValueError:
            return None
        if session == self.session:
            for call in list(self._calls.values()):
                if call.first <= seq < call.first + len(call.slots):
                    return call
        return None

    def _get_outstanding_calls(self) -> list[AsyncResult]:
        waiting = self._connection.requests.get_outstanding_calls()
        return [result for call in waiting if (result := self._calls.get(call.first)) is not None]

    def _remember(self, call: AsyncResult) -> None:
        self._calls[call.first] = call

    def _keep(self, call: AsyncResult) -> None:
        self._interrupted.append(call)

    def _iterate_futures(self, jobs: Any, history: History) -> Iterator[Future[Any]]:
        if isinstance(jobs, Future):
            yield jobs
        elif isinstance(jobs, int | str):
            (msg_id,) = asking.render_msg_ids(jobs, history)
            held = self.find_call(msg_id)
            if held is not None:
                yield held if isinstance(jobs, int) else held.pick(msg_id)
            elif parse_msg_id(msg_id)[0] != self.session:
                yield self.get_result(msg_id, block=False)
            # Else it is ours, nobody holds it and it is not outstanding, so it has ended.
        elif isinstance(jobs, float) or not hasattr(jobs, "__iter__"):
            raise TypeError(f"jobs must be AsyncResults, msg_ids or positions in the history, not {jobs!r}")
        else:
            for job in jobs:
                yield from self._iterate_futures(job, history)

    def _wait_for(self, jobs: Any, history: History, timeout: float | None) -> bool:
        futures = set(self._iterate_futures(jobs, history))
        if not all(future.done() for future in futures):
            self._connection.check_process()
        timeout_s = None if timeout is None or timeout < 0 else timeout
        return not wait_for_futures(futures, timeout_s).not_done

    # ------------------------------------------------------------ the cluster

    def status(self, timeout: float | None = 10) -> m.Status:
        """Ask the controller what runs.

        Raises:
            TimeoutError: It did not answer.
        """
        return self._connection.ask(m.StatusQuery, m.Status, timeout)

    def _get_control_targets(self) -> Any:
        return None

    def _end_cluster(self) -> None:
        self.stop_cluster()
        self.close()

    def stop_cluster(self, timeout: float | None = 60) -> None:
        """Stop the cluster, and return when its controller has gone.

        Raises:
            TimeoutError: It had not gone by then.
        """
        self._connection.stop_cluster(None if timeout is None or timeout < 0 else timeout)

    def close(self) -> None:
        """Leave the cluster. What was submitted runs on; AsyncResults that wait end with ControllerLost."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
