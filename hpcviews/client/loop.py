"""The client's I/O thread: the only one that touches its sockets.

It sends what waits in `Outgoing`, everything that waits at once, hands what arrives to a `Handler`, and opens a
new link when the connection is lost. User threads wake it by an eventfd, and only if it sleeps.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Protocol

import zmq

from hpcviews.client.outgoing import Outgoing
from hpcviews.errors import HpcviewsError
from hpcviews.wire import messages as m
from hpcviews.wire.access import Access
from hpcviews.wire.codec import client_decoder, encode
from hpcviews.wire.sockets import Link, open_link

log = logging.getLogger("hpcviews.client.loop")

MESSAGES_PER_TURN = 64
"""How many zmq messages are read before what waits is sent: receiving must not starve sending."""

LEAVE_LINGER_MS = 2_000
"""When a client closes, what it sent last gets this long to leave."""


class Handler(Protocol):
    """What the I/O thread tells; all in that thread."""

    def on_messages(self, messages: list[m.Message], frames: list[zmq.Frame]) -> bool:
        """They arrived together. False: the controller will have nothing more to do with us."""

    def make_hello(self) -> m.ClientHello:
        """The first message on a connection."""

    def on_idle(self) -> float | None:
        """Nothing is to be done; in how many seconds to be called again at the latest, None for not at all."""

    def on_lost(self, why: str) -> bool:
        """The connection broke. True: try to get it back."""

    def on_closed(self) -> None:
        """The thread ends; after this nobody may call `wake`."""


class Loop:
    """The I/O thread and its sockets."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        link: Link,
        access: Access,
        outgoing: Outgoing,
        handler: Handler,
    ):
        self._context = context
        self._link: Link | None = link
        self._access = access
        self._outgoing = outgoing
        self._handler = handler
        self._decoder = client_decoder()
        self._poller = zmq.Poller()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_asleep = False
        self._is_closing = False
        self._is_greeting = False
        """The link is new: no Welcome has come on it yet."""
        self._endpoint = link.endpoint
        self._watch(link)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._thread = threading.Thread(target=self._run, name="hpcviews-client", daemon=True)

    def start(self) -> None:
        """Start the thread; from now on the sockets are its own."""
        self._thread.start()

    def wake(self) -> None:
        """Something waits in `Outgoing`. Cheap when the thread is at work anyway."""
        if self._is_asleep:
            self._is_asleep = False
            os.eventfd_write(self._wake_fd, 1)

    def ask_to_close(self) -> None:
        """End the thread after what waits has been sent."""
        self._is_closing = True
        os.eventfd_write(self._wake_fd, 1)

    def join(self) -> None:
        """Wait until the thread has ended, unless this is the thread."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._turn()
        except Exception:
            log.exception("the client's I/O thread failed; this is a bug in hpcviews")
        finally:
            self._end()

    def _turn(self) -> None:
        # Asleep first, then look: who puts a parcel after the look sees the flag and wakes us.
        self._is_asleep = True
        timeout_ms: int | None = 0
        if not self._outgoing and not self._is_closing:
            wait = self._handler.on_idle()
            timeout_ms = None if wait is None else int(wait * 1000) + 1
        ready = dict(self._poller.poll(timeout_ms))
        self._is_asleep = False
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        link = self._link
        if link is not None and link.socket in ready:
            self._receive(link, MESSAGES_PER_TURN)
        if link is not None and link is self._link and link.monitor in ready:
            self._follow(link)
        self._send()

    def _send(self) -> None:
        link = self._link
        if link is None or self._is_greeting:
            return  # the connection has emptied the queue and refuses new parcels
        while (parcel := self._outgoing.take()) is not None:
            link.socket.send_multipart([encode(parcel.messages), *parcel.frames], copy=False)
            # Frames hold the user's arrays: without the reference, a MessageTracker is done as soon as libzmq is.
            del parcel

    def _receive(self, link: Link, count_max: int | None) -> None:
        count = 0
        while count_max is None or count < count_max:
            try:
                header = link.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            count += 1
            frames = link.socket.recv_multipart(copy=False) if link.socket.getsockopt(zmq.RCVMORE) else []
            try:
                messages = self._decoder.decode(header, len(frames))
            except HpcviewsError as error:
                # What it answered cannot be known, so nothing that waits can be trusted to end.
                log.error("unreadable message from the controller: %s", error)
                self._lose(link, f"it sent what cannot be read: {error}")
                return
            if not self._handler.on_messages(messages, frames):
                self._drop(link)
                return
            if self._is_greeting and any(isinstance(message, m.Welcome) for message in messages):
                self._is_greeting = False

    def _follow(self, link: Link) -> None:
        for is_connected in link.read_changes():
            if self._is_greeting:
                # Nothing but the hello was sent on this link, so it can stay, with its growing retry interval.
                if is_connected:
                    link.socket.send(encode([self._handler.make_hello()]))
            elif not is_connected:
                self._receive(link, None)  # results that came before the end are results
                if link is self._link:
                    self._lose(link, "the connection broke")
                return

    def _lose(self, link: Link, why: str) -> None:
        # A new socket, not the old one's own reconnecting: what is queued in that would be sent to a controller
        # that has forgotten who we are, ahead of our hello.
        self._drop(link)
        if self._handler.on_lost(why):
            self._link = open_link(self._context, self._endpoint, self._access)
            self._is_greeting = True
            self._watch(self._link)

    def _watch(self, link: Link) -> None:
        self._poller.register(link.socket, zmq.POLLIN)
        self._poller.register(link.monitor, zmq.POLLIN)

    def _drop(self, link: Link) -> None:
        self._poller.unregister(link.socket)
        self._poller.unregister(link.monitor)
        link.close()
        self._link = None
        self._is_greeting = False

    def _end(self) -> None:
        try:
            if self._link is not None and not self._is_greeting:
                self._send()
                self._link.socket.send(encode([m.ClientLeave()]))
                self._link.close(LEAVE_LINGER_MS)
            elif self._link is not None:
                self._link.close()
        finally:
            self._handler.on_closed()
            os.close(self._wake_fd)
            self._context.destroy(0)
