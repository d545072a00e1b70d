"""Owner and signals, as the controller's services; and the line that tells whether it serves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from hpcviews import errors
from hpcviews.cluster.handshake import LINE_BYTES_MAX, Readiness, send_readiness, wait_readiness
from hpcviews.cluster.lifeline import Lifeline, OwnerWatch, SignalWatch
from hpcviews.controller.events import Event, StopRequested


class Harness:
    """A lifeline whose both ends are here."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lifeline = Lifeline()
        self.watch = OwnerWatch(os.dup(self.lifeline.far_fd))
        self.lifeline.hand_over()
        self.watch.attach(self.events.append)

    def turn(self) -> None:
        """What the controller's loop does when the pipe is readable."""
        for fd in self.watch.fds():
            self.watch.on_readable(fd, 0.0)


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.lifeline.close()
    made.turn()


def test_owners_death_stops_the_cluster(harness: Harness) -> None:
    harness.lifeline.close()
    harness.turn()
    assert harness.events == [StopRequested("its owner is gone")]
    assert harness.watch.fds() == frozenset()


def test_owner_can_stop_the_cluster(harness: Harness) -> None:
    harness.lifeline.stop()
    harness.turn()
    assert harness.events == [StopRequested("its owner ended it")]


def test_detached_cluster_has_no_owner(harness: Harness) -> None:
    harness.lifeline.detach()
    harness.turn()
    assert harness.events == []
    assert harness.watch.fds() == frozenset()


def test_stop_and_close_of_a_dead_controller_are_fine() -> None:
    lifeline = Lifeline()
    lifeline.hand_over()
    lifeline.stop()
    lifeline.close()


@pytest.fixture
def restored_signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    writer = signal.set_wakeup_fd(-1)
    os.close(writer)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_stops_the_cluster_and_sighup_does_not(restored_signals: None) -> None:
    events: list[Event] = []
    watch = SignalWatch()
    watch.attach(events.append)
    (fd,) = watch.fds()
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    watch.on_readable(fd, 0.0)
    assert events == [StopRequested("SIGTERM came")]
    os.close(fd)


# ---------------------------------------------------------------- the handshake


def send(readiness: Readiness | None) -> int:
    reader, writer = os.pipe()
    if readiness is None:
        os.close(writer)
    else:
        send_readiness(writer, readiness)
    return reader


def test_controller_that_serves_says_so() -> None:
    fd = send(Readiness())
    wait_readiness(fd, 1.0)
    os.close(fd)


def test_error_of_the_controller_is_raised_as_its_class() -> None:
    fd = send(Readiness("NotEnoughFiles", "too few"))
    with pytest.raises(errors.NotEnoughFiles, match="too few"):
        wait_readiness(fd, 1.0)
    os.close(fd)


def test_controller_that_dies_without_a_word_is_noticed() -> None:
    fd = send(None)
    with pytest.raises(EOFError):
        wait_readiness(fd, 1.0)
    os.close(fd)


def test_controller_that_says_nothing_is_not_waited_for_for_ever() -> None:
    reader, writer = os.pipe()
    with pytest.raises(TimeoutError):
        wait_readiness(reader, 0.01)
    os.close(reader)
    os.close(writer)


def test_starter_that_is_gone_is_no_error_of_the_controller() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    send_readiness(writer, Readiness())


def test_long_error_still_arrives_as_a_line() -> None:
    fd = send(Readiness("LaunchError", "x" * (LINE_BYTES_MAX // 2)))
    with pytest.raises(errors.LaunchError, match=r"^x+$"):
        wait_readiness(fd, 1.0)
    os.close(fd)
