"""Load-balanced views: the controller chooses the engine of each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from traitlets import TraitError, validate

import hpcviews
from hpcviews.client import maps
from hpcviews.client.call import Call
from hpcviews.client.dependency import Dependency, RenderedDependency
from hpcviews.client.flags import AnyFlag, IntFlag
from hpcviews.client.functions import PickledFunction
from hpcviews.client.lazy_map import ITEMS_PER_ENGINE, LazyMapIterator
from hpcviews.client.map_result import AsyncMapResult
from hpcviews.client.outgoing import ALONE_BYTES_MIN
from hpcviews.client.results import AsyncResult
from hpcviews.client.slots import Slots
from hpcviews.client.targets import parse_targets
from hpcviews.client.view import View, get_call_name, merge_trackers
from hpcviews.errors import SerializationError, UsageError
from hpcviews.wire import messages as m
from hpcviews.wire.payload import Payload
from hpcviews.wire.reference import Reference

if TYPE_CHECKING:
    from hpcviews.client.client import Client

PIECE_TASKS = 500
"""Tasks of a map that are pickled before the first of them is sent: a millisecond's work, so engines start while
the rest is being prepared."""

RANGE_CHUNK_MIN = 64
"""Chunks of a range below this are sent as lists: pickling a short list takes 2 µs, any range 6 µs."""


RETRIES_MAX = 2**31 - 1

TIMEOUT_MAX_S = 1e9
"""Thirty years: more is no limit. The controller takes no more."""


class LoadBalancedView(View):
    """A view whose calls are tasks, each of which runs on one engine that the controller chooses.

    Attributes:
        targets: The engines that may run them; None: any, also those that register later.
        retries: How often a task may be tried again after it failed or lost its engine. Engines that have not tried it
            go first.
        after: Run tasks only after these requests have ended: AsyncResults or msg_ids, of any view and any client,
            one, several, or a Dependency, which says how they count; None: none. Reads as a Dependency.
        follow: Run tasks only on an engine where these requests ran; as `after`.
        timeout: Seconds until a task must have begun on an engine; else it ends, with DependencyTimeout where it still
            waited for requests, with TaskTimeout where engines were busy or not there. It limits neither the run nor
            retries. A task that all engines refuse waits for others so long. 0 or None: no limit.
    """

    is_load_balanced = True

    retries = IntFlag(0)
    after = AnyFlag(None)
    follow = AnyFlag(None)
    timeout = AnyFlag(0.0)

    def __init__(self, client: Client | None = None, socket: None = None, targets: Any = None, **flags: Any):
        if targets is not None and not (isinstance(targets, str) and targets.lower() == "all") and client is not None:
            targets = parse_targets(targets, client._connection.registry.ids).ids
        elif isinstance(targets, str):
            targets = None
        self._rendered: dict[str, RenderedDependency] = {}
        super().__init__(client, socket, targets=targets, **flags)

    @validate("retries")
    def _check_retries(self, proposal: Any) -> int:
        # The upper bound is what fits a message: beyond it the I/O thread could not write the request.
        if not 0 <= proposal["value"] <= RETRIES_MAX:
            raise TraitError(f"retries must be 0 to {RETRIES_MAX}, not {proposal['value']}")
        return int(proposal["value"])

    @validate("after", "follow")
    def _check_dependency(self, proposal: Any) -> Dependency:
        value = proposal["value"]  # traitlets lets None pass by itself
        if isinstance(value, Dependency):
            return value.copy()
        try:
            return Dependency(value)
        except TypeError as error:
            raise ValueError(f"Invalid dependency: {value!r:.200}; {error}") from None

    @validate("timeout")
    def _check_timeout(self, proposal: Any) -> float:
        value = proposal["value"]
        if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
            raise TraitError(f"timeout must be seconds, or None for no limit, not {value!r:.80}")
        seconds = float(value)
        if not seconds >= 0:  # NaN too
            raise ValueError(f"timeout must be 0 or more seconds, not {value}; 0 or None: no limit")
        return seconds if seconds <= TIMEOUT_MAX_S else 0.0

    def register_joblib_backend(self, name: str = "hpcviews", make_default: bool = False) -> None:
        """Let joblib, and so scikit-learn, run jobs through this view: see `hpcviews.register_joblib_backend`."""
        # By the package's lazy names: bridges lie above the client, and joblib need not be installed.
        hpcviews.register_joblib_backend(name, make_default, view=self)

    def __len__(self) -> int:
        return len(self.client) if self.targets is None else len(self.targets)

    def _get_targets(self) -> list[int] | None:
        """The engines that may run a task, checked; None for any."""
        if self.targets is None:
            return None
        return list(parse_targets(self.targets, self._connection.registry.ids).ids)

    def _make_conditions(self) -> m.Conditions | None:
        """What a task waits for beside a free engine, by the flags of this thread."""
        after, follow, timeout_s = self._render("after"), self._render("follow"), self.timeout or 0.0
        if after is None and follow is None and not timeout_s:
            return None
        return m.Conditions(after and after.message, follow and follow.message, timeout_s)

    def _render(self, flag: str) -> RenderedDependency | None:
        """A dependency as it travels; kept, because that of a big map takes milliseconds to make."""
        value: Dependency | None = getattr(self, flag)
        if not value:
            return None
        known = self._rendered.get(flag)
        if known is None or not known.value.is_same(value):
            known = self._rendered[flag] = value.render()
        return known

    def _make_call(self, name: str, count: int, label: str | None = None, **options: Any) -> Call:
        after, follow = self._render("after"), self._render("follow")
        return super()._make_call(
            name, count, label, after=after.msg_ids if after else (), follow=follow.msg_ids if follow else (), **options
        )

    def _apply(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any], block: bool) -> Any:
        targets = self._get_targets()
        function = self._pickle_function(f, self.track)
        result = self._send_task(get_call_name(f), function, args, kwargs, targets)
        del args, kwargs, function
        return self._finish(result, block)

    def _send_task(
        self,
        name: str,
        function: PickledFunction,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        targets: list[int] | None,
    ) -> AsyncResult:
        payload = self._dumps((args, kwargs), self.track, self._make_find_pool(targets))
        call = self._make_call(name, 1)
        first = call.first
        result = AsyncResult(
            Slots.of_call(call), targets=None, is_single=True, tracker=merge_trackers([payload, function.payload])
        )
        task = m.Task(
            payload.data,
            len(payload.frames),
            first,
            "apply",
            function.digest,
            targets,
            self.retries,
            call.label,
            self._make_conditions(),
            may_share=self.plane != "frames",
        )
        seqs = range(first, first + 1)
        self._connection.post(call, seqs, [task], payload.frames, function)
        self._record(result, seqs)
        return result

    def map(
        self,
        f: Callable[..., Any] | Reference,
        /,
        *sequences: Any,
        block: bool | None = None,
        track: bool | None = None,
        chunksize: int = 1,
        ordered: bool = True,
        return_exceptions: bool = False,
        label: str | None = None,
    ) -> Any:
        """Parallel `map`, load-balanced. Arrays are sent uncopied: with ``block=False`` leave them alone until
        `AsyncResult.wait_for_send` (with ``track=True``) or the result.

        Args:
            f: Called with one item of each sequence. Or a Reference.
            sequences: Any iterables; the shortest one counts.
            block: Wait for the results; None: as the view's flag.
            track: Make a MessageTracker; None: as the view's flag.
            chunksize: Items of one task.
            ordered: Whether iterating over the AsyncMapResult gives results in the order of the items, or as they
                arrive. `get` always gives the order of the items.
            return_exceptions: Give a RemoteError in place of the result of each item that failed.
            label: Your own word for it; None: as the view's flag.
        Returns:
            The list of results, or an AsyncMapResult.
        Raises:
            SerializationError: An item cannot be pickled. Tasks sent before it was reached are withdrawn.
        """
        chunksize = _check_chunksize(chunksize)
        targets = self._get_targets()
        is_tracked = self.track if track is None else track
        ready, count = maps.cut_for_map(sequences)
        if chunksize < RANGE_CHUNK_MIN:
            ready = [list(seq[:count]) if type(seq) is range else seq for seq in ready]
        bounds = maps.chunk_bounds(count, chunksize)
        function = self._pickle_function(f, is_tracked)
        call = self._make_call(get_call_name(f), len(bounds), label, keep_arrivals=not ordered)
        sizes = [stop - start for start, stop in bounds]
        result = AsyncMapResult(call, sizes, targets=None, return_exceptions=return_exceptions)
        chunks = (([seq[start:stop] for seq in ready], return_exceptions) for start, stop in bounds)
        self._post_tasks(call, result, "map", chunks, sizes, function, targets, is_tracked)
        del ready, sequences, function, chunks
        return self._finish(result, self.block if block is None else block)

    def imap(
        self,
        f: Callable[..., Any] | Reference,
        /,
        *sequences: Any,
        ordered: bool = True,
        max_outstanding: int | str = "auto",
        return_exceptions: bool = False,
    ) -> LazyMapIterator:
        """Iterate over the results of `f` for inputs that are taken as it goes: they may be endless, or slow.

        Args:
            f: Called with one item of each sequence, a task each. Or a Reference.
            sequences: Any iterables; the shortest one counts. They are iterated in a thread, not in the caller's.
            ordered: Give results in the order of the inputs; else as they arrive.
            max_outstanding: How many inputs may have been taken whose results have not been given, so that a slow
                consumer holds the inputs back. "auto": four per engine. 0: no limit.
            return_exceptions: Give an error in place of the result of a call that failed, and go on.
        Returns:
            An iterator, which ends with the first error, of a call or of the inputs. Its `cancel` ends it early.
        """
        limit = max_outstanding
        if limit != "auto" and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise UsageError(f"max_outstanding must be 'auto', or an integer from 0 on, not {limit!r}")
        if not sequences:
            raise TypeError("imap() needs a function and at least one sequence")
        rows = zip(*sequences, strict=False)
        targets = self._get_targets()
        function = self._pickle_function(f, self.track)
        name = get_call_name(f)
        # This thread's flags, for the thread that submits; also those that are set for a with-block.
        flags = {flag: getattr(self, flag) for flag in self.flag_names()}
        return LazyMapIterator(
            rows,
            lambda row: self._send_task(name, function, row, {}, targets),
            lambda: max(1, ITEMS_PER_ENGINE * len(self)) if isinstance(limit, str) else limit,
            self.temp_flags(**flags),
            is_ordered=ordered,
            return_exceptions=return_exceptions,
        )

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
        """Call `f` once for each `chunksize` items of the sequences, on any engine. Arrays are sent uncopied."""
        ready, length = maps.measure(sequences)
        rows, sizes = maps.cut_in_parts(ready, -(-length // _check_chunksize(chunksize or 1)), dist)
        targets = self._get_targets()
        function = self._pickle_function(f, self.track)
        call = self._make_call(get_call_name(f), len(rows), keep_arrivals=not ordered)
        result = AsyncMapResult(call, sizes, targets=None, dist=dist, is_map=False, return_exceptions=return_exceptions)
        self._post_tasks(call, result, "apply", ((row, {}) for row in rows), sizes, function, targets, self.track)
        del ready, rows, sequences, function
        return self._finish(result, self.block if block is None else block)

    def _post_tasks(
        self,
        call: Call,
        result: AsyncMapResult,
        op: str,
        arguments: Iterable[Any],
        sizes: list[int],
        function: PickledFunction,
        targets: list[int] | None,
        track: bool,
    ) -> None:
        """Tasks of one call, in pieces, so that engines start before the last is pickled."""
        retries, label, conditions = self.retries, call.label, self._make_conditions()
        digest = function.digest
        find_pool = self._make_find_pool(targets)
        may_share = self.plane != "frames"
        tracked: list[Payload] = [function.payload] if track else []
        messages: list[m.Message] = []
        frames: list[Any] = []
        size = 0
        done: int = call.first
        seq: int = call.first
        for argument in arguments:
            try:
                payload = self._dumps(argument, track, find_pool)
            except SerializationError as error:
                self._connection.post(None, range(0), [m.Abort(list(range(call.first, done)))], [])
                start = sum(sizes[: seq - call.first])
                stop = start + sizes[seq - call.first]
                raise SerializationError(f"items {start} to {stop - 1}: {error}") from error
            own = payload.frames
            messages.append(
                m.Task(payload.data, len(own), seq, op, digest, targets, retries, label, conditions, may_share)
            )
            seq += 1
            if own:
                frames += own
                size += payload.nbytes
                if track:
                    tracked.append(payload)
            if len(messages) >= PIECE_TASKS or size >= ALONE_BYTES_MIN:
                self._post_piece(call, result, range(done, seq), messages, frames, function)
                done, messages, frames, size = seq, [], [], 0
        if messages:
            self._post_piece(call, result, range(done, seq), messages, frames, function)
        if track:
            result.set_tracker(merge_trackers(tracked))

    def _post_piece(
        self,
        call: Call,
        result: AsyncMapResult,
        seqs: range,
        messages: list[m.Message],
        frames: list[Any],
        function: PickledFunction,
    ) -> None:
        self._connection.post(call, seqs, messages, frames, function)
        self._record(result, seqs)


def _check_chunksize(chunksize: int) -> int:
    if chunksize < 0:
        raise UsageError(f"chunksize must be 1 or more, not {chunksize}")
    return chunksize or 1  # as in IPython.parallel, 0 means one item per task
