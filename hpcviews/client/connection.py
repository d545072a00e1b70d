"""A client's connection: what `Client`, views and results share, without being the object that users hold.

The I/O thread refers to this and not to the Client, so a Client that nobody uses any more is collected, and closes.
"""

from __future__ import annotations

import atexit
import enum
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from queue import SimpleQueue
from typing import Any, TypeVar

import zmq

import hpcviews
from hpcviews.client.call import Call
from hpcviews.client.function_cache import FunctionCache
from hpcviews.client.functions import PickledFunction, SentFunctions
from hpcviews.client.loop import Loop
from hpcviews.client.outgoing import Frames, Outgoing, Parcel
from hpcviews.client.registry import Registry
from hpcviews.client.requests import Requests
from hpcviews.client.sharing import Sharing, map_result
from hpcviews.client.transfers import TransferLog
from hpcviews.errors import (
    AccessRefused,
    ControllerLost,
    ControllerUnreachable,
    HpcviewsError,
    ProtocolError,
    UsageError,
    find_error_class,
)
from hpcviews.ids import MsgId, Seq, make_session
from hpcviews.wire import messages as m
from hpcviews.wire.access import Access, get_python_version
from hpcviews.wire.codec import client_decoder, encode
from hpcviews.wire.sockets import Link, connect_first

log = logging.getLogger("hpcviews.client.connection")

PUSHED_NAMES_MAX = 10_000
"""Names remembered as being on the engines. A forgotten name only means that a function that uses it brings the
client's value along, which the engine's own value overrules."""


UNSEEN_REPORTED_MAX = 20
"""Failures of dropped calls that a client logs; a loop that drops them all must not fill the log."""

CALLBACKS_THREAD = "hpcviews-callbacks"

Answer = m.Status | m.Acknowledged | m.Records | m.QueueStatus
"""What `Connection.ask` waits for."""

A = TypeVar("A", bound=Answer)


class Phase(enum.Enum):
    """States of a connection."""

    CONNECTED = "connected"
    LOST = "lost"
    """Broken; the I/O thread tries to get it back, unless the controller will not have us."""
    CLOSED = "closed"


