"""The controller's shell: one thread, one poller around the pure core.

Two ROUTER sockets: ``ipc`` in a 0700 directory for this node, TCP with CURVE for everybody else. Each turn takes a
bounded number of messages from each, lets the core handle them, and sends what the core wants sent: one zmq message
per peer and turn, whatever the number of messages in it. So batching grows with the load and costs an idle system
nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import zmq

from hpcviews import environment
from hpcviews.controller import dispatch
from hpcviews.controller.core import Core
from hpcviews.controller.events import Event, Order, Service
from hpcviews.controller.gate import Gate, Keys
from hpcviews.controller.sharing import Unshared
from hpcviews.controller.state import Frames, Route
from hpcviews.errors import HpcviewsError, ProtocolError
from hpcviews.wire import messages as m
from hpcviews.wire.codec import controller_decoder, encode
from hpcviews.wire.room import Room
from hpcviews.wire.shared import is_handle, map_handles
from hpcviews.wire.sockets import read_event, set_common_options

log = logging.getLogger("hpcviews.controller.loop")

MESSAGES_PER_TURN = 200
"""Bounds a turn, so that no socket starves the other and answers leave soon."""

TURN_S = 0.001
"""A turn also ends after about a millisecond of receiving."""

AWAKE_S = 0.0003
"""After messages the loop looks for more so long before it sleeps. A core that has gone idle takes 15 to 50 µs to wake,
on virtual machines above all, and a request passes here twice: staying awake takes a round trip from 0.51 to 0.33 ms.
It gives way to whoever wants the core, so engines that compute lose nothing measurable."""

RECALL_CHECK_S = 0.005

SLEEP_MAX_S = 86_400.0
"""A deadline further away is looked at again after a day: poll() takes at most 24."""

LAST_WORDS_QUIET_S = 0.25
"""A lost connection that has had no message for this long has none left, also when others keep the socket busy:
the socket takes from all its connections in turn."""

FLUSH_LINGER_MS = 2_000
"""At the end, last answers get this long to leave."""


class _Door:
    """A ROUTER socket, its monitor, and which connection (fd) each peer came in on."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], prefix: bytes):
        self.prefix = prefix
        self.socket = context.socket(zmq.ROUTER)
        set_common_options(self.socket)
        self.socket.setsockopt(zmq.BACKLOG, 4096)  # ten thousand engines connect at once
        self.monitor: zmq.Socket[bytes] | None = None
        self.route_by_fd: dict[int, Route] = {}

    def watch(self) -> zmq.Socket[bytes]:
        self.monitor = self.socket.get_monitor_socket(zmq.Event.DISCONNECTED)
        return self.monitor

    def read_disconnects(self) -> list[Route]:
        gone = []
        assert self.monitor is not None
        while self.monitor.poll(0):
            _, fd = read_event(self.monitor)
            route = self.route_by_fd.pop(fd, None)
            if route is not None:
                gone.append(route)
        return gone

    def close(self, linger_ms: int) -> None:
        self.socket.disable_monitor()
        if self.monitor is not None:
            self.monitor.close(0)
        self.socket.close(linger_ms)


