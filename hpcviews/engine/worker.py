"""The main thread of an engine: takes one attempt after the other and runs user code."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import types
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from hpcviews.engine.operations import Operations
from hpcviews.errors import ImpossibleDependency, RemoteError, SerializationError, UnmetDependency
from hpcviews.wire import messages as m
from hpcviews.wire.dependent import dependent
from hpcviews.wire.payload import EMPTY, Payload, dumps, loads, refresh_captured
from hpcviews.wire.pool import SHARED_BYTES_MIN, Pool, lend

if TYPE_CHECKING:
    from hpcviews.engine.output import OutputCapture

_OUR_FILES = str(Path(__file__).resolve().parent.parent)
"""Frames of tracebacks in here are not the user's business."""

TRACEBACK_CHARS_MAX = 100_000
"""A recursion error's traceback, for example, is cut in the middle."""


NO_KEY = -1


class Sender(Protocol):
    """The part of the I/O thread that the worker needs."""

    def put(self, message: m.Message, frames: list[Any], flush: bool) -> None:
        """Queue a message for the controller; `flush`: nothing more comes soon."""


@dataclass(frozen=True)
class Ended:
    """Why the worker's loop ended."""

    code: int
    finalize: bool = False


class Worker:
    """Runs attempts, in the order they came.

    The I/O thread adds to `pending` and then puts the key into `keys`; whoever pops the key from `pending` owns the
    attempt, so one that was withdrawn is passed over. dict.pop is atomic: no lock is needed.
    """

    def __init__(self, namespace: dict[str, Any], info: m.EngineInfo):
        self.pending: dict[int, tuple[m.Run, list[Any]]] = {}
        self.keys: SimpleQueue[int | Ended] = SimpleQueue()
        self.functions: dict[bytes, tuple[m.Function, list[Any]] | Callable[..., Any]] = {}
        self._info = info
        self._pid = os.getpid()
        self._main_thread = threading.get_ident()
        self._operations = Operations(namespace, lambda error: self._make_remote_error(error, "map"), self.publish)
        self._key = NO_KEY
        """The attempt whose user code runs; NO_KEY while none does."""
        self._keys_to_interrupt: set[int] = set()
        self._aimed = 0
        self._aimed_seen = 0
        """How many interrupts were aimed at single attempts, and how many of those the handler knows of."""
        self.pool: Pool | None = None
        """Where big results go that their receiver can open; set by the I/O thread for each connection."""
        self._sender: Sender | None = None
        self._output: OutputCapture | None = None

    def attach(self, sender: Sender, output: OutputCapture) -> None:
        """Connect it to the I/O thread."""
        self._sender = sender
        self._output = output

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be run."""
        return not self.pending

    # ------------------------------------------------------------ main thread

    def run(self) -> Ended:
        """Run attempts until told to end."""
        get = self.keys.get
        while True:
            key = get()
            if isinstance(key, Ended):
                return key
            taken = self.pending.pop(key, None)
            if taken is not None:
                self._run_one(*taken)
            del taken  # the request's arrays must not live until the next one comes

    def _run_one(self, run: m.Run, frames: list[Any]) -> None:
        assert self._sender is not None and self._output is not None
        self._output.begin(run.key)
        started = time.time()
        payload: Payload = EMPTY
        error: m.ErrorInfo | None = None
        try:
            # An interrupt in this very frame is not raised (see `on_interrupt`): it would leave the attempt half ended.
            self._key = run.key
            payload = self._compute(run, frames)
            self._key = NO_KEY
        except BaseException as raised:  # noqa: BLE001 - the boundary around user code
            self._key = NO_KEY
            error, payload = self._describe(raised, run.op)
        if os.getpid() != self._pid:
            # User code forked, and this is the child, come back from it. Its answer is the parent's to give; and it
            # has no I/O thread, so it would wait here for ever, with copies of the engine's sockets.
            os._exit(0 if error is None else 1)
        sender = self._sender
        self._output.end(lambda message, own: sender.put(message, own, flush=False))
        if payload.frames:
            lend((run.key,), payload.frames)  # until the controller says that it was delivered
        done = m.Done(payload.data, len(payload.frames), run.key, started, time.time(), error)
        self._sender.put(done, payload.frames, flush=not self.pending)
        if error is not None and self._operations.stops_queue:
            self._abort_queued_cells()

    def _compute(self, run: m.Run, frames: list[Any]) -> Payload:
        if self._keys_to_interrupt:
            self._check_interrupts(run.key)
        function = self._get_function(run.function) if run.function else None
        if isinstance(function, dependent):
            function.check()  # before the arguments are unpickled: they may need what it imports
        elif function is not None:
            refresh_captured(function)
        argument = loads(run.data, frames)
        frames.clear()  # the arrays alias them; nobody else needs them
        value = self._operations.run(run.op, function, argument)
        del argument
        try:
            pool = self.pool
            return dumps(value, find_pool=(lambda: pool) if run.may_share else None, share_bytes_min=SHARED_BYTES_MIN)
        except SerializationError as error:
            raise SerializationError(
                f"the result cannot be sent back: {error}. Return something that can be pickled, or keep it on the "
                "engine under a name"
            ) from error

    def _get_function(self, digest: bytes) -> Callable[..., Any]:
        found = self.functions[digest]
        if isinstance(found, tuple):
            message, frames = found
            found = loads(message.data, frames)
            self.functions[digest] = found
        return found

    # ------------------------------------------------------------ errors

    def _describe(self, raised: BaseException, method: str) -> tuple[m.ErrorInfo, Payload]:
        error = self._make_remote_error(raised, method)
        info = self._info
        if isinstance(raised, UnmetDependency) and not isinstance(raised, ImpossibleDependency):
            # Not a failure of user code: this engine does not do, and the controller looks for another.
            return m.ErrorInfo("UnmetDependency", error.evalue, "", True, info.rank, info.host, info.pid, method), EMPTY
        told = m.ErrorInfo(error.ename, error.evalue, error.traceback, False, info.rank, info.host, info.pid, method)
        raised.__traceback__ = None  # its frames would keep the request's arrays alive
        try:
            return told, dumps(raised)
        except BaseException:  # noqa: BLE001 - its __reduce__ is user code, and may raise SystemExit
            return told, EMPTY

    def _make_remote_error(self, raised: BaseException, method: str) -> RemoteError:
        info = self._info
        try:
            text = str(raised)
        except BaseException as broken:  # noqa: BLE001 - __str__ is user code, and may raise SystemExit
            text = f"<its __str__ raised {type(broken).__name__}>"
        return RemoteError(
            type(raised).__name__,
            text,
            render_traceback(raised),
            {"engine_id": info.id, "rank": info.rank, "host": info.host, "pid": info.pid, "method": method},
        )

    def set_info(self, info: m.EngineInfo) -> None:
        """The controller gave this engine its id."""
        self._info = info

    def _abort_queued_cells(self) -> None:
        """A cell failed: the cells behind it, which were written in the belief that it would not, do not run."""
        assert self._sender is not None
        told = m.ErrorInfo("TaskAborted", "not run, because an earlier cell failed on this engine", "", True)
        for key, (run, _) in list(self.pending.items()):
            if run.op == "execute" and self.pending.pop(key, None) is not None:
                self._sender.put(m.Done(b"", 0, key, 0.0, 0.0, told), [], flush=not self.pending)

    def publish(self, kind: str, content: dict[str, Any]) -> None:
        """Hand something that user code shows to whoever waits for what runs now."""
        assert self._output is not None
        self._output.publish(kind, content)

    # ------------------------------------------------------------ interrupts

    def interrupt(self, keys: Collection[int]) -> None:
        """Raise KeyboardInterrupt in user code if it belongs to one of these attempts; the I/O thread calls this.

        Only one that has been taken from `pending` can be hit, and never the one after it: the main thread itself
        decides, by the key of what it runs.
        """
        self._keys_to_interrupt.update(keys)
        self._aimed += 1
        self.signal(signal.SIGINT)

    def signal(self, signum: int) -> None:
        """Send this process a signal. To the main thread, so that it wakes from whatever system call it waits in."""
        signal.pthread_kill(self._main_thread, signum)

    def on_interrupt(self, signum: int, frame: types.FrameType | None) -> None:
        """SIGINT, in the main thread: interrupts user code, and nothing else."""
        is_aimed, self._aimed_seen = self._aimed_seen != self._aimed, self._aimed
        if self._key == NO_KEY or (is_aimed and self._key not in self._keys_to_interrupt):
            return
        if frame is not None and frame.f_code is _RUN_ONE:
            # Before user code has begun, which then does not; or after its end, which is too late.
            self._keys_to_interrupt.add(self._key)
            return
        self._keys_to_interrupt.discard(self._key)
        raise KeyboardInterrupt

    def _check_interrupts(self, key: int) -> None:
        """An attempt begins: was it interrupted when it had been taken, and before it could be hit?"""
        is_hit = key in self._keys_to_interrupt
        # Keys ascend, so those of attempts that ended before they were hit are below this one.
        for old in [old for old in self._keys_to_interrupt.copy() if old <= key]:
            self._keys_to_interrupt.discard(old)
        if is_hit:
            raise KeyboardInterrupt


_RUN_ONE = Worker._run_one.__code__


def _is_machinery(filename: str) -> bool:
    """Whether a frame is ours, or IPython's or asyncio's on the way to the user's cell."""
    return filename.startswith(_OUR_FILES) or "/IPython/core/" in filename or "/asyncio/" in filename


def render_traceback(raised: BaseException) -> str:
    """The traceback of an exception as text, from the first frame that is the user's."""
    trace = raised.__traceback__
    while trace is not None and _is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(raised), raised, trace))
    except BaseException as broken:  # noqa: BLE001 - __str__ of user exceptions runs here, and may raise anything
        text = f"{type(raised).__name__} (its traceback cannot be shown: {type(broken).__name__})\n"
    if len(text) > TRACEBACK_CHARS_MAX:
        half = TRACEBACK_CHARS_MAX // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
    return text
