"""The I/O thread of an engine: owns the one socket, never runs user code.

It answers while user code runs, so an engine can be told to give work back or to end at any time. If the controller
is lost it waits for it to come back, a bounded time, and then ends the process: an engine never outlives its cluster.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import zmq

from hpcviews import __version__
from hpcviews.engine.output import LIVE_PERIOD_S
from hpcviews.engine.worker import Ended
from hpcviews.errors import ConnectError, HpcviewsError, NoCluster
from hpcviews.wire import messages as m
from hpcviews.wire.access import get_python_version, read_access
from hpcviews.wire.codec import encode, engine_decoder
from hpcviews.wire.pool import Pool
from hpcviews.wire.room import KILLED_S, Room, join_room
from hpcviews.wire.sockets import Link, connect_first, ipc_is_gone

if TYPE_CHECKING:
    from hpcviews.engine.output import OutputCapture
    from hpcviews.engine.worker import Worker

log = logging.getLogger("hpcviews.engine.loop")

FLUSH_AFTER_S = 0.001
"""While tasks stream, answers are collected this long: batches without a cost to latency."""

CONTROLLER_GRACE_S = 10.0
"""How long a lost controller may take to come back. A network that is reset takes seconds; a dead one is for ever."""

STOP_GRACE_S = 3.0
"""How long user code and MPI_Finalize may go on after the order to stop."""

ACCESS_POLL_S = 0.01
MESSAGES_PER_TURN = 100

EXIT_CONTROLLER_LOST = 3
EXIT_REFUSED = 4
EXIT_UNREACHABLE = 5


class EngineLoop(threading.Thread):
    """The I/O thread. `put` and `expect_output` may be called from any thread."""

    def __init__(
        self,
        access_path: Path,
        info: m.EngineInfo,
        failure: str,
        worker: Worker,
        output: OutputCapture,
        timeout_s: float,
        end_process: Callable[[int], NoReturn] = os._exit,
    ):
        super().__init__(name="hpcviews-io", daemon=True)
        self._access_path = access_path
        self._info = info
        self._failure = failure
        self._worker = worker
        self._output = output
        self._timeout_s = timeout_s
        # The main thread may be anywhere in user code; nothing but os._exit ends the process for sure.
        self._end_process = end_process
        self._decoder = engine_decoder()
        self._outgoing: deque[tuple[m.Message, list[Any]]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._must_flush = False
        self._output_expected = False
        self._flush_at: float | None = None
        self._output_at: float | None = None
        self._lost_at: float | None = None
        self._stop_at: float | None = None
        self._is_welcome = False
        self._generation = ""
        self._left: Room | None = None
        """The room of a lost connection: left when the process ends, or another is joined."""

    # ------------------------------------------------------------ other threads

    def put(self, message: m.Message, frames: list[Any], flush: bool) -> None:
        """Queue a message for the controller. It leaves at once with `flush`, else within FLUSH_AFTER_S."""
        self._outgoing.append((message, frames))
        if flush:
            self._must_flush = True
        # Looked at after the append: if the I/O thread took it already, there is nothing to wake it for; if there
        # are more, whoever put the first one woke it.
        if flush or len(self._outgoing) == 1:
            os.eventfd_write(self._wake_fd, 1)

    def expect_output(self) -> None:
        """User code has written something."""
        self._output_expected = True
        os.eventfd_write(self._wake_fd, 1)

    # ------------------------------------------------------------ the thread

    def run(self) -> None:
        """Connect, register, serve."""
        try:
            self._serve()
        except Exception:
            # The top of the thread: an engine without it is deaf, so it ends.
            log.exception("engine %d: the I/O thread failed", self._info.id)
            self._exit(1)

    def _serve(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            link = self._connect(context)
            try:
                self._serve_link(link)
            finally:
                link.close()
        finally:
            context.destroy(0)

    def _serve_link(self, link: Link) -> None:
        self._say_hello(link)
        poller = zmq.Poller()
        poller.register(link.socket, zmq.POLLIN)
        poller.register(link.monitor, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(self._timeout_ms()))
            if self._wake_fd in ready:
                self._on_wake()
            if link.monitor in ready:
                self._on_changes(link)
            if link.socket in ready:
                self._receive(link)
            self._on_time(link)

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]]) -> Link:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                access = read_access(self._access_path, "engine")
                self._generation = access.generation
                return connect_first(context, access, max(1.0, deadline - time.monotonic()))
            except NoCluster as error:
                # The controller writes the file when it is bound; launchers may be faster.
                if time.monotonic() > deadline or not self._access_path.parent.is_dir():
                    self._give_up(EXIT_UNREACHABLE, error)
                time.sleep(ACCESS_POLL_S)
            except ConnectError as error:
                self._give_up(EXIT_UNREACHABLE, error)

    def _exit(self, code: int) -> NoReturn:
        self.leave_room(KILLED_S if self._lost_at is not None else 0.0)
        self._end_process(code)

    def _give_up(self, code: int, reason: object) -> NoReturn:
        _write_log(f"engine {self._info.index} of set {self._info.set_id}: {reason}")
        self._exit(code)

    def _say_hello(self, link: Link) -> None:
        info = msgspec.structs.replace(self._info, registered=time.time())
        pool = self._join_room()
        if pool is not None:
            info = msgspec.structs.replace(info, room=pool.room.token)
        party = pool.party if pool is not None else ""
        hello = m.EngineHello(__version__, get_python_version(), info, self._failure, party)
        link.socket.send(encode([hello]))

    def _join_room(self) -> Pool | None:
        """A pool of its own for each connection: what a lost one had lent is never written again."""
        self.leave_room()
        room = join_room(self._generation)
        if room is not None:
            self._worker.pool = Pool(room, lambda: os.eventfd_write(self._wake_fd, 1))
        return self._worker.pool

    def _close_pool(self) -> None:
        # Last results may be under way: the controller removes them when they have been mapped.
        pool, self._worker.pool = self._worker.pool, None
        if pool is not None:
            pool.close(leave_lent=True)
            self._left = pool.room

    def leave_room(self, patience_s: float = 0.0) -> None:
        """The process ends, or joins another room. Any thread; again is fine."""
        self._close_pool()
        left, self._left = self._left, None
        if left is not None:
            left.leave(patience_s)

    # ------------------------------------------------------------ sending

    def _on_wake(self) -> None:
        os.eventfd_read(self._wake_fd)
        now = time.monotonic()
        if self._outgoing and self._flush_at is None:
            self._flush_at = now + FLUSH_AFTER_S
        if self._output_expected:
            self._output_expected = False
            if self._output_at is None:
                self._output_at = now + LIVE_PERIOD_S

    def _flush(self, link: Link) -> None:
        self._must_flush = False
        self._flush_at = None
        messages: list[m.Message] = []
        frames: list[Any] = []
        outgoing = self._outgoing
        while outgoing:
            message, own = outgoing.popleft()
            messages.append(message)
            frames += own
        if messages and self._is_welcome:
            link.socket.send_multipart([encode(messages), *frames], copy=False)

    # ------------------------------------------------------------ receiving

    def _receive(self, link: Link) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                parts = link.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            frames = parts[1:]
            try:
                messages = self._decoder.decode(parts[0].buffer, len(frames))
            except HpcviewsError as error:
                log.error("engine %d: the controller sent what it must not: %s", self._info.id, error)
                continue
            taken = 0
            for message in messages:
                own: list[Any] = []
                if isinstance(message, m.Carrier) and message.frames:
                    own = frames[taken : taken + message.frames]
                    taken += message.frames
                self._on_message(message, own)

    def _on_message(self, message: m.Message, frames: list[Any]) -> None:
        worker = self._worker
        if isinstance(message, m.Run):
            worker.pending[message.key] = (message, frames)
            worker.keys.put(message.key)
        elif isinstance(message, m.Function):
            worker.functions[message.digest] = (message, frames)
        elif isinstance(message, m.ForgetFunction):
            worker.functions.pop(message.digest, None)
        elif isinstance(message, m.Withdraw):
            withdrawn: list[int] = []
            refused: list[int] = []
            for key in message.keys:
                (refused if worker.pending.pop(key, None) is None else withdrawn).append(key)
            self.put(m.Withdrawn(withdrawn, refused), [], flush=True)
        elif isinstance(message, m.InterruptRuns):
            worker.interrupt(message.keys)
        elif isinstance(message, m.EngineSignal):
            self._signal_self(message.signum)
        elif isinstance(message, m.EngineWelcome):
            self._is_welcome = True
            self._info = msgspec.structs.replace(self._info, id=message.id)
            worker.set_info(self._info)
        elif isinstance(message, m.Delivered):
            if worker.pool is not None:
                for key in message.keys:
                    worker.pool.give_back(key)
        elif isinstance(message, m.ClearSegments):
            if worker.pool is not None:
                worker.pool.room.clear(message.party)
        elif isinstance(message, m.EngineStop):
            self._on_stop(message)
        elif isinstance(message, m.Refused):
            self._give_up(EXIT_REFUSED, f"the controller refuses this engine: {message.text}")

    def _signal_self(self, signum: int) -> None:
        try:
            # To the main thread, where handlers of user code run: it wakes from whatever system call it waits in.
            self._worker.signal(signum)
        except (OSError, ValueError) as error:
            _write_log(f"engine {self._info.id}: signal {signum} cannot be sent to it: {error}")

    def _on_stop(self, message: m.EngineStop) -> None:
        if self._stop_at is None:
            self._stop_at = time.monotonic() + STOP_GRACE_S
            self._worker.pending.clear()
            self._worker.keys.put(Ended(0, message.finalize))

    # ------------------------------------------------------------ time

    def _on_changes(self, link: Link) -> None:
        for is_connected in link.read_changes():
            if is_connected and self._lost_at is not None:
                self._lost_at = None
                self._say_hello(link)
            elif not is_connected:
                # The controller has failed or requeued everything that we hold; answers would come too late.
                self._is_welcome = False
                self._worker.pending.clear()
                self._worker.functions.clear()
                self._outgoing.clear()
                self._close_pool()
                if self._lost_at is None:
                    self._lost_at = time.monotonic()

    def _on_time(self, link: Link) -> None:
        now = time.monotonic()
        if self._output_at is not None and now >= self._output_at:
            self._output_at = None
            self._output.drain(lambda message, frames: self._outgoing.append((message, frames)))
            self._must_flush = True
        if self._must_flush or (self._flush_at is not None and (now >= self._flush_at or self._worker.is_idle)):
            self._flush(link)
        if self._lost_at is not None:
            if self._stop_at is not None:
                self._exit(0)
            if now - self._lost_at > CONTROLLER_GRACE_S or ipc_is_gone(link.endpoint):
                self._give_up(EXIT_CONTROLLER_LOST, "the controller is gone")
        if self._stop_at is not None and now > self._stop_at:
            self._exit(0)

    def _timeout_ms(self) -> int | None:
        wait = self._worker.pool.expire() if self._worker.pool is not None else None
        dues = [due for due in (self._flush_at, self._output_at, self._stop_at) if due is not None]
        if self._lost_at is not None:
            dues.append(time.monotonic() + 0.2)
        if wait is not None:
            dues.append(time.monotonic() + wait)
        if not dues:
            return None
        # Rounded up to the poll's milliseconds; a flush that is a little late is better than a busy loop.
        return max(0, int((min(dues) - time.monotonic()) * 1000) + 1)


def _write_log(text: str) -> None:
    os.write(2, f"{text}\n".encode(errors="replace"))
