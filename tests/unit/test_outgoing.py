"""What the client queues: functions once, history in ranges, parcels put together."""

from __future__ import annotations

import pytest
import zmq

from hpcviews.client.functions import PickledFunction, SentFunctions, name_function
from hpcviews.client.history import History
from hpcviews.client.outgoing import ALONE_BYTES_MIN, MESSAGES_MAX, Outgoing, Parcel
from hpcviews.ids import Session
from hpcviews.wire import messages as m
from hpcviews.wire.payload import Payload, dumps

SESSION = Session("0123456789abcdef")


def make_function(text: str, size: int = 10) -> PickledFunction:
    return name_function(Payload(text.encode().ljust(size), []))


def kinds(parcel: Parcel | None) -> list[str]:
    return [] if parcel is None else [type(message).__name__ for message in parcel.messages]


# ---------------------------------------------------------------- functions


def test_function_is_sent_once() -> None:
    sent = SentFunctions()
    assert kinds(sent.take(make_function("f"))) == ["Function"]
    assert sent.take(make_function("f")) is None
    assert kinds(sent.take(make_function("g"))) == ["Function"]


def test_least_recently_used_function_is_forgotten_and_sent_again() -> None:
    sent = SentFunctions(count_max=2)
    f, g, h = map(make_function, "fgh")
    sent.take(f), sent.take(g), sent.take(f)
    parcel = sent.take(h)
    assert parcel is not None
    assert parcel.messages == [m.Function(h.payload.data, 0, h.digest), m.ForgetFunction(g.digest)]
    assert sent.take(f) is None
    assert kinds(sent.take(g)) == ["Function", "ForgetFunction"]


def test_functions_are_bounded_by_bytes_and_the_newest_stays() -> None:
    sent = SentFunctions(bytes_max=250)
    assert kinds(sent.take(make_function("a", 100))) == ["Function"]
    assert kinds(sent.take(make_function("b", 100))) == ["Function"]
    assert kinds(sent.take(make_function("c", 100))) == ["Function", "ForgetFunction"]
    assert kinds(sent.take(make_function("huge", 1000))) == ["Function", "ForgetFunction", "ForgetFunction"]
    assert sent.take(make_function("huge", 1000)) is None


def test_new_connection_needs_functions_again() -> None:
    sent = SentFunctions()
    sent.take(make_function("f"))
    sent.clear()
    assert kinds(sent.take(make_function("f"))) == ["Function"]


# ---------------------------------------------------------------- parcels


def make_parcel(seq: int, size: int = 0) -> Parcel:
    frames = [zmq.Frame(bytes(size), copy=False)] if size else []
    return Parcel([m.Request(b"", len(frames), seq, [0], "push", b"")], frames)


def seqs(parcel: Parcel | None) -> list[int]:
    assert parcel is not None
    return [message.seq for message in parcel.messages if isinstance(message, m.Request)]


def test_parcels_that_wait_leave_together_in_order() -> None:
    outgoing = Outgoing()
    assert not outgoing and outgoing.take() is None
    for seq in range(5):
        outgoing.put(make_parcel(seq, 100 if seq % 2 else 0))
    parcel = outgoing.take()
    assert seqs(parcel) == [0, 1, 2, 3, 4]
    assert parcel is not None and len(parcel.frames) == 2
    assert not outgoing


def test_big_parcel_leaves_alone_and_holds_up_nobody_before_it() -> None:
    outgoing = Outgoing()
    for seq, size in enumerate([0, 0, ALONE_BYTES_MIN, 0, 0]):
        outgoing.put(make_parcel(seq, size))
    assert [seqs(outgoing.take()) for _ in range(3)] == [[0, 1], [2], [3, 4]]


def test_zmq_messages_are_bounded() -> None:
    outgoing = Outgoing()
    for seq in range(MESSAGES_MAX + 5):
        outgoing.put(make_parcel(seq))
    assert len(seqs(outgoing.take())) == MESSAGES_MAX
    assert len(seqs(outgoing.take())) == 5


def test_putting_together_does_not_change_what_was_put() -> None:
    # Messages of a parcel may be the caller's own list.
    outgoing = Outgoing()
    first, second = make_parcel(0), make_parcel(1)
    outgoing.put(first)
    outgoing.put(second)
    outgoing.take()
    assert seqs(first) == [0]


# ---------------------------------------------------------------- history


def test_history_is_a_sequence_of_msg_ids() -> None:
    history = History(SESSION)
    assert list(history) == [] and len(history) == 0
    history.add(range(3))
    history.add(range(3, 5))
    history.add(range(0))
    history.add(range(10, 11))
    ids = [f"{SESSION}-{seq}" for seq in (0, 1, 2, 3, 4, 10)]
    assert list(history) == ids == history
    assert [history[i] for i in range(-6, 6)] == ids + ids
    assert history[-2:] == ids[-2:] and history[::2] == ids[::2]
    assert ids[3] in history and history.index(ids[3]) == 3
    assert history != ids[:-1]


def test_history_ends_where_it_ends() -> None:
    history = History(SESSION)
    history.add(range(2))
    for index in (2, -3):
        with pytest.raises(IndexError, match="history of 2"):
            history[index]


def test_million_tasks_take_one_entry() -> None:
    history = History(SESSION)
    for start in range(0, 10**6, 500):
        history.add(range(start, start + 500))
    assert len(history._ranges) == 1 and len(history) == 10**6
    assert history[-1] == f"{SESSION}-999999"


def test_unpicklable_argument_is_named() -> None:
    with pytest.raises(TypeError, match="argument 'lock'"):
        dumps(((1,), {"lock": __import__("threading").Lock()}))
