"""Who may connect over TCP: the allow-list, asked by libzmq for every CURVE handshake (ZAP, RFC 27).

libzmq proves that the peer holds the secret key of the public key it shows; this file says whose keys may enter,
and as what. On the ipc socket the file system does the same: it lies in a 0700 directory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import zmq

log = logging.getLogger("hpcviews.controller.gate")

_VERSION = b"1.0"


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, Z85 text."""

    public: str
    secret: str

    def __repr__(self) -> str:  # secrets must not reach a log
        return f"<KeyPair {self.public}>"


@dataclass(frozen=True)
class Keys:
    """All keys of one life of a cluster. Engines and clients have different ones: neither can pose as the other."""

    server: KeyPair
    client: KeyPair
    engine: KeyPair


def make_keys() -> Keys:
    """New keys, from the system's random source."""
    pairs = []
    for _ in range(3):
        public, secret = zmq.curve_keypair()
        pairs.append(KeyPair(public.decode(), secret.decode()))
    return Keys(*pairs)


class Gate:
    """The ZAP handler. It lives in the controller's loop: `socket` is polled, `answer()` called when readable."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keys):
        from zmq.utils import z85

        self._roles = {z85.decode(keys.client.public): b"client", z85.decode(keys.engine.public): b"engine"}
        self.denied = 0
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")

    def answer(self) -> None:
        """Answer all waiting questions."""
        while self.socket.poll(0):
            request = self.socket.recv_multipart()
            request_id = request[1] if len(request) > 1 else b""
            role = None
            address = b"?"
            if len(request) == 7 and request[0] == _VERSION and request[5] == b"CURVE":
                address = request[3]
                role = self._roles.get(request[6])
            if role is None:
                self.denied += 1
                peer = address.decode(errors="replace")
                log.warning("denied a connection from %s: its key is not of this cluster", peer)
                self.socket.send_multipart([_VERSION, request_id, b"400", b"not a key of this cluster", b"", b""])
            else:
                # The role becomes the connection's User-Id, which the loop reads from the hello.
                self.socket.send_multipart([_VERSION, request_id, b"200", b"OK", role, b""])

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(0)
