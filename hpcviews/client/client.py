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
from hpcviews.client.balanced_view import LoadBalancedView
from hpcviews.client.broadcast_view import BroadcastView
from hpcviews.client.connection import Connection
from hpcviews.client.direct_view import DirectView
from hpcviews.client.engine_control import EngineControl
from hpcviews.client.executor import ViewExecutor
from hpcviews.client.history import History
from hpcviews.client.progress import SHOWN_AFTER_S, showing
from hpcviews.client.results import AsyncResult
from hpcviews.client.screen import find_shell
from hpcviews.client.slots import withdraw
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

    def abort(self, jobs: Any = None) -> None:
        """Withdraw requests that have not started; they end with TaskAborted.

        Args:
            jobs: None: everything outstanding; or as for `wait`.
        """
        if jobs is None:
            jobs = self._get_outstanding_calls()
        self._abort(jobs, self.history)

    def get_result(self, index_or_msg_id: Any = None) -> AsyncResult:
        """The AsyncResult of an earlier call.

        Args:
            index_or_msg_id: A position in `history` (None: the last), or a msg_id.
        Raises:
            KeyError: Its AsyncResult is gone: results live as long as somebody holds it.
        """
        return self._find_result(-1 if index_or_msg_id is None else index_or_msg_id, self.history)

    def _get_outstanding_calls(self) -> list[AsyncResult]:
        waiting = self._connection.requests.get_outstanding_calls()
        return [result for call in waiting if (result := self._calls.get(call.first)) is not None]

    def _remember(self, call: AsyncResult) -> None:
        self._calls[call.first] = call

    def _keep(self, call: AsyncResult) -> None:
        self._interrupted.append(call)

    def _find_result(self, index_or_msg_id: Any, history: History) -> AsyncResult:
        if isinstance(index_or_msg_id, bool | float) or not isinstance(index_or_msg_id, int | str):
            raise TypeError(f"a msg_id or a position in the history is needed, not {index_or_msg_id!r}")
        msg_id = history[index_or_msg_id] if isinstance(index_or_msg_id, int) else index_or_msg_id
        session, seq = parse_msg_id(msg_id)
        if session == self.session:
            for call in list(self._calls.values()):
                if call.first <= seq < call.first + len(call.slots):
                    return call
        raise KeyError(
            f"the result of {msg_id} is not here any more; results live as long as their AsyncResult, so keep it"
        )

    def _iterate_futures(self, jobs: Any, history: History) -> Iterator[Future[Any]]:
        if isinstance(jobs, Future):
            yield jobs
        elif isinstance(jobs, int | str):
            try:
                yield self._find_result(jobs, history)
            except KeyError:
                pass  # nobody holds it and it is not outstanding, so it has ended
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

    def _abort(self, jobs: Any, history: History) -> None:
        withdraw(
            request
            for future in self._iterate_futures(jobs, history)
            if isinstance(future, AsyncResult)
            for request in future.slots.get_unfinished()
        )

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
