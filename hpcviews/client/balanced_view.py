"""Load-balanced views: the controller chooses the engine of each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from traitlets import TraitError, validate

from hpcviews.client import maps
from hpcviews.client.call import Call
from hpcviews.client.flags import IntFlag
from hpcviews.client.functions import PickledFunction
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


class LoadBalancedView(View):
    """A view whose calls are tasks, each of which runs on one engine that the controller chooses.

    Attributes:
        targets: The engines that may run them; None: any, also those that register later.
        retries: How often a task may be tried again after it failed or lost its engine.
    """

    retries = IntFlag(0)

    def __init__(self, client: Client | None = None, socket: None = None, targets: Any = None, **flags: Any):
        if targets is not None and not (isinstance(targets, str) and targets.lower() == "all") and client is not None:
            targets = parse_targets(targets, client._connection.registry.ids).ids
        elif isinstance(targets, str):
            targets = None
        super().__init__(client, socket, targets=targets, **flags)

    @validate("retries")
    def _check_retries(self, proposal: Any) -> int:
        # The upper bound is what fits a message: beyond it the I/O thread could not write the request.
        if not 0 <= proposal["value"] <= RETRIES_MAX:
            raise TraitError(f"retries must be 0 to {RETRIES_MAX}, not {proposal['value']}")
        return int(proposal["value"])

    def __len__(self) -> int:
        return len(self.client) if self.targets is None else len(self.targets)

    def _get_targets(self) -> list[int] | None:
        """The engines that may run a task, checked; None for any."""
        if self.targets is None:
            return None
        return list(parse_targets(self.targets, self._connection.registry.ids).ids)

    def _apply(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any], block: bool) -> Any:
        targets = self._get_targets()
        track = self.track
        function = self._pickle_function(f, track)
        payload = self._dumps((args, kwargs), track)
        first = self._connection.reserve(1)
        call = Call(self.client, get_call_name(f), first, 1)
        result = AsyncResult(
            Slots.of_call(call), targets=None, is_single=True, tracker=merge_trackers([payload, function.payload])
        )
        task = m.Task(payload.data, len(payload.frames), first, "apply", function.digest, targets, self.retries)
        seqs = range(first, first + 1)
        self._connection.post(call, seqs, [task], payload.frames, function)
        self._record(result, seqs)
        del args, kwargs, payload, function
        return self._finish(result, block)

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
        Returns:
            The list of results, or an AsyncMapResult.
        Raises:
            SerializationError: An item cannot be pickled. Tasks sent before it was reached are withdrawn.
        """
        if chunksize < 0:
            raise UsageError(f"chunksize must be 1 or more, not {chunksize}")
        chunksize = chunksize or 1  # as in IPython.parallel, 0 means one item per task
        targets = self._get_targets()
        is_tracked = self.track if track is None else track
        ready, count = maps.cut_for_map(sequences)
        if chunksize < RANGE_CHUNK_MIN:
            ready = [list(seq[:count]) if type(seq) is range else seq for seq in ready]
        bounds = maps.chunk_bounds(count, chunksize)
        function = self._pickle_function(f, is_tracked)
        first = self._connection.reserve(len(bounds))
        call = Call(self.client, get_call_name(f), first, len(bounds), keep_arrivals=not ordered)
        sizes = [stop - start for start, stop in bounds]
        result = AsyncMapResult(call, sizes, targets=None, return_exceptions=return_exceptions)
        self._post_tasks(call, result, ready, bounds, function, targets, return_exceptions, is_tracked)
        del ready, sequences, function
        return self._finish(result, self.block if block is None else block)

    def _post_tasks(
        self,
        call: Call,
        result: AsyncMapResult,
        sequences: list[Any],
        bounds: list[tuple[int, int]],
        function: PickledFunction,
        targets: list[int] | None,
        return_exceptions: bool,
        track: bool,
    ) -> None:
        retries = self.retries
        digest = function.digest
        tracked: list[Payload] = [function.payload] if track else []
        messages: list[m.Message] = []
        frames: list[Any] = []
        size = 0
        done: int = call.first
        seq: int = call.first
        for start, stop in bounds:
            try:
                payload = self._dumps(([s[start:stop] for s in sequences], return_exceptions), track)
            except SerializationError as error:
                self._connection.post(None, range(0), [m.Abort(list(range(call.first, done)))], [])
                raise SerializationError(f"items {start} to {stop - 1}: {error}") from error
            own = payload.frames
            messages.append(m.Task(payload.data, len(own), seq, "map", digest, targets, retries))
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
