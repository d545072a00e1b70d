"""Who has no key gets nowhere and harms nothing; who has one cannot do what it is not for."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import zmq

from hpcviews.controller.app import Controller
from hpcviews.errors import AccessRefused, ControllerUnreachable
from hpcviews.testing.wait import wait_until
from hpcviews.wire import messages as m
from hpcviews.wire.access import Access, get_python_version
from hpcviews.wire.codec import client_decoder, encode
from hpcviews.wire.sockets import Link, connect_first


class Target:
    """A running controller, and what is needed to attack it."""

    def __init__(self, directory: Path):
        self.controller = Controller("target", "0.1.0", ipc_path=None, tcp_addresses=["127.0.0.1"])
        self.access = self.controller.make_access("client")
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.thread = threading.Thread(target=self.controller.run)
        self.thread.start()

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.access.endpoints[0])
        return parts.hostname or "", parts.port or 0

    def connect(self, access: Access | None = None, timeout_s: float = 5.0) -> Link:
        return connect_first(self.context, access or self.access, timeout_s)

    def ask(self, link: Link, *messages: m.Message) -> m.Message:
        link.socket.send(encode(messages))
        assert link.socket.poll(5000), "no answer"
        header, *frames = link.socket.recv_multipart()
        return client_decoder().decode(header, len(frames))[0]

    def assert_serves(self) -> None:
        link = self.connect()
        hello = m.ClientHello("0.1.0", get_python_version(), os.urandom(8).hex(), "h", 1)
        assert isinstance(self.ask(link, hello), m.Welcome)
        link.close()

    def stop(self) -> None:
        link = self.connect()
        hello = m.ClientHello("0.1.0", get_python_version(), os.urandom(8).hex(), "h", 1)
        link.socket.send(encode([hello, m.StopCluster()]))
        self.thread.join(10)
        assert not self.thread.is_alive()
        link.close()
        self.context.destroy(0)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    running = Target(tmp_path)
    try:
        yield running
        running.assert_serves()
    finally:
        running.stop()


def test_a_client_without_the_key_is_refused_and_told_so(target: Target) -> None:
    public, secret = zmq.curve_keypair()
    stranger = msgspec.structs.replace(target.access, public_key=public.decode(), secret_key=secret.decode())
    with pytest.raises(AccessRefused, match="refuses the key"):
        target.connect(stranger)
    assert target.controller.loop._gate.denied == 1


def test_a_client_without_curve_gets_no_word(target: Target) -> None:
    plain = target.context.socket(zmq.DEALER)
    plain.linger = 0
    plain.connect(target.access.endpoints[0])
    plain.send(encode([m.Probe()]))
    assert not plain.poll(500)
    plain.close()


def test_a_client_with_the_key_of_another_server_is_told_what_listens_there(target: Target) -> None:
    public, _ = zmq.curve_keypair()
    stale = msgspec.structs.replace(target.access, server_key=public.decode())
    with pytest.raises(ControllerUnreachable, match=r"handshake failed|does not answer"):
        target.connect(stale, timeout_s=1)


def test_an_earlier_life_of_the_cluster_is_told_apart(target: Target) -> None:
    stale = msgspec.structs.replace(target.access, generation="another")
    with pytest.raises(ControllerUnreachable, match="of an earlier one"):
        target.connect(stale, timeout_s=1)


def test_the_engines_key_does_not_make_a_client(target: Target) -> None:
    link = target.connect(target.controller.make_access("engine"))
    refused = target.ask(link, m.ClientHello("0.1.0", get_python_version(), "s" * 16, "h", 1))
    assert isinstance(refused, m.Refused) and refused.error == "ProtocolError"
    link.close()


def test_plain_tcp_scanners_and_garbage_bytes_harm_nothing(target: Target) -> None:
    chance = random.Random(7)
    for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\0\0\0\0\0\0\0\x01\x7f", b"\0" * 64, chance.randbytes(5000)):
        with socket.create_connection(target.address, timeout=5) as scanner:
            scanner.sendall(greeting)
    silent = [socket.create_connection(target.address, timeout=5) for _ in range(50)]
    target.assert_serves()
    for scanner in silent:
        scanner.close()


def test_garbage_from_a_peer_with_a_key_is_answered_and_harms_nothing(target: Target) -> None:
    link = target.connect()
    chance = random.Random(3)
    for garbage in ([b""], [b"\x01"], [b"\x02xyz"], [chance.randbytes(300)], [encode([m.Probe()]), b"frame too many"]):
        link.socket.send_multipart(garbage)
        assert link.socket.poll(5000)
        header, *frames = link.socket.recv_multipart()
        (answer,) = client_decoder().decode(header, len(frames))
        assert isinstance(answer, m.Refused)
    wait_until(lambda: target.controller.core.malformed == 5, 5, lambda: str(target.controller.core.malformed))
    link.close()


def test_nothing_works_before_the_hello(target: Target) -> None:
    link = target.connect()
    for message in (m.StopCluster(), m.StatusQuery(1), m.Task(b"", 0, 0, "apply", b"", None, 0)):
        answer = target.ask(link, message)
        assert isinstance(answer, m.Refused) and "has not said hello" in answer.text
    assert not target.controller.core.stopping
    link.close()


def test_a_client_that_connects_and_vanishes_leaves_nothing(target: Target) -> None:
    for _ in range(20):
        target.assert_serves()
    wait_until(lambda: not target.controller.core.clients, 5, lambda: str(target.controller.core.clients))