class Connection:
    """An open connection to a controller, and everything that waits on it."""

    def __init__(self, access: Access, timeout_s: float):
        """Connect, and return when the controller has accepted us.

        Raises:
            ControllerUnreachable: It did not answer in time.
            AccessRefused: It does not know our key.
            VersionMismatch: It is of another version.
        """
        self.access = access
        self.session = make_session()
        self.requests = Requests(self.session)
        self.registry = Registry()
        self.pushed_names: dict[str, None] = {}
        self._pid = os.getpid()
        # Reentrant: a garbage collection inside a locked section may run `ask_to_close`.
        self._lock = threading.RLock()
        self._phase = Phase.CONNECTED
        self._why: HpcviewsError | None = None
        self._is_stopping = False
        self._gone = threading.Event()
        """Set while there is no connection."""
        self._functions = SentFunctions()
        self.function_cache = FunctionCache()
        self._outgoing = Outgoing()
        self._queries: dict[int, Future[Answer]] = {}
        self._unseen_reported = 0
        self._callbacks: SimpleQueue[Callable[[], object] | None] | None = None
        self._has_ended = False
        """The I/O thread is gone."""
        self.transfers = TransferLog()
        self.sharing = Sharing(access.generation, self._wake)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            deadline = time.monotonic() + timeout_s
            link = connect_first(context, access, timeout_s)
            self.endpoint = link.endpoint
            link.socket.send(encode([self.make_hello()]))
            welcome, *more = _wait_for_welcome(link, access, deadline, timeout_s)
            assert isinstance(welcome, m.Welcome)
            self.cluster = welcome.cluster
            self.registry.on_welcome(welcome)
            self.sharing.controller_room = welcome.room
            self.on_messages(more, [])
            self._loop = Loop(context, link, access, self._outgoing, self)
        except BaseException:
            self.sharing.leave()
            context.destroy(0)
            raise
        self._loop.start()
        _open_connections.add(self)

    # ------------------------------------------------------------ any thread

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._phase is Phase.CLOSED

    def check_process(self) -> None:
        """Raise in a forked child, where the I/O thread does not exist and a wait would never end."""
        if os.getpid() != self._pid:
            raise UsageError(
                f"this Client belongs to process {self._pid}, and this is process {os.getpid()}, forked from it; "
                "make a new one here: hpcviews.Client()"
            )

    def check_usable(self) -> None:
        """Raise unless requests can be sent."""
        self.check_process()
        self._check_phase()

    def _check_phase(self) -> None:
        if self._phase is Phase.CLOSED:
            raise UsageError("this Client has been closed; make a new one: hpcviews.Client()")
        if self._phase is Phase.LOST:
            assert self._why is not None
            raise type(self._why)(*self._why.args)

    def reserve(self, count: int) -> Seq:
        """Take numbers for requests that are about to be posted."""
        self.check_process()
        with self._lock:
            self._check_phase()
            return self.requests.reserve(count)

    def post(
        self,
        call: Call | None,
        seqs: range,
        messages: list[m.Message],
        frames: Frames,
        function: PickledFunction | None = None,
    ) -> None:
        """Send messages in one piece, behind everything posted before.

        Args:
            call: Who waits for the results of the requests `seqs`.
            seqs: Numbers of the requests among `messages`; reserved before.
            messages: What to send.
            frames: Their payload frames. Not kept here once they are sent.
            function: What the messages name by digest.
        """
        self.check_process()
        with self._lock:
            self._check_phase()
            try:
                if function is not None:
                    before = self._functions.take(function)
                    if before is not None:
                        self._outgoing.put(before)
                if call is not None:
                    self.requests.open(call, seqs)
                if call is not None and frames:
                    call.traffic.add_messages(call.first, messages, frames)
                    self.sharing.lend(messages, frames)
                self._outgoing.put(Parcel(messages, frames))
                self._loop.wake()
            except BaseException:
                # Ctrl-C between two of these steps: nobody will wait for the requests, and whether the function
                # was queued is not known, so it is sent again.
                self.requests.drop(seqs)
                self._functions.clear()
                raise

    def remember_pushed(self, names: list[str]) -> None:
        """These names are bound on engines now: functions need not bring them along."""
        with self._lock:
            for name in names:
                self.pushed_names.pop(name, None)
                self.pushed_names[name] = None
            while len(self.pushed_names) > PUSHED_NAMES_MAX:
                del self.pushed_names[next(iter(self.pushed_names))]

    def ask(self, make_question: Callable[[Seq], m.Message], kind: type[A], timeout_s: float | None) -> A:
        """Ask the controller something, and wait for the answer.

        Args:
            make_question: Makes the message; its answer names the same number.
            kind: What the answer is.
            timeout_s: Give up after this many seconds; None waits for ever.
        Raises:
            TimeoutError: It did not answer.
            HpcviewsError: The answer is an error.
        """
        future = self.ask_async(make_question)
        try:
            answer = future.result(timeout_s)
        except FutureTimeoutError:
            raise TimeoutError(
                f"the controller of cluster {self.cluster!r} did not answer within {timeout_s:g} s; "
                "it may be stopped, or very busy"
            ) from None
        assert isinstance(answer, kind)
        return answer

    def ask_async(self, make_question: Callable[[Seq], m.Message]) -> Future[Answer]:
        """As `ask`, without waiting. An answer that is an error is the future's exception."""
        future: Future[Answer] = Future()
        seq = self.reserve(1)  # never in the history: it is no request
        self._queries[seq] = future
        try:
            self.post(None, range(0), [make_question(seq)], [])
        except BaseException:
            self._queries.pop(seq, None)
            raise
        return future

    def stop_cluster(self, timeout_s: float | None) -> None:
        """Ask the controller to end the cluster, and wait until it has."""
        self.check_process()
        with self._lock:
            if self._phase is not Phase.CONNECTED:
                return
            self._is_stopping = True
            self._outgoing.put(Parcel([m.StopCluster()], []))
            self._loop.wake()
        if not self._gone.wait(timeout_s):
            raise TimeoutError(
                f"cluster {self.cluster!r} did not end within {timeout_s:g} s; its processes may be stuck, "
                f"see `hpcviews logs {self.cluster}`"
            )

    def _wake(self) -> None:
        self._loop.wake()

    def run_callback(self, callback: Callable[[], object]) -> None:
        """Run it in the thread for callbacks: in the I/O thread, one that waits for a result would wait for ever."""
        with self._lock:
            queue = self._callbacks
            if queue is None:
                queue = self._callbacks = SimpleQueue()
                threading.Thread(target=_run_callbacks, args=(queue,), name=CALLBACKS_THREAD, daemon=True).start()
            queue.put(callback)
            if self._has_ended:
                # Nobody will end this thread later; what is asked for after the end (by somebody who waits) runs still.
                queue.put(None)
                self._callbacks = None

    def is_callback_thread(self) -> bool:
        """Whether this is the thread for callbacks: it must not wait for one."""
        return threading.current_thread().name == CALLBACKS_THREAD

    def report_unseen(self, name: str, msg_id: MsgId, result: m.Result) -> None:
        """Log that a request failed whose result was dropped before anybody looked at it.

        Called by the garbage collector in any thread, so it only hands on: a log handler is user code.
        """
        with self._lock:
            if self._phase is Phase.CLOSED or self._unseen_reported >= UNSEEN_REPORTED_MAX or result.error is None:
                return
            self._unseen_reported += 1
            count = self._unseen_reported
        error = result.error
        text = f"{name} failed on engine {result.engine} ({msg_id}), and nobody looked at its result: "
        text += error.traceback.rstrip() or f"{error.ename}: {error.evalue}"
        if count == UNSEEN_REPORTED_MAX:
            text += f"\nThis is the {count}th of this client; it logs no more of them."
        self.run_callback(lambda: log.warning("%s", text))

    def ask_to_close(self) -> None:
        """Begin to close, without waiting. Again is fine; in a forked child it does nothing."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._phase is not Phase.CLOSED:
                self._loop.ask_to_close()

    def close(self) -> None:
        """Send what waits, leave, and end the I/O thread. Again is fine; in a forked child it does nothing."""
        self.ask_to_close()
        if os.getpid() == self._pid:
            self._loop.join()

    # ------------------------------------------------------------ the I/O thread

    def make_hello(self) -> m.ClientHello:
        """The first message on each connection."""
        room, party = self.sharing.join()
        return m.ClientHello(
            version=hpcviews.__version__,
            python=get_python_version(),
            session=self.session,
            host=socket.gethostname(),
            pid=self._pid,
            room=room,
            party=party,
        )

    def on_idle(self) -> float | None:
        """Nothing is to be done."""
        return self.sharing.expire()

    def on_messages(self, messages: list[m.Message], frames: list[zmq.Frame]) -> bool:
        """What the controller sent."""
        results: list[tuple[m.Result, Frames]] = []
        mapped: list[Seq] = []
        taken = 0
        for message in messages:
            if isinstance(message, m.Carrier):
                own: Frames = []
                if message.frames:
                    own = frames[taken : taken + message.frames]
                    taken += message.frames
                if isinstance(message, m.Published):
                    self.requests.on_published(message, own)
                elif isinstance(message, m.Result):
                    results.append((message, map_result(own, message.seq, mapped)))
            elif isinstance(message, m.Output):
                self.requests.on_output(message)
            elif isinstance(message, m.Followed):
                self.requests.on_followed(message)
            elif isinstance(message, m.EnginesJoined):
                self.registry.on_joined(message)
            elif isinstance(message, m.EnginesLeft):
                self.registry.on_left(message)
            elif isinstance(message, m.SetChanged):
                self.registry.on_set(message)
            elif isinstance(message, Answer):
                self._on_answer(message)
            elif isinstance(message, m.Welcome):
                if not self._on_welcome(message):
                    return False
            elif isinstance(message, m.Refused):
                self._end_all(_make_refusal(message))
                return False
        # Last, so that who is woken by an engine's death finds the engine gone from `ids`.
        if results:
            self.sharing.give_back(results)
            self.requests.on_results(results, time.time())
        if mapped:
            self._outgoing.put(Parcel([m.Mapped(list(mapped))], []))
        return True

    def _on_answer(self, answer: Answer) -> None:
        query = self._queries.pop(answer.seq, None)
        if query is None or not query.set_running_or_notify_cancel():
            return
        told = None if isinstance(answer, m.Status) else answer.error
        if told is None:
            query.set_result(answer)
        else:
            query.set_exception((find_error_class(told.ename) or HpcviewsError)(told.evalue))

    def _on_welcome(self, welcome: m.Welcome) -> bool:
        if welcome.generation != self.access.generation:
            self._end_all(ControllerLost(f"the controller of {self.cluster!r} is gone, another one answers there"))
            return False
        log.info("client %s: connected again", self.session)
        self.registry.on_welcome(welcome)
        self.sharing.controller_room = welcome.room
        with self._lock:
            self._phase, self._why = Phase.CONNECTED, None
            self._gone.clear()
        return True

    def on_lost(self, why: str) -> bool:
        """The connection broke: everything outstanding ends."""
        if self._is_stopping:
            text = f"cluster {self.cluster!r} was stopped"
        else:
            text = (
                f"lost the controller of cluster {self.cluster!r} on {self.access.host} ({why}). "
                "If it still runs, this client connects again by itself; `hpcviews list` shows what runs"
            )
        self._end_all(ControllerLost(text))
        return not self._is_stopping

    def _end_all(self, error: HpcviewsError) -> None:
        with self._lock:
            self._phase, self._why = Phase.LOST, error
            self._outgoing.clear()
            self._functions.clear()
        self.sharing.on_lost()
        self.registry.on_end(error)
        self._fail_waiting(error)
        self._gone.set()

    def on_closed(self) -> None:
        """The I/O thread ends."""
        error = ControllerLost("this client was closed before the result came")
        with self._lock:
            self._phase, self._why = Phase.CLOSED, error
            self._outgoing.clear()
        self.sharing.leave(leave_lent=True)
        self.registry.on_end(error)
        self._fail_waiting(error)
        self._gone.set()
        with self._lock:
            # Only now: ending what waited may have been the first to need it.
            callbacks, self._callbacks = self._callbacks, None
            self._has_ended = True
            if callbacks is not None:
                callbacks.put(None)

    def _fail_waiting(self, error: HpcviewsError) -> None:
        self.requests.fail_all(type(error).__name__, str(error), time.time())
        while self._queries:
            _, query = self._queries.popitem()
            if query.set_running_or_notify_cancel():
                query.set_exception(error)


_open_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # The I/O thread is a daemon, so that a script that forgets close() ends; but what it has queued must leave.
    for connection in list(_open_connections):
        connection.close()


def _wait_for_welcome(link: Link, access: Access, deadline: float, timeout_s: float) -> list[m.Message]:
    """The Welcome, and what came together with it."""
    decoder = client_decoder()
    while True:
        rest_ms = max(0, int((deadline - time.monotonic()) * 1000))
        if not link.socket.poll(rest_ms):
            raise ControllerUnreachable(
                f"the controller of cluster {access.cluster!r} at {link.endpoint} answers, but did not accept us "
                f"within {timeout_s:g} s; see its log: `hpcviews logs {access.cluster}`"
            )
        header, *frames = link.socket.recv_multipart()
        messages = decoder.decode(header, len(frames))
        for position, message in enumerate(messages):
            if isinstance(message, m.Refused):
                raise _make_refusal(message)
            if isinstance(message, m.Welcome):
                return messages[position:]


def _make_refusal(refused: m.Refused) -> HpcviewsError:
    kind = find_error_class(refused.error) or AccessRefused
    if kind is ProtocolError:
        return ProtocolError(f"the controller does not accept what this client sends: {refused.text}")
    return kind(refused.text)


def _run_callbacks(queue: SimpleQueue[Callable[[], Any] | None]) -> None:
    while (callback := queue.get()) is not None:
        try:
            callback()
        except Exception:
            log.exception("a callback of an AsyncResult raised")
        del callback