class ControllerLoop:
    """Runs a Core. Also its Outbox: what the core sends is collected, and leaves at the end of the turn."""

    def __init__(self, core: Core, keys: Keys, services: Sequence[Service] = ()):
        self._core = core
        self._services = tuple(services)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65_000)
        self._gate = Gate(self._context, keys)
        self._ipc = _Door(self._context, b"i")
        self._tcp = _Door(self._context, b"t")
        self._tcp.socket.curve_server = True
        self._tcp.socket.curve_secretkey = keys.server.secret.encode()
        self._tcp.socket.curve_publickey = keys.server.public.encode()
        self._tcp.socket.setsockopt(zmq.ZAP_DOMAIN, b"hpcviews")
        self._decoder = controller_decoder()
        self._outgoing: dict[Route, tuple[list[m.Message], Frames]] = {}
        self._wants_scheduling = False
        self._may_recall = False
        self._deadline: float | None = None
        """When the core is to be told of the time again, at the latest."""
        self._is_finished = False
        self._services_changed = True
        """They may want to be ticked at another time, or to have other file descriptors watched."""
        self._complained: set[Route] = set()
        self._dying: dict[Route, float] = {}
        """Connections that are lost, and when the last message of theirs was handled."""
        self._room: Room | None = None
        self._check = environment.is_debug()

    def bind(self, ipc_path: str | None, tcp_addresses: Sequence[str], port: int = 0) -> list[str]:
        """Open the sockets; returns the endpoints.

        Args:
            ipc_path: Socket file in a 0700 directory, at most about 100 bytes long; None for no ipc.
            tcp_addresses: Numeric addresses of the interfaces to listen on, all with the same port.
            port: TCP port; 0 lets the system choose.
        Raises:
            zmq.ZMQError: An address cannot be bound.
        """
        endpoints = []
        if ipc_path is not None:
            self._ipc.socket.bind(f"ipc://{ipc_path}")
            endpoints.append(f"ipc://{ipc_path}")
        for address in tcp_addresses:
            is_v6 = ":" in address
            # Only then: with the option, libzmq reports IPv4 addresses in their IPv6 form.
            self._tcp.socket.setsockopt(zmq.IPV6, int(is_v6))
            host = f"[{address}]" if is_v6 else address
            self._tcp.socket.bind(f"tcp://{host}:{port if port else '*'}")
            endpoint = self._tcp.socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]
            port = port or int(endpoint.rsplit(":", 1)[1])
            endpoints.append(endpoint)
        return endpoints

    # ------------------------------------------------------------ Outbox

    def send(self, route: Route, message: m.Message, frames: Frames | None = None) -> None:
        """Collect a message for the end of the turn."""
        box = self._outgoing.get(route)
        if box is None:
            box = self._outgoing[route] = ([], [])
        box[0].append(message)
        if frames:
            box[1].extend(_materialize(frame) if isinstance(frame, Unshared) else frame for frame in frames)

    def hold(self, frames: Frames) -> Frames:
        """Map what is in shared memory."""
        return [_materialize(Unshared(frame)) if is_handle(frame) else frame for frame in frames]

    def order(self, order: Order) -> None:
        """Hand an order to the services."""
        self._services_changed = True
        for service in self._services:
            service.on_order(order, time.monotonic())

    def clear_segments(self, party: str) -> None:
        """Remove a lost party's shared memory."""
        if self._room is not None:
            removed = self._room.clear(party)
            log.info("removed %d segments of a peer that is gone", removed)

    def ask_for_scheduling(self) -> None:
        """Schedule at the end of the turn."""
        self._wants_scheduling = True

    def finish(self) -> None:
        """Leave the loop after this turn."""
        self._is_finished = True

    # ------------------------------------------------------------ the loop

    def post(self, event: Event) -> None:
        """Hand an event to the core; for services, in this thread."""
        dispatch.on_event(self._core, self, event)

    def run(self, room: Room | None = None) -> None:
        """Serve until the core has finished. Closes everything at the end, whatever happens.

        Args:
            room: The shared memory this process is to see to.
        """
        self._room = room
        poller = zmq.Poller()
        doors = (self._ipc, self._tcp)
        for door in doors:
            poller.register(door.socket, zmq.POLLIN)
            poller.register(door.watch(), zmq.POLLIN)
        poller.register(self._gate.socket, zmq.POLLIN)
        watched: frozenset[int] = frozenset()
        due: float | None = None
        took_messages = False
        for service in self._services:
            service.attach(self.post)
        try:
            while True:
                now = time.monotonic()
                # Not every turn: a round trip of a request takes two turns, and services have nothing to do with it.
                must_tick = self._services_changed or (due is not None and now >= due)
                if must_tick:
                    self._services_changed = False
                    due = self._tick_services(now)
                self._end_turn(now)
                if self._is_finished:
                    break
                if must_tick:
                    watched = self._update_watched(poller, watched)
                ready = self._stay_awake(poller, now) if took_messages else {}
                if not ready:
                    ready = dict(poller.poll(0 if self._services_changed else self._timeout_ms(now, due)))
                took_messages = self._ipc.socket in ready or self._tcp.socket in ready
                now = time.monotonic()
                if self._gate.socket in ready:
                    self._gate.answer()
                for door in doors:
                    if door.monitor in ready:
                        self._take_disconnects(door)
                for door in doors:
                    if door.socket in ready or self._dying:
                        is_drained = self._take_messages(door, now)
                        self._bury(door, is_drained, now)
                for fd in watched.intersection(ready):
                    self._services_changed = True
                    for service in self._services:
                        if fd in service.fds():
                            service.on_readable(fd, now)
        finally:
            for door in doors:
                door.close(FLUSH_LINGER_MS)
            self._gate.close()
            self._context.term()

    @staticmethod
    def _stay_awake(poller: zmq.Poller, now: float) -> dict[Any, int]:
        ready: dict[Any, int] = {}
        while not ready and time.monotonic() - now < AWAKE_S:
            os.sched_yield()
            ready = dict(poller.poll(0))
        return ready

    def _timeout_ms(self, now: float, due: float | None) -> int | None:
        waits = [] if due is None else [max(0.0, due - now)]
        if self._may_recall:
            waits.append(RECALL_CHECK_S)
        if self._deadline is not None:
            waits.append(min(max(0.0, self._deadline - now), SLEEP_MAX_S))
        if self._dying:
            waits.append(LAST_WORDS_QUIET_S)
        return int(min(waits) * 1000) + 1 if waits else None

    def _tick_services(self, now: float) -> float | None:
        waits = [wait for service in self._services if (wait := service.on_tick(now)) is not None]
        return now + min(waits) if waits else None

    def _update_watched(self, poller: zmq.Poller, watched: frozenset[int]) -> frozenset[int]:
        wanted: frozenset[int] = frozenset().union(*(service.fds() for service in self._services))
        for fd in watched - wanted:
            poller.unregister(fd)
        for fd in wanted - watched:
            poller.register(fd, zmq.POLLIN)
        return wanted

    def _take_disconnects(self, door: _Door) -> None:
        for route in door.read_disconnects():
            self._dying[route] = time.monotonic()

    def _bury(self, door: _Door, is_drained: bool, now: float) -> None:
        """Tell the core of lost connections, once their last messages have been handled.

        The news of a disconnect overtakes what the peer sent before it: a script's last requests, an engine's last
        answer.
        """
        for route, heard in list(self._dying.items()):
            if route[:1] == door.prefix and (is_drained or now - heard > LAST_WORDS_QUIET_S):
                del self._dying[route]
                self._complained.discard(route)
                dispatch.on_disconnect(self._core, self, route, "lost its connection (killed, or its host is gone)")
                self._outgoing.pop(route, None)
                self._check_core()

    def _take_messages(self, door: _Door, now: float) -> bool:
        """Handle what has come, for a bounded time; whether that was everything."""
        receive = door.socket.recv_multipart
        deadline = now + TURN_S
        for _ in range(MESSAGES_PER_TURN):
            try:
                parts = receive(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return True
            self._take_message(door, parts, now)
            if time.monotonic() > deadline:
                return False
        return False

    def _take_message(self, door: _Door, parts: list[zmq.Frame], now: float) -> None:
        route = door.prefix + parts[0].bytes
        if route in self._dying:
            self._dying[route] = now
        try:
            if len(parts) < 2:
                raise ProtocolError("a message without a header")
            frames = parts[2:]
            messages = self._decoder.decode(parts[1].buffer, len(frames))
        except HpcviewsError as error:
            self._complain(route, error)
            return
        role = "any"
        taken = 0
        for message in messages:
            if isinstance(message, m.ClientHello | m.EngineHello):
                # All events of an earlier connection with the same fd are in the monitor by now: the I/O thread
                # reported them before it read this message.
                self._take_disconnects(door)
                door.route_by_fd[parts[1].get(zmq.SRCFD)] = route
                if door is self._tcp:
                    role = str(parts[1].get("User-Id"))
            own: Frames = []
            if isinstance(message, m.Carrier) and message.frames:
                own = frames[taken : taken + message.frames]
                taken += message.frames
            try:
                dispatch.on_message(self._core, self, route, role, message, own, now)
            except HpcviewsError as error:
                self._complain(route, error)
                return
            self._check_core()

    def _complain(self, route: Route, error: HpcviewsError) -> None:
        self._core.malformed += 1
        if route not in self._complained and len(self._complained) < 10_000:
            self._complained.add(route)
            log.warning("peer %s: %s: %s", route.hex(), type(error).__name__, error)
        self.send(route, m.Refused(type(error).__name__, str(error)))

    def _end_turn(self, now: float) -> None:
        core = self._core
        self._schedule(now)
        self._may_recall = core.scheduler.may_recall
        self._deadline = core.find_deadline()
        if self._may_recall or (self._deadline is not None and self._deadline <= now):
            dispatch.on_tick(core, self, now)
            self._schedule(now)  # tasks that depend on the failure of one that has waited too long
            self._deadline = core.find_deadline()
        self._check_core()
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, {}
        for route, (messages, frames) in outgoing.items():
            socket = self._ipc.socket if route[:1] == b"i" else self._tcp.socket
            # A peer that is gone is no error here: its disconnect is on its way to us.
            socket.send_multipart([route[1:], encode(messages), *frames], zmq.NOBLOCK, copy=False)

    def _schedule(self, now: float) -> None:
        if self._wants_scheduling:
            self._wants_scheduling = False
            dispatch.on_schedule(self._core, self, now)

    def _check_core(self) -> None:
        if self._check:
            self._core.check()


def _materialize(unshared: Unshared) -> zmq.Frame:
    """The bytes behind a handle as a frame, uncopied; the map lives until they have left."""
    try:
        (mapped,) = map_handles([unshared.handle])
    except HpcviewsError as error:
        log.warning("shared memory cannot be handed on: %s", error)
        handle: zmq.Frame = unshared.handle  # its receiver finds out the same, and can tell whoever asked
        return handle
    return zmq.Frame(mapped.buffer, copy=False)
