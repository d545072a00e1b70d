"""Assembles a controller from its parts."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

from hpcviews.controller.archive import Archive
from hpcviews.controller.core import Core, Identity
from hpcviews.controller.events import Service
from hpcviews.controller.gate import Keys, make_keys
from hpcviews.controller.loop import ControllerLoop
from hpcviews.wire.access import Access, get_python_version, read_host_id
from hpcviews.wire.room import join_room


class Controller:
    """A controller that is bound, and serves when `run` is called.

    Attributes:
        endpoints: Its addresses, ipc first.
        generation: Random name of this life.
    """

    def __init__(
        self,
        cluster: str,
        version: str,
        *,
        ipc_path: str | None,
        tcp_addresses: Sequence[str],
        port: int = 0,
        services: Sequence[Service] = (),
        archive: Archive | None = None,
    ):
        self.cluster = cluster
        self.version = version
        self.generation = secrets.token_hex(8)
        self._keys: Keys = make_keys()
        identity = Identity(
            cluster=cluster,
            generation=self.generation,
            version=version,
            python=get_python_version(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=time.time(),
            started_monotonic=time.monotonic(),
        )
        self.core = Core(identity)
        if archive is not None:
            services = [*services, archive]
            self.core.finished.has_archive = self.core.finished.is_archiving = True
        self.loop = ControllerLoop(self.core, self._keys, services)
        self.endpoints = self.loop.bind(ipc_path, tcp_addresses, port)
        self.core.identity = Identity(**{**identity.__dict__, "endpoints": tuple(self.endpoints)})

    def make_access(self, role: str) -> Access:
        """What a "client" or an "engine" needs to connect; contains the secret key of that role."""
        pair = {"client": self._keys.client, "engine": self._keys.engine}[role]
        identity = self.core.identity
        return Access(
            role=role,
            cluster=self.cluster,
            generation=self.generation,
            version=self.version,
            python=identity.python,
            host=identity.host,
            host_id=read_host_id(),
            endpoints=self.endpoints,
            server_key=self._keys.server.public,
            public_key=pair.public,
            secret_key=pair.secret,
        )

    def run(self) -> None:
        """Serve until the cluster has ended."""
        room = join_room(self.generation)
        if room is not None:
            self.core.identity = replace(self.core.identity, room=room.token)
        try:
            self.loop.run(room)
        finally:
            if room is not None:
                room.leave()
