"""Which addresses the controller listens on, and tells the others to try."""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcviews.errors import UsageError

LOOPBACK = "127.0.0.1"
ALL = "all"

_SIOCGIFADDR = 0x8915
_SCOPE_GLOBAL = "00"


def read_interfaces() -> dict[str, list[str]]:
    """Numeric addresses of this machine by network interface; link-local ones left out (they need a zone)."""
    found: dict[str, list[str]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            with contextlib.suppress(OSError):  # it has no IPv4 address
                fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                found.setdefault(name, []).append(socket.inet_ntoa(request.tobytes()[20:24]))
    with contextlib.suppress(OSError):  # no IPv6 on this machine
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, _, _, scope, _, name = line.split()
            if scope == _SCOPE_GLOBAL:
                found.setdefault(name, []).append(str(ipaddress.IPv6Address(bytes.fromhex(digits))))
    return found


def choose_addresses(wanted: str | None, everyone_is_here: bool, interfaces: Mapping[str, Sequence[str]]) -> list[str]:
    """The addresses to listen on.

    Args:
        wanted: A network interface, an address of this machine, "all", or None to choose by the next argument.
        everyone_is_here: All engines will be on this machine. Then nobody outside needs to get in by default.
        interfaces: What `read_interfaces` found.
    Raises:
        UsageError: There is no such interface or address; the message lists them.
    """
    outside = [a for addresses in interfaces.values() for a in addresses if not _is_loopback(a)]
    if wanted is None:
        wanted = LOOPBACK if everyone_is_here else ALL
    if wanted == ALL:
        # Loopback last: on this machine it works when a firewall closes the others; elsewhere it costs one refusal.
        return [*outside, LOOPBACK]
    if wanted in interfaces:
        return list(interfaces[wanted])
    if wanted == LOOPBACK or any(wanted in addresses for addresses in interfaces.values()):
        return [wanted]
    known = "; ".join(f"{name} ({', '.join(addresses)})" for name, addresses in interfaces.items())
    raise UsageError(f"no network interface or address {wanted!r} on this machine; there are: {known}; or {ALL!r}")


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
