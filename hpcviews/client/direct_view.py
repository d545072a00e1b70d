"""Direct views: every call goes to exactly the engines it names."""

from __future__ import annotations

import os
import time
import tokenize
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import hpcviews
from hpcviews.client import maps
from hpcviews.client.call import Call, Decode
from hpcviews.client.functions import PickledFunction
from hpcviews.client.map_result import AsyncMapResult
from hpcviews.client.replies import ExecuteReply
from hpcviews.client.results import AsyncResult
from hpcviews.client.screen import find_shell
from hpcviews.client.slots import Slots
from hpcviews.client.synced_imports import SyncedImports
from hpcviews.client.targets import Targets, freeze_targets, parse_targets
from hpcviews.client.transfers import Transfer
from hpcviews.client.view import View, get_call_name, merge_trackers
from hpcviews.errors import UsageError
from hpcviews.wire import messages as m
from hpcviews.wire.payload import Payload
from hpcviews.wire.reference import Reference

if TYPE_CHECKING:
    from hpcviews.client.client import Client


class _Moving(NamedTuple):
    """Values that a call moves."""

    names: list[str]
    began: float
    """time.perf_counter()"""


class DirectView(View):
    """A view of certain engines, with access to their namespaces like a dictionary's.

    Requests of one client to one engine run in the order they were sent. A call with an integer as targets gives
    one value, any other a list in the order of the targets.
    """

    def __init__(self, client: Client | None = None, socket: None = None, targets: Any = "all", **flags: Any):
        if client is not None:
            targets = freeze_targets(targets, client._connection.registry.ids)
        super().__init__(client, socket, targets=targets, **flags)

    def __len__(self) -> int:
        if isinstance(self.targets, int):
            return 1
        if self.targets is None or self.targets == "all":
            return len(self.client)
        return len(self.targets)

    # ------------------------------------------------------------ sending

    def _resolve(self, targets: Any = None) -> Targets:
        return parse_targets(self.targets if targets is None else targets, self._connection.registry.ids)

    def _send(
        self,
        op: str,
        payload: Payload,
        targets: Targets,
        name: str,
        function: PickledFunction | None = None,
        decode: Decode | None = None,
        label: str | None = None,
        moving: _Moving | None = None,
    ) -> AsyncResult:
        """The same payload to all targets: one message, which the controller fans out."""
        tracker = merge_trackers([payload, function.payload] if function is not None else [payload])
        call = self._make_call(name, len(targets.ids), label, decode=decode)
        if moving is not None:
            self._connection.transfers.note(op, moving.names, call.traffic, moving.began)
        result = AsyncResult(
            Slots.of_call(call), targets=_render_targets(targets), is_single=targets.is_single, tracker=tracker
        )
        self._post_to_all(call, result, op, payload, targets, function)
        return result

    def _post_to_all(
        self,
        call: Call,
        result: AsyncResult,
        op: str,
        payload: Payload,
        targets: Targets,
        function: PickledFunction | None = None,
    ) -> None:
        if not targets.ids:
            return
        seqs = range(call.first, call.first + len(targets.ids))
        request = m.Request(
            payload.data,
            len(payload.frames),
            call.first,
            list(targets.ids),
            op,
            function.digest if function is not None else b"",
            call.label,
            may_share=self.plane != "frames",
        )
        self._connection.post(call, seqs, [request], payload.frames, function)
        self._record(result, seqs)

    def _post_to_each(
        self,
        call: Call,
        result: AsyncResult,
        op: str,
        payloads: list[Payload],
        targets: Targets,
        function: PickledFunction | None = None,
    ) -> None:
        """A payload of its own to each target, all in one piece."""
        if not payloads:
            return
        seqs = range(call.first, call.first + len(payloads))
        digest = function.digest if function is not None else b""
        may_share = self.plane != "frames"
        messages: list[m.Message] = [
            m.Request(payload.data, len(payload.frames), seq, [target], op, digest, call.label, may_share)
            for payload, seq, target in zip(payloads, seqs, targets.ids, strict=False)
        ]
        frames = [frame for payload in payloads for frame in payload.frames]
        self._connection.post(call, seqs, messages, frames, function)
        self._record(result, seqs)

    def _get_block(self, block: bool | None) -> bool:
        return self.block if block is None else block

    def _get_track(self, track: bool | None) -> bool:
        return self.track if track is None else track

    def activate(self, suffix: str = "") -> None:
        """Define ``%px<suffix>``, ``%%px<suffix>``, ``%autopx<suffix>``, ``%pxresult<suffix>`` and
        ``%pxconfig<suffix>`` for this view in IPython. Outside of IPython there is a warning, and nothing is defined.
        """
        if find_shell() is None:
            warnings.warn("this is not IPython, so there are no magics to activate", UserWarning, stacklevel=2)
        else:
            hpcviews.activate_magics(self, suffix)  # by the package's lazy names: magics lie above the client

    # ------------------------------------------------------------ calling

    def _apply(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any], block: bool) -> Any:
        targets = self._resolve()
        track = self.track
        function = self._pickle_function(f, track)
        payload = self._dumps((args, kwargs), track, self._make_find_pool(targets.ids))
        result = self._send("apply", payload, targets, get_call_name(f), function)
        del args, kwargs, payload, function
        return self._finish(result, block)

    def execute(
        self,
        code: str,
        silent: bool = True,
        targets: Any = None,
        block: bool | None = None,
        label: str | None = None,
    ) -> AsyncResult:
        """Execute source text in the namespaces of the engines.

        Args:
            code: Python source. Where IPython is installed on the engines, also magics and ``!commands``; and if this
                program runs in IPython, what is displayed there appears here.
            silent: Do not count it (`ExecuteReply.execution_count`) and keep no result of it. A failing cell that is
                not silent aborts the `execute` requests that wait on its engine.
            targets: Which engines; None: those of this view.
            block: Wait until it is done; None: as the view's flag. The AsyncResult is returned in any case.
            label: Your own word for it; None: as the view's flag.
        Raises:
            RemoteError, CompositeError: With `block`, it raised on an engine.
        """
        return self._execute(code, silent, "", targets, block, label)

    def _execute(
        self, code: str, silent: bool, filename: str, targets: Any, block: bool | None, label: str | None
    ) -> AsyncResult:
        if not isinstance(code, str):
            raise TypeError(f"code must be text, not {type(code)}")
        payload = self._dumps((code, silent, filename, find_shell() is not None))
        decode = ExecuteReply.decode
        result = self._send("execute", payload, self._resolve(targets), "execute", decode=decode, label=label)
        self._finish(result, self._get_block(block))
        return result

    def run(
        self,
        filename: str | os.PathLike[str],
        targets: Any = None,
        block: bool | None = None,
        label: str | None = None,
    ) -> AsyncResult:
        """Execute a file of this side in the namespaces of the engines; see `execute`.

        Raises:
            FileNotFoundError: It is not there. Nothing was sent.
        """
        path = os.fspath(filename)
        with tokenize.open(path) as file:  # honours an encoding cookie, as Python does
            code = file.read()
        return self._execute(f"{code}\n", True, path, targets, block, label)

    def clear(self, targets: Any = None, block: bool | None = None) -> Any:
        """Clear the namespaces of the engines, in order with their other requests."""
        result = self._send("clear", self._dumps(None), self._resolve(targets), "clear")
        return self._finish(result, self._get_block(block))

    # ------------------------------------------------------------ namespaces

    def push(
        self, ns: Mapping[str, Any], targets: Any = None, block: bool | None = None, track: bool | None = None
    ) -> Any:
        """Assign values on the engines. Arrays are sent uncopied: with ``block=False`` leave them alone until
        `AsyncResult.wait_for_send` (with ``track=True``) or the result.

        Args:
            ns: The values by name. Names may be anything that can be assigned to: ``a``, ``a.b``, ``d['x']``.
            targets: Which engines; None: those of this view.
            block: Wait until it is done; None: as the view's flag.
            track: Make a MessageTracker; None: as the view's flag.
        Returns:
            None per engine, or an AsyncResult of that.
        """
        if not isinstance(ns, Mapping):
            raise TypeError(f"Must be a dict, not {type(ns)}")
        _check_names(ns)
        chosen = self._resolve(targets)
        moving = _Moving(list(ns), time.perf_counter())
        payload = self._dumps(dict(ns), self._get_track(track), self._make_find_pool(chosen.ids))
        result = self._send("push", payload, chosen, "push", moving=moving)
        self._connection.remember_pushed([name for name in ns if name.isidentifier()])
        del payload, ns
        return self._finish(result, self._get_block(block))

    def update(self, ns: Mapping[str, Any]) -> Any:
        """As `push(ns)`: with ``block=False`` leave arrays alone until they are sent."""
        return self.push(ns)

    def __setitem__(self, name: str, value: Any) -> None:
        """As ``push({name: value})``: without `block` leave arrays alone until they are sent."""
        self.push({name: value})

    def pull(self, names: str | Iterable[str], targets: Any = None, block: bool | None = None) -> Any:
        """Get values from the engines.

        Args:
            names: An expression, evaluated in each namespace; or several, for a list of values per engine.
            targets: Which engines; None: those of this view.
            block: Wait for the values; None: as the view's flag.
        Returns:
            The value or list of values, per engine; or an AsyncResult of that.
        """
        if isinstance(names, str):
            wanted, single = [names], True
        elif isinstance(names, Iterable) and not isinstance(names, bytes):
            wanted, single = list(names), False
            _check_names(wanted)
        else:
            raise TypeError(f"names must be strs, not {names!r}")
        chosen = self._resolve(targets)
        moving = _Moving(wanted, time.perf_counter())
        self._make_find_pool(chosen.ids)
        result = self._send("pull", self._dumps((wanted, single)), chosen, "pull", moving=moving)
        return self._finish(result, self._get_block(block))

    def get(self, key_s: str | Iterable[str]) -> Any:
        """As `pull` with ``block=True``."""
        return self.pull(key_s, block=True)

    def __getitem__(self, key: str | list[str]) -> Any:
        return self.get(key)

    # ------------------------------------------------------------ imports and pickling

    def sync_imports(self, local: bool = True, quiet: bool = False) -> SyncedImports:
        """With-block whose import statements are executed on the engines too, as they stand: with their ``as``.

        Only statements of the block itself count, in the thread that runs it; relative ones are made absolute. On
        the engines they run in order with other requests; leaving the block waits for them.

        Args:
            local: Import here as well. Otherwise the names are unusable here after the block, or what they were
                before.
            quiet: Do not print what is imported.
        Raises:
            RemoteError, CompositeError: Leaving the block: an engine could not import something.
        """
        return SyncedImports(self, local, quiet)

    @property
    def importer(self) -> SyncedImports:
        """``sync_imports()`` without parentheses."""
        return self.sync_imports()

    def use_cloudpickle(self) -> Any:
        """Does nothing, and gives what a call on the engines gives: functions always travel by cloudpickle."""
        return self.apply(type(None))

    def use_pickle(self) -> Any:
        """Does nothing, and gives what a call on the engines gives: objects always travel by pickle protocol 5."""
        return self.apply(type(None))

    def use_dill(self) -> None:
        """Refused.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "dill is not used: functions, lambdas, closures and classes of __main__ travel by cloudpickle already, "
            "and dill has no way to send arrays uncopied; for an object that only dill can pickle, send dill.dumps(obj)"
        )

    # ------------------------------------------------------------ sequences

    def scatter(
        self,
        key: str,
        seq: Any,
        dist: str = "b",
        flatten: bool = False,
        targets: Any = None,
        block: bool | None = None,
        track: bool | None = None,
    ) -> AsyncResult | None:
        """Cut a sequence into parts, one per engine. Parts of an array are views of it and are sent uncopied: with
        ``block=False`` leave it alone until `AsyncResult.wait_for_send` (with ``track=True``) or the result.

        Args:
            key: Name of each part on its engine.
            seq: The sequence, or any iterable; arrays are cut along axis 0.
            dist: "b": contiguous blocks, "r": round robin.
            flatten: Where every part has exactly one item, send the items themselves.
            targets: Which engines; None: those of this view.
            block: Wait until it is done; None: as the view's flag.
            track: Make a MessageTracker; None: as the view's flag.
        Returns:
            None if it was waited for, else an AsyncResult.
        """
        began = time.perf_counter()
        _check_names([key])
        chosen = self._resolve(targets)
        is_tracked = self._get_track(track)
        parts = maps.partition(seq, len(chosen.ids), dist)
        if flatten:
            parts = maps.flatten_parts(parts)
        self._make_find_pool(chosen.ids)  # before any part is written
        payloads = [
            self._dumps({key: part}, is_tracked, self._make_find_pool([target]))
            for part, target in zip(parts, chosen.ids, strict=True)
        ]
        del parts, seq
        call = self._make_call("scatter", len(payloads))
        self._connection.transfers.note("scatter", [key], call.traffic, began)
        result = AsyncResult(
            Slots.of_call(call), targets=list(chosen.ids), is_single=False, tracker=merge_trackers(payloads)
        )
        self._post_to_each(call, result, "push", payloads, chosen)
        del payloads
        if key.isidentifier():
            self._connection.remember_pushed([key])
        if not self._get_block(block):
            return result
        self._finish(result, True)
        return None

    def gather(self, key: str, dist: str = "b", targets: Any = None, block: bool | None = None) -> Any:
        """Put together a sequence from its parts on the engines; the inverse of `scatter`.

        Args:
            key: Name of the parts.
            dist: As it was scattered.
            targets: Which engines; None: those of this view.
            block: Wait for it; None: as the view's flag.
        Returns:
            A sequence of the parts' type, or an AsyncMapResult of it; the list of parts if they are no sequences.
        """
        began = time.perf_counter()
        _check_names([key])
        maps.check_dist(dist)
        chosen = self._resolve(targets)
        count = len(chosen.ids)
        self._make_find_pool(chosen.ids)
        call = self._make_call("gather", count)
        self._connection.transfers.note("gather", [key], call.traffic, began)
        result = AsyncMapResult(call, None, targets=list(chosen.ids), dist=dist, is_map=False)
        self._post_to_all(call, result, "pull", self._dumps(([key], True)), chosen)
        return self._finish(result, self._get_block(block))

    def map(
        self,
        f: Callable[..., Any] | Reference,
        /,
        *sequences: Any,
        block: bool | None = None,
        track: bool | None = None,
        return_exceptions: bool = False,
        label: str | None = None,
    ) -> Any:
        """Parallel `map`: each engine gets one contiguous part of the sequences. Arrays are sent uncopied: with
        ``block=False`` leave them alone until `AsyncResult.wait_for_send` (with ``track=True``) or the result.

        Args:
            f: Called with one item of each sequence. Or a Reference.
            sequences: Any iterables; the shortest one counts.
            block: Wait for the results; None: as the view's flag.
            track: Make a MessageTracker; None: as the view's flag.
            return_exceptions: Give a RemoteError in place of the result of each item that failed.
            label: Your own word for it; None: as the view's flag.
        Returns:
            The list of results, or an AsyncMapResult.
        """
        chosen = self._resolve()
        is_tracked = self._get_track(track)
        ready, count = maps.cut_for_map(sequences)
        bounds = maps.block_bounds(count, len(chosen.ids))
        function = self._pickle_function(f, is_tracked)
        payloads = [
            self._dumps(
                ([seq[start:stop] for seq in ready], return_exceptions), is_tracked, self._make_find_pool([target])
            )
            for (start, stop), target in zip(bounds, chosen.ids, strict=False)
        ]
        call = self._make_call(get_call_name(f), len(payloads), label)
        result = AsyncMapResult(
            call,
            [stop - start for start, stop in bounds],
            targets=list(chosen.ids[: len(payloads)]),
            return_exceptions=return_exceptions,
            tracker=merge_trackers([*payloads, function.payload]),
        )
        self._post_to_each(call, result, "map", payloads, chosen, function)
        del payloads, ready, sequences, function
        return self._finish(result, self._get_block(block))

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
        """Call `f` on each engine with its part of the sequences. Arrays are sent uncopied."""
        chosen = self._resolve()
        ready, _ = maps.measure(sequences)
        rows, sizes = maps.cut_in_parts(ready, len(chosen.ids), dist)
        function = self._pickle_function(f, self.track)
        payloads = [
            self._dumps((row, {}), self.track, self._make_find_pool([target]))
            for row, target in zip(rows, chosen.ids, strict=False)
        ]
        del ready, rows, sequences
        call = self._make_call(get_call_name(f), len(payloads))
        result = AsyncMapResult(
            call,
            sizes,
            targets=list(chosen.ids[: len(payloads)]),
            dist=dist,
            is_map=False,
            return_exceptions=return_exceptions,
            tracker=merge_trackers([*payloads, function.payload]),
        )
        self._post_to_each(call, result, "apply", payloads, chosen, function)
        del payloads, function
        return self._finish(result, self._get_block(block))

    def explain_transfer(self, data: Any) -> Transfer:
        """Which way data go between this client and the engines of this view, and how fast.

        Args:
            data: A name: its last push, scatter, pull or gather by this client. Anything else: what a push of it
                would do; nothing is sent.
        Returns:
            A Transfer with plane, nbytes, seconds and gb_per_s; `str` makes a line of it.
        Raises:
            KeyError: Nothing of that name has been transferred.
            PlaneUnavailable: The flag `plane` says what cannot be.
        """
        return self._explain(data, self._resolve().ids)


def _render_targets(targets: Targets) -> int | list[int]:
    return int(targets.ids[0]) if targets.is_single else list(targets.ids)


def _check_names(names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"keys must be str, not type {type(name)}")
