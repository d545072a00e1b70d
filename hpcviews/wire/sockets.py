"""How sockets of clients and engines are opened: options, keys, and trying every address of a controller."""

from __future__ import annotations

import contextlib
import errno
import os
import socket as plain_socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import zmq

from hpcviews.errors import AccessRefused, ControllerUnreachable, HpcviewsError, ProtocolError
from hpcviews.wire import messages as m
from hpcviews.wire.access import Access, read_host_id
from hpcviews.wire.codec import client_decoder, encode

# ZMTP heartbeats run in libzmq's own thread, so user code that holds the GIL for minutes is not taken for dead.
# They are the backstop for a peer whose host vanished or that is stopped; a killed peer is seen at once, because
# the kernel closes its connection.
HEARTBEAT_INTERVAL_MS = 20_000
# Not less: a busy login node or a swapping one easily stalls a process for seconds.
HEARTBEAT_TIMEOUT_MS = 10_000
# Shorter than the interval, and no TTL: to cancel a timer, libzmq looks through all timers of its thread from the
# front, where one with a short time to go is. With 5 s and 20 s, and two timers for each answer, 9,000 connections
# kept it busy for 50 s at a time, and lost one another; so they cost a tenth of a core. A TTL alone would not do: it
# is forgotten when data comes, until the next beat.

IPC_HEAD_START_S = 0.5
"""How long the ipc socket of the same node is tried alone, before TCP connections are opened too."""

_EVENT = struct.Struct("=Hi")
_LOST = zmq.Event.DISCONNECTED
_FOUND = zmq.Event.HANDSHAKE_SUCCEEDED
_DENIED = zmq.Event.HANDSHAKE_FAILED_AUTH
_BROKEN = zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL


def set_common_options(socket: zmq.Socket[bytes]) -> None:
    """What every socket of ours has."""
    socket.linger = 0
    # No high-water mark: a ROUTER drops what exceeds it, and nothing may be lost. Memory is bounded by what
    # clients have outstanding.
    socket.set_hwm(0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_INTERVAL_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)


def read_event(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """Number and value of the next event of a socket monitor.

    pyzmq's own function for it costs an import of asyncio, 17 ms of every engine's start.
    """
    number, value = _EVENT.unpack(monitor.recv_multipart()[0])
    return number, value


@dataclass
class Link:
    """An open connection to a controller."""

    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    endpoint: str

    def close(self, linger_ms: int = 0) -> None:
        """Close it; with `linger_ms`, what was sent last still leaves."""
        with contextlib.suppress(zmq.ZMQError):
            self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger_ms)

    def read_changes(self) -> list[bool]:
        """Connection changes since the last call: True for connected (again), False for lost."""
        changes = []
        while self.monitor.poll(0):
            event, _ = read_event(self.monitor)
            if event == _FOUND:
                changes.append(True)
            elif event == _LOST:
                changes.append(False)
        return changes


def open_link(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, access: Access) -> Link:
    """Begin to connect to one address. Reconnects by itself for as long as it is open."""
    socket = context.socket(zmq.DEALER)
    set_common_options(socket)
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
    if not endpoint.startswith("ipc:"):
        # On ipc the 0700 directory of the socket is the key.
        socket.curve_serverkey = access.server_key.encode()
        socket.curve_publickey = access.public_key.encode()
        socket.curve_secretkey = access.secret_key.encode()
    monitor = socket.get_monitor_socket(_LOST | _FOUND | _DENIED | _BROKEN)
    socket.connect(endpoint)
    return Link(socket, monitor, endpoint)


def connect_first(context: zmq.Context[zmq.Socket[bytes]], access: Access, timeout_s: float) -> Link:
    """Try every address of the controller at once; keep the first that answers as the right cluster.

    Raises:
        ControllerUnreachable: None did within `timeout_s`; the message lists each address with its error.
        AccessRefused: It is there, and refuses our key.
    """
    here = access.host_id == read_host_id()
    local = [e for e in access.endpoints if e.startswith("ipc:") and here]
    remote = [e for e in access.endpoints if not e.startswith("ipc:")]
    attempt = _Attempt(context, access)
    try:
        deadline = time.monotonic() + timeout_s
        if local and _ipc_answers(local[0]):
            attempt.open(local)
            link = attempt.wait(min(deadline, time.monotonic() + IPC_HEAD_START_S))
            if link is not None:
                return link
        attempt.open(remote)
        link = attempt.wait(deadline)
        if link is not None:
            return link
        raise attempt.explain(timeout_s, [e for e in access.endpoints if e not in attempt.links])
    finally:
        attempt.close_losers()


