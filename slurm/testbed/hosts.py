"""Hosts made of namespaces: a head with a bridge in it, and nodes plugged into that bridge.

No namespace has a route out, so nothing that happens in the testbed can reach, or be reached from, the network.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from processes import PERIOD_S, Registry

HEAD = "head"
NETWORK = "10.99.0"

# Process 1 of a node; bash, because it reaps what is orphaned there. Its own /tmp as on real nodes, so that nobody
# takes it for shared.
_INIT = """
hostname "$1" && mount --bind "$2" /etc/hosts && ip link set lo up || exit 1
mount -t tmpfs -o mode=1777 none /dev/shm || exit 1
[ "$1" = head ] || mount -t tmpfs -o mode=1777 none /tmp || exit 1
touch "$3"
trap : TERM INT HUP
while :; do sleep 3600 & wait $!; done
"""


def list_nodes(count: int) -> list[str]:
    """Names of compute nodes."""
    return [f"node{number}" for number in range(1, count + 1)]


def get_address(host: str) -> str:
    """The address of a host in the testbed's network."""
    return f"{NETWORK}.{254 if host == HEAD else int(host.removeprefix('node'))}"


class Hosts:
    """The namespaces. Each is held by one process."""

    def __init__(self, directory: Path, registry: Registry):
        self._directory = directory
        self._registry = registry

    def make_all(self, nodes: Sequence[str]) -> None:
        """Make those that are missing, and connect them."""
        names = "".join(f"{get_address(host)} {host}\n" for host in (HEAD, *nodes))
        (self._directory / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        if self._registry.find(f"{HEAD}.host") is None:
            self._make(HEAD, ["--net", "--uts", "--ipc", "--mount"])
            self._ip("link", "add", "br0", "type", "bridge")
            self._ip("addr", "add", f"{get_address(HEAD)}/24", "dev", "br0")
            self._ip("link", "set", "br0", "up")
        for node in nodes:
            if self._registry.find(f"{node}.host") is None:
                self._make(node, ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc"])
                self._plug(node)
            self.set_cable(node, True)

    def _make(self, host: str, kinds: list[str]) -> None:
        ready = self._directory / f"{host}.ready"
        ready.unlink(missing_ok=True)
        argv = ["unshare", *kinds, "bash", "-c", _INIT, f"testbed-{host}", host]
        argv += [str(self._directory / "hosts"), str(ready)]
        log = self._directory / "log" / f"{host}.host.log"
        self._registry.start(f"{host}.host", argv, log, forks="--fork" in kinds)
        deadline = time.monotonic() + 10
        while not ready.exists():
            if time.monotonic() > deadline or self._registry.find(f"{host}.host") is None:
                raise OSError(f"no namespaces for {host}: {log.read_text()[-500:]}")
            time.sleep(PERIOD_S)

    def _plug(self, node: str) -> None:
        # A node that crashed has left the other end of its cable.
        self._ip("link", "del", node, check=False)
        pid = str(self._registry.find(f"{node}.host"))
        self._ip("link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", pid)
        self._ip("link", "set", node, "master", "br0")
        self._ip("addr", "add", f"{get_address(node)}/24", "dev", "eth0", host=node)
        self._ip("link", "set", "eth0", "up", host=node)

    def _ip(self, *args: str, host: str = HEAD, check: bool = True) -> None:
        subprocess.run(self.enter(host, ["ip", *args]), check=check, capture_output=True)

    def set_cable(self, node: str, plugged: bool) -> None:
        """Connect a node to the network, or cut it off."""
        self._ip("link", "set", node, "up" if plugged else "down")

    def enter(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` on a host, in the present directory."""
        pid = self._registry.find(f"{host}.host")
        if pid is None:
            raise OSError(f"there is no host {host}, or it is down")
        kinds = ["-n", "-u", "-i", "-m"] + (["-p"] if host != HEAD else [])
        return ["nsenter", "-t", str(pid), *kinds, f"--wd={os.getcwd()}", "--", *argv]
