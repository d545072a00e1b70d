"""Which addresses the controller listens on."""

import socket

import pytest

from hpcviews.cluster.interfaces import choose_addresses, read_interfaces
from hpcviews.errors import UsageError

INTERFACES = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.5", "fd00::5"], "ib0": ["192.168.7.5"]}


def test_this_machine_is_found_to_have_loopback() -> None:
    assert "127.0.0.1" in read_interfaces()["lo"]


def test_every_address_that_is_found_can_be_listened_on() -> None:
    for addresses in read_interfaces().values():
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.bind((address, 0))


def test_nobody_outside_gets_in_when_everyone_is_here() -> None:
    assert choose_addresses(None, True, INTERFACES) == ["127.0.0.1"]


def test_all_addresses_are_offered_when_engines_may_be_elsewhere() -> None:
    assert choose_addresses(None, False, INTERFACES) == ["10.0.0.5", "fd00::5", "192.168.7.5", "127.0.0.1"]
    assert choose_addresses("all", True, INTERFACES) == choose_addresses(None, False, INTERFACES)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("ib0", ["192.168.7.5"]), ("eth0", ["10.0.0.5", "fd00::5"]), ("10.0.0.5", ["10.0.0.5"]), ("lo", ["127.0.0.1"])],
)
def test_interface_or_address_can_be_named(wanted: str, expected: list[str]) -> None:
    assert choose_addresses(wanted, False, INTERFACES) == expected


def test_unknown_interface_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"ib1.*eth0 \(10.0.0.5, fd00::5\); ib0"):
        choose_addresses("ib1", False, INTERFACES)