class _Attempt:
    """The connections that are being tried."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], access: Access):
        self.context = context
        self.access = access
        self.links: dict[str, Link] = {}
        self.denied: set[str] = set()
        self.broken: set[str] = set()
        self.wrong: dict[str, str] = {}
        self.winner: Link | None = None
        self._decoder = client_decoder()

    def open(self, endpoints: list[str]) -> None:
        for endpoint in endpoints:
            link = self.links[endpoint] = open_link(self.context, endpoint, self.access)
            link.socket.send(encode([m.Probe()]))

    def wait(self, deadline: float) -> Link | None:
        poller = zmq.Poller()
        by_socket: dict[zmq.Socket[bytes], Link] = {}
        for link in self.links.values():
            by_socket[link.socket] = by_socket[link.monitor] = link
            poller.register(link.socket, zmq.POLLIN)
            poller.register(link.monitor, zmq.POLLIN)
        while (rest := deadline - time.monotonic()) > 0:
            for socket, _ in poller.poll(max(1, int(rest * 1000))):
                link = by_socket[socket]
                if socket is link.monitor:
                    self._on_event(link)
                elif self._is_right(link):
                    self.winner = link
                    return link
            if self.links and self.denied.issuperset(self.links):
                return None
        return None

    def _on_event(self, link: Link) -> None:
        event, _ = read_event(link.monitor)
        if event == _DENIED:
            self.denied.add(link.endpoint)
        elif event & _BROKEN:
            self.broken.add(link.endpoint)

    def _is_right(self, link: Link) -> bool:
        header, *frames = link.socket.recv_multipart()
        try:
            (reply,) = self._decoder.decode(header, len(frames))
        except (HpcviewsError, ValueError) as error:
            if isinstance(error, ProtocolError | ValueError):
                self.wrong[link.endpoint] = f"something else answers there: {error}"
                return False
            raise
        if isinstance(reply, m.Refused):
            self.wrong[link.endpoint] = reply.text
            return False
        if not isinstance(reply, m.ProbeReply) or reply.generation != self.access.generation:
            self.wrong[link.endpoint] = "another cluster answers there; this connection file is of an earlier one"
            return False
        return True

    def explain(self, timeout_s: float, untried: list[str]) -> HpcviewsError:
        access = self.access
        if self.links and self.denied.issuperset(self.links):
            return AccessRefused(
                f"the controller of {access.cluster!r} refuses the key in the connection file: "
                "it is not the file of the cluster that runs now (see `hpcviews list`)"
            )
        lines = [f"  {endpoint}: {self._diagnose(endpoint)}" for endpoint in self.links]
        lines += [f"  {endpoint}: {_why_untried(endpoint, access)}" for endpoint in untried]
        return ControllerUnreachable(
            f"the controller of cluster {access.cluster!r} (on {access.host}) did not answer within {timeout_s:g} s:\n"
            + "\n".join(lines)
            + f"\nIf it has ended, `hpcviews stop {access.cluster}` removes its record; if a firewall is between, "
            "start it with --interface NAME for a network that both sides share."
        )

    def _diagnose(self, endpoint: str) -> str:
        if endpoint in self.wrong:
            return self.wrong[endpoint]
        if endpoint in self.denied:
            return "our key is refused"
        if endpoint in self.broken:
            return "the handshake failed: another program or another cluster listens there"
        return _try_plain(endpoint)

    def close_losers(self) -> None:
        for link in self.links.values():
            if link is not self.winner:
                link.close()


def _ipc_answers(endpoint: str) -> bool:
    return _try_plain(endpoint) == ""


def ipc_is_gone(endpoint: str) -> bool:
    """Whether this is an ipc address that nobody listens on any more: its process is dead, not just busy."""
    return endpoint.startswith("ipc:") and not _ipc_answers(endpoint)


def _why_untried(endpoint: str, access: Access) -> str:
    if endpoint.startswith("ipc:") and access.host_id != read_host_id():
        return "only on that host"
    return _try_plain(endpoint)


def _try_plain(endpoint: str) -> str:
    """Why a plain connection to `endpoint` fails, in the system's words; "" if it does not."""
    family, address = plain_socket.AF_UNIX, endpoint.removeprefix("ipc://")
    target: str | tuple[str, int] = address
    if endpoint.startswith("tcp:"):
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        target = (host, parts.port or 0)
        family = plain_socket.AF_INET6 if ":" in host else plain_socket.AF_INET
    elif not Path(address).exists():
        return "its socket is gone"
    probe = plain_socket.socket(family, plain_socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        probe.connect(target)
    except TimeoutError:
        return "no answer (a firewall, or no route)"
    except OSError as error:
        return os.strerror(error.errno or errno.EIO).lower()
    finally:
        probe.close()
    return "" if endpoint.startswith("ipc:") else "it listens, but does not answer (stopped, or very busy)"
